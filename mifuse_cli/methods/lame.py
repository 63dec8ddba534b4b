"""LAME (Boudiaf et al., "Parameter-free Online Test-time Adaptation", CVPR 2022).

Nothing is trained: the predictions q of the given clips are corrected, so that neighbours agree. The assignments
z (U, K) maximise sum_i [ sum_k z_ik log(q_ik / z_ik) ] + lambda sum_ij w_ij <z_i, z_j>, with w_ij = 1 if j is among
the N nearest neighbours of i by cosine of the hidden units, else 0. The concave-convex procedure repeats

    z_i  proportional to  q_i * exp(lambda sum_j w_ij z_j)

from z = q. The constants, N = 5, lambda = 1, at most 100 rounds, and affinities that need not be mutual, are those
of the authors' code.

Ours: all clips at once instead of batches of 16 as they come, and rounds end when no assignment moves by more than
1e-6. With lambda = 1 five neighbours that agree outweigh all but the surest predictions (a factor of exp(5) = 148),
so that the neighbourhoods of a large target decide, with whatever they have in common, such as the speaker.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mifuse_cli.methods.bank import nearest

_EPSILON = 1e-10
_SETTLED = 1e-6


@torch.no_grad()
def lame(
    units: Tensor, probs: Tensor, *, neighbours: int = 5, weight: float = 1.0, rounds: int = 100
) -> Tensor:
    """Assignments (U, K) of the clips, in double precision.

    Args:
        units: (U, H) hidden units.
        probs: (U, K) predictions to correct.
        neighbours: N.
        weight: lambda, of the agreement with neighbours.
        rounds: the most there are.
    """
    near = nearest(
        normalize(units.double(), dim=1), torch.arange(len(units), device=units.device), neighbours
    )
    logs, assigned = (probs.double() + _EPSILON).log(), probs.double()
    for _ in range(rounds):
        before = assigned
        assigned = (logs + weight * before[near].sum(dim=1)).softmax(dim=1)
        if (assigned - before).abs().max() <= _SETTLED:
            break
    return assigned
