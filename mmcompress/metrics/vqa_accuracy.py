"""Accuracy of answers to questions about pictures, by the official protocol of VQA v2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mmcompress._vqa import accuracy
from mmcompress.errors import InputError
from mmcompress.metrics import Bench, Measured, Scores, Subject
from mmcompress.metrics._quality import Column, Quality, derived_names, quality_rows

ANNOTATORS = 10
"""As many as the protocol has; of fewer, the leave-one-out mean is taken as it is."""


class VqaAccuracy(Quality):
    """min(1, annotators who agree / 3), averaged over all subsets that leave one annotator out; both sides normalised.

    Answers are texts, from a model that chooses among classes or one that writes (VQA v2's ``vqaEval.py``; see
    :func:`mmcompress._vqa.accuracy`). The data's column ``answers`` holds what each annotator said.
    """

    def needs(self) -> frozenset[str]:
        """Answers to questions."""
        return frozenset({"answer"})

    def gives(self) -> frozenset[str]:
        """``vqa_accuracy`` with retention and drop."""
        return derived_names(["vqa_accuracy"])

    def judge(self, subjects: Sequence[Subject], bench: Bench) -> Measured:
        """Score every answer, and compare with the teacher on the same questions.

        Raises:
            InputError: the test data have no ``answers``, or a question has none.
        """
        assert bench.test is not None
        annotators: Sequence[Sequence[str]] = bench.answers.values("answers")
        for example, said in zip(bench.test.ids, annotators, strict=True):
            if not said:
                raise InputError(f"{example}: a question without an answer\n  Leave it out of the test data.")
        scores: dict[str, Scores] = {}
        samples: dict[str, list[dict[str, Any]]] = {}
        for subject in subjects:
            answers: list[str] = bench.answers.texts(subject, "answer")
            found = [accuracy(answer, said) for answer, said in zip(answers, annotators, strict=True)]
            scores[subject.name] = np.array(found, dtype=np.float64)[:, None]
            samples[f"vqa_accuracy/{subject.name}"] = [
                {"id": example, "score": score, "answer": answer}
                for example, score, answer in zip(bench.test.ids, found, answers, strict=True)
            ]
        counts = {len(said) for said in annotators}
        note = "" if counts == {ANNOTATORS} else f"answers per question: {', '.join(map(str, sorted(counts)))}, not 10"
        return Measured(quality_rows(subjects, [Column("vqa_accuracy")], scores, bench.seed, note), samples)
