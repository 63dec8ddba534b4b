import io
import math
import os
import tracemalloc
import wave

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from mifuse_cli import audio
from mifuse_cli.audio import Excerpt
from mifuse_cli.errors import DependencyError, InputError


def tone(rate, hertz=440.0, seconds=0.5):
    return 0.5 * np.sin(2 * math.pi * hertz * np.arange(int(rate * seconds)) / rate)


def pitch(samples):
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), n=audio.RATE))  # one bin a hertz
    return int(spectrum.argmax())


FORMATS = {".oga": "OGG", ".opus": "OGG", ".aif": "AIFF", ".aifc": "AIFF"}
"""Of suffixes whose format libsndfile does not know by name."""


def write(path, samples, rate):
    subtype = "OPUS" if path.suffix == ".opus" else None
    soundfile.write(path, samples, rate, format=FORMATS.get(path.suffix), subtype=subtype)
    return path


@pytest.mark.parametrize("suffix", audio.SUFFIXES)
def test_every_format_is_read(tmp_path, suffix):
    write(tmp_path / f"a{suffix}", tone(16_000), 16_000)
    samples = audio.read(tmp_path / f"a{suffix}")
    assert samples.dtype == np.float32 and samples.ndim == 1
    assert len(samples) == pytest.approx(8_000, abs=1_200)  # mp3 comes in frames of 576
    assert pitch(samples) == pytest.approx(440, abs=2)
    assert np.abs(samples).max() == pytest.approx(0.5, abs=0.1)


def test_channels_are_averaged(tmp_path):
    left, right = np.array([0.5, 0.25, -0.5]), np.array([0.25, -0.25, -0.5])
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), 16_000)
    np.testing.assert_array_equal(audio.read(tmp_path / "a.wav"), np.float32([0.375, 0, -0.5]))


@pytest.mark.parametrize("rate", [48_000, 44_100, 8_000])
def test_other_rates_are_resampled(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", tone(rate), rate)
    samples = audio.read(tmp_path / "a.wav")
    assert samples.dtype == np.float32 and samples.flags.c_contiguous
    assert len(samples) == 8_000
    assert pitch(samples) == pytest.approx(440, abs=2)
    assert np.abs(samples[1000:-1000]).max() == pytest.approx(0.5, abs=0.01)


ODD_RATES = (11_127, 15_999, 44_101, 96_001)


@pytest.mark.parametrize("rate", ODD_RATES)
def test_rates_without_a_common_divisor_take_little_memory(tmp_path, rate, monkeypatch):
    monkeypatch.setattr("torchaudio.functional.resample", None)  # whose memory is not traced
    soundfile.write(tmp_path / "a.wav", tone(rate, seconds=5), rate, subtype="FLOAT")
    audio.read(tmp_path / "a.wav")  # now everything is loaded
    tracemalloc.start()
    samples = audio.read(tmp_path / "a.wav")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**26
    assert samples.dtype == np.float32 and len(samples) == 80_000
    np.testing.assert_allclose(samples[100:-100], tone(16_000, seconds=5)[100:-100], atol=1e-3)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 24_000, 32_000, 44_100, 48_000])
@pytest.mark.parametrize("count", [1, 100, 40_000])
def test_both_ways_of_resampling_are_one_filter(monkeypatch, rate, count):
    noise = np.random.default_rng(0).normal(0, 0.3, count).astype(np.float32)
    monkeypatch.setattr(audio, "_LARGEST_FILTER", 0)
    ours = audio.resampled(noise, rate)
    monkeypatch.setattr(audio, "_CHUNK", 777)
    np.testing.assert_array_equal(audio.resampled(noise, rate), ours)
    monkeypatch.undo()
    # Torchaudio makes its weights in single precision.
    np.testing.assert_allclose(audio.resampled(noise, rate), ours, atol=1e-4)


def test_common_rates_are_resampled_as_ever():
    from torch import from_numpy
    from torchaudio.functional import resample

    noise = np.random.default_rng(0).normal(0, 0.3, 9_000).astype(np.float32)
    for rate in (8_000, 11_025, 22_050, 24_000, 32_000, 44_100, 48_000):
        expected = resample(from_numpy(noise), rate, audio.RATE).numpy()
        np.testing.assert_array_equal(audio.resampled(noise, rate), expected)


def test_what_16_khz_cannot_hold_is_filtered_out(tmp_path):
    for rate in (48_000, 48_001):
        soundfile.write(tmp_path / "a.wav", tone(rate, hertz=12_000), rate)
        assert np.abs(audio.read(tmp_path / "a.wav")[500:-500]).max() < 0.01  # not folded down to 4 kHz


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_samples_that_are_no_numbers_are_refused(tmp_path, bad):
    soundfile.write(tmp_path / "a.wav", np.array([0.0, bad, 0.0]), 16_000, subtype="FLOAT")
    with pytest.raises(InputError, match=r"a\.wav: holds NaN or infinite samples"):
        audio.read(tmp_path / "a.wav")


def test_no_samples_are_refused(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(0), 16_000)
    for opened in (audio.read, audio.seconds):
        with pytest.raises(InputError, match=r"a\.wav: holds no audio samples"):
            opened(tmp_path / "a.wav")


@pytest.mark.parametrize("content", [b"", b"no audio at all", b"RIFF\x10\0\0\0WAVEfmt "])
def test_corrupt_files_are_refused(tmp_path, content):
    (tmp_path / "a.wav").write_bytes(content)
    for opened in (audio.read, audio.seconds):
        with pytest.raises(InputError, match=r"a\.wav: cannot be decoded"):
            opened(tmp_path / "a.wav")


@pytest.mark.parametrize(
    ("content", "said"), [(b"", "it is empty"), (b"<html>no</html>", "nothing of the kind")]
)
def test_what_is_no_mp3_is_there_all_the_same(tmp_path, content, said):
    (tmp_path / "a.mp3").write_bytes(content)
    with pytest.raises(InputError, match=said) as raised:
        audio.read(tmp_path / "a.mp3")
    assert "exist" not in str(raised.value)


@pytest.mark.parametrize("opened", [audio.read, audio.seconds, audio.file_sha256])
def test_a_missing_file_is_refused(tmp_path, opened):
    with pytest.raises(InputError, match=r"none\.wav"):
        opened(tmp_path / "none.wav")


@pytest.mark.parametrize("rate", [8_000, 48_000])
@pytest.mark.parametrize("suffix", audio.SUFFIXES)
def test_seconds_are_those_of_what_is_read(tmp_path, suffix, rate, monkeypatch):
    path = tmp_path / f"a{suffix}"
    write(path, np.stack([tone(rate, seconds=0.7)] * 2, axis=1), rate)
    read = audio.read(path)
    monkeypatch.setattr(soundfile.SoundFile, "read", None)  # the header has to do
    assert audio.seconds(path) == pytest.approx(len(read) / audio.RATE, abs=1 / audio.RATE)
    assert audio.seconds(path) == pytest.approx(0.7, abs=0.1)


samples = st.integers(1, 400).map(np.arange)
durations = st.integers(1, 500).map(lambda n: n / audio.RATE)


@given(samples, durations)
def test_the_middle_is_kept(clip, seconds):
    cut = audio.crop(clip, seconds)
    assert len(cut) == min(len(clip), round(seconds * audio.RATE))
    before, after = cut[0], clip[-1] - cut[-1]
    assert after - before in (0, 1)
    np.testing.assert_array_equal(cut, clip[before : before + len(cut)])


@given(samples, durations)
def test_pieces_are_few_and_equal_and_lose_nothing(clip, seconds):
    pieces, most = audio.chunks(clip, seconds), round(seconds * audio.RATE)
    np.testing.assert_array_equal(np.concatenate(pieces), clip)
    sizes = [len(piece) for piece in pieces]
    assert max(sizes) <= most and max(sizes) - min(sizes) <= 1
    assert (len(pieces) - 1) * most < len(clip)  # one less would not do


def pcm_of(content):
    with wave.open(io.BytesIO(content)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 16_000)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2")


def test_16_bit_audio_is_sent_as_it_was(tmp_path):
    every = np.arange(-32768, 32768).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", every, 16_000, subtype="PCM_16")
    np.testing.assert_array_equal(pcm_of(audio.wav_bytes(audio.read(tmp_path / "a.wav"))), every)


def test_loud_samples_are_clipped_and_do_not_wrap():
    assert pcm_of(audio.wav_bytes(np.array([1.5, 1.0, -1.0, -1.5, 0.5]))).tolist() == [
        32767,
        32767,
        -32768,
        -32768,
        16384,
    ]


def test_mp3_sounds_alike_and_is_smaller(tmp_path):
    noise = np.random.default_rng(0).normal(0, 0.05, 4 * audio.RATE)
    sent = np.float32(tone(audio.RATE, seconds=4) + noise)
    content = audio.mp3_bytes(sent)
    assert 32_000 * 4 / 8 < len(content) < 64_000 * 4 / 8
    (tmp_path / "a.mp3").write_bytes(content)
    heard = audio.read(tmp_path / "a.mp3")
    assert soundfile.info(tmp_path / "a.mp3").samplerate == audio.RATE
    assert len(heard) == pytest.approx(len(sent), abs=1_200) and pitch(heard) == pytest.approx(440, abs=2)
    assert np.corrcoef(heard[: len(sent)], sent[: len(heard)])[0, 1] > 0.95
    assert audio.mp3_bytes(sent) == content


def test_without_mp3_in_libsndfile_the_message_says_so(monkeypatch):
    monkeypatch.setattr(soundfile, "available_formats", lambda: {"WAV": "", "FLAC": ""})
    with pytest.raises(DependencyError, match=r"libsndfile .* cannot write MP3, expected 1\.1"):
        audio.mp3_bytes(np.zeros(100, np.float32))


def test_sha256_is_that_of_the_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert audio.file_sha256(tmp_path / "a").startswith("ba7816bf8f01cfea414140de5dae2223")


# Parts of recordings


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg"])
def test_a_part_is_that_of_the_whole(tmp_path, suffix):
    path = write(tmp_path / f"a{suffix}", tone(16_000, seconds=2), 16_000)
    whole, part = audio.read(path), audio.read(path, 0.5, 1.25)
    np.testing.assert_allclose(part, whole[8_000:20_000], atol=1e-4)
    assert audio.seconds(path, 0.5, 1.25) == audio.check(path, 0.5, 1.25) == 0.75
    assert len(audio.read(path, 1.5)) == 8_000
    assert len(audio.read(path, 1.5, 2.05)) == 8_000  # annotators round


def test_one_channel(tmp_path):
    both = np.stack([tone(16_000), tone(16_000, hertz=880)], axis=1)
    path = write(tmp_path / "a.wav", both, 16_000)
    assert [pitch(audio.read(path, channel=n)) for n in (0, 1)] == [440, 880]
    with pytest.raises(InputError, match=r"has 2 channels, expected at least 3"):
        audio.read(path, channel=2)


@pytest.mark.parametrize(("start", "end"), [(2.0, None), (1.0, 2.5), (3.0, 4.0)])
def test_a_part_that_is_not_there(tmp_path, start, end):
    path = write(tmp_path / "a.wav", tone(16_000, seconds=2), 16_000)
    for opened in (audio.read, audio.check, audio.seconds):
        with pytest.raises(InputError, match=r"a\.wav: the clip is from .* but the file ends at 2 s"):
            opened(path, start, end)


def test_keys_tell_parts_apart_and_whole_files_by_their_bytes(tmp_path):
    path = write(tmp_path / "a.wav", tone(16_000, seconds=2), 16_000)
    (tmp_path / "b.wav").write_bytes(path.read_bytes())
    assert audio.key(path) == audio.key(tmp_path / "b.wav") == audio.file_sha256(path)
    parts = [(0.0, 1.0), (0.0, 1.5), (0.5, 1.5), (0.5, None), (0.0, None, 1)]
    keys = [audio.key(path, *part) for part in parts]
    assert len({audio.key(path), *keys}) == 6
    assert keys == [audio.key(tmp_path / "b.wav", *part) for part in parts]
    write(path, tone(16_000, seconds=1.9), 16_000)
    assert audio.key(path, 0.0, 1.0) != keys[0]


# Audio in which there is nothing to hear


@pytest.mark.parametrize(
    ("samples", "subtype", "message"),
    [
        (np.zeros(8_000), "PCM_16", "is silent throughout"),
        (np.full(8_000, 1e-5), "FLOAT", "is silent throughout"),
        (np.full(8_000, 0.3), "PCM_16", "one constant value"),
        (np.stack([tone(16_000), -tone(16_000)], axis=1), "PCM_16", "opposite phase.*'channel'"),
        (np.stack([tone(16_000), -0.9 * tone(16_000)], axis=1), "PCM_16", "opposite phase"),
        (
            np.where(np.arange(8_000) == 7_000, 1e19, tone(16_000)),
            "FLOAT",
            "samples reach 1e\\+19, expected at most 1",
        ),
        (np.where(np.arange(8_000) == 7_000, -1e30, tone(16_000)), "FLOAT", "samples reach 1e\\+30"),
        (np.where(np.arange(8_000) == 7_000, 1e300, tone(16_000)), "DOUBLE", "NaN or infinite"),
        (np.stack([tone(16_000), np.full(8_000, 1e30)], axis=1), "FLOAT", "samples reach 1e\\+30"),
        (tone(16_000) * 32_768, "FLOAT", "scale of whole numbers: divide them by 32768"),
        (0.1 * tone(16_000) + 0.4, "PCM_16", "shifted by a constant of 0.4"),
        (np.where(np.arange(8_000) == 7_000, np.nan, tone(16_000)), "FLOAT", "NaN"),
    ],
)
def test_what_cannot_be_heard(tmp_path, samples, subtype, message):
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype=subtype)
    for opened in (audio.read, audio.check):
        with pytest.raises(InputError, match=rf"a\.wav: .*{message}"):
            opened(tmp_path / "a.wav")
    if samples.ndim == 2 and "reach" not in message:
        assert len(audio.read(tmp_path / "a.wav", channel=1)) == 8_000


@pytest.mark.parametrize(
    "samples",
    [
        np.stack([tone(16_000), np.zeros(8_000)], axis=1),
        np.stack([tone(16_000), tone(16_000, hertz=300)], axis=1),
        1.9 * tone(16_000) * 1.5,
        0.002 * tone(16_000),
        0.1 * tone(16_000) + 0.02,
    ],
)
def test_what_is_odd_but_can_be_heard(tmp_path, samples):
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="FLOAT")
    assert audio.check(tmp_path / "a.wav") == 0.5


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3", ".opus", ".aiff", ".caf"])
def test_files_that_are_cut_off(tmp_path, suffix):
    path = write(tmp_path / f"a{suffix}", tone(16_000, seconds=2), 16_000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=r"is cut off|cannot be decoded"):
        audio.check(path)


@pytest.mark.parametrize("length", [b"\xff\xff\xff\xff", b"\x00\xf0\xff\x7f"])
def test_wav_files_of_a_pipe_are_whole(tmp_path, length):
    content = bytearray(write(tmp_path / "a.wav", tone(16_000), 16_000).read_bytes())
    content[4:8] = content[40:44] = length
    (tmp_path / "a.wav").write_bytes(content)
    assert audio.check(tmp_path / "a.wav") == 0.5


def test_names_that_are_not_utf8(tmp_path):
    path = tmp_path / os.fsdecode(b"W\xfctend.wav")
    write(tmp_path / "a.wav", tone(16_000), 16_000).rename(path)
    assert len(audio.read(path)) == 8_000


# Formats of ffmpeg


@pytest.fixture
def decoder(tmp_path, monkeypatch):
    """An ffmpeg that gives one WAV file, whatever it is asked for."""
    there = write(tmp_path / "there.wav", tone(16_000), 16_000)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/ffmpeg").write_text(f"#!/bin/sh\ncat {there}\n")
    (tmp_path / "bin/ffmpeg").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")


def test_m4a_where_a_decoder_is_there(tmp_path, decoder):
    (tmp_path / "a.m4a").write_bytes(b"\0\0\0\x20ftypM4A ")
    assert ".m4a" in audio.suffixes()
    assert pitch(audio.read(tmp_path / "a.m4a")) == 440


def test_m4a_where_none_is(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "a.m4a").write_bytes(b"\0\0\0\x20ftypM4A ")
    assert ".m4a" not in audio.suffixes()
    with pytest.raises(InputError, match=r"\.m4a files need ffmpeg, which is not on the PATH"):
        audio.read(tmp_path / "a.m4a")


@pytest.mark.parametrize("rate", [1, 999, 2_000_000_000])
def test_a_rate_that_no_recording_has(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", tone(8_000), rate)
    for reading in (audio.read, audio.seconds, audio.check, audio.channels):
        with pytest.raises(InputError, match=f"a.wav: its header tells of a sampling rate of {rate:,} Hz"):
            reading(tmp_path / "a.wav")


@pytest.mark.parametrize("name", ["a.ogg", "a.opus"])
def test_streams_one_after_another_are_not_cut_to_the_first(tmp_path, name):
    write(tmp_path / name, tone(16_000), 16_000)
    assert len(audio.read(tmp_path / name)) == 8_000
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes() * 2)
    with pytest.raises(InputError, match="several Ogg streams one after another"):
        audio.read(tmp_path / name)


def test_flac_of_a_pipe_is_read_to_its_end(tmp_path):
    soundfile.write(tmp_path / "a.flac", tone(24_000), 24_000)
    raw = bytearray((tmp_path / "a.flac").read_bytes())
    raw[21:26] = (raw[21] & 0xF0, 0, 0, 0, 0)  # the number of frames is left open
    (tmp_path / "b.flac").write_bytes(raw)
    for bounds in ((), (0.1, 0.3)):
        known, piped = (Excerpt(tmp_path / name, *bounds) for name in ("a.flac", "b.flac"))
        np.testing.assert_array_equal(audio.read(*piped), audio.read(*known))
        assert audio.seconds(*piped) == audio.seconds(*known)
