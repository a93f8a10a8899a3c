"""Dual encoders (ViT, ResNet or CLIP's tower with BERT) and Chinese-CLIP in the clip family."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_dual
import torch
from PIL import Image
from torch.nn.functional import normalize

from mmcompress import deploy
from mmcompress.errors import InputError, UsageError
from mmcompress.families import FromTeacher
from mmcompress.families._checkpoints import read_weights, write_weights
from mmcompress.families._clip_model import sample_pictures, sample_texts
from mmcompress.families.clip import Clip
from mmcompress.stages._pruning import Dependencies

torch.set_num_threads(1)
KINDS = ("vit", "resnet", "clip", "chinese")
BOTH = frozenset({"vision.embeds", "text.embeds", "fusion.logit_scale"})


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model folder of each kind, beside the checkpoint that it was written from."""
    found = {}
    for kind in KINDS:
        home = tmp_path_factory.mktemp(kind)
        Clip(path=tiny_dual.write_checkpoint(home / "source", kind)).write(home / "model", 0)
        found[kind] = home / "model"
    return found


def batch_of(model: Any) -> dict[str, torch.Tensor]:
    return {"pixel_values": sample_pictures(model), **sample_texts(model)}


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_are_those_of_transformers(kind: str, folders: dict[str, Path]) -> None:
    family, theirs = Clip(path=folders[kind]), tiny_dual.build(kind)
    model = family.load(folders[kind])
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    batch = batch_of(model)
    with torch.inference_mode():
        found = family.outputs(model, batch, BOTH)
        if kind == "resnet":  # transformers does not flatten its [b, d, 1, 1]: its own forward fails
            pooled = theirs.vision_model(batch["pixel_values"]).pooler_output.flatten(1)
            image = normalize(theirs.visual_projection(pooled), dim=-1)
            texts = {name: batch[name] for name in ("input_ids", "attention_mask")}
            text = normalize(theirs.text_projection(theirs.text_model(**texts).pooler_output), dim=-1)
        else:
            given = theirs(**batch)
            image, text = given.image_embeds, given.text_embeds
    assert torch.allclose(found["vision.embeds"], image, atol=1e-5)
    assert torch.allclose(found["text.embeds"], text, atol=1e-5)
    assert float(found["fusion.logit_scale"]) == pytest.approx(theirs.logit_scale.exp().item())
    assert (image[0] - image[1]).abs().max() > 1e-2 and (text[0] - text[1]).abs().max() > 1e-2


@pytest.mark.parametrize("kind", ["vit", "resnet", "chinese"])
def test_exported_graphs_equal_torch(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    family = Clip(path=folders[kind])
    facts = deploy.export(family, folders[kind], tmp_path)["graphs"]
    assert {name: fact["checked_batches"] for name, fact in facts.items()} == {
        "vision_model": [1, 3, 8],
        "text_model": [1, 3, 8],
    }
    assert all(0 < fact["max_difference"] <= deploy.TOLERANCE for fact in facts.values())


@pytest.mark.parametrize("kind", ["vit", "chinese"])
def test_what_the_processor_makes_is_transformers_own(kind: str, folders: dict[str, Path]) -> None:
    from transformers import BertTokenizer, CLIPImageProcessor

    folder = folders[kind]
    texts = ["a big red star", "RINGS", "", "红色星 zebra a a a a a a a a a a"]
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (21, 33, 3), dtype=np.uint8))
    feeds = Clip(path=folder).processor(folder).encode({"text": texts, "image": [picture] * 4})
    tokenizer = BertTokenizer.from_pretrained(folder.parent / "source")
    theirs = tokenizer(texts, padding=True, truncation=True, max_length=12, return_tensors="np")
    assert feeds["input_ids"].tolist() == theirs["input_ids"].tolist()
    assert feeds["attention_mask"].tolist() == theirs["attention_mask"].tolist()
    assert feeds["input_ids"][3, :4].tolist() == [2, 12, 13, 14]  # a Chinese character is a piece of its own
    values = CLIPImageProcessor.from_pretrained(folder)([picture], return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(feeds["pixel_values"][:1], values, atol=1e-6)


@pytest.mark.parametrize("kind", ["vit", "clip", "chinese"])
def test_hidden_states_and_attention_maps(kind: str, folders: dict[str, Path]) -> None:
    family = Clip(path=folders[kind])
    model = family.load(folders[kind], attention="eager")
    want = frozenset(
        f"{tower}.{what}" for tower in ("vision", "text") for what in ("hidden_states", "attentions", "mask")
    )
    found = family.outputs(model, batch_of(model), want)
    assert [tuple(states.shape) for states in found["vision.hidden_states"]] == [(3, 5, 32)] * 3
    assert [tuple(states.shape) for states in found["text.hidden_states"]] == [(3, 8, 32)] * 2
    assert [tuple(maps.shape) for maps in found["vision.attentions"]] == [(3, 4, 5, 5)] * 3
    assert [tuple(maps.shape) for maps in found["text.attentions"]] == [(3, 4, 8, 8)] * 2
    assert found["text.mask"].sum(dim=1).tolist() == [8, 7, 6]
    sdpa = family.load(folders[kind])
    with pytest.raises(UsageError, match="eager attention alone"):
        family.outputs(sdpa, batch_of(sdpa), frozenset({"text.attentions"}))


def test_a_resnet_gives_embeddings_alone(folders: dict[str, Path]) -> None:
    family = Clip(path=folders["resnet"])
    model = family.load(folders["resnet"])
    with pytest.raises(UsageError, match="a resnet has no layers of tokens, so it gives no hidden_states"):
        family.outputs(model, batch_of(model), frozenset({"vision.hidden_states"}))


# --- students and pruning ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vit", "chinese"])
def test_a_student_inherits_what_is_left(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    import transformers

    family = Clip(path=folders[kind])
    cut = FromTeacher.model_validate({"vision_layers": 2, "text_layers": (1,), "text_feed_forward": 16})
    family.student(folders[kind], cut, tmp_path / "student", 0)
    teacher, student = (family.load(folder).state_dict() for folder in (folders[kind], tmp_path / "student"))
    stack = {"vit": "vision_model.layers", "chinese": "vision_model.encoder.layers"}[kind]
    assert torch.equal(student[f"{stack}.1.mlp.fc1.weight"], teacher[f"{stack}.2.mlp.fc1.weight"])
    assert not any(name.startswith(f"{stack}.2.") for name in student)
    name = "text_model.encoder.layer.{}.intermediate.dense.weight"
    assert student[name.format(0)].shape == (16, 32) and name.format(1) not in student
    kept = (teacher[name.format(1)][:, None] == student[name.format(0)][None]).all(dim=2).any(dim=1)
    assert int(kept.sum()) == 16
    class_name = {"vit": "VisionTextDualEncoderModel", "chinese": "ChineseCLIPModel"}[kind]
    opened = getattr(transformers, class_name).from_pretrained(tmp_path / "student").eval()
    model = family.load(tmp_path / "student")
    batch = batch_of(model)
    with torch.inference_mode():
        ours = family.outputs(model, batch, BOTH)["text.embeds"]
        assert torch.allclose(opened(**batch).text_embeds, ours, atol=1e-6)


def test_cuts_that_a_tower_refuses(folders: dict[str, Path], tmp_path: Path) -> None:
    def student(kind: str, **cut: int) -> None:
        Clip(path=folders[kind]).student(folders[kind], FromTeacher.model_validate(cut), tmp_path / "student", 0)

    with pytest.raises(UsageError, match="vision_layers: the vision tower is a resnet, whose stages differ"):
        student("resnet", vision_layers=1)
    with pytest.raises(UsageError, match="text_width: the width of a bert tower cannot be cut"):
        student("vit", text_width=16)
    with pytest.raises(UsageError, match="text_layers: 5 is not possible: the teacher has 2"):
        student("resnet", text_layers=5)
    assert not (tmp_path / "student").exists()
    student("resnet", text_layers=1)
    old, new = (read_weights(folder) for folder in (folders["resnet"], tmp_path / "student"))
    ours = [name for name in old if name.startswith("vision_model.")]
    assert ours and all(torch.equal(old[name], new[name]) for name in ours)


@pytest.mark.parametrize("kind", KINDS)
def test_heads_and_units_are_cut_and_saved(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    family, towers = Clip(path=folders[kind]), {"text"} if kind == "resnet" else {"vision", "text"}
    model = family.load(folders[kind], attention="eager")
    found = Dependencies(model, family.traced(model), family.prunable(model))
    assert {block.prunable.tower for block in found.blocks} == towers
    assert {block.groups for block in found.blocks} == {4, 48}
    before = family.outputs(model, batch_of(model), BOTH)
    for block in found.blocks:
        found.cut(block, [0, 2] if block.groups == 4 else range(0, 48, 2))
    after = family.outputs(model, batch_of(model), BOTH)
    changed = {
        tower
        for tower in ("vision", "text")
        if (before[f"{tower}.embeds"] - after[f"{tower}.embeds"]).abs().max() > 1e-3
    }
    assert changed == towers
    query = model.get_submodule("text_model.encoder.layer.0.attention.self.query")
    assert query.weight.shape == (16, 32)
    family.save(model, folders[kind], tmp_path / "pruned")
    again = family.load(tmp_path / "pruned", attention="eager")
    same = family.outputs(again, batch_of(again), BOTH)
    assert all(torch.equal(after[name], same[name]) for name in ("vision.embeds", "text.embeds"))
    config = json.loads((tmp_path / "pruned" / "config.json").read_text())
    assert config["text_config"]["intermediate_size"] == 24


# --- checkpoints ---------------------------------------------------------------------------------------------------


def test_older_names_are_read(folders: dict[str, Path], tmp_path: Path) -> None:
    """As transformers 4 wrote a ViT, with BERT's positions that follow from the shapes."""
    source = tmp_path / "old"
    shutil.copytree(folders["vit"].parent / "source", source)
    weights = {}
    for name, tensor in read_weights(source).items():
        if name.startswith("vision_model.layers."):
            for new, old in (
                ("vision_model.layers.", "vision_model.encoder.layer."),
                (".attention.q_proj.", ".attention.attention.query."),
                (".attention.k_proj.", ".attention.attention.key."),
                (".attention.v_proj.", ".attention.attention.value."),
                (".attention.o_proj.", ".attention.output.dense."),
                (".mlp.fc1.", ".intermediate.dense."),
                (".mlp.fc2.", ".output.dense."),
            ):
                name = name.replace(new, old)
        weights[name] = tensor
    assert "vision_model.encoder.layer.0.attention.attention.query.weight" in weights
    weights["text_model.embeddings.position_ids"] = torch.arange(12)[None]
    write_weights(weights, source)
    Clip(path=source).write(tmp_path / "model", 0)
    ours, theirs = read_weights(tmp_path / "model"), read_weights(folders["vit"])
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_random_weights_follow_from_the_seed(tmp_path: Path) -> None:
    source = tiny_dual.write_folder(tmp_path / "source", "vit")
    for number, seed in enumerate((1, 1, 2)):
        Clip(config=source / "config.json").write(tmp_path / str(number), seed)
    one, same, other = (read_weights(tmp_path / str(number)) for number in range(3))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_every_weight_is_accounted_for(folders: dict[str, Path], tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(folders["chinese"].parent / "source", source)
    weights = read_weights(source)
    write_weights({**weights, "surplus": torch.zeros(2)}, source)
    with pytest.raises(InputError, match="1 unexpected: surplus"):
        Clip(path=source).write(tmp_path / "model", 0)
    write_weights({name: tensor for name, tensor in weights.items() if name != "text_projection.weight"}, source)
    with pytest.raises(InputError, match=r"1 missing: text_projection\.weight"):
        Clip(path=source).write(tmp_path / "model", 0)


def test_towers_that_are_not_known(tmp_path: Path) -> None:
    source = tiny_dual.write_folder(tmp_path / "source", "vit")
    config = tiny_dual.config("vit")
    config["text_config"] = {**config["text_config"], "model_type": "berd"}
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"text model is of model_type 'berd'.*bert"):
        Clip(config=source / "config.json").write(tmp_path / "model", 0)


def test_a_tokenizer_of_more_words_than_the_model_knows(tmp_path: Path) -> None:
    source = tiny_dual.write_folder(tmp_path / "source", "chinese")
    with (source / "vocab.txt").open("a", encoding="utf-8") as file:
        file.write("one\ntwo\nthree\n")
    with pytest.raises(InputError, match="token ids up to 17, the model knows 16"):
        Clip(config=source / "config.json").write(tmp_path / "model", 0)


def test_a_resnet_is_asked_for_pictures_of_its_processor_size(folders: dict[str, Path]) -> None:
    family = Clip(path=folders["resnet"])
    vision = next(graph for graph in family.graphs(family.load(folders["resnet"])) if graph.name == "vision_model")
    assert vision.inputs["pixel_values"].shape == (3, 3, 16, 16)
