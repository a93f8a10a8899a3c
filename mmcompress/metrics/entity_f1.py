"""Entities in tagged words: precision, recall and F1 of whole entities, as seqeval counts them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from pydantic import Field

from mmcompress.data._splits import tag_classes
from mmcompress.errors import InputError
from mmcompress.families import PADDING
from mmcompress.metrics import Bench, Measured, Subject
from mmcompress.metrics._classes import class_space
from mmcompress.metrics._confusion import PER_CLASS, macro, micro, of_class, weighted_f1
from mmcompress.metrics._quality import Quality, Statistic, derived_names, statistic_rows
from mmcompress.metrics._statistics import Hits

OUTSIDE = "O"
Entity = tuple[str, int, int]
"""Its kind, its first word and its last."""


class EntityF1(Quality):
    """An entity is right where its kind and its first and last word are; seqeval's default (conlleval's) rules.

    ``entity_precision``, ``entity_recall`` and ``entity_f1`` are over all entities (micro), ``entity_f1_macro`` and
    ``entity_f1_weighted`` over their kinds. Tags are ``O``, ``B-<kind>`` and ``I-<kind>``; an ``I`` that follows no tag of
    its kind begins an entity. Words beyond what the model reads are outside.
    """

    per_class: int = Field(32, ge=0)
    """Rows of each kind of entity where there are at most this many kinds."""

    def needs(self) -> frozenset[str]:
        """Tags."""
        return frozenset({"tag"})

    def columns(self) -> frozenset[str]:
        """Words' true tags, besides the slices."""
        return super().columns() | {"tags"}

    def gives(self) -> frozenset[str]:
        """Precision, recall and F1 with retention and drop; those of each kind without."""
        return derived_names([f"entity_{name}" for name in (*PER_CLASS, "f1_macro", "f1_weighted")])

    def judge(self, subjects: Sequence[Subject], bench: Bench) -> Measured:
        """Compare the entities of every text, and with the teacher's on the same texts.

        Raises:
            InputError: tags that are no BIO tags or not the model's, more tags than words, or no entity at all.
        """
        assert bench.test is not None
        truth = [tuple(tags) for tags in bench.answers.values("tags")]
        models = {item.name: bench.answers.classes(item) for item in subjects}
        space = class_space(tag_classes(bench.test), models, truth)
        kinds = _kinds(space.names)
        true = [entities([space.names[tag] for tag in tags]) for tags in truth]
        if not any(true):
            raise InputError("entity_f1: the test data hold no entity")
        parts, samples = {}, {}
        for subject in subjects:
            names = [space.names[place] for place in space.places[subject.name]]
            said = _said(bench.answers(subject, "tag"), names, truth, bench.test.ids)
            found = [entities(tags) for tags in said]
            parts[subject.name] = _counts(true, found, kinds)
            samples[f"entity_f1/{subject.name}"] = [
                {"id": example, "score": float(set(one) == set(other)), "answer": " ".join(tags)}
                for example, one, other, tags in zip(bench.test.ids, true, found, said, strict=True)
            ]
        return Measured(statistic_rows(subjects, self._statistics(kinds, true), parts, bench.seed), samples)

    def _statistics(self, kinds: Mapping[str, int], true: Sequence[Sequence[Entity]]) -> list[Statistic]:
        c = len(kinds)
        made = {name: partial(micro, c=c, what=name) for name in ("f1", "precision", "recall")}
        made |= {"f1_macro": partial(macro, c=c, what="f1"), "f1_weighted": partial(weighted_f1, c=c)}
        found = [Statistic(f"entity_{name}", of=of, samples="entity_f1") for name, of in made.items()]
        if c <= self.per_class:
            present = {kind for entities_ in true for kind, _, _ in entities_}
            found += [
                Statistic(
                    f"entity_{what}",
                    {"class": kind},
                    derived=False,
                    of=partial(of_class, c=c, index=index, what=what),
                    samples="entity_f1",
                )
                for kind, index in kinds.items()
                if kind in present
                for what in PER_CLASS
            ]
        return found


def entities(tags: Sequence[str]) -> list[Entity]:
    """The entities of a text, by its tags in order (seqeval 1.2.2, ``get_entities``)."""
    found: list[Entity] = []
    before = ""
    for index, tag in enumerate(tags):
        prefix, _, kind = tag.partition("-")
        if prefix == "I" and kind == before:
            found[-1] = (kind, found[-1][1], index)
        elif tag != OUTSIDE:
            found.append((kind, index, index))
        before = "" if tag == OUTSIDE else kind
    return found


def _kinds(names: Sequence[str]) -> dict[str, int]:
    wrong = [name for name in names if name != OUTSIDE and not name.startswith(("B-", "I-"))]
    if wrong:
        raise InputError(f"entity_f1 reads BIO tags (O, B-<kind>, I-<kind>), and there is {wrong[0]!r}")
    kinds = dict.fromkeys(name[2:] for name in names if name != OUTSIDE)
    return {kind: index for index, kind in enumerate(kinds)}


def _said(rows: Any, names: Sequence[str], truth: Sequence[Sequence[int]], ids: Sequence[str]) -> list[list[str]]:
    """Tags of every word; words that have none are outside."""
    said = []
    for example, row, tags in zip(ids, rows.tolist(), truth, strict=True):
        given = [names[tag] for tag in row if tag != PADDING]
        if len(given) > len(tags):
            raise InputError(f"{example}: {len(given)} tags were answered to {len(tags)} words")
        said.append(given + [OUTSIDE] * (len(tags) - len(given)))
    return said


def _counts(true: Sequence[Sequence[Entity]], found: Sequence[Sequence[Entity]], kinds: Mapping[str, int]) -> Hits:
    """As :func:`mmcompress.metrics._confusion.confusion` has them, with entities in place of examples' classes."""
    rows, columns = [], []
    for row, (one, other) in enumerate(zip(true, found, strict=True)):
        groups = (set(one) & set(other), other, one)
        places = [1 + place * len(kinds) + kinds[item[0]] for place, group in enumerate(groups) for item in group]
        places += [0] * (set(one) == set(other))
        rows += [row] * len(places)
        columns += places
    return Hits(len(true), 1 + 3 * len(kinds), np.array(rows, dtype=np.int64), np.array(columns, dtype=np.int64))
