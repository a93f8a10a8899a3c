"""Transformers' side of training: the Trainer of a stage, its batches, its course and its checkpoints."""

from __future__ import annotations

import math
import shutil
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from mmcompress import _processes
from mmcompress.errors import StageError
from mmcompress.losses import Outputs
from mmcompress.stages._batches import Batches, Progress
from mmcompress.stages._exhaustion import is_memory
from mmcompress.stages._objective_modules import Objective
from mmcompress.stages._runaway import TIMES, Runaway
from mmcompress.stages._shares import ids_of, shortened
from mmcompress.stages._teacher_outputs import Asked
from mmcompress.stages._tracking import Tracker
from mmcompress.stages._training_checkpoints import complete_checkpoints, seal, step_of
from mmcompress.stages._whole_batch_modules import WholeBatch, cut, random_state, replay
from mmcompress.store import read_json, write_json

WEIGHTS = "model.safetensors"
SPLIT = "split.json"
"""Into how many parts a batch is split that did not fit into memory, and since which step."""
RECENT = 20
"""Steps over which reported loss terms are averaged."""


class Feed(Dataset[dict[str, Any]]):
    """Item i is batch ``offset + i``, this process's share of it, as tensors."""

    def __init__(self, sources: Sequence[Batches], count: int, offset: int = 0) -> None:
        """``sources``: the batches, and the same ones with the inputs or answers of each further teacher."""
        self.sources, self.count, self.offset = sources, count, offset

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index >= self.count:
            raise IndexError(index)
        batch: dict[str, Any] = dict(self.sources[0][self.offset + index])
        for number, source in enumerate(self.sources[1:], start=1):
            more = source[self.offset + index]
            # Further teachers are fed what the student is, unless they say otherwise.
            batch.update({of_teacher(part, number): feeds for part, feeds in more.items() if part != "inputs"})
        return {part: {name: torch.from_numpy(array) for name, array in feeds.items()} for part, feeds in batch.items()}


def of_teacher(part: str, number: int) -> str:
    """The name of what a batch holds for a teacher: ``teacher_inputs``, of the second one ``teacher_inputs_2``."""
    return f"{part}_{number + 1}" if number else part


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

    def __init__(self, course: Course, trainer: StageTrainer, tell: Progress, tracker: Tracker | None) -> None:
        self.course, self.trainer, self.tell, self.tracker = course, trainer, tell, tracker
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
        due = now - self.saved >= self.course.save_every_seconds
        # Clocks differ between processes, and they save together.
        control.should_save = owed or (_processes.told_by_first(str(due)) == "True")
        rate = (step - self.first) * self.trainer.examples_per_step / max(now - self.began, 1e-9)
        if self.tracker is not None:
            self.tracker.step(step, self.trainer.terms[-1], rate, self.trainer.gradient_norm, self.trainer.rate_used)
        if now - self.told >= 1 or step == self.course.steps:
            self.told = now
            terms = ", ".join(f"{name} {value:.4g}" for name, value in self.trainer.recent_terms().items())
            parts = f"; in {self.trainer.parts} parts" if self.trainer.split_at is not None else ""
            self.tell(f"{terms}; {rate:.0f} examples/s{parts}", step, self.course.steps)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.tracker is not None:
            self.tracker.evaluation(state.global_step, kwargs["metrics"])
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
        batches: Sequence[Batches],
        validation: Sequence[Batches] | None,
        teachers: Sequence[Asked | None],
        course: Course,
        tell: Progress,
        parts: int = 1,
        tracker: Tracker | None = None,
    ) -> None:
        """``batches`` and ``validation``: see :class:`Feed`; ``teachers``: those that are asked live, None where stored."""
        super().__init__(model=objective, args=args)
        self.objective, self.folder = objective, Path(str(args.output_dir))
        self.batches, self.validation, self.teachers, self.course = batches, validation, teachers, course
        self.tell = tell
        self.offset = 0
        self.parts = parts
        self.split_at: int | None = None
        self.gradient_norm = self.rate_used = 0.0
        self.terms: deque[dict[str, Tensor]] = deque(maxlen=RECENT)
        self.runaway = Runaway(course.steps, self.folder, objective.scheduled)
        self.whole_batch = WholeBatch(objective, self.ask_teachers, partial(autocast, args.device, args.bf16))
        # Gradients are added up over the processes by WholeBatch, once for all backward passes of a batch.
        self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True)
        # Trainer adds it where there is no progress bar; it writes to standard output.
        self.remove_callback(PrinterCallback)
        self.add_callback(_Conductor(course, self, tell, tracker))

    @property
    def examples_per_step(self) -> int:
        """Examples of an optimiser step, over all processes."""
        return self.batches[0].size

    def fit(self, checkpoint: Path | None) -> None:
        """Train to the end, from a checkpoint where one is given; leaves the best evaluated weights in the model."""
        if checkpoint is not None:
            state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
            self.offset = state.global_step
            self.runaway.resume()
            if (self.folder / SPLIT).is_file():
                split = read_json(self.folder / SPLIT)
                self.parts, self.split_at = split["parts"], split["step"]
        elif _processes.rank():
            # Else drop-out would hide the same of other examples.
            torch.manual_seed(self.args.seed + _processes.rank())
        self.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        if self.state.best_model_checkpoint is not None:
            self._load_from_checkpoint(self.state.best_model_checkpoint)

    # --- batches and losses ---

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches in their order; they begin where the checkpoint ended."""
        feed = Feed(self.batches, self.course.steps, self.offset)
        # With its own generator the loader does not draw from the one that drop-out uses, so that a resumed run equals.
        generator = torch.Generator().manual_seed(self.args.seed)
        pin = self.args.device.type == "cuda"
        return DataLoader(feed, batch_size=None, shuffle=False, num_workers=0, pin_memory=pin, generator=generator)

    def _prepare_input(self, data: Any) -> Any:
        if isinstance(data, Tensor):
            return data.to(self.args.device, non_blocking=True)
        return super()._prepare_input(data)

    def ask_teachers(self, batch: Mapping[str, Any], want: frozenset[str]) -> list[Outputs]:
        """Each teacher's outputs for a batch on the device: stored ones, or its own now; nothing without a teacher."""
        answers: list[Outputs] = []
        for number, teacher in enumerate(self.teachers):
            stored: Outputs | None = batch.get(of_teacher("teacher_outputs", number))
            if stored is not None:
                answers.append(stored)
            elif teacher is None or not want:
                answers.append({})
            else:
                answers.append(teacher(batch.get(of_teacher("teacher_inputs", number), batch["inputs"]), want))
        return answers

    def project(self, seed: int) -> None:
        """Let the losses make their projections from the shapes of a few examples."""
        whole = self._prepare_input(Feed(self.batches, 1)[0])
        size = len(next(iter(whole["inputs"].values())))
        batch = cut(whole, slice(0, 2), size)
        self.objective.add_projections(batch["inputs"], self.ask_teachers(batch, self.objective.asks()), seed)

    def training_step(self, model: torch.nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """The gradients of a whole batch, in parts where it does not fit into memory otherwise.

        Raises:
            StageError: the loss is not finite, or runs away.
        """
        model.train()
        batch = self._prepare_inputs(inputs)
        self.objective.done = self.state.global_step / max(1, self.course.steps - 1)
        size = len(next(iter(batch["inputs"].values())))
        state = random_state()
        terms = None
        while terms is None:
            terms = self._attempt(batch, size)
            if terms is None:
                replay(state)
        if not torch.isfinite(terms["loss"]):
            raise StageError(self._diverged("the loss is not finite", terms))
        self.terms.append(terms)
        if self.runaway.sees(self.state.global_step, float(terms["loss"])):
            what = (
                f"the loss has run away, to over {TIMES:g} times its level of the beginning, {self.runaway.level:.4g},"
            )
            raise StageError(self._diverged(what, terms, self.runaway.good))
        return terms["loss"].detach()

    def _attempt(self, batch: Any, size: int) -> dict[str, Tensor] | None:
        """A step; None where memory ran out and the batch was split further."""
        try:
            return self.whole_batch(batch, self.parts)
        except (RuntimeError, MemoryError) as error:
            # Several processes would have to give up the same exchange at once.
            if not is_memory(error) or self.parts >= size or _processes.count() > 1 or self.objective.mixes:
                raise
        self.objective.zero_grad(set_to_none=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.parts, self.split_at = min(2 * self.parts, size), self.state.global_step + 1
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / SPLIT, {"parts": self.parts, "step": self.split_at})
        message = (
            f"a batch of {size} does not fit into memory: computed in {self.parts} parts from step {self.split_at} on"
        )
        self.tell(message, self.state.global_step, self.course.steps)
        return None

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)  # type: ignore[no-untyped-call]
        self.gradient_norm, self.rate_used = float(norm), float(self._get_learning_rate())
        if not math.isfinite(self.gradient_norm):
            raise StageError(self._diverged("the gradient is not finite", self.terms[-1]))
        return norm

    def _diverged(self, what: str, terms: Mapping[str, Tensor], until: int | None = None) -> str:
        step = self.state.global_step
        found = complete_checkpoints(self.folder)
        good = [path for path in found if until is None or step_of(path) <= until]
        told = ", ".join(f"{name} {float(value):.4g}" for name, value in terms.items())
        return (
            f"{what} at step {step + 1} of {self.course.steps} ({told})\n"
            f"  The batch: {shortened(ids_of(self.batches[0], step))}.\n"
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
        self.objective.eval()
        count = self.validation[0].per_epoch
        sums: dict[str, float] = {}
        mine = range(_processes.rank(), count, _processes.count())
        # A process without a batch of its own takes the first one, without weight, for the names.
        for number, weight in [(number, 1.0) for number in mine] or [(0, 0.0)]:
            batch = self._prepare_input(Feed(self.validation, number + 1)[number])
            with torch.no_grad(), self.whole_batch.autocast():
                loss, terms = self.objective(batch["inputs"], self.ask_teachers(batch, self.objective.asks()))
            for name, value in {"loss": loss, **terms}.items():
                sums[name] = sums.get(name, 0.0) + weight * float(value)
        totals = _processes.added_up(torch.tensor([sums[name] for name in sums], dtype=torch.float64)).tolist()
        metrics = {f"eval_{name}": value / count for name, value in zip(sums, totals, strict=True)}
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
        # safetensors knows no number of a CPU, which accelerate gives to each process.
        device = "cpu" if self.args.device.type == "cpu" else str(self.args.device)
        load_model(self.objective, str(Path(resume_from_checkpoint) / WEIGHTS), strict=True, device=device)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        folder = self.folder / f"checkpoint-{self.state.global_step}"
        if not _processes.rank():
            shutil.rmtree(folder, ignore_errors=True)
        _processes.wait()
        super()._save_checkpoint(model, trial)
        _processes.wait()
        if not _processes.rank():
            self._complete(folder)
        _processes.wait()

    def _complete(self, folder: Path) -> None:
        seal(folder)
        found = complete_checkpoints(self.folder)
        # The last one before a rise that may become a divergence, which its message names.
        good = [path for path in found if step_of(path) <= self.runaway.good][-1:]
        kept = {*found[-2:], *good, Path(self.state.best_model_checkpoint or "")}
        for old in found:
            if old not in kept:
                shutil.rmtree(old)


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
