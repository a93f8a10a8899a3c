"""Families: how one kind of model is loaded, fed, shrunk, pruned, split into graphs and asked. One file each.

A family knows nothing of stages, stores or runtimes. Everything that it does starts from a *model folder*
(``config.json``, ``model.safetensors``, ``structure.json`` where modules were pruned, tokenizer and preprocessing files).
Importing a family file imports neither torch nor transformers: packages use its numpy half (:meth:`Family.processor`,
:meth:`Family.answer`) on devices that have neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, model_validator

from mmcompress.component import Component, RecipePath, Slot

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mmcompress.losses import Outputs

Feeds = dict[str, NDArray[Any]]
"""Inputs or outputs of a graph, by name; the first axis of each is the batch."""
Run = Callable[[str, Feeds], Feeds]
"""Runs a graph by name: ``run("vision_model", {"pixel_values": ...})["image_embeds"]``."""


class Processor(Protocol):
    """Preprocessing of one model folder or package: numpy, Pillow and ``tokenizers`` alone.

    It has two halves, so that training can keep what is costly to make and small to keep; ``encode`` is both.
    """

    def compact(self, values: Mapping[str, Sequence[Any]]) -> Feeds:
        """Columns of raw values (``image``: pictures in any accepted form; ``text``: strings) to small arrays.

        Pictures become uint8 [n, h, w, 3] at the model's size, texts int32 [n, s] at the longest length that the model
        takes, so that arrays of several calls can be joined.

        Raises:
            InputError: a picture that cannot be read, a text that is none, ...
        """
        ...

    def expand(self, compact: Feeds) -> Feeds:
        """What :meth:`compact` gave, to graph inputs (float32 pixels, int64 tokens cut to the longest text there)."""
        ...

    def encode(self, values: Mapping[str, Sequence[Any]]) -> Feeds:
        """``expand(compact(values))``."""
        ...


@dataclass(frozen=True)
class Request:
    """What a user asks of a package, in the user's words, with fixed work per example."""

    name: str
    inputs: tuple[str, ...]
    """Raw values per example that it takes: a subset of ``image``, ``text``, ..."""
    graphs: tuple[str, ...]
    """Graphs that it runs."""


@dataclass(frozen=True)
class Graph:
    """A part of a model that is exported as one ONNX graph."""

    name: str
    """As transformers' exporters name it: ``vision_model``, ``text_model``, ``encoder_model``, ..."""
    module: torch.nn.Module
    """Takes the inputs by keyword and returns a dict of outputs."""
    inputs: Mapping[str, Tensor]
    """Sample inputs (batch 2 or more) whose outputs differ between examples."""
    dynamic: Mapping[str, Mapping[int, str]]
    """Axes that vary, by input name: ``{"input_ids": {0: "batch", 1: "sequence"}}``."""
    outputs: tuple[str, ...]


class FromTeacher(BaseModel):
    """A student cut from its teacher: fewer layers (evenly spaced, or chosen by index), narrower, with its weights.

    Towers are named by the family; a tower that is not named is kept as it is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    vision_layers: int | tuple[int, ...] | None = None
    text_layers: int | tuple[int, ...] | None = None
    vision_width: int | None = None
    text_width: int | None = None
    vision_feed_forward: int | None = None
    text_feed_forward: int | None = None
    init: str = "inherit"
    """``inherit`` takes the teacher's weights; ``random`` takes its shapes alone."""


@dataclass(frozen=True)
class Prunable:
    """One coupled set of channels that structured pruning may narrow."""

    block: str
    """Where it stands, for people: ``vision.layers.3.attention``."""
    tower: str
    """The budget that it belongs to."""
    root: str
    """Module whose output channels are cut, by its dotted name; the dependency graph finds what follows."""
    heads: int | None
    """Number of attention heads that the channels form, or None for plain channels."""
    together: tuple[str, ...] = ()
    """Modules cut at the same channels which the graph cannot see (query, key and value of one attention)."""
    head_attributes: Mapping[str, tuple[str, ...]] | None = None
    """Per module name, its attributes that count heads or head channels and follow the cut."""


class Family(Component):
    """A kind of model and, in a recipe, a checkpoint of it: a folder, a hub id, or a config (random weights, by name)."""

    kind: ClassVar[str] = "families"
    requests: ClassVar[tuple[Request, ...]]
    """What its packages answer; the main request first."""
    columns: ClassVar[frozenset[str]]
    """Values that training examples must have."""

    path: RecipePath | None = None
    hub: str | None = None
    revision: str | None = None
    config: RecipePath | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Family:
        given = [name for name in ("path", "hub", "config") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"expected exactly one of path, hub, config; got {', '.join(given) or 'none'}")
        if (self.hub is None) != (self.revision is None):
            raise ValueError("a hub id needs a revision (a commit or tag), and a revision needs a hub id")
        return self

    # --- model folders (with torch) ---

    def write(self, folder: Path, seed: int) -> None:
        """Write the checkpoint that this component names as a model folder.

        Raises:
            InputError: no weights, weights missing or unexpected, pickled weights, a checkpoint of another family.
        """
        raise NotImplementedError

    def load(self, folder: Path, *, attention: str = "sdpa") -> torch.nn.Module:
        """The model of a model folder in FP32 and evaluation mode, rebuilt from its structure.json where it has one.

        Raises:
            InputError: as :meth:`write`; or a structure.json that does not fit the weights.
        """
        raise NotImplementedError

    def save(self, model: torch.nn.Module, source: Path, folder: Path) -> None:
        """Write a model that came from the model folder ``source`` (and was trained or pruned since) as a new one."""
        raise NotImplementedError

    def student(self, teacher: Path, cut: FromTeacher, folder: Path, seed: int) -> None:
        """Cut a student from the teacher's model folder and write it as a model folder."""
        raise NotImplementedError

    # --- training (with torch) ---

    def outputs(self, model: torch.nn.Module, batch: Mapping[str, Tensor], want: frozenset[str]) -> Outputs:
        """Forward: the outputs by name, at least those in ``want``."""
        raise NotImplementedError

    def provides(self) -> frozenset[str]:
        """Names of the outputs that :meth:`outputs` can give."""
        raise NotImplementedError

    def task_loss(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> Tensor:
        """The loss that the model was trained with, a scalar."""
        raise NotImplementedError

    def task_needs(self) -> frozenset[str]:
        """Outputs that :meth:`task_loss` reads."""
        raise NotImplementedError

    # --- compressing and exporting (with torch) ---

    def prunable(self, model: torch.nn.Module) -> list[Prunable]:
        """What structured pruning may narrow."""
        raise NotImplementedError

    def graphs(self, model: torch.nn.Module) -> list[Graph]:
        """The graphs that the model is exported as."""
        raise NotImplementedError

    # --- answering (numpy alone) ---

    def processor(self, folder: Path) -> Processor:
        """The preprocessing of a model folder or package."""
        raise NotImplementedError

    def package_files(self, folder: Path) -> list[str]:
        """Files of a model folder that a package needs to preprocess and answer."""
        raise NotImplementedError

    def answer(self, run: Run, request: str, feeds: Feeds) -> NDArray[np.float32]:
        """Answer a request for encoded examples: one row per example."""
        raise NotImplementedError


AnyFamily = Annotated[Family, Slot("families")]
