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
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, model_validator

from mmcompress.component import JSON, Component, RecipePath, Slot, digest_path

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

    It has two halves, so that training can keep what is costly to make and small to keep; ``encode`` is both. What a
    model is asked and what it shall answer are columns alike: training gives both, a request the first alone. Columns
    may be given one at a time. The processor of a family that answers with scores has ``classes``, their names; that
    of one that answers with tokens has ``decode``, tokens [n, s] to n texts. One that may leave out the end of a text has
    ``text_encoders``, by column, whose ``refuse_long(texts)`` raises an InputError for such texts.

    It may have ``masking``, a :class:`Masking` per compact array of tokens: in training words of these are hidden, and
    ``<name>_labels`` holds them, -1 elsewhere. It may have ``notes``, which counts what is to be told of compact arrays
    (answers that are no class). Of a model that is trained with missing inputs it has ``leave_out(compact, draw)``: the
    same with inputs left out, by ``draw(stream)``, a number in [0, 1) per example. A picture that fills a part of its
    uint8 array alone, from the upper left, has that part's sides in ``<name>_size`` [n, 2].
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


AnswerKind = Literal["embeds", "scores", "tokens", "tags", "numbers"]
"""``embeds``: L2-normalised float32 [n, d]. ``scores``: float32 [n, c], the higher the likelier. ``tokens``: int32 [n, s],
-1 after the last. ``tags``: a class per word, int32 [n, w], -1 after the last. ``numbers``: float32 [n, k]."""


@dataclass(frozen=True)
class Masking:
    """How words of a text are hidden in training, for a model that learns to tell them (BERT, arXiv:1810.04805, 3.1)."""

    token: int
    """What stands in place of a hidden word."""
    vocabulary: int
    """Tokens to draw from where a word is replaced by another."""
    special: tuple[int, ...] = ()
    """Tokens that are no words: none of them is hidden."""
    share: float = 0.15
    """How many of the words; one of each text at least."""


@dataclass(frozen=True)
class Request:
    """What a user asks of a package, in the user's words, with fixed work per example."""

    name: str
    inputs: tuple[str, ...]
    """Raw values per example that it takes: a subset of ``image``, ``text``, ``audio``, ``question``, ..."""
    graphs: tuple[str, ...]
    """Graphs that it runs."""
    answers: AnswerKind = "embeds"
    """What a row of its answers is."""
    length: int | None = None
    """For ``tokens``: how many are forced when it is timed, so that the work is the same for all models."""
    optional: tuple[str, ...] = ()
    """Inputs that may be missing (None for an example) where the model was trained for it."""


PADDING = -1
"""Fills rows of tokens and tags after their last."""


def join_rows(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Answers of several calls as one array; rows of whole numbers are filled up with :data:`PADDING`."""
    if parts[0].dtype.kind == "i" and parts[0].ndim == 2:
        width = max(part.shape[1] for part in parts)
        parts = [np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=PADDING) for part in parts]
    return np.concatenate(parts)


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
    variants: tuple[Mapping[str, Tensor], ...] = ()
    """Further inputs that the exported graph is checked with: the shortest and the longest, an empty past, padding."""


class FromTeacher(BaseModel):
    """A student cut from its teacher: fewer layers (evenly spaced, or chosen by index), narrower, with its weights.

    Fields are ``<tower>_layers``, ``<tower>_width`` and ``<tower>_feed_forward`` for the towers of the family (its
    :attr:`Family.cuts`); a tower that is not named is kept as it is.
    """

    model_config = ConfigDict(frozen=True, extra="allow")
    __pydantic_extra__: dict[str, int | tuple[int, ...] | None]

    init: str = "inherit"
    """``inherit`` takes the teacher's weights; ``random`` takes its shapes alone."""

    @model_validator(mode="after")
    def _cuts_alone(self) -> FromTeacher:
        for name, value in (self.model_extra or {}).items():
            if not name.endswith(("_layers", "_width", "_feed_forward")):
                raise ValueError(f"unknown key {name!r}; expected init, <tower>_layers, _width or _feed_forward")
            if isinstance(value, tuple) and not name.endswith("_layers"):
                raise ValueError(f"{name}: expected one whole number")
        return self

    def named(self) -> dict[str, int | tuple[int, ...]]:
        """The cuts that are asked for, by name."""
        return {name: value for name, value in (self.model_extra or {}).items() if value is not None}

    def layers(self, tower: str) -> int | tuple[int, ...] | None:
        """How many layers of a tower, or which; None for all."""
        return self.named().get(f"{tower}_layers")

    def size(self, tower: str, what: Literal["width", "feed_forward"]) -> int | None:
        """The width or the feed-forward width of a tower; None for the teacher's."""
        value = self.named().get(f"{tower}_{what}")
        assert not isinstance(value, tuple)
        return value


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


def losses_of_embeddings(first: str = "vision", second: str = "text") -> tuple[JSON, ...]:
    """CLIP-KD's best three (arXiv:2307.12732) for a pair of parts, as a recipe writes them.

    The weight of ``feature_mse`` did better than a smaller one from random weights and no worse from the teacher's. The
    temperature is not that which ``contrastive_kl`` has alone: its square weighs the term, and beside the other two
    the lower one did as well with the teacher's weights and better from random ones (``benchmarks/distillation.py``).
    """
    pair = [first, second]
    return (
        {"feature_mse": {"weight": 20.0, "outputs": [f"{part}.embeds" for part in pair]}},
        {"icl": {"pair": pair}},
        {"contrastive_kl": {"pair": pair, "temperature": 2.0, "direction": "forward"}},
    )


class Family(Component):
    """A kind of model and, in a recipe, a checkpoint of it: a folder, a hub id, or a config (random weights, by name)."""

    kind: ClassVar[str] = "families"

    processing_files: ClassVar[tuple[str, ...]] = ()
    """Tokenizer and preprocessing files that travel with a model; beside a ``config`` file they shape the model too."""

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

    def identity(self) -> JSON:
        """The fields by digest; a ``config`` file together with the processing files beside it."""
        from mmcompress.families._adapters import base_identity

        identity = super().identity()
        base = base_identity(self)
        if base is not None:
            return {**identity, "base": base}
        if self.config is not None and self.config.is_file():
            folder = self.config.parent
            return {**identity, "beside": {name: digest_path(folder / name) for name in self.processing_files}}
        return identity

    def as_trained(self) -> Family:
        """The family without fields that concern packages alone: when they change, nothing is trained again."""
        return self

    @property
    def requests(self) -> tuple[Request, ...]:
        """What its packages answer; the main request first."""
        raise NotImplementedError

    @property
    def left_out(self) -> Mapping[str, str]:
        """Requests that its packages refuse although others of the family answer them, with the reason."""
        return {}

    @property
    def columns(self) -> frozenset[str]:
        """Values that training examples must have: what the model is asked, and what it shall answer."""
        raise NotImplementedError

    @property
    def cuts(self) -> frozenset[str]:
        """What a student cut from a teacher may change: ``vision_layers``, ``decoder_feed_forward``, ..."""
        return frozenset()

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

    def changing(self) -> frozenset[str]:
        """Outputs of an example that are others in each epoch, and so cannot be stored.

        They depend on the other examples of the batch, or on words that are hidden anew.
        """
        return frozenset()

    def mixing(self) -> frozenset[str]:
        """Outputs of an example that depend on the other examples of its batch: a batch with such ones is never split."""
        return frozenset()

    def task_loss(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> Tensor:
        """The loss that the model was trained with, a scalar."""
        raise NotImplementedError

    def task_needs(self) -> frozenset[str]:
        """Outputs that :meth:`task_loss` reads."""
        raise NotImplementedError

    def task_count(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        """How many things :meth:`task_loss` takes the mean of in a batch, []; None where it is no mean of that kind.

        Where it is one, the loss of a batch adds up from its parts; where examples are compared with each other, it does
        not. None is the answer that is never wrong.
        """
        return None

    def columns_for(self, want: frozenset[str]) -> frozenset[str]:
        """The columns that a training reads whose losses read these outputs: all, unless a part has its own inputs."""
        return self.columns

    def default_losses(self) -> tuple[JSON, ...]:
        """The losses of a distillation that names none, as a recipe writes them; here those for embeddings."""
        return losses_of_embeddings()

    # --- compressing and exporting (with torch) ---

    def prunable(self, model: torch.nn.Module) -> list[Prunable]:
        """What structured pruning may narrow."""
        raise NotImplementedError

    def graphs(self, model: torch.nn.Module) -> list[Graph]:
        """The graphs that the model is exported as."""
        raise NotImplementedError

    def traced(self, model: torch.nn.Module) -> list[Graph]:
        """The graphs that pruning traces and counts; others than :meth:`graphs` where those hold a cache."""
        return self.graphs(model)

    # --- answering (numpy alone) ---

    def processor(self, folder: Path) -> Processor:
        """The preprocessing of a model folder or package."""
        raise NotImplementedError

    def package_files(self, folder: Path) -> list[str]:
        """Files of a model folder that a package needs to preprocess and answer."""
        raise NotImplementedError

    def answer(self, run: Run, request: str, feeds: Feeds, length: int | None = None) -> NDArray[Any]:
        """Answer a request for encoded examples: one row per example, of the request's kind.

        ``length`` forces that many tokens (timing); otherwise a sequence ends where the model ends it.
        """
        raise NotImplementedError


AnyFamily = Annotated[Family, Slot("families")]
