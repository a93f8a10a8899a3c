"""A batch that is computed in parts has the loss and the gradients of the whole batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_objective import BATCH, Spread, apart, batch, gradients, objective, whole_batch
from training_helpers import stage_input, write_model

from mmcompress.component import find
from mmcompress.errors import StageError
from mmcompress.families.clip import Clip
from mmcompress.losses.contrastive_kl import ContrastiveKL
from mmcompress.losses.feature_mse import FeatureMSE
from mmcompress.losses.icl import ICL
from mmcompress.losses.logits_kl import LogitsKL
from mmcompress.losses.task import Task
from mmcompress.stages._exhaustion import is_memory
from mmcompress.stages._whole_batch_modules import random_state, replay
from mmcompress.stages.finetune import Finetune

unit = pytest.mark.unit
TOKENS = LogitsKL(output="decoder.logits", mask="decoder.mask", weight=0.5)
SETS = {
    "comparing": [ContrastiveKL(), ICL(weight=2.0), Spread()],
    "adding": [FeatureMSE(weight=3.0)],
    "tokens": [TOKENS, Task()],
    "all": [FeatureMSE(), ContrastiveKL(), ICL(), TOKENS, Task()],
}


def run(losses: list[Any], parts: int, **fields: Any) -> tuple[dict[str, Any], dict[str, Any], list[int]]:
    made = objective(losses, **fields)
    torch.manual_seed(3)
    terms = whole_batch(made)(batch(), parts)
    return terms, gradients(made), made.student.sizes


@unit
@pytest.mark.parametrize("adds_up", [True, False])
@pytest.mark.parametrize("parts", [2, 5, 12])
@pytest.mark.parametrize("name", SETS)
def test_loss_and_gradients_are_those_of_the_whole_batch(name: str, parts: int, adds_up: bool) -> None:
    whole, expected, _ = run(SETS[name], 1, adds_up=adds_up)
    terms, found, sizes = run(SETS[name], parts, adds_up=adds_up)
    assert max(sizes) <= -(-BATCH // parts)
    assert terms.keys() == whole.keys()
    for term in terms:
        torch.testing.assert_close(terms[term], whole[term], rtol=1e-5, atol=1e-6)
    assert apart(found, expected) < 1e-5


@unit
def test_projections_learn_from_the_whole_batch_too() -> None:
    _, found, _ = run([ICL(), FeatureMSE()], 4)
    assert {name for name in found if name.startswith("projections.")} == {
        f"projections.{loss}.maps.{part}_embeds.weight"
        for loss in ("icl", "feature_mse")
        for part in ("vision", "text")
    }


@unit
def test_with_drop_out_each_part_is_computed_again_as_it_was() -> None:
    losses, size, parts = SETS["all"], BATCH // 3, 3
    made = objective(losses, dropout=0.4)
    torch.manual_seed(3)
    whole_batch(made)(batch(), parts)
    left = torch.rand(1)

    # By hand: the outputs of the parts with their graphs, put together, and the loss of all of them.
    again = objective(losses, dropout=0.4)
    torch.manual_seed(3)
    given = batch()
    slices = [slice(first, first + size) for first in range(0, BATCH, size)]
    inputs = [{name: value[rows] for name, value in given["inputs"].items()} for rows in slices]
    outputs = [again.outputs(part) for part in inputs]
    scalar = outputs[0]["fusion.logit_scale"]
    joined = {name: torch.cat([one[name] for one in outputs]) for name in outputs[0] if name != "fusion.logit_scale"}
    joined["fusion.logit_scale"] = scalar
    total = sum(
        term.weight * again.value(term, joined, given["inputs"], [given["teacher_outputs"]]) for term in again.terms()
    )
    total.backward()
    assert apart(gradients(made), gradients(again)) < 1e-5
    # Nothing is drawn twice: what comes after goes on from the one pass that was drawn.
    assert left == torch.rand(1)


@unit
def test_only_losses_that_compare_or_count_tokens_cost_a_second_forward() -> None:
    assert len(run(SETS["adding"], 3)[2]) == 3
    assert len(run([Task()], 3)[2]) == 3
    assert len(run(SETS["comparing"], 3)[2]) == 6
    assert len(run([TOKENS], 3)[2]) == 6


@unit
def test_the_random_state_is_replayed() -> None:
    state = random_state()
    drawn = torch.rand(3)
    replay(state)
    assert (torch.rand(3) == drawn).all()


# --- memory --------------------------------------------------------------------------------------------------------


@unit
def test_memory_is_told_from_other_errors() -> None:
    assert is_memory(MemoryError())
    assert is_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert is_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"))
    assert not is_memory(RuntimeError("shapes cannot be multiplied"))


def limited(monkeypatch: pytest.MonkeyPatch, limit: int) -> list[int]:
    original, seen = Clip.outputs, []

    def outputs(self: Any, model: Any, given: Any, want: Any) -> Any:
        if len(given["input_ids"]) > limit:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        seen.append(len(given["input_ids"]))
        return original(self, model, given, want)

    monkeypatch.setattr(Clip, "outputs", outputs)
    return seen


def test_a_batch_that_does_not_fit_is_split_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_model(tmp_path / "model", dropout=0.1)
    fields: dict[str, Any] = {"steps": 3, "batch_size": 24, "precision": "fp32"}
    asked = Finetune(**fields, accumulation=4).run(stage_input(tmp_path, "asked", model=model))
    told: list[str] = []
    seen = limited(monkeypatch, 10)
    given = stage_input(tmp_path, "split", model=model, progress=lambda message, done, total: told.append(message))
    facts = Finetune(**fields).run(given)
    assert set(seen) == {6}
    assert (facts["parts"], facts["split_at"]) == (4, 1)
    assert [message for message in told if "does not fit" in message] == [
        f"a batch of 24 does not fit into memory: computed in {parts} parts from step 1 on" for parts in (2, 4)
    ]
    assert told[-1].endswith("; in 4 parts")
    # Splitting gives up nothing: not the examples of a step, not what drop-out draws.
    assert facts["losses"] == asked["losses"]
    files = [tmp_path / name / "output" / "model.safetensors" for name in ("asked", "split")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_one_example_that_does_not_fit_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_model(tmp_path / "model")
    limited(monkeypatch, 0)
    with pytest.raises(StageError, match="not enough memory for a batch of 8"):
        Finetune(steps=1, batch_size=8).run(stage_input(tmp_path, model=model))


@unit
def test_a_batch_whose_examples_are_answered_with_one_another_has_no_parts() -> None:
    vilt = find("families", "vilt")(hub="a/b", revision="c", task="retrieval")
    fields = Finetune(student=vilt, accumulation=2, batch_size=8)
    ((where, message),) = fields.problems(None, None)
    assert where == ("accumulation",)
    assert "depend on the other examples" in message
    assert Finetune(student=vilt, batch_size=8).problems(None, None) == []
