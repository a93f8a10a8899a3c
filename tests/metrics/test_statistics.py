"""Intervals against values known by hand, and against what they promise: how often they cover the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mmcompress.metrics._statistics import (
    block_means,
    block_quantiles,
    block_weights,
    bootstrap_means,
    drop_estimate,
    paired_ratio,
    quantity_estimate,
    ratio_estimate,
    samples_for_percentile,
    student_t,
    time_estimate,
)

pytestmark = pytest.mark.unit


def test_percentiles_need_the_samples_that_bound_them() -> None:
    assert [samples_for_percentile(q) for q in (0.5, 0.9, 0.95, 0.99, 0.999)] == [7, 44, 90, 459, 4603]
    with pytest.raises(ValueError):
        samples_for_percentile(1.0)


def test_means_of_resamples_have_the_mean_and_the_standard_error_of_theory() -> None:
    scores = np.array([0.0] * 300 + [1.0] * 700)[:, None]
    means = bootstrap_means(scores, seed=1)
    assert means.shape == (2000, 1)
    assert means.mean() == pytest.approx(0.7, abs=0.002)
    assert means.std() == pytest.approx(math.sqrt(0.7 * 0.3 / 1000), rel=0.05)
    assert np.array_equal(means, bootstrap_means(scores, seed=1))
    estimate = quantity_estimate(scores.mean(), 1000, means[:, 0], bounds=(0, 1))
    assert estimate.value == 0.7
    assert estimate.n == 1000
    assert estimate.ci95 == pytest.approx((0.7 - 1.96 * 0.01449, 0.7 + 1.96 * 0.01449), abs=0.003)
    assert estimate.ci95[0] < estimate.one_sided95[0] < 0.7 < estimate.one_sided95[1] < estimate.ci95[1]


def test_columns_are_resampled_together() -> None:
    scores = np.random.default_rng(0).random((50, 1))
    means = bootstrap_means(np.hstack([scores, scores + 0.25]), seed=3, resamples=100)
    assert means[:, 1] - means[:, 0] == pytest.approx(np.full(100, 0.25))


def test_many_examples_stay_within_memory_and_equal_small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.random.default_rng(0).random((500, 2))
    whole = bootstrap_means(scores, seed=5, resamples=20)
    monkeypatch.setattr("mmcompress.metrics._statistics._CHUNK_VALUES", 500)
    assert bootstrap_means(scores, seed=5, resamples=20) == pytest.approx(whole)


def test_examples_that_all_agree_do_not_prove_perfection() -> None:
    scores = np.ones((100, 1))
    estimate = quantity_estimate(1.0, 100, bootstrap_means(scores, seed=0)[:, 0], bounds=(0, 1))
    assert estimate.ci95 == (pytest.approx(0.025**0.01), 1.0)  # 0.9638: Clopper and Pearson's for 100 of 100
    assert estimate.one_sided95[0] == pytest.approx(0.05**0.01)
    both = np.repeat(scores, 2, axis=1)
    means = bootstrap_means(both, seed=0)
    drop = drop_estimate((1.0, 1.0), 100, (means[:, 0], means[:, 1]))
    assert drop.value == 0
    assert drop.one_sided95 == (pytest.approx(-(1 - 0.05**0.01)), pytest.approx(1 - 0.05**0.01))


def test_retention_is_paired_and_absent_without_a_teacher_that_scores() -> None:
    rng = np.random.default_rng(0)
    teacher = (rng.random(2000) < 0.8).astype(float)
    student = np.where(rng.random(2000) < 0.05, 1 - teacher, teacher)
    means = bootstrap_means(np.stack([teacher, student], axis=1), seed=0)
    retention = ratio_estimate((student.mean(), teacher.mean()), 2000, (means[:, 1], means[:, 0]))
    assert retention is not None
    assert retention.value == pytest.approx(student.mean() / teacher.mean())
    unpaired = math.sqrt(2 * 0.8 * 0.2 / 2000) / 0.8
    assert retention.ci95[1] - retention.ci95[0] < 0.7 * 2 * 1.96 * unpaired
    assert ratio_estimate((student.mean(), 0.0), 2000, (means[:, 1], np.zeros(2000))) is None


def test_intervals_over_examples_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(7)
    trials, n = 400, 300
    mean_hits = drop_hits = bound_hits = 0
    for trial in range(trials):
        teacher = (rng.random(n) < 0.8).astype(float)
        flip = rng.random(n)
        student = np.where(flip < 0.1, 0.0, np.where(flip < 0.15, 1.0, teacher))  # E[drop] = 0.8 - 0.73
        means = bootstrap_means(np.stack([teacher, student], axis=1), seed=trial, resamples=400)
        mean = quantity_estimate(teacher.mean(), n, means[:, 0], bounds=(0, 1))
        drop = drop_estimate((teacher.mean(), student.mean()), n, (means[:, 0], means[:, 1]))
        truth = 0.8 - (0.05 + 0.85 * 0.8)
        mean_hits += mean.ci95[0] <= 0.8 <= mean.ci95[1]
        drop_hits += drop.ci95[0] <= truth <= drop.ci95[1]
        bound_hits += truth <= drop.one_sided95[1]
    error = 3 * math.sqrt(0.05 * 0.95 / trials)
    for hits in (mean_hits, drop_hits, bound_hits):
        assert 0.95 - error - 0.01 <= hits / trials <= 0.95 + error


def test_quantiles_of_blocks_by_hand() -> None:
    calls = [[np.array([1.0, 9.0]), np.array([2.0, 3.0])], [np.array([4.0, 5.0]), np.array([6.0, 7.0])]]
    weights = np.array([[1.0, 1, 1, 1], [0, 4, 0, 0], [2, 0, 0, 2]])
    point, resampled = block_quantiles(calls, (0.5, 0.9), weights)
    assert point.tolist() == [4.0, 9.0]
    assert resampled.tolist() == [[4.0, 9.0], [2.0, 3.0], [6.0, 9.0]]
    mean, means = block_means(calls, weights)
    assert mean == 37 / 8
    assert means.tolist() == [37 / 8, 2.5, 23 / 4]


def test_weights_draw_whole_processes_first() -> None:
    weights = block_weights(3, 4, seed=0, resamples=500)
    assert weights.shape == (500, 12)
    assert (weights.sum(axis=1) == 12).all()
    per_process = weights.reshape(500, 3, 4).sum(axis=2)
    assert (per_process % 4 == 0).all()
    assert (per_process == 12).any()


def test_student_t_against_tables() -> None:
    assert student_t(0.025, 4) == pytest.approx(2.776, abs=1e-3)
    assert student_t(0.05, 12) == pytest.approx(1.7823, abs=2e-4)
    assert student_t(0.025, 30) == pytest.approx(2.0423, abs=2e-4)


def test_an_interval_of_time_needs_two_processes() -> None:
    with pytest.raises(ValueError, match="two processes"):
        time_estimate(1.0, np.ones(10), processes=1, n=10)


@pytest.mark.parametrize(("process_deviation", "most"), [(0.08, 0.985), (0.0, 1.0)])
def test_intervals_over_processes_cover_the_truth(process_deviation: float, most: float) -> None:
    rng = np.random.default_rng(11)
    processes, blocks, trials, truth = 5, 4, 250, 2.0
    hits = bounds = 0
    for trial in range(trials):
        weights = block_weights(processes, blocks, seed=trial, resamples=300)

        def side(scale: float) -> list[list[np.ndarray]]:
            return [
                [scale * np.exp(of_process + rng.normal(0, 0.03) + rng.normal(0, 0.05, size=15)) for _ in range(blocks)]
                for of_process in rng.normal(0, process_deviation, size=processes)
            ]

        slow, slow_resampled = block_quantiles(side(truth), (0.5,), weights)
        fast, fast_resampled = block_quantiles(side(1.0), (0.5,), weights)
        ratio = time_estimate(slow[0] / fast[0], (slow_resampled / fast_resampled)[:, 0], processes, n=300)
        hits += ratio.ci95[0] <= truth <= ratio.ci95[1]
        bounds += ratio.one_sided95[0] <= truth
    error = 3 * math.sqrt(0.05 * 0.95 / trials)
    assert 0.95 - error <= hits / trials <= most
    assert bounds / trials >= 0.95 - error


def test_paired_ratio_is_the_geometric_mean_over_blocks_and_ignores_a_clock_that_changes() -> None:
    above = [[np.array([4.0, 4.0, 9.0]), np.array([8.0, 8.0, 8.0])], [np.array([2.0, 2.0, 2.0]), np.array([36.0])]]
    below = [[np.array([2.0, 2.0, 1.0]), np.array([4.0, 4.0, 4.0])], [np.array([1.0, 1.0, 7.0]), np.array([2.0])]]
    weights = np.array([[1.0, 1.0, 1.0, 1.0], [2.0, 2.0, 0.0, 0.0]])
    value, replicates = paired_ratio(above, below, weights)
    # block ratios 2, 2, 2 and 18: the geometric mean is (2 * 2 * 2 * 18) ** (1/4) = 2 * sqrt(3)
    assert value == pytest.approx(2 * math.sqrt(3))
    assert replicates == pytest.approx([2 * math.sqrt(3), 2.0])
