import subprocess
import sys
import tracemalloc
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_artifacts import DAMAGED, HEADER, MAKERS, f32, lalm, predictions, training

from mifuse_cli.artifacts import Lalm, Predictions, Source, read, read_header, writer, writing
from mifuse_cli.errors import ArtifactError, InputError

CLASSES = HEADER.classes
names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=8)


@st.composite
def answers(draw):
    """A LALM artifact of any size and contents, and places to cut its clips into blocks."""
    ids = np.array(sorted(draw(st.sets(names, min_size=1, max_size=12))))
    u, n = len(ids), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    probs = rng.dirichlet([1, 1], (u, n)).astype(np.float32)
    probs[rng.random((u, n)) < 0.3] = np.nan
    ends = rng.integers(0, 30, (u, n)).cumsum().reshape(u, n)
    made = Lalm(
        header=HEADER,
        utt_id=ids,
        audio_sha256=np.array(draw(st.lists(names, min_size=u, max_size=u))),
        probs=probs,
        status=rng.integers(0, 5, (u, n), np.uint8),
        order=rng.integers(0, 2, (u, n, 2), np.uint8),
        usage=rng.integers(-1, 900, (u, n, 5), np.int32),
        raw=rng.integers(0, 256, int(ends[-1, -1]), np.uint8),
        raw_end=ends,
    )
    return made, [0, *sorted(draw(st.sets(st.integers(1, u)))), u]


def block(made: Lalm, start: int, stop: int) -> dict[str, np.ndarray]:
    """Clips ``start`` to ``stop`` with their part of the raw answers."""
    ends = [0, *made.raw_end[:, -1].tolist()]
    parts = {name: array[start:stop] for name, array in made.arrays().items()}
    return {**parts, "raw": made.raw[ends[start] : ends[stop]]}


@settings(max_examples=30, deadline=None)
@given(answers(), st.sampled_from([20, 2**18]))
def test_blocks_make_the_same_artifact_as_the_whole(case, chunk):
    made, cuts = case
    with TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "CHUNK", chunk)
        path = Path(directory) / "x.h5"
        with writing(path, Lalm, CLASSES) as under_way:
            for start, stop in pairwise(cuts):
                under_way.append(**block(made, start, stop))
            digest = under_way.finish(HEADER)
        found = Lalm.load(path)
        assert digest == found.digest() == made.digest()
        assert found.header == HEADER
        for name, array in made.arrays().items():
            np.testing.assert_array_equal(found.arrays()[name], array)
        assert made.save(path) == digest


@pytest.mark.parametrize("kind", MAKERS)
def test_a_small_artifact_takes_little_room(tmp_path, kind):
    MAKERS[kind]().save(tmp_path / "x.h5")
    assert (tmp_path / "x.h5").stat().st_size < 50_000


def test_chunks_are_no_longer_than_what_is_written_at_once(tmp_path):
    for rows in (1, 10, 100_000):
        ids = np.array([f"{n:06}" for n in range(rows)])
        Predictions(header=HEADER, utt_id=ids, probs=f32([[0, 1]] * rows)).save(tmp_path / "x.h5")
        with h5py.File(tmp_path / "x.h5") as file:
            assert file["probs"].chunks == (min(rows, writer.CHUNK // 8), 2)
    with writing(tmp_path / "y.h5", Predictions, CLASSES) as under_way:
        for utt_id in ("a", "b"):
            under_way.append(**one(utt_id, 0, 1))
        under_way.finish(HEADER)
    with h5py.File(tmp_path / "y.h5") as file:
        assert file["probs"].chunks == (
            writer.CHUNK // 8,
            2,
        )  # of what came in blocks, the length is not known


def test_datasets_may_be_appended_apart(tmp_path):
    made = training()
    with writing(tmp_path / "x.h5", type(made), CLASSES) as under_way:
        under_way.append(utt_id=made.utt_id, columns_of_history=made.columns_of_history)
        for row in made.history:
            under_way.append(history=row[None])
        under_way.finish(HEADER)
    assert read(tmp_path / "x.h5").digest() == made.digest()


def one(utt_id, *probs):
    return {"utt_id": np.array([utt_id]), "probs": f32([probs])}


def samples(utt_id, n):
    return {"utt_id": np.array([utt_id]), "probs": f32([[[0, 1]] * n]), "point": f32([[0, 1]])}


BROKEN = {
    # kind, blocks, what is said of the last of them or, where all blocks are good, of the whole
    "unsorted across blocks": (Predictions, [one("b", 0, 1), one("a", 0, 1)], "not sorted and unique"),
    "repeated across blocks": (Predictions, [one("a", 0, 1), one("a", 0, 1)], "not sorted and unique"),
    "later distribution": (Predictions, [one("a", 0, 1), one("b", 1, 1)], "do not sum to 1"),
    "later classes": (Predictions, [one("a", 0, 1), one("b", 0, 0, 1)], "probs has 3 along K, .* 2"),
    "later samples": (Source, [samples("a", 3), samples("b", 2)], r"probs has rows of shape \(2, 2\)"),
    "lengths in a block": (
        Predictions,
        [{**one("a", 0, 1), "utt_id": np.array(["a", "b"])}],
        "probs has 1 along U, .* 2",
    ),
    "lengths of the whole": (
        Predictions,
        [one("a", 0, 1), {"utt_id": np.array(["b"])}],
        "utt_id has 2 along U, .* 1",
    ),
    "missing": (Predictions, [{"utt_id": np.array(["a"])}], "no dataset 'probs'"),
    "nothing": (Predictions, [], "no dataset 'utt_id'"),
    "no clips": (
        Predictions,
        [{"utt_id": np.zeros(0, str), "probs": np.zeros((0, 2))}],
        "not sorted and unique",
    ),
}


class TestNothingAppears:
    @pytest.fixture(params=["where there was nothing", "in place of an older artifact"])
    def path(self, request, tmp_path):
        """A path that must look the same at the end."""
        path = tmp_path / "x.h5"
        if request.param == "in place of an older artifact":
            predictions().save(path)
        before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
        yield path
        assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before

    @pytest.mark.parametrize("case", BROKEN)
    def test_if_the_schema_is_broken(self, path, case):
        kind, blocks, message = BROKEN[case]
        with pytest.raises(ArtifactError, match=message), writing(path, kind, CLASSES) as under_way:
            for arrays in blocks:
                under_way.append(**arrays)
            under_way.finish(HEADER)

    def test_if_it_is_not_finished(self, path):
        with (
            pytest.raises(RuntimeError, match="without finish"),
            writing(path, Predictions, CLASSES) as under_way,
        ):
            under_way.append(**one("a", 0, 1))

    @pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
    def test_if_it_fails_though_finished(self, path, failure):
        with pytest.raises(failure), writing(path, Predictions, CLASSES) as under_way:
            under_way.append(**one("a", 0, 1))
            under_way.finish(HEADER)
            raise failure


FULL = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from mifuse_cli.artifacts import Header, Predictions
from mifuse_cli.errors import InputError

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
ids = np.array([f"{number:05}" for number in range(20_000)])
probs = np.random.default_rng(0).dirichlet([1, 1], len(ids)).astype(np.float32)
made = Predictions(header=Header(classes=("a", "b")), utt_id=ids, probs=probs)
whole = made.save(Path("whole.h5")) and Path("whole.h5").stat().st_size
for limit in np.linspace(0, whole - 1, 12).astype(int).tolist():
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        made.save(Path("x.h5"))
    except InputError as error:
        assert "x.h5: cannot be written (File too large). Make room" in str(error)
    else:
        sys.exit(f"{limit} of {whole} bytes were enough")
"""


def test_a_full_disk_is_an_error_to_show(tmp_path):
    # In a process of its own: HDF5 would crash it at its end.
    done = subprocess.run([sys.executable, "-c", FULL], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert [file.name for file in tmp_path.iterdir()] == ["whole.h5"]


def test_wrong_use_is_refused_and_does_no_harm(tmp_path):
    with writing(tmp_path / "y.h5", Predictions, CLASSES) as under_way:
        with pytest.raises(TypeError, match="predictions has no datasets point"):
            under_way.append(**one("a", 0, 1), point=np.zeros(1))
        under_way.append(**one("a", 0, 1))
        with pytest.raises(ValueError, match="begun with the classes"):
            under_way.finish(replace(HEADER, classes=CLASSES[::-1]))
        under_way.finish(HEADER)
        with pytest.raises(RuntimeError, match="is finished"):
            under_way.append(**one("b", 0, 1))
    assert read(tmp_path / "y.h5").utt_id.tolist() == ["a"]


def test_memory_is_that_of_a_block(tmp_path):
    rows, blocks = 1_000, 30
    probs = np.tile(f32([0.25, 0.75]), (rows, 100, 1))  # 800 kB
    point = np.tile(f32([1, 0]), (rows, 1))
    tracemalloc.start()
    with writing(tmp_path / "x.h5", Source, CLASSES) as under_way:
        for number in range(blocks):
            ids = np.array([f"{number:02}-{row:03}" for row in range(rows)])
            under_way.append(utt_id=ids, probs=probs, point=point)
        under_way.finish(HEADER)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    with h5py.File(tmp_path / "x.h5") as file:
        assert file["probs"].nbytes == blocks * probs.nbytes
    assert peak < 6 * probs.nbytes


IN_DATASETS = {
    "tampered",
    "unnormalised",
    "no hash",
    "no dataset",
    "scalar",
    "words for numbers",
    "numbers for words",
}


class TestReadHeader:
    @pytest.mark.parametrize("kind", MAKERS)
    def test_is_that_of_the_artifact(self, tmp_path, kind):
        MAKERS[kind]().save(tmp_path / "x.h5")
        assert read_header(tmp_path / "x.h5") == (kind, HEADER)

    def test_reads_no_dataset(self, tmp_path):
        lalm().save(tmp_path / "x.h5")
        with h5py.File(tmp_path / "x.h5", "a") as file:
            file.clear()
        assert read_header(tmp_path / "x.h5") == ("lalm", HEADER)
        with pytest.raises(ArtifactError, match="no dataset"):
            read(tmp_path / "x.h5")

    @pytest.mark.parametrize("case", DAMAGED)
    def test_refuses_what_read_refuses_but_for_the_datasets(self, tmp_path, case):
        damage, error, message = DAMAGED[case]
        predictions().save(tmp_path / "x.h5")
        damage(tmp_path / "x.h5")
        if case in IN_DATASETS:
            assert read_header(tmp_path / "x.h5") == ("predictions", HEADER)
        else:
            with pytest.raises((InputError, ArtifactError), match=message) as caught:
                read_header(tmp_path / "x.h5")
            assert type(caught.value) is error
