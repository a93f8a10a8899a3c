"""Several runs in one table: seeds averaged, differences paired, and what cannot be paired told."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmcompress.cli import main
from mmcompress.compare import as_csv, as_latex, compare, mean_of
from mmcompress.errors import UsageError
from mmcompress.metrics import Row
from mmcompress.report import write_report
from mmcompress.runs import worst

pytestmark = pytest.mark.unit
RIGHT = {"small": [1, 1, 1, 0, 0, 0, 0, 0, 1, 1] * 20, "large": [1, 1, 1, 1, 0, 0, 0, 0, 1, 1] * 20}


def write_run(
    folder: Path, name: str, scores: list[int], *, seed: int = 0, ids: str = "e", metric: str = "accuracy"
) -> Path:
    """A run of one model, answered example by example."""
    value = float(np.mean(scores))
    row = Row(
        artifact=f"{name} {seed}",
        name="distill",
        role="student",
        stage="distill",
        target="torch",
        metric=metric,
        conditions={"split": "test"},
        value=value,
        unit="ratio",
        higher_is_better=True,
        n=len(scores),
        ci95=(value - 0.05, value + 0.05),
        one_sided95=(value - 0.04, value + 0.04),
        interval_of="example",
        samples=f"{metric}/distill",
    )
    records = [{"id": f"{ids}{i}", "score": float(score), "answer": "a"} for i, score in enumerate(scores)]
    write_report(
        folder,
        title=name,
        rows=[row],
        samples={f"{metric}/distill": records},
        environment={"cpu": "one"},
        recipe_text=f"version: 1\nname: {name}\nseed: {seed}\n",
        verdicts=[],
        notes=[],
    )
    return folder


def only(report: Any, metric: str) -> Row:
    (found,) = [row for row in report.rows if row.metric == metric]
    return found


def test_a_difference_is_paired_example_by_example(tmp_path: Path) -> None:
    small = write_run(tmp_path / "a", "small", RIGHT["small"])
    large = write_run(tmp_path / "b", "large", RIGHT["large"])
    row = only(compare([small, large]), "difference.accuracy")
    assert (row.name, row.reference, row.n) == ("large: distill", "small: distill", 200)
    assert row.value == pytest.approx(0.1)
    # One of ten answers differs: the standard error of the paired mean is sqrt(0.1 * 0.9 / 200).
    assert row.ci95 is not None
    assert (row.ci95[1] - row.ci95[0]) / 2 == pytest.approx(1.96 * math.sqrt(0.09 / 200), rel=0.1)


def test_seeds_of_one_recipe_are_averaged_with_students_t(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / str(seed), "small", [1] * (100 + 10 * seed) + [0] * (100 - 10 * seed), seed=seed)
        for seed in range(3)
    ]
    report = compare(runs)
    row = only(report, "accuracy")
    assert (row.name, row.n, row.interval_of) == ("distill", 3, "seed")
    assert row.value == pytest.approx(0.55)
    # Values 0.50, 0.55, 0.60: s = 0.05, t of two degrees of freedom is 4.3027.
    half = 4.3027 * 0.05 / math.sqrt(3)
    assert row.ci95 == pytest.approx((0.55 - half, 0.55 + half), rel=1e-4)
    assert any("mean of 3 seeds (0, 1, 2)" in note for note in report.notes)


def test_groups_of_seeds_are_paired_seed_by_seed(tmp_path: Path) -> None:
    def group(name: str, more: int) -> list[Path]:
        return [
            write_run(tmp_path / f"{name}{s}", name, [1] * (100 + 8 * s + more) + [0] * (100 - 8 * s - more), seed=s)
            for s in range(3)
        ]

    row = only(compare([*group("small", 0), *group("large", 20)]), "difference.accuracy")
    assert row.value == pytest.approx(0.1)
    assert row.ci95 == pytest.approx((0.1, 0.1))  # the same in every seed
    assert (row.n, row.interval_of) == (3, "seed")


def test_what_cannot_be_paired_is_told(tmp_path: Path) -> None:
    small = write_run(tmp_path / "a", "small", RIGHT["small"])
    other = write_run(tmp_path / "b", "other", RIGHT["large"], ids="f")
    report = compare([small, other])
    assert not [row for row in report.rows if row.metric.startswith("difference.")]
    assert any("other examples" in note for note in report.notes)


def test_the_same_recipe_and_seed_twice_are_two_observations(tmp_path: Path) -> None:
    report = compare([write_run(tmp_path / n, "small", RIGHT[n]) for n in ("small", "large")])
    assert {row.name for row in report.rows} == {"small small: distill", "small large: distill"}


def test_tables_hold_every_row_and_mean_what_they_say(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / n, n, RIGHT[n]) for n in ("small", "large")]
    report = compare(runs)
    lines = list(csv.DictReader(io.StringIO(as_csv(report))))
    assert [line["metric"] for line in lines] == ["accuracy", "accuracy", "difference.accuracy"]
    assert float(lines[2]["value"]) == pytest.approx(0.1)
    latex = as_latex(report)
    assert r"large: distill & 60.0 $\pm$ 5.0 \% & 10.0 $\pm$" in latex
    assert latex.count(r"\\") == 3


def test_the_command_writes_a_page_and_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(write_run(tmp_path / n, n, RIGHT[n])) for n in ("small", "large")]
    main(["compare", *runs, "--out", str(tmp_path / "c.html"), "--csv", str(tmp_path / "c.csv")])
    assert "large: distill: accuracy 60.0" in capsys.readouterr().out
    page = (tmp_path / "c.html").read_text()
    assert "difference" in page
    # Stages of different runs do not follow one another, and nothing was demanded.
    assert "What each stage gained" not in page and "demands" not in page
    assert (tmp_path / "c.csv").read_text().startswith("model,metric")


def test_one_run_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="two runs or more"):
        compare([write_run(tmp_path / "a", "small", RIGHT["small"])])


def test_a_mean_of_equal_exact_values_stays_exact() -> None:
    row = Row("a", "m", "student", "distill", "torch", "parameters", {}, 10.0, "", False)
    made = mean_of(row, [10.0, 10.0], ["a", "b"])
    assert (made.value, made.ci95, made.interval_of) == (10.0, None, None)


def test_the_worst_exit_code_wins() -> None:
    assert [worst(codes) for codes in ([0, 0], [0, 4], [4, 1], [1, 3, 0])] == [0, 4, 1, 3]
