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
from pydantic import BaseModel, ConfigDict, Field, model_validator

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

Task = Literal["caption", "vqa", "match", "retrieval", "pretrained"]
_WRITES = ("encoder_model", "decoder_model")
_CAPTION_TOKENS, _ANSWER_TOKENS = 16, 4
"""Tokens that every model writes when it is timed."""
_EMBEDS = ("vision.embeds", "text.embeds", "fusion.logit_scale")


class Terms(BaseModel):
    """Weights of what a model was pre-trained with (Li et al., arXiv:2201.12086, section 3.2); its task loss is their sum."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    contrastive: float = Field(1.0, ge=0)
    """Of CLIP's contrastive loss of the embeddings."""
    matching: float = Field(1.0, ge=0)
    """Of the cross entropy of the matching head on each picture with its own text and with that of the next example."""


class Blip(TransformersFamily):
    """A picture tower, and text towers that look at what it sees (Li et al., arXiv:2201.12086)."""

    processing_files: ClassVar[tuple[str, ...]] = FILES

    task: Task = "caption"
    """``caption``: describes; ``vqa``: answers questions in words; ``match``: tells whether a text fits, by the matching
    head; ``retrieval``: embeds pictures and texts in one space, by the contrastive heads; ``pretrained``: both of these,
    learned from pairs alone, without labels."""
    terms: Terms | None = None
    """What a ``pretrained`` model learns by; both terms alike where none is given."""
    beams: int = Field(1, ge=1, le=16)
    """1 is greedy search."""
    max_tokens: int = Field(32, ge=2)
    """Of a caption or an answer, the end token included; longer ones of the training data are cut there."""
    length_penalty: float = 1.0
    """Beams are compared by the sum of their log probabilities over their length to this power."""
    temperature: float = Field(0.07, gt=0)
    """Of the contrastive heads: checkpoints for retrieval do not hold the one they were trained with."""

    @model_validator(mode="after")
    def _terms_of_a_pretrained_model(self) -> Blip:
        if self.terms is not None and self.task != "pretrained":
            raise ValueError(f"terms weigh what `task: pretrained` learns by; the task is {self.task}")
        return self

    @property
    def requests(self) -> tuple[Request, ...]:
        """``caption``, ``answer``, or those of ``embed_image``, ``embed_text`` and ``match`` that the task has heads for."""
        if self.task == "caption":
            return (Request("caption", ("image",), _WRITES, "tokens", _CAPTION_TOKENS),)
        if self.task == "vqa":
            return (Request("answer", ("image", "question"), _WRITES, "tokens", _ANSWER_TOKENS),)
        match = (Request("match", ("image", "text"), ("match_model",), "scores"),)
        embed = (
            Request("embed_image", ("image",), ("vision_model",)),
            Request("embed_text", ("text",), ("text_model",)),
        )
        return {"match": match, "retrieval": embed, "pretrained": (*embed, *match)}[self.task]

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
        return frozenset({*self.task_needs(), "vision.hidden_states"})

    def changing(self) -> frozenset[str]:
        """Of a pre-trained model the logits of the match: they are also of the next example's text."""
        return frozenset({"fusion.logits"}) if self.task == "pretrained" else frozenset()

    def mixing(self) -> frozenset[str]:
        """Of a pre-trained model the logits of the match, as in :meth:`changing`."""
        return self.changing()

    def task_loss(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> Tensor:
        """Cross entropy of the next token or of the match; CLIP's contrastive loss; the weighted sum of both last ones."""
        from torch.nn.functional import cross_entropy

        if self.task in ("caption", "vqa"):
            from mmcompress.families._decoder_modules import token_loss

            return token_loss(outputs["decoder.logits"], batch["labels"])
        if self.task == "match":
            return cross_entropy(outputs["fusion.logits"], batch["label"])
        from mmcompress.families._clip_model import contrastive_loss

        image, text, scale = (outputs[name] for name in _EMBEDS)
        contrastive = contrastive_loss(image, text, scale, batch["input_ids"])
        if self.task == "retrieval":
            return contrastive
        from mmcompress.families._blip_model import fits

        weights = self.terms or Terms()
        matching = cross_entropy(outputs["fusion.logits"], fits(batch))
        return weights.contrastive * contrastive + weights.matching * matching

    def task_count(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        """Tokens that count, or examples; None where pairs are compared with each other."""
        if self.task in ("caption", "vqa"):
            return (batch["labels"] >= 0).sum()
        return batch["label"].new_tensor(len(batch["label"])) if self.task == "match" else None

    def task_needs(self) -> frozenset[str]:
        """What :meth:`task_loss` reads, by the task."""
        if self.task in ("caption", "vqa"):
            return frozenset({"decoder.logits"})
        heads: dict[str, tuple[str, ...]] = {"match": ("fusion.logits",), "retrieval": _EMBEDS}
        return frozenset(heads.get(self.task, ("fusion.logits", *_EMBEDS)))

    def default_losses(self) -> tuple[JSON, ...]:
        """The teacher's distribution of each token or of the match, beside the data's own; CLIP-KD's for embeddings."""
        if self.task in ("caption", "vqa"):
            return ({"logits_kl": {"output": "decoder.logits", "mask": "decoder.mask"}}, "task")
        if self.task == "match":
            return ("logits_kl", "task")
        return (*super().default_losses(), *(("logits_kl", "task") if self.task == "pretrained" else ()))

    # --- compressing and exporting ---

    def prunable(self, model: torch.nn.Module) -> list[Prunable]:
        """Heads and feed-forward units of the text towers, feed-forward units of the picture tower (its heads are packed)."""
        from mmcompress.families._blip_model import prunable

        return prunable(model, self.task)

    def graphs(self, model: torch.nn.Module) -> list[Graph]:
        """``encoder_model`` and ``decoder_model``, or those of ``vision_model``, ``text_model`` and ``match_model`` that answer."""
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
