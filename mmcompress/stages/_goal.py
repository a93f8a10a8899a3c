"""What a cut shall reach, in the user's terms."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mmcompress.runtimes import AnyRuntime
from mmcompress.stages._prices import Unit

Ratio = Annotated[float, Field(gt=0, lt=1)]
BYTES_PER_PARAMETER = 4
_UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(B|kB|MB|GB|KiB|MiB|GiB)\s*")
_KINDS = ("macs", "parameters", "size", "speedup", "latency_ms")


class Goal(BaseModel):
    """What is left of each tower, in one of five terms.

    Times are of the family's graphs at their sample inputs, on this machine.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    macs: Ratio | None = None
    """The share of its multiply-accumulates."""
    parameters: Ratio | None = None
    """The share of its parameters."""
    size: Ratio | str | None = None
    """The share of the FP32 weights' bytes, or bytes with their unit for the whole model: ``40 MB``."""
    speedup: Annotated[float, Field(gt=1)] | None = None
    """How many times as fast each tower's graph runs."""
    latency_ms: Annotated[float, Field(gt=0)] | None = None
    """What the graphs of the main request take together at most; towers that it does not run stay as they are."""
    on: AnyRuntime | None = None
    """The runtime that times are of."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """Its threads; all cores where none are named."""
    batch: Annotated[int, Field(ge=1)] = 1
    """Examples at a time."""

    @model_validator(mode="after")
    def _one(self) -> Goal:
        given = [name for name in _KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"expected one of {', '.join(_KINDS)}, such as `goal: {{macs: 0.5}}`; got {given or 'none'}"
            )
        if self.timed != (self.on is not None):
            raise ValueError(
                "a goal of time needs the runtime that it is of, such as `on: onnxruntime`"
                if self.timed
                else f"`on` belongs to goals of time, {given[0]} is none"
            )
        if not self.timed and (self.threads is not None or self.batch != 1):
            raise ValueError(f"`threads` and `batch` belong to goals of time, {given[0]} is none")
        if isinstance(self.size, str) and not _SIZE.fullmatch(self.size):
            raise ValueError(f"size: {self.size!r} is no share and no number of bytes, such as 0.5 or `40 MB`")
        return self

    @property
    def timed(self) -> bool:
        """Whether it is a goal of time."""
        return self.speedup is not None or self.latency_ms is not None

    @property
    def unit(self) -> Unit:
        """What is counted."""
        if self.timed:
            return "milliseconds"
        return "macs" if self.macs is not None else "parameters"

    def size_bytes(self) -> float | None:
        """The whole model's bytes, where they are named."""
        found = _SIZE.fullmatch(self.size) if isinstance(self.size, str) else None
        return float(found[1]) * _UNITS[found[2]] if found else None

    def ratio(self, parameters: int, milliseconds: float | None = None) -> float:
        """The share that is kept, of a model with so many parameters whose main request takes so long.

        Raises:
            ValueError: the goal is no less than what the model has.
        """
        ratio: Any = self.macs if self.macs is not None else self.parameters
        if self.speedup is not None:
            ratio = 1 / self.speedup
        elif self.latency_ms is not None:
            assert milliseconds is not None
            ratio = self.latency_ms / milliseconds
        elif self.size is not None:
            wanted = self.size_bytes()
            ratio = self.size if wanted is None else wanted / (parameters * BYTES_PER_PARAMETER)
        if ratio >= 1:
            has = f"{milliseconds:.3g} ms" if self.timed else f"{parameters * BYTES_PER_PARAMETER} bytes"
            raise ValueError(f"the model has {has} already, which meets the goal: there is nothing to cut")
        return float(ratio)
