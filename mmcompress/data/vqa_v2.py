"""VQA v2: questions about COCO's pictures, each answered by ten annotators.

Source: Goyal et al., "Making the V in VQA Matter", 2017. The published files are
``v2_OpenEnded_mscoco_val2014_questions.json`` and ``v2_mscoco_val2014_annotations.json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import Field

from mmcompress.component import JSON, RecipePath
from mmcompress.data import Dataset
from mmcompress.data._annotations import AnnotatedExamples, Pictures, Row, entries, field, gather, identity, read_json
from mmcompress.errors import InputError

_QUESTIONS = "questions of VQA v2 (questions with question_id, image_id, question)"
_ANNOTATIONS = "annotations of VQA v2 (annotations with question_id and answers)"


class VqaV2(Dataset):
    """Questions with the answers of ten annotators; ``question_type`` and ``answer_type`` are slices."""

    questions: RecipePath
    """The JSON file with the questions."""
    annotations: RecipePath
    """The JSON file with the answers to them."""
    images: RecipePath
    """The folder or zip archive with the pictures, whose names end with their number, at any depth."""
    limit: int | None = Field(None, ge=1)
    """Read the first questions alone."""
    max_skipped: int = Field(0, ge=0)
    """How many questions without an answer or a picture are left out before that is an error."""

    def identity(self) -> JSON:
        """The fields, the digests of both JSON files and of every file that pictures lie in."""
        rows, _, folder = read_rows(self)
        return identity(self, rows, folder, {"questions": self.questions, "annotations": self.annotations})

    def read(self) -> AnnotatedExamples:
        """Open the split: find and decode every picture.

        Raises:
            InputError: what is wrong, with the number of the question.
        """
        rows, skipped, _ = read_rows(self)
        return AnnotatedExamples(rows, skipped, self.max_skipped)


def read_rows(spec: VqaV2) -> tuple[tuple[Row, ...], int, Path]:
    """The questions with their answers, how many were left out, and the folder that all pictures lie in.

    Raises:
        InputError: the files are of another kind or do not belong together, or too much is missing.
    """
    paths = (spec.questions, spec.annotations, spec.images)
    return _rows(spec, tuple(path.stat().st_mtime_ns if path.exists() else 0 for path in paths))


@lru_cache(maxsize=4)
def _rows(spec: VqaV2, stamps: tuple[int, ...]) -> tuple[tuple[Row, ...], int, Path]:
    asked = entries(read_json(spec.questions, _QUESTIONS), "questions", spec.questions, _QUESTIONS)
    answered = {
        field(item, "question_id", int, f"{spec.annotations}: annotation {number}"): item
        for number, item in enumerate(
            entries(read_json(spec.annotations, _ANNOTATIONS), "annotations", spec.annotations, _ANNOTATIONS)
        )
    }
    if not any(item.get("question_id") in answered for item in asked):
        raise InputError(
            f"{spec.annotations}: answers none of the questions of {spec.questions}\n  Expected their own."
        )
    pictures = Pictures(spec.images)
    rows = [_row(spec, pictures, number, item, answered) for number, item in enumerate(asked[: spec.limit])]
    return (*gather(rows, spec.max_skipped), pictures.folder)


def _row(
    spec: VqaV2, pictures: Pictures, number: int, item: Mapping[str, Any], answered: Mapping[int, Mapping[str, Any]]
) -> Row | InputError:
    try:
        identifier = field(item, "question_id", int, f"{spec.questions}: question {number}")
        where = f"{spec.questions}: question {identifier}"
        question = str(field(item, "question", str, where)).strip()
        source = pictures.find(field(item, "image_id", int, where), where)
        if identifier not in answered:
            raise InputError(f"{where}: no answer in {spec.annotations}\n  Expected an annotation per question.")
        annotation = answered[identifier]
        if annotation.get("image_id", item["image_id"]) != item["image_id"]:
            raise InputError(f"{where}: its annotation is of picture {annotation['image_id']}, not {item['image_id']}")
        answers = tuple(
            str(field(answer, "answer", str, where)).strip() for answer in field(annotation, "answers", list, where)
        )
        if not question or not any(answers):
            raise InputError(f"{where}: {'no answers' if question else 'an empty question'}")
    except InputError as error:
        return error
    slices = {name: str(annotation.get(name) or "unknown") for name in ("question_type", "answer_type")}
    return Row(where, f"vqa/{identifier}", source, {"question": question, "answers": answers, **slices})
