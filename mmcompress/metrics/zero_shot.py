"""Zero-shot classification: the class whose name, put into sentences, is nearest to the picture or the sound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import field_validator

from mmcompress.errors import InputError
from mmcompress.families._class_table import Embeddings, check_templates, class_embeddings
from mmcompress.metrics import Bench, Measured, Scores, Subject
from mmcompress.metrics._pairs import Pairs
from mmcompress.metrics._quality import TIE, Column, derived_names, quality_rows


class ZeroShot(Pairs):
    """Top-1 accuracy without training on the classes (Radford et al. 2021, section 3.1.4: ensembles of prompts).

    A class is the mean of its L2-normalised prompt embeddings, normalised again. A tie counts against the model.
    """

    templates: tuple[str, ...] = ("a picture of {}",)
    """Sentences with ``{}`` where the name of the class stands."""

    @field_validator("templates")
    @classmethod
    def _has_a_place(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        check_templates(templates)
        return templates

    def gives(self) -> frozenset[str]:
        """``zero_shot_top1`` with retention and drop."""
        return derived_names(["zero_shot_top1"])

    def judge(self, subjects: Sequence[Subject], bench: Bench) -> Measured:
        """Embed the prompts, classify every test picture or sound, and compare with the teacher on the same ones."""
        assert bench.test is not None
        classes = list(bench.test.classes())
        if not classes or "label" not in bench.test.columns:
            raise InputError(
                "zero_shot classifies, and the test data name no classes\n"
                "  expected a `label` column; name it in data.test, or leave zero_shot out of measure.metrics"
            )
        labels = np.asarray(bench.answers.values("label"), dtype=np.int64)
        prompts = [template.replace("{}", name) for name in classes for template in self.templates]
        scores: dict[str, Scores] = {}
        samples: dict[str, list[dict[str, Any]]] = {}
        for subject in subjects:
            embedded = bench.answers.ask(subject, self.texts, {"text": prompts})
            heads = class_embeddings(embedded, len(classes))
            correct, answers = classify(bench.answers(subject, self.side), heads, labels)
            scores[subject.name] = correct[:, None]
            samples[f"zero_shot_top1/{subject.name}"] = [
                {"id": bench.test.ids[index], "score": float(score), "answer": classes[answer]}
                for index, (score, answer) in enumerate(zip(correct, answers.tolist(), strict=True))
            ]
        columns = [Column("zero_shot_top1", {"classes": len(classes), "templates": len(self.templates)})]
        return Measured(quality_rows(subjects, columns, scores, bench.seed), samples)


def classify(images: Embeddings, heads: Embeddings, labels: NDArray[np.int64]) -> tuple[Scores, NDArray[np.int64]]:
    """1 where the true class is nearer than every other, and the nearest class: [n] each."""
    similar = images @ heads.T
    true = np.take_along_axis(similar, labels[:, None], axis=1)
    return ((similar >= true - TIE).sum(axis=1) == 1).astype(np.float64), similar.argmax(axis=1)
