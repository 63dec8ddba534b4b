#!/usr/bin/env bash
# All directed transfers between the corpora of a directory: source model, LALM answers, fusion, two students,
# scores, and a table. A step is skipped only if its output is whole and its settings and inputs are unchanged.
set -euo pipefail

corpora=
names="emodb ravdess nemo"
encoder=
layers=middle
normalize=source
lalm_url=
lalm_model=standin-lalm
n_samples=5
lalm_options=
weighting=mi
seeds="0 1 2"
expdir=exp
device=auto
stage=1
stop_stage=5
dry_run=false

help_message="Usage: bash recipes/run_all_transfers.sh --corpora DIR --encoder E --lalm-url URL [options]

  --corpora DIR      directory with one folder a corpus, each with metadata.csv (file, speaker, emotion)
  --names LIST       the folders to use, in quotes         [$names]
  --encoder E        local directory or hub name
  --layers L         hidden layers that the head sees      [$layers]
  --normalize MODE   source, target or speaker             [$normalize]
  --lalm-url URL     OpenAI-compatible endpoint, up to /v1; the key is read from OPENAI_API_KEY
  --lalm-model M     its name at the endpoint              [$lalm_model]
  --n-samples N      questions about every clip            [$n_samples]
  --lalm-options O   further options of mifuse query-lalm, in quotes, such as '--rpm 500 --budget 20 --yes'
  --weighting W      of mifuse fuse                        [$weighting]
  --seeds LIST       in quotes                             [$seeds]
  --expdir DIR       where all output goes                 [$expdir]
  --device D         auto, cpu, cuda, ...                  [$device]
  --stage N, --stop-stage N   first and last stage to run  [$stage, $stop_stage]
  --dry-run          print the commands instead of running them

  stage 1  train-source    a source model for every corpus and seed
  stage 2  query-lalm      once a corpus, shared by all transfers and seeds
  stage 3  sample-source, fuse
  stage 4  train           LALM-SFUDA and MI-Fuse students
  stage 5  evaluate        every row, then EXPDIR/results.md and results.json"

usage_error() { echo "run_all_transfers.sh: $1" >&2; echo "$help_message" >&2; exit 2; }

while [ $# -gt 0 ]; do
  case $1 in
    -h|--help) echo "$help_message"; exit 0 ;;
    --dry-run) dry_run=true; shift ;;
    --corpora|--names|--encoder|--layers|--normalize|--lalm-url|--lalm-model|--n-samples|--lalm-options|--weighting|\
    --seeds|--expdir|--device|--stage|--stop-stage)
      [ $# -ge 2 ] || usage_error "$1 needs a value"
      name=${1#--}; printf -v "${name//-/_}" '%s' "$2"; shift 2 ;;
    *) usage_error "unknown option $1" ;;
  esac
done
[ -n "$corpora" ] || usage_error "--corpora is missing"
[ -n "$encoder" ] || usage_error "--encoder is missing"
[ -n "$lalm_url" ] || usage_error "--lalm-url is missing"
case $stage$stop_stage in *[!0-9]*|'') usage_error "--stage and --stop-stage are numbers" ;; esac

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
[ -x "$here/../.venv/bin/mifuse" ] && PATH="$here/../.venv/bin:$PATH"
$dry_run || command -v mifuse > /dev/null || { echo "mifuse is not installed: run make test, or pip install ." >&2; exit 6; }
# A server on this machine needs no key, but the client wants some word.
case $lalm_url in http://127.0.0.1[:/]*|http://localhost[:/]*) export OPENAI_API_KEY=${OPENAI_API_KEY:-local} ;; esac

log() { echo "$(date +%H:%M:%S) $*" >&2; }

manifest() {
  local file
  for file in manifest.csv metadata.csv; do
    if [ -f "$corpora/$1/$file" ]; then echo "$corpora/$1/$file"; return; fi
  done
  $dry_run || { echo "$corpora/$1: has no manifest.csv or metadata.csv" >&2; exit 3; }
  echo "$corpora/$1/metadata.csv"
}

# run OUT COMMAND...: one step with its log in EXPDIR/logs; says what failed and stops there.
run() {
  local out=$1; shift
  if $dry_run; then echo "mifuse $* --out $out"; return; fi
  local file=${out#"$expdir"/}; file=$expdir/logs/${file//\//-}.log
  mkdir -p "$expdir/logs" "$(dirname "$out")"
  local started=$SECONDS status=0
  { echo "# mifuse $* --out $out"; echo "# started $(date -u +%FT%TZ)"; } > "$file"
  mifuse "$@" --update --out "$out" >> "$file" 2>&1 || status=$?
  echo "# ended $(date -u +%FT%TZ) after $((SECONDS - started)) s with exit code $status" >> "$file"
  if [ "$status" -ne 0 ]; then
    log "failed: mifuse $* --out $out (exit code $status); the end of $file:"
    tail -n 5 "$file" >&2
    exit "$status"
  fi
  if grep -q 'is up to date$' "$file"; then log "unchanged $out"; else log "made $out"; fi
}

at_stage() { [ "$stage" -le "$1" ] && [ "$stop_stage" -ge "$1" ]; }

for_each_transfer() {  # calls $1 SOURCE TARGET SEED
  local source target seed
  for seed in $seeds; do for source in $names; do for target in $names; do
    if [ "$source" != "$target" ]; then "$1" "$source" "$target" "$seed"; fi
  done; done; done
}

if at_stage 1; then
  log "stage 1: source models"
  for seed in $seeds; do for name in $names; do
    run "$expdir/models/$name/seed$seed" train-source --manifest "$(manifest "$name")" --encoder "$encoder" \
      --layers "$layers" --normalize "$normalize" --seed "$seed" --device "$device"
  done; done
fi

if at_stage 2; then
  log "stage 2: LALM answers"
  for name in $names; do
    # shellcheck disable=SC2086 # several words
    run "$expdir/lalm/$name.h5" query-lalm --manifest "$(manifest "$name")" --base-url "$lalm_url" \
      --model "$lalm_model" --n-samples "$n_samples" $lalm_options
  done
fi

fuse_transfer() {
  local dir=$expdir/$1-$2/seed$3
  run "$dir/source.h5" sample-source --model "$expdir/models/$1/seed$3" --manifest "$(manifest "$2")" \
    --seed "$3" --device "$device"
  run "$dir/fused.h5" fuse --lalm "$expdir/lalm/$2.h5" --source "$dir/source.h5" --weighting "$weighting"
}
if at_stage 3; then
  log "stage 3: dropout samples of the source models, fusion"
  for_each_transfer fuse_transfer
fi

train_transfer() {
  local dir=$expdir/$1-$2/seed$3 method
  for method in lalm-sfuda mifuse; do
    run "$dir/$method" train --method "$method" --fused "$dir/fused.h5" --model "$expdir/models/$1/seed$3" \
      --manifest "$(manifest "$2")" --seed "$3" --device "$device"
  done
}
if at_stage 4; then
  log "stage 4: students"
  for_each_transfer train_transfer
fi

evaluate_transfer() {
  local dir=$expdir/$1-$2/seed$3 labels method
  labels=$(manifest "$2")
  run "$dir/eval-source-only.h5" evaluate --model "$expdir/models/$1/seed$3" --manifest "$labels" --device "$device"
  run "$dir/eval-lalm.h5" evaluate --predictions "$expdir/lalm/$2.h5" --manifest "$labels"
  run "$dir/eval-fused.h5" evaluate --predictions "$dir/fused.h5" --manifest "$labels"
  for method in lalm-sfuda mifuse; do
    run "$dir/eval-$method.h5" evaluate --model "$dir/$method" --manifest "$labels" --device "$device"
  done
}
if at_stage 5; then
  log "stage 5: scores"
  for_each_transfer evaluate_transfer
  collect=(python3 "$here/local/results.py" --expdir "$expdir" --names "$names" --seeds "$seeds")
  if $dry_run; then echo "${collect[*]@Q}"; else "${collect[@]}"; fi
fi
