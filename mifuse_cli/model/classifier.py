"""The emotion classifier: an encoder, a standardisation, and a head over a learned mix of layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mifuse_cli import audio, provenance
from mifuse_cli.errors import InputError
from mifuse_cli.manifest import Clip
from mifuse_cli.model import processes
from mifuse_cli.model.batches import MOST_PADDING, alike, batch_seconds, padded_to
from mifuse_cli.model.encoder import Encoder
from mifuse_cli.model.encoding import unheard, unusable, usable
from mifuse_cli.model.linear import LinearPart
from mifuse_cli.model.read_ahead import ahead, reading_threads
from mifuse_cli.model.standard import Standard, Statistics, fit_standard, statistics

_CELLS = 1 << 20
"""Hidden units of dropout passes computed at a time: 4 MB in single precision."""


class Head(nn.Module):
    """Softmax-weighted sum over layers, one hidden layer with dropout, class logits.

    ``scale`` and ``shift`` (D) are an affine transformation of its standardised input: 1 and 0 unless a
    method adapts them. Logits are divided by ``temperature``, a buffer that is 1 unless calibrated
    predictions were asked for. Students of cross-fit labels have a ``linear`` part, whose logits are added.
    """

    temperature: Tensor
    linear: LinearPart | None

    def __init__(
        self, layers: int, width: int, classes: int, hidden: int, dropout: float, *, linear: bool = False
    ) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.zeros(layers))
        self.scale = nn.Parameter(torch.ones(width))
        self.shift = nn.Parameter(torch.zeros(width))
        self.hidden = nn.Linear(width, hidden)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(hidden, classes)
        self.register_buffer("temperature", torch.ones(()))
        self.linear = LinearPart(layers, width, classes) if linear else None

    def reset(self) -> None:
        """Initialise the weights at random, as in a new head."""
        nn.init.zeros_(self.mix)
        nn.init.ones_(self.scale)
        nn.init.zeros_(self.shift)
        self.hidden.reset_parameters()
        self.out.reset_parameters()

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, K) of standardised features (B, L, D)."""
        return self.with_linear(self.classify(self.units(features)), features)

    def units(self, features: Tensor) -> Tensor:
        """Hidden units (B, H) of standardised features (B, L, D)."""
        mixed = torch.einsum("l,bld->bd", self.mix.softmax(dim=0), features)
        return torch.relu(self.hidden(self.scale * mixed + self.shift))

    def classify(self, units: Tensor) -> Tensor:
        """Logits (B, K) of hidden units (B, H), after dropout, without those of the linear part."""
        return self.output(self.dropout(units))

    def output(self, units: Tensor) -> Tensor:
        """Logits (..., K) of hidden units (..., H), likewise, but without dropout."""
        return self.out(units) / self.temperature

    def with_linear(self, logits: Tensor, features: Tensor) -> Tensor:
        """Logits (B, K) plus those of the linear part, if there is one, of standardised features (B, L, D)."""
        return logits if self.linear is None else logits + self.linear(features)


class Classifier(nn.Module):
    """A head, and the encoder if that is trained too.

    Attributes:
        encoder: None if it is frozen: the inputs are then its `Features`.
        head: the `Head`.
        layers: positions of the encoder's hidden states that the head sees.
    """

    def __init__(self, encoder: Encoder | None, head: Head, layers: Sequence[int]) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.layers = list(layers)

    def forward(self, inputs: Features | Waveforms, index: Tensor) -> Tensor:
        """Logits (B, K) of the clips at positions ``index`` (B,) of ``inputs``."""
        return self.head(inputs.batch(self, index))


@dataclass
class Features:
    """U clips as standardised features (U, L, D) of a frozen encoder."""

    values: Tensor
    statistics: Statistics

    def __len__(self) -> int:
        return len(self.values)

    def refresh(self, model: Classifier) -> None:
        """Nothing to do: a frozen encoder's statistics stay as they are."""

    def batch(self, model: Classifier, index: Tensor) -> Tensor:
        """Features (B, L, D) of the clips at positions ``index``."""
        return self.values[index]

    def everything(self, model: Classifier) -> Tensor:
        """Features (U, L, D) of all clips."""
        return self.values


class Waveforms:
    """U clips as audio, for an encoder that is trained: read, encoded and standardised on demand.

    The statistics change with the encoder: `refresh` recomputes them once an epoch. A batch is encoded in micro-batches
    of clips of nearly the same length, which several processes divide among them; dropout is drawn by micro-batch, so
    that it does not depend on which process encodes it.

    Args:
        clips: U clips.
        normalize: one of `config.NORMALIZATIONS`.
        stored: statistics of the source, None while the source model is trained.
        micro_batch_s: audio of a micro-batch, in seconds, whose activations alone are held: they are computed again for
            the gradients, micro-batch by micro-batch. 0: those of the whole batch are held.
    """

    statistics: Statistics
    standard: Standard

    def __init__(
        self, clips: Sequence[Clip], normalize: str, stored: Statistics | None, micro_batch_s: float = 0.0
    ) -> None:
        self.clips = clips
        self.normalize, self.stored, self.micro_batch_s = normalize, stored, micro_batch_s

    def __len__(self) -> int:
        return len(self.clips)

    @cached_property
    def seconds(self) -> list[float]:
        """Length of every clip."""
        return [audio.seconds(*clip.excerpt) for clip in self.clips]

    def refresh(self, model: Classifier) -> None:
        """Recompute the statistics of all clips with the current weights of the model's encoder.

        Raises:
            InputError: audio that cannot be read, or of which the encoder makes NaN.
        """
        excerpts = [clip.excerpt for clip in self.clips]
        try:
            features = self._encode_all(model)
        except InputError as first:
            raise unheard(excerpts, {}, first) from None
        sound = usable(features.cpu().numpy())
        if not sound.all():
            known = {one: unusable(one) for one, good in zip(excerpts, sound, strict=True) if not good}
            raise unheard(excerpts, known, next(iter(known.values())))
        self.statistics = statistics(features)
        speakers = [clip.speaker for clip in self.clips]
        self.standard = fit_standard(self.normalize, features, stored=self.stored, speakers=speakers)

    def batch(self, model: Classifier, index: Tensor) -> Tensor:
        """Features (B, L, D) of the clips at positions ``index``, with gradients.

        Of several processes, each has the gradients of the clips that it encoded.
        """
        return self.standard(self._encode(model, index.tolist()), index)

    def everything(self, model: Classifier) -> Tensor:
        """Features (U, L, D) of all clips, without gradients."""
        return self.standard(self._encode_all(model), torch.arange(len(self)))

    @torch.no_grad()
    def _encode_all(self, model: Classifier) -> Tensor:
        model.eval()
        return self._encode(model, list(range(len(self))))

    def _encode(self, model: Classifier, positions: list[int]) -> Tensor:
        encoder, trains = model.encoder, torch.is_grad_enabled()
        assert encoder is not None
        lengths = [self.seconds[one] for one in positions]
        most = batch_seconds(encoder.device)
        if trains:  # activations are held for the gradients
            most = self.micro_batch_s or (most / 2 if encoder.device.type == "cuda" else most)
        micro_batches = alike(lengths, most, encoder.padding or MOST_PADDING)
        seed = int(torch.randint(2**62, ())) if trains else 0
        rows: dict[int, Tensor] = {}

        def encode_share() -> dict[int, Tensor]:
            own = processes.own_share(
                [padded_to([lengths[one] for one in places]) for places in micro_batches]
            )
            clips = [[self.clips[positions[one]] for one in micro_batches[number]] for number in own]
            with encoder.autocast(), closing(ahead(clips, _waveform, reading_threads())) as waveforms:
                for number, (_, read) in zip(own, waveforms, strict=True):
                    states = _states(
                        encoder, read, (seed, number) if trains else None, bool(self.micro_batch_s)
                    )
                    rows.update(zip(micro_batches[number], states[:, model.layers], strict=True))
            return {} if processes.count() == 1 else {one: row.detach().cpu() for one, row in rows.items()}

        for share in processes.gathered(encode_share):
            for place, row in share.items():
                rows.setdefault(place, row.to(encoder.device))
        return torch.stack([rows[place] for place in range(len(positions))])


def _waveform(clip: Clip) -> Tensor:
    """Samples (S,).

    Raises:
        InputError: audio that cannot be read.
    """
    return torch.from_numpy(audio.read(*clip.excerpt))


def _states(
    encoder: Encoder, waveforms: Sequence[Tensor], drawn: tuple[int, int] | None, recomputed: bool
) -> Tensor:
    """Hidden states (B, L, D) of a micro-batch.

    Args:
        encoder: with dropout active or not.
        waveforms: (S,) of B clips.
        drawn: seed and number of the micro-batch for dropout; None without gradients.
        recomputed: whether activations are computed again for the gradients instead of being held.
    """
    if drawn is None:
        return encoder(waveforms)

    def encode() -> Tensor:
        with seeded(*drawn):
            return encoder(waveforms)

    # Nothing has to be kept of the random numbers: the block above draws the same ones again.
    return checkpoint(encode, use_reentrant=False, preserve_rng_state=False) if recomputed else encode()


@contextmanager
def seeded(seed: int, *names: str | int) -> Iterator[None]:
    """Seed torch's generator from the seed and the names within the block; restore its state afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(provenance.named_seed(seed, *names))
        yield


@contextmanager
def dropout_active(model: nn.Module) -> Iterator[None]:
    """Put the `nn.Dropout` modules alone into training mode: no input masking, no layer drop."""
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.train()
    try:
        yield
    finally:
        model.eval()


@torch.no_grad()
def units(model: Classifier, inputs: Features | Waveforms) -> Tensor:
    """Hidden units (U, H) without dropout, on the model's device."""
    model.eval()
    return model.head.units(inputs.everything(model))


@torch.no_grad()
def predict(model: Classifier, inputs: Features | Waveforms) -> np.ndarray:
    """Probabilities (U, K) without dropout."""
    model.eval()
    return model.head(inputs.everything(model)).softmax(dim=-1).cpu().numpy()


def sample(model: Classifier, inputs: Features | Waveforms, passes: int, seed: int) -> np.ndarray:
    """Probabilities (U, M, K) of M passes with the head's dropout active (MC dropout).

    Args:
        model: the classifier.
        inputs: U clips.
        passes: M, at least 2.
        seed: of the dropout masks.

    Raises:
        InputError: two passes are identical, so the model has no active dropout.
    """
    drawn = draw(model, inputs.everything(model), passes, seed)
    if any(torch.equal(a, b) for a, b in pairwise(drawn.unbind(dim=1))):
        raise InputError(
            "two dropout passes are identical: the model has no active dropout, or all clips sound the same, so its "
            "uncertainty would be 0. Train the source model with --dropout above 0; look for copies of one file."
        )
    return drawn.contiguous().cpu().numpy()


@torch.no_grad()
def draw(model: Classifier, features: Tensor, passes: int, seed: int) -> Tensor:
    """Probabilities (U, M, K) of M dropout passes over standardised features (U, L, D).

    The head's hidden layer and its linear part run once, since dropout comes after them or does not reach them; what
    follows runs for many passes at a time.
    """
    head = model.head
    hidden = head.units(features)
    at_once = max(1, _CELLS // hidden.numel())
    with seeded(seed), dropout_active(model):
        # Masks are drawn pass by pass, so that they do not depend on how many passes are computed at a time.
        parts = [
            head.output(torch.stack([head.dropout(hidden) for _ in part]))
            for part in torch.arange(passes).split(at_once)
        ]
    return head.with_linear(torch.cat(parts), features).softmax(dim=-1).transpose(0, 1)
