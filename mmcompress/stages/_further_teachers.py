"""The field ``teachers`` of a distillation: models that are followed besides the recipe's teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, TypeAdapter
from pydantic_core import PydanticCustomError, core_schema

from mmcompress import component
from mmcompress.component import JSON, Component
from mmcompress.families import Family

WEIGHT = "weight"


class FurtherTeacher(BaseModel):
    """A teacher and how much it counts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Any
    """A family component, or the last model of another recipe (:class:`mmcompress.recipe.FromRecipe`)."""
    weight: float

    def family(self) -> Family:
        """The family of the model.

        Raises:
            RecipeError: the other recipe has a mistake.
        """
        if isinstance(self.model, Family):
            return self.model
        from mmcompress.recipe import last_family, load_recipe

        return last_family(load_recipe(self.model.recipe))


class FurtherTeacherSlot:
    """Reads ``{clip: {path: ...}, weight: 0.3}`` or ``{recipe: other.yaml, weight: 0.3}``, and dumps the same."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """Validate by :func:`parse_further_teacher`, serialize by :func:`dump_further_teacher`."""
        return core_schema.with_info_plain_validator_function(
            lambda value, info: parse_further_teacher(value, info.context),
            serialization=core_schema.plain_serializer_function_ser_schema(dump_further_teacher),
        )

    def __get_pydantic_json_schema__(self, schema: Any, handler: GetJsonSchemaHandler) -> dict[str, JSON]:
        """A weight beside any one family, or a recipe."""
        weight = {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}
        return {"type": "object", "properties": {WEIGHT: weight}, "required": [WEIGHT], "minProperties": 2}


AnyFurtherTeacher = Annotated[FurtherTeacher, FurtherTeacherSlot()]


def parse_further_teacher(value: Any, context: Any = None) -> FurtherTeacher:
    """``{<family>: {...}, weight: w}`` or ``{recipe: file, weight: w}``.

    Raises:
        ValidationError: with locations below the name.
        PydanticCustomError: another shape.
    """
    if isinstance(value, FurtherTeacher):
        return value
    if not isinstance(value, Mapping) or WEIGHT not in value or len(value) != 2:
        message = "expected a teacher with its weight, such as `{clip: {path: other}, weight: 0.3}`"
        raise PydanticCustomError("component", message)
    try:
        weight = TypeAdapter(Annotated[float, Field(gt=0, lt=1)]).validate_python(value[WEIGHT])
    except ValueError:
        raise PydanticCustomError("component", "weight: expected a share above 0 and below 1") from None
    rest = {name: fields for name, fields in value.items() if name != WEIGHT}
    if "recipe" in rest:
        from mmcompress.recipe import FromRecipe

        return FurtherTeacher(model=FromRecipe.model_validate(rest, context=context), weight=weight)
    return FurtherTeacher(model=component.parse("families", rest, context), weight=weight)


def dump_further_teacher(value: FurtherTeacher) -> JSON:
    """As a recipe writes it."""
    model = value.model
    return {
        **(component.dump(model) if isinstance(model, Component) else model.model_dump(mode="json")),
        WEIGHT: value.weight,
    }
