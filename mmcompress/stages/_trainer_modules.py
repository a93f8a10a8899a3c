"""Transformers' side of training: the Trainer of a stage, its batches, its course and its checkpoints."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from mmcompress.errors import StageError
from mmcompress.losses import Outputs
from mmcompress.stages._batches import Batches, Progress
from mmcompress.stages._objective_modules import Objective
from mmcompress.stages._teacher_outputs import Asked
from mmcompress.store import read_json, write_json

WEIGHTS = "model.safetensors"
COMPLETE = "complete.json"
"""Written last into a checkpoint: the sizes of its files."""
RECENT = 20
"""Steps over which reported loss terms are averaged."""


class Feed(Dataset[dict[str, dict[str, Tensor]]]):
    """Item i is the whole batch of micro-batch ``offset + i``, as tensors."""

    def __init__(self, batches: Batches, count: int, offset: int = 0) -> None:
        self.batches, self.count, self.offset = batches, count, offset

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, dict[str, Tensor]]:
        if index >= self.count:
            raise IndexError(index)
        batch = self.batches[self.offset + index]
        return {part: {name: torch.from_numpy(array) for name, array in feeds.items()} for part, feeds in batch.items()}


@dataclass(frozen=True)
class Course:
    """When things happen in a training of a number of steps."""

    steps: int
    evaluate_at: frozenset[int]
    save_at: frozenset[int]
    save_every_seconds: float
    patience: int | None
    metric: str
    """``eval_loss``, or ``eval_retrieval`` of which more is better."""

    def worn_out(self, history: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the last ``patience`` evaluations brought nothing better; follows from the history alone."""
        scores = [entry[self.metric] for entry in history if self.metric in entry]
        if self.patience is None or not scores:
            return False
        if self.metric == "eval_loss":
            scores = [-score for score in scores]
        return len(scores) - 1 - scores.index(max(scores)) >= self.patience


class _Conductor(TrainerCallback):
    """Evaluates, saves and stops at its time, and tells of progress."""

    def __init__(self, course: Course, trainer: StageTrainer, tell: Progress) -> None:
        self.course, self.trainer, self.tell = course, trainer, tell
        self.saved = self.told = self.began = time.monotonic()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.saved = self.began = time.monotonic()
        self.first = self.saved_step = state.global_step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        step, now = state.global_step, time.monotonic()
        control.should_evaluate = step in self.course.evaluate_at
        # Trainer drops a save at an evaluation that is not the best yet: what is owed is saved at the next step.
        owed = any(self.saved_step < due <= step for due in self.course.save_at)
        control.should_save = owed or now - self.saved >= self.course.save_every_seconds
        if now - self.told >= 1 or step == self.course.steps:
            self.told = now
            rate = (step - self.first) * args.train_batch_size * args.gradient_accumulation_steps / (now - self.began)
            terms = ", ".join(f"{name} {value:.4g}" for name, value in self.trainer.recent_terms().items())
            self.tell(f"{terms}; {rate:.0f} examples/s", step, self.course.steps)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.course.worn_out(state.log_history):
            control.should_training_stop = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.saved, self.saved_step = time.monotonic(), state.global_step


class StageTrainer(Trainer):
    """Trainer over batches that are made whole, with checkpoints that are complete or not there."""

    objective: Objective
    folder: Path

    def __init__(
        self,
        objective: Objective,
        args: TrainingArguments,
        *,
        batches: Batches,
        validation: Batches | None,
        teacher: Asked | None,
        course: Course,
        tell: Progress,
    ) -> None:
        super().__init__(model=objective, args=args)
        self.objective, self.folder = objective, Path(str(args.output_dir))
        self.batches, self.validation, self.teacher, self.course = batches, validation, teacher, course
        self.offset = 0
        self.terms: deque[dict[str, Tensor]] = deque(maxlen=RECENT)
        # Trainer adds it where there is no progress bar; it writes to standard output.
        self.remove_callback(PrinterCallback)
        self.add_callback(_Conductor(course, self, tell))

    def fit(self, checkpoint: Path | None) -> None:
        """Train to the end, from a checkpoint where one is given; leaves the best evaluated weights in the model."""
        if checkpoint is not None:
            state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
            self.offset = state.global_step * self.args.gradient_accumulation_steps
        self.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        if self.state.best_model_checkpoint is not None:
            self._load_from_checkpoint(self.state.best_model_checkpoint)

    # --- batches and losses ---

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches in their order; they begin where the checkpoint ended."""
        feed = Feed(self.batches, self.course.steps * self.args.gradient_accumulation_steps, self.offset)
        # With its own generator the loader does not draw from the one that drop-out uses, so that a resumed run equals.
        generator = torch.Generator().manual_seed(self.args.seed)
        pin = self.args.device.type == "cuda"
        return DataLoader(feed, batch_size=None, shuffle=False, num_workers=0, pin_memory=pin, generator=generator)

    def _prepare_input(self, data: Any) -> Any:
        if isinstance(data, Tensor):
            return data.to(self.args.device, non_blocking=True)
        return super()._prepare_input(data)

    def ask_teacher(self, batch: Mapping[str, Any]) -> Outputs:
        """The teacher's outputs for a batch on the device: stored ones, or its own now; nothing without a teacher."""
        if "teacher_outputs" in batch:
            given: Outputs = batch["teacher_outputs"]
            return given
        if self.teacher is None:
            return {}
        return self.teacher(batch["teacher_inputs"] if "teacher_inputs" in batch else batch["inputs"])

    def compute_loss(self, model: torch.nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The weighted sum of the losses.

        Raises:
            StageError: it is not finite.
        """
        loss: Tensor
        loss, terms = model(inputs["inputs"], self.ask_teacher(inputs))
        if not torch.isfinite(loss):
            raise StageError(self._diverged(terms))
        self.terms.append({"loss": loss.detach(), **terms})
        return loss

    def _diverged(self, terms: Mapping[str, Tensor]) -> str:
        good = complete_checkpoints(self.folder)
        told = ", ".join(f"{name} {float(value):.4g}" for name, value in terms.items())
        return (
            f"the loss is not finite at step {self.state.global_step + 1} of {self.course.steps} ({told})\n"
            f"  The last good checkpoint is {good[-1] if good else 'none'}.\n"
            "  Lower learning_rate, raise warmup, or use precision: fp32."
        )

    def recent_terms(self) -> dict[str, float]:
        """The loss and its terms, averaged over the last steps."""
        if not self.terms:
            return {}
        return {name: float(torch.stack([t[name] for t in self.terms]).mean()) for name in self.terms[0]}

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """``eval_loss``, its terms and ``eval_retrieval`` over the validation data, in batches of the training's size."""
        if self.validation is None:
            raise ValueError("there is no validation data to evaluate on")
        model = self.model_wrapped
        model.eval()
        sums: dict[str, float] = {}
        for number in range(self.validation.per_epoch):
            batch = self._prepare_input(Feed(self.validation, number + 1)[number])
            with torch.no_grad(), self.compute_loss_context_manager():
                loss, terms = model(batch["inputs"], self.ask_teacher(batch))
            for name, value in {"loss": loss, **terms}.items():
                sums[name] = sums.get(name, 0.0) + float(value)
        metrics = {f"eval_{name}": value / self.validation.per_epoch for name, value in sums.items()}
        if not all(map(math.isfinite, metrics.values())):
            raise StageError(f"the validation loss is not finite at step {self.state.global_step}: {metrics}")
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """Matrices and kernels; not biases, norms, class tokens, ``logit_scale`` and ``logit_bias``."""
        return [name for name, parameter in model.named_parameters() if parameter.ndim >= 2]

    # --- checkpoints ---

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(output_dir) if output_dir else self.folder
        folder.mkdir(parents=True, exist_ok=True)
        save_model(self.objective, str(folder / WEIGHTS))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        device = str(self.args.device)
        load_model(self.objective, str(Path(resume_from_checkpoint) / WEIGHTS), strict=True, device=device)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        folder = self.folder / f"checkpoint-{self.state.global_step}"
        shutil.rmtree(folder, ignore_errors=True)
        super()._save_checkpoint(model, trial)
        for file in folder.iterdir():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        write_json(folder / COMPLETE, {file.name: file.stat().st_size for file in folder.iterdir()})
        best = self.state.best_model_checkpoint
        for old in complete_checkpoints(self.folder)[:-2]:
            if best is None or old != Path(best):
                shutil.rmtree(old)


def complete_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints that were written to their end, oldest first."""
    found = [path for path in folder.glob("checkpoint-*") if _complete(path)]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def _complete(checkpoint: Path) -> bool:
    if not (checkpoint / COMPLETE).is_file():
        return False
    sizes = read_json(checkpoint / COMPLETE)
    return all((checkpoint / n).is_file() and (checkpoint / n).stat().st_size == size for n, size in sizes.items())


def arguments(folder: Path, *, bf16: bool, seed: int, **fields: Any) -> TrainingArguments:
    """Trainer's settings for a stage: quiet, calling nobody, its own checkpoints and evaluations left to us."""
    return TrainingArguments(
        output_dir=str(folder),
        bf16=bf16,
        seed=seed,
        use_cpu=not torch.cuda.is_available(),
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        logging_nan_inf_filter=False,
        save_strategy="best",
        eval_strategy="no",
        ignore_data_skip=True,
        remove_unused_columns=False,
        save_total_limit=None,
        optim="adamw_torch_fused",
        dataloader_num_workers=0,
        **fields,
    )


def autocast(device: torch.device, bf16: bool) -> Any:
    """bf16 autocast on a device, or nothing."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if bf16 else nullcontext()
