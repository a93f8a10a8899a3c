"""Words that are hidden in training: a pure function of (seed, epoch, example), as all views of examples are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mmcompress.families import PADDING, Masking

HIDDEN, REPLACED = 0.8, 0.9
"""Of the chosen words, so many are hidden; up to here the next are replaced by others; the rest stays as it is."""


def mask_words(
    tokens: NDArray[np.int32], masking: Masking, draw: Callable[[str], NDArray[np.float64]]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Hide words of texts (BERT, arXiv:1810.04805, section 3.1).

    Args:
        tokens: int32 [b, s], -1 after the last of each.
        masking: what may be hidden, and how.
        draw: numbers in [0, 1) for every place [b, s], by what they are for.

    Returns:
        The tokens with words hidden, and the hidden words where they stood, -1 elsewhere: int32 [b, s] each. A text
        with any word has at least one hidden.
    """
    words = (tokens != PADDING) & ~np.isin(tokens, masking.special)
    chance = np.where(words, draw("mask"), 2.0)
    chosen = chance < masking.share
    least = chance.argmin(axis=1)
    rows = np.flatnonzero(words.any(axis=1))
    chosen[rows, least[rows]] = True
    kind = draw("mask kind")
    other = (draw("mask word") * masking.vocabulary).astype(np.int32)
    changed = np.where(kind < HIDDEN, masking.token, np.where(kind < REPLACED, other, tokens))
    return np.where(chosen, changed, tokens).astype(np.int32), np.where(chosen, tokens, PADDING).astype(np.int32)
