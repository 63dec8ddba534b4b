"""Encoding by a Ray cluster of two nodes on this machine: the matrices of one process, and a node that is lost."""

import os
import sys
import time

import numpy as np
import pytest
import soundfile
import torch
from conftest import RATE, mifuse, refused, save_encoder, tone, until

from mifuse_cli.audio import Excerpt
from mifuse_cli.encoding_settings import Encoding
from mifuse_cli.errors import InputError
from mifuse_cli.lineage import digest
from mifuse_cli.manifest import scan
from mifuse_cli.model import encoding
from mifuse_cli.model.encoding import Padding, encoded
from mifuse_cli.model.features import FrozenEncoder, pooled_features

CPU = torch.device("cpu")


def test_without_ray(pipeline, corpora, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    found = mifuse("sample-source", "--model", pipeline.model, "--manifest", corpora.target, "--out",
                   tmp_path / "s.h5", "--cache-dir", tmp_path / "cache", "--engine", "ray")  # fmt: skip
    refused(found, 6, "pip install 'mifuse[ray]'")
    # What is in the cache needs no engine.
    for engine in ("local", "ray"):
        done = mifuse("sample-source", "--model", pipeline.model, "--manifest", corpora.target, "--out",
                      tmp_path / f"{engine}.h5", "--cache-dir", tmp_path / "cache", "--engine", engine)  # fmt: skip
        assert done.exit_code == 0, done.stderr


class Slow:
    """An encoder by its directory that takes its time, and notes on which node it encoded what.

    It begins when it is loaded on so many nodes.
    """

    def __init__(self, directory, place, nodes, seconds):
        self.directory, self.place, self.nodes, self.seconds = directory, place, nodes, seconds

    def load(self, device):
        import ray

        self.node = ray.get_runtime_context().get_node_id()
        self.encoder = FrozenEncoder(self.directory, "fp32").load(device)
        (self.place / f"{self.node}.{os.getpid()}.loaded").touch()
        until(lambda: len({file.name.split(".")[0] for file in self.place.glob("*.loaded")}) >= self.nodes)
        return self

    @property
    def padding(self):
        return self.encoder.padding

    def __call__(self, clips):
        time.sleep(self.seconds)
        with (self.place / f"{self.node}.log").open("a") as log:
            log.write("x" * len(clips))
        return self.encoder(clips)


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    """An encoder whose batches are padded."""
    return save_encoder(tmp_path_factory.mktemp("masked") / "e", "wavlm", feat_extract_norm="layer")


@pytest.fixture(scope="module")
def wav_dir(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)
    for number in range(80):
        soundfile.write(root / f"{number:02}.wav", tone(200, 0.3, rng, rng.uniform(0.05, 3)), RATE)
    return root


MEMORY = {"object_store_memory": 100 * 2**20}


@pytest.fixture(scope="module")
def nodes():
    """A cluster of two nodes of one core, the first of which is the head."""
    pytest.importorskip("ray", reason="needs Ray: pip install 'mifuse[ray]'")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # The nodes' processes import these tests.
        environment.setenv("PYTHONPATH", os.pathsep.join([os.path.dirname(__file__), *sys.path]))
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **MEMORY})
        cluster.add_node(num_cpus=1, **MEMORY)
        yield cluster
        cluster.shutdown()


@pytest.fixture
def cluster(nodes, monkeypatch):
    """Its address is that of the environment."""
    monkeypatch.setenv("RAY_ADDRESS", nodes.address)
    return nodes


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(encoding, "batch_seconds", lambda device: 4.0)


@pytest.mark.slow
class TestTwoNodes:
    def expected(self, wav_dir, masked):
        paths = [Excerpt(path) for path in sorted(wav_dir.iterdir())]
        padding = Padding()
        made = encoded(paths, FrozenEncoder(masked, "fp32"), CPU, workers=1, padding=padding)
        return {
            path: matrix for some, found in made for path, matrix in zip(some, found, strict=True)
        }, padding

    def test_equal_to_one_process(self, cluster, masked, wav_dir, small_batches, tmp_path):
        expected, once = self.expected(wav_dir, masked)
        found, padding = {}, Padding()
        network = Slow(masked, tmp_path, 2, 0.1)
        for some, matrices in encoded(list(expected), network, CPU, workers=1, padding=padding, engine="ray"):
            assert matrices.dtype == np.float32 and not found.keys() & set(some)
            found.update(zip(some, matrices, strict=True))
        assert found.keys() == expected.keys() and 0 < padding.share == pytest.approx(once.share)
        for path, matrix in expected.items():
            np.testing.assert_allclose(found[path], matrix, atol=1e-5)
        logs = list(tmp_path.glob("*.log"))
        assert len(logs) == 2 and sum(len(log.read_text()) for log in logs) == 80
        assert len(list(tmp_path.glob("*.loaded"))) == 2  # once in every process

    def test_a_node_that_is_lost_costs_time_alone(self, cluster, masked, wav_dir, small_batches, tmp_path):
        expected, _ = self.expected(wav_dir, masked)
        found, third = {}, cluster.add_node(num_cpus=1, **MEMORY)
        network = Slow(masked, tmp_path, 3, 0.5)
        for some, matrices in encoded(
            list(expected), network, CPU, workers=1, padding=Padding(), engine="ray"
        ):
            found.update(zip(some, matrices, strict=True))
            if third and len(list(tmp_path.glob("*.log"))) == 3:
                assert len(found) < 60
                cluster.remove_node(third, allow_graceful=False)
                third = None
        assert third is None and found.keys() == expected.keys()
        for path, matrix in expected.items():
            np.testing.assert_allclose(found[path], matrix, atol=1e-5)

    def test_features_go_into_the_cache(self, cluster, masked, wav_dir, tmp_path):
        clips, key = scan(wav_dir)[:20], digest(masked)

        def features(engine):
            place = Encoding(cache_dir=tmp_path / engine, engine=engine, workers=1)
            return pooled_features(clips, FrozenEncoder(masked), key, device=CPU, encoding=place)

        np.testing.assert_allclose(features("ray"), features("local"), atol=1e-5)
        # In a process where Ray is in use already, it stays.
        import ray

        ray.init(log_to_driver=False)
        (tmp_path / "ray" / next((tmp_path / "ray").iterdir()).name).unlink()
        features("ray")
        assert ray.is_initialized()
        ray.shutdown()

    def test_what_goes_wrong_is_told_as_it_is(self, cluster, masked, tmp_path):
        (tmp_path / "wav").mkdir()
        soundfile.write(tmp_path / "wav" / "nan.wav", np.full(8000, np.nan), RATE, subtype="FLOAT")
        place = Encoding(cache_dir=tmp_path / "cache", engine="ray")
        with pytest.raises(InputError, match=r"nan\.wav: holds NaN .* This was on "):
            pooled_features(
                scan(tmp_path / "wav"), FrozenEncoder(masked), digest(masked), device=CPU, encoding=place
            )

    def test_the_command(self, cluster, pipeline, corpora, tmp_path):
        from mifuse_cli.artifacts import Source

        made = mifuse("sample-source", "--model", pipeline.model, "--manifest", corpora.target, "--n-samples", "4",
                      "--out", tmp_path / "s.h5", "--cache-dir", tmp_path / "cache", "--engine", "ray")  # fmt: skip
        assert made.exit_code == 0, made.stderr
        found, expected = Source.load(tmp_path / "s.h5"), Source.load(pipeline.source)
        np.testing.assert_allclose(found.probs, expected.probs, atol=1e-5)
        assert found.header.config["settings"] == expected.header.config["settings"]

    def test_no_cluster_at_the_address(self, pipeline, corpora, tmp_path, monkeypatch):
        pytest.importorskip("ray", reason="needs Ray: pip install 'mifuse[ray]'")
        monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
        found = mifuse("sample-source", "--model", pipeline.model, "--manifest", corpora.target,
                       "--out", tmp_path / "s.h5", "--cache-dir", tmp_path / "cache", "--engine", "ray")  # fmt: skip
        refused(found, 6, "127.0.0.1:1", "ray start")
