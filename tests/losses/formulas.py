"""The formulas of the losses in numpy and double precision, loop by loop, and random outputs to feed them with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[np.float64]
CLASSES, TOKENS, HEADS = 5, 6, 4


def softmax(row: Array) -> Array:
    powers = np.exp(row - row.max())
    return np.asarray(powers / powers.sum())


def sigmoid(row: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-row)))


def kl(of: Array, against: Array) -> float:
    """sum p log(p / q), where outcomes of no weight add nothing."""
    return float(sum(p * np.log(p / q) for p, q in zip(of, against, strict=True) if p > 0))


def divergence(student: Array, teacher: Array, direction: str) -> float:
    if direction == "forward":
        return kl(teacher, student)
    if direction == "reverse":
        return kl(student, teacher)
    middle = (student + teacher) / 2
    return 0.5 * kl(teacher, middle) + 0.5 * kl(student, middle)


def bernoulli(student: Array, teacher: Array, direction: str) -> float:
    pairs = zip(student, teacher, strict=True)
    return sum(divergence(np.array([s, 1 - s]), np.array([t, 1 - t]), direction) for s, t in pairs)


def logits_kl(student: Array, teacher: Array, temperature: float, direction: str, outcomes: str = "exclusive") -> float:
    """Of rows [n, c]."""
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        if outcomes == "exclusive":
            total += divergence(softmax(s / temperature), softmax(t / temperature), direction)
        else:
            total += bernoulli(sigmoid(s / temperature), sigmoid(t / temperature), direction)
    return temperature**2 * total / len(student)


def numbers(value: Any) -> Any:
    """Tensors, tuples and mappings of them as arrays in double precision."""
    if isinstance(value, dict):
        return {name: numbers(item) for name, item in value.items()}
    if isinstance(value, tuple):
        return tuple(numbers(item) for item in value)
    return value.double().numpy()


def random_outputs(
    needs: Iterable[str], seed: int, *, batch: int = 7, width: int = 8, layers: int = 3, heads: int = HEADS
) -> dict[str, Any]:
    """Outputs of these names; logits are [b, s, c] where a mask is among them. Masks are the same for all seeds."""
    generator = torch.Generator().manual_seed(seed)
    needs = sorted(needs)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    def output(what: str) -> Any:
        if what == "embeds":
            # One direction that all share, as real embeddings have: some pairs that do not match are near.
            return torch.nn.functional.normalize(normal(batch, width) + torch.eye(width)[0] * 3, dim=-1)
        if what == "logits":
            sequence = (TOKENS,) if any(name.endswith(".mask") for name in needs) else ()
            return 2 * normal(batch, *sequence, CLASSES)
        if what == "mask":
            return (torch.arange(TOKENS)[None] <= torch.arange(batch)[:, None] % TOKENS).float()
        if what == "hidden_states":
            return tuple(normal(batch, TOKENS, width) for _ in range(layers))
        if what == "attentions":
            return tuple(normal(batch, heads, TOKENS, TOKENS).softmax(dim=-1) for _ in range(layers))
        assert what == "logit_scale", what
        return torch.tensor(5.0 + seed)

    return {name: output(name.partition(".")[2]) for name in needs}


def rows(outputs: dict[str, Any], chosen: slice) -> dict[str, Any]:
    """Some examples of a batch's outputs."""

    def some(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(some(item) for item in value)
        return value[chosen] if value.ndim else value

    return {name: some(value) for name, value in outputs.items()}
