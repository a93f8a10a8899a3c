"""What the captioner family alone has: both kinds of decoders, generation as transformers does it, its tokens."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_captioner import SIDE, config, write_config

from mmcompress import deploy
from mmcompress.errors import InputError, UsageError
from mmcompress.families import PADDING, FromTeacher
from mmcompress.families._targets import IGNORED
from mmcompress.families.captioner import Captioner
from mmcompress.runtimes.torch import TorchSession
from mmcompress.stages._cutting import Budget, prune_model
from mmcompress.stages._weighing import rank_by_weights

KINDS = ("gpt2", "bert")


@cache
def _folder(kind: str, root: Path) -> Path:
    """A model whose answers differ between pictures: the weights are larger than at the start of a training."""
    source, folder = root / f"{kind}-config", root / kind
    family = Captioner(config=write_config(source, kind))
    family.write(folder, 0)
    model = family.load(folder)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim > 1:
                value.mul_(6.0 if "embeddings" not in name else 1.0)
    trained = root / f"{kind}-trained"
    family.save(model, folder, trained)
    return trained


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tmp_path_factory.mktemp("captioner")


@pytest.fixture(params=KINDS)
def folder(request: pytest.FixtureRequest, root: Path) -> Path:
    return _folder(request.param, root)


def _pictures(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (30, 20, 3), dtype=np.uint8)) for _ in range(count)]


@pytest.mark.parametrize("beams", [1, 3])
def test_captions_are_those_of_transformers(folder: Path, beams: int) -> None:
    family = Captioner(path=folder, beams=beams, max_tokens=10)
    feeds = family.processor(folder).encode({"image": _pictures(5)})
    session = TorchSession(family, folder, 1)
    found = family.answer(session.run, "caption", feeds)
    model: Any = family.load(folder)
    with torch.inference_mode():
        expected = model.generate(
            torch.from_numpy(feeds["pixel_values"]),
            num_beams=beams,
            do_sample=False,
            max_new_tokens=10,
            decoder_start_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
            length_penalty=1.0,
        )[:, 1:].numpy()
    for row, want in zip(found, expected, strict=True):
        ended = np.flatnonzero(want == 1)
        assert row[row != PADDING].tolist() == want[: ended[0] if len(ended) else len(want)].tolist()
    assert len({tuple(row) for row in found.tolist()}) > 1
    session.close()


def test_forced_tokens_are_that_many(folder: Path) -> None:
    family = Captioner(path=folder)
    session = TorchSession(family, folder, 1)
    feeds = family.processor(folder).encode({"image": _pictures(2)})
    assert family.answer(session.run, "caption", feeds, 7).shape == (2, 7)
    session.close()


def test_graphs_equal_torch_with_an_empty_past_and_a_long_one(folder: Path, tmp_path: Path) -> None:
    facts = deploy.export(Captioner(path=folder), folder, tmp_path)["graphs"]
    assert set(facts) == {"encoder_model", "decoder_model"}
    assert all(graph["max_difference"] <= 1e-4 for graph in facts.values())


def test_teacher_forced_logits_are_those_of_the_steps(folder: Path) -> None:
    family = Captioner(path=folder)
    processor = family.processor(folder)
    feeds = processor.encode({"image": _pictures(2), "text": ["a red star", "blue ring left of a big green cross"]})
    assert feeds["labels"][0, :5].tolist() == [*feeds["decoder_input_ids"][0, 1:4].tolist(), 1, IGNORED]
    batch = {name: torch.from_numpy(value) for name, value in feeds.items()}
    model = family.load(folder)
    want = frozenset({"decoder.logits", "decoder.mask", "encoder.hidden_states", "decoder.hidden_states"})
    with torch.inference_mode():
        outputs = family.outputs(model, batch, want)
        loss = family.task_loss(outputs, batch)
    assert set(outputs) == want and len(outputs["decoder.hidden_states"]) == 2
    assert outputs["decoder.mask"].sum().item() == (feeds["labels"] != IGNORED).sum() == 4 + 9
    chosen = torch.log_softmax(outputs["decoder.logits"], -1).numpy()
    terms = [-chosen[i, j, k] for (i, j), k in np.ndenumerate(feeds["labels"]) if k != IGNORED]
    assert loss.item() == pytest.approx(np.mean(terms), rel=1e-5)
    session = TorchSession(family, folder, 1)
    state = session.run("encoder_model", {"pixel_values": feeds["pixel_values"]})
    first = session.run("decoder_model", {"input_ids": feeds["decoder_input_ids"][:, :2], **state})["logits"]
    assert np.allclose(first[:, 0], outputs["decoder.logits"][:, 1].numpy(), atol=1e-4)
    session.close()


def test_a_student_has_fewer_layers_and_opens_with_transformers(folder: Path, tmp_path: Path) -> None:
    from transformers import VisionEncoderDecoderModel

    family = Captioner(path=folder)
    family.student(folder, FromTeacher(decoder_layers=1, encoder_feed_forward=64), tmp_path, 0)
    student = family.load(tmp_path)
    assert sum(p.numel() for p in student.parameters()) < sum(p.numel() for p in family.load(folder).parameters())
    theirs = VisionEncoderDecoderModel.from_pretrained(tmp_path).eval()
    pictures = torch.randn(2, 3, SIDE, SIDE)
    ids = torch.tensor([[0, 5, 6], [0, 7, 8]])
    with torch.inference_mode():
        ours, other = (m(pixel_values=pictures, decoder_input_ids=ids).logits for m in (student, theirs))
    assert torch.allclose(ours, other, atol=1e-5)
    with pytest.raises(UsageError, match="decoder_layers: 5"):
        family.student(folder, FromTeacher(decoder_layers=5), tmp_path / "no", 0)


def test_a_pruned_model_is_narrower_and_loads_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    family = Captioner(path=folder)
    model = family.load(folder)
    facts = prune_model(
        family, model, Budget("macs", 0.6), lambda blocks: rank_by_weights(model, blocks, "magnitude", 0), relative=True
    )
    cut = {
        name: counts
        for name, counts in facts["blocks"].items()
        if next(iter(counts.values()))[1] != next(iter(counts.values()))[0]
    }
    assert any(name.startswith("encoder.") for name in cut)
    assert any(name.startswith("decoder.") for name in cut) == ("bert" in folder.name)
    family.save(model, folder, tmp_path / "pruned")
    again = family.load(tmp_path / "pruned")
    batch = {"pixel_values": torch.randn(2, 3, SIDE, SIDE), "decoder_input_ids": torch.tensor([[0, 5], [0, 6]])}
    batch["labels"] = batch["decoder_input_ids"]
    with torch.inference_mode():
        ours, other = (
            family.outputs(m, batch, frozenset({"decoder.logits"}))["decoder.logits"] for m in (model, again)
        )
    assert torch.equal(ours, other)
    assert all(
        graph["max_difference"] <= 1e-4
        for graph in deploy.export(family, tmp_path / "pruned", tmp_path)["graphs"].values()
    )


def test_captions_come_back_from_their_tokens(folder: Path) -> None:
    processor = Captioner(path=folder, max_tokens=6).processor(folder)
    tokens = processor.compact({"text": ["A red star", "red red red red red red red red", ""]})["text"]
    assert tokens.shape == (3, 6)
    assert processor.decode(tokens) == ["a red star", "red red red red red", ""]
    assert tokens[1].tolist()[-1] == 1 and tokens[2].tolist() == [1, *[PADDING] * 5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder": {**config()["decoder"], "vocab_size": 7}}, "does not fit the model"),  # type: ignore[dict-item]
        ({"decoder_start_token_id": 5000}, "does not fit the model"),
        ({"encoder": {**config()["encoder"], "image_size": 32}}, "the model takes"),  # type: ignore[dict-item]
    ],
)
def test_parts_that_do_not_fit_are_told(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    source = write_config(tmp_path / "source")
    source.write_text(json.dumps({**config(), **change}))
    with pytest.raises(InputError, match=message):
        Captioner(config=source).write(tmp_path / "model", 0)
