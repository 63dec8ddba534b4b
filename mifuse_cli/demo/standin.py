"""A stand-in for a large audio-language model: an OpenAI-compatible server on the loopback interface.

The stand-in is no language model and reads no prompt. It measures pitch, melody, level and tempo of the
audio in a request and judges arousal and valence by fixed rules, with random noise that is drawn anew for
every answer. It knows nothing of labels or file names, and always answers about the four classes of
``mifuse_cli.labels.CLASSES``.

    python -m mifuse_cli.demo.standin --port 0

prints its base URL on one line and serves until it is stopped. Any bearer key is accepted.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import random
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import ceil, log2
from time import time
from typing import Any
from uuid import uuid4

import numpy as np
import soundfile

from mifuse_cli.labels import CLASSES

MODEL = "standin"
_WINDOW_S, _HOP_S = 0.04, 0.01
_PITCH_HZ = (70.0, 420.0)
# Arousal and valence at which an emotion is most plausible.
_PLACES = {"angry": (1.0, -0.9), "happy": (0.9, 1.0), "neutral": (0.0, 0.1), "sad": (-1.1, -0.6)}
_MOST_DOUBT = 1.3  # noise where two emotions are equally plausible; 1 less where only one is plausible


@dataclass(frozen=True)
class Sound:
    """What the stand-in hears in a clip.

    Attributes:
        duration: seconds.
        pitch: median fundamental frequency of the voiced frames, Hz.
        melody: standard deviation of the fundamental frequency, semitones.
        level: of the louder half of the frames, dBFS.
        tempo: energy peaks per second.
    """

    duration: float
    pitch: float
    melody: float
    level: float
    tempo: float


def listen(samples: np.ndarray, sample_rate: int) -> Sound:
    """Measure a clip.

    Args:
        samples: float, shape (time,), in [-1, 1].
        sample_rate: Hz, 8000 or more.

    Raises:
        ValueError: the clip is shorter than 0.1 s.
    """
    duration = len(samples) / sample_rate
    if duration < 0.1:
        raise ValueError(f"the clip lasts {duration:.3f} s, expected 0.1 s or more")
    window, hop = round(_WINDOW_S * sample_rate), round(_HOP_S * sample_rate)
    frames = np.lib.stride_tricks.sliding_window_view(samples, window)[::hop]
    power = np.mean(frames**2, axis=1) + 1e-10
    loud = power >= np.median(power)
    f0 = _fundamental(frames[loud], sample_rate)
    level = 10 * np.log10(np.mean(power[loud]))
    middle = np.median(f0) if len(f0) else 150.0
    melody = np.std(12 * np.log2(f0[np.abs(np.log2(f0 / middle)) < 0.6] / middle)) if len(f0) else 0.0
    envelope = np.convolve(10 * np.log10(power), np.hanning(9) / np.hanning(9).sum(), "same")
    inner = envelope[1:-1]
    peaks = (inner > envelope[:-2]) & (inner >= envelope[2:]) & (inner > level - 20)
    return Sound(
        duration=duration,
        pitch=float(middle),
        melody=float(melody),
        level=float(level),
        tempo=float(peaks.sum() / duration),
    )


def _fundamental(frames: np.ndarray, sample_rate: int) -> np.ndarray:
    """Fundamental frequency in Hz of the voiced ``frames`` (frames, time), shape (voiced frames,)."""
    window = np.hanning(frames.shape[1])
    size = 2 * frames.shape[1]

    def autocorrelation(x: np.ndarray) -> np.ndarray:
        return np.fft.irfft(np.abs(np.fft.rfft(x, size)) ** 2)

    # Divided by the window's own autocorrelation, which would otherwise attenuate long periods.
    shape = autocorrelation(window)
    curve = autocorrelation((frames - frames.mean(axis=1, keepdims=True)) * window)
    curve /= curve[:, :1] + 1e-12
    first, last = round(sample_rate / _PITCH_HZ[1]), round(sample_rate / _PITCH_HZ[0])
    # A penalty on long periods prevents octave errors.
    octave_cost = 1 - 0.05 * np.log2(np.arange(first, last + 1) / first)
    candidates = curve[:, first : last + 1] / (shape[first : last + 1] / shape[0]) * octave_cost
    voiced = candidates.max(axis=1) > 0.5
    return sample_rate / (first + candidates[voiced].argmax(axis=1))


def judge(sound: Sound, rng: random.Random, temperature: float = 1.0) -> dict[str, float]:
    """One opinion on a clip: a probability for every class.

    Args:
        sound: what was measured.
        rng: generator of the noise.
        temperature: factor on the noise; 0 for none.
    """
    # The pitch is compared with a typical one of low or high voices.
    height = log2(sound.pitch / (215 if sound.pitch > 165 else 115))
    melody = (sound.melody - 1.6) / 0.5
    level = (sound.level + 22) / 3
    tempo = (sound.tempo - 5.6) / 0.7
    arousal = 0.55 * tempo + 0.2 * melody + 0.15 * level + 0.5 * height
    valence = 0.3 * melody + 2.0 * height - 0.25 * level
    second, first = np.sort(_plausibility(arousal, valence))[-2:]
    doubt = temperature * (_MOST_DOUBT - (first - second))
    weights = _plausibility(arousal + doubt * rng.gauss(0, 0.3), valence + doubt * rng.gauss(0, 0.35))
    return dict(zip(CLASSES, weights.tolist(), strict=True))


def _plausibility(arousal: float, valence: float) -> np.ndarray:
    """Probability of every class in the order of ``CLASSES``, shape (classes,)."""
    distance = [(arousal - a) ** 2 + (valence - v) ** 2 for a, v in (_PLACES[name] for name in CLASSES)]
    weights = np.exp(-1.1 * np.array(distance))
    return weights / weights.sum()


def phrase(opinion: dict[str, float], rng: random.Random, *, plain: bool) -> str:
    """The opinion as a model would write it: mostly JSON, at times wrapped, in percent, or refused.

    Args:
        opinion: probability by class.
        rng: decides on the form and on the order of the classes.
        plain: JSON and nothing else.
    """
    classes = rng.sample(list(opinion), len(opinion))
    text = json.dumps({name: round(opinion[name], 2) for name in classes})
    form = rng.random()
    if plain or form < 0.8:
        return text
    if form < 0.88:
        return f"```json\n{text}\n```"
    if form < 0.94:
        return f"Going by pitch and pace, this is my estimate:\n{text}\nOther readings are possible."
    if form < 0.985:
        return json.dumps({name: f"{opinion[name]:.0%}" for name in classes})
    return "I'm sorry, but I cannot tell an emotion from this recording."


class StandIn:
    """The running server, as a context manager.

    Repeated questions about a clip get different answers; after a restart the sequence of answers is the
    same.

    Args:
        port: TCP port on 127.0.0.1; 0 takes a free one.

    Attributes:
        base_url: for an OpenAI client, ``http://127.0.0.1:PORT/v1``.
    """

    def __init__(self, port: int = 0) -> None:
        self._server = _Server(("127.0.0.1", port), _Handler)
        self.base_url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def serve(self) -> None:
        """Answer requests until the process is interrupted."""
        self._server.serve_forever(poll_interval=0.05)

    def __enter__(self) -> StandIn:
        self._thread = threading.Thread(target=self.serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    """The server and its state: measured sounds and number of answers given, by audio hash."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(address, handler)
        self._lock = threading.Lock()
        self._sounds: dict[str, Sound] = {}
        self._answers: Counter[str] = Counter()

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """The completion for a request body.

        Raises:
            ValueError: no audio, audio that cannot be decoded, or an ``n`` or ``temperature`` out of range.
        """
        n, temperature = body.get("n", 1), body.get("temperature", 1.0)
        if not isinstance(n, int) or not 1 <= n <= 128:
            raise ValueError(f"n is {n!r}, expected a whole number from 1 to 128")
        if not isinstance(temperature, int | float) or not 0 <= temperature <= 2:
            raise ValueError(f"temperature is {temperature!r}, expected a number from 0 to 2")
        samples, sample_rate = _decode(_audio_part(body))
        clip = hashlib.sha256(samples.tobytes()).hexdigest()
        sound = self._sounds.get(clip)
        if sound is None:
            sound = self._sounds[clip] = listen(samples, sample_rate)
        with self._lock:
            first = self._answers[clip]
            self._answers[clip] += n
        plain = temperature == 0 or "response_format" in body
        texts = []
        for number in range(first, first + n):
            rng = random.Random(f"{clip} {number if temperature else 0}")
            opinion = judge(sound, rng, temperature)
            texts.append(phrase(opinion, rng, plain=plain))
        return _completion(body, texts, audio_tokens=ceil(10 * sound.duration))


def _audio_part(body: dict[str, Any]) -> str:
    """Base64 data of the last ``input_audio`` part of the messages."""
    try:
        contents = [message["content"] for message in body["messages"]]
        parts = [part for content in contents if isinstance(content, list) for part in content]
        return [part["input_audio"]["data"] for part in parts if part["type"] == "input_audio"][-1]
    except (KeyError, TypeError, IndexError):
        raise ValueError("expected messages with an input_audio part") from None


def _decode(data: str) -> tuple[np.ndarray, int]:
    """Samples, float64, shape (time,), mean of the channels, and sample rate in Hz."""
    try:
        samples, sample_rate = soundfile.read(
            io.BytesIO(base64.b64decode(data, validate=True)), always_2d=True
        )
    except (ValueError, TypeError, soundfile.SoundFileError) as error:
        raise ValueError(f"the audio cannot be decoded: {error}") from error
    return samples.mean(axis=1), sample_rate


def _completion(body: dict[str, Any], texts: list[str], audio_tokens: int) -> dict[str, Any]:
    """Response of the chat completions interface; a token is taken to be four characters of text."""
    prompt = [message.get("content") for message in body["messages"]]
    written = [part.get("text", "") for parts in prompt if isinstance(parts, list) for part in parts]
    written += [text for text in prompt if isinstance(text, str)]
    prompt_tokens = audio_tokens + ceil(sum(map(len, written)) / 4)
    completion_tokens = sum(ceil(len(text) / 4) for text in texts)
    return {
        "id": f"chatcmpl-{uuid4().hex}",
        "object": "chat.completion",
        "created": int(time()),
        "model": body.get("model", MODEL),
        "choices": [
            {"index": i, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
            for i, text in enumerate(texts)
        ],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"audio_tokens": audio_tokens, "cached_tokens": 0},
        },
    }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def do_GET(self) -> None:
        if self.path != "/v1/models":
            self._refuse(404, f"no such path: {self.path}", "not_found")
        elif self._authorised():
            model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "mifuse"}
            self._reply(200, {"object": "list", "data": [model]})

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path != "/v1/chat/completions":
            self._refuse(404, f"no such path: {self.path}", "not_found")
        elif self._authorised():
            try:
                body = json.loads(raw)
                if not isinstance(body, dict):
                    raise ValueError("expected a JSON object")
                self._reply(200, self.server.complete(body))
            except ValueError as error:
                self._refuse(400, str(error), "invalid_request_error")

    def _authorised(self) -> bool:
        scheme, _, key = self.headers.get("Authorization", "").partition(" ")
        if scheme == "Bearer" and key.strip():
            return True
        self._refuse(401, "expected a bearer key", "invalid_api_key")
        return False

    def _refuse(self, status: int, message: str, kind: str) -> None:
        self._reply(status, {"error": {"message": message, "type": kind, "code": kind, "param": None}})

    def _reply(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: standard output holds the base URL only."""


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m mifuse_cli.demo.standin", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0 takes a free one (default)")
    server = StandIn(parser.parse_args().port)
    print(server.base_url, flush=True)
    with suppress(KeyboardInterrupt):
        server.serve()


if __name__ == "__main__":
    main()
