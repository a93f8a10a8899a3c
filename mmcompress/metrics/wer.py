"""Word and character error rates of transcripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmcompress._error_rate import SPELLINGS, Normalise, Normaliser, count, normaliser_of
from mmcompress.component import RecipePath
from mmcompress.errors import InputError
from mmcompress.metrics import Bench, Measured, Subject
from mmcompress.metrics._quality import Quality, Statistic, derived_names, statistic_rows
from mmcompress.metrics._statistics import Floats


class Wer(Quality):
    """Word error rate ``wer`` and character error rate ``cer`` over the whole test split, by jiwer.

    Substitutions, deletions and insertions of all examples, over the words (characters) of all references; both sides
    normalised before. Of several references of an example the nearest one counts. Retention is the teacher's rate over
    the subject's.
    """

    normaliser: Normaliser = "basic"
    """Whisper's, in transformers' code (arXiv:2212.04356, appendix C). ``basic``: lower case, no punctuation, nothing in
    brackets. ``whisper_english``: also contractions, spellings and numbers, as published numbers of English have it: it
    writes neighbouring number words as one number (`two three` is `23`), which counts as one word. ``none``: as it is."""
    spellings: RecipePath | None = None
    """British to American words for ``whisper_english``, a JSON object. The teacher's ``normalizer.json`` where it is not
    named; without one spellings stay, and the rows say so."""

    def needs(self) -> frozenset[str]:
        """Transcripts."""
        return frozenset({"transcribe"})

    def gives(self) -> frozenset[str]:
        """Both rates with retention and drop."""
        return derived_names(["wer", "cer"])

    def judge(self, subjects: Sequence[Subject], bench: Bench) -> Measured:
        """Count the errors of every transcript, and compare with the teacher on the same sounds.

        Raises:
            InputError: no reference holds a word.
            MissingExtra: jiwer is not installed, or transformers where texts are normalised.
        """
        assert bench.test is not None
        normalise, note = self._normaliser(subjects)
        references = [[normalise(text) for text in texts] for texts in bench.answers.values("texts")]
        if not any(text.split() for texts in references for text in texts):
            raise InputError("wer: no reference of the test data holds a word")
        parts: dict[str, Any] = {}
        samples: dict[str, list[dict[str, Any]]] = {}
        for subject in subjects:
            said: list[str] = bench.answers.texts(subject, "transcribe")
            counts = [count(texts, normalise(text)) for texts, text in zip(references, said, strict=True)]
            parts[subject.name] = np.array(counts, dtype=np.float64)
            samples[f"wer/{subject.name}"] = [
                {"id": example, "score": errors / max(words, 1), "errors": errors, "words": words, "answer": text}
                for example, (errors, words, *_), text in zip(bench.test.ids, counts, said, strict=True)
            ]
        conditions = {"normaliser": self.normaliser}
        statistics = [_rate("wer", 0, conditions), _rate("cer", 2, conditions)]
        return Measured(statistic_rows(subjects, statistics, parts, bench.seed, note), samples)

    def _normaliser(self, subjects: Sequence[Subject]) -> tuple[Normalise, str]:
        found = self.spellings
        if found is None:
            folders = [subject.folder for subject in sorted(subjects, key=lambda item: item.role != "teacher")]
            found = next((folder / SPELLINGS for folder in folders if (folder / SPELLINGS).is_file()), None)
        lacking = self.normaliser == "whisper_english" and found is None
        note = f"British spellings stay: no {SPELLINGS} with the teacher" if lacking else ""
        return normaliser_of(self.normaliser, found), note


def _rate(metric: str, first: int, conditions: Mapping[str, Any]) -> Statistic:
    def rate(means: Floats) -> Floats:
        # A resample of wordless references alone would divide nothing by nothing.
        return np.asarray(means[..., first] / np.maximum(means[..., first + 1], 1e-9))

    return Statistic(
        metric, conditions, of=rate, samples="wer", higher_is_better=False, bounds=(0.0, float("inf")), span=1.0
    )
