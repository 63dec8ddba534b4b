"""Batches spread over processes: every one is made once, what goes wrong is told, and no process outlives its work."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import HANG_SECONDS, until

from mifuse_cli.errors import InputError, MifuseError
from mifuse_cli.model import workers
from mifuse_cli.model.workers import spread


@pytest.fixture(autouse=True)
def worth(monkeypatch):
    """However little is left, it is worth starting processes for."""
    monkeypatch.setattr(workers, "_WORTH_S", 1e-9)


@pytest.fixture(autouse=True)
def nobody_is_left():
    yield
    assert multiprocessing.active_children() == []


# What the other processes do: they find these functions by their names.


def begin(place, work):
    (place / f"{os.getpid()}.pid").touch()
    return work


def square(batch):
    return os.getpid(), [one**2 for one in batch]


def slow(batch):
    time.sleep(HANG_SECONDS)


def brief(batch):
    time.sleep(0.2)
    return batch


def bad_file(batch):
    raise InputError("a.wav: cannot be decoded")


def bug(batch):
    return 1 / 0


class Local(Exception):
    """Cannot be made from its message alone, and so not be sent as it is."""

    def __init__(self, one, other):
        super().__init__(one)


def strange(batch):
    raise Local("a message", 2)


def killed(batch):
    os.kill(os.getpid(), signal.SIGKILL)


def fail_to_begin():
    raise InputError("e: cannot be loaded")


def begun(place):
    return list(place.glob("*.pid"))


def batches_of_two(number=40):
    return [[one, one + 1] for one in range(0, number, 2)]


def results(place, work):
    """Results of six batches. With its second, this process waits until the others have taken all that is left."""
    left, own = batches_of_two(12), []

    def taken():
        while left:
            yield left.pop(0)

    def here(batch):
        own.append(batch)
        if len(own) > 1:
            until(lambda: not left or multiprocessing.active_children() == [])
        return square(batch)

    return list(spread(taken(), 12, here, partial(begin, place, work), processes=3))


def test_every_batch_is_made_once(tmp_path):
    found = results(tmp_path, square)
    assert sorted(batch for batch, _ in found) == batches_of_two(12)
    assert all(squares == [one**2 for one in batch] for batch, (_, squares) in found)
    own = [batch for batch, (pid, _) in found if pid == os.getpid()]
    others = {pid for _, (pid, _) in found} - {os.getpid()}
    assert len(own) == 2 and 1 <= len(others) <= len(begun(tmp_path)) <= 2


@pytest.mark.parametrize(
    ("work", "kind", "message"),
    [
        (bad_file, InputError, "^a.wav: cannot be decoded$"),
        (bug, ZeroDivisionError, "division by zero"),
        (strange, RuntimeError, "Local: a message"),
        (killed, MifuseError, r"was ended from outside.*fewer --workers"),
    ],
)
def test_what_goes_wrong_in_another_process_is_raised_here(tmp_path, work, kind, message):
    with pytest.raises(kind, match=message) as raised:
        results(tmp_path, work)
    if kind is ZeroDivisionError:
        assert any("in bug" in note for note in raised.value.__notes__)


def test_what_cannot_begin_is_told(tmp_path):
    def here(batch):
        until(lambda: batch == [0, 1] or multiprocessing.active_children() == [])
        return batch

    with pytest.raises(InputError, match="e: cannot be loaded"):
        for _ in spread(iter(batches_of_two()), 40, here, fail_to_begin, processes=2):
            pass


def test_batches_that_cannot_be_made_up(tmp_path):
    def some():
        yield [0, 1]
        yield [2, 3]
        until(lambda: begun(tmp_path))
        raise InputError("b.wav: holds no audio samples")

    with pytest.raises(InputError, match=r"b\.wav"):
        list(spread(some(), 40, square, partial(begin, tmp_path, square), processes=2))


@pytest.mark.parametrize("stop", [KeyboardInterrupt, InputError, GeneratorExit])
def test_no_process_outlives_what_stopped_the_work(tmp_path, stop):
    made = spread(iter(batches_of_two()), 40, square, partial(begin, tmp_path, slow), processes=3)
    next(made)
    next(made)
    until(lambda: begun(tmp_path))
    assert multiprocessing.active_children()
    if stop is GeneratorExit:
        made.close()
    else:
        with pytest.raises(stop):
            made.throw(stop("x"))
    assert multiprocessing.active_children() == []


@pytest.fixture
def none_may_start(monkeypatch):
    def fail(*_):
        raise AssertionError("a process was started")

    monkeypatch.setattr(workers._Workers, "start", fail)


def all_here(processes=3):
    found = list(spread(iter(batches_of_two()), 40, square, fail_to_begin, processes=processes))
    assert {pid for _, (pid, _) in found} == {os.getpid()} and len(found) == 20


def test_one_process(none_may_start):
    all_here(processes=1)
    with pytest.raises(AssertionError, match="was started"):
        all_here(processes=2)


def test_little_work_is_done_here(none_may_start, monkeypatch):
    monkeypatch.setattr(workers, "_WORTH_S", HANG_SECONDS)
    all_here()


def test_a_daemonic_process_starts_none(none_may_start, monkeypatch):
    monkeypatch.setattr(workers, "current_process", lambda: SimpleNamespace(daemon=True))
    all_here()


SCRIPT = """
import os, sys, time
from functools import partial
from pathlib import Path
sys.path.insert(0, {tests!r})
place = Path({place!r})
(place / f"{{os.getpid()}}.script").touch()  # no guard: a process that runs this again would be seen
import test_workers as t
t.workers._WORTH_S = 1e-9
def here(batch):
    t.until(lambda: batch == [0, 1] or t.begun(place))
    if batch != [0, 1]:
        (place / "at work").touch()
        time.sleep(t.HANG_SECONDS)
make = partial(t.begin, place, t.brief)
for _ in t.spread(iter(t.batches_of_two(10000)), 10000, here, make, processes=2):
    pass
"""


def runs(pid):
    """Whether a process is there, and is not just waiting to be buried."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("ended_by", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_its_parent(tmp_path, ended_by):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent), place=str(tmp_path)))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what is started may not ignore it
    try:
        parent = subprocess.Popen(
            [sys.executable, script], stderr=subprocess.PIPE, text=True, start_new_session=True
        )
    finally:
        signal.signal(signal.SIGINT, before)
    until(lambda: (tmp_path / "at work").exists())
    (child,) = (int(file.stem) for file in begun(tmp_path))
    assert runs(child)
    if ended_by == signal.SIGINT:
        os.killpg(parent.pid, ended_by)  # as a terminal does, to all of them
    else:
        os.kill(parent.pid, ended_by)
    _, told = parent.communicate(timeout=HANG_SECONDS)
    until(lambda: not runs(child))
    assert [int(file.stem) for file in tmp_path.glob("*.script")] == [parent.pid]
    if ended_by == signal.SIGINT:
        assert told.count("Traceback") == 1 and "KeyboardInterrupt" in told
