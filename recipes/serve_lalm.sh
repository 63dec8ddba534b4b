#!/usr/bin/env bash
# An open audio-language model on this machine: served while its questions are asked, then stopped.
set -euo pipefail

model=
engine=vllm
port=8000
gpus=1
max_model_len=4096
start_minutes=30
log=
device=auto

recipes=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
help_message="Usage: bash recipes/serve_lalm.sh --model NAME [options] -- QUERY_LALM_OPTIONS

Starts a server of the model, runs 'mifuse query-lalm' with the options behind -- (clips, --n-samples, --out, ...), and
stops the server, however that ends. Without options behind -- the server stays until Ctrl-C.

  --model NAME         hub name or directory
  --engine E           vllm (pip install 'vllm[audio]') or transformers (pip install 'transformers[serving]' librosa) [$engine]
  --port P             of 127.0.0.1                                       [$port]
  --gpus N             vllm: GPUs that share the model                    [$gpus]
  --max-model-len N    vllm: tokens of question and answer                [$max_model_len]
  --device D           transformers: auto, cpu, cuda, ...                 [$device]
  --start-minutes M    that loading may take                              [$start_minutes]
  --log FILE           what the server says                               [lalm-server.log]

Memory: 2 GB per billion parameters in bf16, experts that sleep included, and a tenth to a fifth more to work with.
  mistralai/Voxtral-Mini-3B-2507         10 GB   Qwen/Qwen2.5-Omni-7B                  24 GB
  nvidia/audio-flamingo-3-hf             18 GB   mistralai/Voxtral-Small-24B-2507      55 GB
  Qwen/Qwen3-Omni-30B-A3B-Instruct       70 GB   (computed or from the model cards; none was run here)"

asked=()
for ((i = 1; i <= $#; i++)); do
  if [ "${!i}" = -- ]; then
    asked=("${@:i+1}")
    set -- "${@:1:i-1}"
    break
  fi
done
. "$recipes/utils/parse_options.sh"

[ $# -eq 0 ] || usage_error "unexpected argument $1; options of query-lalm come behind --"
[ -n "$model" ] || usage_error "--model is missing"
[[ $engine =~ ^(vllm|transformers)$ ]] || usage_error "--engine $engine: expected vllm or transformers"
[[ $port =~ ^[1-9][0-9]*$ ]] || usage_error "--port $port: expected a number"
[[ $gpus =~ ^[1-9][0-9]*$ ]] || usage_error "--gpus $gpus: expected 1 or more"
[[ $max_model_len =~ ^[1-9][0-9]*$ ]] || usage_error "--max-model-len $max_model_len: expected a number"
[[ $start_minutes =~ ^[1-9][0-9]*$ ]] || usage_error "--start-minutes $start_minutes: expected a number"
log=${log:-lalm-server.log}
. "$recipes/path.sh"

case $engine in
  vllm)
    command=(vllm serve "$model" --host 127.0.0.1 --port "$port" --tensor-parallel-size "$gpus"
      --max-model-len "$max_model_len" --limit-mm-per-prompt '{"audio": 1}') ;;
  transformers) command=(transformers serve "$model" --host 127.0.0.1 --port "$port" --device "$device") ;;
esac
if ! type "${command[0]}" > /dev/null 2>&1; then
  printf '%s: %s is not installed: see --help for the package\n' "${0##*/}" "${command[0]}" >&2
  exit 6
fi
listens() { (: < "/dev/tcp/127.0.0.1/$port") 2> /dev/null; }
if listens; then
  printf '%s: port %s is taken. Choose another --port, or ask what listens there with mifuse query-lalm --base-url.\n' \
    "${0##*/}" "$port" >&2
  exit 3
fi

"${command[@]}" > "$log" 2>&1 &
server=$!
stop() {
  kill "$server" 2> /dev/null || true
  wait "$server" 2> /dev/null || true
}
trap stop EXIT
trap 'exit 130' INT TERM

printf 'loading %s, see %s\n' "$model" "$log" >&2
healthy() {
  local said=
  listens || return 1
  exec 3<> "/dev/tcp/127.0.0.1/$port" && printf 'GET /health HTTP/1.0\r\n\r\n' >&3 && read -r -t 10 said <&3
  exec 3>&-
  [[ $said = *' 200'* ]]
}
until healthy 2> /dev/null; do
  if ! kill -0 "$server" 2> /dev/null; then
    tail -n 20 "$log" >&2
    printf '%s: the server ended, see %s\n' "${0##*/}" "$log" >&2
    exit 6
  fi
  if [ "$SECONDS" -ge $((60 * start_minutes)) ]; then
    printf '%s: the server is not ready after %s minutes, see %s\n' "${0##*/}" "$start_minutes" "$log" >&2
    exit 6
  fi
  sleep 1
done
if [ ${#asked[@]} -eq 0 ]; then
  printf 'serving %s at http://127.0.0.1:%s/v1 until Ctrl-C\n' "$model" "$port" >&2
  wait "$server"
else
  export OPENAI_API_KEY=${OPENAI_API_KEY:-none-needed}
  mifuse query-lalm --model "$model" --service vllm --base-url "http://127.0.0.1:$port/v1" "${asked[@]}"
fi
