"""``mifuse validate``: what is sound is called so, and every fault is named and ends in an exit code."""

import json
import shutil

import h5py
import pytest
from conftest import mifuse, read_rows, rewrite, write_csv

from mifuse_cli import PrepareConfig, ValidateConfig, prepare, validate
from mifuse_cli.kaldi import Entry, write
from mifuse_cli.manifest import read_clips

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


@pytest.fixture
def target(corpora, tmp_path):
    """A copy of the target corpus, to be damaged."""
    return shutil.copytree(corpora.target.parent, tmp_path / "target")


@pytest.fixture
def kaldi(target):
    """The same as a Kaldi directory."""
    rows = {row["file"]: row for row in read_rows(target / "labels.csv")}
    clips = read_clips(target / "labels.csv")
    emotions = [rows[f"wav/{clip.path.name}"]["emotion"] for clip in clips]
    entries = [Entry(c.utt_id, c.path, c.speaker or "", e) for c, e in zip(clips, emotions, strict=True)]
    write(target / "kaldi", entries)
    return target / "kaldi"


@pytest.fixture
def prepared(kaldi, tmp_path):
    """The same as ``mifuse prepare`` writes it."""
    prepare(PrepareConfig(corpus="kaldi", root=kaldi, out=tmp_path / "prepared"))
    return tmp_path / "prepared"


def findings(*paths):
    return validate(ValidateConfig(paths=paths)).findings


def fault(path, kind, code):
    """The one fault of a path, and the exit code that the shell sees."""
    (finding,) = findings(path)
    assert finding.kind == kind and len(finding.faults) == 1, finding
    shown = mifuse("validate", path, "--quiet")
    assert (shown.exit_code, shown.stdout) == (code, "")
    return finding.faults[0]


def change(file, **values):
    """Put other attributes into an artifact."""
    with h5py.File(file, "r+") as opened:
        opened.attrs.update(values)


class TestSound:
    def test_every_kind(self, pipeline, corpora, kaldi, prepared):
        paths = [corpora.target, corpora.labels, kaldi, prepared, *map(pipeline.root.joinpath,
                 ("lalm.h5", "source.h5", "fused.h5", "model", "student")), corpora.wav_dir]  # fmt: skip
        found = findings(*paths)
        assert [one.faults for one in found] == [()] * len(paths)
        kinds = [
            "manifest",
            "manifest",
            "kaldi",
            "prepared",
            *["artifact"] * 3,
            "checkpoint",
            "checkpoint",
            "audio",
        ]
        assert [one.kind for one in found] == kinds
        assert [one.facts.get("labelled") for one in found[:4]] == [False, True, None, True]
        assert {one.facts.get("clips", one.facts.get("audio files")) for one in [*found[:7], found[-1]]} == {
            24
        }
        assert found[0].facts["speakers"] == found[3].facts["speakers"] == 3
        assert found[0].facts["hours"] == found[2].facts["hours"] == pytest.approx(24 * 0.25 / 3600, rel=0.1)
        shown = mifuse("validate", *paths)
        assert shown.exit_code == 0 and shown.stdout.count(", ok, ") == len(paths)

    def test_at_least_one_path(self):
        assert mifuse("validate").exit_code == 2


class TestExitCode:
    def test_faulty_inputs_come_before_faulty_artifacts_and_nothing_stops(self, corpora, copy, tmp_path):
        (copy.root / "student/train.h5").unlink()
        paths = [copy.root / "student", tmp_path / "none", corpora.target]
        assert [bool(one.faults) for one in findings(*paths)] == [True, True, False]
        assert [mifuse("validate", *some).exit_code for some in (paths, paths[:1], paths[2:])] == [3, 4, 0]

    def test_with_json(self, tmp_path):
        result = mifuse("validate", tmp_path / "a", tmp_path / "b", "--json")
        found = json.loads(result.stdout)["findings"]
        assert result.exit_code == 3 and [one["path"] for one in found] == [f"{tmp_path}/a", f"{tmp_path}/b"]

    def test_faults_stand_below_their_path(self, tmp_path):
        result = mifuse("validate", tmp_path / "a")
        lines = [f"{tmp_path}/a: unknown, faults 1", "  no such file or directory"]
        assert (result.exit_code, result.stdout.splitlines()) == (3, lines)


class TestManifests:
    def test_of_no_known_kind(self, target):
        (target / "x.txt").write_text("x")
        assert "is neither a manifest" in fault(target / "x.txt", "unknown", 3)
        (target / "empty").mkdir()
        assert "is neither a manifest" in fault(target / "empty", "unknown", 3)

    def test_a_directory_of_audio(self, target):
        min((target / "wav").iterdir()).write_text(LFS)
        assert "Git LFS" in fault(target / "wav", "audio", 3)

    def test_missing_audio(self, target):
        for path in sorted((target / "wav").iterdir())[:12]:
            path.unlink()
        text = fault(target / "manifest.csv", "manifest", 3)
        assert text.startswith("12 of 24 audio files are missing: ") and text.endswith(" and 2 more")

    @pytest.mark.parametrize(("content", "expected"), [(LFS, "Git LFS"), ("RIFF", "cannot be decoded")])
    def test_audio_that_is_none(self, target, content, expected):
        path = min((target / "wav").iterdir())
        path.write_text(content)
        text = fault(target / "manifest.csv", "manifest", 3)
        assert expected in text and str(path) in text

    def test_much_audio_that_is_none(self, target):
        for path in (target / "wav").iterdir():
            path.write_text(LFS)
        (finding,) = findings(target / "manifest.csv")
        assert len(finding.faults) == 24  # all of them in one run

    def test_clips_that_stand_twice(self, target):
        rows = read_rows(target / "manifest.csv")
        write_csv(target / "manifest.csv", [*rows, rows[3]])
        assert fault(target / "manifest.csv", "manifest", 3).startswith("1 clips stand more than once")

    def test_labels_that_are_empty(self, target):
        rows = read_rows(target / "labels.csv")
        rows[5]["emotion"] = " "
        write_csv(target / "labels.csv", rows)
        assert fault(target / "labels.csv", "manifest", 3).startswith("1 of 24 clips have no emotion: ")

    def test_all_at_once(self, target):
        rows = read_rows(target / "labels.csv")
        rows[5]["emotion"] = ""
        write_csv(target / "labels.csv", rows)
        (target / rows[0]["file"]).unlink()
        (target / rows[1]["file"]).write_text(LFS)
        (finding,) = findings(target / "labels.csv")
        assert len(finding.faults) == 3


class TestKaldi:
    def test_broken_rules(self, kaldi):
        (kaldi / "spk2utt").unlink()
        assert fault(kaldi, "kaldi", 3) == "spk2utt: no such file"

    def test_missing_audio(self, kaldi, target):
        min((target / "wav").iterdir()).unlink()
        assert fault(kaldi, "kaldi", 3).startswith("wav.scp: 1 audio files are missing: ")

    def test_audio_that_is_none(self, kaldi, target):
        min((target / "wav").iterdir()).write_text(LFS)
        assert "Git LFS" in fault(kaldi, "kaldi", 3)

    def test_commands_and_archives_are_left_alone(self, kaldi):
        lines = (kaldi / "wav.scp").read_text().splitlines()
        (kaldi / "x.ark").touch()
        lines[0] = f"{lines[0].split()[0]} touch {kaldi}/ran |"
        lines[1] = f"{lines[1].split()[0]} {kaldi}/x.ark:17"
        (kaldi / "wav.scp").write_text("\n".join([*lines, ""]))
        (finding,) = findings(kaldi)
        assert (finding.faults, finding.facts["audio files"]) == ((), 22)
        assert not (kaldi / "ran").exists()


class TestPrepared:
    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("summary.json", ["summary.json: no such file"]),
            ("speakers.csv", ["speakers.csv: lacks 3 speakers that manifest.csv has: s0, s1, s2"]),
            ("labels.csv", []),
            ("manifest.csv", ["manifest.csv: no such file"]),
        ],
    )
    def test_without_a_file(self, prepared, name, expected):
        (prepared / name).unlink()
        (finding,) = findings(prepared)
        rest = [text for text in finding.faults if not text.startswith(f"{name}: cannot be read (")]
        assert rest == expected and finding.faults
        assert mifuse("validate", prepared).exit_code == 3

    @pytest.mark.parametrize("text", ["", "[]", '{"corpus": 1}', '{"corpus": 1, "files": 3}'])
    def test_summary_that_is_none(self, prepared, text):
        (prepared / "summary.json").write_text(text)
        assert fault(prepared, "prepared", 3).startswith("summary.json: cannot be read as the summary")

    def test_tables_that_were_changed(self, prepared):
        path = prepared / "speakers.csv"
        path.write_text(path.read_text().replace(",8", ",9"))
        assert fault(prepared, "prepared", 3).startswith("speakers.csv: was changed since it was prepared")

    def test_tables_that_disagree(self, prepared):
        labels = read_rows(prepared / "labels.csv")
        first, second, third = (row["utt_id"] for row in labels[:3])
        labels[1]["emotion"] = ""
        labels[2]["file"] = labels[3]["file"]
        write_csv(prepared / "labels.csv", [*labels[1:], labels[0] | {"utt_id": "new"}])
        (finding,) = findings(prepared)
        assert [text for text in finding.faults if "was changed" not in text] == [
            f"labels.csv: 1 of 24 clips have no emotion: {second}",
            "labels.csv: has 1 clips that manifest.csv has not: new",
            f"labels.csv: lacks 1 clips that manifest.csv has: {first}",
            f"labels.csv: names other files than manifest.csv for {third}",
        ]

    def test_labels_in_the_manifest(self, prepared):
        shutil.copy(prepared / "labels.csv", prepared / "manifest.csv")
        (finding,) = findings(prepared)
        assert "manifest.csv: has a column 'emotion', but labels belong only in labels.csv" in finding.faults

    def test_audio_that_is_gone(self, prepared, target):
        shutil.rmtree(target / "wav")
        assert fault(prepared, "prepared", 3).startswith("manifest.csv: 24 of 24 audio files are missing: ")

    def test_kaldi_directory_inside(self, prepared, kaldi):
        shutil.copytree(kaldi, prepared / "kaldi")
        assert findings(prepared)[0].faults == ()
        (prepared / "kaldi/utt2spk").unlink()
        assert fault(prepared, "prepared", 3) == "kaldi/utt2spk: no such file"


class TestArtifacts:
    def test_of_no_known_kind(self, copy):
        change(copy.fused, kind="other")
        assert "is HDF5 but no mifuse artifact (kind 'other')" in fault(copy.fused, "artifact", 4)

    def test_truncated(self, copy):
        copy.lalm.write_bytes(copy.lalm.read_bytes()[:2000])
        assert "no readable HDF5 file" in fault(copy.lalm, "artifact", 4)

    def test_edited(self, copy):
        with h5py.File(copy.source, "r+") as file:
            file["point"][0] = file["point"][0][::-1]
        assert "it was edited" in fault(copy.source, "artifact", 4)

    def test_stale(self, copy):
        shutil.copy(copy.root / "student/model.safetensors", copy.root / "model/model.safetensors")
        text = fault(copy.source, "artifact", 4)
        assert text.startswith("is stale: its model") and "Make it anew: " in text


class TestCheckpoints:
    def test_other_weights(self, copy):
        rewrite(copy.root / "student/model.safetensors", lambda tensors: tensors["feature_mean"].add_(1))
        assert "are not those that train.h5 was written for" in fault(copy.root / "student", "checkpoint", 4)

    def test_other_encoder(self, copy):
        rewrite(
            copy.root / "model/encoder/model.safetensors",
            lambda tensors: next(iter(tensors.values())).add_(1),
        )
        assert "are not those that train.h5 was written for" in fault(copy.root / "model", "checkpoint", 4)

    def test_weights_that_cannot_be_loaded(self, copy):
        (copy.root / "student/model.safetensors").write_bytes(b"x")
        (finding,) = findings(copy.root / "student")
        assert len(finding.faults) == 2 and "model.safetensors: cannot be loaded" in finding.faults[0]
        assert mifuse("validate", copy.root / "student").exit_code == 4

    @pytest.mark.parametrize(
        ("name", "expected"),
        [("train.h5", "train.h5: no such file"), ("config.json", "is no readable checkpoint")],
    )
    def test_without_a_file(self, copy, name, expected):
        (copy.root / "student" / name).unlink()
        (finding,) = findings(copy.root / "student")
        assert finding.kind == "checkpoint" and any(expected in text for text in finding.faults)
        assert mifuse("validate", copy.root / "student").exit_code == 4

    def test_model_of_another_kind(self, encoders):
        (finding,) = findings(encoders["whisper"])
        assert finding.kind == "checkpoint" and "is a 'whisper' model" in finding.faults[0]

    def test_stale(self, copy):
        change(copy.fused, kind="other")
        assert "fused.h5: is HDF5 but no mifuse artifact" in fault(copy.root / "student", "checkpoint", 4)

    def test_parents_that_changed(self, copy):
        shutil.rmtree(copy.root / "model")
        shutil.copytree(copy.root / "student", copy.root / "model")
        (finding,) = findings(copy.root / "student")
        assert any("its model" in text or "its source" in text for text in finding.faults)

    def test_broken_predictions(self, copy):
        (copy.root / "student/predictions.h5").write_bytes(b"x")
        assert "no mifuse artifact, but text" in fault(copy.root / "student", "checkpoint", 4)
