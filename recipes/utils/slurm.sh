#!/usr/bin/env bash
# Runs an array of jobs through Slurm, and waits for them.
set -euo pipefail

nj=1
ngpu=
options=
help_message="Usage: slurm.sh [--nj J] [--ngpu G] [--options O] JOB=1:N LOG COMMAND...

  JOB in LOG and COMMAND stands for the number of the job. What jobs print goes to LOG, and to stderr at the end.
  The exit status is that of the failed job with the lowest number.

  --nj J        at most J jobs at the same time                         [$nj]
  --ngpu G      1 or more: every job gets one GPU, --gres=gpu:1
  --options O   further options of sbatch, in quotes, such as '-p gpu --time 8:00:00'"

utils=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$utils/parse_options.sh"
. "$utils/array.sh"
. "$utils/attend.sh"
read_array "$@"
command -v sbatch > /dev/null || { echo "slurm.sh: there is no sbatch on the PATH" >&2; exit 6; }

output=${log//%/%%}
output=${output//JOB/%a}
case $output in /*) ;; *) output=${PWD//%/%%}/$output ;; esac
# A name that no other array has: sbatch may not have told the number of the array yet when that is to be cancelled.
name=${log##*/}
name=${name%%.*}-$HOSTNAME-$$
request=(--wait --parsable --array="1-$jobs%$nj" --output="$output" --job-name="$name")
if [ "${ngpu:-0}" -gt 0 ]; then request+=(--gres=gpu:1); fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

submit() {
  # shellcheck disable=SC2086 # several words
  exec sbatch "${request[@]}" $options > "$scratch/id" << END
#!/usr/bin/env bash
exec bash $(printf '%q' "$utils/job.sh") "\$SLURM_ARRAY_TASK_ID" $(printf '%q ' "${command[@]}")
END
}

status=0
attend submit || status=$?
if [ -n "$caught" ]; then
  scancel --name="$name" --user="$(id -un)" || :
  exit "$caught"
fi

if [ "$status" -ne 0 ] && ! [ -s "$scratch/id" ]; then
  echo "slurm.sh: sbatch took no jobs (exit code $status)" >&2
  exit "$status"
fi

failed=()
for ((number = 1; number <= jobs; number++)); do
  file=${log//JOB/$number}
  if [ -f "$file" ]; then grep -v '^#' "$file" >&2 || :; fi
  if [ "$status" -ne 0 ]; then
    # A job that was ended from outside says nothing of its end; what sbatch says then stands for it.
    ended=$([ -f "$file" ] && sed -n 's/^# ended .* with exit code \([0-9]*\)$/\1/p' "$file" | tail -n 1) || ended=
    if [ "${ended:-$status}" -ne 0 ]; then
      failed+=("$number")
      first=${first:-${ended:-$status}}
    fi
  fi
done
if [ "$status" -ne 0 ]; then report_failed "${first:-$status}" "${failed[@]-1}"; fi
