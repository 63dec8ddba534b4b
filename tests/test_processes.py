"""Several processes of one command: who does what, and that the result is that of one process."""

import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import HANG_SECONDS
from safetensors.torch import load_file
from test_tuning import METHODS, OPTIONS, K, clips, loaded, make  # noqa: F401 - fixtures

import mifuse_cli as m
from mifuse_cli.artifacts import Source
from mifuse_cli.errors import InputError, UsageError
from mifuse_cli.methods import loop
from mifuse_cli.model import launcher, processes
from mifuse_cli.model.device import find_device


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def in_two():
    """What a function returns, or raises, in each of two processes that work together."""
    context = multiprocessing.get_context("fork")  # which import nothing anew

    def in_two(function):
        port, pipes, children = free_port(), [], []
        for rank in range(2):
            ours, theirs = context.Pipe()
            children.append(context.Process(target=_child, args=(function, rank, port, theirs)))
            children[-1].start()
            theirs.close()
            pipes.append(ours)
        try:
            assert all(pipe.poll(HANG_SECONDS) for pipe in pipes)
            return [pipe.recv() for pipe in pipes]
        finally:
            for child in children:
                child.kill()
                child.join()

    return in_two


def _child(function, rank, port, pipe):
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    try:
        pipe.send(function())
    except m.MifuseError as error:
        pipe.send(error)
    except BaseException:
        pipe.send(traceback.format_exc())


def joined(work):
    """The work as a step of several processes."""

    class Config:
        device = "cpu"

    return lambda: processes.divided(lambda config, progress: work())(Config())


@pytest.fixture
def second(monkeypatch):
    """As the second of three processes, without the others."""
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "3", "MASTER_ADDR": "x"}.items():
        monkeypatch.setenv(name, value)


class TestLauncher:
    def test_alone(self, monkeypatch):
        assert (launcher.started(), launcher.number(), launcher.number_here()) == (1, 0, 0)
        monkeypatch.setenv("WORLD_SIZE", "8")  # as a cluster may have it, without a launcher
        assert (launcher.started(), launcher.number(), processes.count()) == (1, 0, 1)

    def test_started(self, second):
        assert (launcher.started(), launcher.number(), launcher.number_here()) == (3, 1, 1)
        assert processes.count() == 1  # until they have joined

    def test_steps_of_one_process(self, second):
        with pytest.raises(UsageError, match=r"mifuse fuse: 3 processes were started, but it runs in one"):
            processes.check_undivided(m.fuse, "fuse")
        for step in (m.train_source, m.sample_source, m.train):
            processes.check_undivided(step, "x")

    def test_a_gpu_for_each(self, second, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        assert find_device("auto") == find_device("cuda") == torch.device("cuda:1")
        with pytest.raises(UsageError, match="each of 3 processes needs its own GPU"):
            find_device("cuda:0")
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        with pytest.raises(m.DependencyError, match="1 CUDA GPUs"):
            find_device("cuda")

    def test_the_first_speaks_first(self, second, monkeypatch):
        waited = []
        monkeypatch.setattr(launcher.time, "sleep", waited.append)
        launcher.let_the_first_speak()
        monkeypatch.setenv("RANK", "0")
        launcher.let_the_first_speak()
        assert waited == [30]


class TestProcesses:
    def test_alone(self):
        done = []
        assert processes.gathered(lambda: 3) == [3] and processes.by_first(lambda: 4) == 4
        processes.in_shares(done.append, [1, 2])  # nothing to share: the work comes later
        assert not done and processes.own_share([3.0, 1.0]) == [0, 1]
        value = torch.ones(2, requires_grad=True)
        value.sum().backward()
        processes.add_gradients([value])
        assert value.grad.tolist() == [1, 1]

    def test_together(self, in_two):
        def work():
            done, rank = [], launcher.number()
            values = [torch.zeros(2, requires_grad=True) for _ in range(3)]
            (values[0].sum() * (1 + rank) + (values[1].sum() if rank else 0)).backward()
            processes.in_shares(done.extend, range(5))
            processes.in_shares(lambda own: done.append(len(own)), ["the only one"])
            processes.add_gradients(values)
            nested = processes.by_first(lambda: (processes.count(), processes.by_first(lambda: "alone")))
            return {
                "gathered": processes.gathered(lambda: rank),
                "nested": nested,
                "count": processes.count(),
                "shares": done,
                "own": processes.own_share([1.0, 7.0, 2.0, 3.0]),
                "gradients": [None if one.grad is None else one.grad.tolist() for one in values],
            }

        first, other = in_two(joined(work))
        assert first["shares"] == [0, 2, 4, 1] and other["shares"] == [1, 3]
        assert first["own"] == [1] and other["own"] == [0, 2, 3]
        for found in (first, other):
            assert found["gathered"] == [0, 1] and found["nested"] == (1, "alone") and found["count"] == 2
            assert found["gradients"] == [[3, 3], [1, 1], None]

    @pytest.mark.parametrize("wrong", (0, 1))
    def test_an_error_in_one_ends_both(self, in_two, wrong):
        def read():
            if launcher.number() == wrong:
                raise InputError(f"clip of {wrong}")

        for found in in_two(joined(lambda: processes.gathered(read))):
            assert isinstance(found, InputError) and str(found) == f"clip of {wrong}"

    def test_an_error_of_the_first_ends_both(self, in_two):
        def work():
            raise InputError("disk is full")

        for found in in_two(joined(lambda: processes.by_first(work))):
            assert isinstance(found, InputError) and str(found) == "disk is full"


class TestSameResult:
    @pytest.mark.parametrize("name", METHODS)
    def test_training(self, in_two, make, name):  # noqa: F811
        def trained():
            model, inputs = make(dropout=0.3, micro_batch_s=0.8)
            method = METHODS[name]()
            state = loop.run(loop.start(model, method, OPTIONS), inputs, method, OPTIONS)
            return state.history, {key: value.numpy() for key, value in state.student.state_dict().items()}

        history, weights = trained()
        start = make(dropout=0.3)[0].state_dict()
        both = in_two(joined(trained))
        for found_history, found in both:
            np.testing.assert_allclose(found_history, history, atol=1e-5)
            for key, value in weights.items():
                np.testing.assert_allclose(found[key], value, atol=1e-5)
                np.testing.assert_array_equal(found[key], both[0][1][key])
        moved = [key for key, value in weights.items() if np.abs(value - start[key].numpy()).max() > 1e-3]
        assert any(key.startswith("encoder") for key in moved)

    def test_steps(self, in_two, corpora, encoders, tmp_path, monkeypatch):
        """Training of an encoder, and features shared through the cache, by every step that can."""

        def made(out, cache):
            monkeypatch.setenv("MIFUSE_CACHE_DIR", str(cache))
            shutil.rmtree(cache, ignore_errors=True)
            out.mkdir(exist_ok=True)
            source = {"manifest": corpora.source, "encoder": str(encoders["wav2vec2"]), "epochs": 2}
            m.train_source(m.TrainSourceConfig(**source, out=out / "head"))
            m.train_source(m.TrainSourceConfig(**source, tune="top-1", out=out / "top"))
            target = {"model": out / "head", "manifest": corpora.target}
            m.sample_source(m.SampleSourceConfig(**target, out=out / "source.h5", n_samples=3))
            for tune in ("head", "all"):
                result = m.train(
                    m.TrainConfig(**target, method="shot", tune=tune, epochs=2, out=out / f"student-{tune}")
                )
            return result.losses

        one = made(tmp_path / "one", tmp_path / "cache-one")

        def divided():
            # Both processes are told to make the same directory, as by one command.
            cache = tmp_path / "cache-two"
            if launcher.number():
                monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
            return made(tmp_path / "two", cache)

        for losses in in_two(divided):
            assert losses == pytest.approx(one, abs=1e-5)
        for file in sorted((tmp_path / "one").rglob("*.safetensors")):
            found = load_file(tmp_path / "two" / file.relative_to(tmp_path / "one"))
            for name, value in load_file(file).items():
                if "k_proj.bias" in name:  # its gradient is 0 but for rounding, which AdamW makes steps of
                    continue
                torch.testing.assert_close(found[name], value, atol=1e-5, rtol=0)
        samples = [Source.load(tmp_path / name / "source.h5") for name in ("one", "two")]
        np.testing.assert_allclose(samples[1].probs, samples[0].probs, atol=1e-5)
        assert not list((tmp_path / "two").rglob("*.tmp")) and not list((tmp_path / "two").glob("*.partial"))

    def test_a_clip_that_cannot_be_read(self, in_two, corpora, encoders, tmp_path):
        shutil.copytree(corpora.source.parent, tmp_path / "corpus")
        for file in sorted((tmp_path / "corpus/wav").iterdir())[-1:]:
            file.write_text("no audio")
        for tune in ("head", "all"):
            config = m.TrainSourceConfig(
                manifest=tmp_path / "corpus" / corpora.source.name,
                encoder=str(encoders["whisper"]),
                tune=tune,
                out=tmp_path / "model",
            )
            for found in in_two(lambda config=config: m.train_source(config)):
                assert isinstance(found, InputError) and "cannot be decoded" in str(found)
        assert not (tmp_path / "model").exists()


@pytest.mark.slow
class TestLaunchers:
    """The real launchers; what they start is tested more quickly above."""

    def launch(self, launcher_words, *words):
        environment = {**os.environ, "PYTHONPATH": str(Path(m.__file__).parents[1])}
        return subprocess.run(
            [sys.executable, "-m", *launcher_words, "-m", "mifuse_cli", *words],
            env=environment,
            capture_output=True,
            text=True,
            timeout=HANG_SECONDS,
        )

    @pytest.mark.parametrize(
        "words",
        (
            ["torch.distributed.run", "--nproc-per-node", "2", "--master-port"],
            ["accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1",
             "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port"],
        ),
        ids=("torchrun", "accelerate"),
    )  # fmt: skip
    def test_train_source(self, corpora, tmp_path, words):
        options = ["--manifest", str(corpora.source), "--encoder", "logmel", "--epochs", "2"]
        options += ["--batch-size", "12", "--log-json", "--out"]
        result = self.launch([*words, str(free_port())], "train-source", *options, str(tmp_path / "two"))
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("validation UA") == 1
        assert result.stderr.count('{"progress": "validating", "done": 1') == 1
        m.train_source(
            m.TrainSourceConfig(
                manifest=corpora.source, encoder="logmel", epochs=2, batch_size=12, out=tmp_path / "one"
            )
        )
        for file in ("model.safetensors", "encoder/model.safetensors"):
            one, two = (load_file(tmp_path / name / file) for name in ("one", "two"))
            for name, value in one.items():
                torch.testing.assert_close(two[name], value, atol=1e-5, rtol=0)
        again = self.launch([*words, str(free_port())], "train-source", *options, str(tmp_path / "two"))
        assert again.returncode != 0 and again.stderr.count("exists already") == 1
        if words[0].startswith("torch"):  # which tells what its processes ended with
            assert "exitcode  : 3" in again.stderr
