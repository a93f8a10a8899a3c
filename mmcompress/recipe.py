"""The model of a recipe: a validated, frozen object, and every mistake told at once with its line."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError, ValidationInfo
from pydantic_core import ErrorDetails

from mmcompress import _yaml
from mmcompress.component import JSON, KINDS, Component, RecipePath, Slot, dump, every, find, link, nearest, parse
from mmcompress.data import AnyDataset
from mmcompress.errors import RecipeError
from mmcompress.families import Family
from mmcompress.metrics import AnyMetric
from mmcompress.runtimes import AnyRuntime, Quantize
from mmcompress.stages import AnyStage


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class FromTrain(_Model):
    """A part of the training data, chosen by example id, that is held out."""

    from_train: float = Field(gt=0, lt=1)


class FromRecipe(_Model):
    """The last model of another recipe."""

    recipe: RecipePath


class FromAnswers(_Model):
    """What another system answered about the examples: a teacher without a model."""

    answers: RecipePath
    """A file as :mod:`mmcompress.stages._answers` reads it."""


def _parse_or(kind: str, **alternatives: type[_Model]) -> BeforeValidator:
    """A component of a kind, or ``{key: ...}`` for one of the alternatives, by its key."""

    def validate(value: Any, info: ValidationInfo) -> Any:
        for key, alternative in alternatives.items():
            if isinstance(value, alternative):
                return value
            if isinstance(value, Mapping) and key in value:
                return alternative.model_validate(value, context=info.context)
        return parse(kind, value, info.context)

    return BeforeValidator(validate)


def _dump_either(value: Any) -> JSON:
    return dump(value) if isinstance(value, Component) else value.model_dump(mode="json")


class Data(_Model):
    """The three splits, which share no example."""

    train: AnyDataset
    validation: Annotated[Any, _parse_or("data", from_train=FromTrain), PlainSerializer(_dump_either)] | None = None
    test: AnyDataset | None = None


class Measure(_Model):
    """What is measured, on the test split and on the engines."""

    metrics: tuple[AnyMetric, ...] = ()
    threads: int = Field(2, ge=1, le=1024)


class Recipe(_Model):
    """What to build, for which devices, what to measure and what to demand."""

    version: Literal[1]
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(0, ge=0, lt=2**31)
    teacher: (
        Annotated[Any, _parse_or("families", recipe=FromRecipe, answers=FromAnswers), PlainSerializer(_dump_either)]
        | None
    ) = None
    """A checkpoint, another recipe's last model, or a file of another system's answers, which nothing is compared with.
    Without one, the first stage makes the teacher."""
    data: Data
    stages: tuple[AnyStage, ...] = ()
    baselines: Mapping[str, tuple[AnyStage, ...]] = Field(default_factory=dict)
    """Models to compare with, by name: each a list of stages that starts where ``stages`` does."""
    quantize: Quantize = Quantize()
    targets: tuple[AnyRuntime, ...] = ()
    measure: Measure = Measure()
    demand: Mapping[str, float | str | Mapping[str, float | str]] = Field(default_factory=dict)


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, with ``-s`` assignments applied.

    Raises:
        RecipeError: every mistake, each with file, line, path in the recipe and the nearest valid name.
    """
    document = _yaml.read(Path(path))
    data = dict(document.data)
    for assignment in overrides:
        _yaml.override(data, assignment)
    overridden = [tuple(assignment.partition("=")[0].split(".")) for assignment in overrides]
    try:
        recipe = Recipe.model_validate(data, context={"base": Path(path).resolve().parent})
    except ValidationError as error:
        raise RecipeError([_problem(item, document, overridden) for item in error.errors(include_url=False)]) from None
    problems = [_at(document, location, message, overridden) for location, message in impossible(recipe)]
    if problems:
        raise RecipeError(problems)
    return recipe


def _problem(item: ErrorDetails, document: _yaml.Document, overridden: list[tuple[str, ...]]) -> str:
    location = tuple(part for part in item["loc"] if not _is_noise(part))
    message = item["msg"]
    if item["type"] == "extra_forbidden":
        name = str(location[-1])
        fields = fields_at(location[:-1])
        message = f"unknown key {name!r}{nearest(name, fields)}" + (f"; known: {', '.join(fields)}" if fields else "")
    elif item["type"] == "missing":
        message = f"the key {str(location[-1])!r} is missing"
    else:
        message = message.removeprefix("Value error, ")
        shown = repr(item["input"])
        if len(shown) <= 60 and item["type"] not in ("component", "value_error"):
            message += f"; got {shown}"
    return _at(document, location, message, overridden)


def _is_noise(part: str | int) -> bool:
    """Pydantic adds names of validators of unions to a location; no key of a recipe has such a form."""
    return isinstance(part, str) and ("[" in part or part in ("float", "str", "int", "none"))


def _at(
    document: _yaml.Document, location: Sequence[str | int], message: str, overridden: list[tuple[str, ...]]
) -> str:
    path = ".".join(map(str, location))
    line = document.line(location)
    if any(tuple(map(str, location))[: len(given)] == given for given in overridden):
        where = f"-s {path}"
    else:
        where = f"{document.source}:{line}" if line is not None else document.source
    return f"{where}: {path}: {message}" if path else f"{where}: {message}"


def fields_at(location: Sequence[str | int]) -> list[str]:
    """The keys that a recipe may have at a location; empty where any key is allowed."""
    model: type[BaseModel] | None = Recipe
    kind: str | None = None
    own_name = False
    for part in location:
        if isinstance(part, int):
            continue
        if own_name:
            own_name = False
            continue
        if kind is not None:
            model, kind = find(kind, str(part)), None
        elif model is not None:
            by_alias = {info.alias or name: info for name, info in model.model_fields.items()}
            if str(part) not in by_alias:
                return []
            info = by_alias[str(part)]
            own_name = get_origin(info.annotation) is Mapping
            model, kind = _inside(info.annotation, list(info.metadata))
    if model is None:
        return []
    return [info.alias or name for name, info in model.model_fields.items()]


def _inside(annotation: Any, metadata: list[Any]) -> tuple[type[BaseModel] | None, str | None]:
    """The model, or the kind of component, that a field's annotation holds somewhere inside."""
    for item in metadata:
        if isinstance(item, Slot):
            return None, item.kind
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return annotation, None
    for argument in get_args(annotation):
        model, kind = _inside(argument, list(getattr(argument, "__metadata__", ())))
        if model is not None or kind is not None:
            return model, kind
    return None, None


def first_family(recipe: Recipe) -> Family | None:
    """The family of the teacher; None where the first stage makes it, or it has no model."""
    if isinstance(recipe.teacher, FromRecipe):
        return last_family(load_recipe(recipe.teacher.recipe))
    return recipe.teacher if isinstance(recipe.teacher, Family) else None


def answering_teacher(recipe: Recipe) -> Family | None:
    """What stands for a teacher that is a file of answers."""
    from mmcompress.stages._answers import AnsweringTeacher

    source = recipe.teacher
    return AnsweringTeacher(path=source.answers) if isinstance(source, FromAnswers) else None


def last_family(recipe: Recipe) -> Family:
    """The family of the recipe's last model."""
    family = first_family(recipe)
    for stage in recipe.stages:
        family = stage.result_family(family)
    if family is None:
        raise RecipeError(["the recipe has neither a teacher nor a stage that makes one"])
    return family


def impossible(recipe: Recipe) -> list[tuple[tuple[str | int, ...], str]]:
    """What is well-formed and cannot work together: location and message."""
    from mmcompress._accuracy import promise_problems
    from mmcompress.gate import unknown_names

    problems: list[tuple[tuple[str | int, ...], str]] = []
    teacher = first_family(recipe)
    answering = answering_teacher(recipe)
    if teacher is None and not recipe.stages:
        return [((), "expected a `teacher`, or a first stage that makes one")]
    if recipe.measure.metrics and recipe.data.test is None and any(m.needs() for m in recipe.measure.metrics):
        problems.append((("measure", "metrics"), "quality is measured on test data; expected data.test"))
    chains: list[tuple[tuple[str | int, ...], tuple[Any, ...]]] = [(("stages",), recipe.stages)]
    chains += [(("baselines", name), stages) for name, stages in recipe.baselines.items()]
    last = teacher
    for where, stages in chains:
        family = teacher
        for index, stage in enumerate(stages):
            found = stage.problems(family, answering or (teacher if teacher is not None else family))
            name = stage.component_name()
            problems += [((*where, index, name, *location), message) for location, message in found]
            if found:
                break
            family = stage.result_family(family)
        if where == ("stages",):
            last = family
    if last is not None:
        offered = frozenset(request.name for request in last.requests)
        for index, metric in enumerate(recipe.measure.metrics):
            missing = metric.fitted(offered).needs() - offered
            if missing:
                message = f"needs {', '.join(sorted(missing))}, which {last.component_name()} does not answer"
                problems.append((("measure", "metrics", index), message))
    problems += promise_problems(recipe)
    targets = [target.component_name() for target in recipe.targets]
    known = sorted({name for metric in recipe.measure.metrics for name in metric.gives()})
    problems += [(("demand", name), message) for name, message in unknown_names(recipe.demand, known, targets)]
    return problems


def json_schema() -> JSON:
    """The JSON Schema of recipes, with the fields of every component."""
    schema = Recipe.model_json_schema(mode="validation")
    definitions = schema.setdefault("$defs", {})
    for kind in KINDS:
        choices: list[JSON] = []
        for component in every(kind):
            name = component.component_name()
            fields = component.model_json_schema(by_alias=True)
            definitions.update(fields.pop("$defs", {}))
            definitions[f"{kind}.{name}"] = fields
            reference = {"$ref": f"#/$defs/{kind}.{name}"}
            one = {"type": "object", "properties": {name: reference}, "required": [name], "additionalProperties": False}
            choices += [{"const": name}, one]
        definitions[kind] = {"anyOf": choices}
    return link(schema)


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML text: every field, paths absolute. Reading it again gives an equal recipe."""
    import yaml

    return yaml.safe_dump(json.loads(recipe.model_dump_json(by_alias=True)), sort_keys=False, allow_unicode=True)
