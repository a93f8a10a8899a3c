"""Splits: held out by id, cut to a size, and proved to share nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import combinations

from mmcompress.data import Example, Examples
from mmcompress.errors import InputError


class Selected:
    """Some of the examples of a split, in a given order."""

    def __init__(self, examples: Examples, indices: Sequence[int], notes: Mapping[str, int] | None = None) -> None:
        self.examples = examples
        self.indices = tuple(indices)
        self.ids: Sequence[str] = tuple(examples.ids[i] for i in self.indices)
        self.columns = examples.columns
        self.notes: Mapping[str, int] = dict(examples.notes if notes is None else notes)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Example:
        return self.examples[self.indices[index]]

    def fingerprint(self, index: int) -> str:
        """That of the example in the split it came from."""
        return self.examples.fingerprint(self.indices[index])

    def classes(self) -> Sequence[str]:
        """All classes of the split it came from, so that labels keep their meaning."""
        return self.examples.classes()

    def tag_classes(self) -> Sequence[str]:
        """Those of the split it came from; empty where it has none."""
        return tag_classes(self.examples)


def tag_classes(examples: Examples) -> Sequence[str]:
    """Names of the classes that ``tags`` count; empty where a split has none."""
    names = getattr(examples, "tag_classes", None)
    return () if names is None else tuple(names())


def subset(examples: Examples, count: int, seed: int | None = None) -> Examples:
    """The first ``count`` examples, or a sample of them (in their order) that follows from ``seed``; all if fewer."""
    if seed is None:
        return Selected(examples, range(min(count, len(examples))))
    drawn = sorted(range(len(examples)), key=lambda i: _share(f"subset {seed}", examples.ids[i]))[:count]
    return Selected(examples, sorted(drawn))


def hold_out(examples: Examples, ratio: float, seed: int) -> tuple[Examples, Examples]:
    """Split into (rest, held out) by a hash of the example id: an example stays on its side as others come and go.

    Raises:
        InputError: one side would be empty.
    """
    sides: tuple[list[int], list[int]] = ([], [])
    for i, name in enumerate(examples.ids):
        sides[_share(f"hold out {seed}", name) < ratio].append(i)
    if not all(sides):
        raise InputError(
            f"holding out {ratio:g} of {len(examples)} examples leaves {len(sides[0])} for training and "
            f"{len(sides[1])} for validation\n  Expected examples on both sides: change the ratio, or name a validation file."
        )
    return Selected(examples, sides[0]), Selected(examples, sides[1], notes={})


def _share(purpose: str, name: str) -> float:
    """A number in [0, 1) that follows from a name."""
    return int.from_bytes(hashlib.sha256(f"{purpose}/{name}".encode()).digest()[:7], "big") / 2**56


def check_disjoint(train: Examples | None, validation: Examples | None, test: Examples | None) -> None:
    """Check that no example, by id or by content, is in two splits.

    Raises:
        InputError: which splits share how many examples, and the first three of them.
    """
    found = {"train": train, "validation": validation, "test": test}
    problems = overlaps({name: split for name, split in found.items() if split is not None})
    if problems:
        raise InputError(
            "\n".join(problems) + "\n  Expected splits that share nothing. Remove the shared examples from one side; "
            "where only ids coincide, name a column with ids that are unique over all splits."
        )


def overlaps(splits: Mapping[str, Examples]) -> list[str]:
    """Which splits share how many examples, by id or by content, and the first three of them: a line each."""
    known = {name: (split, _keys(split)) for name, split in splits.items()}
    problems = []
    for (first, (_, keys)), (second, (examples, others)) in combinations(known.items(), 2):
        shared = keys.keys() & others.keys()
        if not shared:
            continue
        # An example that is the same by id and by content has two keys and counts once.
        indices = sorted({others[key] for key in shared})
        shown = ", ".join(repr(examples.ids[i]) for i in indices[:3])
        same_id = sum(("id", examples.ids[i]) in shared for i in indices)
        problems.append(
            f"{first} and {second} share {len(indices)} of {second}'s {len(examples)} examples "
            f"({same_id} by id, {len(indices) - same_id} by content alone): {shown}"
            f"{', ...' if len(indices) > 3 else ''}"
        )
    return problems


def _keys(examples: Examples) -> dict[tuple[str, str], int]:
    """Index by id and by fingerprint."""
    keys: dict[tuple[str, str], int] = {}
    for i, name in enumerate(examples.ids):
        keys["id", name] = i
        keys["content", examples.fingerprint(i)] = i
    return keys
