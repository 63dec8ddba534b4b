# Sourced: the steps of the recipes. They read the settings below, which options set, and write below $expdir:
# data/CORPUS, models/SOURCE/seedN, lalm/TARGET.h5, SOURCE-TARGET/seedN/..., logs/...
# shellcheck shell=bash disable=SC2154 # the settings are variables of the script that sources this

# What a job has to be told to run a step by itself.
# shellcheck disable=SC2034
settings="conf expdir encoder speaker_encoder layers normalize weighting lalm_url lalm_model n_samples lalm_options device
  shards dry_run"
corpora_known="iemocap msp-improv msp-podcast crema-d ravdess emodb nemo"

shards=${shards:-1}

. "$(dirname "${BASH_SOURCE[0]}")/../utils/attend.sh"

log() { echo "$(date +%H:%M:%S) $*" >&2; }

quoted() {
  local line
  printf -v line '%q ' "$@"
  echo "${line% }"
}

# step OUT CONF COMMAND...: makes OUT by one command of mifuse, with CONF.yaml of $conf if there is one, unless OUT is
# current. Its log is in $expdir/logs.
step() {
  local out=$1 file=${1#"$expdir"/} config=$conf/$2.yaml started=$SECONDS status=0
  file=$expdir/logs/${file//\//-}.log
  shift 2
  local command=(mifuse "$@" --update)
  if [ -f "$config" ]; then command+=(--config "$config"); fi
  if $dry_run; then quoted "${command[@]}"; return; fi
  mkdir -p "$expdir/logs" "$(dirname "$out")"
  { echo "# $(quoted "${command[@]}")"; echo "# started $(date -u +%FT%TZ)"; } > "$file"
  attend "${command[@]}" >> "$file" 2>&1 || status=$?
  echo "# ended $(date -u +%FT%TZ) after $((SECONDS - started)) s with exit code $status" >> "$file"
  if [ "$status" -ne 0 ]; then
    log "failed: $(quoted "${command[@]}") (exit code $status); the end of $file:"
    tail -n 5 "$file" >&2
    exit "$status"
  fi
  if grep -q 'is up to date$' "$file"; then log "unchanged $out"; else log "made $out"; fi
  sed -n -e '/is up to date$/d' -e 's/^note: /  note: /p' "$file" >&2
}

# arguments=(...), then: given FLAG VALUE adds both unless VALUE is empty.
given() { if [ -n "$2" ]; then arguments+=("$1" "$2"); fi; }

# The manifests of a directory of data: manifest.csv and labels.csv, as mifuse prepare writes them, or one file that
# holds both.
clips_of() { _first "$1" file "$1/manifest.csv" "$1/metadata.csv"; }
labels_of() { _first "$1" emotion "$1/labels.csv" "$1/metadata.csv" "$1/manifest.csv"; }

_first() {  # DIR COLUMN FILE...: the first file that has the column
  local dir=$1 column=$2 file header
  shift 2
  for file in "$@"; do
    if ! [ -f "$file" ]; then continue; fi
    IFS= read -r header < "$file" || :
    header=${header//[$'\r\xef\xbb\xbf"']/}
    case ",$header," in *",$column,"*) echo "$file"; return ;; esac
  done
  if $dry_run; then echo "$1"; return; fi
  echo "$dir: found no manifest with a column '$column' (looked for $*)" >&2
  return 3
}

# configured STEP OPTION: whether STEP.yaml of $conf sets it.
configured() { [ -f "$conf/$1.yaml" ] && grep -Eq "^${2//-/[-_]}:" "$conf/$1.yaml"; }

# The LALM's address, and whether that is on this machine.
endpoint() {
  if [ -n "$lalm_url" ] || ! configured query-lalm base-url; then echo "$lalm_url"; return; fi
  sed -n "s/^base[-_]url:[[:space:]]*[\"']\{0,1\}\([^\"' ]*\).*/\1/p" "$conf/query-lalm.yaml"
}
on_this_machine() { [[ $1 =~ ^https?://(([a-z0-9-]+\.)*localhost|127(\.[0-9]+){3}|'[::1]')([:/]|$) ]]; }

# prepare_corpus CORPUS ROOT NAME [OPTION...]: NAME is CORPUS, or CORPUS-target for the part to adapt to.
prepare_corpus() {
  local out=$expdir/data/$3
  step "$out" "prepare-$3" prepare "$1" "$2" "$out" "${@:4}"
}

# source_models SOURCE DIR SEEDS [MODE]: MODE standardises the input in place of $normalize; its models lie apart.
source_models() {
  local seed manifest arguments
  manifest=$(labels_of "$2")
  for seed in $3; do
    local out=$expdir/models${4:+-$4}/$1/seed$seed
    arguments=(--manifest "$manifest" --seed "$seed" --device "$device" --out "$out")
    given --encoder "$encoder"
    given --layers "$layers"
    given --normalize "${4:-$normalize}"
    step "$out" train-source train-source "${arguments[@]}"
  done
}

# query_arguments MANIFEST OUT: sets arguments for query-lalm.
query_arguments() {
  arguments=(--manifest "$1" --out "$2")
  given --base-url "$lalm_url"
  given --model "$lalm_model"
  given --n-samples "$n_samples"
  # shellcheck disable=SC2206 # several words
  arguments+=($lalm_options)
  # A server on this machine needs no key, but the client wants some word.
  if on_this_machine "$(endpoint)"; then export OPENAI_API_KEY=${OPENAI_API_KEY:-local}; fi
}

# lalm_answers TARGET DIR
lalm_answers() {
  local out=$expdir/lalm/$1.h5 manifest arguments
  manifest=$(clips_of "$2")
  query_arguments "$manifest" "$out"
  step "$out" query-lalm query-lalm "${arguments[@]}"
}

# numbered N: 1/N 2/N ... N/N. place_of_part OUT I/N: where that part of OUT is.
numbered() { local number; for ((number = 1; number <= $1; number++)); do echo "$number/$1"; done; }
place_of_part() { echo "$(dirname "$1")/parts/$(basename "$1" .h5).${2/\//-of-}.h5"; }

# joined OUT: of its parts.
joined() {
  local part parts=()
  for part in $(numbered "$shards"); do parts+=("$(place_of_part "$1" "$part")"); done
  step "$1" merge merge "${parts[@]}" --device "$device" --out "$1"
}

# asked_in_parts TARGET: whether its answers are got in parts; those that were got at once stay as they are.
asked_in_parts() {
  local out=$expdir/lalm/$1.h5
  [ "$shards" -gt 1 ] && { [ -e "$(place_of_part "$out" "1/$shards")" ] || ! [ -e "$out.journal.sqlite" ]; }
}

# part_of_answers TARGET DIR I/N
part_of_answers() {
  local out manifest arguments
  out=$(place_of_part "$expdir/lalm/$1.h5" "$3")
  manifest=$(clips_of "$2")
  query_arguments "$manifest" "$out"
  step "$out" query-lalm query-lalm "${arguments[@]}" --shard "$3"
}

# source_samples SOURCE TARGET DIR SEED [I/N]: the source model's distributions, or a part of them.
source_samples() {
  local out=$expdir/$1-$2/seed$4/source.h5 manifest arguments
  manifest=$(clips_of "$3")
  arguments=(--model "$expdir/models/$1/seed$4" --manifest "$manifest" --seed "$4" --device "$device")
  given --speaker-encoder "$speaker_encoder"
  given --shard "${5:-}"
  if [ -n "${5:-}" ]; then out=$(place_of_part "$out" "$5"); fi
  step "$out" sample-source sample-source "${arguments[@]}" --out "$out"
}

# fused_labels SOURCE TARGET DIR SEED: weighed as in the paper, and cross-fitted; also the source model's distributions
# that go into them.
fused_labels() {
  local out=$expdir/$1-$2/seed$4 arguments
  if [ "$shards" -gt 1 ]; then joined "$out/source.h5"; else source_samples "$@"; fi
  arguments=(--lalm "$expdir/lalm/$2.h5" --source "$out/source.h5" --out "$out/fused.h5")
  # The paper's, unless told otherwise: without a weighting, fuse takes its own default.
  if ! grep -qs '^weighting:' "$conf/fuse.yaml"; then weighting=${weighting:-mi}; fi
  given --weighting "$weighting"
  step "$out/fused.h5" fuse fuse "${arguments[@]}"
  step "$out/cross-fit.h5" fuse-cross-fit fuse --lalm "$expdir/lalm/$2.h5" --source "$out/source.h5" \
    --weighting cross-fit --seed "$4" --device "$device" --out "$out/cross-fit.h5"
}

# students SOURCE TARGET DIR SEED: of the LALM's answers alone, and of both kinds of fused labels.
students() {
  local out=$expdir/$1-$2/seed$4 manifest student how
  manifest=$(clips_of "$3")
  for student in lalm-sfuda mifuse cross-fit; do
    case $student in
      lalm-sfuda) how=(--method lalm-sfuda --fused "$out/fused.h5") ;;
      mifuse) how=(--fused "$out/fused.h5") ;;
      cross-fit) how=(--fused "$out/cross-fit.h5") ;;
    esac
    step "$out/$student" train train "${how[@]}" --model "$expdir/models/$1/seed$4" --manifest "$manifest" \
      --seed "$4" --device "$device" --out "$out/$student"
  done
}

# scores SOURCE TARGET DIR SEED: of predictions that are there already, since the clips are those adapted to.
scores() {
  local out=$expdir/$1-$2/seed$4 labels row
  labels=$(labels_of "$3")
  for row in source-only="$out/source.h5" lalm="$expdir/lalm/$2.h5" fused="$out/fused.h5" \
    lalm-sfuda="$out/lalm-sfuda/predictions.h5" mifuse="$out/mifuse/predictions.h5" \
    cross-fit="$out/cross-fit/predictions.h5"; do
    step "$out/eval-${row%%=*}.h5" evaluate evaluate --predictions "${row#*=}" --manifest "$labels" \
      --out "$out/eval-${row%%=*}.h5"
  done
}

# transfer SOURCE TARGET DIR SEED FIRST LAST: those of stages 4 (labels), 5 (students) and 6 (scores) from FIRST to LAST.
transfer() {
  if [ "$5" -le 4 ] && [ "$6" -ge 4 ]; then fused_labels "$1" "$2" "$3" "$4"; fi
  if [ "$5" -le 5 ] && [ "$6" -ge 5 ]; then students "$1" "$2" "$3" "$4"; fi
  if [ "$5" -le 6 ] && [ "$6" -ge 6 ]; then scores "$1" "$2" "$3" "$4"; fi
}
