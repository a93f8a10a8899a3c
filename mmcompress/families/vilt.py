"""ViLT of transformers: one encoder over a text and the patches of pictures, for one of four tasks.

Published checkpoints are of one task each (``dandelin/vilt-b32-finetuned-vqa``); ``head: new`` puts the head of ``task``,
with random weights, onto a checkpoint of another. The model folder holds transformers' class of the task.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from mmcompress.component import JSON, RecipePath
from mmcompress.errors import UsageError
from mmcompress.families import PADDING, Family, Feeds, FromTeacher, Graph, Prunable, Request, Run
from mmcompress.families._images import PREPROCESSOR_FILES
from mmcompress.families._texts import TOKENIZER_FILES
from mmcompress.families._vilt_model import GRAPH, INPUTS, Task
from mmcompress.families._vilt_processing import ViltProcessor

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mmcompress.losses import Outputs

PROCESSING_FILES = (*PREPROCESSOR_FILES, *TOKENIZER_FILES)


class Vilt(Family):
    """A vision-and-language transformer without a picture tower of its own (Kim et al., arXiv:2102.03334)."""

    processing_files: ClassVar[tuple[str, ...]] = PROCESSING_FILES

    task: Task = "vqa"
    """``vqa``: answers questions, one of its classes; ``retrieval``: tells how well a text fits a picture; ``nlvr``: puts
    a sentence about two pictures (or one) into a class; ``mlm``: fills in words that are masked."""
    images: Literal[1, 2] = 2
    """Pictures per text of ``nlvr``: two (NLVR2), or one that shows all there is (NLVR)."""
    negatives: int = Field(7, ge=1, le=63)
    """For ``retrieval``: other texts of the batch that a picture is trained to prefer its own to."""
    head: Literal["own", "new"] = "own"
    """``new`` gives a checkpoint of another task the head of this one, with random weights."""
    labels: RecipePath | None = None
    """A JSON file with the names of the classes of a new head, as a list."""

    @model_validator(mode="after")
    def _fits_the_task(self) -> Vilt:
        if self.labels is not None and self.task not in ("vqa", "nlvr"):
            raise ValueError(f"labels: {self.task} has no classes; expected task vqa or nlvr")
        if self.labels is not None and self.head == "own" and self.config is None:
            raise ValueError("labels are those of a new head; expected `head: new` beside them")
        if self.head == "new" and self.task == "mlm":
            raise ValueError("head: new is for vqa, retrieval and nlvr; the head of mlm comes with pre-training")
        return self

    @property
    def requests(self) -> tuple[Request, ...]:
        """One: ``answer``, ``match``, ``classify`` or ``fill``, by the task."""
        graphs = (GRAPH,)
        if self.task == "vqa":
            return (Request("answer", ("image", "question"), graphs, answers="scores"),)
        if self.task == "retrieval":
            return (Request("match", ("image", "text"), graphs, answers="numbers"),)
        if self.task == "nlvr":
            return (Request("classify", (*self.pictures, "text"), graphs, answers="scores"),)
        return (Request("fill", ("image", "text"), graphs, answers="tokens"),)

    @property
    def pictures(self) -> tuple[str, ...]:
        """Columns that hold pictures, in the order of the model."""
        return ("image", "image2") if self.task == "nlvr" and self.images == 2 else ("image",)

    @property
    def columns(self) -> frozenset[str]:
        """Pictures; ``question`` and ``answers`` of annotators, ``texts``, or ``text`` and ``label``, by the task."""
        others = {"vqa": {"question", "answers"}, "nlvr": {"text", "label"}}.get(self.task, {"texts"})
        return frozenset({*self.pictures, *others})

    @property
    def cuts(self) -> frozenset[str]:
        """Layers and feed-forward width of the encoder."""
        return frozenset({"encoder_layers", "encoder_feed_forward"})

    # --- model folders ---

    def write(self, folder: Path, seed: int) -> None:
        """Write the checkpoint as a folder of transformers' class for the task.

        Raises:
            InputError: weights missing or unexpected (a head of another task), a tokenizer or picture settings that do
                not fit the model, a model that draws its patches at random.
        """
        from mmcompress.families._vilt_checkpoints import write_checkpoint

        write_checkpoint(self, folder, seed)

    def load(self, folder: Path, *, attention: str = "sdpa") -> torch.nn.Module:
        """The model of a model folder, in FP32 and evaluation mode; ViLT computes attention in one way alone (eager)."""
        from mmcompress.families._vilt_checkpoints import load_model

        return load_model(self, folder)

    def save(self, model: torch.nn.Module, source: Path, folder: Path) -> None:
        """Write a model that came from ``source``: its files, the weights in FP32, what pruning changed."""
        from mmcompress.families._vilt_checkpoints import save_model

        save_model(self, model, source, folder)

    def student(self, teacher: Path, cut: FromTeacher, folder: Path, seed: int) -> None:
        """Cut a student with fewer layers or narrower feed-forward blocks; it opens with ``from_pretrained``."""
        from mmcompress.families._vilt_checkpoints import write_student

        write_student(self, teacher, cut, folder, seed)

    # --- training ---

    def outputs(self, model: torch.nn.Module, batch: Mapping[str, Tensor], want: frozenset[str]) -> Outputs:
        """Forward, over the text's tokens and then the pictures' (``nlvr``: a row for each picture of a text).

        Raises:
            UsageError: an output that there is none of.
        """
        from mmcompress.families._vilt_model import outputs

        unknown = sorted(want - self.provides())
        if unknown:
            raise UsageError(f"vilt gives no {', '.join(unknown)}\n  it gives: {', '.join(sorted(self.provides()))}")
        return outputs(model, batch, want, self.task, self.negatives)

    def provides(self) -> frozenset[str]:
        """Logits with the states, maps and mask of the encoder.

        ``retrieval`` has ``fusion.logits`` alone: [b, 1 + negatives], the own text's first. ``mlm`` has ``text.logits``
        [b, s, v] with ``text.mask``, the places of hidden words.
        """
        states = frozenset({"fusion.hidden_states", "fusion.attentions", "fusion.mask"})
        if self.task == "retrieval":
            return frozenset({"fusion.logits"})
        return states | (frozenset({"text.logits", "text.mask"}) if self.task == "mlm" else {"fusion.logits"})

    def changing(self) -> frozenset[str]:
        """All outputs where other texts of the batch, or words that are hidden anew, take part."""
        return self.provides() if self.task in ("retrieval", "mlm") else frozenset()

    def mixing(self) -> frozenset[str]:
        """The logits of retrieval, whose candidates are the next texts of the batch."""
        return self.provides() if self.task == "retrieval" else frozenset()

    def task_loss(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> Tensor:
        """Binary cross entropy with VQA's soft scores, or cross entropy: of the text, the class or the words."""
        from mmcompress.families._vilt_model import task_loss

        return task_loss(outputs, batch, self.task)

    def task_count(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        """Hidden words, or examples; None where texts of the batch are candidates."""
        if self.task == "mlm":
            return (batch["labels"] >= 0).sum()
        return None if self.task == "retrieval" else batch["labels"].new_tensor(float(len(batch["labels"])))

    def task_needs(self) -> frozenset[str]:
        """The logits."""
        return frozenset({"text.logits" if self.task == "mlm" else "fusion.logits"})

    def default_losses(self) -> tuple[JSON, ...]:
        """The teacher's probabilities and the task's own loss."""
        fields = {"vqa": {"outcomes": "independent"}, "mlm": {"output": "text.logits", "mask": "text.mask"}}
        return ({"logits_kl": fields.get(self.task, {})}, "task")

    # --- compressing and exporting ---

    def prunable(self, model: torch.nn.Module) -> list[Prunable]:
        """Heads and feed-forward units of every layer."""
        from mmcompress.families._vilt_model import prunable

        return prunable(model)

    def graphs(self, model: torch.nn.Module) -> list[Graph]:
        """``model``: text and patches to logits."""
        from mmcompress.families._vilt_model import graphs

        return graphs(model, self.task)

    # --- answering ---

    def processor(self, folder: Path) -> ViltProcessor:
        """The preprocessing of a model folder or package.

        Raises:
            InputError: configuration files that are missing, malformed or not supported.
        """
        columns = {name if name != "texts" else "text" for name in self.columns}
        several, mlm = self.task == "nlvr", self.task == "mlm"
        return ViltProcessor(folder, frozenset(columns), self.pictures, stacked=several, masked=mlm)

    def package_files(self, folder: Path) -> list[str]:
        """Configuration, tokenizer and picture settings, as far as the folder has them."""
        return [name for name in ("config.json", *PROCESSING_FILES) if (folder / name).is_file()]

    def answer(self, run: Run, request: str, feeds: Feeds, length: int | None = None) -> NDArray[Any]:
        """Scores of the classes [n, c], how well each text fits [n, 1], or the words for its masks [n, m]."""
        known = self.requests[0].name
        if request != known:
            raise UsageError(f"vilt answers no {request!r} for task {self.task}; it answers: {known}")
        logits = run(GRAPH, {name: feeds[name] for name in INPUTS})["logits"]
        if self.task != "mlm":
            return np.asarray(logits, dtype=np.float32)
        masked, words = feeds["masked"], logits.argmax(axis=-1).astype(np.int32)
        filled = np.full((len(words), max(1, int(masked.sum(axis=1).max(initial=0)))), PADDING, np.int32)
        for row, found, places in zip(filled, words, masked, strict=True):
            row[: int(places.sum())] = found[places]
        return filled
