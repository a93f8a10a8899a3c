"""A training that diverges ends, and says where and what to go back to."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from training_helpers import stage_input, write_model

from mmcompress.errors import StageError
from mmcompress.stages import StageInput
from mmcompress.stages._runaway import Runaway
from mmcompress.stages.finetune import Finetune

unit = pytest.mark.unit
Change = Callable[[Any, Any, int], Any]


@pytest.fixture
def changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Change], StageInput]:
    """A training of a small model whose task loss is what ``change(loss, outputs, call)`` makes of it; calls count from 1."""

    def plant(change: Change) -> StageInput:
        model = write_model(tmp_path / "model")
        original, calls = type(model.family).task_loss, count(1)

        def loss(self: Any, outputs: Any, batch: Any) -> Any:
            return change(original(self, outputs, batch), outputs, next(calls))

        monkeypatch.setattr(type(model.family), "task_loss", loss)
        return stage_input(tmp_path, model=model)

    return plant


def test_divergence_names_the_step_and_the_last_checkpoint(changed: Callable[[Change], StageInput]) -> None:
    given = changed(lambda loss, outputs, call: loss * (float("nan") if call == 6 else 1.0))
    with pytest.raises(
        StageError, match=r"step 6 of 8(.|\n)*The batch: examples \S+, \S+, \S+, \S+ and 28 more(.|\n)*checkpoint-4"
    ):
        Finetune(steps=8, batch_size=32, checkpoints=2).run(given)


def test_a_gradient_that_is_not_finite_ends_the_training_before_it_is_applied(
    changed: Callable[[Change], StageInput],
) -> None:
    def steep(loss: Any, outputs: Any, call: int) -> Any:
        return loss + (loss.detach() - loss) ** 2 + torch.sqrt((loss.detach() - loss).abs())

    given = changed(steep)
    with pytest.raises(StageError, match=r"the gradient is not finite at step 1 of 2(.|\n)*checkpoint is none"):
        Finetune(steps=2, batch_size=32).run(given)


def test_a_loss_that_runs_away_ends_the_training(changed: Callable[[Change], StageInput]) -> None:
    given = changed(lambda loss, outputs, call: 0 * outputs["text.embeds"].sum() + (1 if call <= 60 else 40))
    # The level is 1; of 20 losses, five of 40 and fifteen of 1 have a mean of 10.75.
    with pytest.raises(
        StageError, match=r"over 10 times its level of the beginning, 1, at step 65 of 80(.|\n)*checkpoint-60"
    ):
        Finetune(steps=80, batch_size=4, checkpoints=40, checkpoint_minutes=60).run(given)


@unit
def test_the_level_is_the_highest_mean_of_the_beginning_and_a_resumed_run_finds_it(tmp_path: Path) -> None:
    watch = Runaway(1000, tmp_path, scheduled=False)
    assert not any(watch.sees(step, 5.0 if step < 50 else 2.0) for step in range(100))
    assert watch.level == 5.0
    resumed = Runaway(1000, tmp_path, scheduled=False)
    resumed.resume()
    assert not any(resumed.sees(100 + step, 50.0) for step in range(20))
    assert resumed.sees(120, 51.0)


@unit
def test_a_scheduled_loss_is_not_watched(tmp_path: Path) -> None:
    watch = Runaway(1000, tmp_path, scheduled=True)
    assert not any(watch.sees(step, 10.0**step) for step in range(200))
