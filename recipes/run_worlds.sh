#!/usr/bin/env bash
# Methods in several worlds, which differ in their targets, source models and LALM, and one table of all: how much a
# method gains where things are as hoped, and where it does harm. The same command line goes on after an interruption.
set -euo pipefail

worlds=
corpora=
table=
names=
conf=
encoder=
layers=
# shellcheck disable=SC2034 # read by given
speaker_encoder=
normalize=target
protocol=transductive
lalm_url='' lalm_model='' lalm_url2='' lalm_model2=''
# shellcheck disable=SC2034 # read by query_arguments
lalm_options=''
# shellcheck disable=SC2034 # read by steps.sh
weighting=
n_answers=5
systems=main
seeds="0 1 2 3 4"
expdir=exp/worlds
device=auto
nj=
stage=1
stop_stage=4
dry_run=false

recipes=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$recipes/local/steps.sh"
. "$recipes/local/checks.sh"
. "$recipes/local/jobs.sh"
. "$recipes/local/worlds.sh"
help_message="Usage: bash recipes/run_worlds.sh --worlds DIR --corpora DIR --encoder E --lalm-url URL [options]

  --table FILE       the worlds: name, targets, sources, LALM            [recipes/conf/worlds.tsv]
  --worlds DIR, --corpora DIR   directories that WORLDS and CORPORA in the table stand for
  --names LIST       worlds to use, in quotes                            [all of the table]
  --encoder E, --layers L    of train-source                             [as --conf says]
  --speaker-encoder E    of compare                                      [as --conf says]
  --normalize N      of compare: source, target or speaker               [$normalize]
  --protocol P       of compare: transductive, inductive or few-gold     [$protocol]
  --lalm-url URL, --lalm-model M    of query-lalm                        [as --conf says]
  --lalm-url2 URL, --lalm-model2 M  of worlds with the second LALM       [model: that of the first]
  --lalm-options O   further options of query-lalm, in quotes, such as '--rpm 500 --budget 20 --yes'
  --n-answers N      answers a clip                                      [$n_answers]
  --systems LIST     of compare, separated by commas                     [$systems]
  --seeds LIST       in quotes                                           [$seeds]
  --conf DIR         options of every step, STEP.yaml                    [recipes/conf/free]
  --expdir DIR       where all output goes                               [$expdir]
  --nj J             jobs at a time                                      [one a core]
  --device D         auto, cpu, cuda, ...                                [$device]
  --stage N, --stop-stage M   first and last stage to run                [$stage, $stop_stage]
  --dry-run          print the commands instead of running them

  stage 1  query-lalm       every target of every world; never twice about the same audio
  stage 2  train-source     every source of every world and every seed
  stage 3  compare          every world
  stage 4  compare-worlds   EXPDIR/tables (EXPDIR/tables-PROTOCOL)"

. "$recipes/utils/parse_options.sh"

worlds=${worlds%/} corpora=${corpora%/} expdir=${expdir%/} conf=${conf%/}
conf=${conf:-$recipes/conf/free}
table=${table:-$recipes/conf/worlds.tsv}
[ $# -eq 0 ] || usage_error "unexpected argument $1"
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
read_worlds "$table" "$names"
# shellcheck disable=SC2034 # read by query_arguments
n_samples=$n_answers
# The statistics that source models are trained with are those of --conf.
compare_normalize=$normalize normalize=''
# shellcheck disable=SC2034 # read by cmd.sh
cmd=local ngpu=
. "$recipes/cmd.sh"
. "$recipes/path.sh"
# What compare would refuse after hours of answers and models.
if interpreter=$(mifuse_python 2> /dev/null); then
  refused=$("$interpreter" - "$protocol" "$systems" "$compare_normalize" <<'END'
import sys
from pathlib import Path

from mifuse_cli.errors import UsageError
from mifuse_cli.steps.compare import CompareConfig

protocol, systems, normalize = sys.argv[1:]
options = {"protocol": protocol, "systems": systems, "normalize": normalize}
try:
    CompareConfig(data=Path(), models=Path(), lalm=Path(), out=Path(), **options)
except UsageError as error:
    print(error)
END
)
  [ -z "$refused" ] || usage_error "$refused"
fi

if at_stage 1; then
  log "stage 1: LALM answers"
  first_url=$lalm_url first_model=$lalm_model asked=' '
  for w in "${chosen[@]}"; do
    if [[ $asked = *" ${world_answers[w]} "* ]]; then continue; fi
    asked+="${world_answers[w]} "
    lalm_url=$first_url lalm_model=$first_model
    if [ "${world_lalm[w]}" = 2 ]; then lalm_url=$lalm_url2 lalm_model=${lalm_model2:-$first_model}; fi
    for name in $(corpora_below "${world_targets[w]}"); do
      target=${world_targets[w]}/$name
      if [ -d "$target-target" ]; then target=$target-target; fi
      known_answers "$w" "$name"
      lalm_answers "${world_answers[w]}/$name" "$target"
    done
  done
fi

if at_stage 2; then
  begin 2 "source models"
  trained=' '
  for w in "${chosen[@]}"; do
    if [[ $trained = *" ${world_models[w]} "* ]]; then continue; fi
    trained+="${world_models[w]} "
    for name in $(corpora_below "${world_sources[w]}"); do
      job source_models "${world_models[w]}/$name" "${world_sources[w]}/$name" "$seeds"
    done
  done
  run_jobs "${train_cmd[@]}"
fi

of_protocol=
if [ "$protocol" != transductive ]; then of_protocol=-$protocol; fi
compared=()
for w in "${chosen[@]}"; do compared+=("$expdir/compare$of_protocol/${world_name[w]}"); done

if at_stage 3; then
  log "stage 3: comparisons"
  for w in "${chosen[@]}"; do
    out=$expdir/compare$of_protocol/${world_name[w]} arguments=()
    given --speaker-encoder "$speaker_encoder"
    step "$out/results.json" compare compare --data "${world_targets[w]}" \
      --models "$expdir/models/${world_models[w]}" --lalm "$expdir/lalm/${world_answers[w]}" \
      --sources "$(with_commas "${world_sources[w]}")" --targets "$(with_commas "${world_targets[w]}")" \
      --seeds "${seeds// /,}" --n-answers "$n_answers" --normalize "$compare_normalize" --systems "$systems" \
      --protocol "$protocol" \
      --jobs "$nj" --device "$device" --out "$out" "${arguments[@]+"${arguments[@]}"}"
  done
fi

if at_stage 4; then
  log "stage 4: one table"
  step "$expdir/tables$of_protocol/results.json" compare-worlds compare-worlds "${compared[@]}" --out "$expdir/tables$of_protocol"
  if ! $dry_run; then cat "$expdir/tables$of_protocol/table.md"; fi
fi
