from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_vilt import TEXTS, pictures, relative, small, tensors, theirs, vilt_config, write_config_folder

from mmcompress.errors import InputError
from mmcompress.families import FromTeacher
from mmcompress.families.vilt import Vilt


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_a_checkpoint_is_read_strictly_and_written_bit_for_bit(tmp_path: Path) -> None:
    family, folder = small(tmp_path)
    family.write(tmp_path / "again", 1)
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "again"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(InputError, match="rank_output"):
        family.model_copy(update={"task": "retrieval"}).write(tmp_path / "other", 0)


@pytest.mark.parametrize("task", ["vqa", "nlvr"])
def test_a_new_head_for_another_task(task: str, tmp_path: Path) -> None:
    _, folder = small(tmp_path, "mlm")
    (tmp_path / "labels.json").write_text(json.dumps(["red", "not red", "both"]))
    fields = {"path": folder, "task": task, "head": "new", "labels": tmp_path / "labels.json"}
    family = Vilt.model_validate(fields)
    family.write(tmp_path / "new", 0)
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "new"))
    kinds = "vilt.embeddings.token_type_embeddings.weight"
    shared = [name for name in before if name.startswith("vilt.") and name != kinds]
    assert all(torch.equal(before[name], after[name]) for name in shared)
    assert family.processor(tmp_path / "new").classes == ("red", "not red", "both")
    head = [name for name in after if name.startswith("classifier.")]
    assert len(head) == 6
    if task == "nlvr":
        assert torch.equal(after[kinds][2], before[kinds][1]), "a second picture begins as the first"
    # A head of the same task and shape is replaced too: it is of other classes.
    again = Vilt.model_validate({**fields, "path": tmp_path / "new"})
    again.write(tmp_path / "newer", 7)
    newer = load_file(tmp_path / "newer" / "model.safetensors")
    assert not torch.equal(newer["classifier.0.weight"], after["classifier.0.weight"])


def test_words_of_older_checkpoints_are_found(tmp_path: Path) -> None:
    family, folder = small(tmp_path, "mlm")
    weights = load_file(folder / "model.safetensors")
    expected = weights["mlm_score.decoder.bias"].clone()
    weights["mlm_score.bias"] = weights.pop("mlm_score.decoder.bias")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    family.write(tmp_path / "new", 0)
    assert torch.equal(load_file(tmp_path / "new" / "model.safetensors")["mlm_score.decoder.bias"], expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_image_length": 5}, "draws patches at random"),
        ({"vocab_size": 9}, "token ids up to"),
        ({"patch_size": 16}, "does not fit patches"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    source = write_config_folder(tmp_path / "source", vilt_config(**change))
    with pytest.raises(InputError, match=message):
        Vilt(config=source / "config.json").write(tmp_path / "model", 0)


def test_pictures_per_text_must_be_those_of_the_model(tmp_path: Path) -> None:
    source = write_config_folder(tmp_path / "source", vilt_config(num_images=1))
    with pytest.raises(InputError, match="images: 1"):
        Vilt(config=source / "config.json", task="nlvr").write(tmp_path / "model", 0)


def test_a_student_is_cut_and_opens_with_from_pretrained(tmp_path: Path) -> None:
    from transformers import ViltForQuestionAnswering

    family, folder = small(tmp_path)
    cut = FromTeacher.model_validate({"encoder_layers": (0, 2), "encoder_feed_forward": 16})
    family.student(folder, cut, tmp_path / "student", 0)
    model: Any = family.load(tmp_path / "student")
    before = load_file(folder / "model.safetensors")
    assert torch.equal(
        model.vilt.encoder.layer[1].attention.attention.query.weight,
        before["vilt.encoder.layer.2.attention.attention.query.weight"],
    )
    assert model.vilt.encoder.layer[0].intermediate.dense.out_features == 16
    opened: Any = ViltForQuestionAnswering.from_pretrained(tmp_path / "student")
    feeds = tensors(family.processor(tmp_path / "student").encode({"image": pictures()[3:4], "question": ["red"]}))
    with torch.no_grad():
        given = {name: feeds[name] for name in ("input_ids", "attention_mask")}
        expected = opened.eval()(**given, **theirs(pictures()[3:4])).logits
        found = family.graphs(model)[0].module(**feeds)["logits"]
    assert relative(found, expected) < 1e-5


def test_pruning_cuts_heads_and_units(tmp_path: Path) -> None:
    from mmcompress.stages._pruning import Dependencies

    family, folder = small(tmp_path)
    model: Any = family.load(folder)
    dependencies = Dependencies(model, family.traced(model), family.prunable(model))
    attention, units = dependencies.blocks[:2]
    assert (attention.groups, units.groups) == (4, 48)
    dependencies.cut(attention, [1, 3])
    dependencies.cut(units, list(range(8)))
    layer = model.vilt.encoder.layer[0]
    assert (layer.attention.attention.num_attention_heads, layer.attention.attention.all_head_size) == (2, 16)
    assert layer.attention.output.dense.in_features == 16
    assert layer.intermediate.dense.out_features == 40
    family.save(model, folder, tmp_path / "pruned")
    again = family.load(tmp_path / "pruned")
    feeds = tensors(family.processor(folder).encode({"image": pictures(), "question": TEXTS}))
    with torch.no_grad():
        one, other = (family.graphs(item)[0].module(**feeds)["logits"] for item in (model, again))
    assert torch.equal(one, other)


def test_fields_that_do_not_fit_together_are_refused() -> None:
    wrong = [
        ({"task": "mlm", "head": "new"}, "head of mlm"),
        ({"task": "retrieval", "head": "new", "labels": "labels.json"}, "has no classes"),
        ({"task": "vqa", "labels": "labels.json"}, "head: new"),
    ]
    for fields, message in wrong:
        with pytest.raises(ValueError, match=message):
            Vilt.model_validate({"path": "model", **fields})
