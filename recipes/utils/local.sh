#!/usr/bin/env bash
# Runs an array of jobs on this machine.
set -euo pipefail

nj=1
ngpu=
help_message="Usage: local.sh [--nj J] [--ngpu G] JOB=1:N LOG COMMAND...

  JOB in LOG and COMMAND stands for the number of the job. What jobs print goes to LOG and, as it comes, to stderr.
  After a failure no further job is started. The exit status is that of the failed job with the lowest number.

  --nj J     at most J jobs at the same time                            [$nj]
  --ngpu G   share out G GPUs: every running job sees one; 0: none; default: all jobs see what there is"

utils=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$utils/parse_options.sh"
. "$utils/array.sh"
. "$utils/attend.sh"
read_array "$@"

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# Of GPUs that the user has chosen from, only these are shared out.
IFS=, read -r -a gpus <<< "${CUDA_VISIBLE_DEVICES:-}" || :

see_gpu() {  # WORKER
  if [ -z "$ngpu" ]; then return; fi
  local index
  if [ "$ngpu" -gt 0 ]; then index=$((($1 - 1) % ngpu)); fi
  export CUDA_VISIBLE_DEVICES=${index:+${gpus[index]:-$index}}
}

show() {  # LOG: lines of stdin go there, and to stderr unless they are remarks about the job
  local line
  while IFS= read -r line || [ -n "$line" ]; do
    printf '%s\n' "$line" >> "$1"
    case $line in '#'*) ;; *) printf '%s\n' "$line" >&2 ;; esac
  done
}

# Workers take the next job that nobody has taken: to make a directory succeeds only once.
worker() {  # NUMBER
  local number status reader
  see_gpu "$1"
  for ((number = 1; number <= jobs; number++)); do
    if [ -e "$scratch/failed" ]; then break; fi
    mkdir "$scratch/$number" 2> /dev/null || continue
    mkfifo "$scratch/$number/out"
    show "${log//JOB/$number}" < "$scratch/$number/out" &
    reader=$!
    status=0
    attend bash "$utils/job.sh" "$number" "${command[@]}" > "$scratch/$number/out" 2>&1 || status=$?
    wait "$reader" || :
    echo "$status" > "$scratch/$number/status"
    if [ "$status" -ne 0 ]; then : > "$scratch/failed"; fi
  done
}

workers=()
stopped=
end_workers() { kill -TERM ${workers[@]+"${workers[@]}"} 2> /dev/null || :; }
trap 'stopped=130; end_workers' INT
trap 'stopped=143; end_workers' TERM HUP
for ((number = 1; number <= nj && number <= jobs; number++)); do
  if [ -n "$stopped" ]; then break; fi
  worker "$number" &
  workers+=($!)
done
for pid in ${workers[@]+"${workers[@]}"}; do
  while kill -0 "$pid" 2> /dev/null; do wait "$pid" || :; done
done
if [ -n "$stopped" ]; then exit "$stopped"; fi

# A job that says nothing of its end has failed, but not one that was left out because another had failed.
failed=()
for ((number = 1; number <= jobs; number++)); do
  if [ -e "$scratch/failed" ] && ! [ -e "$scratch/$number" ]; then continue; fi
  status=$(cat "$scratch/$number/status" 2> /dev/null) || :
  if [ "${status:-1}" -ne 0 ]; then
    failed+=("$number")
    first=${first:-${status:-1}}
  fi
done
if [ ${#failed[@]} -gt 0 ]; then report_failed "$first" "${failed[@]}"; fi
