"""The `mifuse` command without its start, for tests that call it many times: fixture `nursery`.

Most of what a small step costs is to import torch, transformers and the like. Here one process has imported them and
forks another for every call; the command that is called hands on its arguments, environment, directory and standard
streams, passes on signals, ends with the same status and, if it is killed, takes that process with it. All else is as
ever: each call is a process of its own that runs the command line from the start.
"""

import json
import os
import pkgutil
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# What steps import when they need it.
HEAVY = (
    "openai", "scipy.optimize", "scipy.special", "scipy.stats", "sklearn.cluster", "sklearn.metrics", "torch._dynamo",
    "torchaudio.functional", "torchaudio.transforms", "transformers.models.auto.modeling_auto",
    "transformers.models.wav2vec2.feature_extraction_wav2vec2", "transformers.models.wavlm.modeling_wavlm",
    "transformers.models.whisper.feature_extraction_whisper", "transformers.models.whisper.modeling_whisper",
)  # fmt: skip

COMMAND = """\
import json, os, signal, socket, sys
nurse = socket.socket(socket.AF_UNIX)
nurse.connect({address!r})
call = [sys.argv[1:], os.getcwd(), dict(os.environ)]
socket.send_fds(nurse, [json.dumps(call).encode() + b"\\n"], [0, 1, 2])
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(number) != signal.SIG_IGN:
        signal.signal(number, lambda number, frame: nurse.send(bytes([number])))
answer = nurse.recv(16)
status = int(answer) if answer else 1
if status < 0:
    signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
sys.exit(status)
"""


@dataclass(frozen=True)
class Nursery:
    """A copy of the recipes, which would else prefer the command beside them, and the directory of the command."""

    recipes: Path
    binaries: Path
    address: str

    def start(self, *arguments) -> subprocess.Popen[str]:
        """The command line, as `conftest.start` does it."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([self.binaries / "mifuse", *map(str, arguments)], **pipes)

    def kill(self, process: subprocess.Popen[str]) -> None:
        """Kill a call, and wait until it is gone."""
        process.kill()
        process.communicate()
        self.wait_until_idle()

    def wait_until_idle(self) -> None:
        """Return once no call runs: those whose command was killed have gone with it."""
        with socket.socket(socket.AF_UNIX) as link:
            link.connect(self.address)
            link.sendall(b"idle\n")
            assert link.recv(16) == b"idle"


@pytest.fixture(scope="session")
def nursery(tmp_path_factory, cache):
    """A `Nursery`, ready to be called."""
    root = tmp_path_factory.mktemp("nursery")
    shutil.copytree(ROOT / "recipes", root / "recipes")
    # The address of a socket has to be short.
    with tempfile.TemporaryDirectory(prefix="mifuse") as short:
        address = f"{short}/nurse"
        (root / "command.py").write_text(COMMAND.format(address=address))
        (root / "bin").mkdir()
        command = root / "bin" / "mifuse"
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "{root}/command.py" "$@"\n')
        command.chmod(0o755)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(
            [sys.executable, __file__, address], **pipes, start_new_session=True
        ) as process:
            assert process.stdout.readline() == b"ready\n"
            yield Nursery(root / "recipes", root / "bin", address)
            process.stdin.close()


def load() -> None:
    """Import all that commands need."""
    import mifuse_cli

    modules = [one.name for one in pkgutil.walk_packages(mifuse_cli.__path__, "mifuse_cli.")]
    for name in (*modules, *HEAVY):
        if not name.startswith("mifuse_cli.demo") and not name.endswith("__main__"):
            import_module(name)


def nurse(address: str) -> None:
    """Serve calls until stdin ends."""
    load()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    events = selectors.DefaultSelector()
    events.register(listener, selectors.EVENT_READ)
    events.register(sys.stdin.fileno(), selectors.EVENT_READ)
    calls: dict[int, tuple[socket.socket, int]] = {}  # by pidfd: who called, and the pid
    waiting: list[socket.socket] = []
    print("ready", flush=True)
    while True:
        for key, _ in events.select():
            if key.fileobj == sys.stdin.fileno():
                for _, pid in calls.values():
                    os.kill(pid, signal.SIGKILL)
                return
            if key.fileobj is listener:
                link, _ = listener.accept()
                text, streams = received(link)
                if text == b"idle\n":
                    waiting.append(link)
                elif not text.endswith(b"\n"):  # killed while it called
                    link.close()
                else:
                    pid = os.fork()
                    if not pid:
                        for other in (link, listener, *(caller for caller, _ in calls.values())):
                            other.close()
                        live(*json.loads(text), streams)
                    handle = os.pidfd_open(pid)
                    calls[handle] = link, pid
                    events.register(handle, selectors.EVENT_READ)
                    events.register(link, selectors.EVENT_READ, handle)
                for stream in streams:
                    os.close(stream)
            elif key.fileobj in calls:
                link, pid = calls.pop(key.fileobj)
                events.unregister(key.fileobj)
                os.close(key.fileobj)
                status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with suppress(KeyError):
                    events.unregister(link)
                with suppress(OSError), link:
                    link.sendall(str(status).encode())
            elif key.data in calls:
                sent = key.fileobj.recv(16)
                for number in sent or [signal.SIGKILL]:
                    os.kill(calls[key.data][1], number)
                if not sent:
                    events.unregister(key.fileobj)
        while waiting and not calls:
            with suppress(OSError), waiting.pop() as link:
                link.sendall(b"idle")


def received(link: socket.socket) -> tuple[bytes, list[int]]:
    """A line, which is not whole if the other end has gone, and the streams that came with it."""
    text, streams = b"", []
    with suppress(ConnectionError):
        while not text.endswith(b"\n"):
            more, found, _, _ = socket.recv_fds(link, 2**16, 3)
            if not more:
                break
            text += more
            streams += found
    return text, streams


def live(arguments: list[str], directory: str, environment: dict[str, str], streams: list[int]) -> None:
    """Be the command, to its end."""
    from mifuse_cli import cli

    status = 1
    try:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        # Those of the nurse took another kind of file for theirs.
        sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
        os.chdir(directory)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = ["mifuse", *arguments]
        cli.main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    nurse(sys.argv[1])
