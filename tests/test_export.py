"""`mifuse export`: what transformers and onnxruntime make of a model, its card, and what is known of LALMs."""

import ast
import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSES, mifuse, refused, save_encoder, train_config

import mifuse_cli as m
from mifuse_cli import artifacts, audio
from mifuse_cli.errors import ArtifactError, DependencyError, InputError, MifuseError
from mifuse_cli.model import exporting, portable
from mifuse_cli.model.checkpoint import Checkpoint, new_head
from mifuse_cli.model.encoder import LogMelEncoder, WhisperEncoder, load_encoder
from mifuse_cli.model.shape import POOLINGS, Shape
from mifuse_cli.model.standard import Statistics
from mifuse_cli.steps.export.register import _register, licence_of, trained_on

needs_onnx = pytest.mark.skipif(
    find_spec("onnxruntime") is None,
    reason="needs onnx, onnxscript and onnxruntime: pip install 'mifuse[onnx]'",
)
FAMILIES = {
    "wav2vec2": {},
    "wav2vec2 with layer norm": {"feat_extract_norm": "layer", "do_stable_layer_norm": True},
    "hubert": {},
    "wavlm": {},
    "whisper": {},
    "whisper mean+deviation": {},
    "hubert attentive": {},
    "logmel": {},
}
LENGTHS = (0.03, 0.1, 0.37, 1.234, 2.0)


def waveforms(lengths=LENGTHS):
    """Noise that rises and falls, (S,) each."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return [
            torch.randn(int(s * audio.RATE)) * torch.linspace(0.02, 0.3, int(s * audio.RATE)) for s in lengths
        ]


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request, tmp_path_factory) -> Checkpoint:
    """Of every family, with a random head over all layers that makes use of all it has."""
    directory = tmp_path_factory.mktemp("encoder") / "e"
    if request.param == "logmel":
        directory.mkdir()
        LogMelEncoder(n_mels=16, channels=8).save(directory)
    else:
        save_encoder(directory, request.param.split()[0], **FAMILIES[request.param])
    pooling = next((one for one in POOLINGS if request.param.endswith(f" {one}")), "mean")
    encoder = load_encoder(directory, pooling=pooling)
    if encoder.query is not None:
        with torch.random.fork_rng():
            torch.nn.init.normal_(encoder.query)
        directory = directory.with_name("attentive")
        directory.mkdir()
        encoder.save(directory)
    shape = Shape(
        classes=CLASSES,
        layers=tuple(range(encoder.layers)),
        width=encoder.width,
        hidden=8,
        dropout=0.3,
        normalize="source",
        statistics_of="source",
        tune="head",
        encoder="local/e",
        temperature=1.0,
        linear=True,
        pooling=pooling,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = new_head(shape).eval()
        for part in (head.mix, head.scale, head.shift, head.linear.weight, head.linear.bias):
            part.data.normal_()
        head.temperature.fill_(1.7)
        mean, std = (
            torch.randn(encoder.layers, encoder.width),
            torch.rand(encoder.layers, encoder.width) + 0.5,
        )
    return Checkpoint(shape, head, Statistics(mean, std), directory)


@torch.no_grad()
def expected(checkpoint, clips):
    features = load_encoder(checkpoint.encoder_dir, pooling=checkpoint.shape.pooling)(clips)[
        :, list(checkpoint.shape.layers)
    ]
    statistics = checkpoint.statistics
    return checkpoint.head((features - statistics.mean) / statistics.std).softmax(dim=-1).numpy()


def by_pipeline(directory, clips, **options):
    from transformers import pipeline

    classify = pipeline("audio-classification", model=str(directory), trust_remote_code=True)
    found = classify([one.numpy() for one in clips], top_k=None, **options)
    rows = [{one["label"]: one["score"] for one in row} for row in found]
    return np.array([[row[name] for name in CLASSES] for row in rows])


def by_onnx(directory, clips):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(directory / "model.onnx"))
    return np.concatenate([session.run(None, {"waveform": one[None].numpy()})[0] for one in clips])


class TestPortable:
    def test_a_pipeline_gives_the_same_probabilities(self, checkpoint, tmp_path):
        clips = waveforms()
        probs = expected(checkpoint, clips)
        assert np.ptp(probs, axis=0).max() > 1e-3  # it hears something
        exporting.save_transformers(exporting.portable_model(checkpoint), tmp_path)
        np.testing.assert_allclose(by_pipeline(tmp_path, clips), probs, atol=1e-5)
        np.testing.assert_allclose(by_pipeline(tmp_path, clips, batch_size=3), probs, atol=1e-5)
        assert exporting.difference(checkpoint, exporting.portable_model(checkpoint)) < 1e-5

    @needs_onnx
    @pytest.mark.slow
    def test_so_does_onnx_at_any_length(self, checkpoint, tmp_path):
        """Takes 10 s and more a family; `TestExport` does so for Whisper alone."""
        model = exporting.portable_model(checkpoint)
        exporting.save_onnx(model, tmp_path)
        clips = waveforms((0.1, 0.37, 1.234, 2.0, 6.1))
        np.testing.assert_allclose(by_onnx(tmp_path, clips), expected(checkpoint, clips), atol=1e-5)
        assert exporting.onnx_difference(model, tmp_path) < 1e-5

    def test_another_model_is_noticed(self, checkpoint):
        model = exporting.portable_model(checkpoint)
        with torch.no_grad():
            model.head.out.bias[0] += 0.5
        with pytest.raises(MifuseError, match="gives other probabilities"):
            exporting.difference(checkpoint, model)

    def test_whisper_takes_more_than_30_s(self, checkpoint):
        if not isinstance(load_encoder(checkpoint.encoder_dir), WhisperEncoder):
            pytest.skip("of Whisper alone: the others have no windows")
        clips = waveforms((29.99, 30.05, 61.0))
        model = exporting.portable_model(checkpoint)
        with torch.no_grad():
            found = torch.cat([model(one[None]).logits.softmax(dim=-1) for one in clips]).numpy()
        np.testing.assert_allclose(found, expected(checkpoint, clips), atol=1e-5)

    def test_its_code_needs_torch_and_transformers_alone(self):
        found = set()
        for node in ast.walk(ast.parse(Path(portable.__file__).read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            found |= {name.split(".")[0] for name in names}
        assert found == {"collections", "torch", "transformers", "typing"}


@pytest.fixture(scope="module")
def student(pipeline, corpora, tmp_path_factory):
    """A student of cross-fit labels, with a linear part, and its score."""
    root = tmp_path_factory.mktemp("student")
    m.fuse(m.FuseConfig(lalm=pipeline.lalm, source=pipeline.source, out=root / "fused.h5"))
    m.train(train_config(pipeline, corpora, root / "student", fused=root / "fused.h5"))
    score = m.EvaluateConfig(model=root / "student", manifest=corpora.labels, out=root / "eval.h5")
    m.evaluate(score)
    return root / "student", root / "eval.h5"


def predicted(model, corpora):
    found = m.predict(m.PredictConfig(model=model, wav_dir=corpora.wav_dir)).predictions
    return [torch.from_numpy(audio.read(Path(one["file"]))) for one in found], np.array(
        [[one["probs"][name] for name in CLASSES] for one in found]
    )


class TestExport:
    def test_as_predict(self, student, corpora, tmp_path):
        result = m.export(m.ExportConfig(model=student[0], out=tmp_path / "t"))
        assert result.files.keys() == {
            "README.md", "config.json", "model.safetensors", "modeling_mifuse.py", "preprocessor_config.json",
        }  # fmt: skip
        assert result.difference < 1e-5
        clips, probs = predicted(student[0], corpora)
        np.testing.assert_allclose(by_pipeline(tmp_path / "t", clips), probs, atol=1e-5)
        config = json.loads((tmp_path / "t" / "config.json").read_text())
        assert config["id2label"] == {str(n): name for n, name in enumerate(CLASSES)}

    @needs_onnx
    def test_for_the_hub(self, student, corpora, tmp_path):
        out = tmp_path / "hub"
        arguments = ["export", "--model", student[0], "--to", "hub-folder", "--out", out]
        result = mifuse(*arguments, "--evaluation", student[1], "--license", "cc-by-nc-sa-4.0")
        assert result.exit_code == 0, result.stderr
        assert "probabilities differ by at most" in result.stdout
        clips, probs = predicted(student[0], corpora)
        np.testing.assert_allclose(by_onnx(out, clips), probs, atol=1e-4)
        np.testing.assert_allclose(by_pipeline(out, clips), probs, atol=1e-4)
        assert ".onnx" in (out / ".gitattributes").read_text()

    @pytest.mark.parametrize("to", ["transformers", "onnx"])
    def test_it_is_no_checkpoint_again(self, student, corpora, tmp_path, to):
        m.export(m.ExportConfig(model=student[0], out=tmp_path / "shared", to=to))
        told = "shared: is a model that mifuse export wrote for other programs, not the checkpoint that it was made"
        for command in (
            f"predict {corpora.wav_dir} --model",
            f"evaluate --manifest {corpora.labels} --model",
        ):
            refused(mifuse(*command.split(), tmp_path / "shared"), 4, told)
        refused(mifuse("show", tmp_path / "shared"), 3, told)
        file = tmp_path / "shared" / ("model.onnx" if to == "onnx" else "modeling_mifuse.py")
        refused(
            mifuse("predict", corpora.wav_dir, "--model", file),
            3,
            "a file of a model that mifuse export wrote",
        )
        train = ["train-source", "--manifest", corpora.source, "--out", tmp_path / "x", "--encoder"]
        refused(mifuse(*train, tmp_path / "shared"), 3, told)
        found = mifuse("validate", tmp_path / "shared")
        assert found.exit_code == 0 and found.stdout.endswith("shared: export, ok\n")

    def test_an_earlier_export_is_replaced_if_told(self, student, tmp_path):
        arguments = ["export", "--model", student[0], "--out", tmp_path / "t"]
        assert mifuse(*arguments).exit_code == 0
        refused(mifuse(*arguments), 3, "exists already", "--force")
        assert mifuse(*arguments, "--force").exit_code == 0

    @pytest.mark.parametrize("name", ["onnx", "onnxscript", "onnxruntime"])
    def test_without_the_packages_for_onnx(self, student, tmp_path, monkeypatch, name):
        monkeypatch.setattr(exporting, "find_spec", lambda one: None if one == name else True)
        with pytest.raises(DependencyError, match=rf"packages {name}: pip install 'mifuse\[onnx\]'"):
            m.export(m.ExportConfig(model=student[0], to="onnx", out=tmp_path / "o"))
        assert not (tmp_path / "o").exists()

    def test_other_directories_stay(self, student, tmp_path):
        (tmp_path / "notes.txt").touch()
        with pytest.raises(InputError, match="no earlier export"):
            m.export(m.ExportConfig(model=student[0], out=tmp_path, force=True))


class TestCard:
    def card(self, student, tmp_path, **options):
        from huggingface_hub import ModelCard

        out = tmp_path / "card"
        m.export(m.ExportConfig(model=student, out=out, force=True, **options))
        return ModelCard.load(out / "README.md")

    def test_of_a_student_with_a_score(self, student, tmp_path):
        found = self.card(
            student[0],
            tmp_path,
            evaluation=student[1],
            source_corpus="emodb",
            target_corpus="ravdess",
            license="cc-by-nc-sa-4.0",
        )
        data = found.data
        assert (data.license, data.pipeline_tag, data.library_name) == (
            "cc-by-nc-sa-4.0", "audio-classification", "transformers",
        )  # fmt: skip
        header = artifacts.read(student[1]).header
        results = {one.metric_type: one for one in data.eval_results}
        assert results["recall"].metric_value == pytest.approx(header.parameters["metrics"]["ua"], abs=1e-4)
        assert results["recall"].dataset_name == "ravdess"
        text = " ".join(found.text.split())
        for part in (
            header.parameters["signature"],
            "CC BY-NC-SA 4.0 ([source](https://zenodo.org/records/1188976))",
            "| source, with labels | emodb | CC0 1.0, as published by audEERING ([source](https://github.com/",
            "`m` answered about the clips of the target: whether it was trained on ravdess is unknown.",
            "cross-fit labels, to 24 clips",
            "Article 5(1)(f)",
            "Article 50(3)",
            "consented",
        ):
            assert part in text, part

    def test_it_tells_no_path_and_no_clip(self, student, tmp_path, corpora):
        self.card(student[0], tmp_path, evaluation=student[1])
        for file in (tmp_path / "card").iterdir():
            content = file.read_bytes()
            for secret in (str(tmp_path.parent), str(corpora.wav_dir.parent.parent), "00-2", "07-2"):
                assert secret.encode() not in content, (file.name, secret)

    def test_of_a_source_model_without_a_score(self, pipeline, tmp_path):
        found = self.card(pipeline.model, tmp_path, source_corpus="crema-d")
        assert not found.data.eval_results and "No score was given" in found.text
        assert "Open Database License" in found.text and "target, " not in found.text.split("## Data")[1]

    def test_names_of_corpora_are_those_that_prepare_recorded(self, pipeline, corpora, tmp_path):
        place = corpora.source.parent / "summary.json"
        place.write_text('{"corpus": "crema-d"}')
        try:
            assert "crema-d" in self.card(pipeline.model, tmp_path).text
            assert "| source, with labels | crema-d |" in self.card(pipeline.student, tmp_path).text
            place.write_text('{"corpus": "generic"}')  # a form, and no corpus' name
            assert (
                "| source, with labels | not recorded | unknown; see"
                in self.card(pipeline.model, tmp_path).text
            )
        finally:
            place.unlink()
        assert "crema-d" not in self.card(pipeline.model, tmp_path).text

    def test_a_score_of_another_model_is_refused(self, student, pipeline, corpora, tmp_path):
        with pytest.raises(ArtifactError, match="is no score of"):
            m.export(m.ExportConfig(model=pipeline.student, evaluation=student[1], out=tmp_path / "e"))

    def test_a_score_of_its_predictions_is_taken(self, student, corpora, tmp_path):
        made = tmp_path / "p.h5"
        m.predict(m.PredictConfig(model=student[0], wav_dir=corpora.wav_dir, out=made))
        for number, predictions in enumerate((made, student[0] / "predictions.h5")):
            score = tmp_path / f"{number}.h5"
            m.evaluate(m.EvaluateConfig(predictions=predictions, manifest=corpora.labels, out=score))
            assert self.card(student[0], tmp_path, evaluation=score).data.eval_results

    def test_a_model_by_speaker_says_what_is_exported(self, student, corpora, tmp_path):
        other = shutil.copytree(student[0], tmp_path / "s")
        config = json.loads((other / "config.json").read_text())
        (other / "config.json").write_text(json.dumps({**config, "normalize": "speaker"}))
        result = m.export(m.ExportConfig(model=other, out=tmp_path / "e"))
        assert "stored statistics" in result.notes[0]
        assert "--normalize source" in (tmp_path / "e" / "README.md").read_text()


class TestRegister:
    @pytest.mark.parametrize(
        ("lalm", "corpus", "known"),
        [
            ("DeSTA-ntu/DeSTA2.5-Audio-Llama-3.1-8B", "IEMOCAP", True),
            ("DeSTA-ntu/DeSTA2.5-Audio-Llama-3.1-8B", "ravdess", False),
            ("nvidia/audio-flamingo-2", "msp-podcast", True),
            ("nvidia/audio-flamingo-2", "crema-d", False),
            ("nvidia/audio-flamingo-3", "msp-podcast", None),
            ("cwang621/blsp-emo", "iemocap", True),
            ("cwang621/blsp-emo", "msp-improv", None),
            ("gpt-audio", "iemocap", None),
            ("standin", "ravdess", None),
        ],
    )
    def test_unknown_stays_unknown(self, lalm, corpus, known):
        found, source = trained_on(lalm, corpus)
        assert found is known and bool(source) == (known is not None)

    def test_every_entry_has_its_source(self):
        register = _register()
        for entry in [*register["corpora"].values(), *register["lalms"]]:
            assert entry["source"].startswith("https://")
        assert licence_of("RAVDESS")[0] == "CC BY-NC-SA 4.0" and licence_of("meld") is None
