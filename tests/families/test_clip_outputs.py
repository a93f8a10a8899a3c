"""Hidden states, attention maps and masks of a clip, which losses on layers and tokens read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_clip
import torch

from mmcompress.errors import UsageError
from mmcompress.families.clip import Clip

pytestmark = pytest.mark.unit
torch.set_num_threads(1)


@pytest.fixture(scope="module", params=["clip", "siglip"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = {"clip": tiny_clip.clip_config, "siglip": tiny_clip.siglip_config}[request.param]()
    return tiny_clip.write_checkpoint(tmp_path_factory.mktemp(request.param), config)


def outputs(folder: Path, want: set[str] | None = None, attention: str = "eager") -> tuple[Any, Any, dict[str, Any]]:
    family = Clip(path=folder)
    model = family.load(folder, attention=attention)
    batch = {name: tensor for graph in family.graphs(model) for name, tensor in graph.inputs.items()}
    with torch.inference_mode():
        return model, batch, dict(family.outputs(model, batch, family.provides() if want is None else frozenset(want)))


def test_everything_that_it_provides_is_given(checkpoint: Path) -> None:
    _, _, given = outputs(checkpoint)
    assert given.keys() - {"fusion.logit_bias"} == Clip(path=checkpoint).provides()
    for tower in ("vision", "text"):
        shapes = {tuple(layer.shape[:2]) for layer in given[f"{tower}.hidden_states"]}
        assert shapes == {tuple(given[f"{tower}.mask"].shape)}
        assert len(given[f"{tower}.attentions"]) == len(given[f"{tower}.hidden_states"])


def test_a_map_is_the_softmax_of_queries_and_keys(checkpoint: Path) -> None:
    model, _, given = outputs(checkpoint)
    layer = model.vision_model.encoder.layers[1]
    attention, heads = layer.self_attn, layer.self_attn.num_heads
    with torch.inference_mode():
        states = layer.layer_norm1(given["vision.hidden_states"][0])
        queries, keys = (p(states).unflatten(-1, (heads, -1)) for p in (attention.q_proj, attention.k_proj))
        scores = torch.einsum("bqhd,bkhd->bhqk", queries, keys) / queries.shape[-1] ** 0.5
    torch.testing.assert_close(given["vision.attentions"][1], scores.softmax(dim=-1))


def test_a_mask_tells_which_tokens_count(checkpoint: Path) -> None:
    _, batch, given = outputs(checkpoint)
    assert (given["vision.mask"] == 1).all()
    if "attention_mask" not in batch:
        assert (given["text.mask"] == 1).all()
        return
    assert torch.equal(given["text.mask"], batch["attention_mask"])
    assert not given["text.mask"].all()
    padding = (batch["attention_mask"] == 0)[:, None, None].expand_as(given["text.attentions"][0])
    counted = batch["attention_mask"].bool()
    assert given["text.attentions"][0].transpose(1, 2)[counted].transpose(0, 1).sum() > 0
    rows = given["text.attentions"][0].masked_fill(~padding, 0).sum(dim=-1)  # what each query gives to padding
    assert rows.transpose(1, 2)[counted].abs().max() == 0


def test_maps_of_sdpa_are_refused_and_nothing_else_is(checkpoint: Path) -> None:
    with pytest.raises(
        UsageError, match=r"vision\.attentions come from eager attention alone\n  Set `attention: eager`"
    ):
        outputs(checkpoint, {"vision.attentions"}, "sdpa")
    _, _, given = outputs(checkpoint, {"vision.hidden_states", "vision.mask", "text.mask"}, "sdpa")
    assert {"vision.hidden_states", "vision.mask", "text.mask"} <= given.keys()
    assert "vision.attentions" not in given and "text.hidden_states" not in given
