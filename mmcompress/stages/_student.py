"""The field ``student``: what a training stage begins with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError
from pydantic_core import PydanticCustomError, core_schema

from mmcompress import component
from mmcompress.component import JSON
from mmcompress.errors import UsageError
from mmcompress.families import Family, FromTeacher
from mmcompress.stages import Model, StageInput
from mmcompress.stages._training import prepare_student
from mmcompress.stages._training_fields import Problems

CUT = "from_teacher"


class StudentSlot:
    """Reads ``from_teacher: {...}`` or a family component, and dumps the same."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """Validate by :func:`parse_student`, serialize by :func:`dump_student`."""
        return core_schema.with_info_plain_validator_function(
            lambda value, info: parse_student(value, info.context),
            serialization=core_schema.plain_serializer_function_ser_schema(dump_student),
        )

    def __get_pydantic_json_schema__(self, schema: Any, handler: GetJsonSchemaHandler) -> dict[str, JSON]:
        """Nothing, a cut of the teacher, or any family."""
        fields = FromTeacher.model_json_schema()
        cut = {"type": "object", "properties": {CUT: fields}, "required": [CUT], "additionalProperties": False}
        return {"anyOf": [{"type": "null"}, cut, {"$comment": "#/$defs/families"}]}


Student = Annotated[FromTeacher | Family | None, StudentSlot()]


def parse_student(value: Any, context: Any = None) -> FromTeacher | Family | None:
    """``{from_teacher: {...}}``, ``{<family>: {...}}`` or nothing.

    Raises:
        ValidationError: with locations below the name.
        PydanticCustomError: no such name, or another shape.
    """
    if value is None or isinstance(value, (FromTeacher, Family)):
        return value
    if value == CUT:
        return FromTeacher()
    if isinstance(value, Mapping) and len(value) == 1 and CUT in value:
        fields = value[CUT]
        if fields is not None and not isinstance(fields, (Mapping, FromTeacher)):
            raise PydanticCustomError("component", "expected the fields of '{name}' as a mapping", {"name": CUT})
        try:
            return FromTeacher.model_validate(fields or {}, context=context)
        except ValidationError as error:
            raise component.below(error, CUT) from None
    name = next(iter(value)) if isinstance(value, Mapping) and len(value) == 1 else value
    families = component.names("families")
    if isinstance(name, str) and name not in families:
        known = [CUT, *families]
        raise PydanticCustomError(
            "component",
            "unknown name '{name}'{near}; known: {known}",
            {"name": name, "near": component.nearest(name, known), "known": ", ".join(known)},
        )
    parsed = component.parse("families", value, context)
    assert isinstance(parsed, Family)
    return parsed


def dump_student(value: FromTeacher | Family | None) -> JSON:
    """As a recipe writes it."""
    if isinstance(value, FromTeacher):
        return {CUT: value.model_dump(mode="json")}
    return None if value is None else component.dump(value)


def student_family(student: FromTeacher | Family | None, model: Family | None, teacher: Family | None) -> Family | None:
    """The family of the student; None where nothing tells."""
    if isinstance(student, Family):
        return student
    if isinstance(student, FromTeacher):
        return teacher
    return model


def student_problems(student: FromTeacher | Family | None, model: Family | None, teacher: Family | None) -> Problems:
    """A cut without a teacher, a stage without any model."""
    if isinstance(student, FromTeacher) and teacher is None:
        return [(("student", CUT), "there is no teacher to cut a student from")]
    if isinstance(student, FromTeacher) and teacher is not None:
        known = sorted(teacher.cuts)
        return [
            (
                ("student", CUT, name),
                f"{teacher.component_name()} has no {name}{component.nearest(name, known)}; known: {', '.join(known)}",
            )
            for name in student.named()
            if name not in teacher.cuts
        ]
    if student is None and model is None:
        return [(("student",), "there is no model so far; expected a student such as `clip: {config: config.json}`")]
    return []


def begin(student: FromTeacher | Family | None, given: StageInput) -> Model:
    """The model to train: the model so far, or the student's model folder, written once.

    Raises:
        UsageError: there is no model so far, or no teacher to cut from.
    """
    if student is None:
        if given.model is None:
            raise UsageError("there is no model to train\n  Name a `student`, or a `teacher` for the recipe.")
        return given.model
    if isinstance(student, FromTeacher):
        teacher = given.teacher
        if teacher is None:
            raise UsageError("student.from_teacher: there is no teacher to cut a student from")
        cut = student
        folder = prepare_student(given, lambda part: teacher.family.student(teacher.folder, cut, part, given.seed))
        return Model(teacher.family, folder)
    family = student
    return Model(family, prepare_student(given, lambda part: family.write(part, given.seed)))
