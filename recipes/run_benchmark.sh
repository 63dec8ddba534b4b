#!/usr/bin/env bash
# Every method on every transfer between prepared corpora, in three ways to standardise the input, with ablations and
# on unseen speakers: the tables behind the README. The same command line goes on after an interruption.
set -euo pipefail

corpora=
names=
conf=
encoder=
speaker_encoder=
layers=
# shellcheck disable=SC2034 # read by source_models
normalize=
# shellcheck disable=SC2034 # read by query_arguments
lalm_url='' lalm_model='' lalm_options=''
# shellcheck disable=SC2034 # read by steps.sh
weighting=
n_samples=20
n_answers=5
folds=3
seeds="0 1 2 3 4"
expdir=exp/benchmark
device=auto
nj=
stage=1
stop_stage=4
dry_run=false

recipes=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$recipes/local/steps.sh"
. "$recipes/local/checks.sh"
. "$recipes/local/jobs.sh"
help_message="Usage: bash recipes/run_benchmark.sh --corpora DIR --encoder E --lalm-url URL [options]

  --corpora DIR      holds a directory of data for each: manifest.csv and labels.csv, or metadata.csv
  --names LIST       those to use, in quotes                             [all]
  --encoder E, --layers L    of train-source                             [as --conf says]
  --speaker-encoder E    of compare                                      [as --conf says]
  --lalm-url URL, --lalm-model M    of query-lalm                        [as --conf says]
  --lalm-options O   its further options, in quotes, such as '--rpm 500 --budget 20 --yes'
  --n-samples N      answers a clip to ask for; ablations use up to 20   [$n_samples]
  --n-answers N      those that the comparison is about                  [$n_answers]
  --folds F          of speakers, of the inductive comparison            [$folds]
  --seeds LIST       in quotes                                           [$seeds]
  --conf DIR         options of every step, STEP.yaml                    [recipes/conf/free]
  --expdir DIR       where all output goes                               [$expdir]
  --nj J             jobs at a time                                      [one a core]
  --device D         auto, cpu, cuda, ...                                [$device]
  --stage N, --stop-stage M   first and last stage to run                [$stage, $stop_stage]
  --dry-run          print the commands instead of running them

  stage 1  query-lalm     every corpus
  stage 2  train-source   every corpus and seed, standardised by source statistics and by speaker
  stage 3  compare        by source, target and speaker statistics; ablations; unseen speakers
  stage 4  the summary: EXPDIR/benchmark.md"

. "$recipes/utils/parse_options.sh"

corpora=${corpora%/} expdir=${expdir%/} conf=${conf%/}
conf=${conf:-$recipes/conf/free}
[ $# -eq 0 ] || usage_error "unexpected argument $1"
[ -n "$corpora" ] || usage_error "--corpora is missing"
check_conf
distinct --seeds "$seeds"
[[ $seeds =~ ^[0-9]+(' '+[0-9]+)*$ ]] || usage_error "--seeds $seeds: expected numbers"
[[ $stage =~ ^[1-4]$ && $stop_stage =~ ^[1-4]$ ]] || usage_error "--stage and --stop-stage are numbers from 1 to 4"
[ "$stage" -le "$stop_stage" ] || usage_error "--stage $stage: is above --stop-stage $stop_stage"
nj=${nj:-$(nproc 2> /dev/null || getconf _NPROCESSORS_ONLN)}
[[ $nj =~ ^[1-9][0-9]*$ ]] || usage_error "--nj $nj: expected 1 or more"
required 2 train-source encoder "$encoder" --encoder
required 1 query-lalm base-url "$lalm_url" --lalm-url
required 1 query-lalm model "$lalm_model" --lalm-model
if [ -z "$names" ]; then
  for file in "$corpora"/*/manifest.csv "$corpora"/*/metadata.csv; do
    name=$(basename "$(dirname "$file")")
    if [ -f "$file" ] && [[ $name != *-target && " $names " != *" $name "* ]]; then names+="$name "; fi
  done
fi
names=${names% }
case $names in *' '*) ;; *) usage_error "two corpora or more are needed, found: ${names:-none}" ;; esac
distinct --names "$names"
if ! $dry_run; then
  # Speakers are needed by the third and the fourth comparison: better to know before anything is paid for.
  for name in $names; do _first "$corpora/$name" speaker "$corpora/$name"/{manifest,metadata}.csv > /dev/null || exit $?; done
fi
# shellcheck disable=SC2034 # read by cmd.sh
cmd=local ngpu=
. "$recipes/cmd.sh"
. "$recipes/path.sh"

if at_stage 1; then
  log "stage 1: LALM answers"
  for name in $names; do
    target=$corpora/$name
    if [ -d "$target-target" ]; then target=$target-target; fi
    lalm_answers "$name" "$target"
  done
fi

if at_stage 2; then
  begin 2 "source models"
  for mode in source speaker; do
    for name in $names; do job source_models "$name" "$corpora/$name" "$seeds" "$mode"; done
  done
  run_jobs "${train_cmd[@]}"
fi

# compared NAME MODELS OPTION...
compared() {
  local out=$expdir/compare/$1 arguments=("${@:3}")
  given --speaker-encoder "$speaker_encoder"
  step "$out/results.json" compare compare --data "$corpora" --names "${names// /,}" --models "$expdir/models-$2" \
    --lalm "$expdir/lalm" --seeds "${seeds// /,}" --n-answers "$n_answers" --jobs "$nj" --device "$device" \
    --out "$out" "${arguments[@]}"
}

if at_stage 3; then
  log "stage 3: comparisons"
  compared source source --normalize source --systems main,oracle,weightings
  compared target source --normalize target --systems main,oracle,ablations
  compared speaker speaker --normalize speaker --systems main,oracle
  compared target-inductive source --normalize target --systems main --protocol inductive --folds "$folds"
fi

if at_stage 4 && ! $dry_run; then
  log "stage 4: summary"
  python=$(mifuse_python)
  "$python" "$recipes/local/benchmark.py" --expdir "$expdir" source target speaker target-inductive
fi
