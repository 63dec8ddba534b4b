#!/usr/bin/env bash
# job.sh NUMBER COMMAND...: one job of an array. JOB in the command stands for its number; what it prints begins with
# the command, the host and the time, and ends with the exit status and the time.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/attend.sh"

number=$1
shift
command=("${@//JOB/$number}")
printf -v line '%q ' "${command[@]}"
echo "# ${line% }"
echo "# started $(date -u +%FT%TZ) on $(hostname)"
status=0
attend "${command[@]}" || status=$?
echo "# ended $(date -u +%FT%TZ) after $SECONDS s with exit code $status"
exit "$status"
