#!/usr/bin/env bash
# From unpacked corpora to the table of all directed transfers between them. A step is skipped only if its output is
# whole and its settings and inputs are unchanged, so the same command line goes on after an interruption.
set -euo pipefail

preset=
# shellcheck disable=SC2034 # read by name
iemocap='' msp_improv='' msp_podcast='' crema_d='' ravdess='' emodb='' nemo=''
podcast_target=
corpora=
names=
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
seeds="0 1 2"
expdir=exp
device=auto
cmd=local
nj=1
ngpu=
shards=1
slurm_options=
stage=1
stop_stage=7
dry_run=false

help_message="Usage: bash recipes/run_all_transfers.sh --preset paper|free --CORPUS DIR --CORPUS DIR ... --lalm-url URL [options]
       bash recipes/run_all_transfers.sh --corpora DIR --lalm-url URL [options]

 Corpora, two or more of them as unpacked:
  --iemocap DIR, --msp-improv DIR, --msp-podcast DIR, --crema-d DIR, --ravdess DIR, --emodb DIR, --nemo DIR
  --podcast-target P   partitions of MSP-Podcast to adapt to, where it is the target   [as --conf says]
 or prepared ones:
  --corpora DIR        holds a directory of data for each: manifest.csv and labels.csv, or metadata.csv
  --names LIST         those to use, in quotes                                         [all]

 Settings:
  --preset P           paper or free: the settings in recipes/conf/P
  --conf DIR           options of every step, STEP.yaml                                [recipes/conf/free]
  --seeds LIST         in quotes                                                       [$seeds]
  over those of --conf:
  --encoder E, --layers L, --normalize MODE    of train-source
  --speaker-encoder E  of sample-source
  --lalm-url URL, --lalm-model M, --n-samples N    of query-lalm; the key is read from OPENAI_API_KEY
  --lalm-options O     its further options, in quotes, such as '--rpm 500 --budget 20 --yes'
  --weighting W        of fuse

 Running:
  --expdir DIR         where all output goes                                           [$expdir]
  --stage N, --stop-stage M    first and last stage to run                             [$stage, $stop_stage]
  --cmd local|slurm    where jobs run; --slurm-options O: of sbatch, in quotes         [$cmd]
  --nj J               at most J jobs at the same time                                 [$nj]
  --ngpu G             GPUs to share out; slurm: 1 or more gives one to every job
  --shards S           query-lalm and sample-source work on S parts of a corpus, a job for each  [$shards]
  --device D           auto, cpu, cuda, ...                                            [$device]
  --dry-run            print the commands and what the LALM will cost; write nothing

  stage 1  prepare        a job for every corpus (none with --corpora)
  stage 2  train-source   a job for every corpus: the source models of all seeds
  stage 3  query-lalm     once a target corpus, for all transfers and seeds; here, one after another, without --shards
  stage 4  sample-source, fuse                         4 to 6: a job for every
  stage 5  train: LALM-SFUDA, MI-Fuse, cross-fit       transfer and seed
  stage 6  evaluate
  stage 7  the table: EXPDIR/results.md, results.json"

recipes=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$recipes/local/steps.sh"
. "$recipes/local/checks.sh"
. "$recipes/local/jobs.sh"
again="cd $(quoted "$PWD") && exec bash $(quoted "$recipes/run_all_transfers.sh" "$@")"
. "$recipes/utils/parse_options.sh"

root() { local option=${1//-/_}; echo "${!option}"; }

corpora=${corpora%/} expdir=${expdir%/} conf=${conf%/}
[ $# -eq 0 ] || usage_error "unexpected argument $1"
raw=
for name in $corpora_known; do if [ -n "$(root "$name")" ]; then raw+="$name "; fi; done
if [ -n "$corpora" ]; then
  [ -z "$raw" ] || usage_error "--corpora: is for prepared corpora, --${raw%% *} for one as unpacked; give either"
  data=$corpora
  if [ -z "$names" ]; then
    for file in "$corpora"/*/manifest.csv "$corpora"/*/metadata.csv; do
      name=$(basename "$(dirname "$file")")
      if [ -f "$file" ] && [[ $name != *-target && " $names " != *" $name "* ]]; then
        check_name "$name"
        names+="$name "
      fi
    done
  fi
else
  [ -z "$names" ] || usage_error "--names: goes with --corpora"
  data=$expdir/data names=$raw
fi
names=${names% }
case $names in *' '*) ;; *) usage_error "two corpora or more are needed, found: ${names:-none}; --corpora or --iemocap etc. is missing" ;; esac
distinct --names "$names"
# shellcheck disable=SC2086 # several words
check_places $names
check_options 1 7
[[ $nj =~ ^[1-9][0-9]*$ ]] || usage_error "--nj $nj: expected 1 or more"
[[ $shards =~ ^[1-9][0-9]*$ ]] || usage_error "--shards $shards: expected 1 or more"
[[ $ngpu =~ ^[0-9]*$ ]] || usage_error "--ngpu $ngpu: expected a number"
[[ $expdir != *JOB* ]] || usage_error "--expdir $expdir: JOB in it stands for the number of a job; choose another name"
. "$recipes/cmd.sh"
. "$recipes/path.sh"
# shellcheck disable=SC2086 # several words
check_key $names

# as_target CORPUS: its name, or that of the part to adapt to, if that is prepared apart.
as_target() {
  if [ -n "$corpora" ] && [ -d "$corpora/$1-target" ]; then echo "$1-target"
  elif [ -z "$corpora" ] && [ -f "$conf/prepare-$1-target.yaml" ]; then echo "$1-target"
  elif [ -z "$corpora" ] && [ "$1" = msp-podcast ] && [ -n "$podcast_target" ]; then echo "$1-target"
  else echo "$1"; fi
}

preparing() {  # CORPUS NAME: sets command
  command=(prepare_corpus "$1" "$(root "$1")" "$2")
  if [ "$2" = msp-podcast-target ] && [ -n "$podcast_target" ]; then command+=(--partitions "$podcast_target"); fi
}

write_again "$again"

if at_stage 1 && [ -z "$corpora" ]; then
  begin 1 "corpora"
  for name in $names; do
    for part in $(printf '%s\n' "$name" "$(as_target "$name")" | uniq); do
      preparing "$name" "$part"
      job "${command[@]}"
    done
  done
  run_jobs "${prepare_cmd[@]}"
fi

if at_stage 2; then
  begin 2 "source models"
  for name in $names; do job source_models "$name" "$data/$name" "$seeds"; done
  run_jobs "${train_cmd[@]}"
fi

if at_stage 3; then
  if [ "$shards" -gt 1 ]; then
    begin 3-parts "parts of the LALM answers"
    for name in $names; do
      if ! asked_in_parts "$name"; then continue; fi
      for shard in $(numbered "$shards"); do
        job part_of_answers "$name" "$data/$(as_target "$name")" "$shard"
      done
    done
    run_jobs "${query_parts_cmd[@]}"
  fi
  begin 3 "LALM answers"
  for name in $names; do
    part=$(as_target "$name")
    if asked_in_parts "$name"; then job joined "$expdir/lalm/$name.h5"
    else job lalm_answers "$name" "$data/$part"; fi
    if $dry_run && [ -n "$corpora" ]; then cost "$name" "$data/$part"; fi
    if $dry_run && [ -z "$corpora" ]; then preparing "$name" "$part"; cost "$name" "$data/$part" "${command[@]}"; fi
  done
  run_jobs "${query_cmd[@]}"
fi

if at_stage 4 && [ "$shards" -gt 1 ]; then
  begin 4-parts "parts of the source models' predictions"
  for seed in $seeds; do for source in $names; do for target in $names; do
    if [ "$source" = "$target" ]; then continue; fi
    for shard in $(numbered "$shards"); do
      job source_samples "$source" "$target" "$data/$(as_target "$target")" "$seed" "$shard"
    done
  done; done; done
  run_jobs "${transfer_cmd[@]}"
fi

if at_stage 4 || at_stage 5 || at_stage 6; then
  begin 4-6 "fused labels, students, scores"
  for seed in $seeds; do for source in $names; do for target in $names; do
    if [ "$source" != "$target" ]; then
      job transfer "$source" "$target" "$data/$(as_target "$target")" "$seed" "$stage" "$stop_stage"
    fi
  done; done; done
  run_jobs "${transfer_cmd[@]}"
fi

if at_stage 7; then
  log "stage 7: the table"
  collect=(--expdir "$expdir" --names "$names" --seeds "$seeds")
  if [ "$preset" = paper ]; then collect+=(--reference "$recipes/conf/paper-reference.yaml"); fi
  python=$(mifuse_python)
  collect=("$python" "$recipes/local/results.py" "${collect[@]}")
  if $dry_run; then quoted "${collect[@]}"; else "${collect[@]}"; fi
fi
if ! $dry_run; then log "done in $SECONDS s"; fi
