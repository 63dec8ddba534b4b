import base64
import csv
import io
import json
import random
import urllib.error
import urllib.request
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import openai
import pytest
import soundfile

from mifuse_cli.demo.corpora import make_corpora
from mifuse_cli.demo.espeak import Synthesiser
from mifuse_cli.demo.standin import StandIn, judge, listen, phrase
from mifuse_cli.errors import InputError
from mifuse_cli.labels import CLASSES

pytestmark = pytest.mark.skipif(
    find_spec("espeakng_loader") is None,
    reason="needs the package espeakng-loader to synthesise speech: pip install 'mifuse[demo]'",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("corpora")
    make_corpora(root, takes=(1, 1))
    return root


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


class TestSynthesiser:
    def test_new_instances_speak_alike(self):
        first, second = Synthesiser(), Synthesiser()
        for _ in range(2):
            clip, sample_rate = first.speak("The window was open.", "en-us+f2", rate=160)
            assert sample_rate == 22050
            assert clip.dtype == np.float32 and 0.5 < len(clip) / sample_rate < 3
            np.testing.assert_array_equal(clip, second.speak("The window was open.", "en-us+f2", rate=160)[0])

    def test_unknown_voice(self):
        with pytest.raises(InputError, match="no voice"):
            Synthesiser().speak("Hello.", "no-such-voice")


class TestCorpora:
    def test_same_seed_same_bytes(self, root, tmp_path):
        calls = []
        make_corpora(tmp_path, takes=(1, 1), progress=lambda done, total: calls.append((done, total)))
        assert contents(tmp_path) == contents(root)
        assert calls == [(n, 80) for n in range(1, 81)]

    def test_another_seed_other_bytes(self, root, tmp_path):
        make_corpora(tmp_path, seed=1, takes=(0, 1))
        mine, other = contents(tmp_path), contents(root)
        audio = [name for name in mine if name.endswith(".wav")]
        assert len(audio) == 40 and all(mine[name] != other[name] for name in audio)

    def test_audio(self, root):
        for corpus, listing in (("source", "manifest.csv"), ("target", "labels.csv")):
            for row in rows(root / corpus / listing):
                info = soundfile.info(root / corpus / row["file"])
                assert (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_16")
                assert 1.0 <= info.duration <= 2.5
                assert float(row["duration_s"]) == pytest.approx(info.duration, abs=1e-3)

    def test_target_manifest_has_no_label(self, root):
        assert set(rows(root / "source/manifest.csv")[0]) == {"file", "speaker", "emotion", "duration_s"}
        clips, labelled = rows(root / "target/manifest.csv"), rows(root / "target/labels.csv")
        assert set(clips[0]) == {"file", "speaker", "duration_s"}
        assert [row["file"] for row in clips] == [row["file"] for row in labelled]
        assert not any(name in (root / "target/manifest.csv").read_text() for name in CLASSES)

    def test_balanced_over_speakers(self, root):
        for corpus, listing in (("source", "manifest.csv"), ("target", "labels.csv")):
            cells = [(row["speaker"], row["emotion"]) for row in rows(root / corpus / listing)]
            assert len(set(cells)) == len(cells) == 40

    def test_order_of_names_tells_no_label(self, root):
        emotions = [row["emotion"] for row in rows(root / "target/labels.csv")]
        changes = sum(a != b for a, b in pairwise(emotions))
        assert changes > 20  # 39 pairs, three quarters of them differ by chance; grouped by label 3 would


def ask(client, samples: np.ndarray, **options):
    stream = io.BytesIO()
    soundfile.write(stream, samples, 16000, format="WAV", subtype="PCM_16")
    data = base64.b64encode(stream.getvalue()).decode()
    content = [
        {"type": "text", "text": "Which emotion?"},
        {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}},
    ]
    return client.chat.completions.create(
        model="standin", messages=[{"role": "user", "content": content}], **options
    )


def texts(completion) -> list[str]:
    return [choice.message.content for choice in completion.choices]


@pytest.fixture(scope="module")
def clips(root) -> list[np.ndarray]:
    return [soundfile.read(root / "target" / row["file"])[0] for row in rows(root / "target/manifest.csv")]


@pytest.fixture
def client():
    with StandIn() as server:
        yield openai.OpenAI(base_url=server.base_url, api_key="any", max_retries=0)


class TestStandIn:
    def test_answers_vary_and_replay_after_a_restart(self, clips):
        runs = []
        for _ in range(2):
            with StandIn() as server:
                client = openai.OpenAI(base_url=server.base_url, api_key="any", max_retries=0)
                runs.append([texts(ask(client, clip))[0] for _ in range(4) for clip in clips[:3]])
        assert runs[0] == runs[1]
        assert len(set(runs[0])) > 6

    def test_n_answers_continue_the_sequence(self, client, clips):
        together = texts(ask(client, clips[0], n=3))
        with StandIn() as server:
            other = openai.OpenAI(base_url=server.base_url, api_key="any", max_retries=0)
            assert [texts(ask(other, clips[0]))[0] for _ in range(3)] == together

    def test_temperature_zero_is_deterministic(self, client, clips):
        answers = {text for _ in range(3) for text in texts(ask(client, clips[0], temperature=0))}
        assert len(answers) == 1
        opinion = json.loads(answers.pop())
        assert sorted(opinion) == sorted(CLASSES) and sum(opinion.values()) == pytest.approx(1, abs=0.02)

    def test_usage_counts_audio(self, client, clips):
        usage = ask(client, clips[0], n=2).usage
        assert usage.prompt_tokens_details.audio_tokens == -(-len(clips[0]) * 10 // 16000)
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens > 0

    def test_models(self, client):
        assert [model.id for model in client.models.list()] == ["standin"]

    @pytest.mark.parametrize("options", [{"n": 0}, {"temperature": 3}])
    def test_bad_options(self, client, clips, options):
        with pytest.raises(openai.BadRequestError):
            ask(client, clips[0], **options)

    def test_audio_that_is_none(self, client):
        content = [{"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}]
        with pytest.raises(openai.BadRequestError, match="decoded"):
            client.chat.completions.create(model="m", messages=[{"role": "user", "content": content}])
        with pytest.raises(openai.BadRequestError, match="input_audio"):
            client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hello"}])

    def test_clip_too_short(self, client):
        with pytest.raises(openai.BadRequestError, match=r"expected 0\.1 s"):
            ask(client, np.zeros(160))

    def test_unknown_path(self, client):
        with pytest.raises(openai.NotFoundError):
            client.embeddings.create(model="m", input="hello")

    def test_no_key(self):
        with StandIn() as server, pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(f"{server.base_url}/models")
        assert error.value.code == 401

    def test_better_than_chance_on_every_class(self, tmp_path):
        make_corpora(tmp_path, takes=(0, 4))
        rng = random.Random(0)
        right: dict[str, list[bool]] = {name: [] for name in CLASSES}
        for row in rows(tmp_path / "target/labels.csv"):
            sound = listen(*soundfile.read(tmp_path / "target" / row["file"]))
            opinions = [judge(sound, rng) for _ in range(5)]
            best = CLASSES[np.argmax(np.mean([list(one.values()) for one in opinions], axis=0))]
            right[row["emotion"]].append(best == row["emotion"])
        assert min(np.mean(hits) for hits in right.values()) > 0.35
        assert 0.5 < np.mean([hit for hits in right.values() for hit in hits]) < 0.75

    def test_silence_is_heard_without_pitch(self):
        sound = listen(np.zeros(16000), 16000)
        assert sound.tempo == 0 and sound.melody == 0 and np.isfinite(sound.level)

    def test_phrases_are_mostly_plain_json(self):
        opinion = dict.fromkeys(CLASSES, 0.25)
        written = [phrase(opinion, random.Random(n), plain=False) for n in range(500)]
        assert 0.7 < sum(text.startswith('{"') and "%" not in text for text in written) / 500 < 0.9
        assert 0 < sum("cannot" in text for text in written) < 25
        assert any(text.startswith("```json") for text in written) and any("%" in text for text in written)
