"""The teacher's own texts as labels, written once and kept: distillation of whole sequences, with a filter.

Kim and Rush, arXiv:1606.07947, section 3.2; with the filter as in Distil-Whisper, arXiv:2311.00430, section 4.

::

    <cache>/labels/<key>/     whole or not at all; a killed run goes on in <key>.part
        texts.jsonl           {"id", "text", "references"} per example, in their order; references are the data's texts
"""

from __future__ import annotations

import json
import os
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field

from mmcompress._ask import as_texts, ask
from mmcompress._error_rate import SPELLINGS, Normaliser, count, normaliser_of
from mmcompress._probe import raw_values
from mmcompress.component import JSON, digest_json, digest_path, dump
from mmcompress.data import Example, Examples
from mmcompress.errors import StageError
from mmcompress.families import Family, Feeds
from mmcompress.stages import Model, StageInput
from mmcompress.stages._answers import read_answers

Labels = Literal["data", "teacher"]
TARGETS = ("texts", "answers")
"""Columns that hold what a model shall write, each value as good as the others."""
BATCH = 32
Record = Mapping[str, Any]
"""``id``, ``text`` and ``references`` of an example."""
_TEXTS = "texts.jsonl"
_FORMAT = 1


class LabelFilter(BaseModel):
    """Which of the teacher's texts are learned from; an example whose text fails is left out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_wer: float | None = Field(None, ge=0)
    """Largest word error rate against the data's nearest text; 0.1 in Distil-Whisper. Data without texts have none."""
    normaliser: Normaliser = "basic"
    """How both texts are made comparable before, as the metric ``wer`` does it."""
    min_words: int = Field(1, ge=0)
    max_words: int | None = Field(None, ge=1)
    max_compression: float | None = Field(None, gt=0)
    """Largest ratio of a text's bytes before and after zlib: what repeats itself compresses well. Whisper takes 2.4
    (arXiv:2212.04356, section 4.5)."""


def target_of(family: Family) -> str | None:
    """The column that a family's main request writes, in training; None where it writes no text, or none of these."""
    main = family.requests[0]
    asked = {"text": "texts"}
    inputs = {asked.get(name, name) for name in main.inputs}
    found = [name for name in TARGETS if name in family.columns and name not in inputs]
    return found[0] if main.answers == "tokens" and found else None


def with_teacher_labels(given: StageInput, rules: LabelFilter) -> tuple[StageInput, dict[str, JSON]]:
    """The stage's input with training examples that say what the teacher says; and facts: kept, dropped, by reason.

    Raises:
        StageError: no example is left, or the filter needs texts that the data lack.
    """
    teacher = given.teacher
    assert teacher is not None
    column = target_of(teacher.family)
    assert column is not None
    if rules.max_wer is not None and column not in given.train.columns:
        raise StageError(
            f"label_filter: max_wer compares with the {column} of the data, and they have none"
            "\n  Leave it out, and filter by max_compression or max_words."
        )
    key, records = teacher_texts(given, teacher, column)
    reasons = _failed(records, rules, teacher)
    kept = [index for index, why in enumerate(reasons) if why is None]
    dropped = Counter(why for why in reasons if why is not None)
    if not kept:
        raise StageError(
            f"labels: teacher: none of the {len(records)} texts passed the filter ({dict(dropped)})\n  Loosen label_filter."
        )
    labelled = Labelled(given.train, column, [records[index]["text"] for index in kept], kept)
    identity = {"data": given.train_identity, "labels": key, "filter": rules.model_dump(mode="json")}
    facts = {"kept": len(kept), "dropped": dict(sorted(dropped.items())), "key": key}
    return replace(given, train=labelled, train_identity=identity), facts


def with_given_labels(
    given: StageInput, answers: Path, student: Family, rules: LabelFilter
) -> tuple[StageInput, dict[str, JSON]]:
    """:func:`with_teacher_labels` with the texts of a file of answers.

    Raises:
        InputError: examples without an answer.
        StageError: no example is left.
    """
    column = target_of(student)
    found = read_answers(answers)
    assert column is not None and found.texts is not None
    texts = [found.texts[row] for row in found.rows(given.train.ids)]
    failed = [reason(rules, text) for text in texts]
    kept = [index for index, why in enumerate(failed) if why is None]
    dropped = Counter(why for why in failed if why is not None)
    if not kept:
        raise StageError(f"labels: teacher: none of the {len(texts)} texts passed the filter ({dict(dropped)})")
    labelled = Labelled(given.train, column, [texts[index] for index in kept], kept)
    key = digest_path(answers)
    identity = {"data": given.train_identity, "labels": key, "filter": rules.model_dump(mode="json")}
    facts = {"kept": len(kept), "dropped": dict(sorted(dropped.items())), "key": key}
    return replace(given, train=labelled, train_identity=identity), facts


class Labelled:
    """Some of the examples of another split, each with a text of the teacher in place of its own."""

    def __init__(self, examples: Examples, column: str, texts: Sequence[str], rows: Sequence[int]) -> None:
        self._examples, self._column, self._texts, self._rows = examples, column, tuple(texts), tuple(rows)
        self.ids: Sequence[str] = tuple(examples.ids[row] for row in rows)
        self.columns = examples.columns | {column}
        self.notes = examples.notes

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        example = self._examples[self._rows[index]]
        return Example(example.id, {**example.values, self._column: (self._texts[index],)})

    def fingerprint(self, index: int) -> str:
        """That of the example, and the text."""
        return digest_json([self._examples.fingerprint(self._rows[index]), self._texts[index]])

    def classes(self) -> Sequence[str]:
        """Those of the examples."""
        return self._examples.classes()


# --- filtering -----------------------------------------------------------------------------------------------------


def _failed(records: Sequence[Record], rules: LabelFilter, teacher: Model) -> list[str | None]:
    """The rule that each text fails, or None."""
    if rules.max_wer is None:
        return [reason(rules, record["text"]) for record in records]
    file = teacher.folder / SPELLINGS
    normalise = normaliser_of(rules.normaliser, file if file.is_file() else None)
    return [
        reason(rules, record["text"], (normalise(record["text"]), [normalise(text) for text in record["references"]]))
        for record in records
    ]


def reason(rules: LabelFilter, text: str, compared: tuple[str, Sequence[str]] | None = None) -> str | None:
    """The rule that a text fails; None where it is kept.

    Args:
        rules: the filter.
        text: what the teacher wrote.
        compared: its normalised form and the references'.
    """
    words, data = len(text.split()), text.encode()
    if words < rules.min_words:
        return "min_words"
    if rules.max_words is not None and words > rules.max_words:
        return "max_words"
    if rules.max_compression is not None and data and len(data) / len(zlib.compress(data)) > rules.max_compression:
        return "max_compression"
    if rules.max_wer is not None and compared is not None:
        wrong, of, *_ = count(compared[1], compared[0])
        if wrong > rules.max_wer * max(of, 1):
            return "max_wer"
    return None


# --- asking --------------------------------------------------------------------------------------------------------


def teacher_texts(given: StageInput, teacher: Model, column: str) -> tuple[str, list[Record]]:
    """The key under which the teacher's texts are kept, and a record per training example: found, or written."""
    examples = given.train
    identity = given.train_identity
    key = digest_json(
        {
            "teacher": given.teacher_key or digest_path(teacher.folder),
            "family": dump(teacher.family),
            "revision": teacher.family.revision_of_code,
            "data": identity if identity is not None else [examples.fingerprint(i) for i in range(len(examples))],
            "ids": list(examples.ids),
            "column": column,
            "format": _FORMAT,
        }
    )
    home = given.cache / "labels" / key
    if not (home / _TEXTS).is_file():
        home.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(home.parent / f"{key}.lock"):
            if not (home / _TEXTS).is_file():
                part = home.with_name(f"{key}.part")
                part.mkdir(exist_ok=True)
                _write(teacher, examples, column, part / _TEXTS, given.progress)
                os.replace(part, home)
    return key, _records((home / _TEXTS).read_bytes())


def _records(data: bytes) -> list[Record]:
    return [json.loads(line) for line in data.splitlines()]


def _write(teacher: Model, examples: Examples, column: str, file: Path, tell: Callable[[str, int, int], None]) -> None:
    """Append the texts that a killed run has not written yet."""
    whole = file.read_bytes() if file.is_file() else b""
    whole = whole[: whole.rfind(b"\n") + 1]  # a line that was cut short is written again
    done = len(_records(whole))
    file.write_bytes(whole)
    family = teacher.family
    main, processor, run = family.requests[0], family.processor(teacher.folder), ModelRun(teacher)
    with file.open("ab") as opened:
        for start in range(done, len(examples), BATCH):
            tell("asking the teacher for its texts", start, len(examples))
            chunk = [examples[index] for index in range(start, min(start + BATCH, len(examples)))]
            rows = ask(family, processor, run, main.name, raw_values(chunk, main.inputs))
            for example, text in zip(chunk, as_texts(processor, main, rows), strict=True):
                record = {"id": example.id, "text": text, "references": list(example.values.get(column, ()))}
                opened.write(json.dumps(record).encode() + b"\n")
            opened.flush()
        os.fsync(opened.fileno())
    tell("asking the teacher for its texts", len(examples), len(examples))


@dataclass
class _Held:
    array: Any
    tensor: Any


class ModelRun:
    """Runs a model's graphs in torch, on a GPU where there is one: arrays in and out, without autocast.

    What a graph gave stays on the device as long as the next calls are given it again: a decoder is fed the same keys
    and values of the encoder at every step.
    """

    def __init__(self, model: Model) -> None:
        import torch

        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # Sample inputs of graphs are made on the CPU.
        graphs = model.family.graphs(model.family.load(model.folder))
        self._graphs = {graph.name: graph.module.eval().to(self.device) for graph in graphs}
        self._held: dict[int, _Held] = {}

    def __call__(self, graph: str, feeds: Mapping[str, Any]) -> Feeds:
        """Run a graph by name."""
        import torch

        inputs, held = {}, {}
        for name, array in feeds.items():
            known = self._held.get(id(array))
            tensor = torch.from_numpy(np.ascontiguousarray(array)).to(self.device) if known is None else known.tensor
            inputs[name], held[id(array)] = tensor, _Held(array, tensor)
        with torch.inference_mode():
            outputs = self._graphs[graph](**inputs)
        result: Feeds = {name: value.cpu().numpy() for name, value in outputs.items()}
        held.update({id(array): _Held(array, outputs[name]) for name, array in result.items()})
        self._held = held
        return result
