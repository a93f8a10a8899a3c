"""Captioners of transformers: a ``VisionEncoderDecoderModel`` of a picture encoder (ViT, DeiT) and a GPT-2 or BERT decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mmcompress.component import JSON
from mmcompress.errors import InputError, UsageError
from mmcompress.families import Feeds, Graph, Prunable, Request, Run
from mmcompress.families._captioner_model import ARCHITECTURE, TOWERS
from mmcompress.families._generate import Decoding, generate
from mmcompress.families._images import PREPROCESSOR_FILES, ImageEncoder, read_image_settings, read_object
from mmcompress.families._of_transformers import TransformersFamily
from mmcompress.families._students import Tower
from mmcompress.families._targets import TargetEncoder, TargetSettings
from mmcompress.families._texts import TOKENIZER_FILES, load_tokenizer
from mmcompress.families._transformers import Architecture

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mmcompress.losses import Outputs

FILES = (*PREPROCESSOR_FILES, *TOKENIZER_FILES, "generation_config.json")
FORCED_TOKENS = 16
"""Tokens that every model writes when captions are timed."""


class Captioner(TransformersFamily):
    """Writes a caption of a picture."""

    processing_files: ClassVar[tuple[str, ...]] = FILES

    beams: int = Field(1, ge=1, le=16)
    """1 is greedy search."""
    max_tokens: int = Field(32, ge=2)
    """Of a caption, the end token included; longer ones of the training data are cut there."""
    length_penalty: float = 1.0
    """Beams are compared by the sum of their log probabilities over their length to this power."""

    @property
    def requests(self) -> tuple[Request, ...]:
        """A caption of a picture."""
        return (Request("caption", ("image",), ("encoder_model", "decoder_model"), "tokens", FORCED_TOKENS),)

    @property
    def columns(self) -> frozenset[str]:
        """Pictures with captions."""
        return frozenset({"image", "texts"})

    def architecture(self) -> Architecture:
        """``VisionEncoderDecoderModel``."""
        return ARCHITECTURE

    def towers(self) -> tuple[Tower, ...]:
        """The picture encoder with its feed-forward width, and the decoder."""
        return TOWERS

    # --- training ---

    def outputs(self, model: torch.nn.Module, batch: Mapping[str, Tensor], want: frozenset[str]) -> Outputs:
        """Teacher-forced: the decoder reads the caption so far."""
        from mmcompress.families._captioner_model import outputs

        return outputs(model, batch, want)

    def provides(self) -> frozenset[str]:
        """Logits of the next tokens with their mask, hidden states of both halves."""
        return frozenset({"decoder.logits", "decoder.mask", "encoder.hidden_states", "decoder.hidden_states"})

    def task_loss(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> Tensor:
        """Cross entropy of the next token, mean over the tokens of all captions."""
        from mmcompress.families._decoder_modules import token_loss

        return token_loss(outputs["decoder.logits"], batch["labels"])

    def task_count(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Tokens that count."""
        return (batch["labels"] >= 0).sum()

    def task_needs(self) -> frozenset[str]:
        """The logits."""
        return frozenset({"decoder.logits"})

    def default_losses(self) -> tuple[JSON, ...]:
        """The teacher's distribution of each token, beside the captions themselves."""
        return ({"logits_kl": {"output": "decoder.logits", "mask": "decoder.mask"}}, "task")

    # --- compressing and exporting ---

    def prunable(self, model: torch.nn.Module) -> list[Prunable]:
        """Heads and feed-forward units of the picture encoder and of a BERT decoder; GPT-2 packs its weights otherwise."""
        from mmcompress.families._captioner_model import prunable

        return prunable(model)

    def graphs(self, model: torch.nn.Module) -> list[Graph]:
        """``encoder_model`` (pictures to what the decoder starts from) and ``decoder_model`` (a step with a cache)."""
        from mmcompress.families._captioner_model import graphs

        return graphs(model)

    def traced(self, model: torch.nn.Module) -> list[Graph]:
        """The encoder, and the decoder over whole captions without a cache."""
        from mmcompress.families._captioner_model import traced

        return traced(model)

    # --- answering ---

    def processor(self, folder: Path) -> CaptionerProcessor:
        """The preprocessing of a model folder or package.

        Raises:
            InputError: configuration files that are missing, malformed or do not fit one another.
        """
        return CaptionerProcessor(folder, self)

    def answer(self, run: Run, request: str, feeds: Feeds, length: int | None = None) -> NDArray[Any]:
        """Tokens of captions, int32 [n, s]."""
        if request != "caption":
            raise UsageError(f"captioner answers no {request!r}; it answers: caption")
        state = run("encoder_model", {"pixel_values": feeds["pixel_values"]})
        prompt = feeds["prompt"]
        decoding = Decoding(
            end=tuple(int(token) for token in np.unique(feeds["end"])),
            max_tokens=self.max_tokens,
            beams=self.beams,
            length_penalty=self.length_penalty,
        )
        return generate(run, "decoder_model", state, prompt, decoding, length)


class CaptionerProcessor:
    """Pictures (``image``) and captions (``text``); see :class:`mmcompress.families.Processor`."""

    def __init__(self, folder: Path, family: Captioner) -> None:
        config = read_object(folder / "config.json")
        self.images = ImageEncoder(read_image_settings(folder))
        self.texts = TargetEncoder(load_tokenizer(folder), target_settings(folder, config, family.max_tokens))

    def compact(self, values: Mapping[str, Sequence[Any]]) -> Feeds:
        """``image`` to uint8 [n, h, w, 3], ``text`` to int32 [n, s] with -1 as padding."""
        unknown = sorted(set(values) - {"image", "text"})
        if unknown:
            raise InputError(f"captioner takes the columns image and text, got {', '.join(unknown)}")
        compact: Feeds = {}
        if "image" in values:
            compact["image"] = self.images.compact(values["image"])
        if "text" in values:
            compact["text"] = self.texts.compact(values["text"])
        return compact

    def expand(self, compact: Feeds) -> Feeds:
        """``pixel_values`` float32 [n, 3, h, w] with ``prompt`` and ``end``; ``decoder_input_ids`` and ``labels``."""
        feeds: Feeds = {}
        if "image" in compact:
            count = len(compact["image"])
            feeds["pixel_values"] = self.images.expand(compact["image"])
            feeds["prompt"] = self.texts.prompts(count)
            feeds["end"] = np.full((count, 1), self.texts.settings.end, np.int64)
        if "text" in compact:
            feeds.update(self.texts.expand(compact["text"]))
        return feeds

    def encode(self, values: Mapping[str, Sequence[Any]]) -> Feeds:
        """``expand(compact(values))``."""
        return self.expand(self.compact(values))

    def decode(self, rows: NDArray[Any]) -> list[str]:
        """Tokens [n, s] to captions."""
        return self.texts.decode(rows)


def target_settings(folder: Path, config: Mapping[str, Any], max_tokens: int) -> TargetSettings:
    """How captions become tokens, from the configuration of the checkpoint.

    Raises:
        InputError: no start or end token, or one that the tokenizer or the decoder does not know.
    """
    decoder = config.get("decoder") or {}
    generation = folder / "generation_config.json"
    sources = [config, *([read_object(generation)] if generation.is_file() else []), decoder]

    def token(*names: str) -> int:
        for source in sources:
            for name in names:
                if isinstance(source.get(name), int):
                    return int(source[name])
        raise InputError(f"{folder / 'config.json'}: no {names[0]}; captions need one")

    start, end = token("decoder_start_token_id", "bos_token_id"), token("eos_token_id", "sep_token_id")
    size = int(decoder.get("vocab_size", 0))
    highest = max(load_tokenizer(folder).get_vocab(with_added_tokens=True).values(), default=-1)
    if max(highest, start, end) >= size:
        raise InputError(
            f"{folder / 'tokenizer.json'}: does not fit the model: token ids up to {max(highest, start, end)},"
            f" the decoder knows {size}"
        )
    positions = int(decoder.get("n_positions") or decoder.get("max_position_embeddings") or max_tokens + 1)
    return TargetSettings(prompt=(start,), end=end, max_tokens=min(max_tokens, positions - 1))
