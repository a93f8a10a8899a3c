"""Texts that a decoder shall write: to tokens for training, and from tokens when it has written them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from mmcompress.errors import InputError
from mmcompress.families import PADDING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

IGNORED = -100
"""Labels that no loss counts, as torch's cross entropy knows them."""


class TargetSettings(BaseModel):
    """How a decoder's texts become tokens, resolved."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: tuple[int, ...]
    """Tokens that every sequence begins with, and that the decoder is given."""
    end: int
    max_tokens: int
    """Tokens at most, with the end token and without the prompt; longer texts lose their end but keep the end token."""
    lower: bool = False


class TargetEncoder:
    """Texts to what a decoder is trained with, in two halves (see :class:`mmcompress.families.Processor`), and back."""

    def __init__(self, tokenizer: Tokenizer, settings: TargetSettings) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.settings = settings
        self._tokenizer = tokenizer

    def compact(self, texts: Sequence[Any]) -> NDArray[np.int32]:
        """Texts to int32 [n, max_tokens]: their tokens and the end token, then :data:`PADDING`.

        Raises:
            InputError: a value that is no text.
        """
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise InputError(f"text {index + 1} of {len(texts)}: expected a string, got {type(text).__name__}")
        words = [text.lower() for text in texts] if self.settings.lower else list(texts)
        result = np.full((len(texts), self.settings.max_tokens), PADDING, np.int32)
        for row, encoding in zip(result, self._tokenizer.encode_batch(words, add_special_tokens=False), strict=True):
            ids = [*encoding.ids[: self.settings.max_tokens - 1], self.settings.end]
            row[: len(ids)] = ids
        return result

    def expand(self, tokens: NDArray[np.int32]) -> dict[str, NDArray[Any]]:
        """``decoder_input_ids`` and ``labels``, int64 [n, s] each, s the longest there with the prompt.

        The label of a place is the token that follows it; places within the prompt and after the end are
        :data:`IGNORED`, and what is fed there is the end token.
        """
        longest = max(1, int((tokens != PADDING).sum(axis=1).max(initial=1)))
        tokens = tokens[:, :longest]
        prompt = np.tile(np.asarray(self.settings.prompt, np.int64), (len(tokens), 1))
        known = np.where(tokens == PADDING, self.settings.end, tokens).astype(np.int64)
        labels = np.where(tokens == PADDING, IGNORED, tokens).astype(np.int64)
        ignored = np.full((len(tokens), len(self.settings.prompt) - 1), IGNORED, np.int64)
        return {
            "decoder_input_ids": np.concatenate([prompt, known[:, :-1]], axis=1),
            "labels": np.concatenate([ignored, labels], axis=1),
        }

    def prompts(self, count: int) -> NDArray[np.int64]:
        """The prompt for a number of examples, [n, p]."""
        return np.tile(np.asarray(self.settings.prompt, np.int64), (count, 1))

    def decode(self, rows: NDArray[Any]) -> list[str]:
        """Tokens [n, s] to texts, without special tokens."""
        kept = [[int(token) for token in row if token != PADDING] for row in rows]
        return [text.strip() for text in self._tokenizer.decode_batch(kept, skip_special_tokens=True)]
