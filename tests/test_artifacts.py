import fcntl
import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import HANG_SECONDS

from mifuse_cli import artifacts, files, lineage, provenance
from mifuse_cli.artifacts import (
    Compared,
    Evaluation,
    Fused,
    Header,
    Lalm,
    Parent,
    Predictions,
    Source,
    Target,
    Training,
)
from mifuse_cli.artifacts.schema import content_hash_of_schema_1
from mifuse_cli.config import StepConfig, option
from mifuse_cli.errors import ArtifactError, InputError

IDS = np.array(["a", "b"])
HEADER = Header(
    classes=("angry", "sad"),
    seed=3,
    config={"tau": 0.1},
    parameters={"teachers": ["lalm", "source"], "rate": None},
    parents=(Parent("lalm", "../l.h5", "0" * 64),),
)


def f32(values):
    return np.array(values, dtype=np.float32)


TWO = f32([[0.25, 0.75], [1, 0]])
NONE = [np.nan, np.nan]


def maker(kind, **values):
    return lambda **changes: kind(**{"header": HEADER, "utt_id": IDS, **values, **changes})


predictions = maker(Predictions, probs=TWO)
source = maker(Source, probs=np.stack([TWO, TWO[::-1]], axis=1), point=TWO)
fused = maker(
    Fused,
    probs=TWO,
    weights=f32([[0.5, 0.5], [0, 1]]),
    mean=f32([[[0.25, 0.75]] * 2, [NONE, [1, 0]]]),
    mi=f32([[0.1, 0.1], [np.nan, 0.2]]),
)
lalm = maker(
    Lalm,
    audio_sha256=np.array(["0f", "f0"]),
    probs=f32([[[0.5, 0.5], NONE, [1, 0]], [NONE, NONE, [0.1, 0.9]]]),
    status=np.array([[0, 2, 0], [2, 2, 1]], np.uint8),
    order=np.array([[[0, 1], [1, 0], [0, 1]]] * 2, np.uint8),
    usage=np.full((2, 3, 5), -1, np.int32),
    raw=np.frombuffer("jañein".encode(), np.uint8),
    raw_end=np.array([[2, 2, 4], [4, 4, 7]]),
)
truth, confusion = np.array([1, 0], np.uint8), np.array([[1, 0, 0], [0, 1, 0]])
bins = {
    "clips": np.array([0, 2]),
    "confidence": np.array([np.nan, 0.875]),
    "accuracy": np.array([np.nan, 1.0]),
}
evaluation = maker(
    Evaluation,
    probs=TWO,
    truth=truth,
    confusion=confusion,
    **{f"reliability_{name}": values for name, values in bins.items()},
)
history = np.array([[1, 0.5], [2, np.nan], [3, 0.25]])
training = maker(Training, columns_of_history=np.array(["epoch", "lösung"]), history=history)

compared = maker(Compared, systems=np.array(["lalm", "shot"]), probs=np.stack([TWO, f32([NONE, [0, 1]])]))

target = maker(Target, truth=truth, speaker=np.array(["s1", "s2"]))

MAKERS = {
    make().kind: make for make in (lalm, source, fused, predictions, evaluation, compared, target, training)
}


def test_every_kind_is_made_here():
    assert artifacts.KINDS.keys() == MAKERS.keys()


class TestRoundTrip:
    @pytest.mark.parametrize("kind", MAKERS)
    def test_what_is_saved_is_loaded(self, tmp_path, kind):
        made = MAKERS[kind]()
        sha256 = made.save(tmp_path / "deep/er/x.h5")
        found = type(made).load(tmp_path / "deep/er/x.h5")
        assert found.header == HEADER and found.digest() == sha256
        assert found.arrays().keys() == made.arrays().keys()
        for name, array in made.arrays().items():
            np.testing.assert_array_equal(found.arrays()[name], array)
            assert found.arrays()[name].dtype.kind == array.dtype.kind
        assert [path.name for path in (tmp_path / "deep/er").iterdir()] == ["x.h5"]

    def test_other_programs_find_everything_in_the_file(self, tmp_path):
        sha256 = fused().save(tmp_path / "x.h5")
        with h5py.File(tmp_path / "x.h5") as file:
            attributes = dict(file.attrs)
            assert attributes.pop("classes").tolist() == ["angry", "sad"]
            for name, expected in (("config", HEADER.config), ("parameters", HEADER.parameters)):
                assert json.loads(attributes.pop(name)) == expected
            parents = json.loads(attributes.pop("parents"))
            assert parents == [{"role": "lalm", "path": "../l.h5", "sha256": "0" * 64}]
            assert json.loads(attributes.pop("versions"))["numpy"] == np.__version__
            assert attributes.pop("command") and attributes.pop("created").endswith("+00:00")
            assert attributes == {"kind": "fused", "schema_version": 2, "seed": 3, "sha256": sha256}
            assert file["mean"].attrs["axes"] == "U T K" and file["mean"].attrs["holds"]
            assert file["mean"].dtype == np.float32 and file["utt_id"].asstr()[1] == "b"

    def test_other_number_types_are_saved_as_the_schema_says(self, tmp_path):
        predictions(probs=np.array([[0.1, 0.9], [1, 0]])).save(tmp_path / "x.h5")
        found = Predictions.load(tmp_path / "x.h5")
        assert found.probs.dtype == np.float32
        np.testing.assert_allclose(found.probs, [[0.1, 0.9], [1, 0]], rtol=1e-6)

    def test_raw_answers_are_cut_at_their_ends(self):
        answers = [[lalm().raw_answer(u, n) for n in range(3)] for u in range(2)]
        assert answers == [["ja", "", "ñ"], ["", "", "ein"]]


class TestDigest:
    def test_follows_content(self):
        base = predictions().digest()
        assert predictions(probs=TWO[::-1]).digest() != base
        assert predictions(utt_id=np.array(["a", "c"])).digest() != base
        assert predictions(header=replace(HEADER, classes=("sad", "angry"))).digest() != base
        assert predictions(header=replace(HEADER, parameters={})).digest() != base
        assert type("Other", (Predictions,), {"kind": "other"})(HEADER, IDS, TWO).digest() != base

    def test_does_not_follow_circumstances(self):
        later = replace(
            HEADER, created="2001-01-01", versions={}, command="other", seed=9, parents=(), config={}
        )
        assert predictions(header=later).digest() == predictions().digest()


BROKEN = {
    "NaN in part of a row": (predictions, {"probs": f32([[0.5, np.nan], [1, 0]])}, "part of a row"),
    "infinite": (predictions, {"probs": f32([[np.inf, 0], [1, 0]])}, "infinity"),
    "not normalised": (predictions, {"probs": f32([[0.5, 0.6], [1, 0]])}, "do not sum to 1"),
    "negative": (predictions, {"probs": f32([[1.5, -0.5], [1, 0]])}, "negative"),
    "weights": (fused, {"weights": f32([[0.5, 0.4], [0, 1]])}, "weights: .*do not sum to 1"),
    "unsorted": (predictions, {"utt_id": IDS[::-1]}, "not sorted"),
    "repeated": (predictions, {"utt_id": np.array(["a", "a"])}, "not sorted and unique"),
    "no clips": (predictions, {"utt_id": IDS[:0], "probs": TWO[:0]}, "not sorted and unique"),
    "more clips": (predictions, {"utt_id": np.array(["a", "b", "c"])}, "probs has 2 along U, .* 3"),
    "more classes": (predictions, {"probs": f32([[0.5, 0.5, 0]] * 2)}, "probs has 3 along K, .* 2"),
    "samples": (lalm, {"status": np.zeros((2, 4), np.uint8)}, "status has 4 along N, .* 3"),
    "axes": (predictions, {"probs": TWO[0]}, "1 axes, expected U x K"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_content_is_refused_and_leaves_no_file(tmp_path, case):
    make, changes, message = BROKEN[case]
    with pytest.raises(ArtifactError, match=message):
        make(**changes).save(tmp_path / "x.h5")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_while_writing_leaves_the_old_file(tmp_path):
    predictions().save(tmp_path / "x.h5")
    with pytest.raises(TypeError):
        predictions(header=replace(HEADER, config={"not JSON": object()})).save(tmp_path / "x.h5")
    assert Predictions.load(tmp_path / "x.h5").header == HEADER
    assert len(list(tmp_path.iterdir())) == 1


def edit(change):
    def damage(path):
        with h5py.File(path, "a") as file:
            change(file)

    return damage


def replaced(name, values):
    def change(file):
        del file[name]
        file[name] = values

    return edit(change)


DAMAGED = {
    # what is done to a saved artifact, which error, what it says
    "missing": (Path.unlink, InputError, "no such file"),
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]), InputError, "truncated"),
    "empty": (lambda p: p.write_bytes(b""), InputError, "no mifuse artifact, but an empty file"),
    "text": (
        lambda p: p.write_text("file,emotion\n"),
        InputError,
        r"no mifuse artifact, but text\. Expected",
    ),
    "audio": (lambda p: p.write_bytes(b"RIFF" + bytes(99)), InputError, "no mifuse artifact, but a WAV file"),
    "tampered": (edit(lambda f: f["probs"].write_direct(TWO[::-1].copy())), ArtifactError, "recorded hash"),
    "unnormalised": (edit(lambda f: f["probs"].write_direct(TWO * 2)), ArtifactError, "do not sum to 1"),
    "no hash": (edit(lambda f: f.attrs.pop("sha256")), ArtifactError, "recorded hash"),
    "foreign": (edit(lambda f: f.attrs.clear()), ArtifactError, r"no mifuse artifact \(kind None\)"),
    "foreign kind": (edit(lambda f: f.attrs.update(kind="movie")), ArtifactError, "kind 'movie'"),
    "strange kind": (edit(lambda f: f.attrs.update(kind=[1, 2])), ArtifactError, "no mifuse artifact"),
    "newer": (edit(lambda f: f.attrs.update(schema_version=3)), ArtifactError, "schema 3, .* up to 2"),
    "no seed": (edit(lambda f: f.attrs.pop("seed")), ArtifactError, "root attributes are damaged"),
    "no JSON": (edit(lambda f: f.attrs.update(parents="{")), ArtifactError, "root attributes are damaged"),
    "no dataset": (edit(lambda f: f.pop("probs")), ArtifactError, "no dataset 'probs'"),
    "scalar": (replaced("probs", 1.0), ArtifactError, "damaged"),
    "words for numbers": (replaced("probs", [["a", "b"]] * 2), ArtifactError, "damaged"),
    "numbers for words": (replaced("utt_id", [1, 2]), ArtifactError, "damaged"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files_are_refused(tmp_path, case):
    damage, error, message = DAMAGED[case]
    predictions().save(tmp_path / "x.h5")
    damage(tmp_path / "x.h5")
    with pytest.raises(error, match=message) as caught:
        Predictions.load(tmp_path / "x.h5")
    assert type(caught.value) is error and "x.h5" in str(caught.value)


def test_another_kind_is_refused(tmp_path):
    predictions().save(tmp_path / "x.h5")
    with pytest.raises(ArtifactError, match="is of kind 'predictions', expected 'fused'"):
        Fused.load(tmp_path / "x.h5")


def test_joins_are_refused_over_other_classes_or_clips():
    one, turned = predictions(), predictions(header=replace(HEADER, classes=("sad", "angry")))
    artifacts.check_same_clips(one, "one", lalm(), "two")
    with pytest.raises(ArtifactError, match="one: classes are angry, sad but two has sad, angry"):
        artifacts.check_same_clips(one, "one", turned, "two")
    more = predictions(utt_id=np.array(["a", "b", "c", "d"]), probs=TWO[[0, 1, 0, 1]])
    for pair in ((one, "one", more, "more"), (more, "more", one, "one")):
        with pytest.raises(ArtifactError, match="more has 2 clips that one has not, first 'c'"):
            artifacts.check_same_clips(*pair)


class TestAtomicWriting:
    def test_a_file_takes_its_place_at_the_end(self, tmp_path):
        (tmp_path / "x").write_text("old")
        with files.atomic_file(tmp_path / "x") as temporary:
            temporary.write_text("new")
            assert (tmp_path / "x").read_text() == "old"
        assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("x", "new")]

    @pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
    def test_a_failure_leaves_the_old_file(self, tmp_path, failure):
        (tmp_path / "x").write_text("old")
        with pytest.raises(failure), files.atomic_file(tmp_path / "x") as temporary:
            temporary.write_text("half")
            raise failure
        assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("x", "old")]

    @pytest.mark.parametrize("can_exchange", [True, False])
    def test_a_directory_takes_the_place_of_a_directory(self, tmp_path, monkeypatch, can_exchange):
        if not can_exchange:
            monkeypatch.setattr(files, "_renamer", lambda: None)
        for name in ("1", "2"):
            with files.atomic_directory(tmp_path / "x") as temporary:
                (temporary / name).touch()
        assert [p.relative_to(tmp_path).as_posix() for p in sorted(tmp_path.rglob("*"))] == ["x", "x/2"]

    def test_a_directory_does_not_take_the_place_of_a_file(self, tmp_path):
        (tmp_path / "x").write_text("a file")
        with pytest.raises(InputError, match="exists by now"), files.atomic_directory(tmp_path / "x"):
            pass
        assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("x", "a file")]

    @pytest.mark.parametrize("atomic", [files.atomic_file, files.atomic_directory])
    def test_what_another_process_wrote_meanwhile_is_kept(self, tmp_path, atomic):
        late, first = (atomic(tmp_path / "x", replace=False) for _ in range(2))
        with pytest.raises(InputError, match="exists by now"), late, first as temporary:
            (temporary / "first" if temporary.is_dir() else temporary).write_text("first")
        assert [p.name for p in tmp_path.iterdir()] == ["x"]
        assert [p.read_text() for p in tmp_path.rglob("*") if p.is_file()] == ["first"]

    @pytest.mark.parametrize("atomic", [files.atomic_file, files.atomic_directory])
    def test_a_link_is_replaced_and_not_written_through(self, tmp_path, atomic):
        (tmp_path / "target").mkdir()
        with atomic(tmp_path / "target/x") as temporary:
            (temporary / "a" if temporary.is_dir() else temporary).write_text("old")
        (tmp_path / "x").symlink_to(tmp_path / "target/x")
        with atomic(tmp_path / "x") as temporary:
            (temporary / "a" if temporary.is_dir() else temporary).write_text("new")
        assert not (tmp_path / "x").is_symlink()
        assert {p.read_text() for p in (tmp_path / "target").rglob("*") if p.is_file()} == {"old"}
        assert {p.name for p in tmp_path.iterdir()} == {"x", "target"}

    @pytest.mark.parametrize("atomic", ["atomic_file", "atomic_directory"])
    def test_what_a_killed_process_left_is_removed_by_the_next_and_what_a_live_one_writes_is_not(
        self, tmp_path, atomic
    ):
        code = (
            "import os, signal, sys\nfrom pathlib import Path\nfrom mifuse_cli import files\n"
            f"with files.{atomic}(Path(sys.argv[1])) as temporary:\n"
            "    (temporary / 'a' if temporary.is_dir() else temporary).write_text('half')\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        subprocess.run([sys.executable, "-c", code, str(tmp_path / "x")], timeout=HANG_SECONDS)
        left = list(tmp_path.iterdir())
        assert len(left) == 1 and left[0].name.startswith(".x.")
        with getattr(files, atomic)(tmp_path / "x") as temporary:
            assert list(tmp_path.iterdir()) == [temporary]
            files.remove_leftovers(tmp_path / "x")
            assert list(tmp_path.iterdir()) == [temporary]

    def test_a_kill_between_two_renames_is_put_right_by_the_next_run(self, tmp_path, monkeypatch):
        monkeypatch.setattr(files, "_renamer", lambda: None)
        (tmp_path / "x").mkdir()
        (tmp_path / "x/old").touch()
        rename = os.rename

        def dies(a, b):
            rename(a, b)
            if str(b).endswith(".old"):
                raise KeyboardInterrupt

        monkeypatch.setattr(os, "rename", dies)
        with pytest.raises(KeyboardInterrupt), files.atomic_directory(tmp_path / "x"):
            pass
        monkeypatch.setattr(os, "rename", rename)
        assert not (tmp_path / "x").exists()
        files.remove_leftovers(tmp_path / "x")
        assert [p.relative_to(tmp_path).as_posix() for p in sorted(tmp_path.rglob("*"))] == ["x", "x/old"]

    def test_names_may_be_as_long_as_the_file_system_takes(self, tmp_path):
        with files.atomic_file(tmp_path / ("ä" * 127)) as temporary:
            temporary.write_text("x")
        assert [p.read_text() for p in tmp_path.iterdir()] == ["x"]
        with pytest.raises(InputError, match="too long"), files.atomic_file(tmp_path / ("x" * 300)):
            pass

    def test_a_failure_leaves_the_old_directory(self, tmp_path):
        (tmp_path / "x").mkdir()
        with pytest.raises(RuntimeError), files.atomic_directory(tmp_path / "x") as temporary:
            (temporary / "half").touch()
            raise RuntimeError
        assert [p.name for p in tmp_path.rglob("*")] == ["x"]

    def test_places_that_cannot_be_written(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(InputError, match="file: cannot be created"):
            predictions().save(tmp_path / "file/x.h5")
        (tmp_path / "directory").mkdir()
        with pytest.raises(InputError, match="directory: is a directory"):
            predictions().save(tmp_path / "directory")
        assert {p.name for p in tmp_path.iterdir()} == {"file", "directory"}


@dataclass(frozen=True, kw_only=True)
class MixConfig(StepConfig):
    out: Path = option(help="Out.")
    tau: float = option(0.1, "Tau.")
    url: str = option("", "Where.")


@pytest.fixture
def family(tmp_path):
    """Directory with a model, its source samples, LALM answers, and what was fused from them."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    (tmp_path / "model/model.safetensors").write_bytes(b"weights")
    header = Header(classes=HEADER.classes, command="mifuse fuse --tau 0.1")
    model = lineage.parent("model", tmp_path / "model", tmp_path / "source.h5")
    source(header=replace(header, parents=(model,))).save(tmp_path / "source.h5")
    lalm(header=header).save(tmp_path / "lalm.h5")
    others = [Parent(role, "model", "not compared") for role in ("clips", "labels", "encoder")]
    fused(header=replace(header, parents=(*parents(tmp_path), *others))).save(tmp_path / "fused.h5")
    return tmp_path


def parents(directory):
    out = directory / "out.h5"
    return [lineage.parent(role, directory / f"{role}.h5", out) for role in ("lalm", "source")]


class TestLineage:
    def check(self, family):
        lineage.check_parents(Fused.load(family / "fused.h5"), family / "fused.h5")

    def test_parents_are_relative_and_hashed(self, family):
        found = lineage.parent("lalm", family / "lalm.h5", family / "exp/a/out.h5")
        assert found == Parent("lalm", "../../lalm.h5", Lalm.load(family / "lalm.h5").digest())

    def test_the_digest_of_a_model_is_that_of_its_configuration_and_weights(self, family):
        before = lineage.digest(family / "model")
        (family / "model/predictions.h5").touch()
        assert lineage.digest(family / "model") == before
        (family / "model/config.json").write_text('{"dropout": 0}')
        assert lineage.digest(family / "model") != before
        (family / "empty").mkdir()
        with pytest.raises(InputError, match="holds no model"):
            lineage.digest(family / "empty")

    def test_unchanged_parents_pass_and_so_do_absent_ones(self, family):
        self.check(family)
        shutil.rmtree(family / "model")
        (family / "lalm.h5").unlink()
        self.check(family)

    def test_a_changed_parent_is_refused_with_the_command(self, family):
        source(header=HEADER, point=TWO[::-1]).save(family / "source.h5")
        with pytest.raises(ArtifactError, match=r"stale: its source .*\.h5 .*: mifuse fuse --tau 0\.1$"):
            self.check(family)

    def test_a_changed_grandparent_is_refused(self, family):
        (family / "model/model.safetensors").write_bytes(b"other weights")
        with pytest.raises(ArtifactError, match=r"source\.h5: is stale: its model"):
            self.check(family)

    def test_an_output_is_overwritten_only_when_told(self, family):
        out = family / "fused.h5"
        with pytest.raises(InputError, match=r"exists already.*--force"):
            lineage.refuse_overwrite(MixConfig(out=out), out, Fused)
        lineage.refuse_overwrite(MixConfig(out=out, force=True), out, Fused)
        lineage.refuse_overwrite(MixConfig(out=out, update=True), out, Fused)
        lineage.refuse_overwrite(MixConfig(out=family / "new.h5"), family / "new.h5", Fused)

    @pytest.mark.parametrize("told", [{}, {"force": True}, {"update": True}])
    @pytest.mark.parametrize("kind", [Fused, Training])
    def test_what_is_something_else_is_never_overwritten(self, family, kind, told):
        (family / "notes.csv").write_text("file,emotion\n")
        (family / "cut.h5").write_bytes((family / "fused.h5").read_bytes()[:1000])
        (family / "nowhere").symlink_to(family / "absent")
        (family / "empty").mkdir()
        for name in ("notes.csv", "lalm.h5", "cut.h5", "model", "nowhere"):
            with pytest.raises(InputError, match=r"(neither|an)other|replaces it"):
                lineage.refuse_overwrite(MixConfig(out=family / name, **told), family / name, kind)
        lineage.refuse_overwrite(MixConfig(out=family / "empty", **told), family / "empty", Training)

    def test_a_checkpoint_with_further_files_is_not_overwritten(self, family):
        training().save(family / "model/train.h5")
        config = MixConfig(out=family / "model", force=True)
        lineage.refuse_overwrite(config, config.out, Training)
        (family / "model/eval.h5").touch()
        with pytest.raises(InputError, match=r"which would be lost: eval\.h5"):
            lineage.refuse_overwrite(config, config.out, Training)

    def test_an_input_is_never_the_output(self, family):
        (family / "link").symlink_to(family / "fused.h5")
        for name in ("fused.h5", "link", "./fused.h5"):
            config = MixConfig(out=family / "fused.h5", force=True, url=str(family / name))
            with pytest.raises(InputError, match=r"--url .* is read from there"):
                lineage.refuse_overwrite(config, config.out, Fused)
        training().save(family / "model/train.h5")
        config = MixConfig(out=family / "model", force=True, url=str(family / "model/config.json"))
        with pytest.raises(InputError, match=r"--url .* is read from there"):
            lineage.refuse_overwrite(config, config.out, Training)


class TestIsCurrent:
    def make(self, family, **values):
        config = MixConfig(out=family / "out.h5", update=True, **values)
        fused(header=lineage.header(config, HEADER.classes, parents(family), tau=config.tau)).save(config.out)
        return config

    def test_while_nothing_changed(self, family):
        config = self.make(family)
        assert lineage.is_current(config, config.out, parents(family))
        assert lineage.is_current(replace(config, device="cpu"), config.out, parents(family))

    def test_what_a_process_killed_right_after_it_had_made_it_left_is_removed(self, family):
        config = self.make(family)
        left = family / ".out.h5.0123abcd.tmp"
        os.link(config.out, left)
        assert not lineage.is_current(replace(config, tau=0.2), config.out, parents(family)) and left.exists()
        assert lineage.is_current(config, config.out, parents(family)) and not left.exists()

    @pytest.mark.parametrize("changes", [{"tau": 0.2}, {"seed": 1}, {"update": False}, {"force": True}])
    def test_not_under_other_settings(self, family, changes):
        config = self.make(family)
        assert not lineage.is_current(replace(config, **changes), config.out, parents(family))

    def test_not_with_other_parents(self, family):
        config = self.make(family)
        assert not lineage.is_current(config, config.out, parents(family)[::-1])
        assert not lineage.is_current(config, config.out, parents(family)[:1])
        source(header=HEADER, point=TWO[::-1]).save(family / "source.h5")
        assert not lineage.is_current(config, config.out, parents(family))

    def test_not_if_it_is_damaged_or_absent(self, family):
        config = self.make(family)
        config.out.write_bytes(config.out.read_bytes()[:1000])
        assert not lineage.is_current(config, config.out, parents(family))
        config.out.unlink()
        assert not lineage.is_current(config, config.out, parents(family))

    def test_a_checkpoint_is_current_only_with_the_weights_it_was_saved_with(self, family):
        config = MixConfig(out=family / "model", update=True)
        sha256 = lineage.digest(config.out)
        header = lineage.header(config, HEADER.classes, [], model_sha256=sha256)
        training(header=header).save(config.out / "train.h5")
        assert lineage.is_current(config, config.out, [])
        (config.out / "model.safetensors").write_bytes(b"other")
        assert not lineage.is_current(config, config.out, [])


SECRETS = [
    ("--base-url https://me:pa55@host/v1", "--base-url https://***@host/v1"),
    ("--base-url=http://token@host:80/v1 -o x", "--base-url=http://***@host:80/v1 -o x"),
    ("https://me:p@55@host/v1", "https://***@host/v1"),
    ("https://host/v1?key=pa55&n=1 -o x", "https://host/v1?*** -o x"),
    ("https://host?mail=me@pa55", "https://host?***"),
    ("https://host/v1#pa55 -o x", "https://host/v1#*** -o x"),
    ("https://me:a#b@host/v1 --out a#7", "https://***@host/v1 --out a#7"),
    ("http://a:b@one http://c:d@two", "http://***@one http://***@two"),
    ("mifuse fuse --out me@home/x.h5", "mifuse fuse --out me@home/x.h5"),
]


class TestProvenance:
    @pytest.mark.parametrize(("text", "public"), SECRETS)
    def test_secrets_are_starred(self, text, public):
        assert provenance.without_secrets(text) == public

    def test_the_command_can_be_given_to_a_shell(self, monkeypatch):
        words = [
            "query-lalm",
            "--wav-dir",
            "my wav",
            "--prompt",
            "it's.yaml",
            "--base-url",
            "http://h/v1?key=a",
        ]
        monkeypatch.setattr(sys, "argv", ["/usr/bin/mifuse", *words])
        told = shlex.split(provenance.command_line())
        assert told == ["mifuse", *words[:-1], "http://h/v1?***"]

    def test_no_secret_reaches_an_artifact(self, family, monkeypatch):
        url = "https://me:pa55@host/v1?key=pa55"
        monkeypatch.setattr(sys, "argv", ["/usr/bin/mifuse", "query-lalm", "--url", url])
        config = TestIsCurrent().make(family, url=url)
        with h5py.File(config.out) as file:
            assert file.attrs["command"] == "mifuse query-lalm --url 'https://***@host/v1?***'"
            assert "pa55" not in str(dict(file.attrs))
        assert lineage.is_current(config, config.out, parents(family))

    def test_draws_depend_on_seed_and_name(self):
        keys = ((0, "a"), (0, "a"), (0, "b"), (1, "a"), (0, "a", 1))
        draws = [provenance.rng(*key).random() for key in keys]
        assert draws[0] == draws[1] and len(set(draws)) == 4


class TestLocks:
    """Artifacts that another process, or a network file system, keeps from being read are not called damaged."""

    def test_a_locked_artifact_is_read(self, tmp_path):
        artifacts.Predictions(header=HEADER, utt_id=IDS, probs=f32([[1, 0], [0, 1]])).save(tmp_path / "a.h5")
        with (tmp_path / "a.h5").open("r+b") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            assert artifacts.read(tmp_path / "a.h5").kind == "predictions"

    @pytest.mark.parametrize(
        ("raised", "message"),
        [
            (
                OSError("unable to lock file, errno = 11, error message = 'x'"),
                "is locked by another.*not damaged",
            ),
            (
                OSError("unable to lock file, errno = 37, error message = 'x'"),
                "network file system.*not damaged",
            ),
            (OSError(524, "Unknown error 524"), "network file system.*not damaged"),
            (OSError("can't read, errno = 5, error message = 'x'"), "cannot be read now .Input/output error"),
            (PermissionError(13, "Permission denied"), "cannot be read now .Permission denied"),
            (FileNotFoundError(2, "No such file"), "cannot be read now .No such file"),
            (OSError(116, "Stale file handle"), "cannot be read now .Stale file handle"),
        ],
    )
    def test_what_passes_by_itself(self, tmp_path, monkeypatch, raised, message):
        def fail(*_, **__):
            raise raised

        predictions().save(tmp_path / "a.h5")
        monkeypatch.setattr(h5py, "File", fail)
        with pytest.raises(InputError, match=message) as told:
            artifacts.read(tmp_path / "a.h5")
        assert "anew" not in str(told.value)

    def test_answers_that_were_paid_for_are_not_to_be_asked_for_again(self, tmp_path):
        (tmp_path / "a.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
        with pytest.raises(InputError, match=r"Make it anew\.$"):
            artifacts.read(tmp_path / "a.h5")
        (tmp_path / "a.h5.journal.sqlite").touch()
        with pytest.raises(
            InputError, match=r"the answers are in a\.h5\.journal\.sqlite, so that only what is missing"
        ):
            artifacts.read(tmp_path / "a.h5")


def as_of_schema_1(path):
    """Turn a saved artifact into what mifuse before schema 2 wrote."""
    with artifacts.reading(path) as found:
        parts = [(name, found.shape(name), found._blocks(name)) for name in sorted(found.names)]
        sha256 = content_hash_of_schema_1(found.kind, found.header, parts)
    with h5py.File(path, "a", locking=False) as file:
        file.attrs.update(schema_version=1, sha256=sha256)
        for dataset in file.values():
            dataset.attrs.pop("sha256")


class TestReading:
    def test_in_slices(self, tmp_path):
        made = lalm()
        made.save(tmp_path / "x.h5")
        with artifacts.reading(tmp_path / "x.h5", Lalm) as found:
            assert found.kind == "lalm" and found.header == HEADER and "hidden" not in found
            assert found.shape("status") == (2, 3) and found.sha256 == made.digest()
            column = found.column("probs")
            assert (len(column), column.shape, column.dtype) == (2, (2, 3, 2), np.float32)
            np.testing.assert_array_equal(column[1:], made.probs[1:])
            np.testing.assert_array_equal(found.read("audio_sha256"), made.audio_sha256)

    @pytest.mark.parametrize("how", ["read", "column"])
    def test_what_was_edited_is_found_when_it_is_read(self, tmp_path, how):
        source(hidden=np.zeros((2, 1, 3))).save(tmp_path / "x.h5")
        with h5py.File(tmp_path / "x.h5", "a") as file:
            file["hidden"][0] = 1
        with artifacts.reading(tmp_path / "x.h5") as found:
            getattr(found, how)("probs")
            with pytest.raises(ArtifactError, match=r"x\.h5: content does not match its recorded hash"):
                getattr(found, how)("hidden")

    def test_hashes_of_datasets_cannot_be_exchanged(self, tmp_path):
        source().save(tmp_path / "x.h5")
        source(point=TWO[::-1]).save(tmp_path / "y.h5")
        with h5py.File(tmp_path / "x.h5", "a") as file, h5py.File(tmp_path / "y.h5") as other:
            file["point"][:] = other["point"][:]
            file["point"].attrs["sha256"] = other["point"].attrs["sha256"]
        with pytest.raises(ArtifactError, match="recorded hash"):
            lineage.digest(tmp_path / "x.h5")
        with pytest.raises(ArtifactError, match="recorded hash"):
            Source.load(tmp_path / "x.h5")

    @pytest.mark.parametrize("kind", MAKERS)
    def test_of_the_first_schema(self, tmp_path, kind):
        MAKERS[kind]().save(tmp_path / "x.h5")
        as_of_schema_1(tmp_path / "x.h5")
        found = artifacts.read(tmp_path / "x.h5")
        for name, array in MAKERS[kind]().arrays().items():
            np.testing.assert_array_equal(found.arrays()[name], array)
        with h5py.File(tmp_path / "x.h5") as file:
            recorded = file.attrs["sha256"]
        assert lineage.digest(tmp_path / "x.h5") == recorded

    def test_of_the_first_schema_edited(self, tmp_path):
        predictions().save(tmp_path / "x.h5")
        as_of_schema_1(tmp_path / "x.h5")
        with h5py.File(tmp_path / "x.h5", "a") as file:
            file["probs"][:] = TWO[::-1]
        with pytest.raises(ArtifactError, match="recorded hash"):
            artifacts.read(tmp_path / "x.h5")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden", f32([[[1, np.nan]], [[0, 0]]])),
        ("hidden", f32([[[1, 2]], [[-np.inf, 0]]])),
        ("voice", f32([[1, 0], [np.nan, np.nan]])),
        ("point", f32([NONE, [1, 0]])),
        ("probs", np.stack([f32([NONE, [1, 0]]), TWO], axis=1)),
    ],
)
def test_what_a_network_made_is_finite(tmp_path, monkeypatch, name, value):
    """Neither written nor, where it was written once, read; a prediction that is missing would stand for a vote."""
    with pytest.raises(ArtifactError, match=f"{name} holds NaN or infinity"):
        source(**{name: value}).save(tmp_path / "s.h5")
    assert not (tmp_path / "s.h5").exists()
    with monkeypatch.context() as patch:
        patch.setattr("mifuse_cli.artifacts.writer.check_arrays", lambda *_: None)
        source(**{name: value}).save(tmp_path / "s.h5")
    with pytest.raises(ArtifactError, match=f"{name} holds NaN or infinity"):
        Source.load(tmp_path / "s.h5")
