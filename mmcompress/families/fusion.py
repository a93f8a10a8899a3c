"""Fusion models of ours: two or more inputs, an encoder for each, and one answer for all.

A model folder holds a config.json (see :mod:`mmcompress.families._fusion_config`), safetensors, and a tokenizer.json where
an input is a text. Inputs are pictures, texts, sounds, films, tables, series of readings and feature vectors; they are
joined early (features), intermediately (cross-attention) or late (votes); the answer is a class, several, a class per
word, or a number. A model that was trained with missing inputs answers without them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from mmcompress.component import JSON
from mmcompress.errors import UsageError
from mmcompress.families import PADDING, Family, Feeds, FromTeacher, Graph, Prunable, Request, Run
from mmcompress.families._fusion_config import FusionConfig, parse_config
from mmcompress.families._fusion_parts import Intermediate
from mmcompress.families._fusion_processor import TARGETS, FusionProcessor
from mmcompress.families._images import read_object
from mmcompress.families._texts import TOKENIZER_FILES

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mmcompress.families._fusion_modules import FusionModel
    from mmcompress.losses import Outputs

_GRAPH = "fusion_model"
_REQUESTS = {"class": "classify", "several": "classify", "tags": "tag", "number": "predict_number"}
_ANSWERS: dict[str, Any] = {"class": "scores", "several": "scores", "tags": "tags", "number": "numbers"}


class Fusion(Family):
    """A model that answers from two or more inputs together."""

    @property
    def described(self) -> FusionConfig:
        """The configuration that the component's ``config``, ``path`` or ``hub`` field names.

        Raises:
            InputError: there is none, or mistakes in it.
        """
        from mmcompress.families._checkpoints import source_folder

        source = source_folder(self)
        file = source if source.is_file() else source / "config.json"
        return _described(file, file.stat().st_mtime_ns if file.is_file() else 0)

    @property
    def requests(self) -> tuple[Request, ...]:
        """``classify``, ``tag`` or ``predict_number``, by what comes out."""
        config = self.described
        kind = config.output.kind
        values = tuple(item.value for item in config.inputs)
        optional = tuple(item.value for item in config.inputs if config.missing and item.name != config.tagged)
        return (Request(_REQUESTS[kind], values, (_GRAPH,), answers=_ANSWERS[kind], optional=optional),)

    @property
    def columns(self) -> frozenset[str]:
        """The inputs, and what shall be answered: ``label``, ``labels``, ``tags`` or ``number``."""
        config = self.described
        return frozenset({TARGETS[config.output.kind], *(item.name for item in config.inputs)})

    @property
    def cuts(self) -> frozenset[str]:
        """Layers and feed-forward width of each ViT and BERT, by its input's name; layers of the cross-attention."""
        config = self.described
        names = [item.name for item in config.inputs if item.encoder.kind in ("vit", "bert")]
        found = {f"{name}_{what}" for name in names for what in ("layers", "feed_forward")}
        return frozenset(found | ({"fusion_layers"} if isinstance(config.fusion, Intermediate) else set()))

    def identity(self) -> JSON:
        """The fields by digest; a ``config`` file together with the tokenizer and pretrained encoders beside it."""
        identity = super().identity()
        if self.config is not None and self.config.is_file():
            from mmcompress.families._fusion_checkpoints import identity_beside

            return {**identity, "beside": identity_beside(self.config)}
        return identity

    # --- model folders ---

    def write(self, folder: Path, seed: int) -> None:
        """Write the model that a config.json describes, its pretrained encoders read, or copy a model folder.

        Raises:
            InputError: mistakes in the configuration, weights missing or unexpected, pickled weights, another kind of
                model, a tokenizer that does not fit.
        """
        from mmcompress.families._fusion_checkpoints import write_checkpoint

        write_checkpoint(self, folder, seed)

    def load(self, folder: Path, *, attention: str = "sdpa") -> torch.nn.Module:
        """The model of a model folder, in FP32 and evaluation mode.

        Raises:
            InputError: weights that do not fit config.json and structure.json; an unknown kind of attention.
        """
        from mmcompress.families._fusion_checkpoints import load_model

        return load_model(folder, attention)

    def save(self, model: torch.nn.Module, source: Path, folder: Path) -> None:
        """Write a model that came from ``source``: its files, the weights in FP32, what pruning changed."""
        from mmcompress.families._fusion_checkpoints import save_model

        save_model(cast("FusionModel", model), source, folder)

    def student(self, teacher: Path, cut: FromTeacher, folder: Path, seed: int) -> None:
        """Cut a student from an unpruned teacher: fewer layers, evenly spaced, or narrower feed-forward blocks.

        Raises:
            UsageError: a cut that the teacher does not allow, with what it allows.
        """
        from mmcompress.families._fusion_checkpoints import write_student

        write_student(teacher, cut, folder, seed)

    # --- training ---

    def outputs(self, model: torch.nn.Module, batch: Mapping[str, Tensor], want: frozenset[str]) -> Outputs:
        """Forward; everything is given whatever is wanted.

        Raises:
            UsageError: an output that there is none of.
        """
        from mmcompress.families._fusion_model import outputs

        found = outputs(cast("FusionModel", model), batch)
        unknown = sorted(want - set(found))
        if unknown:
            raise UsageError(f"fusion gives no {', '.join(unknown)}\n  it gives: {', '.join(sorted(found))}")
        return {name: found[name] for name in want}

    def provides(self) -> frozenset[str]:
        """``fusion.logits``, ``fusion.embeds`` and ``<input>.embeds``; what else, the configuration decides."""
        from mmcompress.families._fusion_model import provides

        return provides(self.described)

    def task_loss(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> Tensor:
        """Cross entropy, binary cross entropy or a squared error; see :func:`mmcompress.families._fusion_model.task_loss`."""
        from mmcompress.families._fusion_model import task_loss

        return task_loss(self.described, outputs, batch)

    def task_needs(self) -> frozenset[str]:
        """The logits, and what tells which of them count."""
        from mmcompress.families._fusion_model import task_needs

        return task_needs(self.described)

    def default_losses(self) -> tuple[JSON, ...]:
        """The teacher's logits beside the task: by KL, class by class where several may hold, by squares for numbers."""
        kind = self.described.output.kind
        if kind == "number":
            return ({"logits_mse": {"scale": "fusion.scale"}}, "task")
        fields = {"several": {"outcomes": "independent"}, "tags": {"mask": "fusion.mask"}}.get(kind, {})
        return ({"logits_kl": fields}, "task")

    # --- compressing and exporting ---

    def prunable(self, model: torch.nn.Module) -> list[Prunable]:
        """Heads and feed-forward units, hidden widths of linear layers; a budget per input and one for ``fusion``."""
        from mmcompress.families._fusion_model import prunable

        return prunable(cast("FusionModel", model))

    def graphs(self, model: torch.nn.Module) -> list[Graph]:
        """``fusion_model``: all inputs to ``logits``."""
        from mmcompress.families._fusion_model import graphs

        return graphs(cast("FusionModel", model))

    def traced(self, model: torch.nn.Module) -> list[Graph]:
        """A graph per encoder, and one of what joins them."""
        from mmcompress.families._fusion_model import traced

        return traced(cast("FusionModel", model))

    # --- answering ---

    def processor(self, folder: Path) -> FusionProcessor:
        """The preprocessing of a model folder or package.

        Raises:
            InputError: a configuration or tokenizer that is missing or malformed.
        """
        return FusionProcessor(folder)

    def package_files(self, folder: Path) -> list[str]:
        """Configuration and tokenizer, as far as the folder has them."""
        return [name for name in ("config.json", *TOKENIZER_FILES) if (folder / name).is_file()]

    def answer(self, run: Run, request: str, feeds: Feeds, length: int | None = None) -> NDArray[Any]:
        """Logits [n, c] (of several classes those above 0 apply), a class per word int32 [n, w], or numbers [n, 1].

        Raises:
            UsageError: a request of another output.
        """
        config = self.described
        if request != _REQUESTS[config.output.kind]:
            raise UsageError(f"this model answers no {request!r}; it answers: {_REQUESTS[config.output.kind]}")
        ends = ("_values", "_length", "_present")
        inputs = {name: array for name, array in feeds.items() if name.endswith(ends)}
        logits = np.asarray(run(_GRAPH, inputs)["logits"], dtype=np.float32)
        if not config.tagged:
            return logits
        starts = feeds[f"{config.tagged}_starts"]
        best = np.take_along_axis(logits.argmax(axis=-1), np.maximum(starts, 0), axis=1)
        return np.where(starts == PADDING, PADDING, best).astype(np.int32)


@lru_cache(maxsize=32)
def _described(file: Path, changed: int) -> FusionConfig:
    return parse_config(read_object(file), str(file))
