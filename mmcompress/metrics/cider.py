"""CIDEr-D of captions: how much they say what people said, weighed by how telling the words are."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from mmcompress.errors import InputError
from mmcompress.metrics import Bench, Measured, Subject
from mmcompress.metrics._quality import Quality, Statistic, derived_names, statistic_rows

LONGEST = 4
"""N-grams of one to four tokens."""
SIGMA = 6.0
"""Of the Gaussian that punishes another length."""
Tokens = Sequence[str]
Grams = Counter[tuple[str, ...]]


class Cider(Quality):
    """CIDEr-D (Vedantam et al., arXiv:1411.5726, section 5) over given tokens, times ten as the official code has it.

    The references of the test data tell how telling an n-gram is. Texts are split as ``tokens`` says; the official
    numbers of papers use the Penn Treebank tokenizer of Stanford's Java tools, which ``words`` comes near to.
    """

    tokens: Literal["words", "spaces", "characters"] = "words"
    """``words``: lower case, letters and digits with inner apostrophes, no punctuation; ``spaces``: as they stand, split
    at white space; ``characters``: one token each, for Chinese and the like."""

    def needs(self) -> frozenset[str]:
        """Captions."""
        return frozenset({"caption"})

    def gives(self) -> frozenset[str]:
        """``cider`` with retention and drop."""
        return derived_names(["cider"])

    def judge(self, subjects: Sequence[Subject], bench: Bench) -> Measured:
        """Score every caption against all texts of its picture, and compare with the teacher on the same pictures.

        Raises:
            InputError: fewer than two test examples, of which no n-gram is more telling than another.
        """
        assert bench.test is not None
        if len(bench.test) < 2:
            raise InputError(
                "cider weighs words by how many pictures they describe: expected two test examples or more"
            )
        references = [[split(text, self.tokens) for text in texts] for texts in bench.answers.values("texts")]
        scorer = Scorer(references)
        parts: dict[str, Any] = {}
        samples: dict[str, list[dict[str, Any]]] = {}
        for subject in subjects:
            captions: list[str] = bench.answers.texts(subject, "caption")
            found = [scorer.score(index, split(caption, self.tokens)) for index, caption in enumerate(captions)]
            parts[subject.name] = np.array(found, dtype=np.float64)[:, None]
            samples[f"cider/{subject.name}"] = [
                {"id": example, "score": score, "answer": caption}
                for example, score, caption in zip(bench.test.ids, found, captions, strict=True)
            ]
        conditions = {"tokens": self.tokens}
        statistic = Statistic("cider", conditions, unit="CIDEr-D", bounds=(0.0, 10.0), span=10.0)
        return Measured(statistic_rows(subjects, [statistic], parts, bench.seed), samples)


def split(text: str, tokens: str = "words") -> list[str]:
    """A text as tokens."""
    if tokens == "characters":
        return [character for character in text if not character.isspace()]
    return text.split() if tokens == "spaces" else re.findall(r"\w+(?:'\w+)*", text.lower())


class Scorer:
    """CIDEr-D against the references of a set of pictures."""

    def __init__(self, references: Sequence[Sequence[Tokens]]) -> None:
        """``references``: for each picture its texts, as tokens."""
        self._grams = [[grams(text) for text in texts] for texts in references]
        seen: Counter[tuple[str, ...]] = Counter()
        for texts in self._grams:
            seen.update({gram for text in texts for gram in text})
        self._rarity = {gram: math.log(len(references)) - math.log(max(1, count)) for gram, count in seen.items()}
        self._unseen = math.log(len(references))
        self._vectors = [[self._vector(text) for text in texts] for texts in self._grams]

    def score(self, picture: int, caption: Tokens) -> float:
        """CIDEr-D of a caption (tokens) of a picture (its index), 0 to 10: the mean over its references and n-gram lengths.

        The similarity of one length is the cosine of both vectors of term frequency times inverse document frequency,
        where the caption's counts are clipped to the reference's, times exp(-(difference of lengths)^2 / (2 sigma^2)).
        As in the official code, lengths count the bigrams.
        """
        found = self._vector(grams(caption))
        total = 0.0
        for reference in self._vectors[picture]:
            difference = found.bigrams - reference.bigrams
            total += _similarity(found, reference) * math.exp(-(difference**2) / (2 * SIGMA**2))
        return 10.0 * total / (LONGEST * len(self._vectors[picture]))

    def _vector(self, counts: Grams) -> _Vector:
        weights = {gram: count * self._rarity.get(gram, self._unseen) for gram, count in counts.items()}
        norms = [0.0] * LONGEST
        for gram, weight in weights.items():
            norms[len(gram) - 1] += weight**2
        bigrams = sum(count for gram, count in counts.items() if len(gram) == 2)
        return _Vector(weights, [math.sqrt(norm) for norm in norms], bigrams)


class _Vector:
    def __init__(self, weights: Mapping[tuple[str, ...], float], norms: Sequence[float], bigrams: int) -> None:
        self.weights, self.norms, self.bigrams = weights, norms, bigrams


def _similarity(found: _Vector, reference: _Vector) -> float:
    """The sum over n-gram lengths of the clipped cosine."""
    products = [0.0] * LONGEST
    for gram, weight in found.weights.items():
        theirs = reference.weights.get(gram, 0.0)
        products[len(gram) - 1] += min(weight, theirs) * theirs
    return sum(
        product / (one * other) if one and other else 0.0
        for product, one, other in zip(products, found.norms, reference.norms, strict=True)
    )


def grams(tokens: Tokens) -> Grams:
    """How often each n-gram of one to four tokens stands in a text."""
    return Counter(
        tuple(tokens[start : start + length])
        for length in range(1, LONGEST + 1)
        for start in range(len(tokens) - length + 1)
    )
