"""Models of one's own: what they are asked for, how they are found, what pruning finds in them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_custom import judge_config, write_config

from mmcompress._sound import Sound
from mmcompress.errors import InputError, StageError, UsageError
from mmcompress.families import FromTeacher
from mmcompress.families._custom_checkpoints import installed_identity
from mmcompress.families._texts import write_word_level_tokenizer
from mmcompress.families.custom import Custom

torch.set_num_threads(1)
SERIES = {"name": "series", "kind": "series", "channels": 4, "length": 9}
TABLE = {"name": "table", "kind": "table", "columns": 3}
TWO = {"kind": "classify", "classes": ["no", "yes"]}


def made(folder: Path, **changes: Any) -> tuple[Custom, Path, Any]:
    """A family, its model folder with random weights, and the model."""
    family = Custom(config=write_config(folder / "source", judge_config(**changes)))
    family.write(folder / "model", seed=1)
    return Custom(path=folder / "model"), folder / "model", family.load(folder / "model")


def test_a_model_folder_is_written_loaded_and_saved_bit_for_bit(tmp_path: Path) -> None:
    family, folder, model = made(tmp_path)
    again = family.load(folder)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    family.save(model, folder, tmp_path / "saved")
    saved = (tmp_path / "saved" / "model.safetensors").read_bytes()
    assert saved == (folder / "model.safetensors").read_bytes()
    copied = Custom(path=folder)
    copied.write(tmp_path / "copied", seed=5)
    assert (tmp_path / "copied" / "model.safetensors").read_bytes() == saved
    other = Custom(config=tmp_path / "source" / "config.json")
    other.write(tmp_path / "other", seed=2)
    assert (tmp_path / "other" / "model.safetensors").read_bytes() != saved


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"mmcompress_model": "tiny_jugde"},
            r"no installed package has the model 'tiny_jugde' \(did you mean 'tiny_judge'",
        ),
        ({"mmcompress_model": "tiny_broken"}, "tiny_custom_models:Absent.*cannot be imported"),
        ({"mmcompress_model": "tiny_numbers"}, "builds a list; expected a torch.nn.Module"),
        ({"task": {"kind": "embed"}}, "embed takes two inputs, of different kinds.*got picture, table"),
        ({"task": {"kind": "classify", "classes": ["a", "a"]}}, "distinct names"),
        ({"inputs": [{**TABLE, "colums": 3}]}, r"inputs\.0\.table\.colums: unknown key"),
        ({"model_type": "bert"}, "not a custom model: model_type 'bert'"),
    ],
)
def test_what_cannot_be_built_is_told(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        made(tmp_path, **changes)


def test_weights_of_another_width_are_refused(tmp_path: Path) -> None:
    family, folder, _ = made(tmp_path)
    (folder / "config.json").write_text(json.dumps(judge_config(model={"width": 32})))
    with pytest.raises(InputError, match="the weights do not fit the model"):
        family.load(folder)


def test_values_become_tensors_by_the_inputs_names(tmp_path: Path) -> None:
    inputs = [
        *judge_config()["inputs"],
        {"name": "texts", "kind": "text", "max_length": 6},
        {"name": "audio", "kind": "sound", "rate": 4000, "seconds": 1.0, "form": "samples"},
        {**SERIES, "mean": [1.0] * 4, "std": [2.0] * 4},
    ]
    write_config(tmp_path, judge_config(inputs=inputs))
    write_word_level_tokenizer(["a", "red", "cat"], 6, tmp_path)
    processor = Custom(path=tmp_path).processor(tmp_path)
    values = {
        "image": [Image.new("RGB", (40, 20), (255, 255, 255))] * 2,
        "table": [np.array([20.0, 1.0, -1.0], np.float32)] * 2,
        "text": ["a red cat", "cat"],
        "audio": [Sound(np.zeros(1000, np.float32), 4000)] * 2,
        "series": [np.full((5, 4), 5.0, np.float32), np.full((3, 4), 5.0, np.float32)],
        "label": [3, "9"],
    }
    feeds = processor.encode(values)
    assert feeds["image_values"].shape == (2, 3, 16, 16)
    assert feeds["image_values"].max() == pytest.approx(1.0)
    assert feeds["table_values"][0].tolist() == [2.0, 1.0, -1.0]
    assert feeds["audio_values"].shape == (2, 1000, 1)
    assert feeds["series_values"][:, :, 0].tolist() == [[2.0] * 5, [2.0, 2.0, 2.0, 0.0, 0.0]]
    assert feeds["series_length"].tolist() == [5, 3]
    assert feeds["label"].tolist() == [3, 9]
    longest = feeds["texts_length"].tolist()
    assert feeds["texts_values"].shape == (2, longest[0]) and longest[0] > longest[1]
    write_config(tmp_path, judge_config(inputs=inputs, padding="max_length"))
    padded = Custom(path=tmp_path).processor(tmp_path).encode(values)
    assert padded["texts_values"].shape == (2, 6)
    assert padded["series_values"].shape == (2, 9, 4)
    assert padded["texts_length"].tolist() == longest
    with pytest.raises(InputError, match="table 2 of 2 is missing"):
        processor.compact({"table": [values["table"][0], None]})
    with pytest.raises(InputError, match="takes the columns image, table, text, audio, series, label; got caption"):
        processor.compact({"caption": ["a"]})


def batch_of(count: int = 4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "image_values": torch.randn(count, 3, 16, 16, generator=generator),
        "table_values": torch.randn(count, 3, generator=generator),
    }


@torch.no_grad()
def test_losses_by_hand(tmp_path: Path) -> None:
    family, _, model = made(tmp_path / "one")
    batch = {**batch_of(), "label": torch.tensor([0, 1, 2, 9])}
    outputs = family.outputs(model, batch, family.task_needs())
    chances = outputs["fusion.logits"].softmax(-1)
    wanted = -sum(math.log(float(chances[row, label])) for row, label in enumerate((0, 1, 2, 9))) / 4
    assert float(family.task_loss(outputs, batch)) == pytest.approx(wanted, rel=1e-5)
    task = {"kind": "predict_number", "mean": 100.0, "std": 20.0}
    family, _, model = made(tmp_path / "number", task=task)
    batch = {**batch_of(), "number": torch.tensor([90.0, 100.0, 110.0, 120.0])}
    outputs = family.outputs(model, batch, family.task_needs())
    apart = (outputs["fusion.logits"][:, 0] - batch["number"]) / 20.0
    assert float(family.task_loss(outputs, batch)) == pytest.approx(float((apart**2).mean()), rel=1e-6)
    assert float(outputs["fusion.logits"].abs().mean()) > 50  # in the unit of the number
    several = {"kind": "classify", "classes": ["a", "b"], "several": True}
    family, _, model = made(tmp_path / "several", task=several)
    batch = {**batch_of(2), "labels": torch.tensor([[1.0, 0.0], [1.0, 1.0]])}
    outputs = family.outputs(model, batch, family.task_needs())
    chances = outputs["fusion.logits"].sigmoid()
    right = torch.where(batch["labels"] > 0, chances, 1 - chances)
    assert float(family.task_loss(outputs, batch)) == pytest.approx(float(-right.log().sum(1).mean()), rel=1e-5)
    assert family.columns == {"image", "table", "labels"}


@torch.no_grad()
def test_embeddings_have_a_graph_each_and_texts_come_second_in_losses(tmp_path: Path) -> None:
    inputs = [{"name": "texts", "kind": "text", "max_length": 6}, {"name": "image", "kind": "picture", "size": 24}]
    source = tmp_path / "source"
    source.mkdir()
    write_word_level_tokenizer(["a", "red", "cat"], 6, source)
    family, folder, model = made(
        tmp_path, mmcompress_model="tiny_pair", model={"width": 8, "words": 9}, inputs=inputs, task={"kind": "embed"}
    )
    assert [request.name for request in family.requests] == ["embed_text", "embed_image"]
    assert [graph.name for graph in family.graphs(model)] == ["text_model", "vision_model"]
    assert family.default_losses()[1] == {"icl": {"pair": ["vision", "text"]}}
    processor = family.processor(folder)
    feeds = processor.encode({"image": [Image.new("RGB", (24, 24))] * 2, "text": ["a cat", "a cat"]})
    batch = {name: torch.from_numpy(value) for name, value in feeds.items()}
    outputs = family.outputs(model, batch, family.task_needs())
    assert float(outputs["fusion.logit_scale"]) == pytest.approx(math.exp(2.0))
    assert float(outputs["vision.embeds"].norm(dim=-1).mean()) == pytest.approx(1.0)
    # Two equal pairs are each other's positives: no answer is wrong, and half of each row is the target.
    assert float(family.task_loss(outputs, batch)) == pytest.approx(math.log(2), rel=1e-4)


def test_pruning_finds_the_plain_pairs_and_leaves_the_rest(tmp_path: Path) -> None:
    family, _, model = made(tmp_path / "judge")
    assert {item.root for item in family.prunable(model)} == {"inner.see.0", "inner.read.0", "inner.join.1"}
    attending = {"mmcompress_model": "tiny_attending", "inputs": [SERIES], "task": TWO}
    family, folder, model = made(tmp_path / "attending", **attending)
    found = family.prunable(model)
    assert [(item.root, item.block, item.tower) for item in found] == [("inner.up", "up", "model")]
    from mmcompress.stages._pruning import Dependencies

    dependencies = Dependencies(model, family.traced(model), found)
    inputs = family.graphs(model)[0].inputs
    with torch.no_grad():
        model.inner.down.weight[:, [0, 5]] = 0.0
        before = model.inner(**inputs)["logits"]
        dependencies.cut(dependencies.blocks[0], [0, 5])
        assert model.inner.up.out_features == 10
        assert torch.allclose(model.inner(**inputs)["logits"], before, atol=1e-6)
    family.save(model, folder, tmp_path / "pruned")
    again = family.load(tmp_path / "pruned")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_forward_that_cannot_be_used_names_the_module(tmp_path: Path) -> None:
    changes = {"inputs": [TABLE], "task": TWO}
    family, _, model = made(tmp_path / "untraceable", mmcompress_model="tiny_untraceable", **changes)
    with pytest.raises(StageError, match=r"tiny_custom_models\.Untraceable \('tiny_untraceable'\) cannot be traced"):
        family.prunable(model)
    family, _, model = made(tmp_path / "wordless", mmcompress_model="tiny_wordless", **changes)
    with pytest.raises(StageError, match=r"gives \['scores'\]; expected a dict with the tensor 'logits'"):
        family.outputs(model, {"table_values": torch.zeros(1, 3)}, frozenset({"fusion.logits"}))


def test_a_student_has_the_teachers_shape(tmp_path: Path) -> None:
    family, folder, model = made(tmp_path)
    family.student(folder, FromTeacher(), tmp_path / "same", seed=3)
    weights = family.load(tmp_path / "same").state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    family.student(folder, FromTeacher(init="random"), tmp_path / "fresh", seed=3)
    fresh = family.load(tmp_path / "fresh").state_dict()
    assert not torch.equal(fresh["inner.decide.weight"], weights["inner.decide.weight"])
    with pytest.raises(UsageError, match="no vision_layers to cut"):
        family.student(folder, FromTeacher.model_validate({"vision_layers": 1}), tmp_path / "cut", seed=3)


def test_keys_follow_the_installed_package(tmp_path: Path) -> None:
    from tiny_custom import install

    source = install() / "tiny_custom_models.py"
    before = installed_identity()
    assert before["tiny_judge"]["version"] == "1.0"
    family = Custom(config=write_config(tmp_path, judge_config()))
    text, key = source.read_text(), family.identity()
    try:
        source.write_text(text + "# changed\n")
        assert installed_identity()["tiny_judge"]["source"] != before["tiny_judge"]["source"]
        assert family.identity() != key
    finally:
        source.write_text(text)
