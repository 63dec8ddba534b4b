"""Every output has the permissions of a new file, whichever library wrote it."""

import os
import stat

import pytest
from conftest import mifuse

from mifuse_cli.files import atomic_directory, atomic_file


@pytest.fixture(params=[0o002, 0o022, 0o077], ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(root):
    return {path.relative_to(root): stat.S_IMODE(path.stat().st_mode) for path in sorted(root.rglob("*"))}


def test_of_every_command(pipeline, corpora, tmp_path, umask):
    out = tmp_path / "out"
    clips = ("--manifest", corpora.target, "--cache-dir", out / "cache")
    for command in (
        ("train-source", "--manifest", corpora.source, "--encoder", "logmel", "--out", out / "logmel",
         "--epochs", "1", "--tune", "all"),
        ("sample-source", "--model", pipeline.model, *clips, "--out", out / "source.h5"),
        ("fuse", "--lalm", pipeline.lalm, "--source", out / "source.h5", "--weighting", "mi", "--out",
         out / "fused.h5"),
        ("train", "--fused", out / "fused.h5", "--model", pipeline.model, *clips, "--epochs", "1", "--out",
         out / "student"),
        ("export", "--model", out / "student", "--out", out / "export"),
        ("evaluate", "--model", out / "student", "--manifest", corpora.labels, "--out", out / "eval.h5",
         "--plot", out / "eval.png"),
        ("predict", "--model", out / "student", "--wav-dir", corpora.wav_dir, "--out", out / "p.csv"),
        ("report", out, "--out", out / "report.html"),
    ):  # fmt: skip
        done = mifuse(*command)
        assert done.exit_code == 0, done.stderr
    found = modes(out)
    assert len(found) > 20
    wrong = {
        str(path): oct(mode)
        for path, mode in found.items()
        if mode != (0o777 if (out / path).is_dir() else 0o666) & ~umask
    }
    assert not wrong


def test_a_file_that_its_writer_closed(tmp_path, umask):
    for replace in (True, False):
        with atomic_file(tmp_path / f"a{replace}", replace=replace) as temporary:
            temporary.unlink()
            temporary.touch(0o600)
    with atomic_directory(tmp_path / "d") as temporary:
        (temporary / "b").touch(0o600)
        (temporary / "c").mkdir(0o700)
    assert {mode for path, mode in modes(tmp_path).items() if path.name == "c"} == {0o777 & ~umask}
    assert {mode for path, mode in modes(tmp_path).items() if path.name[0] in "ab"} == {0o666 & ~umask}


def test_a_file_with_another_name_is_left_alone(tmp_path):
    (tmp_path / "mine").touch(0o600)
    with atomic_directory(tmp_path / "d") as temporary:
        os.link(tmp_path / "mine", temporary / "a")
    assert modes(tmp_path)[(tmp_path / "mine").relative_to(tmp_path)] == 0o600
