"""A torch module of one's own, from an installed package.

A recipe and a checkpoint stay data: they name an entry point of the group ``mmcompress.models``, which the package
declares::

    [project.entry-points."mmcompress.models"]
    my_model = "my_package.models:MyModel"

It is a class or a function that takes the whole config.json (see :mod:`mmcompress.families._custom_config`) as a dict and
gives a ``torch.nn.Module``. The module's ``forward`` takes tensors by keyword and returns a dict of tensors:

=================== ================================ ====================================================================
input               tensor                           meaning
=================== ================================ ====================================================================
any                 ``<name>_values``                picture float32 [b, 3, h, w]; film [b, f, 3, h, w]; text int64 [b, s];
                                                     sound and series float32 [b, t, c]; table and features [b, c]
text, film, series, ``<name>_length``                int64 [b]: how many of the steps count
sound
=================== ================================ ====================================================================

=================== ================================ ====================================================================
task                tensor                           meaning
=================== ================================ ====================================================================
``classify``        ``logits``                       [b, c]; with ``several`` above 0 where a class holds
``predict_number``  ``number``                       [b] or [b, 1], less ``mean`` and by ``std`` of the task
``embed``           ``<name>_embeds``                [b, d] of the one input that is given; both inputs are given apart
``embed``           ``logit_scale``                  optional, []: what similarities are multiplied with, exponentiated
=================== ================================ ====================================================================

Weights are ``model.safetensors`` with the module's own names. Pruning narrows the hidden widths between linear layers
that it finds. A package needs none of it: graphs and config.json are enough to answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from mmcompress.component import JSON
from mmcompress.errors import UsageError
from mmcompress.families import Family, Feeds, FromTeacher, Graph, Prunable, Request, Run, losses_of_embeddings
from mmcompress.families._custom_config import EMBEDDED, Classify, CustomConfig, Embed, parse_config
from mmcompress.families._custom_processor import CustomProcessor
from mmcompress.families._images import read_object
from mmcompress.families._texts import TOKENIZER_FILES

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mmcompress.families._custom_modules import CustomModel
    from mmcompress.losses import Outputs

_GRAPH = "custom_model"


class Custom(Family):
    """A user's own module from an installed package, with a config.json and safetensors."""

    processing_files: ClassVar[tuple[str, ...]] = TOKENIZER_FILES

    @property
    def described(self) -> CustomConfig:
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
        """``classify``, ``predict_number``, or ``embed_image``, ``embed_text`` and ``embed_audio`` by the inputs."""
        config = self.described
        if isinstance(config.task, Embed):
            return tuple(
                Request(EMBEDDED[item.kind][0], (item.value,), (f"{EMBEDDED[item.kind][1]}_model",))
                for item in config.inputs
            )
        answers: Any = "scores" if isinstance(config.task, Classify) else "numbers"
        return (Request(config.task.kind, tuple(item.value for item in config.inputs), (_GRAPH,), answers=answers),)

    @property
    def columns(self) -> frozenset[str]:
        """The inputs, and what shall be answered: ``label``, ``labels`` or ``number``."""
        config = self.described
        return frozenset({*(item.name for item in config.inputs), *([config.target] if config.target else [])})

    def identity(self) -> JSON:
        """The fields by digest, the installed modules with their versions, a tokenizer beside a ``config`` file."""
        from mmcompress.families._custom_checkpoints import installed_identity

        return {**super().identity(), "installed": installed_identity()}

    # --- model folders ---

    def write(self, folder: Path, seed: int) -> None:
        """Write the checkpoint, or with ``config`` the module with random weights.

        Raises:
            InputError: mistakes in the configuration, a module that is not installed, weights missing or unexpected,
                pickled weights, another kind of model, a text without a tokenizer.
        """
        from mmcompress.families._custom_checkpoints import write_checkpoint

        write_checkpoint(self, folder, seed)

    def load(self, folder: Path, *, attention: str = "sdpa") -> torch.nn.Module:
        """The module of a model folder, in FP32 and evaluation mode; its attention is its own affair.

        Raises:
            InputError: it is not installed, or the weights do not fit it.
        """
        from mmcompress.families._custom_checkpoints import load_model

        return load_model(folder)

    def save(self, model: torch.nn.Module, source: Path, folder: Path) -> None:
        """Write a model that came from ``source``: its files, the weights in FP32, what pruning changed."""
        from mmcompress.families._custom_checkpoints import save_model

        save_model(cast("CustomModel", model), source, folder)

    def student(self, teacher: Path, cut: FromTeacher, folder: Path, seed: int) -> None:
        """A student of the teacher's shape: with its weights, or with random ones.

        Raises:
            UsageError: any cut, for nothing is known of the module's layers.
        """
        from mmcompress.families._custom_checkpoints import write_student

        write_student(teacher, cut, folder, seed)

    # --- training ---

    def outputs(self, model: torch.nn.Module, batch: Mapping[str, Tensor], want: frozenset[str]) -> Outputs:
        """Forward; of an embedding model for the inputs whose embeddings are wanted.

        Raises:
            UsageError: an output that there is none of.
            StageError: the module gives something else than its task asks for.
        """
        from mmcompress.families._custom_model import outputs, provides

        known = provides(cast("CustomModel", model).settings)
        unknown = sorted(want - known)
        if unknown:
            raise UsageError(f"custom gives no {', '.join(unknown)}\n  it gives: {', '.join(sorted(known))}")
        return outputs(cast("CustomModel", model), batch, want)

    def provides(self) -> frozenset[str]:
        """``fusion.logits`` (and ``fusion.scale`` of numbers), or embeddings by part with ``fusion.logit_scale``."""
        from mmcompress.families._custom_model import provides

        return provides(self.described)

    def task_loss(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> Tensor:
        """Cross entropy, a squared error or a contrastive loss: see :func:`mmcompress.families._custom_model.task_loss`."""
        from mmcompress.families._custom_model import task_loss

        return task_loss(self.described, outputs, batch)

    def task_needs(self) -> frozenset[str]:
        """Everything."""
        return self.provides()

    def default_losses(self) -> tuple[JSON, ...]:
        """The teacher's logits beside the task; of embeddings those for embeddings."""
        task = self.described.task
        if isinstance(task, Embed):
            # Losses call texts the second of a pair.
            first, second = sorted((EMBEDDED[item.kind][1] for item in self.described.inputs), key="text".__eq__)
            return losses_of_embeddings(first, second)
        if isinstance(task, Classify):
            return ({"logits_kl": {"outcomes": "independent"} if task.several else {}}, "task")
        return ({"logits_mse": {"scale": "fusion.scale"}}, "task")

    # --- compressing and exporting ---

    def prunable(self, model: torch.nn.Module) -> list[Prunable]:
        """Hidden widths between linear layers, as the traced module shows them; one budget per graph.

        Raises:
            StageError: the module cannot be traced.
        """
        from mmcompress.families._custom_model import prunable

        return prunable(cast("CustomModel", model))

    def graphs(self, model: torch.nn.Module) -> list[Graph]:
        """``custom_model``, or a graph for each input that is embedded."""
        from mmcompress.families._custom_model import graphs

        return graphs(cast("CustomModel", model))

    # --- answering ---

    def processor(self, folder: Path) -> CustomProcessor:
        """The preprocessing of a model folder or package.

        Raises:
            InputError: a configuration or tokenizer that is missing or malformed.
        """
        return CustomProcessor(folder)

    def package_files(self, folder: Path) -> list[str]:
        """Configuration and tokenizer, as far as the folder has them."""
        return [name for name in ("config.json", *TOKENIZER_FILES) if (folder / name).is_file()]

    def answer(self, run: Run, request: str, feeds: Feeds, length: int | None = None) -> NDArray[Any]:
        """Scores [n, c], numbers [n, 1], or L2-normalised embeddings [n, d].

        Raises:
            UsageError: a request that the task has not.
        """
        known = {item.name: item for item in self.requests}
        if request not in known:
            raise UsageError(f"this model answers no {request!r}; it answers: {', '.join(known)}")
        (graph,) = known[request].graphs
        output = {"scores": "logits", "numbers": "number", "embeds": "embeds"}[known[request].answers]
        names = {item.name for item in self.described.inputs if item.value in known[request].inputs}
        wanted = {f"{name}_{part}" for name in names for part in ("values", "length")}
        inputs = {name: array for name, array in feeds.items() if name in wanted}
        return np.asarray(run(graph, inputs)[output], dtype=np.float32)


@lru_cache(maxsize=32)
def _described(file: Path, changed: int) -> CustomConfig:
    return parse_config(read_object(file), str(file))
