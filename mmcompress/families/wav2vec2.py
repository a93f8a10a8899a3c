"""Wav2Vec2 and HuBERT of transformers: transcripts by connectionist temporal classification, and classes of sounds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from numpy.typing import NDArray
from pydantic import Field, model_validator

from mmcompress.component import JSON
from mmcompress.errors import UsageError
from mmcompress.families import Family, Feeds, FromTeacher, Graph, Prunable, Request, Run
from mmcompress.families._characters import BLANK, CHARACTER_FILES, DELIMITER, collapse
from mmcompress.families._images import PREPROCESSOR_FILES
from mmcompress.families._wav2vec2_processing import SpeechProcessor, Task

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mmcompress.losses import Outputs

_GRAPH = "encoder_model"
_FILES = (*PREPROCESSOR_FILES, *CHARACTER_FILES)


class Wav2vec2(Family):
    """A model from samples to characters, a frame at a time, or to a class: Wav2Vec2 and HuBERT.

    SpecAugment and LayerDrop are off: a training is a function of its seed.
    """

    processing_files: ClassVar[tuple[str, ...]] = _FILES

    task: Task = "transcribe"
    """``transcribe`` (``Wav2Vec2ForCTC``, ``HubertForCTC``) or ``classify`` (``...ForSequenceClassification``)."""
    max_seconds: float = Field(30.0, gt=0, le=600)
    """Longest sound; longer ones are refused. Training keeps 64 kB per second of it for every example, at 16 kHz."""
    new_head: tuple[str, ...] | None = None
    """Gives the checkpoint a new head that starts at random: names of classes, or characters with ``<pad>`` and ``|``
    (the blank and what stands between words)."""

    @model_validator(mode="after")
    def _a_whole_head(self) -> Wav2vec2:
        names = self.new_head
        if names is None:
            return self
        if len(names) < 2 or len(set(names)) < len(names):
            raise ValueError("new_head: expected two or more different names")
        if self.task == "transcribe" and not {BLANK, DELIMITER} <= set(names):
            raise ValueError(f"new_head: expected {BLANK!r} (the blank) and {DELIMITER!r} (between words) among them")
        return self

    @property
    def requests(self) -> tuple[Request, ...]:
        """A transcript, or a class."""
        if self.task == "classify":
            return (Request("classify", ("audio",), (_GRAPH,), answers="scores"),)
        return (Request("transcribe", ("audio",), (_GRAPH,), answers="tokens"),)

    @property
    def columns(self) -> frozenset[str]:
        """Sounds with what is said, or with their class."""
        return frozenset({"audio", "label" if self.task == "classify" else "texts"})

    @property
    def cuts(self) -> frozenset[str]:
        """Layers and feed-forward width of the encoder."""
        return frozenset({"encoder_layers", "encoder_feed_forward"})

    # --- model folders ---

    def write(self, folder: Path, seed: int) -> None:
        """Write the checkpoint as a folder of the task's class; names of weights of older versions are known.

        Raises:
            InputError: no weights, weights missing or unexpected, pickled weights, another kind of model, a vocabulary or
                sound settings that do not fit the model, adapters.
        """
        from mmcompress.families._wav2vec2_checkpoints import write_checkpoint

        write_checkpoint(self, self.task, self.new_head, folder, seed)

    def load(self, folder: Path, *, attention: str = "sdpa") -> torch.nn.Module:
        """The model of a model folder, in FP32 and evaluation mode.

        Raises:
            InputError: weights that do not fit config.json and structure.json; an unknown kind of attention.
        """
        from mmcompress.families._wav2vec2_checkpoints import load_model

        model: torch.nn.Module = load_model(folder, self.task, attention)
        return model

    def save(self, model: torch.nn.Module, source: Path, folder: Path) -> None:
        """Write a model that came from ``source``: its files, the weights in FP32, what pruning changed."""
        from mmcompress.families._transformers import save_model
        from mmcompress.families._wav2vec2_checkpoints import ARCHITECTURES

        save_model(model, source, folder, ARCHITECTURES[self.task])

    def student(self, teacher: Path, cut: FromTeacher, folder: Path, seed: int) -> None:
        """Cut a student from an unpruned teacher: fewer layers, narrower feed-forward blocks.

        Raises:
            UsageError: a cut that the teacher does not allow, with what it allows.
        """
        from mmcompress.families._wav2vec2_checkpoints import write_student

        write_student(teacher, cut, folder, seed, self.task)

    # --- training ---

    def outputs(self, model: torch.nn.Module, batch: Mapping[str, Tensor], want: frozenset[str]) -> Outputs:
        """Forward: logits per frame [b, t, c] with the mask of frames [b, t], or per example [b, c].

        Raises:
            UsageError: an output that there is none of, or attention maps of a model that was loaded with SDPA.
        """
        from mmcompress.families._wav2vec2_model import outputs

        unknown = sorted(want - self.provides())
        if unknown:
            raise UsageError(
                f"wav2vec2 gives no {', '.join(unknown)}\n  it gives: {', '.join(sorted(self.provides()))}"
            )
        return outputs(model, batch, want)

    def provides(self) -> frozenset[str]:
        """Logits, hidden states, attention maps (with ``attention: eager``) and the mask of frames."""
        from mmcompress.families._wav2vec2_model import PROVIDES

        return PROVIDES

    def task_loss(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> Tensor:
        """Connectionist temporal classification, or cross entropy.

        Raises:
            InputError: a text that needs more frames than its sound has.
        """
        from mmcompress.families._wav2vec2_model import task_loss

        return task_loss(outputs, batch)

    def task_count(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Examples."""
        return batch["labels"].new_tensor(len(batch["labels"]))

    def task_needs(self) -> frozenset[str]:
        """The logits, and the mask where they are per frame."""
        return frozenset({"encoder.logits"} if self.task == "classify" else {"encoder.logits", "encoder.mask"})

    def default_losses(self) -> tuple[JSON, ...]:
        """The teacher's probabilities, frame by frame where there are frames, and the task's own loss."""
        masked = {} if self.task == "classify" else {"mask": "encoder.mask"}
        return ({"logits_kl": {"output": "encoder.logits", **masked}}, "task")

    # --- compressing and exporting ---

    def prunable(self, model: torch.nn.Module) -> list[Prunable]:
        """Heads and feed-forward units of every layer."""
        from mmcompress.families._wav2vec2_model import prunable

        return prunable(model)

    def graphs(self, model: torch.nn.Module) -> list[Graph]:
        """``encoder_model``, for sounds of any length up to ``max_seconds``."""
        from mmcompress.families._wav2vec2_model import graphs

        return graphs(model, self.max_seconds)

    # --- answering ---

    def processor(self, folder: Path) -> SpeechProcessor:
        """The preprocessing of a model folder or package.

        Raises:
            InputError: configuration files that are missing, malformed or not supported.
        """
        return SpeechProcessor(folder, self.task, self.max_seconds)

    def package_files(self, folder: Path) -> list[str]:
        """Configuration, sound settings and vocabulary, as far as the folder has them."""
        return [name for name in ("config.json", *_FILES) if (folder / name).is_file()]

    def answer(self, run: Run, request: str, feeds: Feeds, length: int | None = None) -> NDArray[Any]:
        """Characters int32 [n, s], -1 after the last; or scores of classes float32 [n, c]."""
        (known,) = self.requests
        if request != known.name:
            raise UsageError(f"wav2vec2 answers no {request!r} with task: {self.task}; it answers: {known.name}")
        given = run(_GRAPH, {name: feeds[name] for name in ("input_values", "sample_counts") if name in feeds})
        if self.task == "classify":
            return given["logits"]
        return collapse(given["logits"], given["frames"], int(feeds["blank"][0]))
