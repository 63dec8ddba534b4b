import shutil

import h5py
import numpy as np
import pytest
from conftest import CLASSES, mifuse, read_rows, refused, write_csv


class TestBadInput:
    """Every one ends with an exit code and one line, and leaves no output behind."""

    @pytest.fixture
    def bad(self, copy, corpora, encoders, tmp_path):
        """Run a command on inputs that may be spoilt before; the output is always the same path."""
        out = tmp_path / "out"
        clips = shutil.copytree(corpora.target.parent, tmp_path / "clips")

        def bad(name, code, *words, **changes):
            defaults = {
                "train-source": {"manifest": clips / "labels.csv", "encoder": encoders["whisper"]},
                "query-lalm": {"manifest": clips / "manifest.csv", "model": "m"},
                "sample-source": {"manifest": clips / "manifest.csv", "model": copy.model},
                "fuse": {"lalm": copy.lalm, "source": copy.source},
                "train": {"fused": copy.fused, "model": copy.model, "manifest": clips / "manifest.csv"},
                "evaluate": {"predictions": copy.fused, "manifest": clips / "labels.csv"},
            }[name]
            values = {**defaults, **changes}
            flags = [(f"--{k.replace('_', '-')}", v) for k, v in values.items() if v is not None]
            result = mifuse(name, *(part for flag in flags for part in flag), "--out", out)
            left = [path.name for path in tmp_path.glob("*out*") if "journal" not in path.name]
            assert left == []
            return refused(result, code, *words)

        bad.run, bad.clips = copy, clips
        return bad

    @pytest.mark.parametrize("name", ["train-source", "query-lalm", "sample-source"])
    @pytest.mark.parametrize("content", [b"no audio", b"RIFF\x24\x00\x00\x00WAVEfmt ", b""])
    def test_corrupt_audio(self, bad, name, content, key, serve):
        sorted((bad.clips / "wav").iterdir())[5].write_bytes(content)
        server = serve()
        bad(name, 3, ".wav: cannot be decoded", **({"base_url": server.url} if name == "query-lalm" else {}))
        assert server.asked == []

    def test_empty_directory(self, bad, tmp_path, key):
        (tmp_path / "none").mkdir()
        for name in ("query-lalm", "sample-source", "train"):
            bad(name, 3, "holds no audio", manifest=None, wav_dir=tmp_path / "none")
            bad(name, 3, "no such directory", manifest=None, wav_dir=tmp_path / "nowhere")

    def test_missing_column(self, bad):
        for name in ("train-source", "evaluate"):
            bad(name, 3, "no column 'emotion'", manifest=bad.clips / "manifest.csv")
        rows = [{"path": row["file"]} for row in read_rows(bad.clips / "labels.csv")]
        write_csv(bad.clips / "manifest.csv", rows)
        for name in ("train-source", "query-lalm", "sample-source", "train", "evaluate"):
            bad(name, 3, "no column 'file'", manifest=bad.clips / "manifest.csv")

    def test_unknown_label(self, bad):
        rows = read_rows(bad.clips / "labels.csv")
        rows[3]["emotion"] = "angri"
        write_csv(bad.clips / "labels.csv", rows)
        for name in ("train-source", "evaluate"):
            bad(name, 3, "unknown label 'angri'", "did you mean 'angry'?")

    def test_missing_audio(self, bad):
        next((bad.clips / "wav").iterdir()).unlink()
        bad("sample-source", 3, "1 of 24 audio files are missing")

    @pytest.mark.parametrize("name", ["lalm", "source"])
    def test_nan_probabilities(self, bad, name):
        path = getattr(bad.run, name)
        with h5py.File(path, "a") as file:
            file["probs"][3, 1, 2] = np.nan
        bad("fuse", 4, f"{name}.h5", "NaN")

    def test_edited_artifact(self, bad):
        with h5py.File(bad.run.fused, "a") as file:
            file["probs"][0] = [1, 0, 0, 0]
        for name in ("train", "evaluate"):
            bad(name, 4, "does not match its recorded hash")

    def test_class_order(self, bad, corpora, serve, key):
        classes = ",".join(CLASSES[::-1])
        out = bad.run.root / "reversed.h5"
        tail = ["--model", "m", "--n-samples", "2", "--classes", classes, "--out", out]
        result = mifuse("query-lalm", "--manifest", corpora.target, "--base-url", serve().url, *tail)
        assert result.exit_code == 0
        bad("fuse", 4, "classes are sad, neutral, happy, angry but", lalm=out)

    def test_truncated_artifact(self, bad):
        for name, path in (("fuse", bad.run.lalm), ("train", bad.run.fused), ("evaluate", bad.run.fused)):
            path.write_bytes(path.read_bytes()[:-1000])
            bad(name, 3, f"{path.name}: is no readable HDF5 file", "truncated")

    def test_wrong_kind(self, bad):
        bad("fuse", 4, "of kind 'source', expected 'lalm'", lalm=bad.run.source)
        bad("evaluate", 3, "no such file", predictions=bad.run.root / "nothing.h5")

    def test_damaged_model(self, bad):
        (bad.run.model / "model.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{")
        bad("sample-source", 3, "model.safetensors: cannot be loaded")
        (bad.run.model / "config.json").unlink()
        bad("sample-source", 3, "no readable checkpoint")

    def test_encoder(self, bad, tmp_path, encoders):
        bad("train-source", 6, "nor available from the model hub", encoder="nobody/nothing")
        bad("train-source", 3, "no readable config.json", encoder=tmp_path)
        bad("sample-source", 4, "'whisper' model, expected a mifuse checkpoint", model=encoders["whisper"])

    def test_options(self, bad):
        bad("fuse", 2, "--tau 0.0: expected more than 0", "--pool", tau=0, pool="linea")
        bad("sample-source", 2, "one of --manifest and --wav-dir, not both", wav_dir=bad.clips)
        bad("train", 2, "--tune 'top-0'", tune="top-0")
        bad("train-source", 2, "--classes", classes="angry")
        bad("sample-source", 2, "--device 'gpu'", device="gpu")

    def test_missing_gpu(self, bad):
        import torch

        if torch.cuda.is_available():
            pytest.skip("there is a GPU")
        for name in ("train-source", "sample-source", "train"):
            bad(name, 6, "--device cuda: 0 CUDA GPUs", device="cuda")

    def test_output_that_cannot_be_made(self, pipeline, tmp_path):
        (tmp_path / "file").write_text("")
        result = mifuse(
            *[
                "fuse",
                "--lalm",
                pipeline.lalm,
                "--source",
                pipeline.source,
                "--out",
                tmp_path / "file" / "f.h5",
            ]
        )
        refused(result, 3, "cannot be created", "--out")

    @pytest.mark.parametrize(
        "arguments", [["fuse"], ["fuse", "--nothing"], ["nothing"], ["fuse", "--tau", "x"]]
    )
    def test_usage(self, arguments):
        result = mifuse(*arguments)
        assert result.exit_code == 2 and result.stderr and not result.stdout
        assert "Traceback" not in result.stderr
