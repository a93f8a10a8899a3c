"""Whether logits of two models mean the same: their classes, or their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmcompress.component import digest_json, digest_path
from mmcompress.errors import InputError
from mmcompress.families import Family
from mmcompress.families._images import read_object
from mmcompress.losses import Loss
from mmcompress.stages import Model

TOKENIZERS = ("tokenizer.json", "vocab.json", "vocab.txt", "sentencepiece.bpe.model", "spiece.model")
"""Files that say what token numbers mean, the one that decides first."""


def check_vocabularies(losses: Sequence[Loss], student: Model, teachers: Sequence[Model]) -> None:
    """Logits that are compared are of the same classes or tokens.

    Raises:
        InputError: they are not, with what differs.
    """
    names = logits_of(losses)
    for teacher in teachers:
        for name in names:
            reason = differing(name, student, teacher)
            if reason:
                raise InputError(
                    f"{name} of the student and of the teacher {teacher.folder} cannot be compared: {reason}\n"
                    "  Give both the same classes or tokenizer, or use a loss on embeddings or hidden states."
                )


def logits_of(losses: Sequence[Loss]) -> list[str]:
    """The logits that losses compare."""
    return sorted({name for loss in losses for name in loss.needs() if name.endswith(".logits")})


def differing(output: str, student: Model, teacher: Model) -> str | None:
    """Why logits of an output mean other things in two models, as far as their folders tell; None where they do not."""
    ours, theirs = (classes(model.family, model.folder) for model in (student, teacher))
    if ours is not None and theirs is not None and output.startswith("fusion."):
        if ours != theirs:
            return f"the student has {_few(ours)}, the teacher {_few(theirs)}"
        return None
    if output.startswith("fusion."):
        return None
    tokens = [_tokenizer(model.folder) for model in (student, teacher)]
    if None not in tokens and tokens[0] != tokens[1]:
        return "their tokenizers differ, so that the same number is another token"
    return None


def classes(family: Family, folder: Path) -> tuple[str, ...] | None:
    """The names of a model's classes; None of one that has none, or whose folder is not there."""
    if not (folder / "config.json").is_file():
        return None
    try:
        found = getattr(family.processor(folder), "classes", None)
    except InputError:  # a checkpoint that is no model folder yet: it is checked when it is one
        return None
    return tuple(found) if found else None


def _tokenizer(folder: Path) -> str | None:
    for name in TOKENIZERS:
        file = folder / name
        if file.is_file() and name == "tokenizer.json":
            # Truncation and padding stand there too, and change no token.
            read = read_object(file)
            return digest_json([read.get("model", {}), read.get("added_tokens", [])])
        if file.is_file():
            return digest_path(file)
    return None


def _few(names: Sequence[str], count: int = 3) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return f"{', '.join(map(repr, names[:count]))}{more}"
