"""What the ``vilt`` family feeds its model: pictures as rows of patches with their places, texts, and targets.

transformers pads the pictures of a batch to one size and then gathers the patches that are no padding. Here a picture is
cut into its patches from the start: the same patches in the same order, and where each lies, as a share of the picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from mmcompress._vqa import normalise, soft_score
from mmcompress.component import nearest
from mmcompress.errors import InputError
from mmcompress.families import PADDING, Feeds, Masking
from mmcompress.families._images import (
    ImageEncoder,
    ImageSettings,
    open_picture,
    read_object,
    read_preprocessor,
    resize_and_crop,
    resolve_image_settings,
)
from mmcompress.families._texts import TextEncoder, load_tokenizer, read_text_settings

ANNOTATORS = 10
"""Answers per question that are kept, as many as VQA v2 has."""
OUTSIDE = -2
"""Stands for an annotator's answer that is none of the classes; -1 for one that was not given."""
MASK_TOKEN = "[MASK]"
_LONGER, _SHORTER = 1333, 800
"""The longer side is at most this share of the wanted shorter side (ViltImageProcessor)."""


class PatchSettings(BaseModel):
    """How a picture becomes patches, resolved."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shorter: int
    """Pixels that the shorter side gets, unless the longer one would then be longer than ``longer``."""
    longer: int
    divisor: int
    """Both sides are cut down to a multiple of it."""
    patch: int
    """Side of a patch."""
    pixels: ImageSettings
    """Filter, rescaling and normalisation."""

    @property
    def canvas(self) -> tuple[int, int]:
        """Shorter and longer side of the smallest canvas that holds every picture, lying."""
        short, long = (side // self.divisor * self.divisor for side in (self.shorter, self.longer))
        return short, max(short, long)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that a picture is resized to, as ViltImageProcessor does; no side becomes 0 (there one does)."""
        scale = self.shorter / min(height, width)
        sides: tuple[float, float]
        sides = (self.shorter, scale * width) if height < width else (scale * height, self.shorter)
        if max(sides) > self.longer:
            shrink = self.longer / max(sides)
            sides = (shrink * sides[0], shrink * sides[1])
        rows, columns = (max(1, int(side + 0.5) // self.divisor) for side in sides)
        return rows * self.divisor, columns * self.divisor


def read_patch_settings(folder: Path, patch: int) -> PatchSettings:
    """The settings of a model folder or package whose model takes square patches of that side.

    Raises:
        InputError: settings that are missing or not supported, or sizes that are no multiple of the patches.
    """
    values, file = read_preprocessor(folder)
    pixels = resolve_image_settings(values, str(file))
    divisor = int(values.get("size_divisor") or 32)
    if not isinstance(pixels.resize, int) or pixels.crop is not None:
        raise InputError(f"{file}: expected a size of shortest_edge alone and no crop, as ViltImageProcessor has")
    if divisor % patch or pixels.resize < divisor:
        raise InputError(
            f"{file}: size_divisor {divisor} with shortest_edge {pixels.resize} does not fit patches of {patch} pixels\n"
            "  expected a multiple of the patches' side, not longer than the shortest edge"
        )
    longer = int(_LONGER / _SHORTER * pixels.resize)
    return PatchSettings(shorter=pixels.resize, longer=longer, divisor=divisor, patch=patch, pixels=pixels)


class Canvas(NamedTuple):
    """Pictures of several sizes in one array. One that is higher than wide lies on its side."""

    pixels: NDArray[np.uint8]
    """[n, h, w, 3], black beside the pictures, which begin at the upper left."""
    sizes: NDArray[np.int32]
    """[n, 2]: sides of the part that a picture fills, as it lies there."""
    stands: NDArray[np.bool_]
    """[n]: whether it has to be put up again."""


class PatchEncoder:
    """Pictures to patches in two halves, see :class:`mmcompress.families.Processor`."""

    def __init__(self, settings: PatchSettings) -> None:
        self.settings = settings
        self._values = ImageEncoder(settings.pixels)

    def compact(self, pictures: Sequence[Any]) -> Canvas:
        """Resized pictures, each on a canvas as small as it can be: see :class:`Canvas`.

        Raises:
            InputError: a picture that cannot be used, with its position.
        """
        settings = self.settings
        canvas = np.zeros((len(pictures), *settings.canvas, 3), np.uint8)
        sizes = np.zeros((len(pictures), 2), np.int32)
        stands = np.zeros(len(pictures), np.bool_)
        for index, value in enumerate(pictures):
            try:
                picture = open_picture(value, settings.pixels.background)
                size = settings.size(picture.height, picture.width)
                pixels = resize_and_crop(picture, settings.pixels.model_copy(update={"resize": size}))
            except InputError as error:
                raise InputError(f"picture {index + 1} of {len(pictures)}: {error}") from None
            stands[index] = size[0] > size[1]
            lying = pixels.transpose(1, 0, 2) if stands[index] else pixels
            sizes[index] = lying.shape[:2]
            canvas[index, : lying.shape[0], : lying.shape[1]] = lying
        return Canvas(canvas, sizes, stands)

    def expand(self, given: Canvas) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Patches float32 [n, p, 3 * side * side] row by row, p of the largest picture there, and their places.

        Places are float32 [n, p, 2]: row and column from 0 (first) to 1 (last); -1 where there is no patch.
        """
        side = self.settings.patch
        count = int((given.sizes // side).prod(axis=1).max(initial=1))
        patches = np.zeros((len(given.pixels), count, 3 * side * side), np.float32)
        places = np.full((len(given.pixels), count, 2), -1.0, np.float32)
        kinds = np.concatenate([given.sizes, given.stands[:, None]], axis=1)
        for short, long, stands in np.unique(kinds, axis=0).tolist():
            members = np.flatnonzero((kinds == (short, long, stands)).all(axis=1))
            pictures = given.pixels[members, :short, :long]
            pictures = pictures.transpose(0, 2, 1, 3) if stands else pictures
            rows, columns = pictures.shape[1] // side, pictures.shape[2] // side
            values = self._values.expand(pictures).reshape(len(members), 3, rows, side, columns, side)
            cut = values.transpose(0, 2, 4, 1, 3, 5).reshape(len(members), rows * columns, -1)
            patches[members, : rows * columns] = cut
            grid = np.meshgrid(_shares(rows), _shares(columns), indexing="ij")
            places[members, : rows * columns] = np.stack(grid, axis=-1).reshape(-1, 2)
        return patches, places


def _shares(count: int) -> NDArray[np.float32]:
    return np.asarray(np.arange(count, dtype=np.float32) / max(1, count - 1), np.float32)


# --- the whole -----------------------------------------------------------------------------------------------------


class ViltProcessor:
    """Pictures (``image``, ``image2``), texts (``question``, ``text``) and targets (``answers``, ``label``)."""

    def __init__(
        self, folder: Path, columns: frozenset[str], pictures: tuple[str, ...], *, stacked: bool, masked: bool
    ) -> None:
        """Read the settings of a model folder or package.

        Args:
            folder: where they are.
            columns: names that :meth:`compact` takes.
            pictures: those of them that are pictures, in the order of the model.
            stacked: whether the model takes several pictures per text, on an axis of their own.
            masked: whether it learns the words that are hidden in ``text``.

        Raises:
            InputError: files that are missing, malformed or not supported; no token that hides words.
        """
        config = read_object(folder / "config.json")
        tokenizer = load_tokenizer(folder)
        self.columns, self.pictures, self.stacked = columns, pictures, stacked
        self.images = PatchEncoder(read_patch_settings(folder, int(config.get("patch_size", 32))))
        positions = int(config.get("max_position_embeddings", 40))
        self.texts = TextEncoder(tokenizer, read_text_settings(folder, positions))
        self.text_encoders = dict.fromkeys(("text", "question"), self.texts)
        self.classes = classes_of(config)
        self._index = {name: index for index, name in enumerate(self.classes)}
        self._tokenizer = tokenizer
        self.masking: dict[str, Masking] = {}
        if masked:
            hides = tokenizer.token_to_id(MASK_TOKEN)
            if hides is None:
                raise InputError(
                    f"{folder / 'tokenizer.json'}: no {MASK_TOKEN}, which stands for words to be filled in"
                )
            special = [number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special]
            self.masking["text"] = Masking(hides, tokenizer.get_vocab_size(), tuple(special))

    def compact(self, values: Mapping[str, Sequence[Any]]) -> Feeds:
        """Canvas and size of pictures, int32 tokens [n, s] of texts, ``answers`` int32 [n, 10], ``label`` int32 [n].

        Raises:
            InputError: a value that cannot be used, or a column of another name.
        """
        unknown = sorted(set(values) - self.columns)
        if unknown:
            known = sorted(self.columns)
            raise InputError(
                f"vilt takes the columns {', '.join(known)} for its task, got {unknown[0]}{nearest(unknown[0], known)}"
            )
        compact: Feeds = {}
        for name, column in values.items():
            if name in self.pictures:
                found = self.images.compact(column)
                compact |= {name: found.pixels, f"{name}_size": found.sizes, f"{name}_stands": found.stands}
            elif name in ("question", "text"):
                compact[name] = self.texts.compact(column)
            elif name == "answers":
                compact[name] = self._answers(column)
            else:
                compact[name] = self._labels(column)
        return compact

    def _answers(self, column: Sequence[Sequence[str]]) -> NDArray[np.int32]:
        found = np.full((len(column), ANNOTATORS), PADDING, np.int32)
        for row, answers in zip(found, column, strict=True):
            if isinstance(answers, str) or not 1 <= len(answers) <= ANNOTATORS:
                raise InputError(f"a question needs 1 to {ANNOTATORS} answers, one per annotator; got {answers!r}")
            for place, answer in enumerate(answers):
                row[place] = self._index.get(answer, self._index.get(normalise(answer), OUTSIDE))
        return found

    def _labels(self, column: Sequence[Any]) -> NDArray[np.int32]:
        labels = np.asarray(column, np.int32)
        wrong = labels[(labels < 0) | (labels >= len(self.classes))]
        if len(wrong):
            raise InputError(f"label {wrong[0]}: the model has classes 0 to {len(self.classes) - 1}")
        return labels

    def notes(self, compact: Feeds) -> Mapping[str, int]:
        """What is told of encoded examples: how many annotators' answers are none of the classes."""
        if "answers" not in compact:
            return {}
        answers = compact["answers"]
        known = (answers >= 0).any(axis=1)
        return {
            "answers outside of the classes": int((answers == OUTSIDE).sum()),
            "questions without an answer among the classes": int((~known).sum()),
        }

    def expand(self, compact: Feeds) -> Feeds:
        """Inputs of the graph, and the ``labels`` of the task.

        ``pixel_values`` [n, p, 3 * side * side] and ``patch_positions`` [n, p, 2] (with an axis for the pictures after
        the first where the model takes several), ``input_ids`` and ``attention_mask`` [n, s]. ``labels``: float32 [n, c]
        soft scores, int64 [n] classes, or int64 [n, s] words that were masked, -1 elsewhere.
        """
        feeds: Feeds = {}
        shown = [name for name in self.pictures if name in compact]
        if shown:
            parts = ([compact[f"{name}{part}"] for name in shown] for part in ("", "_size", "_stands"))
            patches, places = self.images.expand(Canvas(*(np.concatenate(part) for part in parts)))
            for name, array in (("pixel_values", patches), ("patch_positions", places)):
                feeds[name] = np.stack(np.split(array, len(shown)), axis=1) if self.stacked else array
        for name in ("question", "text"):
            if name in compact:
                feeds.update(self.texts.expand(compact[name]))
        if "text_labels" in compact:
            feeds["labels"] = compact["text_labels"][:, : feeds["input_ids"].shape[1]].astype(np.int64)
        if "answers" in compact:
            feeds["labels"] = soft_scores(compact["answers"], len(self.classes))
        if "label" in compact:
            feeds["labels"] = compact["label"].astype(np.int64)
        if "text" in compact and "text" in self.masking:
            feeds["masked"] = feeds["input_ids"] == self.masking["text"].token
        return feeds

    def encode(self, values: Mapping[str, Sequence[Any]]) -> Feeds:
        """``expand(compact(values))``."""
        return self.expand(self.compact(values))

    def decode(self, rows: NDArray[Any]) -> list[str]:
        """Tokens [n, s] that were put in place of masks, as texts."""
        return [self._tokenizer.decode([token for token in row if token != PADDING]) for row in rows.tolist()]


def classes_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of a model's classes, by config.json's ``id2label``.

    Raises:
        InputError: their numbers are not 0, 1, ... in a row.
    """
    table = {int(number): str(name) for number, name in (config.get("id2label") or {}).items()}
    if sorted(table) != list(range(len(table))):
        raise InputError("config.json: id2label does not number its classes from 0 without a gap")
    return tuple(table[number] for number in range(len(table)))


def soft_scores(answers: NDArray[np.int32], classes: int) -> NDArray[np.float32]:
    """Classes that annotators gave [n, a], negative for none, to targets [n, c]: min(1, annotators / 3)."""
    counts = np.zeros((len(answers), classes), np.int64)
    rows, places = np.nonzero(answers >= 0)
    np.add.at(counts, (rows, answers[rows, places]), 1)
    table = np.array([soft_score(count) for count in range(answers.shape[1] + 1)], np.float32)
    return table[counts]
