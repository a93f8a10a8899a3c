"""Several callers of one package: the same answers, in common batches."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import deployed
import numpy as np
import pytest

from mmcompress._batching import BATCH, Batcher
from mmcompress.errors import InputError, UsageError
from mmcompress.package import load_package

TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def alone():
    with load_package(deployed.package("fp32"), threads=1) as package:
        columns, _ = package.probe()
        yield columns, {request.name: package.ask(request.name, columns) for request in package.requests}


def test_concurrent_callers_get_the_answers_of_one_caller(alone) -> None:
    columns, expected = alone
    with load_package(deployed.package("fp32"), threads=1, workers=2) as package, ThreadPoolExecutor(8) as pool:
        jobs = [(i % 16, name) for i in range(96) for name in (("embed_image", "image"), ("embed_text", "text"))]
        found = list(pool.map(lambda job: package.ask(job[1][0], {job[1][1]: [columns[job[1][1]][job[0]]]}), jobs))
    for (index, (request, _)), row in zip(jobs, found, strict=True):
        assert row.shape == (1, 64) and np.abs(row[0] - expected[request][index]).max() < TOLERANCE


def test_one_caller_with_many_inputs_and_both_towers(alone) -> None:
    columns, expected = alone
    with load_package(deployed.package("fp32"), threads=1, workers=2) as package:
        many = package.ask("embed_image", {"image": columns["image"] * 3})
        assert many.shape == (48, 64) and np.abs(many[:16] - expected["embed_image"]).max() < TOLERANCE
        texts = columns["text"][:5]
        found = package.classify(columns["image"], texts)
        similar = expected["embed_image"] @ expected["embed_text"][:5].T
        assert [answer.index for answer in found] == similar.argmax(axis=1).tolist()


def test_a_wrong_input_is_told_to_its_caller_alone(alone) -> None:
    columns, _ = alone
    with load_package(deployed.package("fp32"), threads=1, workers=1) as package, ThreadPoolExecutor(4) as pool:
        inputs = [columns["image"][0], b"no picture", columns["image"][1], columns["image"][2]] * 4
        calls = [pool.submit(package.embed_images, value) for value in inputs]
        failed = [index for index, call in enumerate(calls) if call.exception() is not None]
        assert failed == [1, 5, 9, 13] and isinstance(calls[1].exception(), InputError)


def test_closing_answers_what_was_asked_and_refuses_what_comes_later(alone) -> None:
    columns, _ = alone
    before = threading.active_count()
    package = load_package(deployed.package("fp32"), threads=1, workers=2)
    waits = [package._start("embed_text", {"text": columns["text"]}) for _ in range(8)]
    package.close()
    assert all(wait().shape == (16, 64) for wait in waits)
    assert threading.active_count() == before
    with pytest.raises(UsageError, match="closed"):
        package.embed_texts("a")
    package.close()
    with pytest.raises(UsageError, match="workers"):
        load_package(deployed.package("fp32"), workers=-1)


class Doubling:
    """Preprocessing that keeps numbers, an engine that doubles them and remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.threads: list[str] = []
        self.go = threading.Event()

    def compact(self, values):
        return {"x": np.array([[value] for value in values["x"]])}

    def expand(self, compact):
        return compact

    def answer(self, request: str, feeds) -> np.ndarray:
        self.go.wait(10)
        self.batches.append(feeds["x"][:, 0].tolist())
        self.threads.append(threading.current_thread().name)
        if 13 in feeds["x"]:
            raise InputError("thirteen")
        if 14 in feeds["x"]:
            raise ZeroDivisionError
        return feeds["x"] * 2


@pytest.mark.unit
def test_what_waits_is_answered_in_one_batch() -> None:
    model = Doubling()
    batcher = Batcher(model, model.answer, workers=1)
    waits = [batcher.submit("a", {"x": [0]}, 64)]
    while batcher._queue:
        pass  # until the worker took the first, alone
    waits += [batcher.submit(name, {"x": [index]}, 64) for index, name in enumerate("aabaa", start=1)]
    model.go.set()
    assert [wait().item() for wait in waits] == [0, 2, 4, 6, 8, 10]
    assert model.batches == [[0], [1, 2, 4, 5], [3]]
    assert batcher.submit("a", {"x": list(range(20, 20 + BATCH + 3))}, 64)().shape == (BATCH + 3, 1)
    batcher.close()


@pytest.mark.unit
def test_a_caller_runs_a_free_engine_and_what_comes_meanwhile_shares_the_next_batch() -> None:
    model = Doubling()
    batcher = Batcher(model, model.answer, workers=1)
    with ThreadPoolExecutor(4, "caller") as pool:
        calls = [pool.submit(batcher.ask, "a", {"x": [0]}, 64)]
        while batcher._free:
            pass
        calls += [pool.submit(batcher.ask, "a", {"x": [value]}, 64) for value in (1, 2, 3)]
        while len(batcher._queue) < 3:
            pass
        model.go.set()
        assert [call.result(10).item() for call in calls] == [0, 2, 4, 6]
    assert [sorted(batch) for batch in model.batches] == [[0], [1, 2, 3]]
    assert [name.partition("_")[0] for name in model.threads] == ["caller", "mmcompress-worker-0"]
    assert batcher.ask("a", {"x": list(range(20, 20 + BATCH + 3))}, 64).shape == (BATCH + 3, 1)
    batcher.close()
    with pytest.raises(UsageError, match="closed"):
        batcher.ask("a", {"x": [1]}, 64)


@pytest.mark.unit
def test_a_batch_that_fails_is_tried_one_by_one_and_a_bug_reaches_who_waits() -> None:
    model = Doubling()
    batcher = Batcher(model, model.answer, workers=1)
    waits = [batcher.submit("a", {"x": [value]}, 64) for value in (1, 12, 13, 2)]
    model.go.set()
    assert [waits[index]().item() for index in (0, 1, 3)] == [2, 24, 4]
    with pytest.raises(InputError, match="thirteen"):
        waits[2]()
    with pytest.raises(ZeroDivisionError):
        batcher.submit("a", {"x": [14]}, 64)()
    assert batcher.submit("a", {"x": [5]}, 64)().item() == 10
    batcher.close()
