"""Attention of WavLM by scaled-dot-product attention; transformers has it for the other families."""

import json
import shutil

import pytest
import torch
from conftest import save_encoder

from mifuse_cli.model.encoder import load_encoder

LIKE = {
    "layer": {"feat_extract_norm": "layer"},
    "layer-stable": {"feat_extract_norm": "layer", "do_stable_layer_norm": True},
}


class TestWavLM:
    """Its attention, computed by scaled-dot-product attention, is that of transformers."""

    @pytest.fixture(params=["layer", "layer-stable"])
    def both(self, request, tmp_path):
        from transformers import AutoModel

        directory = save_encoder(tmp_path / "e", "wavlm", **LIKE[request.param])
        theirs, ours = AutoModel.from_pretrained(directory).eval(), load_encoder(directory).model
        with torch.no_grad(), torch.random.fork_rng():  # positions and gates that matter
            torch.manual_seed(0)
            for (name, one), other in zip(theirs.named_parameters(), ours.parameters(), strict=True):
                if "rel" in name:
                    other.copy_(one.add_(torch.randn_like(one)))
        return theirs, ours

    @pytest.mark.parametrize("masked", [False, True])
    def test_equal(self, both, masked):
        draw = torch.Generator().manual_seed(0)
        values = torch.randn(3, 9000, generator=draw)
        mask = torch.ones(3, 9000, dtype=torch.long)
        mask[1, 7000:], mask[2, 2000:] = 0, 0
        found, frames = [], both[0]._get_feature_vector_attention_mask(28, mask)
        for model, seen in zip(both, (mask, frames), strict=True):  # ours is told the frames
            states = model(values, attention_mask=seen if masked else None, output_hidden_states=True)
            assert states.hidden_states[0].shape[1] == 28
            whole = torch.stack(states.hidden_states)
            (whole * torch.randn(whole.shape, generator=draw.manual_seed(1))).sum().backward()
            found.append((states.hidden_states, {n: p.grad for n, p in model.named_parameters()}))
        (theirs, their_gradients), (ours, our_gradients) = found
        for one, other in zip(theirs, ours, strict=True):
            torch.testing.assert_close(other, one, atol=1e-5, rtol=0)
        assert any("rel_attn_embed" in name for name in our_gradients)
        for name, gradient in their_gradients.items():
            if gradient is not None:
                assert (our_gradients[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-5, name

    @pytest.mark.parametrize("masked", [False, True])
    def test_rows_of_scores_begin_at_multiples_of_8_and_lie_side_by_side(self, both, monkeypatch, masked):
        """Or else kernels of GPUs copy them, or the slowest of all is taken."""
        inner, given = torch.nn.functional.scaled_dot_product_attention, []

        def noted(*parts, attn_mask, **others):
            given.append(attn_mask)
            return inner(*parts, attn_mask=attn_mask, **others)

        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
        mask = torch.ones(2, 28)
        mask[1, 20:] = 0
        both[1](torch.randn(2, 9000), attention_mask=mask if masked else None)
        assert len(given) == 2 and {scores.shape[2:] for scores in given} == {(28, 28)}
        assert {scores.stride()[2:] for scores in given} == {(32, 1)}

    def test_weights_are_not_made(self, both, monkeypatch):
        monkeypatch.setattr(torch.nn.functional, "multi_head_attention_forward", None)
        both[1](torch.randn(1, 4000))
        with pytest.raises(TypeError):
            both[0](torch.randn(1, 4000))

    def test_saved_as_before(self, both, tmp_path):
        theirs, ours = both
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        for name, model in (("theirs", theirs), ("ours", ours)):
            model.save_pretrained(tmp_path / name)
        for file in ("config.json", "model.safetensors"):
            assert (tmp_path / "ours" / file).read_bytes() == (tmp_path / "theirs" / file).read_bytes()


@pytest.mark.parametrize("family", ("wav2vec2", "hubert", "whisper"))
def test_others_use_scaled_dot_product_attention(encoders, tmp_path, family):
    """Whatever their configuration asks for."""
    directory = shutil.copytree(encoders[family], tmp_path / "e")
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"attn_implementation": "eager"}))
    encoder = load_encoder(directory)
    model = encoder.wrapper if family == "whisper" else encoder.model
    assert model.config._attn_implementation == "sdpa"
