"""BLIP of transformers: captions, answers to questions, and whether a text fits a picture.

Published checkpoints are of one task each (``Salesforce/blip-image-captioning-base``, ``blip-vqa-base``,
``blip-itm-base-coco``), and the model folder holds transformers' class of that task.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mmcompress.component import JSON
from mmcompress.errors import UsageError
from mmcompress.families import Feeds, Graph, Prunable, Request, Run
from mmcompress.families._blip_model import architecture, towers
from mmcompress.families._blip_processing import FILES, BlipProcessor
from mmcompress.families._generate import Decoding, generate
from mmcompress.families._images import read_object
from mmcompress.families._of_transformers import TransformersFamily
from mmcompress.families._students import Tower
from mmcompress.families._transformers import Architecture

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mmcompress.losses import Outputs

Task = Literal["caption", "vqa", "match", "retrieval"]
_WRITES = ("encoder_model", "decoder_model")
_CAPTION_TOKENS, _ANSWER_TOKENS = 16, 4
"""Tokens that every model writes when it is timed."""


class Blip(TransformersFamily):
    """A picture tower, and text towers that look at what it sees (Li et al., arXiv:2201.12086)."""

    processing_files: ClassVar[tuple[str, ...]] = FILES

    task: Task = "caption"
    """``caption``: describes; ``vqa``: answers questions in words; ``match``: tells whether a text fits, by the matching
    head; ``retrieval``: embeds pictures and texts in one space, by the contrastive heads."""
    beams: int = Field(1, ge=1, le=16)
    """1 is greedy search."""
    max_tokens: int = Field(32, ge=2)
    """Of a caption or an answer, the end token included; longer ones of the training data are cut there."""
    length_penalty: float = 1.0
    """Beams are compared by the sum of their log probabilities over their length to this power."""
    temperature: float = Field(0.07, gt=0)
    """Of the contrastive heads: checkpoints for retrieval do not hold the one they were trained with."""

    @property
    def requests(self) -> tuple[Request, ...]:
        """``caption``, ``answer``, ``match``, or ``embed_image`` and ``embed_text``, by the task."""
        if self.task == "caption":
            return (Request("caption", ("image",), _WRITES, "tokens", _CAPTION_TOKENS),)
        if self.task == "vqa":
            return (Request("answer", ("image", "question"), _WRITES, "tokens", _ANSWER_TOKENS),)
        if self.task == "match":
            return (Request("match", ("image", "text"), ("match_model",), "scores"),)
        return (
            Request("embed_image", ("image",), ("vision_model",)),
            Request("embed_text", ("text",), ("text_model",)),
        )

    @property
    def columns(self) -> frozenset[str]:
        """Pictures, with texts, with questions and answers, or with a text and whether it fits, by the task."""
        others = {"vqa": {"question", "answers"}, "match": {"text", "label"}}.get(self.task, {"texts"})
        return frozenset({"image", *others})

    def architecture(self) -> Architecture:
        """Transformers' class of the task."""
        return architecture(self.task)

    def towers(self) -> tuple[Tower, ...]:
        """The picture tower, and the text towers, which share one configuration."""
        return towers(self.task)

    def load(self, folder: Path, *, attention: str = "sdpa") -> torch.nn.Module:
        """The model of a model folder, in FP32 and evaluation mode; texts look at no padding of others.

        Raises:
            InputError: weights that do not fit config.json and structure.json; an unknown kind of attention.
        """
        from mmcompress.families._blip_model import mask_cross_attention

        model = super().load(folder, attention=attention)
        mask_cross_attention(model)
        return model

    # --- training ---

    def outputs(self, model: torch.nn.Module, batch: Mapping[str, Tensor], want: frozenset[str]) -> Outputs:
        """Forward; decoders are teacher-forced. ``vision.hidden_states`` are those after each layer."""
        from mmcompress.families._blip_model import outputs

        return outputs(model, self.task, batch, want, 1.0 / self.temperature)

    def provides(self) -> frozenset[str]:
        """Logits of the next tokens, of the match, or embeddings, by the task; hidden states of the picture tower."""
        if self.task in ("caption", "vqa"):
            return frozenset({"decoder.logits", "decoder.mask", "vision.hidden_states"})
        if self.task == "match":
            return frozenset({"fusion.logits", "vision.hidden_states"})
        return frozenset({"vision.embeds", "text.embeds", "fusion.logit_scale", "vision.hidden_states"})

    def task_loss(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> Tensor:
        """Cross entropy of the next token or of the match; CLIP's contrastive loss for retrieval."""
        from torch.nn.functional import cross_entropy

        if self.task in ("caption", "vqa"):
            from mmcompress.families._decoder_modules import token_loss

            return token_loss(outputs["decoder.logits"], batch["labels"])
        if self.task == "match":
            return cross_entropy(outputs["fusion.logits"], batch["label"])
        from mmcompress.families._clip_model import contrastive_loss

        image, text, scale = (outputs[name] for name in ("vision.embeds", "text.embeds", "fusion.logit_scale"))
        return contrastive_loss(image, text, scale, batch["input_ids"])

    def task_needs(self) -> frozenset[str]:
        """What :meth:`task_loss` reads, by the task."""
        if self.task in ("caption", "vqa"):
            return frozenset({"decoder.logits"})
        if self.task == "match":
            return frozenset({"fusion.logits"})
        return frozenset({"vision.embeds", "text.embeds", "fusion.logit_scale"})

    def default_losses(self) -> tuple[JSON, ...]:
        """The teacher's distribution of each token or of the match, beside the data's own; CLIP-KD's for retrieval."""
        if self.task in ("caption", "vqa"):
            return ({"logits_kl": {"output": "decoder.logits", "mask": "decoder.mask"}}, "task")
        return ("logits_kl", "task") if self.task == "match" else super().default_losses()

    # --- compressing and exporting ---

    def prunable(self, model: torch.nn.Module) -> list[Prunable]:
        """Heads and feed-forward units of the text towers, feed-forward units of the picture tower (its heads are packed)."""
        from mmcompress.families._blip_model import prunable

        return prunable(model, self.task)

    def graphs(self, model: torch.nn.Module) -> list[Graph]:
        """``encoder_model`` and ``decoder_model``, ``match_model``, or ``vision_model`` and ``text_model``, by the task."""
        from mmcompress.families._blip_graphs import graphs

        return graphs(model, self.task)

    def traced(self, model: torch.nn.Module) -> list[Graph]:
        """One graph per tower, decoders over whole texts without a cache."""
        from mmcompress.families._blip_graphs import traced

        return traced(model, self.task)

    # --- answering ---

    def processor(self, folder: Path) -> BlipProcessor:
        """The preprocessing of a model folder or package.

        Raises:
            InputError: configuration files that are missing, malformed or do not fit one another.
        """
        return BlipProcessor(folder, read_object(folder / "config.json"), self.task, self.max_tokens)

    def answer(self, run: Run, request: str, feeds: Feeds, length: int | None = None) -> NDArray[Any]:
        """Tokens int32 [n, s], scores of the classes of a match [n, 2], or L2-normalised embeddings [n, d]."""
        known = [item.name for item in self.requests]
        if request not in known:
            raise UsageError(f"blip for {self.task} answers no {request!r}; it answers: {', '.join(known)}")
        text: Feeds = {name: feeds[name] for name in ("input_ids", "attention_mask") if name in feeds}
        if request == "match":
            logits = run("match_model", {"pixel_values": feeds["pixel_values"], **text})["logits"]
            return np.asarray(logits, dtype=np.float32)
        if request == "embed_text":
            return np.asarray(run("text_model", text)["text_embeds"], dtype=np.float32)
        if request == "embed_image":
            embeds = run("vision_model", {"pixel_values": feeds["pixel_values"]})["image_embeds"]
            return np.asarray(embeds, dtype=np.float32)
        given: Feeds = {"pixel_values": feeds["pixel_values"], **(text if request == "answer" else {})}
        decoding = Decoding(
            end=tuple(int(token) for token in np.unique(feeds["end"])),
            max_tokens=self.max_tokens,
            beams=self.beams,
            length_penalty=self.length_penalty,
        )
        return generate(run, "decoder_model", run("encoder_model", given), feeds["prompt"], decoding, length)
