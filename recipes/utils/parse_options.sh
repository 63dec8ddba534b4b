# Sourced by scripts with options. An option is a variable that has its default by then and that $help_message lists:
# --some-name VALUE sets some_name. One whose default is true or false needs no value: --dry-run is --dry-run true.
# Stops at the first argument that is no option; the caller finds the rest in "$@".
# shellcheck shell=bash disable=SC2154 # help_message is the script's

usage_error() {
  printf '%s: %s\n%s\n' "${0##*/}" "$1" "$help_message" >&2
  exit 2
}

is_option() {
  local variable=${1#--}
  variable=${variable//-/_}
  [[ $1 =~ ^--[a-z][a-z0-9-]*$ ]] || return 1
  local listed="(^|[[:space:],])$1([[:space:],]|$)"
  [[ $help_message =~ $listed ]] && [ -n "${!variable+set}" ]
}

while [ $# -gt 0 ]; do
  case $1 in
    -h|--help) printf '%s\n' "$help_message"; exit 0 ;;
    --*=*) usage_error "$1: write ${1%%=*} and its value with a space between them" ;;
    -*) is_option "$1" || usage_error "unknown option $1" ;;
    *) break ;;
  esac
  _option=$1
  _variable=${1#--}
  _variable=${_variable//-/_}
  shift
  case ${!_variable} in
    true|false)
      case ${1:---} in
        true|false) printf -v "$_variable" '%s' "$1"; shift ;;
        -*) printf -v "$_variable" true ;;
        *) usage_error "$_option is true or false, not '$1'" ;;
      esac ;;
    *)
      if [ $# -eq 0 ] || is_option "$1"; then usage_error "$_option needs a value"; fi
      # Commands that get it would take it for an option of theirs.
      case $_option:$1 in
        *-options:*) ;;
        *:-*) usage_error "$_option $1: begins with a dash, as options do; write a path as ./$1" ;;
      esac
      printf -v "$_variable" '%s' "$1"
      shift ;;
  esac
done
