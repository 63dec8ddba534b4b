"""Calls that are killed, whose files fail, or that are not alone; what is there then, and what the next call makes.

Each function tries one command a number of times, and returns what was done and what went wrong.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from commands import Call, Command, World, content
from file_faults import FULL, KILL, FileFaults, limit_size

from mifuse_cli.errors import MifuseError

NUMBERS = (FULL, errno.EIO, errno.EROFS, errno.EDQUOT, errno.ENOSPC)
TOLD = (3,)
"""Exit codes of a call whose files failed: bad input or output."""
Contents = dict[str, dict[str, str]]


@dataclass
class Tried:
    """What was tried, and what was found.

    Attributes:
        trials: those that count.
        seen: how often what happened.
        faults: one sentence each.
    """

    trials: int = 0
    seen: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def add(self, other: Tried) -> None:
        self.trials += other.trials
        self.seen += other.seen
        self.faults += other.faults


class Attack:
    """A command, with what it makes undisturbed: ``new``, in ``seconds``; and what it replaces: ``old``."""

    def __init__(self, world: World, command: Command) -> None:
        self.world, self.command = world, command
        self.earlier = Path(tempfile.mkdtemp(prefix=f"earlier-{command.name}-", dir=world.root))
        with world.place() as place:
            if command.given:
                shutil.copytree(world.inputs / command.given, place / command.out[0])
            else:
                self._must(self.start(place, *command.earlier), "the earlier output")
            self.old = self.contents(place)
            shutil.rmtree(place / "cache", ignore_errors=True)
            shutil.copytree(place, self.earlier, dirs_exist_ok=True)
        with self.trial(replaces=False) as place:
            start = time.monotonic()
            self._must(self.start(place), "the output")
            self.seconds = time.monotonic() - start
            self.new = self.contents(place)
            self._names = {"cache", *(path.name for path in place.iterdir())}
            files = [path for path in place.rglob("*") if path.is_file()]
            self.largest = max(path.stat().st_size for path in files)
        assert all(self.new.values()), self.new
        assert self.old != self.new or command.name == "merge"

    @contextmanager
    def trial(self, *, replaces: bool) -> Iterator[Path]:
        """A directory, with the earlier output if that is to be replaced."""
        with self.world.place() as place:
            if replaces or self.command.given:
                shutil.copytree(self.earlier, place, dirs_exist_ok=True)
            yield place

    def start(
        self, place: Path, *options: str, replaces: bool = False, before: FileFaults | int | None = None
    ) -> Call:
        """Call the command; with faults, or with a limit to the sizes of files in bytes."""
        if replaces and not self.command.given:
            options = (*options, "--force")

        def disturb() -> None:
            if isinstance(before, FileFaults):
                before.install()
            elif before is not None:
                limit_size(before)

        arguments = (self.command.name, *self.command.arguments, *options)
        return self.world.start(arguments, place, None if before is None else disturb)

    def contents(self, place: Path) -> Contents:
        """What is there under the names of its outputs."""
        asked = self.command.name == "query-lalm"
        return {out: content(place, out, asked=asked) for out in self.command.out}

    def partial(self, place: Path, *, replaces: bool) -> list[str]:
        """What of the outputs is neither new, nor what was there before, nor an artifact of the answers so far."""
        try:
            found = self.contents(place)
        except (MifuseError, OSError, ValueError) as error:
            return [f"{type(error).__name__}: {error}"]
        except Exception as error:  # of safetensors
            return [f"{type(error).__name__}: {error}"]
        if self.command.piecewise:
            return self._strange_files(found, replaces=replaces)
        if self.command.name == "query-lalm":  # saves what it has; it was read just now
            return []
        before = self._before(replaces=replaces)
        return [
            f"{out} holds neither what was there before nor the whole result"
            for out, files in found.items()
            if files not in (before[out], self.new[out])
        ]

    def strange(self, place: Path, *, replaces: bool) -> list[str]:
        """Which files are neither new nor old, read while they may be replaced: those of a directory one by one."""
        for turn in range(3):
            try:
                found = self.contents(place)
                break
            except Exception as error:  # it may have been replaced between two reads, but not each time
                if turn == 2:
                    return [f"cannot be read meanwhile: {error}"]
        return [] if self.command.name == "query-lalm" else self._strange_files(found, replaces=replaces)

    def _before(self, *, replaces: bool) -> Contents:
        return self.old if replaces or self.command.given else {out: {} for out in self.command.out}

    def _strange_files(self, found: Contents, *, replaces: bool) -> list[str]:
        before = self._before(replaces=replaces)
        return [
            f"{name} holds neither what was there before nor the whole result"
            for out, files in found.items()
            for name, digest in files.items()
            if digest not in (self.new[out].get(name), before[out].get(name))
            and not Path(name).name.startswith(".")
        ]

    def then(self, place: Path, *, replaces: bool) -> list[str]:
        """What is wrong with the next call, without a hand in between."""
        again = [self.command.again] if self.command.again and not replaces else []
        ended = self.start(place, *again, replaces=replaces).wait()
        if ended.code:
            return [f"the next call ended with {ended.code}: {ended.said.strip()[-300:]}"]
        try:
            found = self.contents(place)
        except Exception as error:
            return [f"the next call made what cannot be read: {error}"]
        faults = [
            f"the next call made another {out}" for out, files in found.items() if files != self.new[out]
        ]
        return faults + [f"the next call left {name}" for name in self.left(place)]

    def left(self, place: Path) -> list[str]:
        """Names of what a call that comes to its end does not leave."""
        return sorted({path.name for path in place.iterdir()} - self._names)

    def _must(self, call: Call, what: str) -> None:
        ended = call.wait()
        if ended.code:
            raise RuntimeError(f"{self.command.name}: {what} was not made: {ended.said}")


def killed(attack: Attack, count: int, rng: random.Random) -> Tried:
    """Kill -9 at random instants, until so many calls were killed before their end; every second replaces."""
    tried = Tried()
    for number in range(4 * count):
        if tried.trials == count:
            break
        replaces = number % 2 == 1
        with attack.trial(replaces=replaces) as place:
            call = attack.start(place, replaces=replaces)
            time.sleep(rng.uniform(0, attack.seconds))
            os.kill(call.pid, signal.SIGKILL)
            ended = call.wait()
            faults = attack.partial(place, replaces=replaces)
            left = bool(attack.left(place))
            faults += attack.then(place, replaces=replaces)
        if ended.code == -signal.SIGKILL:
            tried.trials += 1
            tried.seen["left something that the next call removed"] += left
        elif ended.code:
            faults.append(f"ended with {ended.code} before it was killed: {ended.said[-300:]}")
        tried.faults += [f"{attack.command.name}, kill {number}: {fault}" for fault in faults]
    return tried


def calls_of(attack: Attack, *, replaces: bool) -> int:
    """Number of the calls on files that can fail."""
    with attack.trial(replaces=replaces) as place:
        counted = FileFaults(attack.world.root)
        ended = attack.start(place, replaces=replaces, before=counted).wait()
        if ended.code or attack.contents(place) != attack.new:
            raise RuntimeError(f"{attack.command.name}: counting its calls changed it: {ended}")
        return counted.calls


def killed_at_calls(attack: Attack, count: int, rng: random.Random) -> Tried:
    """Kill -9 right before calls on files, spread over all of them, until so many were killed."""
    tried = Tried()
    for replaces in (False, True):
        calls, wanted = calls_of(attack, replaces=replaces), tried.trials + count // 2
        if not calls:
            continue
        for at in (at for _ in range(4) for at in spread(calls, count // 2, rng)):
            if tried.trials == wanted:
                break
            with attack.trial(replaces=replaces) as place:
                fault = FileFaults(attack.world.root, at, KILL)
                ended = attack.start(place, replaces=replaces, before=fault).wait()
                faults = attack.partial(place, replaces=replaces)
                left = bool(attack.left(place))
                faults += attack.then(place, replaces=replaces)
            tried.trials += ended.code == -signal.SIGKILL
            tried.seen["left something that the next call removed"] += left
            tried.faults += [
                f"{attack.command.name}, kill at call {at} of {calls}: {fault}" for fault in faults
            ]
    return tried


def failing(attack: Attack, count: int, rng: random.Random) -> Tried:
    """Errors of the file system at calls spread over all of them, once or lasting, each error in turn."""
    tried = Tried()
    for replaces in (False, True):
        calls = calls_of(attack, replaces=replaces)
        for turn, at in enumerate(spread(calls, count // 2, rng) if calls else ()):
            number, lasting = NUMBERS[turn % len(NUMBERS)], turn % 2 == 1
            fault = FileFaults(attack.world.root, at, number, lasting=lasting)
            what = f"{errno.errorcode.get(number, 'full')} {'from' if lasting else 'at'} call {at} of {calls}"
            tried.add(_one_failure(attack, fault, what, replaces=replaces))
    return tried


def limited(attack: Attack, count: int, rng: random.Random) -> Tried:
    """Files that cannot grow beyond random sizes up to that of the largest one of an undisturbed call."""
    tried = Tried()
    for number in range(count):
        limit = int(attack.largest * rng.random() ** 2)
        tried.add(_one_failure(attack, limit, f"files of at most {limit} bytes", replaces=number % 2 == 1))
    return tried


def _one_failure(attack: Attack, fault: FileFaults | int, what: str, *, replaces: bool) -> Tried:
    with attack.trial(replaces=replaces) as place:
        ended = attack.start(place, replaces=replaces, before=fault).wait()
        faults = attack.partial(place, replaces=replaces)
        if "Traceback" in ended.said or ended.code not in (0, *TOLD):
            faults.append(f"ended with {ended.code}: {ended.said.strip()[-1500:]}")
        elif not ended.code:
            with contextlib.suppress(Exception):
                if attack.contents(place) != attack.new and "could not be made smaller" not in ended.said:
                    faults.append("ended well, but without the whole result")
        faults += attack.then(place, replaces=replaces)
    seen = "ended well all the same" if not ended.code else f"exit code {ended.code}"
    return Tried(1, Counter([seen]), [f"{attack.command.name}, {what}: {fault}" for fault in faults])


def at_once(attack: Attack, count: int) -> Tried:
    """Two calls on one output at the same time, every second with --force and with one who reads meanwhile."""
    tried = Tried()
    for number in range(count):
        replaces = number % 2 == 1
        with attack.trial(replaces=replaces) as place, ThreadPoolExecutor() as waiting:
            calls = [attack.start(place, replaces=replaces) for _ in range(2)]
            ends = [waiting.submit(call.wait) for call in calls]
            faults = []
            while not all(end.done() for end in ends):
                faults += attack.strange(place, replaces=replaces)
                tried.seen["reads meanwhile"] += 1
                time.sleep(0.01)
            both = [end.result() for end in ends]
            if sorted(one.code for one in both) not in ([0, 0], [0, 3]):
                faults += [f"ended with {one.code}: {one.said.strip()[-600:]}" for one in both]
            elif attack.contents(place) != attack.new:
                faults.append("the result is another")
            faults += attack.then(place, replaces=replaces)
        tried.trials += 1
        tried.seen["one was refused" if any(one.code for one in both) else "both ended well"] += 1
        tried.faults += [f"{attack.command.name}, two at once: {fault}" for fault in faults]
    return tried


def spread(calls: int, count: int, rng: random.Random) -> list[int]:
    """So many numbers below ``calls``, one at random out of each of as many equal ranges, the last call always."""
    bounds = [round(part * calls / count) for part in range(count + 1)]
    chosen = [rng.randrange(a, max(a + 1, b)) for a, b in pairwise(bounds)]
    return [*chosen[:-1], calls - 1]
