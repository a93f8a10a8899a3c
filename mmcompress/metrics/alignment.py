"""How far matching pairs lie apart from others, and how far the two kinds of inputs lie apart as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mmcompress.errors import InputError
from mmcompress.metrics import Bench, Measured, Scores, Subject
from mmcompress.metrics._pairs import SIDES, Pairs
from mmcompress.metrics._quality import Statistic, derived_names, statistic_rows
from mmcompress.metrics.recall_at_k import positive_galleries

Embeddings = NDArray[np.float32]


class Alignment(Pairs):
    """The mean cosine of matching pairs minus that of non-matching ones, and the modality gap.

    Pairs are those within a gallery, and match as in ``recall_at_k``. The gap is the distance between the means of both
    sides' embeddings (Liang et al., arXiv:2203.02053, section 2); it is told beside, for neither end of it is the better
    one by itself.
    """

    gallery_size: int | None = Field(None, ge=2)
    """The split is cut into consecutive galleries of this size; None makes it one gallery."""

    def gives(self) -> frozenset[str]:
        """``alignment`` with retention and drop, and ``modality_gap``."""
        return derived_names(["alignment"]) | {"modality_gap"}

    def judge(self, subjects: Sequence[Subject], bench: Bench) -> Measured:
        """Score every example's pairs, and compare with the teacher on the same ones.

        Raises:
            InputError: there are no two examples to compare.
        """
        assert bench.test is not None
        side, _ = SIDES[self.side]
        size = min(self.gallery_size or len(bench.test), len(bench.test))
        used = len(bench.test) // size * size
        if size < 2:
            raise InputError("alignment compares the examples of the test data, and there is one alone")
        texts, equal = bench.answers.values("texts")[:used], bench.answers.values(self.equal_by(subjects))[:used]
        positives = positive_galleries(texts, equal, size)
        parts: dict[str, Scores] = {}
        samples: dict[str, list[dict[str, Any]]] = {}
        for subject in subjects:
            inputs = bench.answers(subject, self.side)[:used]
            described = bench.answers(subject, self.texts)[:used]
            scores = alignment(inputs, described, positives, size)
            parts[subject.name] = np.hstack([scores[:, None], (inputs - described).astype(np.float64)])
            samples[f"alignment/{subject.name}"] = [
                {"id": example, "score": float(score)}
                for example, score in zip(bench.test.ids[:used], scores, strict=True)
            ]
        conditions = {"between": f"{side} and text", "gallery": size}
        statistics = [
            Statistic("alignment", conditions, bounds=(-2.0, 2.0), span=4.0),
            Statistic(
                "modality_gap",
                {"between": f"{side} and text"},
                derived=False,
                of=lambda means: np.asarray(np.linalg.norm(means[..., 1:], axis=-1)),
                samples="alignment",
                higher_is_better=False,
                bounds=(0.0, 2.0),
                span=2.0,
            ),
        ]
        left = len(bench.test) - used
        note = f"{left} test examples beyond the last whole gallery were left out" if left else ""
        return Measured(statistic_rows(subjects, statistics, parts, bench.seed, note), samples)


def alignment(inputs: Embeddings, texts: Embeddings, positives: Sequence[NDArray[np.bool_]], size: int) -> Scores:
    """For each input the mean cosine with its matching texts minus that with the others of its gallery: [n].

    Where all texts of a gallery match, there is nothing to compare with: 0.

    Args:
        inputs: L2-normalised embeddings of pictures or sounds [n, d].
        texts: those of the texts [n, d].
        positives: which text matches which input, [size, size] per gallery.
        size: of a gallery.
    """
    scores = np.empty(len(positives) * size, dtype=np.float64)
    for number, match in enumerate(positives):
        rows = slice(number * size, (number + 1) * size)
        cosines = inputs[rows].astype(np.float64) @ texts[rows].astype(np.float64).T
        near = np.where(match, cosines, 0.0).sum(axis=1) / match.sum(axis=1)
        others = (~match).sum(axis=1)
        far = np.where(match, 0.0, cosines).sum(axis=1) / np.maximum(others, 1)
        scores[rows] = np.where(others > 0, near - far, 0.0)
    return scores
