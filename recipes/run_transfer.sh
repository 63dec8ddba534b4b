#!/usr/bin/env bash
# One transfer: source model, LALM answers, fusion, two students, scores. With the same data and options everything has
# the place and the settings that run_all_transfers.sh gives it, so either goes on with what the other has made.
set -euo pipefail

source=
target=
source_name=
target_name=
seeds=0
preset=
conf=
encoder=
speaker_encoder=
layers=
normalize=
weighting=
lalm_url=
lalm_model=
n_samples=
lalm_options=
expdir=exp
device=auto
stage=2
stop_stage=6
dry_run=false

recipes=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
help_message="Usage: bash recipes/run_transfer.sh --source DIR --target DIR --lalm-url URL [options]

  --source DIR, --target DIR   data of mifuse prepare (manifest.csv, labels.csv), or a metadata.csv with labels
  --source-name N, --target-name N   their names below EXPDIR  [those of the directories, the target's without -target]
  --seeds LIST       in quotes                                 [$seeds]
  --expdir DIR       where all output goes                     [$expdir]
  --preset P         paper or free: the settings in recipes/conf/P
  --conf DIR         options of every step, STEP.yaml          [recipes/conf/free]
  --stage N, --stop-stage M   first and last stage to run      [$stage, $stop_stage]
  --dry-run          print the commands instead of running them

 over those of --conf:
  --encoder E, --layers L, --normalize MODE    of train-source
  --speaker-encoder E    of sample-source
  --lalm-url URL, --lalm-model M, --n-samples N, --lalm-options O    of query-lalm; O: further ones, in quotes
  --weighting W      of fuse
  --device D         auto, cpu, cuda, ...                      [$device]

  stage 2  train-source   the source model of every seed
  stage 3  query-lalm     the target's clips, once for all sources and seeds
  stage 4  sample-source, fuse
  stage 5  train          students: LALM-SFUDA, MI-Fuse as in the paper, and of cross-fit labels
  stage 6  evaluate       source-only, LALM, fused labels, all students"

. "$recipes/utils/parse_options.sh"
. "$recipes/local/steps.sh"
. "$recipes/local/checks.sh"
source=${source%/} target=${target%/} expdir=${expdir%/} conf=${conf%/}
[ $# -eq 0 ] || usage_error "unexpected argument $1"
[ -n "$source" ] || usage_error "--source is missing"
[ -n "$target" ] || usage_error "--target is missing"
check_options 2 6
source_name=${source_name:-$(basename "$source")}
if [ -z "$target_name" ]; then target_name=$(basename "${target%-target}"); fi
check_name "$source_name"
check_name "$target_name"
. "$recipes/path.sh"
check_key "$target_name"

if at_stage 2; then source_models "$source_name" "$source" "$seeds"; fi
if at_stage 3; then lalm_answers "$target_name" "$target"; fi
for seed in $seeds; do
  transfer "$source_name" "$target_name" "$target" "$seed" "$stage" "$stop_stage"
done
if at_stage 6 && ! $dry_run; then
  for seed in $seeds; do for row in source-only lalm fused lalm-sfuda mifuse cross-fit; do
    file=$expdir/logs/$source_name-$target_name-seed$seed-eval-$row.h5.log
    echo "seed $seed, $row: $(sed -n 's/^UA  *//p' "$file")"
  done; done
fi
