"""Vectors of the voices in clips: x-vectors of tiny random models, d-vectors by a computation of our own, and real
speakers where a real encoder is at hand.
"""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import clip, mifuse, refused, rewrite, save_encoder

import mifuse_cli as m
from mifuse_cli import audio
from mifuse_cli.artifacts import Source
from mifuse_cli.encoding_settings import Encoding
from mifuse_cli.errors import InputError, UsageError
from mifuse_cli.manifest import Clip, read_clips
from mifuse_cli.model import speaker_encoder
from mifuse_cli.model.speaker_encoder import load_speaker_encoder, speaker_vectors

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"
GE2E = SHARED / "encoders" / "ge2e"
RAVDESS = SHARED / "corpora" / "ravdess"
CPU = torch.device("cpu")
FAMILIES = ("wav2vec2", "wavlm")
HEAD = {"tdnn_dim": (16, 16, 16, 16, 24), "xvector_output_dim": 12}

needs_ge2e = pytest.mark.skipif(not GE2E.is_dir(), reason="needs ../shared/encoders/ge2e")


def save_x_vector(directory, family="wavlm", **changes):
    return save_encoder(directory, family, head="ForXVector", **HEAD, **changes)


def save_d_vector(directory, seed=0, **changes):
    """A small random GE2E network with windows of 32 frames, 0.32 s."""
    from safetensors.torch import save_file

    sizes = {"hidden_size": 12, "num_layers": 2, "embedding_size": 10, "partial_frames": 32}
    spectrum = {"sampling_rate": 16000, "n_mels": 8, "n_fft": 400, "hop_length": 160}
    config = {"model_type": "ge2e-dvector", **spectrum, **sizes}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        lstm, linear = torch.nn.LSTM(8, 12, 2), torch.nn.Linear(12, 10)
    parts = {"lstm": lstm, "linear": linear}
    tensors = {f"{part}.{key}": v for part, net in parts.items() for key, v in net.state_dict().items()}
    directory.mkdir()
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps({**config, **changes}))
    return directory


def save_bands(directory):
    """An x-vector model that takes mel bands in place of samples."""
    import transformers as t

    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        t.Wav2Vec2BertForXVector(t.Wav2Vec2BertConfig(**size, **HEAD)).save_pretrained(directory)
    t.SeamlessM4TFeatureExtractor().save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def voices(tmp_path_factory):
    """Directories of speaker encoders."""
    root = tmp_path_factory.mktemp("voices")
    found = {family: save_x_vector(root / family, family) for family in FAMILIES}
    # As large models have it; their extractor gives a mask.
    found["masked"] = save_x_vector(root / "masked", "wav2vec2", feat_extract_norm="layer")
    file = root / "masked" / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"return_attention_mask": True}))
    return found | {"bands": save_bands(root / "bands"), "d-vector": save_d_vector(root / "d-vector")}


KINDS = (*FAMILIES, "masked", "bands", "d-vector")


def vector(directory, samples):
    with torch.inference_mode():
        return load_speaker_encoder(directory)([samples])[0]


class TestVectors:
    @pytest.mark.parametrize("kind", KINDS)
    def test_every_clip_stands_for_itself(self, voices, corpora, tmp_path, kind):
        clips = read_clips(corpora.target)[:6]

        def found(clips, name):
            return speaker_vectors(
                clips, voices[kind], device=CPU, encoding=Encoding(cache_dir=tmp_path / name)
            )

        together = found(clips, "a")
        assert together.shape == (6, 10 if kind == "d-vector" else 12) and together.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
        np.testing.assert_allclose(found(clips[::-1], "b"), together[::-1], atol=1e-6)
        np.testing.assert_allclose(found(clips[2:3], "c"), together[2:3], atol=1e-6)
        assert np.abs(np.diff(together, axis=0)).max() > 1e-4

    @pytest.mark.parametrize("kind", KINDS)
    def test_equal_to_one_clip_at_a_time(self, voices, kind):
        lengths = (0.002, 0.05, 0.3, 0.3, 0.501, 1.0, 1.01, 1.01, 2.5, 12.0, 39.9, 40.0)
        clips = [clip(seconds, seed) for seed, seconds in enumerate(lengths)]
        encoder = load_speaker_encoder(voices[kind])
        with torch.inference_mode():
            expected = torch.cat([encoder([one]) for one in clips])
            torch.testing.assert_close(encoder(clips), expected, atol=1e-4, rtol=0)
            torch.testing.assert_close(encoder(clips[::-1]), expected.flip(0), atol=1e-4, rtol=0)
        assert (expected[6] - expected[7]).abs().max() > 2e-4

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("seconds", (0.002, 0.05, 0.25, 0.7))
    def test_short_clips_and_silence(self, voices, kind, seconds):
        size = int(seconds * 16000)
        for samples in (clip(seconds), torch.zeros(size), torch.full((size,), 1e-6)):
            found = vector(voices[kind], samples)
            assert torch.isfinite(found).all() and found.norm().item() == pytest.approx(1, abs=1e-5)

    @pytest.mark.parametrize("kind", ("wavlm", "d-vector"))
    def test_kept(self, voices, corpora, tmp_path, monkeypatch, kind):
        clips, told = read_clips(corpora.target)[:4], []

        def found(directory=voices[kind], clips=clips):
            def tell(*what):
                told.append(what)

            return speaker_vectors(
                clips, directory, device=CPU, encoding=Encoding(cache_dir=tmp_path / "cache"), progress=tell
            )

        first = found()
        assert {what[0] for what in told} == {"encoding voices"} and told[-1][1:] == (4, 4, {"padding": 0.0})

        def fail(*_):
            raise AssertionError("the encoder was loaded")

        monkeypatch.setattr(speaker_encoder, "load_speaker_encoder", fail)
        np.testing.assert_array_equal(found(), first)
        # By what the files hold, not by where they lie.
        np.testing.assert_array_equal(found(shutil.copytree(voices[kind], tmp_path / "same")), first)
        shutil.copy(clips[3].path, tmp_path / "same.wav")
        np.testing.assert_array_equal(found(clips=[Clip("x", tmp_path / "same.wav")]), first[3:])
        soundfile.write(tmp_path / "other.wav", clip().numpy(), 16000)
        other = tmp_path / "other"
        for given in (
            {"clips": [Clip("x", tmp_path / "other.wav")]},
            {"directory": save_x_vector(other, seed=1) if kind == "wavlm" else save_d_vector(other, seed=1)},
        ):
            with pytest.raises(AssertionError, match="was loaded"):
                found(**given)

    @pytest.mark.parametrize("kind", ("wav2vec2", "d-vector"))
    def test_damaged_weights_are_told_of_and_nothing_is_kept(self, voices, corpora, tmp_path, kind):
        spoilt = shutil.copytree(voices[kind], tmp_path / "e")

        def damage(tensors):
            name = next(
                name for name in tensors if name.endswith(("feature_extractor.weight", "linear.bias"))
            )
            tensors[name][0] = torch.nan

        rewrite(spoilt / "model.safetensors", damage)
        for _ in range(2):
            with pytest.raises(InputError, match="gives a vector with NaN or infinity"):
                speaker_vectors(
                    read_clips(corpora.target)[:2],
                    spoilt,
                    device=CPU,
                    encoding=Encoding(cache_dir=tmp_path / "cache"),
                )


class TestXVectors:
    @pytest.mark.parametrize("kind", (*FAMILIES, "masked"))
    def test_by_hand(self, voices, kind):
        import transformers as t

        extractor = t.Wav2Vec2FeatureExtractor.from_pretrained(voices[kind])
        inputs = extractor(clip(0.7).numpy(), sampling_rate=16000, return_tensors="pt")
        assert ("attention_mask" in inputs) == (kind == "masked")
        kinds = {"wavlm": t.WavLMForXVector}
        model = kinds.get(kind, t.Wav2Vec2ForXVector).from_pretrained(voices[kind]).eval()
        with torch.inference_mode():
            expected = model(inputs.input_values).embeddings[0]
        torch.testing.assert_close(vector(voices[kind], clip(0.7)), expected / expected.norm())

    def test_short_clips_are_repeated(self, voices):
        once, short = vector(voices["wavlm"], clip(0.5)), clip(0.2)
        torch.testing.assert_close(
            vector(voices["wavlm"], short), vector(voices["wavlm"], torch.cat([short, short, short[:1600]]))
        )
        assert not torch.allclose(vector(voices["wavlm"], clip(0.5)[:7000]), once)

    def test_other_models_are_refused(self, voices, encoders, tmp_path):
        with pytest.raises(
            InputError, match=r"'wavlm' model \(WavLMModel\).*expected .*ForXVector.*Give the"
        ):
            load_speaker_encoder(encoders["wavlm"])
        with pytest.raises(InputError, match="'whisper' model"):
            load_speaker_encoder(encoders["whisper"])
        with pytest.raises(InputError, match=r"has no readable config\.json"):
            load_speaker_encoder(tmp_path)
        (tmp_path / "config.json").write_text('{"model_type": "bert"}')
        with pytest.raises(InputError, match=r"'bert' model \(without architectures\)"):
            load_speaker_encoder(tmp_path)

    def test_a_head_without_weights_is_refused(self, voices, tmp_path):
        spoilt = shutil.copytree(voices["wav2vec2"], tmp_path / "e")
        rewrite(spoilt / "model.safetensors", lambda tensors: tensors.pop("tdnn.1.kernel.weight"))
        with pytest.raises(InputError, match=r"no weights for 1 encoder tensors, first 'tdnn\.1\.kernel"):
            load_speaker_encoder(spoilt)

    def test_other_rates_are_refused(self, voices, tmp_path):
        spoilt = shutil.copytree(voices["wavlm"], tmp_path / "x")
        file = spoilt / "preprocessor_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"sampling_rate": 8000}))
        for directory in (spoilt, save_d_vector(tmp_path / "d", sampling_rate=8000)):
            with pytest.raises(InputError, match="is for audio at 8000 Hz, expected 16000"):
                load_speaker_encoder(directory)


def mel_bands(count, n_fft=400, rate=16000):
    """Triangles (count, n_fft / 2 + 1) of equal area: Slaney's scale is linear up to 1 kHz, 3 mel each 200 Hz, then
    logarithmic, 27 mel for a factor of 6.4 (Auditory Toolbox, 1998).
    """
    top = 15 + 27 * np.log(rate / 2 / 1000) / np.log(6.4)
    mels = np.linspace(0, top, count + 2)
    edges = np.where(mels < 15, mels * 200 / 3, 1000 * 6.4 ** ((mels - 15) / 27))
    bins = np.arange(n_fft // 2 + 1) * rate / n_fft
    rising = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    return np.maximum(0, np.minimum(rising, falling)) * 2 / (edges[2:] - edges[:-2])[:, None]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def d_vector(samples, directory):
    """The vector (V,) of samples (S,), in NumPy."""
    from safetensors.numpy import load_file

    config = json.loads((directory / "config.json").read_text())
    weights = {
        name: value.astype(float) for name, value in load_file(directory / "model.safetensors").items()
    }
    samples = samples.astype(float)
    level = np.sqrt(np.mean(samples**2))
    samples = samples * max(1, 10**-1.5 / level)
    padded = np.pad(samples, 200)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    starts = range(0, len(samples) + 1, 160)
    power = np.abs(np.fft.rfft([padded[start : start + 400] * window for start in starts])) ** 2
    mel = power @ mel_bands(config["n_mels"]).T
    frames = config["partial_frames"]
    mel = np.pad(mel, ((0, max(0, frames - len(mel))), (0, 0)))
    vectors = []
    for start in range(0, len(mel) - frames + 1, 40):
        sequence = mel[start : start + frames]
        for layer in range(config["num_layers"]):
            inner, outer = (weights[f"lstm.weight_{way}_l{layer}"] for way in ("hh", "ih"))
            bias = weights[f"lstm.bias_hh_l{layer}"] + weights[f"lstm.bias_ih_l{layer}"]
            hidden = cell = np.zeros(config["hidden_size"])
            states = []
            for frame in sequence:
                enter, forget, fresh, leave = np.split(outer @ frame + inner @ hidden + bias, 4)
                cell = sigmoid(forget) * cell + sigmoid(enter) * np.tanh(fresh)
                hidden = sigmoid(leave) * np.tanh(cell)
                states.append(hidden)
            sequence = np.array(states)
        shown = np.maximum(0, weights["linear.weight"] @ hidden + weights["linear.bias"])
        vectors.append(shown / np.linalg.norm(shown))
    mean = np.mean(vectors, axis=0)
    return mean / np.linalg.norm(mean)


class TestDVectors:
    @pytest.mark.parametrize("seconds", (0.05, 0.3, 0.4, 1.13, 2.0))
    @pytest.mark.parametrize("level", (1.0, 0.01))
    def test_by_hand(self, voices, seconds, level):
        samples = level * clip(seconds)
        expected = d_vector(samples.numpy(), voices["d-vector"])
        np.testing.assert_allclose(vector(voices["d-vector"], samples), expected, atol=1e-5)

    @needs_ge2e
    @pytest.mark.parametrize("seconds", (0.5, 2.5))
    def test_a_real_one_by_hand(self, seconds):
        samples = clip(seconds) + 0.2 * clip(seconds, seed=1).flip(0) ** 2
        np.testing.assert_allclose(vector(GE2E, samples), d_vector(samples.numpy(), GE2E), atol=1e-4)

    def test_faint_speech_is_raised_and_loud_speech_left(self, voices):
        loud, faint, fainter = (vector(voices["d-vector"], level * clip(1)) for level in (1, 0.1, 0.001))
        torch.testing.assert_close(faint, fainter)
        assert not torch.allclose(loud, faint, atol=1e-4)

    def test_spoilt_directories(self, voices, tmp_path):
        spoilt = save_d_vector(tmp_path / "e", hidden_size=14)
        with pytest.raises(InputError, match="weights cannot be loaded"):
            load_speaker_encoder(spoilt)
        (spoilt / "model.safetensors").unlink()
        with pytest.raises(InputError, match="weights cannot be loaded"):
            load_speaker_encoder(spoilt)
        (spoilt / "config.json").write_text('{"model_type": "ge2e-dvector", "sampling_rate": 16000}')
        with pytest.raises(InputError, match=r"config\.json: lacks 'n_mels'"):
            load_speaker_encoder(spoilt)

    @needs_ge2e
    @pytest.mark.skipif(not RAVDESS.is_dir(), reason="needs ../shared/corpora/ravdess")
    def test_clusters_are_real_speakers(self):
        """k-means of the vectors of every emotion that 6 actors act, without the labels of either."""
        from sklearn.cluster import KMeans
        from sklearn.metrics import adjusted_rand_score

        with (RAVDESS / "metadata.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        chosen = sorted({row["speaker"] for row in rows})[:6]
        rows = [row for row in rows if row["speaker"] in chosen]
        clips = [Clip(row["file"], RAVDESS / row["file"]) for row in rows]
        found = speaker_vectors(clips, GE2E, device=CPU)
        groups = KMeans(len(chosen), n_init=10, random_state=0).fit_predict(found)
        assert adjusted_rand_score([row["speaker"] for row in rows], groups) > 0.4


class TestSampleSource:
    @pytest.fixture
    def sample(self, pipeline, corpora, tmp_path):
        def sample(encoder="", **options):
            return m.sample_source(
                m.SampleSourceConfig(
                    model=pipeline.model, manifest=corpora.target, out=tmp_path / "s.h5", n_samples=2,
                    speaker_encoder=str(encoder), **options,
                )
            )  # fmt: skip

        return sample

    def test_vectors_are_in_the_artifact(self, sample, voices, corpora):
        made = Source.load(sample(voices["wavlm"]).out)
        clips = read_clips(corpora.target)
        assert made.utt_id.tolist() == [clip.utt_id for clip in clips] and made.voice.dtype == np.float32
        encoder = load_speaker_encoder(voices["wavlm"])
        with torch.inference_mode():
            expected = [encoder([torch.from_numpy(audio.read(clip.path))])[0].numpy() for clip in clips]
        np.testing.assert_allclose(made.voice, expected, atol=1e-6)
        assert made.header.parents[-1].role == "speaker-encoder"

    def test_nothing_else_changes(self, sample, voices):
        plain = Source.load(sample().out)
        heard = Source.load(sample(voices["d-vector"], force=True).out)
        assert plain.voice is None and heard.voice is not None
        assert [p.role for p in plain.header.parents] == [p.role for p in heard.header.parents[:-1]]
        for name, values in plain.arrays().items():
            np.testing.assert_array_equal(getattr(heard, name), values)

    def test_up_to_date(self, sample, voices, tmp_path):
        sample()
        assert sample(update=True).up_to_date
        assert not sample(voices["wavlm"], update=True).up_to_date
        assert sample(voices["wavlm"], update=True).up_to_date
        assert sample(shutil.copytree(voices["wavlm"], tmp_path / "same"), update=True).up_to_date
        assert not sample(voices["wav2vec2"], update=True).up_to_date
        assert not sample(update=True).up_to_date

    def test_refusals(self, pipeline, corpora, encoders, tmp_path, monkeypatch):
        flags = ["sample-source", "--model", pipeline.model, "--manifest", corpora.target]
        flags += ["--out", tmp_path / "s.h5", "--speaker-encoder"]

        def unwanted(*_, **hooks):
            raise AssertionError("clips were encoded before")

        monkeypatch.setattr("mifuse_cli.model.prepare.hidden_states", unwanted)
        refused(
            mifuse(*flags, encoders["hubert"]), 3, "no speaker encoder", "*ForXVector", "Give the directory"
        )
        refused(mifuse(*flags, pipeline.model), 3, "is a checkpoint, the directory of a model", "/encoder")
        refused(
            mifuse(*flags, tmp_path / "nowhere"), 3, "--speaker-encoder", "no such directory", "a hub name"
        )
        refused(mifuse(*flags, "nobody/nothing"), 6, "--speaker-encoder", "nor available from the model hub")
        assert not (tmp_path / "s.h5").exists()

    def test_hidden_states_have_to_be_there(self, sample, voices):
        with pytest.raises(UsageError, match=r"--speaker-encoder: .* that --no-hidden-states leaves out"):
            sample(voices["wavlm"], no_hidden_states=True)


@pytest.fixture
def structures(monkeypatch):
    """The structures of which labels are made."""
    from mifuse_cli.methods import structure
    from mifuse_cli.steps.compare import running

    made, real = [], structure.structure_of

    def noted(*args, **options):
        made.append(real(*args, **options))
        return made[-1]

    monkeypatch.setattr(structure, "structure_of", noted)
    monkeypatch.setattr(running, "structure_of", noted)
    return made


def test_fuse_hands_them_to_cross_fit(copy, corpora, voices, structures):
    source = copy.root / "s.h5"
    for encoder in ("", voices["d-vector"]):
        m.sample_source(
            m.SampleSourceConfig(
                model=copy.model, manifest=corpora.target, out=source, n_samples=4,
                speaker_encoder=str(encoder), force=True,
            )
        )  # fmt: skip
        m.fuse(m.FuseConfig(lalm=copy.lalm, source=source, out=copy.root / "f.h5", force=True))
    without, with_them = structures
    assert without.voice is None
    np.testing.assert_array_equal(with_them.voice, Source.load(source).voice)


class TestCompare:
    def test_systems_with_cross_fit_alone_look_at_them(self, world, voices, structures, tmp_path):
        from comparing import config, predictions

        chosen = {"systems": "lalm,labels-mi,labels-cross-fit", "names": "a,b"}
        m.compare(config(world, tmp_path / "out", **chosen))
        before = predictions(tmp_path / "out")
        assert [one.voice for one in structures] == [None, None]
        structures.clear()
        encoder = str(voices["d-vector"])
        again = m.compare(config(world, tmp_path / "out", **chosen, speaker_encoder=encoder))
        assert again.made == len(structures) == 2  # of both transfers, the labels of cross-fit
        for one, target in zip(structures, ("b", "a"), strict=True):
            manifest = world / "data" / target / ("manifest.csv" if target == "b" else "metadata.csv")
            expected = speaker_vectors(read_clips(manifest), voices["d-vector"], device=CPU)
            np.testing.assert_array_equal(one.voice, expected)
        assert predictions(tmp_path / "out").keys() == before.keys()
        assert m.compare(config(world, tmp_path / "out", **chosen, speaker_encoder=encoder)).made == 0
        other = save_d_vector(tmp_path / "other", seed=1)
        assert m.compare(config(world, tmp_path / "out", **chosen, speaker_encoder=str(other))).made == 2
        assert m.compare(config(world, tmp_path / "out", **chosen)).made == 2

    def test_of_the_clips_that_are_adapted_to(self, world, voices, structures, tmp_path):
        from comparing import config

        chosen = {"systems": "mifuse-cross-fit", "protocol": "inductive", "folds": 3, "epochs": 1}
        m.compare(config(world, tmp_path / "out", **chosen, speaker_encoder=str(voices["wavlm"])))
        clips = read_clips(world / "data/b/manifest.csv")
        everything = speaker_vectors(clips, voices["wavlm"], device=CPU)
        of_b = structures[:3]
        for one in of_b:
            adapted = [
                clips[u].speaker for u in range(len(clips)) if (everything[u] == one.voice).all(1).any()
            ]
            assert len(one.voice) == len(one.hidden) == len(adapted) and len(set(adapted)) == 2
        assert len({one.voice.tobytes() for one in of_b}) == 3

    def test_another_model_is_told_of_before_clips_are_encoded(self, world, encoders, tmp_path, monkeypatch):
        from comparing import config

        monkeypatch.setattr("mifuse_cli.model.prepare.hidden_states", None)
        with pytest.raises(InputError, match="no speaker encoder"):
            m.compare(config(world, tmp_path / "out", speaker_encoder=str(encoders["wavlm"])))
