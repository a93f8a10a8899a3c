"""Whisper: speech to text, an encoder over log-mel spectrograms and a decoder that writes tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from numpy.typing import NDArray
from pydantic import Field

from mmcompress.component import JSON
from mmcompress.errors import UsageError
from mmcompress.families import Family, Feeds, FromTeacher, Graph, Prunable, Request, Run
from mmcompress.families._images import read_object
from mmcompress.families._students import cuts_of, write_student
from mmcompress.families._transformers import load_model, save_model, write_model
from mmcompress.families._whisper_model import ARCHITECTURE, PARTS, PROCESSING_FILES, TOWERS
from mmcompress.families._whisper_sounds import WhisperProcessor, transcribe
from mmcompress.families._whisper_text import GENERATION, Task, completed_generation, read_transcript_settings
from mmcompress.store import write_json

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mmcompress.losses import Outputs

TIMED_TOKENS = 32
_WHAT = {
    "encoder": ("hidden_states", "attentions", "mask"),
    "decoder": ("logits", "hidden_states", "attentions", "mask"),
}


class Whisper(Family):
    """A model that writes down what is said, as ``WhisperForConditionalGeneration``.

    A sound that is longer than what the model hears at a time (30 s in published checkpoints) is split at quiet places;
    each chunk is transcribed by itself, and the transcripts are joined. Time stamps are not written.
    """

    processing_files: ClassVar[tuple[str, ...]] = PROCESSING_FILES

    language: str | None = None
    """The language that is spoken, by its code (``en``). Where none is given, a checkpoint of many languages tells it by
    itself, chunk by chunk; training has to name it. English-only checkpoints take none."""
    task: Task = "transcribe"
    """``translate`` writes English, whatever is spoken."""
    beams: int = Field(1, ge=1, le=32)
    """1 is greedy search."""
    max_tokens: int | None = Field(None, ge=1)
    """Most tokens per chunk; as many as the model has places for where none are given."""

    @property
    def requests(self) -> tuple[Request, ...]:
        """Transcripts of sounds."""
        graphs = ("encoder_model", "decoder_model")
        return (Request("transcribe", ("audio",), graphs, answers="tokens", length=TIMED_TOKENS),)

    @property
    def columns(self) -> frozenset[str]:
        """Sounds with texts."""
        return frozenset({"audio", "texts"})

    @property
    def cuts(self) -> frozenset[str]:
        """Layers and feed-forward width of encoder and decoder. Decoders bear fewer layers, encoders do not."""
        return cuts_of(TOWERS)

    # --- model folders ---

    def write(self, folder: Path, seed: int) -> None:
        """Write the checkpoint as a model folder; one without a ``generation_config.json`` gets what its config says.

        Raises:
            InputError: no weights, weights missing or unexpected, pickled weights, another kind of model, settings for
                sounds, a tokenizer, a language or a number of tokens that do not fit the model.
        """
        write_model(self, ARCHITECTURE, folder, seed)
        if not (folder / GENERATION).is_file():
            write_json(folder / GENERATION, completed_generation(read_object(folder / "config.json")))
        self.processor(folder)

    def load(self, folder: Path, *, attention: str = "sdpa") -> torch.nn.Module:
        """The ``WhisperForConditionalGeneration`` of a model folder, in FP32 and evaluation mode.

        Raises:
            InputError: weights that do not fit config.json and structure.json.
        """
        model: torch.nn.Module = load_model(folder, ARCHITECTURE, attention)
        return model

    def save(self, model: torch.nn.Module, source: Path, folder: Path) -> None:
        """Write a model that came from ``source``: its files, the weights in FP32, what pruning changed."""
        save_model(model, source, folder, ARCHITECTURE)

    def student(self, teacher: Path, cut: FromTeacher, folder: Path, seed: int) -> None:
        """Cut a student from an unpruned teacher; Distil-Whisper keeps the encoder and two decoder layers, the first
        and the last (arXiv:2311.00430, section 4).

        Raises:
            UsageError: a cut that the teacher does not allow, with what it allows.
        """
        write_student(teacher, cut, folder, seed, ARCHITECTURE, TOWERS)

    # --- training ---

    def outputs(self, model: torch.nn.Module, batch: Mapping[str, Tensor], want: frozenset[str]) -> Outputs:
        """Forward with the tokens of the text. ``hidden_states`` are those after each layer.

        Raises:
            UsageError: an output that there is none of, or attention maps of a model that was loaded with SDPA.
            InputError: a sound that is longer than a chunk.
        """
        from mmcompress.families._whisper_model import outputs

        unknown = sorted(want - self.provides())
        if unknown:
            raise UsageError(f"whisper gives no {', '.join(unknown)}\n  it gives: {', '.join(sorted(self.provides()))}")
        return outputs(model, batch, want)

    def provides(self) -> frozenset[str]:
        """Outputs of both parts; attention maps need ``attention: eager``. The prompt counts in no mask."""
        return frozenset(f"{part}.{what}" for part in PARTS for what in _WHAT[part])

    def task_loss(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> Tensor:
        """Cross entropy of the next token, mean over the tokens after the prompt, the end token among them."""
        from mmcompress.families._decoder_modules import token_loss

        return token_loss(outputs["decoder.logits"], batch["labels"])

    def task_count(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Tokens that count."""
        return (batch["labels"] >= 0).sum()

    def task_needs(self) -> frozenset[str]:
        """The decoder's logits."""
        return frozenset({"decoder.logits"})

    def default_losses(self) -> tuple[JSON, ...]:
        """Distil-Whisper's terms: 0.8 of the divergence per token, and the cross entropy (arXiv:2311.00430, equation 8).

        The divergence is the other way round than there: of two directions and four temperatures it did best on spoken
        digits (``benchmarks/distillation.py``).
        """
        divergence = {"direction": "reverse", "temperature": 1.0, "weight": 0.8}
        return ({"logits_kl": {"output": "decoder.logits", "mask": "decoder.mask", **divergence}}, "task")

    # --- compressing and exporting ---

    def prunable(self, model: torch.nn.Module) -> list[Prunable]:
        """Heads and feed-forward units of every layer, with a budget for encoder and decoder each."""
        from mmcompress.families._whisper_model import prunable

        return prunable(model)

    def graphs(self, model: torch.nn.Module) -> list[Graph]:
        """``encoder_model`` with the cross keys and values, and ``decoder_model``, one step with its cache."""
        from mmcompress.families._whisper_model import graphs

        return graphs(model)

    def traced(self, model: torch.nn.Module) -> list[Graph]:
        """Encoder and decoder without a cache."""
        from mmcompress.families._whisper_model import traced

        return traced(model)

    # --- answering ---

    def processor(self, folder: Path) -> WhisperProcessor:
        """The preprocessing of a model folder or package.

        Raises:
            InputError: files that are missing, malformed or not supported, or that do not fit the fields.
        """
        settings = read_transcript_settings(folder, self.language, self.task, self.max_tokens)
        return WhisperProcessor(folder, settings)

    def package_files(self, folder: Path) -> list[str]:
        """Configuration, tokenizer and settings for sounds, as far as the folder has them."""
        return [name for name in ("config.json", *PROCESSING_FILES) if (folder / name).is_file()]

    def answer(self, run: Run, request: str, feeds: Feeds, length: int | None = None) -> NDArray[Any]:
        """Tokens of the transcripts, int32 [n, s]."""
        if request != "transcribe":
            raise UsageError(f"whisper answers no {request!r}; it answers: transcribe")
        return transcribe(run, feeds, self.beams, length)
