"""Speech synthesis with the espeak-ng library that the espeakng-loader package ships."""

from __future__ import annotations

import ctypes
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from mifuse_cli.errors import DependencyError, InputError

_SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS: the callback runs inside espeak_Synth
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4  # espeak_PARAMETER
_POSITION_CHARACTER, _UTF8 = 1, 1

_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Synthesiser:
    """An espeak-ng instance with a state of its own.

    The same calls on a new instance give the same samples. Repeated calls on one instance do not: pitch
    flutter and noise continue from the previous text.

    Attributes:
        sample_rate: of the samples that ``speak`` returns, in Hz.

    Raises:
        DependencyError: espeakng-loader is not installed, or its library does not start.
    """

    sample_rate: int

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError as error:
            raise DependencyError(
                "the demo speaks with espeak-ng, and the package espeakng-loader is not installed; "
                "run: pip install 'mifuse[demo]'"
            ) from error
        original = Path(espeakng_loader.get_library_path())
        # espeak-ng keeps its state in globals, and only a library file of another name gets other globals.
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            self._library = ctypes.CDLL(shutil.copy(original, folder))
        data = str(espeakng_loader.get_data_path()).encode()
        self.sample_rate = self._library.espeak_Initialize(_SYNCHRONOUS, 0, data, 0)
        if self.sample_rate <= 0:
            raise DependencyError(
                f"espeak-ng did not start from {original}; run: pip install --force-reinstall espeakng-loader"
            )
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(0))
        self._chunks: list[np.ndarray] = []
        self._callback = _Callback(self._collect)
        self._library.espeak_SetSynthCallback(self._callback)

    def _collect(self, samples: Any, count: int, events: Any) -> int:
        if samples and count:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def speak(
        self,
        text: str,
        voice: str,
        *,
        rate: float = 175,
        pitch: float = 50,
        pitch_range: float = 50,
        volume: float = 100,
    ) -> tuple[np.ndarray, int]:
        """Speak ``text``.

        Args:
            text: a sentence in the language of the voice.
            voice: espeak-ng voice, with a variant after a plus sign if wanted, e.g. ``en-us+f3``.
            rate: words per minute, 80 to 450.
            pitch: 0 to 99; 50 is the voice's own pitch, 99 about an octave above it.
            pitch_range: 0 (monotone) to 99; 50 is the voice's own range.
            volume: 0 to 200; 100 is normal.

        Returns:
            Samples, float32 in [-1, 1], shape (time,), and the sample rate in Hz.

        Raises:
            InputError: there is no such voice.
        """
        library = self._library
        if library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise InputError(f"espeak-ng has no voice {voice!r}; expected a name such as 'en-us' or 'de+f2'")
        for parameter, value in ((_RATE, rate), (_PITCH, pitch), (_RANGE, pitch_range), (_VOLUME, volume)):
            library.espeak_SetParameter(parameter, round(value), 0)
        self._chunks.clear()
        encoded = text.encode() + b"\0"
        size = ctypes.c_size_t(len(encoded))
        library.espeak_Synth(encoded, size, 0, _POSITION_CHARACTER, 0, _UTF8, None, None)
        library.espeak_Synchronize()
        return np.concatenate(self._chunks).astype(np.float32) / 32768, self.sample_rate
