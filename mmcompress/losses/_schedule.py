"""Numbers of losses that change in the course of a training: pure functions of the share of it that is done."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, TypeAdapter
from pydantic_core import core_schema

from mmcompress.component import JSON


class Ramp(BaseModel):
    """A number that goes from one value at the first step to another at the last."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False)

    start: float = Field(alias="from")
    """At the first step."""
    to: float
    """At the last step."""
    schedule: Literal["linear", "cosine"] = "linear"
    """``linear``; or ``cosine``, which is flat at both ends."""

    def at(self, done: float) -> float:
        """The value when a share of the training is done, 0 to 1."""
        share = (1 - math.cos(math.pi * done)) / 2 if self.schedule == "cosine" else done
        return self.start + (self.to - self.start) * share


@dataclass(frozen=True)
class ScheduledSlot:
    """Reads a number, or ``{from: 4, to: 1, schedule: cosine}``, and dumps the same."""

    zero: bool
    """Whether 0 is allowed; numbers below are not."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """Validate a number or a :class:`Ramp`."""
        number = TypeAdapter(Annotated[float, self._bound(), Field(allow_inf_nan=False)])

        def validate(value: Any) -> float | Ramp:
            if not isinstance(value, (Mapping, Ramp)):
                return number.validate_python(value)
            ramp = Ramp.model_validate(value)
            for end in (ramp.start, ramp.to):
                if end < 0 or (end == 0 and not self.zero):
                    raise ValueError(f"{end:g}: expected numbers {'of at least' if self.zero else 'above'} 0")
            return ramp

        def serialize(value: float | Ramp) -> JSON:
            return value.model_dump(mode="json", by_alias=True) if isinstance(value, Ramp) else value

        return core_schema.no_info_plain_validator_function(
            validate, serialization=core_schema.plain_serializer_function_ser_schema(serialize)
        )

    def __get_pydantic_json_schema__(self, schema: Any, handler: GetJsonSchemaHandler) -> dict[str, JSON]:
        """A number or an object."""
        bound = {"minimum": 0} if self.zero else {"exclusiveMinimum": 0}
        return {"anyOf": [{"type": "number", **bound}, Ramp.model_json_schema(by_alias=True)]}

    def _bound(self) -> Any:
        return Field(ge=0) if self.zero else Field(gt=0)


Scheduled = Annotated[float | Ramp, ScheduledSlot(zero=True)]
"""A number of at least 0, or one that changes from step to step."""
ScheduledAboveZero = Annotated[float | Ramp, ScheduledSlot(zero=False)]
"""A number above 0, or one that changes from step to step."""


def fixed(value: float | Ramp) -> float:
    """The number of a loss that is at a step.

    Raises:
        ValueError: it still follows a schedule: :meth:`mmcompress.losses.Loss.at` was not asked.
    """
    if isinstance(value, Ramp):
        raise ValueError(f"{value!r} has no value of its own; take the loss at a step by Loss.at")
    return value
