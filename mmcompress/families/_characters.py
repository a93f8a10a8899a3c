"""Texts as characters, for models that write by connectionist temporal classification: numpy alone.

The vocabulary comes from the checkpoint's own ``vocab.json`` and ``tokenizer_config.json`` (``Wav2Vec2CTCTokenizer`` has no
``tokenizer.json``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcompress.errors import InputError
from mmcompress.families import PADDING
from mmcompress.families._images import read_object
from mmcompress.store import write_json

CHARACTER_FILES = ("vocab.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
BLANK, DELIMITER, UNKNOWN = "<pad>", "|", "<unk>"
"""What transformers' tokenizer takes where the configuration is silent."""


@dataclass(frozen=True)
class Characters:
    """The tokens that a model writes, and how they become text."""

    tokens: Mapping[str, int]
    """Their numbers."""
    blank: str
    """Stands between equal characters and where nothing is said; filled up with as well."""
    delimiter: str
    """Stands between words."""
    lowercase: bool
    """Texts are written in capitals and given in small letters."""
    origin: str
    """What messages call it."""

    @property
    def blank_id(self) -> int:
        """The number of the blank."""
        return self.tokens[self.blank]

    def encode(self, texts: Sequence[Any], width: int) -> NDArray[np.int32]:
        """Texts to int32 [n, width], :data:`PADDING` after the last character of each.

        Where the vocabulary has letters of one case alone, texts are put in that case.

        Raises:
            InputError: a value that is no text, an empty one, one that is too long, or characters that the vocabulary
                lacks.
        """
        result = np.full((len(texts), width), PADDING, np.int32)
        for index, text in enumerate(texts):
            where = f"text {index + 1} of {len(texts)}"
            if not isinstance(text, str) or not text.strip():
                raise InputError(f"{where}: expected a text of one word or more, got {text!r}")
            spelled = [self.delimiter if letter == " " else letter for letter in self._in_case(text)]
            unknown = sorted({letter for letter in spelled if letter not in self.tokens})
            if unknown:
                raise InputError(
                    f"{where}: {', '.join(map(repr, unknown[:8]))}: not in {self.origin}\n"
                    "  Spell the text with the characters that the model knows (numbers in words, no punctuation)."
                )
            if len(spelled) > width:
                raise InputError(
                    f"{where}: {len(spelled)} characters; the model writes at most {width} in its longest sound\n"
                    "  Split the example, or raise max_seconds."
                )
            result[index, : len(spelled)] = [self.tokens[letter] for letter in spelled]
        return result

    def _in_case(self, text: str) -> str:
        letters = [token for token in self.tokens if len(token) == 1 and token.lower() != token.upper()]
        if self.lowercase or (letters and all(letter == letter.upper() for letter in letters)):
            return text.upper()
        return text.lower() if letters and all(letter == letter.lower() for letter in letters) else text

    def decode(self, rows: NDArray[Any]) -> list[str]:
        """Tokens [n, s] without blanks and repetitions, :data:`PADDING` after the last, to texts."""
        names = {number: token for token, number in self.tokens.items()}
        texts = []
        for row in rows.tolist():
            spelled = [names.get(number, UNKNOWN) for number in row if number != PADDING]
            text = "".join(" " if token == self.delimiter else token for token in spelled).strip()
            texts.append(text.lower() if self.lowercase else text)
        return texts


def read_characters(folder: Path) -> Characters:
    """The vocabulary of a model folder or package.

    Raises:
        InputError: no vocabulary, one of several languages, or one without the blank or the word delimiter.
    """
    file = folder / "vocab.json"
    if not file.is_file():
        raise InputError(f"{folder}: no vocab.json\n  expected the tokenizer files of the checkpoint")
    tokens = read_object(file)
    if any(isinstance(value, dict) for value in tokens.values()):
        raise InputError(
            f"{file}: vocabularies of several languages are not supported\n  expected one: token to number"
        )
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        settings |= read_object(folder / name) if (folder / name).is_file() else {}
    if (folder / "added_tokens.json").is_file():
        tokens = {**read_object(folder / "added_tokens.json"), **tokens}
    added = settings.get("added_tokens_decoder")
    for number, entry in (added if isinstance(added, dict) else {}).items():
        tokens.setdefault(_content(entry), int(number))
    wrong = [token for token, number in tokens.items() if type(number) is not int or number < 0]
    if wrong:
        raise InputError(f"{file}: {wrong[0]!r} has no number\n  expected token to number")
    characters = Characters(
        tokens,
        blank=_content(settings.get("pad_token") or BLANK),
        delimiter=_content(settings.get("word_delimiter_token") or DELIMITER),
        lowercase=bool(settings.get("do_lower_case", False)),
        origin=str(file),
    )
    for what, token in (("padding token", characters.blank), ("word delimiter", characters.delimiter)):
        if token not in tokens:
            raise InputError(f"{file}: the {what} {token!r} is missing\n  expected it among the tokens")
    return characters


def _content(token: Any) -> str:
    return str(token.get("content")) if isinstance(token, dict) else str(token)


def write_characters(tokens: Sequence[str], folder: Path) -> None:
    """Write the files of a new vocabulary: tokens in the order of their numbers, with :data:`BLANK` and :data:`DELIMITER`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "vocab.json", {token: number for number, token in enumerate(tokens)})
    settings = {
        "tokenizer_class": "Wav2Vec2CTCTokenizer",
        "pad_token": BLANK,
        "unk_token": UNKNOWN if UNKNOWN in tokens else BLANK,
        "bos_token": None,
        "eos_token": None,
        "word_delimiter_token": DELIMITER,
        "do_lower_case": False,
    }
    write_json(folder / "tokenizer_config.json", settings)


def collapse(logits: NDArray[Any], frames: NDArray[Any], blank: int) -> NDArray[np.int32]:
    """The likeliest token of each frame, repetitions merged and blanks dropped (Graves et al. 2006, "best path decoding").

    Args:
        logits: [n, t, c].
        frames: how many frames of each example count, [n].
        blank: number of the blank.

    Returns:
        int32 [n, s], :data:`PADDING` after the last token of each; s is 1 at least.
    """
    best = np.asarray(logits).argmax(axis=2)
    rows = []
    for row, count in zip(best, frames.tolist(), strict=True):
        path = row[:count]
        first = np.ones(len(path), dtype=np.bool_)
        first[1:] = path[1:] != path[:-1]
        rows.append(path[first & (path != blank)])
    result = np.full((len(rows), max([1, *map(len, rows)])), PADDING, np.int32)
    for target, tokens in zip(result, rows, strict=True):
        target[: len(tokens)] = tokens
    return result
