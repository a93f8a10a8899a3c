"""mmcompress: one recipe turns a trained multimodal teacher into a package for a device, and measures that package.

Example::

    outcome = mmcompress.run("recipe.yaml", overrides={"stages.0.distill.epochs": 2})
    with mmcompress.load_package(outcome.folder / "packages/onnxruntime", threads=2) as package:
        package.classify("picture.png", ["a red star", "a blue ring"])
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmcompress.package import Package
    from mmcompress.runs import Outcome

__version__ = "0.1.0"
__all__ = ["__version__", "load_package", "run"]


def run(
    recipe: Path | str,
    *,
    overrides: Mapping[str, Any] | None = None,
    store: Path | None = None,
    runs: Path | str = "runs",
) -> Outcome:
    """Build a recipe, measure what it made, write the report and judge the recipe's demands.

    Raises:
        mmcompress.errors.UsageError: the recipe, or what it names, is wrong.
        mmcompress.errors.StageError: a stage failed; what was finished is kept.
    """
    import json

    from mmcompress.runs import run as run_recipe

    assignments = [f"{path}={json.dumps(value)}" for path, value in (overrides or {}).items()]
    return run_recipe(recipe, overrides=assignments, store=store, runs=runs)


def load_package(path: Path | str, *, threads: int | None = None, workers: int = 0) -> Package:
    """Open a package; a context manager. Needs neither torch nor transformers.

    ``workers`` above 0 answer concurrent callers together: see :func:`mmcompress.package.load_package`.

    Raises:
        mmcompress.errors.InputError: it is no package, was changed after it was written, or is for another machine.
    """
    from mmcompress.package import load_package as load

    return load(Path(path), threads=threads, workers=workers)
