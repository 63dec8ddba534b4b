# Sourced: finds mifuse, and settles what would otherwise differ from one machine to the next.
# shellcheck shell=bash

_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# An environment that is activated comes first, then that of this clone.
for _bin in "${VIRTUAL_ENV:+$VIRTUAL_ENV/bin}" "$_root/.venv/bin"; do
  if [ -n "$_bin" ] && [ -x "$_bin/mifuse" ]; then
    PATH=$_bin:$PATH
    break
  fi
done
if ! command -v mifuse > /dev/null; then
  echo "${0##*/}: mifuse is not installed: run make test, or pip install ." >&2
  exit 6
fi
export PATH LC_ALL=C

# Threads of one job, and processes that encode audio for it: its share of this machine. Slurm says how many processors
# a job of its has.
if [ "${cmd:-local}" = local ]; then
  _cores=${SLURM_CPUS_ON_NODE:-$(nproc 2> /dev/null || getconf _NPROCESSORS_ONLN)}
  _share=$((_cores / ${nj:-1}))
  _share=$((_share > 0 ? _share : 1))
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$_share} MIFUSE_WORKERS=${MIFUSE_WORKERS:-$_share}
fi

# The interpreter that mifuse runs in: it stands in the first line of the command.
mifuse_python() {
  local first one
  IFS= read -r first < "$(command -v mifuse)" || :
  for one in "${first#\#!}" "$(dirname "$(command -v mifuse)")/python3" python3; do
    if [[ $one = *python* ]] && "$one" -c 'import mifuse_cli' 2> /dev/null; then echo "$one"; return; fi
  done
  echo "${0##*/}: found no Python that can import mifuse_cli" >&2
  return 6
}
