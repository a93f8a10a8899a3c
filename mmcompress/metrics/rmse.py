"""Errors of predicted numbers: root mean square and mean absolute error."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mmcompress.errors import InputError
from mmcompress.metrics import Bench, Measured, Subject
from mmcompress.metrics._quality import Quality, Statistic, derived_names, statistic_rows
from mmcompress.metrics._statistics import Floats


class Rmse(Quality):
    """``rmse``, sqrt(mean((said - true)^2)), and ``mae``, mean(|said - true|), in the unit of the number.

    Less is better: retention is the teacher's error over the subject's, drop what the subject's error is larger.
    ``constant``, among the conditions, is the error of the best constant answer (the mean for ``rmse``, the median for
    ``mae``): what a model has that knows nothing.
    """

    column: str = "number"
    """Where the truth stands."""
    unit: str = "units"
    """What the number counts, for the report."""

    def needs(self) -> frozenset[str]:
        """Numbers."""
        return frozenset({"predict_number"})

    def columns(self) -> frozenset[str]:
        """The true numbers, besides the slices."""
        return super().columns() | {self.column}

    def gives(self) -> frozenset[str]:
        """Both errors with retention and drop."""
        return derived_names(["rmse", "mae"])

    def judge(self, subjects: Sequence[Subject], bench: Bench) -> Measured:
        """Compare every number, and with the teacher's on the same examples.

        Raises:
            InputError: true numbers that are none, or answers of several numbers.
        """
        assert bench.test is not None
        true = np.asarray(bench.answers.values(self.column), dtype=np.float64)
        if not np.isfinite(true).all():
            raise InputError(
                f"rmse: {self.column} of {bench.test.ids[int((~np.isfinite(true)).argmax())]} is no number"
            )
        parts, samples = {}, {}
        for subject in subjects:
            rows = np.asarray(bench.answers(subject, "predict_number"), dtype=np.float64)
            if rows.shape != (len(true), 1):
                raise InputError(f"{subject.name}: answers {list(rows.shape)}; expected one number for each example")
            errors = rows[:, 0] - true
            parts[subject.name] = np.stack([errors**2, np.abs(errors)], axis=1)
            samples[f"rmse/{subject.name}"] = [
                {"id": example, "score": abs(error), "answer": said, "true": wanted}
                for example, error, said, wanted in zip(
                    bench.test.ids, errors.tolist(), rows[:, 0].tolist(), true.tolist(), strict=True
                )
            ]
        constant = (float(true.std()), float(np.abs(true - np.median(true)).mean()))
        statistics = [
            Statistic(
                metric,
                {"constant": float(f"{least:.4g}")},
                of=of,
                samples="rmse",
                unit=self.unit,
                higher_is_better=False,
                bounds=(0.0, math.inf),
                span=0.0,
            )
            for metric, of, least in zip(("rmse", "mae"), (_root, _mean), constant, strict=True)
        ]
        return Measured(statistic_rows(subjects, statistics, parts, bench.seed), samples)


def _root(means: Floats) -> Floats:
    return np.asarray(np.sqrt(means[..., 0]))


def _mean(means: Floats) -> Floats:
    return means[..., 1]
