# Sourced by the recipes: what can be seen to be wrong before anything is done.
# shellcheck shell=bash disable=SC2154 # variables of the script that sources this

at_stage() { [ "$stage" -le "$1" ] && [ "$stop_stage" -ge "$1" ]; }

# check_options FIRST LAST: the options that both recipes have; the stages are numbered from FIRST to LAST. Settles conf.
check_options() {
  case $preset in ''|paper|free) ;; *) usage_error "--preset $preset: expected paper or free" ;; esac
  conf=${conf:-$recipes/conf/${preset:-free}}
  check_conf
  distinct --seeds "$seeds"
  [[ $seeds =~ ^[0-9]+(' '+[0-9]+)*$ ]] || usage_error "--seeds $seeds: expected numbers"
  [[ $stage =~ ^[$1-$2]$ && $stop_stage =~ ^[$1-$2]$ ]] || usage_error "--stage and --stop-stage are numbers from $1 to $2"
  [ "$stage" -le "$stop_stage" ] || usage_error "--stage $stage: is above --stop-stage $stop_stage"
  required 2 train-source encoder "$encoder" --encoder
  required 3 query-lalm base-url "$lalm_url" --lalm-url
  required 3 query-lalm model "$lalm_model" --lalm-model
}

required() {  # STAGE STEP OPTION VALUE FLAG
  [ -n "$4" ] || ! at_stage "$1" || configured "$2" "$3" || usage_error "$5 is missing"
}

distinct() {  # OPTION LIST
  local twice
  # shellcheck disable=SC2086 # several words
  twice=$(printf '%s\n' $2 | sort | uniq -d)
  [ -z "$twice" ] || usage_error "$1 $2: names $twice more than once"
}

check_name() {  # NAME: of a corpus
  [[ $1 != *[[:space:]]* ]] || usage_error "corpus '$1': a name with white space cannot stand in a list; rename the directory"
}

# check_places NAME...: every transfer between these corpora needs a directory of its own.
check_places() {
  local source target taken=' '
  for source in "$@"; do for target in "$@"; do
    if [ "$source" = "$target" ]; then continue; fi
    if [[ $taken =~ " $source-$target="([^ ]+) ]]; then
      usage_error "the transfers ${BASH_REMATCH[1]} and $source>$target would share the directory $source-$target; rename a corpus"
    fi
    taken+="$source-$target=$source>$target "
  done; done
}

check_conf() {
  [ -d "$conf" ] || usage_error "--conf $conf: is no directory"
  local file corpus allowed=" train-source.yaml query-lalm.yaml sample-source.yaml fuse.yaml train.yaml evaluate.yaml compare.yaml compare-worlds.yaml "
  for corpus in $corpora_known; do allowed+="prepare-$corpus.yaml prepare-$corpus-target.yaml "; done
  for file in "$conf"/*; do
    if [ -e "$file" ] && [[ $allowed != *" ${file##*/} "* ]]; then
      usage_error "$file: no step reads a file of this name. Expected are:$allowed"
    fi
  done
}

# check_key TARGET...: a service elsewhere wants a key, unless all of these targets have their answers.
check_key() {
  local name
  if $dry_run || ! at_stage 3 || on_this_machine "$(endpoint)" || [ -n "${OPENAI_API_KEY:-}" ]; then return; fi
  if configured query-lalm api-key-file || [[ " $lalm_options" =~ ' --api-key-file'[\ =] ]]; then return; fi
  for name in "$@"; do
    if [ -e "$expdir/lalm/$name.h5" ]; then continue; fi
    echo "${0##*/}: there is no API key for $(endpoint): set OPENAI_API_KEY, or give --lalm-options '--api-key-file FILE'" >&2
    exit 3
  done
}
