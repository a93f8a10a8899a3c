"""Measuring a small CLIP for real: the teacher in torch beside its FP32 and INT8 packages."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import deployed
import numpy as np
import pytest

from mmcompress import _answers as answering
from mmcompress._answers import Answers
from mmcompress._environment import environment_facts, machine_state
from mmcompress.component import digest_json
from mmcompress.data import Example
from mmcompress.errors import InputError, StageError
from mmcompress.measure import alone, measure
from mmcompress.metrics import Bench, Measured, Metric, Row, Subject
from mmcompress.metrics._damage import Damage
from mmcompress.metrics._quality import Column, Quality, derived_names, quality_rows
from mmcompress.metrics.latency import Latency
from mmcompress.metrics.macs import Macs
from mmcompress.metrics.parameters import Parameters
from mmcompress.metrics.recall_at_k import RecallAtK
from mmcompress.metrics.size import Size
from mmcompress.metrics.zero_shot import ZeroShot


class Labelled(deployed.Pictures):
    """Pictures that count how often they are read, with a class each."""

    columns = frozenset({"image", "texts", "label"})

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.read = 0

    def __getitem__(self, index: int) -> Example:
        self.read += 1
        example = super().__getitem__(index)
        return Example(example.id, {**example.values, "label": index % 3})

    def classes(self) -> list[str]:
        return ["red", "green", "blue"]


@pytest.fixture
def subjects() -> list[Subject]:
    family, folder = deployed.model().family, deployed.model().folder
    return [
        Subject("k1", "teacher", "teacher", "teacher", "torch", family, folder),
        Subject("k2", "teacher fp32", "teacher", "package", "onnxruntime", family, deployed.package("fp32")),
        Subject("k3", "int8", "package", "package", "onnxruntime", family, deployed.package("int8"), "int8"),
    ]


@pytest.fixture(autouse=True)
def own_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def _values(rows: Sequence[Row], metric: str, **conditions: Any) -> dict[str, float | None]:
    return {
        row.name: row.value
        for row in rows
        if row.metric == metric and all(row.conditions.get(name) == value for name, value in conditions.items())
    }


def test_a_whole_report(subjects: list[Subject]) -> None:
    test = Labelled(150)
    metrics: list[Metric] = [
        Size(),
        RecallAtK(k=(1, 5), gallery_size=50),
        ZeroShot(),
        Latency(processes=2, seconds=0.05, block_seconds=0.01),
        Parameters(),
        Macs(),
    ]
    said: list[str] = []
    rows, samples, environment = measure(
        subjects, metrics, test, threads=1, seed=0, progress=lambda message, done, total: said.append(message)
    )
    # Untrained, so recall is near chance; but FP32 graphs answer as torch does, and so find the same.
    recall = _values(rows, "recall_at_5", direction="mean")
    assert recall["teacher"] == recall["teacher fp32"]
    assert set(recall) == {"teacher", "teacher fp32", "int8"}
    assert _values(rows, "drop.recall_at_5")["teacher fp32"] == 0
    assert set(_values(rows, "retention.zero_shot_top1")) == {"teacher fp32", "int8"}
    assert _values(rows, "speedup.latency_ms_p50", request="embed_image", scope="engine").keys() == {"int8"}
    torch_speedup = _values(rows, "speedup_torch.latency_ms_p50", request="embed_text", scope="engine")
    assert torch_speedup.keys() == {"teacher fp32", "int8"}
    assert _values(rows, "latency_ms_p50", request="embed_text", scope="end_to_end").keys() == recall.keys()
    sizes = _values(rows, "size_bytes")
    assert _values(rows, "size_ratio")["int8"] == sizes["teacher fp32"] / sizes["int8"] > 1.5
    parameters = {row.conditions["part"]: row.value for row in rows if row.metric == "parameters"}
    assert parameters["total"] == parameters["vision_model"] + parameters["text_model"] + 1  # the logit scale
    macs = {row.conditions["part"]: row.value for row in rows if row.metric == "macs"}
    assert macs["total"] == macs["vision_model"] + macs["text_model"] > 0
    # The rows come in the order of the recipe, whatever was measured first.
    firsts = list(dict.fromkeys(row.metric for row in rows))
    assert firsts.index("size_bytes") < firsts.index("recall_at_1") < firsts.index("latency_ms_p50")
    # Pictures have no duration.
    assert {row.metric for row in rows} == {name for m in metrics for name in m.gives()} - {"real_time_factor"}
    assert {row.samples for row in rows if row.samples} == set(samples)
    assert environment["threads"] == 1
    digest_json(environment)
    digest_json({name: list(records) for name, records in samples.items()})
    assert "timing in fresh processes" in said
    latency_inputs = 64
    assert test.read == len(test) + latency_inputs  # once for all subjects, requests and metrics


def test_preprocessing_is_shared_only_where_it_is_the_same(
    subjects: list[Subject], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import json
    import shutil

    from mmcompress.families.clip import Clip, ClipProcessor

    other = tmp_path / "other"
    shutil.copytree(subjects[0].folder, other)
    settings = json.loads((other / "preprocessor_config.json").read_text())
    (other / "preprocessor_config.json").write_text(json.dumps({**settings, "resample": 0}))
    calls: list[int] = []
    compact = ClipProcessor.compact

    def counted(self: Any, values: Any) -> Any:
        calls.append(len(next(iter(values.values()))))
        return compact(self, values)

    monkeypatch.setattr(ClipProcessor, "compact", counted)
    with Answers(subjects, Labelled(100), ["embed_image"], 1) as answers:
        answers(subjects[0], "embed_image")
    # Each subject shows its first batch; the pictures themselves are preprocessed once.
    assert sorted(calls) == sorted([32] * 3 + [32, 32, 32, 4])
    calls.clear()
    nearest = replace(subjects[0], name="nearest", family=Clip(path=other), folder=other)
    with Answers([subjects[0], nearest], Labelled(40), ["embed_image"], 1) as answers:
        found = [answers(subject, "embed_image") for subject in (subjects[0], nearest)]
    assert sorted(calls) == sorted([32, 32, *[32, 8] * 2])
    assert not np.allclose(found[0], found[1])


def test_answers_are_those_of_the_subject_alone(subjects: list[Subject]) -> None:
    test = Labelled(40)
    with Answers(subjects, test, ["embed_image", "embed_text"], 1) as answers:
        given = answers(subjects[2], "embed_text")
        texts = [values[0] for values in answers.values("texts")]
        assert given == pytest.approx(answers.ask(subjects[2], "embed_text", {"text": texts}), abs=1e-5)
        assert answers.values("label") == [index % 3 for index in range(40)]
        assert len(set(answers.values("picture"))) == 40
        with pytest.raises(InputError, match="audio"):
            answers.values("audio")


class _Nearness(Quality):
    """The cosine of each picture and its text, from 0 to 1."""

    def needs(self) -> frozenset[str]:
        return frozenset({"embed_image", "embed_text"})

    def gives(self) -> frozenset[str]:
        return derived_names(["nearness"])

    def judge(self, subjects: Sequence[Subject], bench: Bench) -> Measured:
        scores, samples = {}, {}
        for subject in subjects:
            image, text = (bench.answers(subject, request) for request in ("embed_image", "embed_text"))
            scores[subject.name] = (1.0 + (image * text).sum(axis=1, keepdims=True).astype(np.float64)) / 2.0
            samples[f"nearness/{subject.name}"] = [{"score": float(score)} for score in scores[subject.name][:, 0]]
        return Measured(quality_rows(subjects, [Column("nearness")], scores, bench.seed), samples)


def test_damaged_inputs_are_answered_once_and_freed(subjects: list[Subject]) -> None:
    test, noise = Labelled(40), Damage(noise=0.3)
    metrics = [
        _Nearness(damage=(noise,)),
        _Nearness(damage=(noise, Damage(dark=0.9)), slices=("label",), slice_least=9),
    ]
    rows, _, _ = measure(subjects, metrics[1:], test, threads=1, seed=0)
    own = _values(rows, "nearness", damage=None, subset=None)
    for damage in ("noise 0.3", "dark 0.9"):
        found = _values(rows, "nearness", damage=damage)
        assert found["teacher"] == pytest.approx(found["teacher fp32"], abs=1e-5)
        assert found["teacher"] != pytest.approx(own["teacher"], abs=1e-5)
    assert {row.conditions.get("subset") for row in rows} == {None, "label=red", "label=green", "label=blue"}
    damages = [(metric.needs(), metric.damages(subjects)) for metric in metrics]
    with Answers(subjects, test, ["embed_image", "embed_text"], 1, damages=damages) as answers:
        exact = answers(subjects[0], "embed_image")
        noisy = answers(subjects[0], "embed_image", noise)
        read = test.read
        assert not np.allclose(exact, noisy)
        assert answers(subjects[0], "embed_text", noise) is answers(subjects[0], "embed_text")  # no pixels there
        answers.release(noise)
        assert answers(subjects[0], "embed_image", noise) is noisy
        assert test.read == read
        answers.release(noise)
        assert answers(subjects[0], "embed_image", noise) is not noisy
        with pytest.raises(InputError, match="embed_image of teacher needs image; it can go without none"):
            answers.touches(Damage(missing="image"), subjects[0], "embed_image")


class _Silly(Metric):
    def needs(self) -> frozenset[str]:
        return frozenset({"embed_image"})

    def gives(self) -> frozenset[str]:
        return frozenset()

    def measure(self, subjects: Sequence[Subject], bench: Bench) -> Measured:
        bench.answers(subjects[0], "embed_image")
        return Measured([], {"silly": [{"id": "x"}]})


def test_quality_needs_examples(subjects: list[Subject]) -> None:
    with pytest.raises(InputError, match="there are none"):
        measure(subjects, [RecallAtK()], None, threads=1, seed=0)
    with pytest.raises(InputError, match="no examples"):
        measure(subjects, [RecallAtK()], Labelled(0), threads=1, seed=0)


def test_a_model_that_gives_nan_is_no_measurement(subjects: list[Subject], monkeypatch: pytest.MonkeyPatch) -> None:
    from mmcompress.families.clip import Clip

    def answer(self: Any, run: Any, request: str, feeds: Any) -> Any:
        rows = np.zeros((len(feeds["pixel_values"]), 2), dtype=np.float32)
        rows[0] = np.nan
        return rows

    monkeypatch.setattr(Clip, "answer", answer)
    with pytest.raises(StageError, match="NaN or infinity for 2 of 40"):
        measure(subjects[:1], [_Silly()], Labelled(40), threads=1, seed=0)


def test_samples_of_two_metrics_of_a_name_stay_apart(subjects: list[Subject]) -> None:
    metrics = [RecallAtK(k=(1,), gallery_size=10), RecallAtK(k=(1,), gallery_size=20)]
    rows, samples, _ = measure(subjects[:1], metrics, Labelled(30), threads=1, seed=0)
    assert {row.conditions["gallery"]: row.samples for row in rows if row.metric == "recall_at_1"} == {
        10: "recall_at_1/teacher",
        20: "recall_at_1/teacher (2)",
    }
    assert len(samples["recall_at_1/teacher"]) == 30
    assert len(samples["recall_at_1/teacher (2)"]) == 20


def _hold(path: Path, ready: Any, release: Any) -> None:
    with alone(path=path):
        ready.set()
        release.wait(20)


def test_two_measurements_never_overlap(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, release = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path / "lock", ready, release))
    other.start()
    assert ready.wait(30)
    said: list[str] = []
    waited = threading.Event()

    def listen(message: str, done: int, total: int) -> None:
        said.append(message)
        waited.set()
        release.set()

    with alone(listen, tmp_path / "lock"):
        assert waited.is_set()
        assert said == ["waiting for another measurement on this machine"]
    other.join(20)
    assert other.exitcode == 0


@pytest.mark.unit
def test_the_environment_is_told() -> None:
    facts = environment_facts(2)
    assert facts["cores"] >= 1
    assert facts["libraries"]["numpy"] == np.__version__
    assert facts["threads"] == 2
    assert facts["python"].startswith("CPython 3.")
    assert isinstance(facts["instruction_sets"], list)
    digest_json(facts)


@pytest.mark.unit
def test_facts_that_a_system_does_not_tell_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmcompress._environment._read", lambda path: None)
    facts = environment_facts(1)
    assert facts["governor"] is None
    assert facts["clock_mhz"] is None
    assert facts["cpu"]


@pytest.mark.unit
def test_subjects_have_names_of_their_own() -> None:
    assert answering.BATCH > 0
    family = deployed.Clip.model_construct(path=Path("x"))
    one = Subject("a", "same", "package", "package", "onnxruntime", family, Path("x"))
    with pytest.raises(ValueError, match="names of their own"):
        measure([one, one], [], None, threads=1, seed=0)


def test_the_state_of_a_machine_is_read_from_its_files(tmp_path: Path) -> None:
    for core, count in (("cpu0", 3), ("cpu1", 4)):
        folder = tmp_path / "sys/devices/system/cpu" / core / "thermal_throttle"
        folder.mkdir(parents=True)
        (folder / "core_throttle_count").write_text(f"{count}\n")
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\ncpu MHz\t\t: 2500.5\n\nprocessor\t: 1\ncpu MHz\t\t: 1200\n")
    (tmp_path / "proc/stat").write_text("cpu  1 2 3 4 5 6 7 250 0 0\n")
    state = machine_state(tmp_path)
    assert state["clocks_mhz"] == [2500.5, 1200.0]
    assert state["throttled"] == 7
    assert state["stolen_seconds"] == 250 / os.sysconf("SC_CLK_TCK")
    nothing = machine_state(tmp_path / "absent")
    assert nothing["clocks_mhz"] is nothing["throttled"] is nothing["stolen_seconds"] is None
