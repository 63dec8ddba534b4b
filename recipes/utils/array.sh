# Sourced by local.sh and slurm.sh: the part of their command line, and of what they say, that is the same.
# shellcheck shell=bash disable=SC2034,SC2154 # variables of the script that sources this

# read_array JOB=1:N LOG COMMAND...: sets jobs, log and command, and makes room for the logs.
read_array() {
  [[ ${1-} =~ ^JOB=1:([1-9][0-9]*)$ ]] || usage_error "expected JOB=1:N, found '${1-}'"
  jobs=${BASH_REMATCH[1]}
  [ $# -ge 3 ] || usage_error "a log and a command are expected after $1"
  log=$2
  shift 2
  command=("$@")
  if [ "$jobs" -gt 1 ] && [[ $log != *JOB* ]]; then usage_error "$log: would be the log of $jobs jobs; put JOB in it"; fi
  [[ $nj =~ ^[1-9][0-9]*$ ]] || usage_error "--nj $nj: expected 1 or more"
  [[ $ngpu =~ ^[0-9]*$ ]] || usage_error "--ngpu $ngpu: expected a number"
  local number
  for ((number = 1; number <= jobs; number++)); do
    mkdir -p "$(dirname "${log//JOB/$number}")"
    rm -f "${log//JOB/$number}"
  done
}

# report_failed STATUS NUMBER...: says which jobs failed, and ends with the status of the first of them.
report_failed() {
  local status=$1 first=${log//JOB/$2}
  shift
  echo "${0##*/}: $# of $jobs jobs failed: $*. Job $1 ended with exit code $status; the end of $first:" >&2
  if [ -f "$first" ]; then tail -n 8 "$first" | sed 's/^/  /' >&2; fi
  exit "$status"
}
