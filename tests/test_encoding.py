"""Clips read and encoded in batches by several processes: the matrices of one process and of one clip at a time."""

import multiprocessing
import os
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from conftest import RATE, save_encoder, tone, until

from mifuse_cli import audio
from mifuse_cli.audio import Excerpt
from mifuse_cli.errors import InputError
from mifuse_cli.model import encoding, workers
from mifuse_cli.model.encoding import Padding, encoded
from mifuse_cli.model.features import FrozenEncoder

CPU = torch.device("cpu")
GPU = SimpleNamespace(type="cuda")
"""Stands for one: what is done for it is done here, by a network on the CPU."""


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    """An encoder whose batches are padded."""
    return save_encoder(tmp_path_factory.mktemp("masked") / "e", "wavlm", feat_extract_norm="layer")


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)
    found = [root / f"{number:02}.wav" for number in range(60)]
    for path in found:
        soundfile.write(path, tone(200, 0.3, rng, rng.uniform(0.05, 3)), RATE)
    return found


class Net:
    """An encoder by its directory, on the CPU whatever the device, that notes in which processes it was loaded."""

    def __init__(self, directory, place):
        self.directory, self.place = directory, place

    def load(self, device):
        (self.place / f"{os.getpid()}.pid").touch()
        return FrozenEncoder(self.directory, "fp32").load(CPU)


def loaded(place):
    return {int(file.stem) for file in place.glob("*.pid")}


def one_by_one(paths, directory):
    encoder = FrozenEncoder(directory, "fp32").load(CPU)
    with torch.inference_mode():
        return {path: encoder([torch.from_numpy(audio.read(path))])[0].numpy() for path in paths}


def together(paths, network, device=CPU, processes=1, padding=None, **options):
    found = {}
    padding = Padding() if padding is None else padding
    clips = list(map(Excerpt, paths))
    for made, matrices in encoded(clips, network, device, workers=processes, padding=padding, **options):
        some = [clip.path for clip in made]
        assert matrices.dtype == np.float32 and len(matrices) == len(some)
        assert not found.keys() & set(some)
        found.update(zip(some, matrices, strict=True))
    assert multiprocessing.active_children() == []
    return found


@pytest.fixture
def at_once(monkeypatch):
    """Others are started after the first batch, and waited for before this process goes on."""
    start = workers._Workers.start

    def start_and_wait(self, make, count):
        start(self, make, count)
        until(lambda: len(self._at_work) == count or not self._results.empty())

    monkeypatch.setattr(workers, "_WORTH_S", 1e-9)
    monkeypatch.setattr(workers._Workers, "start", start_and_wait)


@pytest.mark.parametrize("device", [CPU, GPU], ids=["cpu", "gpu"])
@pytest.mark.parametrize("processes", [1, 2])
def test_equal_to_one_clip_at_a_time(paths, masked, tmp_path, monkeypatch, at_once, device, processes):
    read, here, threads = encoding._read_one, [], set()

    def noted(excerpt):
        here.append(excerpt)
        threads.add(threading.current_thread())
        return read(excerpt)

    monkeypatch.setattr(encoding, "_read_one", noted)
    expected = one_by_one(paths, masked)
    found = together(paths, Net(masked, tmp_path), device, processes)
    assert found.keys() == expected.keys()
    for path, matrix in expected.items():
        np.testing.assert_allclose(found[path], matrix, atol=1e-5)
    if device is CPU:
        assert (len(here) == len(paths)) == (processes == 1) and threads == {threading.main_thread()}
        assert len(loaded(tmp_path)) == processes
    else:  # others read, all of them threads
        assert (
            len(here) == len(paths) and len(threads) == processes and threading.main_thread() not in threads
        )
        assert loaded(tmp_path) == {os.getpid()}


def test_padding_is_counted(paths, masked, tmp_path):
    seconds = sum(len(audio.read(path)) for path in paths) / RATE
    counted, uncounted = Padding(), Padding()
    together(paths, Net(masked, tmp_path), padding=counted)
    assert counted.clips == pytest.approx(seconds) and 0 < counted.share <= 0.05
    unmasked = save_encoder(tmp_path / "e", "hubert", feat_extract_norm="layer", conv_pos_batch_norm=True)
    together(paths, Net(unmasked, tmp_path), padding=uncounted)  # batch norm: there is none
    assert uncounted.clips == pytest.approx(seconds) and uncounted.share == 0


@pytest.mark.parametrize("device", [CPU, GPU], ids=["cpu", "gpu"])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_damaged_clip_is_told_by_whichever_process_reads_it(
    paths, masked, tmp_path, at_once, device, processes
):
    short = np.zeros(RATE // 10)
    short[50] = np.nan
    soundfile.write(tmp_path / "bad.wav", short, RATE, subtype="FLOAT")  # last, since it is the shortest
    with pytest.raises(InputError, match=r"bad\.wav: holds NaN"):
        together([*paths[:20], tmp_path / "bad.wav"], Net(masked, tmp_path), device, processes)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("device", [CPU, GPU], ids=["cpu", "gpu"])
@pytest.mark.parametrize("processes", [1, 2])
def test_clips_that_cannot_be_read_are_left_out_where_wanted(
    paths, masked, tmp_path, at_once, device, processes
):
    soundfile.write(tmp_path / "bad.wav", np.full(RATE, np.nan), RATE, subtype="FLOAT")
    (tmp_path / "text.wav").write_text("no audio")
    bad = [tmp_path / "bad.wav", tmp_path / "text.wav", tmp_path / "absent.wav"]
    faults = {}
    found = together(
        [*bad[:2], *paths[:20], bad[2]],
        Net(masked, tmp_path),
        device,
        processes,
        unreadable=lambda clip, fault: faults.update({clip.path: str(fault)}),
    )
    assert found.keys() == set(paths[:20]) and faults.keys() == set(bad)
    for path, told in zip(bad, ("holds NaN", "cannot be decoded", "no such file"), strict=True):
        assert told in faults[path]
    for path, matrix in one_by_one(paths[:20], masked).items():
        np.testing.assert_allclose(found[path], matrix, atol=1e-5)
    if processes == 1:
        assert together(bad, Net(masked, tmp_path), device, unreadable=lambda clip, fault: None) == {}


def test_threads_are_as_before(paths, masked, tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        seen = []

        class Watched(Net):
            def load(self, device):
                network = super().load(device)

                def noted(clips):
                    seen.append(torch.get_num_threads())
                    return network(clips)

                noted.padding = 0.0
                return noted

        together(paths[:3], Watched(masked, tmp_path))
        assert set(seen) == {1} and torch.get_num_threads() == 2
        made = encoded(
            list(map(Excerpt, paths)), Watched(masked, tmp_path), CPU, workers=1, padding=Padding()
        )
        next(made)
        assert torch.get_num_threads() == 1
        made.close()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_as_many_processes_as_free_cores(paths, masked, tmp_path, monkeypatch):
    asked = []

    def spread(batches, total, here, make, *, processes):
        asked.append(processes)
        yield from ((batch, here(batch)) for batch in batches)

    monkeypatch.setattr(encoding, "spread", spread)
    monkeypatch.setattr(encoding, "free_cores", lambda: 7)
    together(paths[:2], Net(masked, tmp_path), processes=0)
    together(paths[:2], Net(masked, tmp_path), processes=3)
    assert asked == [7, 3]


def test_a_clip_that_is_sound_by_now_is_told_all_the_same(paths):
    """As on a disk that is away for a moment."""
    first = InputError("a.wav: cannot be read (Stale file handle).")
    assert str(encoding.unheard([Excerpt(paths[0])], {}, first)) == str(first)


class TestNotFinite:
    """Whatever a network makes of a sound clip that is no number to go on with is told with the clip's name."""

    class Loud:
        """Makes the peak of a clip, (1, 2), of a loud one another value."""

        padding = 0.0

        def __init__(self, value):
            self.value = value

        def load(self, device):
            return self

        def __call__(self, clips):
            peaks = torch.stack([one.abs().max() for one in clips])
            rows = torch.stack([peaks, torch.where(peaks > 0.8, self.value, peaks)], dim=1)
            return rows[:, None]

    @pytest.fixture
    def mixed(self, tmp_path):
        """Two clips of twenty are loud."""
        rng = np.random.default_rng(0)
        found = [tmp_path / f"{number:02}.wav" for number in range(20)]
        for number, path in enumerate(found):
            soundfile.write(path, tone(200, 0.9 if number in (3, 7) else 0.3, rng), RATE, subtype="FLOAT")
        return found

    @pytest.mark.parametrize("device", [CPU, GPU], ids=["cpu", "gpu"])
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e20])
    def test_the_clip_is_named(self, mixed, device, value):
        with pytest.raises(InputError, match=r"0[37]\.wav: the encoder makes NaN.*replace the file"):
            together(mixed, self.Loud(value), device)
        told = {}
        found = together(
            mixed,
            self.Loud(value),
            device,
            unreadable=lambda clip, fault: told.update({clip.path: str(fault)}),
        )
        assert told.keys() == {mixed[3], mixed[7]} and found.keys() == set(mixed) - told.keys()
        assert all(abs(found[path].max() - np.abs(audio.read(path)).max()) < 1e-6 for path in found)

    def test_large_ones_are_taken(self, mixed):
        assert together(mixed, self.Loud(1e14)).keys() == set(mixed)


def test_what_a_gpu_makes_is_waited_for_on_that_gpu(monkeypatch):
    """Which need not be the current one: with --device cuda:1, an event by itself would be of cuda:0."""
    second, told = torch.device("cuda:1"), []

    def copied(device, *, non_blocking):
        told.append(f"copied to {device}")
        return torch.ones(1, 1, 2)

    def stream(device):
        event = SimpleNamespace(synchronize=lambda: told.append("waited for"))
        return SimpleNamespace(record_event=lambda: told.append(f"event of {device}") or event)

    class OnTheSecond:
        padding = 0.0

        def __call__(self, clips):
            return SimpleNamespace(is_cuda=True, device=second, to=copied)

    monkeypatch.setattr(torch.cuda, "current_stream", stream)
    wait = encoding._under_way(OnTheSecond(), ([np.zeros(1600, np.float32)], {}))
    assert told == ["copied to cpu", "event of cuda:1"]
    assert wait().values.tolist() == [[[1, 1]]] and told[2:] == ["waited for"]
