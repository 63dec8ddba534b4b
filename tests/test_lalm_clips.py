"""How a clip is cut, hashed and sent."""

import base64
import hashlib
import io
import itertools
import math
import wave
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from mifuse_cli import audio
from mifuse_cli.audio import RATE, Excerpt
from mifuse_cli.errors import InputError
from mifuse_cli.lalm.questions.clips import LONG_CLIPS, AudioOptions

ALL_RULES = [
    AudioOptions(limit, long, kind) for limit in (1.0, 30.0) for long in LONG_CLIPS for kind in ("wav", "mp3")
]


def noise(seconds, seed=0):
    """16-bit samples (S,)."""
    return np.random.default_rng(seed).integers(-9000, 9000, round(seconds * RATE)).astype(np.int16)


def pcm(data):
    with wave.open(io.BytesIO(data)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, RATE)
        return np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")


@pytest.fixture
def write(tmp_path):
    def write(samples, name="a.wav"):
        soundfile.write(tmp_path / name, samples, RATE, subtype="PCM_16")
        return tmp_path / name

    return write


def read(rule, path, known=None, context=""):
    return rule.read_clip("a", Excerpt(path), context, known)


class TestPieces:
    @given(st.integers(1, 100 * RATE), st.floats(0.5, 40), st.sampled_from(LONG_CLIPS))
    def test_they_are_what_the_rule_says(self, samples, limit, long):
        seconds = samples / RATE
        pieces = AudioOptions(limit, long, "wav").pieces(seconds)
        if seconds <= limit or long == "stop":
            assert pieces == (seconds,)
        elif long == "skip":
            assert pieces == ()
        elif long == "crop":
            assert pieces == (limit,)
        else:
            assert sum(pieces) == pytest.approx(seconds)
            assert max(pieces) - min(pieces) < 2 / RATE and max(pieces) < limit + 1 / RATE
            assert len(pieces) in (math.ceil(seconds / limit), math.ceil(samples / math.floor(limit * RATE)))

    @pytest.mark.parametrize("limit", [0.29, 0.3, 1.0])
    def test_those_sent_are_as_many_as_those_planned(self, write, limit):
        rule = AudioOptions(limit, "chunk", "wav")
        samples = noise(2.0)
        one = read(rule, write(samples))
        sent = [pcm(rule.bytes_of(one, piece)) for piece in range(len(one.pieces))]
        assert [len(part) / RATE for part in sent] == pytest.approx(one.pieces, abs=1 / RATE)
        assert max(map(len, sent)) <= math.ceil(limit * RATE)
        np.testing.assert_array_equal(np.concatenate(sent), samples)


class TestSent:
    @pytest.mark.parametrize("long", ["stop", "skip", "chunk"])
    def test_the_hash_is_that_of_the_whole_clip(self, write, long):
        samples = noise(1.5)
        one = read(AudioOptions(1.0, long, "wav"), write(samples), context="hello")
        whole = audio.wav_bytes(samples / np.float32(32768))
        np.testing.assert_array_equal(pcm(whole), samples)
        assert (one.sha256, one.bytes) == (hashlib.sha256(whole).hexdigest(), len(whole))
        assert (one.duration, one.sr, one.context) == (1.5, RATE, "hello")

    def test_of_a_cropped_clip_the_middle_is_hashed_and_sent(self, write):
        samples, rule = noise(1.5), AudioOptions(1.0, "crop", "wav")
        one = read(rule, write(samples))
        sent = rule.bytes_of(one, 0)
        np.testing.assert_array_equal(pcm(sent), samples[RATE // 4 : -RATE // 4])
        assert (one.sha256, one.bytes) == (hashlib.sha256(sent).hexdigest(), len(sent))
        assert (one.duration, one.pieces) == (1.5, (1.0,))

    @pytest.mark.parametrize("long", LONG_CLIPS)
    def test_a_short_clip_is_sent_as_it_is(self, write, long):
        samples, rule = noise(1.0), AudioOptions(1.0, long, "wav")
        one = read(rule, write(samples))
        np.testing.assert_array_equal(pcm(rule.bytes_of(one, 0)), samples)
        assert one.pieces == (1.0,)

    def test_the_same_audio_in_another_container_is_the_same(self, write):
        rule = AudioOptions(30.0, "stop", "wav")
        wav, flac = read(rule, write(noise(1.0))), read(rule, write(noise(1.0), "b.flac"))
        assert wav.sha256 == flac.sha256 and wav.file_sha256 != flac.file_sha256

    def test_mp3(self, write):
        time = np.arange(2 * RATE) / RATE
        path = write((9000 * np.sin(2 * np.pi * 220 * time)).astype(np.int16))
        rule = AudioOptions(1.5, "chunk", "mp3")
        one = read(rule, path)
        assert one == read(replace(rule, upload="wav"), path)
        for piece in range(2):
            sent = rule.bytes_of(one, piece)
            assert soundfile.info(io.BytesIO(sent)).format == "MP3"
            heard, rate = soundfile.read(io.BytesIO(sent))
            assert len(heard) / rate == pytest.approx(1.0, abs=0.2)
            loudest = np.argmax(np.abs(np.fft.rfft(heard[:RATE])))
            assert loudest * RATE / len(heard[:RATE]) == pytest.approx(220, abs=3)
            assert len(sent) < len(replace(rule, upload="wav").bytes_of(one, piece)) / 3

    def test_how_much_it_is(self, write):
        rule = AudioOptions(30.0, "stop", "wav")
        one = read(rule, write(noise(1.3)))
        assert rule.upload_bytes(one.pieces[0]) == pytest.approx(
            len(base64.b64encode(rule.bytes_of(one, 0))), abs=4
        )
        assert replace(rule, upload="mp3").upload_bytes(1.3) < rule.upload_bytes(1.3) / 3


class TestFiles:
    @pytest.mark.parametrize("seconds", [0.5, 1.0, 1.5, 2.5])
    def test_what_is_known_makes_no_difference(self, write, seconds):
        path = write(noise(seconds))
        for before, now in itertools.product(ALL_RULES, repeat=2):
            assert read(now, path, read(before, path, context="old"), "new") == read(now, path, context="new")

    def test_a_known_file_is_not_decoded_again(self, write, monkeypatch):
        path = write(noise(1.5))
        known = read(AudioOptions(30.0, "stop", "wav"), path)
        monkeypatch.delattr(audio, "read")
        one = read(AudioOptions(1.0, "chunk", "wav"), path, known, context="hello")
        assert one == replace(known, context="hello", pieces=(0.75, 0.75))

    def test_a_file_that_was_changed_is_read_anew(self, write):
        rule = AudioOptions(30.0, "stop", "wav")
        known = read(rule, write(noise(1.0)))
        changed = read(rule, write(noise(1.0, seed=1)), known)
        assert changed.sha256 != known.sha256 and changed.file_sha256 != known.file_sha256

    @pytest.mark.parametrize("rule", ALL_RULES, ids=str)
    def test_a_file_that_was_changed_under_way_is_not_sent(self, write, rule):
        one = replace(read(rule, write(noise(1.5))), pieces=(1.5,))
        write(noise(1.5, seed=1))
        with pytest.raises(InputError, match=r"a\.wav: was changed since the run began"):
            rule.bytes_of(one, 0)

    def test_what_is_no_audio_is_refused(self, tmp_path):
        path = tmp_path / "a.wav"
        rule = AudioOptions(30.0, "stop", "wav")
        with pytest.raises(InputError, match=r"a\.wav: cannot be read"):
            read(rule, path)
        path.write_text("no audio")
        with pytest.raises(InputError, match=r"a\.wav: cannot be decoded"):
            read(rule, path)
