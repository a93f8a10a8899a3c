"""A report with every kind of row, made by hand, and examples to see, to hear and to read."""

from __future__ import annotations

from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmcompress import gate
from mmcompress._sound import Sound
from mmcompress.data import Example
from mmcompress.metrics import Row
from mmcompress.report import Report, StepFacts, write_report

EVIL = "<script>alert('1')</script>&\"'"
TEACHER = ("teacher", "teacher", "torch")
FLOAT = ("teacher onnxruntime fp32", "teacher", "onnxruntime")
STUDENT = ("distill", "student", "torch")
PLAIN = ("no teacher", "baseline", "torch")
PACKAGE = ("onnxruntime int8", "package", "onnxruntime")
ELSEWHERE = (f"openvino {EVIL}", "package", "openvino")
MODELS = (TEACHER, FLOAT, PLAIN, STUDENT, PACKAGE)
EXAMPLES = 40
LIMIT = 2_000_000
VOID = {"meta", "link", "img", "br", "input"}


class Read(HTMLParser):
    """Collects elements, text, addresses, and what is wrong in how elements are nested."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.problems: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.problems.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, name: str) -> list[dict[str, str]]:
        return [attributes for tag, attributes in self.tags if tag == name]


def row(who: tuple[str, Any, str], metric: str, value: float | None, unit: str = "ratio", **changes: Any) -> Row:
    name, role, target = who
    about: dict[str, Any] = {"conditions": {"split": "test"}, "higher_is_better": True, "n": EXAMPLES, **changes}
    if value is not None and unit == "ratio" and "ci95" not in about and not metric.startswith("size"):
        ends = (value - 0.02, value + 0.02)
        about |= {"ci95": ends, "one_sided95": ends, "interval_of": "example"}
    return Row(
        f"key of {name}",
        name,
        role,
        "package" if target != "torch" else name,
        target,
        metric,
        value=value,
        unit=unit,
        **about,
    )


def quality(metric: str, values: Sequence[float], **changes: Any) -> list[Row]:
    rows = [
        row(who, metric, value, samples=f"{metric}/{who[0]}", **changes)
        for who, value in zip(MODELS, values, strict=True)
    ]
    absent = {"status": "not_runnable_here", "reason": "openvino is not installed", "ci95": None, "n": 0}
    return [*rows, row(ELSEWHERE, metric, None, **{**changes, **absent})]


def parts(metric: str, key: str, values: dict[str, float], **changes: Any) -> list[Row]:
    about = {"split": "test", **changes.pop("conditions", {})}
    return [
        row(who, metric, value - 0.1 * (who is PACKAGE), conditions={**about, key: part}, **changes)
        for who in (TEACHER, PACKAGE)
        for part, value in values.items()
    ]


def times() -> tuple[list[Row], dict[str, list[dict[str, Any]]]]:
    chance = np.random.default_rng(0)
    rows, samples = [], {}
    for who, p50 in ((TEACHER, 40.0), (FLOAT, 20.0), (PACKAGE, 5.0)):
        about = {"batch": 1, "threads": 2, "request": "transcribe", "scope": "engine"}
        ends = (p50 * 0.95, p50 * 1.05)
        interval = {"ci95": ends, "one_sided95": ends, "interval_of": "block", "samples": f"latency/{who[0]}"}
        for metric in ("latency_ms_p50", "latency_ms_p90"):
            rows.append(row(who, metric, p50, "ms", conditions=about, higher_is_better=False, **interval))
        samples[f"latency/{who[0]}"] = [
            {"process": 0, "block": block, "side": who[0], "request": "transcribe", "batch": 1, "scope": scope}
            | {"ms": [round(float(ms), 4) for ms in p50 * np.exp(chance.normal(0, 0.1, 50))]}
            for block in range(4)
            for scope in ("engine", "end_to_end")
        ]
    about = {"batch": 1, "threads": 2, "request": "transcribe", "scope": "engine"}
    rows.append(row(PACKAGE, "speedup.latency_ms_p50", 4.0, conditions=about, reference="fp32"))
    absent = {"status": "not_runnable_here", "reason": "openvino is not installed", "conditions": about}
    rows.append(row(ELSEWHERE, "latency_ms_p50", None, "ms", **absent))
    return rows, samples


def costs() -> list[Row]:
    rows = []
    for metric, unit, values in (
        ("size_bytes", "byte", {TEACHER: 4e8, FLOAT: 4e8, STUDENT: 2e8, PACKAGE: 5e7}),
        ("parameters", "1", {TEACHER: 1e8, STUDENT: 5e7}),
        ("macs", "1", {TEACHER: 5e9, STUDENT: 2e9}),
    ):
        for who, value in values.items():
            about: dict[str, Any] = {"higher_is_better": False, "n": 1}
            if unit == "1":
                rows += [
                    row(who, metric, value, unit, conditions={"part": part}, **about) for part in ("total", "encoder")
                ]
            else:
                rows.append(row(who, metric, value, unit, conditions={}, **about))
    return [*rows, row(PACKAGE, "size_ratio", 8.0, conditions={})]


class Test:
    """A test split: a picture, a film, a sound, readings and texts."""

    ids = tuple(f"{EVIL}/{index}" if index == 0 else f"example {index}" for index in range(EXAMPLES))
    columns = frozenset({"image", "frames", "audio", "series", "texts", "label"})

    def __len__(self) -> int:
        return EXAMPLES

    def classes(self) -> Sequence[str]:
        return (f"cat {EVIL}", "dog")

    def __getitem__(self, index: int) -> Example:
        chance = np.random.default_rng(index)
        photo = Image.fromarray(chance.integers(0, 255, (600, 800, 3), dtype=np.uint8))
        frames = tuple(Image.new("RGB", (20, 20), (index, 10 * frame, 0)) for frame in range(12))
        sound = Sound(chance.normal(0, 0.1, 16_000 * 20).astype(np.float32), 16_000)
        series = chance.normal(size=(30, 2)).astype(np.float32)
        texts = (f"words of {index} {EVIL}", "more")
        return Example(
            self.ids[index],
            {"image": photo, "frames": frames, "audio": sound, "series": series, "texts": texts, "label": index % 2},
        )


def make(folder: Path, *, test: Any = None, **changes: Any) -> Report:
    """Write the report; ``changes`` go to :func:`mmcompress.report.write_report`."""
    rows = quality("wer", (0.10, 0.10, 0.30, 0.14, 0.16), higher_is_better=False)
    rows += quality("accuracy", (0.90, 0.90, 0.60, 0.86, 0.85), conditions={"split": "test", "majority": 0.5})
    rows += [
        row(PACKAGE, "retention.wer", 0.62, reference="teacher"),
        row(PACKAGE, "drop.wer", 0.06, higher_is_better=False),
    ]
    rows += parts(
        "wer", "subset", {f"accent={EVIL}": 0.2, "accent=north": 0.15, "room=quiet": 0.1}, higher_is_better=False
    )
    rows += parts("wer", "damage", {"noise 0.1": 0.3, "silence 0.2": 0.4}, higher_is_better=False)
    rows += parts("accuracy", "masked", {"image": 0.7})
    rows += parts("f1", "class", {f"cat {EVIL}": 0.9, "dog": 0.8})
    rows += costs()
    timed, samples = times()
    rows += timed
    for metric, base in (("wer", 0.0), ("accuracy", 1.0)):
        for place, (name, _, _) in enumerate(MODELS):
            samples[f"{metric}/{name}"] = [
                {
                    "id": Test.ids[i],
                    "score": abs(base - (i % 7 == 0) * (place == 4)),
                    "answer": f"said {i + (i % 9 == 0) * place} {EVIL}",
                }
                for i in range(EXAMPLES)
            ]
    steps = [
        StepFacts(
            "prune", "prune", 3.0, {"blocks": {f"encoder.{EVIL}": {"heads": [8, 5]}, "encoder.1": {"width": [64, 32]}}}
        ),
        StepFacts(
            "onnxruntime quantize (prune)",
            "quantize",
            2.0,
            {
                "graphs": {
                    "encoder": {
                        "int8": ["a", "b", "c"],
                        "float": [EVIL],
                        "int8_tables": ["t"],
                        "bytes": 10,
                        "float_bytes": 40,
                    }
                }
            },
        ),
    ]
    demands = gate.parse_demands(
        {"wer": 0.2, "accuracy": 0.99, "size_ratio": 4, "speedup.latency_ms_p50": 2.0}, ["onnxruntime", "openvino"]
    )
    given: dict[str, Any] = {
        "title": f"speech {EVIL}",
        "rows": rows,
        "samples": samples,
        "environment": {"cpu": f"A processor {EVIL}", "libraries": {"numpy": "2.4.6"}, "load": [0.1], "governor": None},
        "recipe_text": f"name: speech # {EVIL}\n",
        "verdicts": gate.judge(demands, rows, "transcribe"),
        "notes": [f"target failed: tensorrt int8: {EVIL}", f"test: 3 sounds were silent {EVIL}"],
        "steps": steps,
        "test": test,
    }
    return write_report(folder, **{**given, **changes})
