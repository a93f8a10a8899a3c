"""What a run of a recipe would do: every step in its order, which are found in the store, and which are to be built."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mmcompress.pipeline import Planner
from mmcompress.store import Step


@dataclass(frozen=True)
class Planned:
    """A step of a recipe."""

    name: str
    kind: str
    key: str
    """What its artifact is found by."""
    found: bool
    folder: str
    """Where the artifact lies, or will lie."""
    seconds: float | None
    """What building it took, where it is found."""


def plan(planner: Planner) -> list[Planned]:
    """The steps of a recipe, each once, in the order in which they are built. Builds nothing.

    Raises:
        InputError: what the recipe names (data, a checkpoint) cannot be read.
    """
    planned: list[Planned] = []
    for step in _steps(planner):
        artifact = planner.store.find(step)
        seconds = None if artifact is None else float(artifact.manifest["seconds"])
        folder = str(planner.store.folder(step))
        planned.append(Planned(step.name, step.kind, step.key, artifact is not None, folder, seconds))
    return planned


def _steps(planner: Planner) -> Iterator[Step]:
    made = planner.plan()
    seen: set[str] = set()
    for step in (*(m.step for m in made.models), *made.deployment, *(p.step for p in made.packages)):
        if step.key not in seen:
            seen.add(step.key)
            yield step


def plan_lines(planned: Sequence[Planned]) -> list[str]:
    """One line per step, and one that sums up."""
    width = max((len(step.name) for step in planned), default=0)
    lines = [
        f"{step.name:<{width}}  {step.key[:12]}  "
        + (f"found, built in {step.seconds:,.0f} s" if step.found else "to build")
        for step in planned
    ]
    missing = sum(not step.found for step in planned)
    return [*lines, f"{missing} of {len(planned)} steps to build" if missing else "nothing to build"]
