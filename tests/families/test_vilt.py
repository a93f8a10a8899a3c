from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_clip import shake
from tiny_vilt import ANSWERS, SIZES, TEXTS, WORDS, pictures, relative, small, tensors, theirs

from mmcompress.deploy import export
from mmcompress.errors import InputError, UsageError
from mmcompress.families._vilt_model import INPUTS
from mmcompress.families.vilt import Vilt
from mmcompress.runtimes.onnxruntime import OnnxRuntime


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


# --- pictures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", range(len(SIZES)))
def test_patches_are_those_of_transformers(index: int, tmp_path: Path) -> None:
    family, folder = small(tmp_path)
    image = pictures()[index]
    feeds = family.processor(folder).encode({"image": [image]})
    expected = theirs([image])["pixel_values"][0]
    rows, columns = (side // 8 for side in expected.shape[1:])
    cut = expected.reshape(3, rows, 8, columns, 8).permute(1, 3, 0, 2, 4).reshape(rows * columns, -1)
    assert feeds["pixel_values"].shape == (1, *cut.shape)
    np.testing.assert_allclose(feeds["pixel_values"][0], cut.numpy(), atol=1e-6)
    assert feeds["patch_positions"][0, 0].tolist() == [0, 0]
    assert feeds["patch_positions"][0, -1].tolist() == [1 if rows > 1 else 0, 1 if columns > 1 else 0]


def test_a_picture_in_a_batch_is_the_picture_alone(tmp_path: Path) -> None:
    family, folder = small(tmp_path)
    processor = family.processor(folder)
    together = processor.encode({"image": pictures()})
    for index, image in enumerate(pictures()):
        alone = processor.encode({"image": [image]})
        count = alone["pixel_values"].shape[1]
        np.testing.assert_array_equal(together["pixel_values"][index, :count], alone["pixel_values"][0])
        assert not together["pixel_values"][index, count:].any()
        assert (together["patch_positions"][index, count:] == -1).all()


def test_a_long_picture_keeps_a_row_of_patches_and_other_modes_are_read(tmp_path: Path) -> None:
    family, folder = small(tmp_path)
    white = Image.new("RGB", (30, 30), "white")
    odd = [Image.new("RGB", (400, 4)), white.convert("CMYK"), Image.new("RGBA", (30, 30), (0, 0, 0, 0)), white]
    feeds = family.processor(folder).encode({"image": odd})
    assert (feeds["patch_positions"][0, :, 0] >= 0).sum() == 53 // 8  # int(1333 / 800 * 32) pixels, one row
    np.testing.assert_allclose(feeds["pixel_values"][1], feeds["pixel_values"][3], atol=1e-6)
    np.testing.assert_allclose(feeds["pixel_values"][2], feeds["pixel_values"][3], atol=1e-6)


# --- outputs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["vqa", "retrieval", "mlm"])
def test_equals_transformers_at_all_sizes_in_one_batch(task: str, tmp_path: Path) -> None:
    family, folder = small(tmp_path, task)
    model: Any = family.load(folder)
    name = "question" if task == "vqa" else "text"
    feeds = tensors(family.processor(folder).encode({"image": pictures(), name: TEXTS}))
    given = {name: feeds[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        expected = model(**given, **theirs(pictures())).logits
        found = family.graphs(model)[0].module(**feeds)["logits"]
    if task == "mlm":
        places = feeds["attention_mask"].bool()
        expected, found = expected[places], found[places]
    assert relative(found, expected) < 1e-5


@pytest.mark.parametrize("count", [1, 2])
def test_equals_transformers_with_several_pictures(count: int, tmp_path: Path) -> None:
    small(tmp_path, classes=("false", "true"), num_images=count, modality_type_vocab_size=3)
    fields = {"path": tmp_path / "source", "task": "nlvr", "images": count}
    family = Vilt.model_validate({**fields, "path": None, "config": tmp_path / "source" / "config.json"})
    family.write(tmp_path / "nlvr", 0)
    model: Any = family.load(tmp_path / "nlvr")
    shake(model)
    columns = {"image": pictures(), "image2": pictures(1)}
    shown = {name: columns[name] for name in family.pictures}
    feeds = tensors(family.processor(tmp_path / "nlvr").encode({**shown, "text": TEXTS}))
    assert feeds["pixel_values"].shape[:2] == (len(SIZES), count)
    batches = [theirs(images) for images in shown.values()]
    stacked = {name: torch.stack([batch[name] for batch in batches], dim=1) for name in batches[0]}
    with torch.no_grad():
        given = {name: feeds[name] for name in ("input_ids", "attention_mask")}
        expected = model(**given, **stacked).logits
        found = family.graphs(model)[0].module(**feeds)["logits"]
        trained = family.outputs(model, feeds, frozenset({"fusion.logits"}))["fusion.logits"]
    assert relative(found, expected) < 1e-5
    torch.testing.assert_close(trained, found)


def test_the_graph_equals_transformers(tmp_path: Path) -> None:
    """Of masked words; export itself compares with torch at batch 1, 3 and 8, the shortest and longest texts and pictures.

    The contract tests export ``vqa`` and ``nlvr``.
    """
    family, folder = small(tmp_path, "mlm")
    facts = export(family, folder, tmp_path)["graphs"]["model"]
    assert facts["max_difference"] < 1e-4
    feeds = family.processor(folder).encode({"image": pictures(), "text": TEXTS})
    session = OnnxRuntime().open(tmp_path, ["model"], 1)
    found = session.run("model", {name: feeds[name] for name in INPUTS})["logits"]
    session.close()
    model: Any = family.load(folder)
    given = tensors(feeds, ("input_ids", "attention_mask"))
    with torch.no_grad():
        expected = model(**given, **theirs(pictures())).logits.numpy()
    places = feeds["attention_mask"] > 0
    assert np.abs(found - expected)[places].max() < 1e-4 * np.abs(expected).max()


def test_states_and_maps_have_a_place_for_every_token(tmp_path: Path) -> None:
    family, folder = small(tmp_path)
    model = family.load(folder)
    feeds = tensors(family.processor(folder).encode({"image": pictures(), "question": TEXTS}))
    with torch.no_grad():
        given = family.outputs(model, feeds, family.provides())
    length = feeds["input_ids"].shape[1] + 1 + feeds["pixel_values"].shape[1]
    assert [state.shape for state in given["fusion.hidden_states"]] == [(7, length, 32)] * 3
    assert [maps.shape for maps in given["fusion.attentions"]] == [(7, 4, length, length)] * 3
    hidden = given["fusion.mask"] == 0
    assert hidden.any()
    assert float(given["fusion.attentions"][0].transpose(1, 3)[hidden].abs().max()) == 0.0
    with pytest.raises(UsageError, match=r"vilt gives no text\.logits"):
        family.outputs(model, feeds, frozenset({"text.logits"}))


# --- questions -----------------------------------------------------------------------------------------------------


def test_answers_become_soft_scores(tmp_path: Path) -> None:
    family, folder = small(tmp_path)
    processor = family.processor(folder)
    said = [("red",) * 2 + ("T-shirt",) * 5 + ("two", "who knows", "the red"), ("yes",), ("maybe",) * 10]
    compact = processor.compact({"answers": said})
    assert compact["answers"].tolist() == [[2, 2, 5, 5, 5, 5, 5, 4, -2, 2], [0] + [-1] * 9, [-2] * 10]
    labels = processor.expand(compact)["labels"]
    np.testing.assert_allclose(labels, [[0, 0, 1, 0, 1 / 3, 1], [1 / 3, 0, 0, 0, 0, 0], [0] * 6], atol=1e-6)
    assert processor.notes(compact) == {
        "answers outside of the classes": 11,
        "questions without an answer among the classes": 1,
    }
    for wrong in ((), "yes", ("yes",) * 11):
        with pytest.raises(InputError, match="1 to 10 answers"):
            processor.compact({"answers": [wrong]})


def test_the_loss_is_that_of_transformers(tmp_path: Path) -> None:
    family, folder = small(tmp_path)
    model: Any = family.load(folder)
    values = {"image": pictures(), "question": TEXTS, "answers": [("red", "red", "blue")] * 7}
    batch = tensors(family.processor(folder).encode(values), (*INPUTS, "labels"))
    with torch.no_grad():
        found = family.task_loss(family.outputs(model, batch, family.task_needs()), batch)
        given = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
        expected = model(**given, **theirs(pictures())).loss
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    # By hand: with logits 0 every class costs ln 2, whatever its target.
    zeros = {"fusion.logits": torch.zeros(7, len(ANSWERS))}
    assert float(family.task_loss(zeros, batch)) == pytest.approx(len(ANSWERS) * np.log(2))


# --- matching and masked words -------------------------------------------------------------------------------------


def test_retrieval_compares_with_other_texts_of_the_batch(tmp_path: Path) -> None:
    family, folder = small(tmp_path, "retrieval")
    family = family.model_copy(update={"negatives": 2})
    model = family.load(folder)
    texts = ["red", "blue", "red", "star", "ring", "green", "left"]
    batch = tensors(family.processor(folder).encode({"image": pictures(), "text": texts}))
    with torch.no_grad():
        found = family.outputs(model, batch, frozenset({"fusion.logits"}))["fusion.logits"]
        module = family.graphs(model)[0].module
        own = module(**batch)["logits"][:, 0]
        turned = {name: value.roll(-1, 0) if name in INPUTS[:2] else value for name, value in batch.items()}
        following = module(**turned)["logits"][:, 0]
    assert found.shape == (7, 3)
    torch.testing.assert_close(found[:, 0], own)
    torch.testing.assert_close(found[:, 1], following)
    assert found[0, 2] == -1e4, "an equal text is no negative"
    scores = {"fusion.logits": torch.tensor([[2.0, 0.0], [0.0, 0.0]])}
    expected = (np.log(1 + np.exp(-2)) + np.log(2)) / 2
    assert float(family.task_loss(scores, batch)) == pytest.approx(expected, rel=1e-6)
    assert family.changing() == {"fusion.logits"}
    alone = {name: value[:1] for name, value in batch.items()}
    with pytest.raises(UsageError, match="batch_size"):
        family.outputs(model, alone, frozenset({"fusion.logits"}))


def test_words_are_filled_in_where_they_are_masked(tmp_path: Path) -> None:
    family, folder = small(tmp_path, "mlm")
    model: Any = family.load(folder)
    processor = family.processor(folder)
    texts = ["a [MASK] star is [MASK]", "the ring", "[MASK]"]
    feeds = processor.encode({"image": pictures()[:3], "text": texts})

    def run(graph: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        with torch.no_grad():
            return {"logits": family.graphs(model)[0].module(**tensors(inputs))["logits"].numpy()}

    rows = family.answer(run, "fill", feeds)
    best = run("model", feeds)["logits"].argmax(-1)
    assert rows.tolist() == [[best[0, 2], best[0, 5]], [-1, -1], [best[2, 1], -1]]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(WORDS)]
    assert processor.decode(np.array([[5, 6], [7, -1]])) == [f"{vocabulary[5]} {vocabulary[6]}", vocabulary[7]]
    with pytest.raises(UsageError, match="answers no 'answer' for task mlm"):
        family.answer(run, "answer", feeds)


@pytest.mark.parametrize(("task", "asking"), [("vqa", "cached"), ("retrieval", "online"), ("mlm", "online")])
def test_what_changes_with_the_epoch_is_not_stored(task: str, asking: str) -> None:
    from mmcompress.stages.distill import Distill

    family = Vilt.model_validate({"path": "model", "task": task})
    assert Distill().asking(family) == asking
    told = [message for _, message in Distill(teacher_outputs="cached").problems(family, family)]
    assert any("cannot be cached" in message for message in told) == (asking == "online")


def test_the_loss_of_masked_words_counts_these_alone(tmp_path: Path) -> None:
    family = Vilt.model_validate({"path": tmp_path, "task": "mlm"})
    logits = torch.zeros(1, 3, 4)
    logits[0, 1, 2] = 3.0
    batch = {"labels": torch.tensor([[-1, 2, -1]])}
    expected = np.log(np.exp(3) + 3) - 3
    assert float(family.task_loss({"text.logits": logits}, batch)) == pytest.approx(expected, rel=1e-6)
