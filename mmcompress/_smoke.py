"""A recipe made small: the same way in seconds."""

from __future__ import annotations

from typing import Any

from mmcompress.metrics import Metric
from mmcompress.recipe import Recipe
from mmcompress.runtimes import Quantize

SMOKE_EXAMPLES = 64
_SMOKE_FIELDS = {"steps": 4, "epochs": None, "batch_size": 16, "accumulation": 1, "samples": 32}


def smoke_recipe(recipe: Recipe) -> Recipe:
    """The same way on a few examples: every stage, target and package, in seconds. Its numbers mean nothing."""

    def small(stage: Any) -> Any:
        fields = {name: value for name, value in _SMOKE_FIELDS.items() if name in type(stage).model_fields}
        recover = getattr(stage, "recover", None)
        if recover is not None:
            fields["recover"] = small(recover)
        return stage.model_copy(update=fields)

    def quick(metric: Metric) -> Metric:
        fields = type(metric).model_fields
        update = {name: value for name, value in {"processes": 1, "seconds": 1.0}.items() if name in fields}
        return metric.model_copy(update=update)

    def plain(settings: Quantize) -> Quantize:
        """Without choices, which need more examples than there are."""
        precision = "int8" if settings.precision == "auto" else settings.precision
        return Quantize(precision=precision, calibration_samples=32)

    quantize = plain(recipe.quantize)
    targets = tuple(
        t if t.quantize is None else t.model_copy(update={"quantize": plain(t.quantize)}) for t in recipe.targets
    )
    return recipe.model_copy(
        update={
            "stages": tuple(small(stage) for stage in recipe.stages),
            "baselines": {name: tuple(map(small, stages)) for name, stages in recipe.baselines.items()},
            "quantize": quantize,
            "targets": targets,
            "measure": recipe.measure.model_copy(update={"metrics": tuple(map(quick, recipe.measure.metrics))}),
            "demand": {},
        }
    )
