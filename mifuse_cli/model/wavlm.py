"""WavLM's attention by torch's scaled-dot-product attention, for which transformers has no WavLM.

Chen et al., WavLM, IEEE JSTSP 2022, equations 6 to 9: a bias by relative position, with a gate by head and query. Bias
and padding are added to the scores, as the mask that scaled-dot-product attention takes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.wavlm.modeling_wavlm import WavLMAttention


class GatedAttention(WavLMAttention):  # type: ignore[misc]  # transformers has no types
    """The same weights and the same output, without the weights of the attention, which nothing reads."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_bias: Tensor | None = None,
        index: int = 0,
        **others: Any,
    ) -> tuple[Tensor, None, Tensor]:
        """Output (B, T, D), and the position bias (1, H, T, T'), which the first block makes for all.

        Args:
            hidden_states: (B, T, D).
            attention_mask: (B, T), 1 where there is a frame and no padding.
            position_bias: of the first block; None in it.
            index: of the block, not used.
            others: what transformers passes to any attention, not used.
        """
        if position_bias is None:
            position_bias = self._position_bias(hidden_states.shape[1])
        by_head = hidden_states.unflatten(-1, (self.num_heads, -1))
        gates = self.gru_rel_pos_linear(by_head).unflatten(-1, (2, 4)).sum(-1).sigmoid().transpose(1, 2)
        gate = (gates[..., :1] * (gates[..., 1:] * self.gru_rel_pos_const - 1) + 2).contiguous()
        query, key, value = (
            self._by_head(project(hidden_states)) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        gate, bias = gate.to(query.dtype), position_bias.to(query.dtype)
        if attention_mask is None:
            scores = gate * bias
        else:  # in one pass over what is the largest tensor of all
            behind = (0, bias.shape[-1] - attention_mask.shape[1])
            absent = nn.functional.pad(attention_mask.ne(1), behind, value=True)
            padding = bias.new_zeros(absent.shape).masked_fill(absent, float("-inf"))
            scores = torch.addcmul(padding[:, None, None], gate, bias)
        heads = nn.functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=scores[..., : key.shape[2]],
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.out_proj(heads.transpose(1, 2).flatten(2)), None, position_bias

    def _by_head(self, hidden: Tensor) -> Tensor:
        """(B, H, T, D / H) of (B, T, D)."""
        return hidden.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _position_bias(self, frames: int) -> Tensor:
        """Bias (1, H, T, T') of every key by its distance from the query.

        T' is the next multiple of 8: kernels of GPUs want every row of the scores, which take the layout of bias and
        gate, to begin at one, and its keys side by side. Others are copied, or not taken by the fast kernels at all.
        """
        keys = frames + -frames % 8
        distance = torch.arange(1 - frames, keys, device=self.rel_attn_embed.weight.device)
        by_distance = self.rel_attn_embed(self._relative_positions_bucket(distance)).T
        # The row of query t begins at the distance -t.
        return by_distance.unfold(1, keys, 1).flip(1)[None].contiguous()


def use_scaled_dot_product(model: nn.Module) -> None:
    """Let the attention of a loaded WavLM be computed so; names and values of its weights stay."""
    for module in model.modules():
        if type(module) is WavLMAttention:
            module.__class__ = GatedAttention
