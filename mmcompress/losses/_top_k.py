"""Of many classes the likeliest, and one outcome for all others: what a distribution over them is compared by.

The k classes that the teacher finds likeliest are outcomes of their own; "any other class" is outcome k + 1, whose logit is
the logarithm of the others' sum of exp(z). At temperature 1 that is the teacher's distribution with the others taken together,
and its divergence is never more than that of all classes (the data processing inequality). A temperature divides these
k + 1 logits: the classes are taken together first and softened then. So what is kept of a teacher serves every temperature,
which it would not if the others were softened one by one: their mass at T does not follow from that at 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

VALUES, CLASSES = ".likeliest", ".classes"
"""What is appended to an output's name where the likeliest classes alone were kept: their logits, and which they are."""


def likeliest(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest logits, falling, and that of all other classes: [..., k + 1]; and which classes they are, [..., k].

    Args:
        logits: [..., c], with c > k.
        k: how many are kept.
    """
    classes = logits.topk(k, dim=-1).indices
    return grouped(logits, classes), classes


def grouped(logits: Tensor, classes: Tensor) -> Tensor:
    """The logits of some classes, and that of all others: [..., c] and [..., k] to [..., k + 1]."""
    import torch

    others = logits.scatter(-1, classes, -torch.inf).logsumexp(dim=-1, keepdim=True)
    return torch.cat([logits.gather(-1, classes), others], dim=-1)


def likeliest_of(outputs: Mapping[str, Any], name: str, k: int) -> tuple[Tensor, Tensor] | None:
    """:func:`likeliest` of an output that is whole, or of which k classes or more were kept; None where it has no more than k."""
    import torch

    if name in outputs:
        logits: Tensor = outputs[name]
        return likeliest(logits, k) if logits.shape[-1] > k else None
    values, classes = outputs[name + VALUES], outputs[name + CLASSES]
    kept = classes.shape[-1]
    if kept < k:
        raise ValueError(f"{kept} classes of {name} were kept; expected {k} or more")
    others = values[..., k:].logsumexp(dim=-1, keepdim=True)
    return torch.cat([values[..., :k], others], dim=-1), classes[..., :k]
