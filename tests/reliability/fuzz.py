"""Damaged and foreign input for all that mifuse reads: it has to end in an error that tells, soon, in little memory.

    python -m tests.reliability.fuzz --count 1000 [--seed 0] [--only NAME]

Every input is a valid one, damaged at random by the seed and its number alone, so that a fault can be made again.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import sqlite3
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1]), str(Path(__file__).parent)]

import h5py  # noqa: E402
import numpy as np  # noqa: E402
import pyarrow.parquet  # noqa: E402
import soundfile  # noqa: E402
import trees  # noqa: E402
import trees_coded  # noqa: E402
from conftest import CLASSES, KEY, save_encoder  # noqa: E402
from steady_lalm import SteadyLalm  # noqa: E402

from mifuse_cli import artifacts, audio, cli, lalm  # noqa: E402
from mifuse_cli.artifacts import KINDS, Header, Lalm, Source  # noqa: E402
from mifuse_cli.artifacts.schema import content_hash  # noqa: E402
from mifuse_cli.errors import MifuseError  # noqa: E402
from mifuse_cli.lalm.answers import response  # noqa: E402
from mifuse_cli.manifest import Clips, read_labelled  # noqa: E402

SECONDS, WAIT, MEMORY = 10, 60, 2 << 30
"""Limits of one input: CPU time, since machines are busy; time of the clock, for what waits; bytes."""
CODES = (0, 2, 3, 4)
"""Exit codes that input may lead to."""
ODD_NUMBERS = (0, -1, 1, 3, 2**31, 2**63, 10**30, 0.5, -2.5, 1e308, float("nan"), float("inf"))
ODD_VALUES = (*ODD_NUMBERS, "", "x", "\0", "\ud800", "a" * 5000, [], {}, [1], {"a": 1}, [[]], None, True)
ODD_BYTES = (b"\0", b"\xff", b",", b'"', b"\n", b"\r", b"'", b"{", b"[", b":", b"&a ", b"*a", b"!!int x", b"-",
             b"1e999", b"9" * 400, b"../../", b"/dev/zero", b"\xef\xbb\xbf", b"%", b"x" * 3000)  # fmt: skip
ODD_CELLS = (None, 0, -1, 2**63 - 1, 1e308, float("inf"), "", "x", "{}", "[]", "[null, {}]", "9" * 400, b"", b"\xff\0",
             "[" * 5000, b"x" * 3000)  # fmt: skip


class Hang(BaseException):
    """An input took too long. No OSError, which a command takes for one of the file's."""


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it said on standard error."""

    exit_code: int
    stderr: str


def mifuse(*arguments: Any) -> Ended:
    """Run a command in this process, from its entry point; a crash is raised."""
    out, told = (io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2))
    words = ["mifuse", *map(str, arguments)]
    code = None
    streams = contextlib.redirect_stdout(out), contextlib.redirect_stderr(told)
    with mock.patch.object(sys, "argv", words), streams[0], streams[1]:
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
    told.seek(0)
    ended = Ended(code or 0, told.read())
    assert ended.exit_code in CODES, f"{words} ended with {code}: {ended.stderr}"
    return ended


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Bytes with one to four faults: flipped bits, pieces that are lost, doubled, zeroed or foreign, an early end."""
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(content) + 1)
        end = min(len(content), start + rng.choice((1, 2, 8, 100, 1000)))
        part = content[start:end]
        match rng.randrange(7):
            case 0:
                part = bytes(byte ^ (1 << rng.randrange(8)) for byte in part[:1]) + part[1:]
            case 1:
                part = b""
            case 2:
                part = part * rng.choice((2, 3, 50))
            case 3:
                part = bytes(len(part))
            case 4:
                part = rng.randbytes(len(part))
            case 5:
                part = rng.choice(ODD_BYTES)
            case 6:
                content, part = content[:end], part[: rng.randrange(len(part) + 1)]
        content = content[:start] + part + content[end:]
    return content


def changed(value: Any, rng: random.Random) -> Any:
    """A JSON value of which one part, anywhere in it, is gone or another."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        name = rng.choice(sorted(value))
        if rng.random() < 0.3:
            return {key: one for key, one in value.items() if key != name}
        return {**value, name: changed(value[name], rng)}
    if isinstance(value, list) and value and rng.random() < 0.7:
        at = rng.randrange(len(value))
        return [*value[:at], changed(value[at], rng), *value[at + 1 :]]
    return rng.choice(ODD_VALUES)


class World:
    """Valid inputs in a directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        rng = np.random.default_rng(0)
        for number in range(6):
            soundfile.write(root / f"{number}.wav", rng.standard_normal(4000) * 0.1, 16000)
        for name in ("a.flac", "a.ogg", "a.mp3"):
            soundfile.write(root / name, rng.standard_normal(16000) * 0.1, 16000)
        soundfile.write(root / "f.wav", rng.standard_normal(4000) * 0.1, 8000, subtype="FLOAT")
        rows = [f"u{n},{n}.wav,s{n % 2},{CLASSES[n % 4]},0.25,tekst" for n in range(6)]
        self.manifest = root / "labels.csv"
        self.manifest.write_text("\n".join(["utt_id,file,speaker,emotion,duration_s,text", *rows]) + "\n")
        self.ids = np.array([f"u{n}" for n in range(6)])
        self._artifacts(rng)
        self._models()

    def _artifacts(self, rng: np.random.Generator) -> None:
        probs = rng.dirichlet(np.ones(4), (6, 3)).astype(np.float32)
        codes = {status.name.lower(): int(status) for status in lalm.Status}
        summary = {"clips": 6, "samples": 3, "complete": True, "statuses": {"ok": 18}, "without_answer": 0,
                   "mean_mi": 0.1, "tokens": {"prompt": 1, "completion": 1}, "requests": {"sent": 18},
                   "spent_usd": None}  # fmt: skip
        parameters = {"model": "m", "host": "h", "spec": {"elicit": "verbalized"}, "status_codes": codes,
                      "complete": True, "summary": summary}  # fmt: skip
        Lalm(
            header=Header(classes=CLASSES, parameters=parameters),
            utt_id=self.ids,
            audio_sha256=np.array(["0f"] * 6),
            probs=probs,
            status=np.full((6, 3), codes["ok"], np.uint8),
            order=np.tile(np.arange(4, dtype=np.uint8), (6, 3, 1)),
            usage=np.full((6, 3, 5), 7, np.int32),
            raw=np.frombuffer(b"{}" * 18, np.uint8),
            raw_end=(2 * np.arange(1, 19)).reshape(6, 3),
        ).save(self.root / "lalm.h5")
        Source(
            header=Header(
                classes=CLASSES,
                parameters={"normalize": "source", "calibrate": False, "seen_in_training": 0.0},
            ),
            utt_id=self.ids,
            probs=probs[::-1].copy(),
            point=probs[:, 0],
            speaker=np.array(["s"] * 6),
        ).save(self.root / "source.h5")
        self.fuse("lalm.h5", "source.h5", "fused.h5")
        self.evaluate("fused.h5", "eval.h5")

    def fuse(self, first: str, second: str, out: str) -> Any:
        inputs = ["--lalm", self.root / first, "--source", self.root / second]
        return mifuse("fuse", *inputs, "--weighting", "mi", "--out", self.root / out)

    def evaluate(self, predictions: str, out: str) -> Any:
        inputs = ["--predictions", self.root / predictions, "--manifest", self.manifest]
        return mifuse("evaluate", *inputs, "--resamples", "100", "--out", self.root / out)

    @cached_property
    def kaldi(self) -> Path:
        """A Kaldi data directory of six recordings with a segment of each."""
        made = self.root / "kaldi"
        made.mkdir()
        ids, own = [f"u{n}" for n in range(6)], [f"s{n % 2}-{n}" for n in range(6)]
        tables = {
            "wav.scp": [f"{one} {self.root}/{n}.wav" for n, one in enumerate(ids)],
            "segments": [f"{utt} {one} 0.01 0.2" for utt, one in zip(own, ids, strict=True)],
            "utt2spk": [f"{utt} s{n % 2}" for n, utt in enumerate(own)],
            "spk2utt": [f"s{k} {' '.join(own[k::2])}" for k in range(2)],
            "utt2emo": [f"{utt} {CLASSES[n % 4]}" for n, utt in enumerate(own)],
            "text": [f"{utt} well yes" for utt in own],
            "spk2gender": ["s0 f", "s1 m"],
        }
        for name, lines in tables.items():
            (made / name).write_text("".join(f"{line}\n" for line in sorted(lines)))
        return made

    @cached_property
    def _lalm(self) -> SteadyLalm:
        server = SteadyLalm()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server

    def ask(self, out: Path, *options: str) -> Ended:
        """Have a language model asked twice of every clip."""
        inputs = ("--manifest", self.manifest, "--model", "m", "--base-url", self._lalm.url, "--out", out)
        with mock.patch.dict(os.environ, OPENAI_API_KEY=KEY):
            return mifuse("query-lalm", *inputs, "--n-samples", "2", "--rpm", "1e6", *options)

    @cached_property
    def asked(self) -> Path:
        """A directory of answers and their journal."""
        made = self.root / "asked"
        made.mkdir()
        assert not self.ask(made / "out.h5").exit_code
        return made

    def sample(self, cache: Path, out: Path) -> Ended:
        """Have the source model sampled."""
        inputs = ("--model", self.root / "model", "--manifest", self.manifest, "--n-samples", "2")
        return mifuse("sample-source", *inputs, "--cache-dir", cache, "--out", out)

    @cached_property
    def features(self) -> Path:
        """A feature cache."""
        made = self.root / "features"
        assert not self.sample(made, self.root / "sampled.h5").exit_code
        return made

    def corpus(self, name: str) -> Path:
        """A corpus as it is unpacked."""
        made = self.root / "corpora" / name
        if not made.exists():
            made.parent.mkdir(exist_ok=True)
            _CORPORA[name](made)
        return made

    def _models(self) -> None:
        places = ("--manifest", self.manifest, "--cache-dir", self.root / "c", "--out", self.root / "model")
        mifuse("train-source", *places, "--encoder", "logmel", "--epochs", "1", "--validation", "0")
        save_encoder(self.root / "whisper", "whisper")
        save_encoder(self.root / "wav2vec2", "wav2vec2")


Target = Callable[[World, random.Random, Path], None]


def manifests(world: World, rng: random.Random, place: Path) -> None:
    """Tables of clips."""
    file = place / rng.choice(("m.csv", "m.tsv", "m.txt"))
    file.write_bytes(damaged(world.manifest.read_bytes(), rng))
    for number in range(6):
        shutil.copy(world.root / f"{number}.wav", place)
    with contextlib.suppress(MifuseError):
        list(Clips(file, None, need_audio=rng.random() < 0.5))
    with contextlib.suppress(MifuseError):
        read_labelled(file, CLASSES, need_audio=False, some=rng.random() < 0.5)
    mifuse("validate", file)


_OPTIONS: dict[str, Any] = {
    "seed": 1, "device": "cpu", "force": True, "weighting": "mi", "tau": 0.1, "pool": "linear", "sharpen": 1.0,
    "without": "", "partial": False, "keep_weighting": True, "gold": None, "update": False, "calibrate_lalm": "none",
}  # fmt: skip


def options(world: World, rng: random.Random, place: Path) -> None:
    """Configurations in YAML."""
    import yaml

    values = {**_OPTIONS, "lalm": [str(world.root / "lalm.h5")], "source": str(world.root / "source.h5")}
    values["out"] = str(place / "f.h5")
    with contextlib.suppress(yaml.YAMLError, UnicodeError):
        text = yaml.safe_dump(changed(values, rng) if rng.random() < 0.6 else values, allow_unicode=True)
        content = text.encode("utf-8", "surrogatepass")
        (place / "o.yaml").write_bytes(damaged(content, rng) if rng.random() < 0.5 else content)
        with contextlib.chdir(place):  # --out may have become any name
            mifuse("fuse", "--config", place / "o.yaml")


def prices(world: World, rng: random.Random, place: Path) -> None:
    """Tables of prices."""
    entry = {
        "text_in": 1.0,
        "audio_in": 2,
        "out": 3.0,
        "date": "2026-01-31",
        "cached_in": None,
        "batch_factor": 0.5,
    }
    content = json.dumps(
        changed({"m": entry, "n": entry}, rng) if rng.random() < 0.5 else {"m": entry}
    ).encode()
    (place / "p.yaml").write_bytes(damaged(content, rng) if rng.random() < 0.6 else content)
    with contextlib.suppress(MifuseError):
        found = lalm.read_prices(place / "p.yaml")
        lalm.price_of("m", found)


def prompts(world: World, rng: random.Random, place: Path) -> None:
    """Prompts, and services of one's own."""
    texts = {"system": "You listen.", "template": "Which?\n{labels}", "refused": "Please."}
    content = json.dumps(changed(texts, rng) if rng.random() < 0.5 else texts).encode()
    (place / "p.yaml").write_bytes(damaged(content, rng) if rng.random() < 0.6 else content)
    with contextlib.suppress(MifuseError):
        lalm.read_wording(place / "p.yaml", rng.choice(("verbalized", "label", "logprob")))
    service = {"base_url": "http://localhost/v1", "key_variable": "KEY", "date": "2026-01-31", "modalities": ["text"],
               "extra_body": {"a": 1}, "extra_headers": {"X-A": "b"}, "token_limit": "max_tokens"}  # fmt: skip
    content = json.dumps(changed(service, rng)).encode()
    (place / "s.yaml").write_bytes(damaged(content, rng) if rng.random() < 0.3 else content)
    with contextlib.suppress(MifuseError):
        lalm.read_profile(str(place / "s.yaml"))


def sounds(world: World, rng: random.Random, place: Path) -> None:
    """Audio files, damaged mostly at their heads."""
    name = rng.choice(("0.wav", "f.wav", "a.flac", "a.ogg", "a.mp3"))
    content = (world.root / name).read_bytes()
    head = rng.choice((44, 100, 4000, len(content)))
    (place / name).write_bytes(damaged(content[:head], rng) + content[head:])
    for read in (audio.seconds, audio.read):
        with contextlib.suppress(MifuseError):
            read(place / name)


_ANSWER = '{"angry": 40, "happy": 30, "neutral": 20, "sad": 10}'


def answers(world: World, rng: random.Random, place: Path) -> None:
    """Bodies of responses, and texts of answers."""
    body = {"id": "x", "model": "m", "usage": {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14},
            "choices": [{"index": 0, "message": {"role": "assistant", "content": _ANSWER},
                         "finish_reason": "stop"}]}  # fmt: skip
    raw = json.dumps(changed(body, rng)).encode("utf-8", "surrogatepass")
    found = response.decode(damaged(raw, rng) if rng.random() < 0.6 else raw)
    texts = [one.text for one in found.choices] + [damaged(_ANSWER.encode(), rng).decode("utf-8", "replace")]
    for text in texts:
        lalm.parse_answer(text, CLASSES)


def _edit(file: h5py.File, rng: random.Random) -> None:
    """One change of an artifact that HDF5 can read."""
    names = sorted(file)
    name = rng.choice(names)
    match rng.randrange(12):
        case 0:
            del file[name]
            file.create_group(name)
        case 1:
            del file[name]
            file[name] = np.dtype("f4")
        case 2:
            shape = file[name].shape
            kind = file[name].dtype
            del file[name]
            file.create_dataset(name, (2**40, *shape[1:]), kind, chunks=(64, *shape[1:]), compression="gzip")
        case 3:
            del file[name]
            file[name] = h5py.SoftLink(rng.choice(("/", f"/{name}", "/nowhere", "/" + rng.choice(names))))
        case 4:
            del file[name]
            file[name] = h5py.ExternalLink(rng.choice(("/dev/zero", "x.h5", file.filename)), f"/{name}")
        case 5:
            values = file[name][...]
            del file[name]
            file[name] = rng.choice(
                (values[:-1], values[::-1], values[..., None], np.zeros(0), np.float32(1))
            )
        case 6:
            if file[name].dtype.kind == "f" and file[name].size:
                flat = file[name][...]
                flat.flat[rng.randrange(flat.size)] = rng.choice((np.nan, np.inf, -1, 1e30))
                file[name][...] = flat
        case 7:
            attribute = rng.choice(sorted(file.attrs))
            value = rng.choice((1, -1, 2.5, np.inf, "x", "[]", "{}", "null", b"\xff", [], [1, 2], np.dtype("i4"),
                                h5py.Empty("f"), file.ref, "[" * 10000))  # fmt: skip
            with contextlib.suppress(TypeError, ValueError):
                file.attrs[attribute] = value
        case 8 | 9:
            attribute = rng.choice(("parameters", "config", "versions", "parents"))
            file.attrs[attribute] = json.dumps(changed(json.loads(file.attrs[attribute]), rng))
        case 10:
            del file[name]
            file[name] = rng.choice(
                (["b", "a"], ["a", "a"], [b"\xff", b"\xfe"], [1, 2], ["x" * 100000] * 3, file.ref)
            )
        case 11:
            del file.attrs[rng.choice(sorted(file.attrs))]


def _sign(file: h5py.File) -> None:
    """The content hash of what the file holds now, as far as it has one."""
    with contextlib.suppress(Exception):
        header = Header.of(dict(file.attrs), Path("x"))
        columns = KINDS[file.attrs["kind"]].columns()
        parts = []
        for name in sorted(columns):
            if name in file:
                values = file[name].asstr() if columns[name]["dtype"] == "str" else file[name]
                if file[name].size > 10**6:
                    return
                parts.append((name, file[name].shape, [values[:].astype(columns[name]["dtype"])]))
        file.attrs["sha256"] = content_hash(file.attrs["kind"], header, parts)


def hdf5(world: World, rng: random.Random, place: Path) -> None:
    """Artifacts: as bytes, and edited by someone who knows the format and the hash."""
    name = rng.choice(("lalm.h5", "source.h5", "fused.h5", "eval.h5"))
    for one in ("lalm.h5", "source.h5", "fused.h5", "eval.h5"):
        shutil.copy(world.root / one, place)
    path = place / name
    if rng.random() < 0.5:
        path.write_bytes(damaged(path.read_bytes(), rng))
    else:
        with contextlib.suppress(OSError, RuntimeError), h5py.File(path, "r+") as file:
            _edit(file, rng)
            _sign(file)
    mifuse("show", path)
    mifuse("validate", path)
    here = World.__new__(World)
    here.root, here.manifest = place, world.manifest
    if name in ("lalm.h5", "source.h5"):
        here.fuse("lalm.h5", "source.h5", "out.h5")
    here.evaluate(name, "score.h5")
    with contextlib.suppress(MifuseError):
        artifacts.read_header(path)


def checkpoints(world: World, rng: random.Random, place: Path) -> None:
    """Classifiers and encoders."""
    from mifuse_cli.model import checkpoint
    from mifuse_cli.model.encoder import load_encoder

    name = rng.choice(("model", "whisper", "wav2vec2"))
    directory = Path(shutil.copytree(world.root / name, place / name))
    files = [file for file in sorted(directory.rglob("*")) if file.suffix in (".json", ".safetensors")]
    file = rng.choice(files)
    if file.suffix == ".json" and rng.random() < 0.7:
        values = json.loads(file.read_text())
        file.write_text(
            json.dumps(
                changed(values, rng) if rng.random() < 0.9 else {**values, "auto_map": {"AutoModel": "x.Y"}}
            )
        )
    elif rng.random() < 0.1:
        file.unlink()
        file.symlink_to(rng.choice(("/dev/zero", "/dev/null", "nowhere")))
    else:
        file.write_bytes(damaged(file.read_bytes(), rng))
    if name == "model":
        mifuse("validate", directory)
        with contextlib.suppress(MifuseError):
            checkpoint.load(directory)
        directory /= "encoder"
    with contextlib.suppress(MifuseError):
        load_encoder(directory)


def _damage_some(directory: Path, rng: random.Random) -> None:
    """Damage, lose or rename one or two files of a directory; seldom audio."""
    for _ in range(rng.randint(1, 2)):
        files = [one for one in sorted(directory.rglob("[!.]*")) if one.is_file()]
        texts = [one for one in files if one.suffix not in (".wav", ".flac", ".mp3", ".mp4", ".flv")]
        path = rng.choice(texts if texts and rng.random() < 0.9 else files)
        match rng.randrange(12):
            case 0:
                path.unlink()
            case 1:
                path.rename(path.with_name(rng.choice(("x", f"x{path.suffix}", "-x.csv", "a b.wav"))))
            case 2:
                path.unlink()
                path.mkdir()
            case _:
                path.write_bytes(damaged(path.read_bytes(), rng))


def kaldi(world: World, rng: random.Random, place: Path) -> None:
    """Kaldi data directories."""
    directory = Path(shutil.copytree(world.kaldi, place / "kaldi"))
    _damage_some(directory, rng)
    mifuse("validate", directory)
    mifuse("prepare", "kaldi", directory, place / "out", "--allow-missing")


_DB = """name: x
usage: unrestricted
schemes: {emotion: {dtype: str, labels: [anger, sadness]}, speaker: {dtype: str}}
splits: {test: {type: test}}
tables:
  emotion: {type: filewise, split_id: test, columns: {emotion: {scheme_id: emotion}}}
  parts: {type: segmented, split_id: test, columns: {said: {}}}
  voices: {type: filewise, columns: {speaker: {scheme_id: speaker}}}
"""


def _audformat(root: Path) -> None:
    trees_coded.text(root / "db.yaml", _DB)
    trees_coded.text(root / "db.emotion.csv", "file,emotion", "a.wav,anger", "b.wav,sadness")
    trees_coded.text(root / "db.parts.csv", "file,start,end,said", "a.wav,0 days,0 days 00:00:01,x")
    voices = {"file": ["a.wav", "b.wav"], "speaker": ["s", "t"]}
    pyarrow.parquet.write_table(pyarrow.table(voices), root / "db.voices.parquet")
    for name in ("a.wav", "b.wav"):
        trees_coded.wav(root / name)


_CORPORA: dict[str, Callable[[Path], Any]] = {
    "iemocap": lambda root: trees.iemocap(root, trees.iemocap_turns("3", 1)),
    "msp-improv": lambda root: trees.msp_improv(root, trees.msp_improv_clips("1", 1)),
    "msp-podcast": lambda root: trees.msp_podcast(root, takes=1),
    "crema-d": trees_coded.crema_d,
    "ravdess": trees_coded.ravdess,
    "emodb": trees_coded.emodb,
    "nemo": trees_coded.nemo,
    "generic": trees_coded.generic_csv,
    "audformat": _audformat,
}


def corpora(world: World, rng: random.Random, place: Path) -> None:
    """Corpora as they are unpacked."""
    name = rng.choice(sorted(_CORPORA))
    root = Path(shutil.copytree(world.corpus(name), place / "root"))
    _damage_some(root, rng)
    given = root / "labels.csv" if name == "generic" else root
    mifuse("prepare", name, given, place / "out", *rng.choice(((), ("--allow-missing",))))


def _alter(file: Path, rng: random.Random) -> None:
    """One change of tables, columns or values, by someone who knows SQL."""

    def rows(query: str) -> list[tuple[Any, ...]]:
        return db.execute(query).fetchall()

    db = sqlite3.connect(file, isolation_level=None)
    table = rng.choice(rows("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name"))[0]
    column = rng.choice(rows(f"SELECT name FROM pragma_table_info('{table}')"))[0]
    number = rng.randrange(max(1, rows(f"SELECT count(*) FROM {table}")[0][0]))
    row = f"rowid = (SELECT rowid FROM {table} LIMIT 1 OFFSET {number})"
    with contextlib.closing(db), contextlib.suppress(sqlite3.Error):
        match rng.randrange(12):
            case 0:
                db.execute(f"DROP TABLE {table}")
            case 1:
                db.execute(f"ALTER TABLE {table} RENAME COLUMN {column} TO other")
            case 2:
                db.execute(f"DELETE FROM {table} WHERE {row}")
            case 3:
                number = rng.choice((-1, 0, 1, 99))
                db.execute(f"PRAGMA {rng.choice(('user_version', 'application_id'))} = {number}")
            case _:
                where = row if rng.random() < 0.5 else "1"
                db.execute(f"UPDATE {table} SET {column} = ? WHERE {where}", (rng.choice(ODD_CELLS),))


def databases(world: World, rng: random.Random, place: Path) -> None:
    """Journals and feature caches: the SQLite files between two runs."""
    original = rng.choice((world.asked, world.features))
    directory = Path(shutil.copytree(original, place / "d"))
    file = rng.choice(sorted(directory.glob("*.sqlite")))
    if rng.random() < 0.5:
        file.write_bytes(damaged(file.read_bytes(), rng))
    else:
        _alter(file, rng)
    if original == world.asked:
        if rng.random() < 0.5:
            (directory / "out.h5").unlink()
        ended = world.ask(directory / "out.h5", rng.choice(("--reparse", "--update", "--force")))
        paid = ended.stderr.replace("do not delete", "").lower()
        assert "delete" not in paid and "anew" not in paid, ended.stderr
    else:
        mifuse("cache", "--cache-dir", directory)
        world.sample(directory, place / "s.h5")
        mifuse("cache", "--cache-dir", directory, "--cache-limit", "0B")


_KINDS = (manifests, kaldi, corpora, options, prices, prompts, sounds, answers, hdf5, checkpoints, databases)
TARGETS: dict[str, Target] = {one.__name__: one for one in _KINDS}


def _ended(number: int, frame: Any) -> None:
    raise Hang(f"not at an end after {SECONDS} s of work or {WAIT} s of the clock")


def run(name: str, count: int, seed: int, world: World, first: int = 0) -> list[str]:
    """Faults of ``count`` inputs of one kind, each with what makes it again."""
    faults = []
    signal.signal(signal.SIGPROF, _ended)
    signal.signal(signal.SIGALRM, _ended)
    for number in range(first, first + count):
        rng = random.Random(f"{name} {seed} {number}")
        with tempfile.TemporaryDirectory(dir=world.root) as place:
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            signal.setitimer(signal.ITIMER_REAL, WAIT)
            try:
                TARGETS[name](world, rng, Path(place))
            except (Exception, Hang):
                faults.append(f"{name}, seed {seed}, number {number}:\n{traceback.format_exc()}")
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
                signal.setitimer(signal.ITIMER_REAL, 0)
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    taken = max(resource.getrusage(one).ru_maxrss for one in whose) * 1024
    if taken > MEMORY:
        faults.append(f"{name}, seed {seed}, numbers {first} to {first + count}: {taken >> 20} MB of memory")
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100, help="inputs of each kind")
    parser.add_argument("--first", type=int, default=0, help="number of the first")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=TARGETS, action="append")
    given = parser.parse_args()
    found = Counter[str]()
    with tempfile.TemporaryDirectory() as root:
        world = World(Path(root))
        for name in given.only or TARGETS:
            start = time.monotonic()
            for fault in run(name, given.count, given.seed, world, given.first):
                found[name] += 1
                print(fault, file=sys.stderr)
            print(
                f"{name}: {given.count} inputs, {found[name]} faults, {time.monotonic() - start:.0f} s",
                flush=True,
            )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
