"""structure.json: described, applied, checked, folded into config.json."""

from __future__ import annotations

import copy
import json

import pytest

from mmcompress.errors import InputError
from mmcompress.families._folding import fold_into_config
from mmcompress.families._structure import (
    STRUCTURE,
    apply_structure,
    check_weights,
    describe_structure,
    read_structure,
    write_structure,
)
from mmcompress.families.clip import Clip
from mmcompress.stages._cutting import Budget, prune_model

torch = pytest.importorskip("torch")
from tiny_clip import clip_config, siglip_config, write_checkpoint  # noqa: E402

nn = torch.nn
pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("one_thread")]


class Attention(nn.Module):
    """A stand-in with what families have: numbers on modules, a buffer, a tuple, tied weights."""

    def __init__(self, width: int = 8, heads: int = 4, feed_forward: int = 12) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.scale = heads, width // heads, (width // heads) ** -0.5
        self.dropout, self.is_causal, self.implementation = 0.0, False, "eager"
        self.q_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, feed_forward), nn.Linear(feed_forward, width)
        self.norm = nn.LayerNorm(width)
        self.embed, self.unembed = nn.Embedding(5, width), nn.Linear(width, 5, bias=False)
        self.unembed.weight = self.embed.weight
        self.register_buffer("mask", torch.ones(heads, 2))


def narrow(model: Attention, heads: int) -> Attention:
    channels = heads * model.head_dim
    model.num_heads = heads
    model.q_proj.weight = nn.Parameter(model.q_proj.weight[:channels].detach().clone())
    model.q_proj.bias = nn.Parameter(model.q_proj.bias[:channels].detach().clone())
    model.q_proj.out_features = channels
    model.out_proj.weight = nn.Parameter(model.out_proj.weight[:, :channels].detach().clone())
    model.out_proj.in_features = channels
    model.mask = model.mask[:heads].clone()
    return model


def on_meta(**sizes: int) -> Attention:
    with torch.device("meta"):
        return Attention(**sizes)


def test_nothing_changed_is_none():
    assert describe_structure(Attention(), on_meta()) is None


def test_shapes_attributes_and_ties_are_told_by_module():
    assert describe_structure(narrow(Attention(), 3), on_meta()) == {
        "format": 1,
        "modules": {
            "": {"shapes": {"mask": [3, 2]}, "attributes": {"num_heads": 3}},
            "q_proj": {"shapes": {"weight": [6, 8], "bias": [6]}, "attributes": {"out_features": 6}},
            "out_proj": {"shapes": {"weight": [8, 6]}, "attributes": {"in_features": 6}},
        },
        "tied": [["embed.weight", "unembed.weight"]],
    }


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_described_model_is_rebuilt_through_json(tmp_path, device):
    pruned = narrow(narrow(Attention(), 3), 2)
    write_structure(tmp_path, describe_structure(pruned, on_meta()))
    with torch.device(device):
        rebuilt = Attention()
    apply_structure(rebuilt, read_structure(tmp_path))
    assert describe_structure(pruned, rebuilt) is None
    assert rebuilt.q_proj.weight.device.type == device
    assert rebuilt.unembed.weight is rebuilt.embed.weight
    if device == "cpu":
        check_weights(rebuilt, pruned.state_dict(), tmp_path)
        rebuilt.load_state_dict(pruned.state_dict(), strict=True)
        for name, tensor in pruned.state_dict().items():
            assert torch.equal(rebuilt.state_dict()[name], tensor)


def test_ties_that_the_configuration_does_not_make_or_unmake():
    untied = Attention()
    untied.unembed.weight = nn.Parameter(untied.unembed.weight.detach().clone())
    rebuilt = Attention()
    apply_structure(rebuilt, describe_structure(untied, on_meta()))
    assert rebuilt.unembed.weight is not rebuilt.embed.weight
    tied = Attention()
    tied.out_proj.bias = tied.q_proj.bias
    rebuilt = Attention()
    apply_structure(rebuilt, describe_structure(tied, on_meta()))
    assert rebuilt.out_proj.bias is rebuilt.q_proj.bias
    assert rebuilt.unembed.weight is rebuilt.embed.weight


def test_models_of_other_modules_cannot_be_described():
    other = Attention()
    other.extra = nn.Linear(1, 1)
    with pytest.raises(ValueError, match="extra"):
        describe_structure(other, on_meta())


def test_a_folder_without_a_structure_has_none(tmp_path):
    assert read_structure(tmp_path) is None
    write_structure(tmp_path, None)
    assert not (tmp_path / STRUCTURE).exists()
    (tmp_path / STRUCTURE).write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        read_structure(tmp_path)


def changed(path: tuple[str, ...], value: object) -> object:
    structure = copy.deepcopy(describe_structure(narrow(Attention(), 3), on_meta()))
    at = structure
    for key in path[:-1]:
        at = at.setdefault(key, {})
    at[path[-1]] = value
    return structure


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        (None, "format 'NoneType', expected 1"),
        ([], "format 'list'"),
        (changed(("format",), 2), "format 2, expected 1"),
        (changed(("more",), 2), "expected the keys"),
        (changed(("modules",), []), "expected the keys"),
        (changed(("tied",), {}), "expected the keys"),
        (changed(("modules", "q_proj"), []), "q_proj: expected a mapping"),
        (changed(("modules", "q_proj", "code"), "x"), "q_proj: expected a mapping"),
        (changed(("modules", "q_proj", "shapes"), [6]), "q_proj: shapes and attributes are mappings"),
        (changed(("modules", "k_proj"), {}), "no module 'k_proj'"),
        (changed(("modules", "q_proj", "shapes", "gain"), [6]), "q_proj: the module has no parameter or buffer 'gain'"),
        (
            changed(("modules", "q_proj", "shapes", "weight"), [6]),
            r"q_proj: weight: shape \[6\] is not \[8, 8\] or narrower",
        ),
        (changed(("modules", "q_proj", "shapes", "weight"), [10**12, 8]), "or narrower"),
        (changed(("modules", "q_proj", "shapes", "weight"), [0, 8]), "or narrower"),
        (changed(("modules", "q_proj", "shapes", "weight"), [True, 8]), "or narrower"),
        (changed(("modules", "q_proj", "shapes", "weight"), "68"), "or narrower"),
        (changed(("modules", "q_proj", "shapes", "weight"), [5, 8]), r"q_proj: .* weight \[5, 8\]"),
        (changed(("modules", "q_proj", "shapes", "bias"), [5]), r"q_proj: 6 features, bias \[5\]"),
        (changed(("modules", "q_proj", "attributes", "out_features"), 7), "q_proj: .*7 features"),
        (changed(("modules", "", "attributes", "num_heads"), 2), "2 heads of width 2, but its q_proj gives 6"),
        (changed(("modules", "", "attributes", "num_heads"), "3"), "num_heads: expected a number like 4, got '3'"),
        (changed(("modules", "", "attributes", "num_heads"), 3.0), "num_heads: expected a number like 4"),
        (changed(("modules", "", "attributes", "num_heads"), True), "num_heads: expected a number like 4"),
        (changed(("modules", "", "attributes", "scale"), float("nan")), "scale: expected a number"),
        (changed(("modules", "", "attributes", "is_causal"), 1), "no number called 'is_causal'"),
        (changed(("modules", "", "attributes", "implementation"), "x"), "no number called 'implementation'"),
        (changed(("modules", "", "attributes", "forward"), 1), "no number called 'forward'"),
        (changed(("modules", "", "attributes", "_modules"), 1), "no number called '_modules'"),
        (changed(("modules", "norm", "attributes", "normalized_shape"), 8), "normalized_shape: expected a number like"),
        (changed(("tied",), [["embed.weight"]]), "tied: expected lists of two"),
        (changed(("tied",), [["embed.weight", 3]]), "tied: expected lists of two"),
        (changed(("tied",), [["embed.weight", "gone.weight"]]), "tied: .* no parameter 'gone.weight'"),
        (changed(("tied",), [["embed.weight", "q_proj.bias"]]), "differ in shape"),
    ],
)
def test_a_structure_that_does_not_fit_is_refused_by_module(structure, message):
    with pytest.raises(InputError, match=message) as raised:
        apply_structure(Attention(), structure, "model/structure.json")
    assert str(raised.value).startswith("model/structure.json: ")


def test_weights_that_do_not_fit_are_named():
    rebuilt = Attention()
    apply_structure(rebuilt, describe_structure(narrow(Attention(), 3), on_meta()))
    with pytest.raises(InputError, match=r"q_proj\.weight: shape \[8, 8\], expected \[6, 8\]"):
        check_weights(rebuilt, Attention().state_dict(), "folder")
    weights = narrow(Attention(), 3).state_dict()
    check_weights(rebuilt, {name: tensor for name, tensor in weights.items() if name != "unembed.weight"}, "folder")
    weights["gain"] = weights.pop("fc2.bias")
    with pytest.raises(InputError, match=r"fc2\.bias: missing\n  gain: not a part"):
        check_weights(rebuilt, weights, "folder")


# --- folding -------------------------------------------------------------------------------------------------------


def build(config: dict) -> Attention:
    sections = [config, *[value for value in config.values() if isinstance(value, dict)]]
    blocks = {str(i): on_meta(feed_forward=s["intermediate_size"]) for i, s in enumerate(sections) for _ in range(1)}
    return nn.ModuleDict({name + part: copy.deepcopy(block) for name, block in blocks.items() for part in "ab"})


CONFIG = {"intermediate_size": 12, "text": {"intermediate_size": 12, "depth": 2}}


def cut(model: nn.Module, widths: dict[str, int]) -> nn.Module:
    for name, width in widths.items():
        with torch.device("meta"):
            model[name].fc1, model[name].fc2 = nn.Linear(8, width), nn.Linear(width, 8)
    return model


def test_a_uniform_width_moves_into_its_section_of_the_configuration():
    config, left = fold_into_config(CONFIG, cut(build(CONFIG), {"1a": 8, "1b": 8}), build)
    assert config == {"intermediate_size": 12, "text": {"intermediate_size": 8, "depth": 2}}
    assert left is None
    assert CONFIG["text"] == {"intermediate_size": 12, "depth": 2}


def test_every_section_folds_by_itself():
    config, left = fold_into_config(CONFIG, cut(build(CONFIG), {"0a": 4, "0b": 4, "1a": 8, "1b": 8}), build)
    assert (config["intermediate_size"], config["text"]["intermediate_size"], left) == (4, 8, None)


def test_widths_that_differ_stay_in_the_structure():
    model = cut(build(CONFIG), {"0a": 4, "0b": 4, "1a": 8, "1b": 4})
    config, left = fold_into_config(CONFIG, model, build)
    assert config == {"intermediate_size": 4, "text": {"intermediate_size": 12, "depth": 2}}
    assert set(left["modules"]) == {"1a.fc1", "1a.fc2", "1b.fc1", "1b.fc2"}
    assert fold_into_config(CONFIG, build(CONFIG), build) == (CONFIG, None)


def test_heads_stay_in_the_structure_beside_a_width_that_folds():
    model = cut(build(CONFIG), {"0a": 4, "0b": 4})
    narrow(model["0b"], 3)
    config, left = fold_into_config(CONFIG, model, build)
    assert config["intermediate_size"] == 4
    assert set(left["modules"]) == {"0b", "0b.q_proj", "0b.out_proj"}


# --- with a family -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [clip_config(), siglip_config()], ids=["clip", "siglip"])
def test_a_pruned_checkpoint_is_rebuilt_and_a_tampered_one_is_refused(tmp_path, config):
    source = write_checkpoint(tmp_path / "source", config)
    family = Clip(path=source)
    model = family.load(source)

    def alike(blocks):
        return {block.name: [float(group) for group in range(block.groups)] for block in blocks}

    prune_model(family, model, Budget("macs", 0.6), alike, relative=True)
    family.save(model, source, tmp_path / "pruned")
    again = family.load(tmp_path / "pruned")
    for ours, theirs in zip(family.graphs(model), family.graphs(again), strict=True):
        with torch.no_grad():
            got, expected = ours.module(**ours.inputs), theirs.module(**theirs.inputs)
        assert all(torch.equal(got[name], expected[name]) for name in got)
    file = tmp_path / "pruned" / STRUCTURE
    structure = json.loads(file.read_text())
    name = next(name for name in structure["modules"] if name.endswith("0.self_attn.out_proj"))
    structure["modules"][name]["shapes"]["weight"][1] -= 8
    structure["modules"][name]["attributes"]["in_features"] -= 8
    file.write_text(json.dumps(structure))
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        family.load(tmp_path / "pruned")
    del structure["modules"][name]
    file.write_text(json.dumps(structure))
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        family.load(tmp_path / "pruned")


def test_uniformly_narrower_feed_forward_layers_open_with_from_pretrained(tmp_path):
    from transformers import CLIPModel

    source = write_checkpoint(tmp_path / "source", clip_config())
    family = Clip(path=source)
    model = family.load(source)

    def alike(blocks):
        return {block.name: [float(group) for group in range(block.groups)] for block in blocks}

    budget = Budget("macs", 0.8)
    prune_model(family, model, budget, alike, relative=True, parts=("feed_forward",), ranking="local", round_to=2)
    family.save(model, source, tmp_path / "pruned")
    assert not (tmp_path / "pruned" / STRUCTURE).exists()
    opened = CLIPModel.from_pretrained(tmp_path / "pruned").eval()
    assert (
        opened.config.vision_config.intermediate_size == model.vision_model.encoder.layers[0].mlp.fc1.out_features < 48
    )
    for ours, theirs in zip(family.graphs(model), family.graphs(opened), strict=True):
        with torch.no_grad():
            got, expected = ours.module(**ours.inputs), theirs.module(**theirs.inputs)
        assert all(torch.equal(got[name], expected[name]) for name in got)
