"""Synthetic corpora, tiny random encoders and a pretended audio-language model, shared by all tests."""

import base64
import csv
import hashlib
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

for name in [name for name in os.environ if name.startswith(("MIFUSE_", "OPENAI_"))]:
    del os.environ[name]
# Before any import of typer, rich or the hub's client: they read these once.
os.environ |= {
    "_TYPER_FORCE_DISABLE_TERMINAL": "1",
    "NO_COLOR": "1",
    "TERMINAL_WIDTH": "200",
    "COLUMNS": "200",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}

import hypothesis  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import soundfile  # noqa: E402

pytest_plugins = ["scripted", "fake_slurm", "comparing", "nursery"]

RATE = 16_000
CLASSES = ("angry", "happy", "neutral", "sad")
KEY = "sk-test-5f0e1d2c3b4a59687"
HANG_SECONDS = 600.0
"""After so long something hangs, even on a machine that is busy: the limit of every wait, which measures nothing."""

# Nor is a slow example a wrong one.
hypothesis.settings.register_profile(
    "patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("patient")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """One feature cache for all tests: it is keyed by content, so they cannot disturb each other."""
    os.environ["MIFUSE_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))
    yield Path(os.environ["MIFUSE_CACHE_DIR"])
    del os.environ["MIFUSE_CACHE_DIR"]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in [n for n in os.environ if n.startswith(("MIFUSE_", "OPENAI_")) and n != "MIFUSE_CACHE_DIR"]:
        monkeypatch.delenv(name)


# Corpora


def tone(pitch: float, level: float, rng: np.random.Generator, seconds: float = 0.25) -> np.ndarray:
    """A sine of ``pitch`` Hz and amplitude ``level`` in a little noise."""
    time = np.arange(int(seconds * RATE)) / RATE
    return level * (np.sin(2 * np.pi * pitch * time) + 0.05 * rng.standard_normal(len(time)))


def emotional(emotion: str, speaker: int, rng: np.random.Generator) -> np.ndarray:
    """High voices are angry or happy, loud ones angry or neutral."""
    pitch = 400 if emotion in ("angry", "happy") else 150
    level = 0.5 if emotion in ("angry", "neutral") else 0.05
    return tone(pitch * (0.9 + 0.1 * speaker), level * rng.uniform(0.8, 1.2), rng, rng.uniform(0.2, 0.3))


def write_csv(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def make_corpus(root: Path, seed: int, takes: int = 2) -> list[dict[str, str]]:
    """4 classes x 3 speakers x ``takes`` clips; the rows of its manifest, which is not written."""
    rng = np.random.default_rng(seed)
    rows = []
    for number, (emotion, speaker, _) in enumerate(
        (e, s, t) for e in CLASSES for s in range(3) for t in range(takes)
    ):
        file = f"wav/{number * 7 % 24:02}-{seed}.wav"  # the name tells nothing about the class
        (root / "wav").mkdir(parents=True, exist_ok=True)
        soundfile.write(root / file, emotional(emotion, speaker, rng), RATE)
        rows.append({"file": file, "speaker": f"s{speaker}", "emotion": emotion})
    return rows


@dataclass(frozen=True)
class Corpora:
    """24 clips each; ``target`` has no emotions, they are in ``labels``."""

    source: Path
    target: Path
    labels: Path
    wav_dir: Path


@pytest.fixture(scope="session")
def corpora(tmp_path_factory) -> Corpora:
    root = tmp_path_factory.mktemp("corpora")
    rows = make_corpus(root / "source", 1)
    source = write_csv(root / "source" / "manifest.csv", rows)
    rows = make_corpus(root / "target", 2)
    labels = write_csv(root / "target" / "labels.csv", rows)
    unlabelled = [{k: v for k, v in row.items() if k != "emotion"} for row in rows]
    target = write_csv(root / "target" / "manifest.csv", unlabelled)
    return Corpora(source, target, labels, root / "target" / "wav")


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# Encoders


def save_encoder(directory: Path, family: str, *, seed: int = 0, head: str = "Model", **changes) -> Path:
    """A random encoder of three hidden layers (one in, two blocks) of width 16; not Whisper's may have another head."""
    import torch
    import transformers as t

    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    convolutions = {"conv_dim": (16, 16), "conv_kernel": (40, 16), "conv_stride": (20, 16)}
    positions = {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if family == "whisper":
            tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
            blocks = {f"{part}_layers": n for part, n in (("encoder", 2), ("decoder", 1))}
            heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
            widths = {"d_model": 16, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "num_mel_bins": 20}
            config = t.WhisperConfig(**blocks, **heads, **widths, **tokens, vocab_size=32, **changes)
            model, extractor = t.WhisperForConditionalGeneration(config), t.WhisperFeatureExtractor(20)
        else:
            kinds = {
                "wav2vec2": "Wav2Vec2",
                "hubert": "Hubert",
                "wavlm": "WavLM",
                "unispeech": "UniSpeech",
                "unispeech-sat": "UniSpeechSat",
            }
            config = getattr(t, f"{kinds[family]}Config")(**{**size, **convolutions, **positions, **changes})
            model = getattr(t, f"{kinds[family]}{head}")(config)
            extractor = t.Wav2Vec2FeatureExtractor()
    model.save_pretrained(directory)
    extractor.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def encoders(tmp_path_factory) -> dict[str, Path]:
    import torch

    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("encoders")
    return {
        family: save_encoder(root / family, family) for family in ("wav2vec2", "hubert", "wavlm", "whisper")
    }


# A pretended audio-language model


class Lalm(ThreadingHTTPServer):
    """Hears pitch and level in the audio of a request; every further answer on a clip differs a little.

    Attributes:
        asked: an id of audio and prompt for every request, in the order in which they came.
        reply: if set, called with the audio's hash; gives the text of the answer, or a status and a body.
        hold: while it is not set, requests wait for it.
    """

    daemon_threads = True

    def __init__(self, port: int = 0):
        super().__init__(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        self.asked: list[str] = []
        self.headers_seen: list[str] = []
        self.reply = None
        self.hold = threading.Event()
        self.hold.set()
        self.arrived = threading.Event()
        self.lock = threading.Lock()
        self.times: Counter[str] = Counter()

    def answer(self, wav: bytes, prompt: str) -> str:
        samples, _ = soundfile.read(io.BytesIO(wav))
        digest = hashlib.sha256(wav).hexdigest()
        pitch = np.mean(np.diff(np.sign(samples)) != 0) * RATE / 2
        loud, high = np.sqrt(np.mean(samples**2)) > 0.12, pitch > 250
        heard = CLASSES[(0 if loud else 1) if high else (2 if loud else 3)]
        with self.lock:
            self.times[digest] += 1
            rng = random.Random(f"{digest} {self.times[digest]}")
        sure = rng.randint(55, 90)
        labels = re.findall(r'"([^"]+)"', prompt)
        rest = [label for label in labels if label != heard]
        return json.dumps(dict.fromkeys(rest, (100 - sure) / len(rest)) | {heard: sure})


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server: Lalm = self.server
        audio, question = body["messages"][-1]["content"]
        wav = base64.b64decode(audio["input_audio"]["data"])
        with server.lock:
            server.asked.append(hashlib.sha256(wav + question["text"].encode()).hexdigest())
            server.headers_seen.append(self.headers["Authorization"])
        server.arrived.set()
        if not server.hold.wait(HANG_SECONDS):
            self.close_connection = True
            return
        status, answer = 200, None
        if server.reply is not None:
            answer = server.reply(hashlib.sha256(wav).hexdigest())
        if isinstance(answer, tuple):
            status, reply = answer
        else:
            text = server.answer(wav, question["text"]) if answer is None else answer
            usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
            reply = {"choices": [{"index": 0, "message": {"content": text}}], "usage": usage}
        data = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        try:
            self.wfile.write(data)
        except OSError:  # the client was killed
            self.close_connection = True

    def handle_one_request(self):
        try:
            super().handle_one_request()
        except ConnectionError:
            self.close_connection = True


@pytest.fixture
def serve():
    """Start a `Lalm`, on a given port or on any; stopped after the test."""
    servers = []

    def start(port: int = 0) -> Lalm:
        servers.append(Lalm(port))
        threading.Thread(target=servers[-1].serve_forever, args=(0.02,), daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.hold.set()
        server.shutdown()
        server.server_close()


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    return KEY


# The pipeline, run once


@dataclass(frozen=True)
class Run:
    """Outputs of every step of one run, and the steps' results by name."""

    root: Path
    results: dict

    def __getattr__(self, name: str) -> Path:
        return self.root / {"source": "source.h5", "lalm": "lalm.h5", "fused": "fused.h5"}.get(name, name)


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory, corpora, encoders) -> Run:
    """``model``, ``lalm.h5``, ``source.h5``, ``fused.h5`` and ``student``; not to be changed by tests."""
    import mifuse_cli as m

    root = tmp_path_factory.mktemp("pipeline")
    server = Lalm()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    os.environ["OPENAI_API_KEY"] = KEY
    results = {}
    try:
        results["query_lalm"] = m.query_lalm(
            m.QueryLalmConfig(
                manifest=corpora.target, out=root / "lalm.h5", model="m", base_url=server.url, n_samples=3
            )
        )
    finally:
        del os.environ["OPENAI_API_KEY"]
        server.shutdown()
        server.server_close()
    results["train_source"] = m.train_source(
        m.TrainSourceConfig(
            manifest=corpora.source, encoder=str(encoders["whisper"]), out=root / "model", epochs=8
        )
    )
    results["sample_source"] = m.sample_source(
        m.SampleSourceConfig(
            model=root / "model", manifest=corpora.target, out=root / "source.h5", n_samples=4
        )
    )
    results["fuse"] = m.fuse(
        m.FuseConfig(lalm=root / "lalm.h5", source=root / "source.h5", out=root / "fused.h5", weighting="mi")
    )
    results["train"] = m.train(
        m.TrainConfig(
            fused=root / "fused.h5",
            model=root / "model",
            manifest=corpora.target,
            out=root / "student",
            epochs=4,
        )
    )
    return Run(root, results)


@pytest.fixture
def copy(pipeline, tmp_path) -> Run:
    """The pipeline's outputs in a directory of the test's own."""
    root = shutil.copytree(pipeline.root, tmp_path / "run")
    return Run(root, pipeline.results)


def weights(checkpoint):
    """Bytes of the weights of a checkpoint's head."""
    return (checkpoint / "model.safetensors").read_bytes()


def train_config(run, corpora, out, **changes):
    values = {"fused": run.fused, "model": run.model, "manifest": corpora.target, "epochs": 2}
    import mifuse_cli as m

    return m.TrainConfig(out=out, **{**values, **changes})


def mifuse(*arguments, **env):
    """Run a command in this process; a crash is raised."""
    from typer.testing import CliRunner

    from mifuse_cli.cli import app

    result = CliRunner(env=env).invoke(app, list(map(str, arguments)))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def start(*arguments, **env):
    """The command line in a process of its own."""
    command = [sys.executable, "-m", "mifuse_cli", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # A shell starts background jobs with SIGINT ignored, and so would what they start.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(command, env={**os.environ, **env}, **pipes)
    finally:
        signal.signal(signal.SIGINT, before)


def until(condition):
    """Wait for what makes the condition true, which is returned."""
    deadline = time.monotonic() + HANG_SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return found


def refused(result, code, *words):
    """The run ended with one line that says what is wrong, and nothing else but progress."""
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.exit_code == code, result.stderr
    assert len(lines) == 1 and "Traceback" not in result.stderr and not result.stdout
    others = [line for line in result.stderr.splitlines() if line != lines[0]]
    assert all(line.startswith(("progress: ", "note: ")) for line in others)
    for word in words:
        assert word in lines[0]
    return lines[0]


def clip(seconds=0.4, seed=0):
    """A tone (S,) as an encoder takes it."""
    import torch

    return torch.from_numpy(tone(220, 0.3, np.random.default_rng(seed), seconds).astype(np.float32))


def rewrite(file, change):
    """Put other tensors into a safetensors file."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
