"""Texts to token ids with ``tokenizers`` alone, from the checkpoint's own ``tokenizer.json``."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from mmcompress.errors import InputError, require
from mmcompress.families._images import read_object

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
BOS, EOS, UNKNOWN = "<|startoftext|>", "<|endoftext|>", "<unk>"
PADDING = -1
"""Stands for padding in compact tokens: the padding token is often the end token too and could not be told from it."""

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class TextSettings(BaseModel):
    """How texts become tokens, resolved."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_length: int
    """Tokens at most, with the special ones; longer texts lose their end but keep the end token."""
    pad_id: int
    full_length: bool = False
    """Pad to ``max_length`` without a mask (SigLIP reads its answer from the last position)."""
    clean: Literal["none", "lowercase", "canonical"] = "none"
    """Done before the tokenizer's own normaliser: ``canonical`` is SigLIP's (lower case, no punctuation)."""


def read_text_settings(folder: Path, positions: int, *, full_length: bool = False, clean: Any = "none") -> TextSettings:
    """The settings of a model folder or package whose model takes ``positions`` tokens.

    Raises:
        InputError: no tokenizer.json, no padding token, or padding on the left.
    """
    tokenizer = load_tokenizer(folder)
    config = read_object(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    if config.get("padding_side", "right") != "right" and not full_length:
        raise InputError(f"{folder / 'tokenizer_config.json'}: padding_side must be 'right' for this model")
    length = config.get("model_max_length")
    return TextSettings(
        max_length=min(positions, int(length)) if isinstance(length, (int, float)) and length > 0 else positions,
        pad_id=_pad_id(folder, config, tokenizer),
        full_length=full_length,
        clean=clean,
    )


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a folder, without padding and truncation.

    Raises:
        InputError: tokenizer.json is missing or not readable.
    """
    tokenizers = require("tokenizers", "cpu")
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise InputError(
            f"{folder}: no tokenizer.json\n"
            "  expected the fast tokenizer of the checkpoint; transformers writes one:"
            " AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    try:
        tokenizer: Tokenizer = tokenizers.Tokenizer.from_str(file.read_text("utf-8"))
    except Exception as error:  # noqa: BLE001 - tokenizers raises bare Exception for every malformed file
        raise InputError(f"{file}: not a tokenizer: {error}") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _pad_id(folder: Path, config: dict[str, Any], tokenizer: Tokenizer) -> int:
    special = folder / "special_tokens_map.json"
    sources = [config] + ([read_object(special)] if special.is_file() else [])
    for source in sources:
        token = source.get("pad_token")
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            found = tokenizer.token_to_id(token)
            if found is None:
                raise InputError(f"{folder / 'tokenizer.json'}: the padding token {token!r} is not in the vocabulary")
            return int(found)
    padding = read_object(folder / "tokenizer.json").get("padding")
    if padding is None:
        raise InputError(f"{folder / 'tokenizer_config.json'}: no pad_token; name the token that fills short texts up")
    return int(padding["pad_id"])


def canonical(text: str) -> str:
    """SigLIP's canonical text: lower case, no ASCII punctuation, single spaces (big_vision's ``canonicalize_text``)."""
    return re.sub(r"\s+", " ", text.lower().translate(_NO_PUNCTUATION)).strip()


class TextEncoder:
    """Texts to the model's input in two halves, see :class:`mmcompress.families.Processor`."""

    def __init__(self, tokenizer: Tokenizer, settings: TextSettings) -> None:
        self.settings = settings
        tokenizer.no_padding()
        tokenizer.enable_truncation(settings.max_length)
        self._tokenizer = tokenizer

    def compact(self, texts: Sequence[Any]) -> NDArray[np.int32]:
        """Texts to int32 [n, max_length], :data:`PADDING` after the last token of each.

        Raises:
            InputError: a value that is no text, or no texts but one string.
        """
        if isinstance(texts, str):
            raise InputError("expected a list of texts, got one string")
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise InputError(f"text {index + 1} of {len(texts)}: expected a string, got {type(text).__name__}")
        result = np.full((len(texts), self.settings.max_length), PADDING, np.int32)
        for row, encoding in zip(result, self._tokenizer.encode_batch([self._clean(t) for t in texts]), strict=True):
            row[: len(encoding.ids)] = encoding.ids
        return result

    def refuse_long(self, texts: Sequence[Any]) -> None:
        """Refuse texts of which :meth:`compact` would leave out the end.

        Raises:
            InputError: a text has more tokens than the model takes.
        """
        refuse_overflow(self._tokenizer, texts, self.settings.max_length, self._clean)

    def expand(self, tokens: NDArray[np.int32]) -> dict[str, NDArray[Any]]:
        """``input_ids`` int64 [n, s] with ``attention_mask`` int64 [n, s], s the longest text there.

        Where the model takes the full length, ``input_ids`` alone: it was trained to see the padding.
        """
        present = tokens != PADDING
        ids = np.where(present, tokens, self.settings.pad_id).astype(np.int64)
        if self.settings.full_length:
            return {"input_ids": ids}
        longest = max(1, int(present.sum(axis=1).max(initial=1)))
        return {"input_ids": ids[:, :longest], "attention_mask": present[:, :longest].astype(np.int64)}

    def _clean(self, text: str) -> str:
        if self.settings.clean == "canonical":
            return canonical(text)
        return text.lower() if self.settings.clean == "lowercase" else text


def refuse_overflow(
    tokenizer: Tokenizer, texts: Sequence[Any], longest: int, clean: Callable[[str], str] = str
) -> None:
    """Refuse texts that a tokenizer cuts after ``longest`` tokens; ``clean`` is what they go through before.

    Raises:
        InputError: a text has more.
    """
    # A token stands for a byte at least, and two frame the text.
    long = [text for text in texts if isinstance(text, str) and len(text.encode()) + 2 > longest]
    for text, encoding in zip(long, tokenizer.encode_batch([clean(t) for t in long]), strict=True):
        if encoding.overflowing:
            raise too_long(
                text, sum(end > start for part in encoding.overflowing for start, end in part.offsets), longest
            )


def too_long(text: str, over: int, longest: int) -> InputError:
    """The mistake that a text has so many tokens more than the model takes."""
    return InputError(
        f"the text {text[:40]!r}... has {over} tokens more than the {longest} that the model takes\n"
        "  Shorten it; `package.ask` takes it and leaves out its end, as training did."
    )


# --- making a small one --------------------------------------------------------------------------------------------


def word_level_tokenizer(words: Iterable[str], max_length: int) -> Tokenizer:
    """A tokenizer that knows these words (lower-cased): beginning 0, end and padding 1, unknown 2, the words from 3 on.

    Args:
        words: the vocabulary, in any order; equal words count once. Words are split at spaces and punctuation.
        max_length: tokens at most per text, beginning and end included.
    """
    from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers, processors
    from tokenizers.models import WordLevel

    special = [BOS, EOS, UNKNOWN]
    vocabulary = sorted({word.lower() for word in words} - set(special))
    model = WordLevel({word: index for index, word in enumerate([*special, *vocabulary])}, unk_token=UNKNOWN)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}", pair=f"{BOS} $A $B:1 {EOS}:1", special_tokens=[(BOS, 0), (EOS, 1)]
    )
    tokenizer.enable_padding(pad_id=1, pad_token=EOS)
    tokenizer.enable_truncation(max_length)
    return tokenizer


def write_word_level_tokenizer(words: Iterable[str], max_length: int, folder: Path) -> Tokenizer:
    """Write :func:`word_level_tokenizer` as ``tokenizer.json`` and ``tokenizer_config.json``, and give it."""
    tokenizer = word_level_tokenizer(words, max_length)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), "utf-8")
    config = {
        "backend": "tokenizers",
        "bos_token": BOS,
        "eos_token": EOS,
        "model_max_length": max_length,
        "pad_token": EOS,
        "padding_side": "right",
        "tokenizer_class": "TokenizersBackend",
        "unk_token": UNKNOWN,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    return tokenizer
