"""A speech emotion classifier made by mifuse, as a transformers model that needs nothing of mifuse.

It takes raw waveforms at 16 kHz. Every clip is encoded at its own length; every hidden state that the classifier
looks at is averaged over time and standardised with stored statistics; their weighted sum goes through one hidden
layer. Where the classifier has a linear part, its logits, of all these hidden states, are added. No class of
transformers for audio classification has a nonlinear layer after the mean over time, nor statistics of each layer,
which is why this file comes with the weights.

    from transformers import pipeline

    classify = pipeline("audio-classification", model=DIRECTORY, trust_remote_code=True)
    classify("clip.wav", top_k=None)
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

SHORTEST = 1600
"""Samples that a clip has at least; shorter ones are followed by silence."""


class EmotionConfig(PreTrainedConfig):
    """Sizes of the classifier, and the configuration of its encoder.

    Attributes:
        encoder: ``config.json`` of a wav2vec2, HuBERT, WavLM or Whisper model, or of mifuse's ``mifuse-logmel``.
        layers: positions of the hidden states that the head looks at; 0 is the input of the first block.
        width: length of each.
        hidden: units of the head's hidden layer.
        linear: whether the head has a linear part.
        mel_bands: of the spectrogram that the encoder takes; 0 for encoders that take waveforms.
        scale_waveform: whether a waveform is scaled to mean 0 and variance 1 first.
        pooling: of frames over time: mean, mean+deviation or attentive.
        states: hidden states that the encoder has, for attentive pooling.
    """

    model_type = "mifuse-emotion"

    def __init__(
        self,
        encoder: dict[str, Any] | None = None,
        layers: list[int] | None = None,
        width: int = 1,
        hidden: int = 1,
        linear: bool = False,
        mel_bands: int = 0,
        scale_waveform: bool = False,
        pooling: str = "mean",
        states: int = 0,
        **others: Any,
    ) -> None:
        self.encoder = encoder or {}
        self.layers = layers or [0]
        self.width = width
        self.hidden = hidden
        self.linear = linear
        self.mel_bands = mel_bands
        self.scale_waveform = scale_waveform
        self.pooling = pooling
        self.states = states
        super().__init__(**others)


class MelSpectrogram(nn.Module):
    """Energies (M, T) of M mel bands in frames of 25 ms, every 10 ms.

    The Fourier transform is a convolution with sines and cosines under a Hann window, as ONNX can express it.
    """

    basis: Tensor
    filters: Tensor

    def __init__(self, bands: int, frame: int = 400, hop: int = 160) -> None:
        super().__init__()
        self.frame, self.hop = frame, hop
        self.register_buffer("basis", torch.empty(frame + 2, 1, frame))
        self.register_buffer("filters", torch.empty(frame // 2 + 1, bands))

    def fill(self, filters: Tensor) -> None:
        """Set the mel filters (F, M) of F frequencies, and the sines and cosines."""
        time = torch.arange(self.frame)
        turns = (torch.arange(self.frame // 2 + 1)[:, None] * time % self.frame).double() / self.frame
        waves = torch.cat([torch.cos(2 * torch.pi * turns), torch.sin(2 * torch.pi * turns)])
        window = 0.5 - 0.5 * torch.cos(2 * torch.pi * time.double() / self.frame)
        self.basis.copy_((waves * window)[:, None])
        self.filters.copy_(filters)

    def forward(self, waveform: Tensor) -> Tensor:
        """Energies (M, T) of a waveform (S,), T = S // 160 + 1."""
        half = self.frame // 2
        padded = nn.functional.pad(waveform[None, None], (half, half), mode="reflect")
        cosines, sines = nn.functional.conv1d(padded, self.basis, stride=self.hop)[0].chunk(2)
        return self.filters.T @ (cosines.square() + sines.square())


class Pooling(nn.Module):
    """Hidden states over time: mean, mean and deviation, or mean weighted by attention."""

    query: Tensor

    def __init__(self, config: EmotionConfig) -> None:
        super().__init__()
        self.deviates = config.pooling == "mean+deviation"
        shape = (config.states, config.width) if config.pooling == "attentive" else (0, 0)
        self.register_buffer("query", torch.zeros(shape))

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        """Vectors (L, D) of hidden states (1, T, D')."""
        if self.deviates:
            return torch.cat([torch.cat([one.mean(dim=1), one.std(dim=1)], dim=1) for one in states])
        if len(self.query):
            shares = [(one @ query).softmax(dim=1) for one, query in zip(states, self.query, strict=False)]
            return torch.cat(
                [(own[:, :, None] * one).sum(dim=1) for own, one in zip(shares, states, strict=True)]
            )
        return torch.cat([one.mean(dim=1) for one in states])


class WaveformStates(nn.Module):
    """wav2vec2, HuBERT or WavLM."""

    longest: int | None = None

    def __init__(self, config: EmotionConfig) -> None:
        super().__init__()
        self.scale, self.pooling = config.scale_waveform, Pooling(config)
        self.model = AutoModel.from_config(AutoConfig.for_model(**config.encoder))

    def forward(self, waveform: Tensor) -> Tensor:
        """All hidden states, pooled over time (L, D), of a waveform (S,)."""
        if self.scale:
            centred = waveform - waveform.mean()
            waveform = centred / (centred.square().mean() + 1e-7).sqrt()
        states = self.model(waveform[None], output_hidden_states=True).hidden_states
        return self.pooling(states)


class WhisperStates(nn.Module):
    """Encoder of a Whisper model, at the clip's own length instead of padded to 30 s."""

    longest: int | None = 480_000

    def __init__(self, config: EmotionConfig) -> None:
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        super().__init__()
        self.mel, self.pooling = MelSpectrogram(config.mel_bands), Pooling(config)
        self.model = WhisperEncoder(AutoConfig.for_model(**config.encoder))

    def forward(self, waveform: Tensor) -> Tensor:
        """All hidden states, pooled over time (L, D), of a waveform (S,) of at most 30 s."""
        bands = self.mel(waveform)[:, :-1].clamp_min(1e-10).log10()
        bands = (torch.maximum(bands, bands.max() - 8) + 4) / 4
        gelu = nn.functional.gelu
        hidden = gelu(self.model.conv2(gelu(self.model.conv1(bands[None])))).transpose(1, 2)
        hidden = hidden + self.model.embed_positions.weight[: hidden.shape[1]]
        states = [hidden]
        for block in self.model.layers:
            hidden = block(hidden, None)
            states.append(hidden)
        states[-1] = self.model.layer_norm(states[-1])
        return self.pooling(states)


class LogMelStates(nn.Module):
    """mifuse's ``logmel``: three strided convolutions over log-mel frames; mean and deviation of each one's output."""

    longest: int | None = None

    def __init__(self, config: EmotionConfig) -> None:
        super().__init__()
        channels = config.encoder["channels"]
        self.mel = MelSpectrogram(config.mel_bands)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(inputs, channels, kernel_size=5, stride=2, padding=2)
            for inputs in (config.mel_bands, channels, channels)
        )

    def forward(self, waveform: Tensor) -> Tensor:
        """Mean and deviation over time (3, 2 C) of C channels of every convolution, of a waveform (S,)."""
        hidden = (((self.mel(waveform) + 1e-6).log() + 5) / 5)[None]
        states = []
        for convolution in self.convolutions:
            hidden = convolution(hidden).relu()
            states.append(torch.cat([hidden.mean(dim=2), hidden.std(dim=2)], dim=1))
        return torch.cat(states)


_STATES: dict[str, type[WhisperStates] | type[LogMelStates]] = {
    "whisper": WhisperStates,
    "mifuse-logmel": LogMelStates,
}


class EmotionHead(nn.Module):
    """Standardisation, weighted sum over L layers, hidden layer, logits; and the linear part, if there is one."""

    mean: Tensor
    std: Tensor
    shares: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, config: EmotionConfig) -> None:
        super().__init__()
        layers, width, classes = len(config.layers), config.width, config.num_labels
        self.register_buffer("mean", torch.zeros(layers, width))
        self.register_buffer("std", torch.ones(layers, width))
        self.register_buffer("shares", torch.full((layers,), 1 / layers))
        self.hidden = nn.Linear(width, config.hidden)
        self.out = nn.Linear(config.hidden, classes)
        self.linear = config.linear
        if config.linear:
            self.register_buffer("weight", torch.zeros(classes, layers * width))
            self.register_buffer("bias", torch.zeros(classes))

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, K) of features (B, L, D)."""
        standard = (features - self.mean) / self.std
        mixed = (self.shares[:, None] * standard).sum(dim=1)
        logits = self.out(self.hidden(mixed).relu())
        if self.linear:
            logits = logits + nn.functional.linear(standard.flatten(1), self.weight, self.bias)
        return logits


class EmotionClassifier(PreTrainedModel):
    """Waveforms at 16 kHz in, logits of the classes out."""

    config_class = EmotionConfig
    base_model_prefix = "states"
    main_input_name = "input_values"
    states: WaveformStates | WhisperStates | LogMelStates

    def __init__(self, config: EmotionConfig) -> None:
        super().__init__(config)
        self.states = _STATES.get(config.encoder.get("model_type", ""), WaveformStates)(config)
        self.head = EmotionHead(config)
        self.post_init()

    def features(self, waveform: Tensor) -> Tensor:
        """Mean over time (L, D) of the hidden states that the head looks at, of one waveform (S,) of any length.

        What is longer than the encoder takes is cut into windows, whose means are averaged by their lengths.
        """
        waveform = nn.functional.pad(waveform, (0, max(0, SHORTEST - len(waveform))))
        windows = [
            part
            for part in waveform.split(self.states.longest or len(waveform))
            if len(part) >= min(len(waveform), SHORTEST)
        ]
        shares = torch.tensor([float(len(part)) for part in windows], device=waveform.device)
        states = torch.stack([self.states(part) for part in windows])
        return (states * (shares / shares.sum())[:, None, None]).sum(dim=0)[self.config.layers]

    def forward(
        self, input_values: Tensor, attention_mask: Tensor | None = None, **_: Any
    ) -> SequenceClassifierOutput:
        """Logits (B, K).

        Args:
            input_values: (B, S) waveforms, followed by padding where they are shorter.
            attention_mask: (B, S) 1 for samples, 0 for padding; None if there is none.
        """
        rows = list(input_values)
        if attention_mask is not None:
            rows = [row[: int(mask.sum())] for row, mask in zip(rows, attention_mask, strict=True)]
        return SequenceClassifierOutput(logits=self.head(torch.stack([self.features(row) for row in rows])))
