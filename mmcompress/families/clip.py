"""Pictures, or films, and texts in one space: transformers' CLIP, SigLIP, Chinese-CLIP and dual encoders, open_clip's ViTs.

In a model folder each of them is of transformers' own class: open_clip checkpoints become a ``CLIPModel``, SigLIP 2's
NaFlex variant a ``SiglipModel`` when they are written. Weights keep their stored precision there; :meth:`Clip.load`
gives FP32.

With ``frames`` the pictures are films. A film's embedding is the normalised mean of its frames' (CLIP4Clip's meanP,
arXiv:2104.08860): what is seen, and where, but not in which order. A film and the same one backwards are one to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from mmcompress.component import JSON
from mmcompress.errors import InputError, UsageError
from mmcompress.families import Family, Feeds, FromTeacher, Graph, Prunable, Request, Run
from mmcompress.families._class_table import (
    SCORES,
    ClassTable,
    hold_classes,
    texts_are_a_table,
    with_classes,
    without_usual,
)
from mmcompress.families._clip_towers import NAMES, TEXTS_OF_BERT
from mmcompress.families._films import FilmEncoder
from mmcompress.families._images import PREPROCESSOR_FILES, ImageEncoder, read_image_settings, read_object
from mmcompress.families._picture_graph import PIXELS, normalised, takes_bytes
from mmcompress.families._texts import TOKENIZER_FILES, TextEncoder, load_tokenizer, read_text_settings

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mmcompress.losses import Outputs

PROCESSING_FILES = (*PREPROCESSOR_FILES, *TOKENIZER_FILES)
_GRAPHS = {
    "embed_image": ("vision_model", "image_embeds"),
    "embed_text": ("text_model", "text_embeds"),
    "classify": ("vision_model", SCORES),
}
_INPUTS = {"vision_model": (*NAMES["vision"], PIXELS), "text_model": NAMES["text"]}


class Clip(Family):
    """A model that embeds pictures and texts in one space.

    CLIP, SigLIP, SigLIP 2, Chinese-CLIP, open_clip's ViT models, dual encoders of a ViT, ResNet or CLIP tower and BERT.
    """

    processing_files: ClassVar[tuple[str, ...]] = PROCESSING_FILES

    frames: int | None = Field(None, ge=2, le=64)
    """The pictures are films of so many frames at most; of longer ones that many are taken, evenly spaced."""

    classes: ClassTable | None = None
    """What packages choose from: ``{names: [...], templates: [...]}``. Their texts are encoded once, at export; packages
    have no text tower then, and answer no other texts."""

    preprocessing: Literal["python", "graph"] = "python"
    """``graph``: packages' graphs take bytes, ``pixels`` uint8 [batch, height, width, 3], and rescale and normalise
    themselves; decoding and resizing stay Pillow's. Of pictures alone."""

    @model_validator(mode="after")
    def _bytes_of_pictures(self) -> Clip:
        if self.preprocessing == "graph" and self.frames is not None:
            raise ValueError("preprocessing: graph takes pictures, and `frames` makes them films; leave one out")
        return self

    def identity(self) -> JSON:
        """The fields; where packages are the usual ones as it was before there were others, so that models are found."""
        return without_usual(super().identity(), classes=None, preprocessing="python")

    def as_trained(self) -> Clip:
        """Without classes and preprocessing in the graph, which packages alone hold."""
        return self.model_copy(update={"classes": None, "preprocessing": "python"})

    @property
    def seen(self) -> str:
        """The column of what is embedded beside texts: ``image`` or ``frames``."""
        return "image" if self.frames is None else "frames"

    @property
    def requests(self) -> tuple[Request, ...]:
        """Embeddings of pictures (or films) and of texts; with :attr:`classes` their scores in place of texts."""
        image = Request("embed_image", (self.seen,), ("vision_model",))
        if self.classes is not None:
            return (self.classes.request(self.seen, "vision_model"), image)
        return (image, Request("embed_text", ("text",), ("text_model",)))

    @property
    def left_out(self) -> Mapping[str, str]:
        """Other texts, where the classes are fixed."""
        return {} if self.classes is None else self.classes.left_out()

    @property
    def columns(self) -> frozenset[str]:
        """Pictures (or films) with texts."""
        return frozenset({self.seen, "texts"})

    @property
    def cuts(self) -> frozenset[str]:
        """Layers, feed-forward width and, where both towers are CLIP's, width of both towers."""
        return frozenset(f"{t}_{what}" for t in ("vision", "text") for what in ("layers", "width", "feed_forward"))

    # --- model folders ---

    def write(self, folder: Path, seed: int) -> None:
        """Write the checkpoint as a folder of transformers' class, its weights in their stored precision.

        Raises:
            InputError: no weights, weights missing or unexpected, pickled weights, another kind of model, a tokenizer
                or picture settings that do not fit the model.
        """
        from mmcompress.families._clip_checkpoints import write_checkpoint

        write_checkpoint(self, folder, seed)

    def load(self, folder: Path, *, attention: str = "sdpa") -> torch.nn.Module:
        """The model of a model folder, in FP32 and evaluation mode.

        Raises:
            InputError: weights that do not fit config.json and structure.json; an unknown kind of attention; a class
                whose text is longer than the model takes.
        """
        from mmcompress.families._clip_checkpoints import load_model

        model: torch.nn.Module = load_model(folder, attention)
        if self.classes is not None:
            hold_classes(model, self.classes, self.processor(folder).texts, folder)
        if self.preprocessing == "graph":
            model.picture_settings = read_image_settings(folder)  # type: ignore[assignment]
        return model

    def save(self, model: torch.nn.Module, source: Path, folder: Path) -> None:
        """Write a model that came from ``source``: its files, the weights in FP32, what pruning changed."""
        from mmcompress.families._clip_checkpoints import save_model

        save_model(model, source, folder)

    def student(self, teacher: Path, cut: FromTeacher, folder: Path, seed: int) -> None:
        """Cut a student from an unpruned teacher; it opens with transformers' ``from_pretrained``.

        Layers are chosen evenly spaced, the first and the last included. A narrower tower keeps the channels of the
        residual stream, the heads and the feed-forward units of the largest norm; the size of a head stays. With
        ``init: random`` the towers that are named get new weights, or the whole model where none is named. Towers of a
        dual encoder or of Chinese-CLIP keep their width, a ResNet all that it has.

        Raises:
            UsageError: a cut that the teacher does not allow, with what it allows.
        """
        from mmcompress.families._clip_student import write_student

        write_student(teacher, cut, folder, seed)

    # --- training ---

    def outputs(self, model: torch.nn.Module, batch: Mapping[str, Tensor], want: frozenset[str]) -> Outputs:
        """Forward; a tower of which nothing is wanted is not run. ``hidden_states`` are those after each layer.

        Raises:
            UsageError: an output that there is none of, or attention maps of a model that was loaded with SDPA.
        """
        from mmcompress.families._clip_model import outputs

        unknown = sorted(want - self.provides() - {"fusion.logit_bias"})
        if unknown:
            raise UsageError(f"clip gives no {', '.join(unknown)}\n  it gives: {', '.join(sorted(self.provides()))}")
        if PIXELS in batch:
            settings: Any = model.picture_settings
            batch = {**batch, "pixel_values": normalised(batch[PIXELS], settings)}
        return outputs(model, batch, want)

    def provides(self) -> frozenset[str]:
        """Every output; SigLIP checkpoints also give ``fusion.logit_bias``. Attention maps need ``attention: eager``.

        Hidden states of films are those of all their frames in a row; films have no attention maps.
        """
        what = ("embeds", "hidden_states", "attentions", "mask")
        names = {f"{tower}.{name}" for tower in ("vision", "text") for name in what} | {"fusion.logit_scale"}
        return frozenset(names - (set() if self.frames is None else {"vision.attentions"}))

    def task_loss(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> Tensor:
        """CLIP's symmetric cross entropy, or SigLIP's pairwise sigmoid loss where the model has a bias.

        Texts that are equal token by token are positives of each other's pictures.
        """
        from mmcompress.families._clip_model import contrastive_loss, sigmoid_loss

        image, text, scale = (outputs[name] for name in ("vision.embeds", "text.embeds", "fusion.logit_scale"))
        if "fusion.logit_bias" in outputs:
            return sigmoid_loss(image, text, scale, outputs["fusion.logit_bias"], batch["input_ids"])
        return contrastive_loss(image, text, scale, batch["input_ids"])

    def columns_for(self, want: frozenset[str]) -> frozenset[str]:
        """Pictures alone, or texts alone, where nothing of the other tower is read."""
        seen, read = (any(name.startswith(f"{tower}.") for name in want) for tower in ("vision", "text"))
        return self.columns if seen == read else frozenset({self.seen} if seen else {"texts"})

    def task_needs(self) -> frozenset[str]:
        """Both embeddings and the scale (the bias of SigLIP comes with it)."""
        return frozenset({"vision.embeds", "text.embeds", "fusion.logit_scale"})

    # --- compressing and exporting ---

    def prunable(self, model: torch.nn.Module) -> list[Prunable]:
        """Heads and feed-forward units of every layer, with a budget per tower."""
        from mmcompress.families._clip_model import prunable

        return prunable(model)

    def graphs(self, model: torch.nn.Module) -> list[Graph]:
        """``vision_model`` (of pictures, or films of any length) and ``text_model``, both with normalised embeddings.

        With :attr:`classes` ``vision_model`` alone, which has their scores too; with ``preprocessing: graph`` it takes
        bytes.
        """
        vision, text = self.traced(model)
        if self.preprocessing == "graph":
            settings: Any = model.picture_settings
            vision = takes_bytes(vision, settings)
        if self.classes is None:
            return [vision, text]
        return [with_classes(model, vision, text, len(self.classes.names))]

    def traced(self, model: torch.nn.Module) -> list[Graph]:
        """Both towers: pruning narrows the text tower too, whose table the package gets."""
        from mmcompress.families._clip_model import graphs

        return graphs(model, self.frames)

    # --- answering ---

    def processor(self, folder: Path) -> ClipProcessor:
        """The preprocessing of a model folder or package.

        Raises:
            InputError: configuration files that are missing, malformed or not supported.
        """
        return ClipProcessor(folder, self.frames, self.classes, self.preprocessing)

    def package_files(self, folder: Path) -> list[str]:
        """Configuration, tokenizer (where texts are taken) and picture settings, as far as the folder has them."""
        files = PROCESSING_FILES if self.classes is None else PREPROCESSOR_FILES
        return [name for name in ("config.json", *files) if (folder / name).is_file()]

    def answer(self, run: Run, request: str, feeds: Feeds, length: int | None = None) -> NDArray[np.float32]:
        """L2-normalised embeddings [n, d] of the encoded pictures or texts, or cosines with the classes [n, c]."""
        known = [item.name for item in self.requests]
        if request not in known:
            raise UsageError(f"clip answers no {request!r}; it answers: {', '.join(known)}")
        graph, output = _GRAPHS[request]
        inputs = {name: feeds[name] for name in _INPUTS[graph] if name in feeds}
        return np.asarray(run(graph, inputs)[output], dtype=np.float32)


class ClipProcessor:
    """Pictures (``image``) or films (``frames``) and texts (``text``) to graph inputs.

    See :class:`mmcompress.families.Processor`.
    """

    def __init__(
        self,
        folder: Path,
        frames: int | None = None,
        classes: ClassTable | None = None,
        preprocessing: Literal["python", "graph"] = "python",
    ) -> None:
        config = read_object(folder / "config.json")
        text = config.get("text_config") or {}
        kind = str(config.get("model_type"))
        siglip = kind == "siglip"
        self.seen = "image" if frames is None else "frames"
        self.preprocessing = preprocessing
        self.classes = () if classes is None else classes.names
        self.images = ImageEncoder(read_image_settings(folder))
        self.films = None if frames is None else FilmEncoder(self.images.settings, frames)
        self.texts: TextEncoder | None = None
        self.text_encoders: dict[str, TextEncoder] = {}
        if texts_are_a_table(classes, folder):
            return
        settings = read_text_settings(
            folder,
            int(text.get("max_position_embeddings", 64 if siglip else 512 if kind in TEXTS_OF_BERT else 77)),
            full_length=siglip,
            clean=_cleaning(folder) if siglip else "none",
        )
        self.texts = TextEncoder(load_tokenizer(folder), settings)
        self.text_encoders = {"text": self.texts}

    def compact(self, values: Mapping[str, Sequence[Any]]) -> Feeds:
        """``image`` to uint8 [n, h, w, 3], ``text`` to int32 [n, s] with -1 as padding.

        ``frames`` to uint8 [n, f, h, w, 3], black after each film's last picture, with ``frames_count`` int64 [n].

        Raises:
            InputError: a picture, film or text that cannot be used, or a column of another name.
        """
        taken = [self.seen] if self.texts is None else [self.seen, "text"]
        unknown = sorted(set(values) - set(taken))
        if unknown:
            raise InputError(f"clip takes the columns {' and '.join(taken)}, got {', '.join(unknown)}")
        compact: Feeds = {}
        if "image" in values:
            compact["image"] = self.images.compact(values["image"])
        if self.films is not None and "frames" in values:
            compact["frames"], compact["frames_count"] = self.films.compact(values["frames"])
        if "text" in values and self.texts is not None:
            compact["text"] = self.texts.compact(values["text"])
        return compact

    def expand(self, compact: Feeds) -> Feeds:
        """``pixel_values`` float32 [n, 3, h, w]; ``input_ids`` and, but for SigLIP, ``attention_mask`` int64 [n, s].

        Of films ``pixel_values`` float32 [n, f, 3, h, w] and ``frame_mask`` int64 [n, f]. Where the graph preprocesses
        ``pixels`` uint8 [n, h, w, 3] in place of ``pixel_values``.
        """
        feeds: Feeds = {}
        if "image" in compact and self.preprocessing == "graph":
            feeds[PIXELS] = compact["image"]
        elif "image" in compact:
            feeds["pixel_values"] = self.images.expand(compact["image"])
        if self.films is not None and "frames" in compact:
            feeds.update(self.films.expand(compact["frames"], compact["frames_count"]))
        if "text" in compact and self.texts is not None:
            feeds.update(self.texts.expand(compact["text"]))
        return feeds

    def encode(self, values: Mapping[str, Sequence[Any]]) -> Feeds:
        """``expand(compact(values))``."""
        return self.expand(self.compact(values))


def _cleaning(folder: Path) -> Literal["canonical", "lowercase"]:
    """SigLIP was trained on canonical texts; SigLIP 2, known by its other tokenizer, on lower-cased ones."""
    file = folder / "tokenizer_config.json"
    name = str(read_object(file).get("tokenizer_class", "")) if file.is_file() else ""
    return "canonical" if name.startswith(("SiglipTokenizer", "T5Tokenizer")) else "lowercase"
