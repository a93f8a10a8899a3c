"""Timing for real: packages whose graphs have known work, each in processes of its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from mmcompress import component
from mmcompress._sound import Sound
from mmcompress.errors import InputError, StageError
from mmcompress.metrics import Bench, Role, Subject
from mmcompress.metrics._timing import Job, Plan, _visits, time_sides, write_inputs
from mmcompress.metrics._timing_worker import read_inputs
from mmcompress.metrics.latency import Latency
from mmcompress.metrics.size import Size
from mmcompress.package import FORMAT
from mmcompress.runtimes import facts_of
from mmcompress.store import write_json

WIDTH = 64


@pytest.fixture
def plain() -> Iterator[type[component.Component]]:
    component.SEARCH.folders.append(Path(__file__).parent / "components")
    yield component.find("families", "plain")
    component.SEARCH.folders.pop()


@pytest.fixture
def make_package(plain: Any, tmp_path: Path) -> Callable[..., Subject]:
    """A package whose graph multiplies [n, 64] by a [64, 64] matrix ``layers`` times in a loop of ``repeat``."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper, numpy_helper

    def make(name: str, layers: int, role: Role = "package") -> Subject:
        folder = tmp_path / name
        folder.mkdir()
        rng = np.random.default_rng(0)
        weight = numpy_helper.from_array((np.eye(WIDTH) + 0.01 * rng.normal(size=(WIDTH, WIDTH))).astype("f"), "w")
        names = ["x", *(f"h{index}" for index in range(layers - 1)), "y"]
        nodes = []
        for index in range(layers):
            nodes.append(helper.make_node("MatMul", [names[index], "w"], [f"m{index}"]))
            nodes.append(helper.make_node("Tanh", [f"m{index}"], [names[index + 1]]))
        shape = ["n", WIDTH]
        graph = helper.make_graph(
            nodes,
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
            [weight],
        )
        onnx.save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), folder / "net.onnx"
        )
        runtime: Any = component.parse("runtimes", "onnxruntime")
        probe = folder / "probe"
        probe.mkdir()
        lines = [json.dumps({"id": str(index), "text": str(index / 8)}) for index in range(8)]
        (probe / "examples.jsonl").write_text("\n".join(lines))
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        manifest = {
            "format": FORMAT,
            "family": "plain",
            "family_fields": {},
            "target": {**facts_of(runtime), "fields": {}},
            "precision": "fp32",
            "requests": [{"name": "embed_text", "inputs": ["text"], "graphs": ["net"]}],
            "graphs": {"net": {"file": "net.onnx", "bytes": (folder / "net.onnx").stat().st_size}},
            "files": {
                path.relative_to(folder).as_posix(): {
                    "sha256": component.digest_path(path),
                    "bytes": path.stat().st_size,
                }
                for path in files
            },
        }
        write_json(folder / "manifest.json", manifest)
        return Subject(f"key-{name}", name, role, "package", "onnxruntime", plain(path=folder), folder)

    return make


def _row(rows: Any, name: str, metric: str, scope: str = "engine", batch: int = 1) -> Any:
    (row,) = [
        r
        for r in rows
        if (r.name, r.metric, r.conditions["scope"], r.conditions["batch"]) == (name, metric, scope, batch)
    ]
    return row


def test_a_graph_of_three_times_the_work_is_three_times_as_slow(make_package: Callable[..., Subject]) -> None:
    teacher = make_package("teacher package", 240, "teacher")
    third = make_package("third", 80)
    same = make_package("same", 240)
    metric = Latency(batch=(1, 4), processes=3, seconds=0.6, block_seconds=0.02)
    measured = metric.measure([teacher, third, same], Bench(None, 1, 0, None))
    rows = measured.rows

    speedup = _row(rows, "third", "speedup.latency_ms_p50")
    assert speedup.reference == "fp32"
    assert speedup.ci95[0] < speedup.value < speedup.ci95[1]
    assert speedup.ci95[0] < 3.3 and speedup.ci95[1] > 2.2  # call overhead keeps it a little below 3
    same_speed = _row(rows, "same", "speedup.latency_ms_p50")
    assert same_speed.ci95[0] <= 1.05 and same_speed.ci95[1] >= 0.95

    slow, fast = (_row(rows, name, "latency_ms_p50") for name in ("teacher package", "third"))
    assert speedup.value == pytest.approx(
        slow.value / fast.value, rel=0.3
    )  # of blocks beside each other, not of all calls
    assert slow.interval_of == "block" and slow.unit == "ms" and not slow.higher_is_better
    assert slow.n >= 18
    assert _row(rows, "third", "latency_ms_p50", "end_to_end").value > fast.value
    assert _row(rows, "third", "throughput_per_s", batch=4).value > 0
    assert not [row for row in rows if row.metric == "throughput_per_s" and row.conditions["batch"] == 1]
    assert not [row for row in rows if row.name == "teacher package" and row.metric.startswith("speedup.")]
    assert {row.metric for row in rows} <= metric.gives()

    records = measured.samples["latency/third"]
    assert {record["process"] for record in records} == {0, 1, 2}
    engine = [ms for record in records for ms in record["ms"] if (record["scope"], record["batch"]) == ("engine", 1)]
    assert len(engine) == fast.n
    assert fast.value == pytest.approx(np.quantile(engine, 0.5, method="inverted_cdf"), abs=1e-4)


def test_percentiles_without_enough_calls_are_absent(make_package: Callable[..., Subject]) -> None:
    metric = Latency(processes=2, seconds=0.0005, block_seconds=0.0001)
    rows = metric.measure([make_package("one", 240)], Bench(None, 1, 0, None)).rows
    assert _row(rows, "one", "latency_ms_p50").n == 2 * 2 * 3
    p90 = _row(rows, "one", "latency_ms_p90")
    assert (p90.status, p90.value) == ("too_few_samples", None)
    assert "44 bound" in p90.reason
    speedup = _row(rows, "one", "speedup.latency_ms_p50")
    assert speedup.status == "not_runnable_here"
    assert "FP32 package in onnxruntime" in speedup.reason


def test_one_process_gives_no_interval(make_package: Callable[..., Subject]) -> None:
    rows = Latency(processes=1, seconds=0.01).measure([make_package("one", 10)], Bench(None, 1, 0, None)).rows
    p50 = _row(rows, "one", "latency_ms_p50")
    assert p50.value > 0 and p50.ci95 is None and p50.status == "too_few_samples"


def test_a_slow_machine_gets_fewer_processes_and_is_told(make_package: Callable[..., Subject]) -> None:
    metric = Latency(processes=5, seconds=0.05, block_seconds=0.001, limit_seconds=0)
    measured = metric.measure([make_package("one", 40)], Bench(None, 1, 0, None))
    assert {record["process"] for record in measured.samples["latency/one"]} == {0, 1, 2}
    row = _row(measured.rows, "one", "latency_ms_p50")
    assert row.reason == "3 of 5 processes: the limit of 0 s was reached"
    assert row.ci95 is not None


def test_a_package_that_does_not_open_is_not_runnable_here(make_package: Callable[..., Subject]) -> None:
    good, broken = make_package("good", 10), make_package("broken", 10)
    (broken.folder / "net.onnx").write_bytes(b"no graph")
    metric = Latency(processes=2, seconds=0.01, block_seconds=0.001)
    rows = metric.measure([good, broken], Bench(None, 1, 0, None)).rows
    row = _row(rows, "broken", "latency_ms_p50")
    assert (row.status, row.value) == ("not_runnable_here", None)
    assert "net.onnx" in row.reason
    assert _row(rows, "good", "latency_ms_p50").value > 0


def test_a_process_that_dies_is_told_with_its_last_words(make_package: Callable[..., Subject], tmp_path: Path) -> None:
    subject = make_package("one", 10)
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    write_inputs({"text": ["no number"]}, inputs)
    with pytest.raises(StageError, match="could not convert string to float"):
        time_sides(
            [subject], [Job("embed_text", 1)], inputs, {"embed_text": ["text"]}, 1, Plan(1, 1, 0.01, 0), lambda *_: None
        )


@pytest.mark.unit
def test_rounds_go_there_and_back() -> None:
    import random

    visits = list(_visits(["a", "b", "c"], [Job("r", 1), Job("r", 8)], 2, random.Random(0)))
    assert len(visits) == 2 * 2 * 2 * 3
    for start in range(0, len(visits), 6):
        names = [name for _, name, _ in visits[start : start + 6]]
        assert names == names[::-1]
        assert sorted(names[:3]) == ["a", "b", "c"]
    assert {number for number, *_ in visits} == {0, 1, 2, 3}


@pytest.mark.unit
def test_inputs_survive_the_way_to_another_process(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 255, size=(4, 5, 4), dtype=np.uint8)
    pictures = [image.fromarray(pixels), image.fromarray(pixels[..., :3])]
    write_inputs({"image": pictures, "text": ["a", "ü"]}, tmp_path)
    values = read_inputs(tmp_path)
    assert values["text"] == ["a", "ü"]
    assert [found.mode for found in values["image"]] == ["RGBA", "RGB"]
    assert np.array_equal(np.asarray(values["image"][0]), pixels)
    sound, film = Sound(np.linspace(-1, 1, 7, dtype=np.float32), 8000), tuple(pictures)
    write_inputs({"audio": [sound], "frames": [film], "series": [pixels[0]], "gap": [None]}, tmp_path)
    values = read_inputs(tmp_path)
    assert np.array_equal(values["audio"][0].samples, sound.samples) and values["audio"][0].rate == 8000
    assert [frame.size for frame in values["frames"][0]] == [(5, 4), (5, 4)]
    assert np.array_equal(values["series"][0], pixels[0]) and values["gap"] == [None]
    with pytest.raises(InputError, match=r"odd-0.*object"):
        write_inputs({"odd": [object()]}, tmp_path)


@pytest.mark.unit
def test_an_unknown_request_is_refused(make_package: Callable[..., Subject]) -> None:
    with pytest.raises(InputError, match="embed_text"):
        Latency(requests=("embed",)).measure([make_package("one", 1)], Bench(None, 1, 0, None))
    with pytest.raises(ValidationError):
        Latency(batch=())


@pytest.mark.unit
def test_sizes_and_their_ratio(make_package: Callable[..., Subject]) -> None:
    teacher, small = make_package("teacher package", 400, "teacher"), make_package("small", 4)
    (teacher.folder / "net.onnx.data").write_bytes(b"x" * 1000)
    rows = {(row.name, row.metric): row for row in Size().measure([teacher, small], Bench(None, 1, 0, None)).rows}
    graph = (teacher.folder / "net.onnx").stat().st_size
    assert rows["teacher package", "size_bytes"].value == graph + 1000
    assert rows["small", "size_ratio"].value == (graph + 1000) / (small.folder / "net.onnx").stat().st_size
    assert rows["small", "size_ratio"].ci95 is None
    assert rows["small", "package_bytes"].value > rows["small", "size_bytes"].value
    assert ("teacher package", "size_ratio") not in rows
    alone = Size().measure([small], Bench(None, 1, 0, None)).rows
    assert [row.status for row in alone if row.metric == "size_ratio"] == ["not_runnable_here"]
    with pytest.raises(InputError, match="no weights"):
        Size().measure([replace(small, target="torch")], Bench(None, 1, 0, None))
