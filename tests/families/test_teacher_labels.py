"""A student learns what its teacher says: texts written once, filtered, counted; a killed run goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_whisper import RATE, tiny

from mmcompress._ask import ask
from mmcompress.data import Example
from mmcompress.data.codes import CodeExamples, Codes
from mmcompress.errors import StageError
from mmcompress.families.clip import Clip
from mmcompress.families.whisper import Whisper
from mmcompress.runtimes.torch import open_model
from mmcompress.stages import Model, StageInput, _pseudo_labels
from mmcompress.stages._pseudo_labels import LabelFilter, reason, target_of, teacher_texts, with_teacher_labels
from mmcompress.stages.distill import Distill

SIZE = 40


class Silent:
    """Sounds of which nobody knows what they say."""

    def __init__(self, examples: CodeExamples) -> None:
        self._examples = examples
        self.ids: Sequence[str] = examples.ids
        self.columns, self.notes = frozenset({"audio"}), examples.notes
        self.fingerprint, self.classes = examples.fingerprint, examples.classes

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        example = self._examples[index]
        return Example(example.id, {"audio": example.values["audio"]})


@pytest.fixture
def given(tmp_path: Path) -> StageInput:
    torch.set_num_threads(1)
    family, folder = tiny(tmp_path / "teacher", init_std=0.4)
    family = family.model_copy(update={"max_tokens": 4})
    for name in ("output", "work", "cache"):
        (tmp_path / name).mkdir()
    train = Codes(split="train", size=SIZE, rate=RATE, digits=2)
    return StageInput(
        model=None,
        teacher=Model(family, folder),
        train=train.read(),
        validation=None,
        seed=0,
        output=tmp_path / "output",
        work=tmp_path / "work",
        cache=tmp_path / "cache",
        teacher_key="teacher",
        train_identity=train.identity(),
    )


def say(given: StageInput, texts: Sequence[str]) -> None:
    """Put texts in place of those that the teacher wrote."""
    assert given.teacher is not None
    key, records = teacher_texts(given, given.teacher, "texts")
    said = [{**record, "text": text} for record, text in zip(records, texts, strict=True)]
    file = given.cache / "labels" / key / "texts.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in said))


def test_the_texts_are_the_teachers_and_are_written_once(given: StageInput, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = given.teacher
    assert teacher is not None
    key, records = teacher_texts(given, teacher, "texts")
    session, processor = open_model(teacher.family, teacher.folder, 1), teacher.family.processor(teacher.folder)
    sounds = [given.train[index].values["audio"] for index in range(SIZE)]
    rows = ask(teacher.family, processor, session.run, "transcribe", {"audio": sounds})
    assert [record["text"] for record in records] == processor.decode(rows)  # type: ignore[attr-defined]
    assert len({record["text"] for record in records}) > 1
    assert [tuple(record["references"]) for record in records] == [
        given.train[index].values["texts"] for index in range(SIZE)
    ]

    # Killed after the first batch, in the middle of a line: what was written stays.
    home = given.cache / "labels" / key
    part = home.rename(home.with_name(f"{key}.part"))
    lines = (part / "texts.jsonl").read_bytes().splitlines(keepends=True)
    marked = json.dumps({**records[0], "text": "written before"}).encode() + b"\n"
    (part / "texts.jsonl").write_bytes(b"".join([marked, *lines[1:33]]) + lines[33][:20])
    again = teacher_texts(given, teacher, "texts")
    assert again == (key, [{**records[0], "text": "written before"}, *records[1:]])

    def refused(model: Any) -> None:
        raise AssertionError("the teacher was asked again")

    monkeypatch.setattr(_pseudo_labels, "ModelRun", refused)
    assert teacher_texts(given, teacher, "texts") == again
    beams = Model(teacher.family.model_copy(update={"beams": 2}), teacher.folder)
    with pytest.raises(AssertionError):  # another way of decoding is another key
        teacher_texts(given, beams, "texts")


def test_what_fails_the_filter_is_left_out_and_counted(given: StageInput) -> None:
    texts = [given.train[index].values["texts"][0] for index in range(SIZE)]
    texts[0], texts[1], texts[2] = "", texts[1].upper() + "!", texts[2] + " and more words than that"
    texts[3] = "no no no no"
    say(given, texts)
    rules = LabelFilter(max_wer=0.1, max_words=5)
    labelled, facts = with_teacher_labels(given, rules)
    assert facts["kept"] == SIZE - 3
    assert facts["dropped"] == {"max_words": 1, "max_wer": 1, "min_words": 1}
    assert list(labelled.train.ids) == [given.train.ids[1], *given.train.ids[4:]]
    assert labelled.train[0].values["texts"] == (texts[1],)
    assert labelled.train[0].values["audio"].rate == RATE
    assert labelled.train.fingerprint(0) != given.train.fingerprint(1)
    assert labelled.train_identity != with_teacher_labels(given, LabelFilter())[0].train_identity
    say(given, ["never"] * SIZE)
    with pytest.raises(StageError, match=f"none of the {SIZE} texts passed"):
        with_teacher_labels(given, rules)


def test_rules_by_hand() -> None:
    assert reason(LabelFilter(), "") == "min_words" and reason(LabelFilter(min_words=0), "") is None
    # One wrong of two words.
    assert reason(LabelFilter(max_wer=0.4), "a b", ("a b", ["a c", "d"])) == "max_wer"
    assert reason(LabelFilter(max_wer=0.5), "a b", ("a b", ["a c", "d"])) is None
    looping = "thank you very much " * 20
    assert reason(LabelFilter(max_compression=2.4), looping) == "max_compression"
    assert reason(LabelFilter(max_compression=2.4), "thank you very much") is None


def test_sounds_without_texts_are_enough(given: StageInput) -> None:
    assert isinstance(given.train, CodeExamples)
    silent = replace(given, train=Silent(given.train))
    with pytest.raises(StageError, match="compares with the texts of the data, and they have none"):
        with_teacher_labels(silent, LabelFilter(max_wer=0.1))
    labelled, facts = with_teacher_labels(silent, LabelFilter(min_words=0))
    assert facts["kept"] == SIZE and "texts" in labelled.train.columns
    stage = Distill.model_validate(
        {
            "student": {"from_teacher": {"decoder_layers": 1}},
            "labels": "teacher",
            "label_filter": {"min_words": 0},
            "steps": 2,
            "batch_size": 8,
        }
    )
    told = stage.run(silent)
    assert told["labels"]["kept"] == SIZE and told["losses"].keys() == {"loss", "logits_kl", "task"}


def test_the_student_learns_what_the_teacher_said(given: StageInput) -> None:
    say(given, ["five two"] * SIZE)
    stage = Distill.model_validate(
        {
            "student": {"from_teacher": {"decoder_layers": 1, "init": "random"}},
            "labels": "teacher",
            "losses": ["task"],
            "steps": 60,
            "batch_size": 16,
            "learning_rate": 0.003,
            "precision": "fp32",
        }
    )
    assert given.teacher is not None and stage.problems(None, given.teacher.family) == []
    stage.run(given)
    family = given.teacher.family
    processor, session = family.processor(given.output), open_model(family, given.output, 1)
    rows = ask(family, processor, session.run, "transcribe", {"audio": [given.train[0].values["audio"]]})
    assert processor.decode(rows) == ["five two"]  # type: ignore[attr-defined]


def test_what_cannot_work_is_told_when_the_recipe_is_read() -> None:
    clip, whisper = Clip(path=Path("clip")), Whisper(path=Path("whisper"))
    assert target_of(clip) is None and target_of(whisper) == "texts"

    def told(teacher: Any, **fields: Any) -> list[str]:
        return [message for _, message in Distill.model_validate(fields).problems(teacher, teacher)]

    assert told(whisper, labels="teacher", label_filter={"max_wer": 0.1}) == []
    assert told(whisper, label_filter={"max_wer": 0.1}) == ["filters what `labels: teacher` gives"]
    assert told(clip, labels="teacher") == ["clip writes no texts that a student could learn"]
    assert told(whisper, losses=["task"]) == ["none compares with the teacher; expected one that does, or `finetune`"]
