"""CLAP of transformers: sounds and texts in one space."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from mmcompress.component import JSON
from mmcompress.errors import UsageError
from mmcompress.families import Family, Feeds, FromTeacher, Graph, Prunable, Request, Run, losses_of_embeddings
from mmcompress.families._clap_processing import ClapProcessor
from mmcompress.families._class_table import (
    SCORES,
    ClassTable,
    hold_classes,
    with_classes,
    without_usual,
)
from mmcompress.families._images import PREPROCESSOR_FILES
from mmcompress.families._texts import TOKENIZER_FILES

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mmcompress.losses import Outputs

_FILES = (*PREPROCESSOR_FILES, *TOKENIZER_FILES)
_GRAPHS = {
    "embed_audio": ("audio_model", "audio_embeds"),
    "embed_text": ("text_model", "text_embeds"),
    "classify": ("audio_model", SCORES),
}
_INPUTS = {"audio_model": ("input_features", "is_longer"), "text_model": ("input_ids", "attention_mask")}
_PAIR = ("audio", "text")


class Clap(Family):
    """A model that embeds sounds and texts in one space: ``ClapModel``, fused or not.

    Of a sound that is longer than the model hears the middle is taken, where transformers takes a part by chance.
    """

    processing_files: ClassVar[tuple[str, ...]] = _FILES

    classes: ClassTable | None = None
    """What packages choose from: ``{names: [...], templates: [...]}``. Their texts are encoded once, at export; packages
    have no text tower then, and answer no other texts."""

    def identity(self) -> JSON:
        """The fields; without classes as it was before there were any, so that finished models are found."""
        return without_usual(super().identity(), classes=None)

    def as_trained(self) -> Clap:
        """Without the classes, which packages alone hold."""
        return self.model_copy(update={"classes": None})

    @property
    def requests(self) -> tuple[Request, ...]:
        """Embeddings of sounds and of texts; with :attr:`classes` their scores in place of texts."""
        audio = Request("embed_audio", ("audio",), ("audio_model",))
        if self.classes is not None:
            return (self.classes.request("audio", "audio_model"), audio)
        return (audio, Request("embed_text", ("text",), ("text_model",)))

    @property
    def left_out(self) -> Mapping[str, str]:
        """Other texts, where the classes are fixed."""
        return {} if self.classes is None else self.classes.left_out()

    @property
    def columns(self) -> frozenset[str]:
        """Sounds with texts."""
        return frozenset({"audio", "texts"})

    @property
    def cuts(self) -> frozenset[str]:
        """Layers of the sound tower's deepest stage (in pairs), layers and feed-forward width of the text tower."""
        return frozenset({"audio_layers", "text_layers", "text_feed_forward"})

    # --- model folders ---

    def write(self, folder: Path, seed: int) -> None:
        """Write the checkpoint as a ``ClapModel`` folder.

        Raises:
            InputError: no weights, weights missing or unexpected, pickled weights, another kind of model, a tokenizer or
                sound settings that do not fit the model.
        """
        from mmcompress.families._clap_model import ARCHITECTURE
        from mmcompress.families._transformers import write_model

        write_model(self, ARCHITECTURE, folder, seed)
        self.processor(folder)

    def load(self, folder: Path, *, attention: str = "sdpa") -> torch.nn.Module:
        """The ``ClapModel`` of a model folder, in FP32 and evaluation mode.

        Raises:
            InputError: weights that do not fit config.json and structure.json; an unknown kind of attention; a class
                whose text is longer than the model takes.
        """
        from mmcompress.families._clap_model import ARCHITECTURE
        from mmcompress.families._clap_processing import read_clap_settings
        from mmcompress.families._transformers import load_model

        model: torch.nn.Module = load_model(folder, ARCHITECTURE, attention)
        model.sound_settings = read_clap_settings(folder)  # type: ignore[assignment]
        if self.classes is not None:
            hold_classes(model, self.classes, self.processor(folder).texts, folder)
        return model

    def save(self, model: torch.nn.Module, source: Path, folder: Path) -> None:
        """Write a model that came from ``source``: its files, the weights in FP32, what pruning changed."""
        from mmcompress.families._clap_model import ARCHITECTURE, forget_resolutions
        from mmcompress.families._transformers import save_model

        forget_resolutions(model)
        save_model(model, source, folder, ARCHITECTURE)

    def student(self, teacher: Path, cut: FromTeacher, folder: Path, seed: int) -> None:
        """Cut a student from an unpruned teacher; it opens with transformers' ``from_pretrained``.

        Raises:
            UsageError: a cut that the teacher does not allow, with what it allows.
        """
        from mmcompress.families._clap_model import ARCHITECTURE, TEXT, audio_tower, deepest_stage, paired_cut
        from mmcompress.families._images import read_object
        from mmcompress.families._students import write_student

        config = read_object(teacher / "config.json")
        depths = list(config["audio_config"]["depths"])
        cut = paired_cut(cut, depths[deepest_stage(depths)])
        write_student(teacher, cut, folder, seed, ARCHITECTURE, (audio_tower(config), TEXT))

    # --- training ---

    def outputs(self, model: torch.nn.Module, batch: Mapping[str, Tensor], want: frozenset[str]) -> Outputs:
        """Forward; a tower of which nothing is wanted is not run.

        Raises:
            UsageError: an output that there is none of.
        """
        from mmcompress.families._clap_model import outputs

        unknown = sorted(want - self.provides())
        if unknown:
            raise UsageError(f"clap gives no {', '.join(unknown)}\n  it gives: {', '.join(sorted(self.provides()))}")
        return outputs(model, batch, want)

    def provides(self) -> frozenset[str]:
        """Both embeddings and their scales; hidden states and mask of the texts."""
        from mmcompress.families._clap_model import PROVIDES

        return PROVIDES

    def task_loss(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> Tensor:
        """Symmetric cross entropy; texts that are equal token by token are positives of each other's sounds."""
        from mmcompress.families._clap_model import task_loss

        return task_loss(outputs, batch)

    def columns_for(self, want: frozenset[str]) -> frozenset[str]:
        """Sounds alone, or texts alone, where nothing of the other tower is read."""
        heard, read = (any(name.startswith(f"{tower}.") for name in want) for tower in _PAIR)
        return self.columns if heard == read else frozenset({"audio"} if heard else {"texts"})

    def task_needs(self) -> frozenset[str]:
        """Both embeddings and both scales."""
        return frozenset({"audio.embeds", "text.embeds", "fusion.logit_scale", "fusion.logit_scale_text"})

    def default_losses(self) -> tuple[JSON, ...]:
        """Those for embeddings, of sounds and texts."""
        return losses_of_embeddings(*_PAIR)

    # --- compressing and exporting ---

    def prunable(self, model: torch.nn.Module) -> list[Prunable]:
        """Feed-forward units of both towers and heads of the text tower, with a budget per tower."""
        from mmcompress.families._clap_model import prunable

        return prunable(model)

    def graphs(self, model: torch.nn.Module) -> list[Graph]:
        """``audio_model`` and ``text_model``, both with normalised embeddings.

        With :attr:`classes` ``audio_model`` alone, which has their scores too.
        """
        audio, text = self.traced(model)
        if self.classes is None:
            return [audio, text]
        return [with_classes(model, audio, text, len(self.classes.names))]

    def traced(self, model: torch.nn.Module) -> list[Graph]:
        """Both towers: pruning narrows the text tower too, whose table the package gets."""
        from mmcompress.families._clap_model import graphs

        return graphs(model)

    # --- answering ---

    def processor(self, folder: Path) -> ClapProcessor:
        """The preprocessing of a model folder or package.

        Raises:
            InputError: configuration files that are missing, malformed or not supported.
        """
        return ClapProcessor(folder, self.classes)

    def package_files(self, folder: Path) -> list[str]:
        """Configuration, tokenizer (where texts are taken) and sound settings, as far as the folder has them."""
        files = _FILES if self.classes is None else PREPROCESSOR_FILES
        return [name for name in ("config.json", *files) if (folder / name).is_file()]

    def answer(self, run: Run, request: str, feeds: Feeds, length: int | None = None) -> NDArray[np.float32]:
        """L2-normalised embeddings [n, d] of the encoded sounds or texts, or cosines with the classes [n, c]."""
        known = [item.name for item in self.requests]
        if request not in known:
            raise UsageError(f"clap answers no {request!r}; it answers: {', '.join(known)}")
        graph, output = _GRAPHS[request]
        inputs = {name: feeds[name] for name in _INPUTS[graph] if name in feeds}
        return np.asarray(run(graph, inputs)[output], dtype=np.float32)
