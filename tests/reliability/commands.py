"""Every command that writes, at its smallest: what it reads, how it is called, how it is forked, what it leaves."""

from __future__ import annotations

import gc
import hashlib
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

import nursery  # noqa: E402
from conftest import KEY, make_corpus, write_csv  # noqa: E402

from mifuse_cli import artifacts  # noqa: E402

INPUTS = "../../inputs"
"""What the commands read, seen from the directory of a trial: the same in all, so that they make the same."""
_TIMES = re.compile(
    rb"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|\+00:00)?( UTC)?|\"seconds\": [\d.]+| --(force|update)\b"
)


@dataclass(frozen=True)
class Command:
    """A call of a command.

    Attributes:
        arguments: without those of ``again``.
        out: names of what it makes.
        earlier: other values of options, which make another output of the same kind, to be replaced.
        again: the option by which what a killed call may have made is kept or made anew.
        given: name of the input of which its output is a copy before it is called, which changes it in place.
        piecewise: whether its output is a directory of files that are replaced one by one, as soon as each is whole.
    """

    name: str
    arguments: tuple[str, ...]
    out: tuple[str, ...]
    earlier: tuple[str, ...] = ("--seed", "1")
    again: str = "--update"
    given: str = ""
    piecewise: bool = False


def _commands() -> dict[str, Command]:
    def at(name: str) -> str:
        return f"{INPUTS}/{name}"

    model = at("models/source/seed0")
    target = ("--manifest", at("target/manifest.csv"))
    train = ("--fused", at("fused.h5"), "--model", model, *target, "--epochs", "2")
    source = ("--manifest", at("source/manifest.csv"), "--encoder", "logmel", "--epochs", "2")
    score = (
        "--model",
        model,
        "--manifest",
        at("target/labels.csv"),
        "--resamples",
        "100",
    )
    compare = ("--data", INPUTS, "--models", at("models"), "--lalm", at("answers"), "--sources", "source",
               "--targets", "target", "--seeds", "0", "--systems", "source-only,mifuse-mi,mifuse-cross-fit",
               "--n-answers", "2", "--n-samples", "3", "--epochs", "2", "--resamples", "100",
               "--jobs", "1")  # fmt: skip
    calls = [
        Command(
            "prepare",
            ("generic", at("source/labels.csv"), "out", "--kaldi"),
            ("out",),
            ("--classes", "happy,neutral,sad"),
        ),
        Command(
            "query-lalm",
            (*target, "--model", "m", "--n-samples", "2", "--rpm", "1e6", "--save-minutes", "0.001", "--out", "out.h5"),
            ("out.h5",),
            ("--n-samples", "1"),
        ),
        Command("train-source", (*source, "--out", "out"), ("out",)),
        Command(
            "sample-source", ("--model", model, *target, "--n-samples", "3", "--out", "out.h5"), ("out.h5",)
        ),
        Command(
            "fuse",
            ("--lalm", at("answers/target.h5"), "--source", at("source.h5"), "--out", "out.h5"),
            ("out.h5",),
            ("--weighting", "mi"),
        ),
        Command("train", (*train, "--out", "out"), ("out",)),
        Command(
            "evaluate",
            (*score, "--out", "out.h5", "--plot", "out.svg"),
            ("out.h5", "out.svg"),
        ),
        Command(
            "predict",
            ("--model", model, *target, "--out", "out.csv"),
            ("out.csv",),
            ("--normalize", "target"),
        ),
        Command(
            "export", ("--model", model, "--out", "out"), ("out",), ("--license", "mit"), again="--force"
        ),
        Command("report", (at("fused.h5"), "--out", "out.html"), ("out.html",), ("--title", "t"), again="--force"),
        Command("pick", ("--fused", at("fused.h5"), "--n", "5", "--out", "out.csv"), ("out.csv",), again="--force"),
        Command("merge", (at("part-1.h5"), at("part-2.h5"), "--out", "out.h5"), ("out.h5",)),
        Command("compare", (*compare, "--out", "out"), ("out",), ("--epochs", "1"), piecewise=True),
        Command(
            "compare-worlds",
            (at("compared"), "--out", "out", "--resamples", "100"),
            ("out",),
            ("--resamples", "120"),
            piecewise=True,
        ),
        Command(
            "cache", ("--cache-dir", "out", "--cache-limit", "0B"), ("out",), again="", given="features", piecewise=True
        ),
    ]  # fmt: skip
    return {one.name: one for one in calls}


COMMANDS = _commands()


def load() -> None:
    """Import all that commands use, once, so that forked ones start at once."""
    nursery.load()
    import matplotlib.backends.backend_svg
    import matplotlib.figure  # noqa: F401
    import torch

    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # else a collection in a fork copies all memory


@dataclass(frozen=True)
class Ended:
    """How a call ended: its exit code, or minus the number of the signal, and what it said on standard error."""

    code: int
    said: str


@dataclass(frozen=True)
class Call:
    """A forked call under way, and the end of a pipe at which its standard error is read."""

    pid: int
    said: int

    def wait(self) -> Ended:
        with open(self.said, errors="replace") as file:
            said = file.read()
        return Ended(os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]), said)


class World:
    """A directory with ``inputs``, and a way to try commands in directories of their own.

    Attributes:
        url: of a language model that answers the same question alike for ever.
    """

    def __init__(self, root: Path, url: str) -> None:
        self.root, self.url = root, url

    @property
    def inputs(self) -> Path:
        return self.root / "inputs"

    def build(self) -> None:
        """Make what the commands read."""
        for name, seed in (("source", 1), ("target", 2)):
            rows = make_corpus(self.inputs / name, seed, takes=1)
            write_csv(self.inputs / name / "labels.csv", rows)
            hidden = rows if name == "source" else [{k: r[k] for k in ("file", "speaker")} for r in rows]
            write_csv(self.inputs / name / "manifest.csv", hidden)
        target = ("--manifest", "target/manifest.csv")
        query = ("query-lalm", *target, "--model", "m", "--rpm", "1e6", "--n-samples", "2")
        source = ("train-source", "--manifest", "source/manifest.csv", "--encoder", "logmel", "--epochs", "2")
        for arguments in (
            (*query, "--out", "answers/target.h5"),
            (*query, "--shard", "1/2", "--out", "part-1.h5"),
            (*query, "--shard", "2/2", "--out", "part-2.h5"),
            (*source, "--out", "models/source/seed0"),
            (
                "sample-source",
                "--model",
                "models/source/seed0",
                *target,
                "--n-samples",
                "3",
                "--out",
                "source.h5",
            ),
            ("fuse", "--lalm", "answers/target.h5", "--source", "source.h5", "--out", "fused.h5"),
            (
                "compare",
                *(word.replace(INPUTS, ".") for word in COMMANDS["compare"].arguments[:-1]),
                "compared",
            ),
        ):
            ended = self.start(arguments, self.inputs).wait()
            assert ended.code == 0, f"{arguments}: {ended.said}"
        shutil.copytree(self.inputs / "cache", self.inputs / "features")

    @contextmanager
    def place(self) -> Iterator[Path]:
        """An empty directory of a trial."""
        made = self.root / "trials" / str(os.getpid())  # the same in all trials, since paths are kept
        made.mkdir(parents=True)
        try:
            yield made
        finally:
            shutil.rmtree(made)

    def start(
        self, arguments: tuple[str, ...], place: Path, before: Callable[[], None] | None = None
    ) -> Call:
        """Fork a call of the command line in a directory; ``before`` is called first, in the fork."""
        if arguments[0] == "query-lalm":
            arguments = (*arguments, "--base-url", self.url)
        said, saying = os.pipe()  # a file would be under the faults, too
        streams = [*(os.open(os.devnull, os.O_RDWR) for _ in range(2)), saying]
        pid = os.fork()
        if not pid:
            try:
                os.close(said)
                if before is not None:
                    before()
                env = {**os.environ, "MIFUSE_CACHE_DIR": str(place / "cache"), "OPENAI_API_KEY": KEY}
                nursery.live(list(arguments), str(place), env, streams)
            finally:
                os._exit(1)
        for stream in streams:
            os.close(stream)
        return Call(pid, said)


def content(place: Path, out: str, *, asked: bool = False) -> dict[str, str]:
    """Hashes of the files of an output by name, read and checked; without times, which differ from call to call.

    Args:
        place: directory of the trial.
        out: name of the output.
        asked: whether it holds answers that took more or fewer requests: the answers alone are compared.

    Raises:
        MifuseError: one of them is not whole.
    """
    top = place / out
    if not top.exists():
        return {}
    files = [top] if top.is_file() else sorted(path for path in top.rglob("*") if path.is_file())
    files = [path for path in files if ".sqlite-" not in path.name]  # SQLite's own, and part of what it reads
    return {path.relative_to(place).as_posix(): _digest(path, asked) for path in files}


def _digest(path: Path, asked: bool) -> str:
    if path.suffix == ".sqlite" and path.parent.name == "out":
        with closing(sqlite3.connect(path)) as rows:
            return hashlib.sha256("\n".join(rows.iterdump()).encode()).hexdigest()
    if path.suffix == ".h5":
        made = artifacts.read(path)
        if asked and isinstance(made, artifacts.Lalm):
            parts = (made.utt_id.tolist(), made.probs.tobytes(), made.status.tobytes(), made.order.tobytes())
            return hashlib.sha256(repr((*parts, made.raw.tobytes())).encode()).hexdigest()
        return f"{made.digest()} {made.header.seed}"
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        load_file(path)
    data = path.read_bytes()
    if path.name == "summary.json":  # of prepare: which options replaced it is kept, too
        data = re.sub(rb'"(force|update)": (true|false)', b"", data)
    return hashlib.sha256(_TIMES.sub(b"", data)).hexdigest()


@contextmanager
def steady_lalm() -> Iterator[str]:
    """Address of a language model in a process of its own."""
    with subprocess.Popen(
        [sys.executable, Path(__file__).with_name("steady_lalm.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        try:
            yield process.stdout.readline().decode().strip()
        finally:
            with suppress(OSError):
                process.stdin.close()
