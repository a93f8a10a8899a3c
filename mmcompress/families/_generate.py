"""Greedy and beam search over a decoder graph, in numpy: what sequence models of a package answer with.

The *state* of a decoder holds its inputs but for ``input_ids``: what an encoder graph gave (``cross.0.key``, masks),
and ``past.<layer>.key`` and ``past.<layer>.value`` [n, heads, tokens, width], empty at first. A step gives ``logits``
[n, s, v] and the same caches, grown, as ``present.<layer>.*``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcompress.families import PADDING, Feeds, Run

Tokens = NDArray[np.int64]
Scores = NDArray[np.float32]
_PAST, _PRESENT = "past.", "present."


@dataclass(frozen=True)
class Decoding:
    """How a sequence is searched for."""

    end: tuple[int, ...]
    """Tokens that end a sequence."""
    max_tokens: int
    """At most, without the prompt and with the end token."""
    beams: int = 1
    """1 is greedy search."""
    length_penalty: float = 1.0
    """Beams are compared by the sum of their log probabilities over their length to this power."""
    suppress: tuple[int, ...] = ()
    """Tokens that are never taken."""
    suppress_first: tuple[int, ...] = ()
    """Tokens that are not taken first."""


def step(run: Run, graph: str, state: Feeds, tokens: Tokens) -> tuple[Scores, Feeds]:
    """One call of a decoder graph for tokens [n, s]: the logits after the last of them [n, v], and the next state."""
    outputs = run(graph, {"input_ids": tokens, **state})
    grown = {_PAST + name.removeprefix(_PRESENT): value for name, value in outputs.items() if name.startswith(_PRESENT)}
    return np.asarray(outputs["logits"][:, -1], dtype=np.float32), {**state, **grown}


def generate(
    run: Run, graph: str, state: Feeds, prompt: Tokens, decoding: Decoding, length: int | None = None
) -> NDArray[np.int32]:
    """The tokens that follow a prompt, without it and without the end token.

    Args:
        run: runs a graph by name.
        graph: the decoder's name.
        state: its inputs but for ``input_ids``, with the examples of ``prompt`` in their first axis.
        prompt: what every sequence begins with, int64 [n, p].
        decoding: how to search.
        length: force exactly as many tokens, greedily: for timing.

    Returns:
        int32 [n, s], :data:`mmcompress.families.PADDING` after the last token of each.
    """
    if length is not None or decoding.beams == 1:
        rows = _greedy(run, graph, state, prompt, decoding, length)
    else:
        rows = _beams(run, graph, state, prompt, decoding)
    width = max((len(row) for row in rows), default=0)
    result = np.full((len(rows), max(1, width)), PADDING, np.int32)
    for target, row in zip(result, rows, strict=True):
        target[: len(row)] = row
    return result


def _masked(logits: NDArray[Any], decoding: Decoding, first: bool, never_end: bool) -> NDArray[Any]:
    """Logits or log probabilities [n, v] without the tokens that may not come next."""
    banned = [*decoding.suppress, *(decoding.suppress_first if first else ()), *(decoding.end if never_end else ())]
    if banned:
        logits = logits.copy()
        logits[:, banned] = -np.inf
    return logits


def _greedy(
    run: Run, graph: str, state: Feeds, prompt: Tokens, decoding: Decoding, length: int | None
) -> list[list[int]]:
    rows: list[list[int]] = [[] for _ in prompt]
    open_rows = np.ones(len(prompt), dtype=np.bool_)
    tokens = prompt
    for position in range(decoding.max_tokens if length is None else length):
        logits, state = step(run, graph, state, tokens)
        chosen = _masked(logits, decoding, position == 0, length is not None).argmax(axis=1)
        open_rows &= ~np.isin(chosen, decoding.end)
        for index in np.flatnonzero(open_rows):
            rows[index].append(int(chosen[index]))
        if not open_rows.any():
            break
        tokens = chosen[:, None].astype(np.int64)
    return rows


def _beams(run: Run, graph: str, state: Feeds, prompt: Tokens, decoding: Decoding) -> list[list[int]]:
    """Beam search as transformers does it by default: an example ends when no open beam can beat its ended ones."""
    count, beams = len(prompt), decoding.beams
    rows = np.repeat(np.arange(count), beams)
    state = {name: value[rows] for name, value in state.items()}
    tokens = prompt[rows]
    sums = np.full((count, beams), -np.inf, np.float64)
    sums[:, 0] = 0.0
    texts: list[list[list[int]]] = [[[] for _ in range(beams)] for _ in range(count)]
    ended: list[list[tuple[float, list[int]]]] = [[] for _ in range(count)]
    settled = np.zeros(count, dtype=np.bool_)
    for position in range(decoding.max_tokens):
        logits, state = step(run, graph, state, tokens)
        # Probabilities are those of the model: what tokens that may not come next would have had goes to no other.
        scores = _masked(_log_softmax(logits), decoding, position == 0, False).reshape(count, beams, -1)
        parents, chosen = _advance(scores + sums[:, :, None], sums, texts, ended, settled, decoding, position)
        for index in range(count):
            settled[index] |= _settled(ended[index], sums[index].max(), position + 1, decoding)
        if settled.all():
            break
        order = (np.arange(count)[:, None] * beams + parents).reshape(-1)
        state = {name: value[order] for name, value in state.items()}
        tokens = chosen.reshape(-1, 1).astype(np.int64)
    return [max(found, key=lambda item: item[0])[1] if found else [] for found in ended]


def _advance(
    scores: NDArray[np.float64],
    sums: NDArray[np.float64],
    texts: list[list[list[int]]],
    ended: list[list[tuple[float, list[int]]]],
    settled: NDArray[np.bool_],
    decoding: Decoding,
    position: int,
) -> tuple[Tokens, Tokens]:
    """Take the best continuations of every example, in place; gives the beam each came from and its token, [n, beams].

    ``scores`` [n, beams, v] are sums of log probabilities with each next token. A sequence ends at an end token or at
    the last position, and counts where it is among the ``beams`` best of an example that is not ``settled`` yet.
    """
    count, beams, size = scores.shape
    last = position + 1 == decoding.max_tokens
    parents, chosen = np.zeros((count, beams), np.int64), np.zeros((count, beams), np.int64)
    for index in range(count):
        flat = scores[index].reshape(-1)
        # As many candidates as can end, and a full set of beams beside them.
        wanted = min(len(flat), beams * (1 + len(decoding.end)))
        best = np.argpartition(-flat, wanted - 1)[:wanted]
        best = best[np.argsort(-flat[best], kind="stable")]
        new_texts: list[list[int]] = []
        for rank, candidate in enumerate(best):
            beam, token = divmod(int(candidate), size)
            value = float(flat[candidate])
            if last or token in decoding.end:
                if rank < beams and np.isfinite(value) and not settled[index]:
                    text = texts[index][beam] if token in decoding.end else [*texts[index][beam], token]
                    _keep(ended[index], text, value, position + 1, decoding)
                continue
            place = len(new_texts)
            parents[index, place], chosen[index, place], sums[index, place] = beam, token, value
            new_texts.append([*texts[index][beam], token])
            if len(new_texts) == beams:
                break
        for place in range(len(new_texts), beams):
            sums[index, place] = -np.inf
            new_texts.append([])
        texts[index] = new_texts
    return parents, chosen


def _keep(
    ended: list[tuple[float, list[int]]], text: Sequence[int], total: float, tokens: int, decoding: Decoding
) -> None:
    """Add an ended sequence; the best ``beams`` of an example are kept."""
    ended.append((total / max(tokens, 1) ** decoding.length_penalty, list(text)))
    ended.sort(key=lambda item: -item[0])
    del ended[decoding.beams :]


def _settled(ended: Sequence[tuple[float, list[int]]], best: float, tokens: int, decoding: Decoding) -> bool:
    """Whether an example has all its sequences, and no open beam can still beat the worst of them."""
    if len(ended) < decoding.beams:
        return False
    return bool(ended[-1][0] >= best / tokens**decoding.length_penalty)


def _log_softmax(logits: Scores) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
