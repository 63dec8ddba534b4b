# Sourced by run_all_transfers.sh: arrays of jobs, each of them a step of local/steps.sh, and what a dry run tells.
# shellcheck shell=bash disable=SC2154 # variables of the script that sources this

# begin N TITLE: a new array, that of stage N. Then job FUNCTION ARGUMENT..., and run_jobs BACKEND... at last.
begin() {
  array=stage$1
  count=0
  log "stage $1: $2"
  if ! $dry_run; then
    mkdir -p "$expdir/jobs"
    rm -f "$expdir/jobs/$array".*.sh
  fi
}

job() {
  if $dry_run; then "$@"; return; fi
  local name
  count=$((count + 1))
  {
    echo '#!/usr/bin/env bash'
    echo "# Job $count of $array. Run this file to do its work alone."
    echo 'set -euo pipefail'
    printf 'cd %q\n' "$PWD"
    for name in $settings; do printf '%s=%q\n' "$name" "${!name}"; done
    printf '. %q\n' "$recipes/path.sh" "$recipes/local/steps.sh"
    quoted "$@"
  } > "$expdir/jobs/$array.$count.sh"
}

run_jobs() {
  if $dry_run || [ "$count" -eq 0 ]; then return; fi
  attend "$@" "JOB=1:$count" "$expdir/logs/$array.JOB.log" bash "$expdir/jobs/$array.JOB.sh" || exit $?
}

# write_again COMMAND: EXPDIR/run.sh, unless it is what runs now (perhaps with further arguments).
write_again() {
  if $dry_run || [ -n "${RUN_BY_RUN_SH:-}" ]; then return; fi
  mkdir -p "$expdir"
  printf '#!/usr/bin/env bash\n# Repeats the run; arguments are added to its own.\nexport RUN_BY_RUN_SH=yes\n%s "$@"\n' "$1" \
    > "$expdir/run.sh"
}

# cost NAME DIR [PREPARE...]: what the LALM will take for a target, as remarks. PREPARE makes its data, as stage 1 will,
# in a directory that is removed again: what DIR holds may be of other settings. Without stage 1 DIR is what will be used.
cost() {
  local name=$1 dir=$2 out=$expdir/lalm/$1.h5 expdir scratch manifest found error arguments dry_run=false
  shift 2
  scratch=$(mktemp -d)
  expdir=$scratch
  if found=$(
    exec 2>&1
    if [ $# -gt 0 ] && { at_stage 1 || ! [ -e "$dir/manifest.csv" ]; }; then
      dir=$scratch/data/$(basename "$dir")
      ("$@") > "$scratch/log" 2>&1 || { cat "$scratch/log"; exit 1; }
    fi
    manifest=$(clips_of "$dir") || exit 1
    query_arguments "$manifest" "$out"
    if [ -f "$conf/query-lalm.yaml" ]; then arguments+=(--config "$conf/query-lalm.yaml"); fi
    mifuse query-lalm --dry-run "${arguments[@]}"
  ); then
    printf '%s\n' "# $name:" "$found" | sed '2,$s/^/#   /'
  else
    error=$(grep '^error: ' <<< "$found" | tail -n 1) || error=$found
    printf '%s\n' "# $name: the cost is not known: $error" | sed '2,$s/^/#   /'
  fi
  rm -rf "$scratch"
}
