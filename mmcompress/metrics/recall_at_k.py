"""Retrieval in both directions among galleries of a stated size: recall at k and mean reciprocal rank."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from mmcompress.errors import InputError
from mmcompress.metrics import Bench, Measured, Row, Scores, Subject
from mmcompress.metrics._pairs import SIDES, Pairs
from mmcompress.metrics._quality import TIE, Column, absent_rows, derived_names, quality_rows, teacher_of

if TYPE_CHECKING:
    from typing import Self  # not in the Python 3.10 of some devices

PAIRS_GALLERY = 20
"""Size of a gallery where every pair in it is a pass of the model and no size is given."""


class RecallAtK(Pairs):
    """The share of queries that find a positive among the k nearest, pictures to texts, texts to pictures, and their mean.

    Of a model that embeds films or sounds it is these to texts, and so on in what follows.

    The gallery holds each example's picture or its first text. Any positive counts: the example's own partner, any text
    that is one of the picture's alternatives, and what belongs to an identical picture or an equal text. Ties count
    against the model: the rank of a positive is one more than the number of negatives that are at least as similar.
    """

    k: tuple[int, ...] = (1, 5)
    gallery_size: int | None = Field(None, ge=2)
    """The split is cut into consecutive galleries of this size; None makes it one gallery."""
    gallery: Literal["own", "teacher"] = "own"
    """Whose embeddings the queries search: the model's own, or the teacher's."""
    by: Literal["embeddings", "match"] | None = None
    """What tells how near two are: the cosine of their embeddings, or the score of their match, which is asked for every
    pair of a gallery (of 20 where no size is given). None takes embeddings where the model has them."""

    @field_validator("k")
    @classmethod
    def _positive(cls, k: tuple[int, ...]) -> tuple[int, ...]:
        if not k or min(k) < 1 or len(set(k)) != len(k):
            raise ValueError("expected different whole numbers from 1")
        return k

    def fitted(self, offered: frozenset[str]) -> Self:
        """With :attr:`by` filled in: matches where the model gives those and no embeddings."""
        chosen = super().fitted(offered)
        matches = "match" in offered and not {chosen.side, chosen.texts} <= offered
        by = chosen.by or ("match" if matches else "embeddings")
        size = chosen.gallery_size or (PAIRS_GALLERY if by == "match" else None)
        return chosen.model_copy(update={"by": by, "gallery_size": size})

    def needs(self) -> frozenset[str]:
        """Embeddings of both sides, or the match of a pair."""
        return frozenset({"match"}) if self.by == "match" else super().needs()

    def gives(self) -> frozenset[str]:
        """``recall_at_<k>`` and ``mrr``, with retention and drop."""
        return derived_names(self._metrics())

    def judge(self, subjects: Sequence[Subject], bench: Bench) -> Measured:
        """Rank within each gallery, score each example, and compare with the teacher on the same galleries."""
        assert bench.test is not None
        teacher = teacher_of(subjects)
        if self.gallery == "teacher" and teacher is None:
            raise InputError("recall_at_k with `gallery: teacher` needs the teacher among what is measured")
        side, _ = SIDES[self.side]
        directions = ("mean", f"{side}_to_text", f"text_to_{side}")
        size = self.gallery_size or len(bench.test)
        used = len(bench.test) // size * size
        columns = [
            Column(metric, self._conditions(direction, size), derived=direction == "mean")
            for metric in self._metrics()
            for direction in directions
        ]
        if used == 0:
            reason = f"{len(bench.test)} test examples are fewer than one gallery of {size}"
            return Measured(absent_rows(subjects, columns, len(bench.test), reason), {})
        texts, equal = bench.answers.values("texts")[:used], bench.answers.values(self.equal_by(subjects))[:used]
        positives = positive_galleries(texts, equal, size)
        scores: dict[str, Scores] = {}
        samples: dict[str, list[dict[str, Any]]] = {}
        for subject in subjects:
            other = teacher if self.gallery == "teacher" and teacher is not None else subject
            if self.by == "match":
                similar = matches(subject, bench, used, size)
            else:
                similar = cosines(
                    (bench.answers(subject, self.side)[:used], bench.answers(other, self.texts)[:used]),
                    (bench.answers(subject, self.texts)[:used], bench.answers(other, self.side)[:used]),
                    size,
                )
            ranks, answers = rank_galleries(similar, positives, size)
            scores[subject.name] = score_columns(ranks, self.k)
            for index, metric in enumerate(self._metrics()):
                samples[f"{metric}/{subject.name}"] = _samples(
                    bench.test.ids, scores[subject.name][:, index * len(directions)], answers, side
                )
        left = len(bench.test) - used
        note = f"{left} test examples beyond the last whole gallery were left out" if left else ""
        rows: list[Row] = quality_rows(subjects, columns, scores, bench.seed, note)
        return Measured(rows, samples)

    def _metrics(self) -> list[str]:
        suffix = "_teacher_gallery" if self.gallery == "teacher" else ""
        return [f"recall_at_{k}{suffix}" for k in self.k] + [f"mrr{suffix}"]

    def _conditions(self, direction: str, size: int) -> dict[str, Any]:
        return {"direction": direction, "gallery": size, "gallery_of": self.gallery}


def positive_galleries(
    texts: Sequence[Sequence[str]], pictures: Sequence[Hashable], size: int
) -> list[NDArray[np.bool_]]:
    """Which text j answers which picture i, per consecutive gallery: [size, size] each.

    Text j is the first text of example j. It answers picture i when i is j, when the two pictures are identical, or when
    it is among the texts of picture i (or of one identical to it).
    """
    galleries = []
    for start in range(0, len(texts), size):
        members = range(start, start + size)
        by_text: dict[str, list[int]] = {}
        by_picture: dict[Hashable, list[int]] = {}
        for index in members:
            by_text.setdefault(texts[index][0], []).append(index - start)
            by_picture.setdefault(pictures[index], []).append(index - start)
        positive = np.zeros((size, size), dtype=np.bool_)
        for index in members:
            twins = by_picture[pictures[index]]
            positive[index - start, twins] = True
            for twin in twins:
                for text in texts[start + twin]:
                    positive[index - start, by_text.get(text, [])] = True
        galleries.append(positive)
    return galleries


Similar = tuple[NDArray[np.float32], NDArray[np.float32]]
"""How near each picture is to each text of a gallery [size, size], and each text to each picture."""


def cosines(image_to_text: Similar, text_to_image: Similar, size: int) -> Iterator[Similar]:
    """Per gallery, by embeddings: each direction is a pair of queries and what they search [n, d], L2-normalised."""
    (pictures, among_texts), (texts, among_pictures) = image_to_text, text_to_image
    for start in range(0, len(pictures), size):
        rows = slice(start, start + size)
        yield pictures[rows] @ among_texts[rows].T, texts[rows] @ among_pictures[rows].T


def matches(subject: Subject, bench: Bench, used: int, size: int) -> Iterator[Similar]:
    """Per gallery, by the match of each picture with each text: a number, or the scores of no and yes."""
    assert bench.test is not None
    for start in range(0, used, size):
        bench.progress(f"matching the pairs of {subject.name}", start, used)
        examples = [bench.test[index].values for index in range(start, start + size)]
        pictures = [values["image"] for values in examples for _ in examples]
        texts = [values["texts"][0] for values in examples] * size
        scores = bench.answers.ask(subject, "match", {"image": pictures, "text": texts})
        fit = scores.reshape(size, size, -1)
        similar = fit[..., 1] - fit[..., 0] if fit.shape[-1] == 2 else fit[..., 0]
        yield similar, similar.T


def rank_galleries(
    similarities: Iterable[Similar], positives: Sequence[NDArray[np.bool_]], size: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ranks of each query's best positive [n, 2], from 1, and the index of its nearest gallery item [n, 2].

    Columns are picture to text and text to picture.
    """
    ranks = np.empty((len(positives) * size, 2), dtype=np.int64)
    answers = np.empty_like(ranks)
    for number, (both, positive) in enumerate(zip(similarities, positives, strict=True)):
        rows = slice(number * size, (number + 1) * size)
        for column, (similar, answer) in enumerate(zip(both, (positive, positive.T), strict=True)):
            best = np.where(answer, similar, -np.inf).max(axis=1, keepdims=True)
            ranks[rows, column] = 1 + ((similar >= best - TIE) & ~answer).sum(axis=1)
            answers[rows, column] = number * size + similar.argmax(axis=1)
    return ranks, answers


def score_columns(ranks: NDArray[np.int64], ks: Sequence[int]) -> Scores:
    """Scores [n, 3 (k + 1)]: for each k and for the reciprocal rank, the mean of both directions and each of them."""
    found = [*(ranks <= k for k in ks), 1.0 / ranks]
    return np.hstack([np.stack([hits.mean(axis=1), hits[:, 0], hits[:, 1]], axis=1) for hits in found]).astype(
        np.float64
    )


def _samples(ids: Sequence[str], scores: Scores, answers: NDArray[np.int64], side: str) -> list[dict[str, Any]]:
    """One record per example: its score, and the ids of the text and of the picture or sound that were found first."""
    return [
        {"id": ids[index], "score": float(score), "answer": ids[text], f"answer_text_to_{side}": ids[other]}
        for index, (score, (text, other)) in enumerate(zip(scores, answers.tolist(), strict=True))
    ]
