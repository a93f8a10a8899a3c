from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmcompress._error_rate import count, english_normaliser
from mmcompress.errors import InputError
from mmcompress.metrics.wer import Wer

pytestmark = pytest.mark.unit


class Texts:
    """Transcripts as a bench gives them."""

    def __init__(self, texts: dict[str, list[str]], references: list[tuple[str, ...]]) -> None:
        self._texts, self._references = texts, references

    def texts(self, subject: Any, request: str) -> list[str]:
        assert request == "transcribe"
        return self._texts[subject.name]

    def values(self, name: str) -> list[tuple[str, ...]]:
        assert name == "texts"
        return self._references


def test_counts_by_hand() -> None:
    # One of three words is missing, of "a b c" two characters; an inserted word is an error of a reference of one word.
    assert count(["a b c"], "a c") == (1, 3, 2, 5)
    assert count(["a"], "a b") == (1, 1, 2, 1)
    assert count(["one"], "won") == (1, 1, 2, 3)
    assert count(["", "b"], "") == (0, 0, 0, 0)
    assert count(["x y", "a b c"], "a b d") == (1, 3, 1, 5)


def test_rates_are_those_of_the_whole_corpus(subject: Any, bench: Any) -> None:
    references = [("a b c d e f g h i",), ("z",)]
    given = Texts({"teacher": ["A b c d e f g h, x", "z"], "distill": ["a b c d e f g h i", "y y"]}, references)
    metric = Wer()
    measured = metric.measure([subject("teacher", "teacher"), subject("distill")], bench(given, 2))
    values = {(row.name, row.metric): row for row in measured.rows}
    # Not the mean of 1/9 and 0, but one wrong word of ten.
    assert values["teacher", "wer"].value == pytest.approx(0.1)
    assert values["distill", "wer"].value == pytest.approx(0.2)
    assert values["teacher", "cer"].value == pytest.approx(1 / 18)
    assert values["distill", "drop.wer"].value == pytest.approx(0.1)
    assert not values["distill", "wer"].higher_is_better and not values["distill", "drop.wer"].higher_is_better
    low, high = values["distill", "wer"].ci95 or (0, 0)
    assert low == 0.0 and high >= 2.0  # a resample of the second example alone has two errors in one word
    assert {row.metric for row in measured.rows} == metric.gives()
    assert [record["errors"] for record in measured.samples["wer/distill"]] == [0, 2]
    assert measured.samples["wer/distill"][1]["answer"] == "y y"


def test_retention_is_one_where_errors_stay(subject: Any, bench: Any) -> None:
    references = [("a b",)] * 40
    said = ["a x"] * 40
    measured = Wer().measure(
        [subject("teacher", "teacher"), subject("distill")],
        bench(Texts({"teacher": said, "distill": said}, references), 40),
    )
    values = {(row.name, row.metric): row.value for row in measured.rows}
    assert values["distill", "retention.wer"] == pytest.approx(1.0)
    assert values["distill", "drop.wer"] == 0.0


def test_normalisers(subject: Any, bench: Any, tmp_path: Path) -> None:
    references = [("Mr. Smith's colour, 20 (laughs) things",), ("It's twenty-three",)]
    said = ["mister smith is color twenty things", "it is 23"]

    def rate(folder: str | Path = "nowhere", **fields: Any) -> Any:
        teacher = subject("teacher", "teacher", folder=folder)
        rows = Wer(**fields).measure([teacher], bench(Texts({"teacher": said}, references), 2)).rows
        return next(row for row in rows if row.metric == "wer")

    (tmp_path / "normalizer.json").write_text(json.dumps({"colour": "color"}))
    assert rate(tmp_path, normaliser="whisper_english").value == 0.0
    without = rate(normaliser="whisper_english")
    assert without.value == pytest.approx(1 / 9) and "normalizer.json" in without.reason
    assert rate(normaliser="whisper_english", spellings=tmp_path / "normalizer.json").value == 0.0
    assert rate(normaliser="none").value > rate(normaliser="basic").value > 0.5
    assert without.conditions["normaliser"] == "whisper_english"


def test_neighbouring_number_words_are_one_word_in_english() -> None:
    assert english_normaliser({})("two three") == "23"


def test_references_without_words_are_refused(subject: Any, bench: Any) -> None:
    with pytest.raises(InputError, match="holds a word"):
        Wer().measure([subject("teacher", "teacher")], bench(Texts({"teacher": ["a"]}, [("...",)]), 1))


def test_an_empty_transcript_is_all_deletions() -> None:
    assert np.array_equal(count(["a b"], ""), (2, 2, 3, 3))
