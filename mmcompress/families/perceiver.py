"""Perceiver IO of transformers (Jaegle et al., arXiv:2107.14795): classes of texts, pictures or sounds, read by latents.

Published checkpoints are of one input each (``deepmind/vision-perceiver-learned``). Of sounds transformers has no
classifier, and so there is no published checkpoint: :class:`~mmcompress.families._perceiver_modules.PerceiverForAudioClassification`
makes one of transformers' parts, and config.json names it under ``architectures``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from mmcompress.component import JSON
from mmcompress.errors import UsageError
from mmcompress.families import Feeds, Graph, Prunable, Request, Run
from mmcompress.families._images import PREPROCESSOR_FILES
from mmcompress.families._of_transformers import TransformersFamily
from mmcompress.families._perceiver_model import CLASSES, GRAPH, INPUTS, TOWERS, architecture
from mmcompress.families._perceiver_processing import COLUMN, Task, input_size, make_processor
from mmcompress.families._processing import ColumnProcessor
from mmcompress.families._students import Tower
from mmcompress.families._transformers import Architecture, write_model

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mmcompress.losses import Outputs

FILES = (*PREPROCESSOR_FILES, "tokenizer_config.json")


class Perceiver(TransformersFamily):
    """A model whose latents read an input of any kind, however long; its layers run ``num_blocks`` times.

    A student has fewer layers per block. Its feed-forward width is a whole multiple of its width by config.json, so it is
    pruned and not cut. Heads are pruned where keys are as wide as values (in the published picture models, not in
    ``deepmind/language-perceiver``).
    """

    processing_files: ClassVar[tuple[str, ...]] = FILES

    task: Task = "text"
    """What is put into classes: ``text`` (its bytes), ``picture`` or ``sound``."""
    new_head: tuple[str, ...] | None = None
    """Names of classes: gives the checkpoint a new last layer, which starts at random; one that was trained to fill in
    masked bytes (``deepmind/language-perceiver``) gets a whole new decoder."""

    @model_validator(mode="after")
    def _several_classes(self) -> Perceiver:
        if self.new_head is not None and not 2 <= len(self.new_head) == len(set(self.new_head)):
            raise ValueError("new_head: expected two or more different names of classes")
        return self

    @property
    def requests(self) -> tuple[Request, ...]:
        """Scores of the classes."""
        return (Request("classify", (COLUMN[self.task],), (GRAPH,), answers="scores"),)

    @property
    def columns(self) -> frozenset[str]:
        """``text``, ``image`` or ``audio``, with ``label``."""
        return frozenset({COLUMN[self.task], "label"})

    def architecture(self) -> Architecture:
        """Of pictures one of three, by config.json's ``architectures``: learned places, Fourier features, convolutions."""
        return architecture(self.task, FILES)

    def towers(self) -> tuple[Tower, ...]:
        """The layers of a block."""
        return TOWERS

    def write(self, folder: Path, seed: int) -> None:
        """Write the checkpoint as a model folder.

        Raises:
            InputError: weights missing or unexpected, another kind of input, processing files that do not fit the model.
        """
        changes: dict[str, Any] = {}
        if self.new_head is not None:
            names = self.new_head
            changes["id2label"] = {str(number): name for number, name in enumerate(names)}
            changes["label2id"] = {name: number for number, name in enumerate(names)}
            changes["num_labels"] = len(names)
            if self.task == "text":
                changes["architectures"] = list(CLASSES["text"])
        write_model(self, architecture(self.task, FILES, new_head=self.new_head is not None), folder, seed, changes)
        self.processor(folder)

    def load(self, folder: Path, *, attention: str = "sdpa") -> torch.nn.Module:
        """The model of a model folder, in FP32 and evaluation mode; it computes attention in one way alone (eager).

        Raises:
            InputError: weights that do not fit config.json and structure.json; an unknown kind of attention.
        """
        model: Any = super().load(folder, attention=attention)
        model.input_size = input_size(self.processor(folder), self.task)
        return model  # type: ignore[no-any-return]

    # --- training ---

    def outputs(self, model: torch.nn.Module, batch: Mapping[str, Tensor], want: frozenset[str]) -> Outputs:
        """Forward: logits [b, c]; of the latents, one entry for each time that a layer runs.

        Raises:
            UsageError: an output that there is none of.
        """
        from mmcompress.families._perceiver_model import outputs

        unknown = sorted(want - self.provides())
        if unknown:
            raise UsageError(
                f"perceiver gives no {', '.join(unknown)}\n  it gives: {', '.join(sorted(self.provides()))}"
            )
        return outputs(model, batch, want, self.task)

    def provides(self) -> frozenset[str]:
        """Logits; states, attention maps and mask of the latents, all of which count."""
        return frozenset({"fusion.logits", "encoder.hidden_states", "encoder.attentions", "encoder.mask"})

    def task_loss(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> Tensor:
        """Cross entropy."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(outputs["fusion.logits"].float(), batch["labels"])

    def task_count(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Examples."""
        return batch["labels"].new_tensor(len(batch["labels"]))

    def task_needs(self) -> frozenset[str]:
        """The logits."""
        return frozenset({"fusion.logits"})

    def default_losses(self) -> tuple[JSON, ...]:
        """The teacher's probabilities and the classes themselves."""
        return ("logits_kl", "task")

    # --- compressing and exporting ---

    def prunable(self, model: torch.nn.Module) -> list[Prunable]:
        """Feed-forward units, and heads where keys are as wide as values; a block that runs several times is one."""
        from mmcompress.families._perceiver_model import prunable

        return prunable(model)

    def graphs(self, model: torch.nn.Module) -> list[Graph]:
        """``model``: texts of any length up to the model's, pictures of its size, or sounds filled up to its length."""
        from mmcompress.families._perceiver_model import graphs

        return graphs(model, self.task)

    # --- answering ---

    def processor(self, folder: Path) -> ColumnProcessor:
        """The preprocessing of a model folder or package.

        Raises:
            InputError: configuration files that are missing, malformed, or do not fit the model.
        """
        return make_processor(folder, self.task)

    def answer(self, run: Run, request: str, feeds: Feeds, length: int | None = None) -> NDArray[Any]:
        """Scores of the classes, float32 [n, c]."""
        if request != "classify":
            raise UsageError(f"perceiver answers no {request!r}; it answers: classify")
        return np.asarray(run(GRAPH, {name: feeds[name] for name in INPUTS[self.task]})["logits"], dtype=np.float32)
