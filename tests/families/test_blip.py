"""What the blip family alone has: its four tasks as transformers computes them, its tokens, its errors."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from small_blip import SIDE, config, write_config

from mmcompress import deploy
from mmcompress.errors import InputError
from mmcompress.families import PADDING, FromTeacher
from mmcompress.families._blip_processing import most_frequent
from mmcompress.families.blip import Blip
from mmcompress.runtimes.torch import TorchSession
from mmcompress.stages._cutting import Budget, prune_model
from mmcompress.stages._weighing import rank_by_weights

TASKS = ("caption", "vqa", "match", "retrieval", "pretrained")
QUESTION = "what color is the left side"


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tmp_path_factory.mktemp("blip")


@cache
def _folder(task: str, root: Path) -> Path:
    """A model of random weights that are large enough for its answers to differ between pictures."""
    folder = root / task
    Blip(config=write_config(root / f"{task}-config"), task=task).write(folder, 0)
    return folder


def _family(task: str, root: Path, **fields: Any) -> Blip:
    return Blip(path=_folder(task, root), task=task, **fields)


def _pictures(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [
        Image.fromarray((rng.integers(0, 256, 3) * 0.8 + rng.integers(0, 50, (30, 20, 3))).astype(np.uint8))
        for _ in range(count)
    ]


def _tokens(row: Any, end: int = 1) -> list[int]:
    ended = np.flatnonzero(np.asarray(row) == end)
    return [int(token) for token in row[: ended[0] if len(ended) else len(row)]]


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("task", ["caption", "vqa"])
def test_texts_are_those_of_transformers(root: Path, task: str, beams: int) -> None:
    family = _family(task, root, beams=beams, max_tokens=8)
    folder = _folder(task, root)
    values: dict[str, Any] = {"image": _pictures(4)}
    if task == "vqa":
        values["question"] = [QUESTION] * 4
    feeds = family.processor(folder).encode(values)
    session = TorchSession(family, folder, 1)
    found = family.answer(session.run, family.requests[0].name, feeds)
    session.close()
    model: Any = family.load(folder)
    given = {name: torch.from_numpy(feeds[name]) for name in ("pixel_values", "input_ids") if name in feeds}
    expected = model.generate(**given, num_beams=beams, do_sample=False, max_new_tokens=8, length_penalty=1.0)
    for row, want in zip(found, expected.numpy(), strict=True):
        assert row[row != PADDING].tolist() == _tokens(want[1:])


def test_a_padded_question_is_answered_as_alone(root: Path) -> None:
    family, folder = _family("vqa", root, max_tokens=4), _folder("vqa", root)
    session = TorchSession(family, folder, 1)
    processor = family.processor(folder)
    pictures = _pictures(2)
    questions = [QUESTION, "is the left side red"]
    together = family.answer(session.run, "answer", processor.encode({"image": pictures, "question": questions}))
    for index in range(2):
        alone = processor.encode({"image": [pictures[index]], "question": [questions[index]]})
        row = family.answer(session.run, "answer", alone)[0]
        assert row[row != PADDING].tolist() == together[index][together[index] != PADDING].tolist()
    session.close()


def test_match_and_embeddings_are_those_of_transformers(root: Path) -> None:
    texts = ["the color is red", "the color is blue", "the color is green"]
    for task in ("match", "retrieval"):
        family, folder = _family(task, root), _folder(task, root)
        feeds = family.processor(folder).encode({"image": _pictures(3), "text": texts})
        batch = {name: torch.from_numpy(feeds[name]) for name in ("pixel_values", "input_ids", "attention_mask")}
        model: Any = family.load(folder)
        session = TorchSession(family, folder, 1)
        with torch.inference_mode():
            expected = model(**batch, use_itm_head=task == "match").itm_score.numpy()
        if task == "match":
            found = family.answer(session.run, "match", feeds)
        else:
            found = family.answer(session.run, "embed_image", feeds) @ family.answer(session.run, "embed_text", feeds).T
        session.close()
        assert np.allclose(found, expected, atol=1e-5)


def test_a_pretrained_model_learns_by_the_weighted_sum_of_its_terms(root: Path) -> None:
    texts = ["the color is red", "the color is blue", "the color is blue"]
    folder = _folder("pretrained", root)
    family = _family("pretrained", root, terms={"contrastive": 0.5, "matching": 2.0})
    feeds = family.processor(folder).encode({"image": _pictures(3), "text": texts})
    batch = {name: torch.from_numpy(feeds[name]) for name in ("pixel_values", "input_ids", "attention_mask")}
    model: Any = family.load(folder)
    with torch.inference_mode():
        outputs = family.outputs(model, batch, family.task_needs())
        loss = family.task_loss(outputs, batch)
        texts_of = {name: torch.cat([batch[name], batch[name][[1, 2, 0]]]) for name in ("input_ids", "attention_mask")}
        logits = model(pixel_values=torch.cat([batch["pixel_values"]] * 2), **texts_of).itm_score
        contrastive = Blip.task_loss(_family("retrieval", root), outputs, batch)
    assert torch.allclose(outputs["fusion.logits"], logits, atol=1e-5)
    # The second picture's next text is its own: that pair fits too.
    matching = torch.nn.functional.cross_entropy(logits, torch.tensor([1, 1, 1, 0, 1, 0]))
    assert torch.allclose(loss, 0.5 * contrastive + 2.0 * matching, atol=1e-5)
    assert family.changing() == {"fusion.logits"}
    with pytest.raises(ValidationError, match="task: pretrained"):
        _family("match", root, terms={"matching": 1.0})


@pytest.mark.parametrize("task", ["vqa", "match"])
def test_a_pruned_model_loads_bit_for_bit_and_exports(root: Path, tmp_path: Path, task: str) -> None:
    family, folder = _family(task, root), _folder(task, root)
    model = family.load(folder)
    before = sum(parameter.numel() for parameter in model.parameters())
    facts = prune_model(
        family, model, Budget("macs", 0.7), lambda blocks: rank_by_weights(model, blocks, "magnitude", 0), relative=True
    )
    assert set(facts["towers"]) == {"vision", "text_encoder", *(["text_decoder"] if task == "vqa" else [])}
    family.save(model, folder, tmp_path / "pruned")
    again = family.load(tmp_path / "pruned")
    assert sum(parameter.numel() for parameter in again.parameters()) < before
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), again.parameters(), strict=True))
    graphs = deploy.export(family, tmp_path / "pruned", tmp_path)["graphs"]
    assert all(graph["max_difference"] <= 1e-4 for graph in graphs.values())


def test_a_student_cuts_both_text_towers_and_opens_with_transformers(root: Path, tmp_path: Path) -> None:
    from transformers import BlipForQuestionAnswering

    family, folder = _family("vqa", root), _folder("vqa", root)
    family.student(folder, FromTeacher(text_layers=1, vision_feed_forward=64), tmp_path, 0)
    student: Any = family.load(tmp_path)
    assert len(student.text_encoder.encoder.layer) == len(student.text_decoder.bert.encoder.layer) == 1
    theirs = BlipForQuestionAnswering.from_pretrained(tmp_path)
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in student.parameters())


def test_the_answer_of_most_annotators_is_written() -> None:
    assert most_frequent(["red", "blue", "red"]) == "red"
    assert most_frequent(["b", "a"]) == "a"
    with pytest.raises(InputError, match="without an answer"):
        most_frequent([])


def test_what_does_not_fit_is_told(root: Path, tmp_path: Path) -> None:
    source = write_config(tmp_path / "source")
    for change, message in (
        ({"text_config": {**config()["text_config"], "vocab_size": 7}}, "does not fit the model"),
        ({"vision_config": {**config()["vision_config"], "image_size": SIDE + 8}}, "the model takes"),
    ):
        source.write_text(json.dumps({**config(), **change}))
        with pytest.raises(InputError, match=message):
            Blip(config=source).write(tmp_path / "model", 0)
    with pytest.raises(InputError, match=r"missing: .*text_decoder|unexpected"):
        Blip(path=_folder("match", root), task="vqa").write(tmp_path / "other", 0)
