# Sourced: which jobs run how. Edit this for another scheduler; a backend is called as
# BACKEND [--nj J] [--ngpu G] JOB=1:N LOG COMMAND... (utils/local.sh, utils/slurm.sh).
# shellcheck shell=bash disable=SC2034,SC2154 # variables of the script that sources this

_utils=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/utils

# Questions are asked from this machine and for one corpus after another: compute nodes seldom reach the internet, it is
# the endpoint that sets the pace, and every query keeps many requests under way by itself.
query_cmd=(bash "$_utils/local.sh" --nj 1)
# Parts of a corpus (--shards) are for endpoints that take more than one such run can send, as where every node has a
# server of its own: they run as all other jobs.

case $cmd in
  local)
    prepare_cmd=(bash "$_utils/local.sh" --nj "$nj")
    query_parts_cmd=(bash "$_utils/local.sh" --nj "$nj")
    train_cmd=(bash "$_utils/local.sh" --nj "$nj" --ngpu "$ngpu")
    transfer_cmd=("${train_cmd[@]}") ;;
  slurm)
    prepare_cmd=(bash "$_utils/slurm.sh" --nj "$nj" --options "$slurm_options")
    query_parts_cmd=(bash "$_utils/slurm.sh" --nj "$nj" --options "$slurm_options")
    train_cmd=(bash "$_utils/slurm.sh" --nj "$nj" --ngpu "$ngpu" --options "$slurm_options")
    transfer_cmd=("${train_cmd[@]}") ;;
  *) usage_error "--cmd $cmd: expected local or slurm" ;;
esac
