"""A component is anything that a recipe can name; its file's name is its name.

``losses/contrastive_kl.py`` holds one class derived from :class:`mmcompress.losses.Loss`, and a recipe writes
``contrastive_kl: {temperature: 2.0}``. This module is the only indirection: it turns a kind and a name into a class.
Components of others come from installed packages (entry points ``mmcompress.losses``, ...) or from a folder that is
laid out as this package is (``mine/losses/my_loss.py``); a name that is taken is an error.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, ClassVar, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
    ValidationInfo,
)
from pydantic_core import InitErrorDetails, PydanticCustomError, core_schema

from mmcompress._yaml import FromCommandLine
from mmcompress.errors import UsageError

KINDS = ("families", "data", "stages", "losses", "runtimes", "metrics")
JSON = Any
_PYDANTIC_ERRORS = frozenset(get_args(core_schema.ErrorType))


@dataclass
class Search:
    """Folders of components named on the command line (``--components DIR``), searched after our own."""

    folders: list[Path] = field(default_factory=list)


SEARCH = Search()


class Component(BaseModel):
    """One frozen configuration with one job. Its fields are its parameters, and they are its identity."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    kind: ClassVar[str]
    revision_of_code: ClassVar[int] = 1
    """Raised when the same fields give another result, so that artifacts of the older code are built again."""

    @classmethod
    def component_name(cls) -> str:
        """The name that a recipe uses: that of the file."""
        return cls.__module__.rpartition(".")[2]

    def identity(self) -> JSON:
        """What an artifact's key takes from this component: its fields with files and folders by digest.

        A component of others takes the digest of its file too: it raises no revision that we know of. A component that reads more than its path fields name (pictures beside a table) overrides this.
        """
        found: dict[str, JSON] = {
            "component": f"{self.kind}/{self.component_name()}",
            "revision": self.revision_of_code,
            "fields": {name: _identity(getattr(self, name)) for name in type(self).model_fields},
        }
        if not type(self).__module__.startswith("mmcompress."):
            found["source"] = digest_path(Path(inspect.getfile(type(self))))
        return found


def _identity(value: Any) -> JSON:
    if isinstance(value, Component):
        return value.identity()
    if isinstance(value, BaseModel):
        fields = {name: getattr(value, name) for name in type(value).model_fields}
        return {name: _identity(item) for name, item in {**fields, **(value.model_extra or {})}.items()}
    if isinstance(value, Path):
        return {"digest": digest_path(value)}
    if isinstance(value, Mapping):
        return {str(key): _identity(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_identity(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((_identity(item) for item in value), key=digest_json)
    return value


def digest_json(value: JSON) -> str:
    """The SHA-256 of a value's canonical JSON, in hexadecimal."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def digest_path(path: Path) -> str:
    """The SHA-256 of a file's content, or of a folder's relative names and contents; ``absent`` where nothing is."""
    if path.is_file():
        digest = hashlib.sha256()
        with path.open("rb") as file:  # not hashlib.file_digest: a device's Python may be 3.10
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
        return digest_json({p.relative_to(path).as_posix(): digest_path(p) for p in files})
    return "absent"


def library_versions(*libraries: str) -> dict[str, str]:
    """Installed versions by distribution name, ``absent`` where one is not installed; imports none of them."""
    found = {}
    for library in libraries:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            found[library] = "absent"
    return found


# --- finding -------------------------------------------------------------------------------------------------------


def names(kind: str) -> list[str]:
    """All component names of a kind: ours, installed ones and those of the folders in :data:`SEARCH`."""
    return sorted(_sources(kind))


def find(kind: str, name: str) -> type[Component]:
    """The class behind a name.

    Raises:
        UsageError: no such component (with the nearest name), a name taken twice, or a file that holds none.
    """
    sources = _sources(kind)
    if name not in sources:
        known = ", ".join(sorted(sources)) or "none"
        raise UsageError(f"unknown {kind} component {name!r}{nearest(name, sources)}\n  known: {known}")
    return _component_class(kind, name, sources[name])


def every(kind: str) -> Iterator[type[Component]]:
    """All component classes of a kind, by name."""
    for name in names(kind):
        yield find(kind, name)


def nearest(name: str, known: Mapping[str, Any] | list[str] | tuple[str, ...]) -> str:
    """`` (did you mean 'x'?)``, or nothing where no known name is near."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""


def _sources(kind: str) -> dict[str, str | Path]:
    """Name to module name (ours and installed) or file (component folders)."""
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is not one of {KINDS}")
    found: dict[str, str | Path] = {}

    def add(name: str, source: str | Path) -> None:
        if name in found:
            raise UsageError(f"the {kind} component {name!r} is defined twice: {found[name]} and {source}")
        found[name] = source

    for file in sorted((Path(__file__).parent / kind).glob("[!_]*.py")):
        add(file.stem, f"mmcompress.{kind}.{file.stem}")
    for entry in entry_points(group=f"mmcompress.{kind}"):
        module = entry.value.partition(":")[0]
        if module.rpartition(".")[2] != entry.name:
            raise UsageError(
                f"the entry point {entry.name!r} of mmcompress.{kind} names {module}; expected its file's name"
            )
        add(entry.name, module)
    for folder in SEARCH.folders:
        for file in sorted((folder / kind).glob("[!_]*.py")):
            add(file.stem, file)
    return found


def _component_class(kind: str, name: str, source: str | Path) -> type[Component]:
    module = _load_file(kind, name, source) if isinstance(source, Path) else importlib.import_module(source)
    classes = [
        item
        for item in vars(module).values()
        if inspect.isclass(item)
        and issubclass(item, Component)
        and item.__module__ == module.__name__
        and getattr(item, "kind", None) == kind
        and not item.__name__.startswith("_")
    ]
    if len(classes) != 1:
        raise UsageError(f"{source}: expected one {kind} component class, found {len(classes)}")
    return classes[0]


def _load_file(kind: str, name: str, file: Path) -> ModuleType:
    module_name = f"mmcompress_components.{kind}.{name}"
    loaded = sys.modules.get(module_name)
    if loaded is not None and loaded.__file__ == str(file):
        return loaded
    spec = importlib.util.spec_from_file_location(module_name, file)
    if spec is None or spec.loader is None:
        raise UsageError(f"{file}: cannot be imported as a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except (SyntaxError, ImportError, NameError, TypeError) as error:
        del sys.modules[module_name]
        raise UsageError(f"{file}: cannot be imported: {type(error).__name__}: {error}") from error
    return module


# --- in a recipe ---------------------------------------------------------------------------------------------------


def parse(kind: str, value: Any, context: Any = None) -> Component:
    """``name`` or ``{name: {fields}}`` to a component.

    Raises:
        ValidationError: with locations below the component's name, so that all mistakes of a recipe are told at once.
        PydanticCustomError: the shape is not ``{name: fields}``, or nothing has that name.
    """
    if isinstance(value, Component):
        if value.kind != kind:
            raise PydanticCustomError("component", "expected one of {kind}", {"kind": kind})
        return value
    if isinstance(value, str):
        value = {value: {}}
    if not isinstance(value, Mapping) or len(value) != 1:
        raise PydanticCustomError("component", "expected one name with its fields, such as `name: {field: value}`")
    ((name, fields),) = value.items()
    if not isinstance(name, str) or name not in _sources(kind):
        raise PydanticCustomError(
            "component",
            "unknown name '{name}'{near}; known: {known}",
            {"name": str(name), "near": nearest(str(name), names(kind)), "known": ", ".join(names(kind))},
        )
    if not isinstance(fields, Mapping) and fields is not None:
        raise PydanticCustomError("component", "expected the fields of '{name}' as a mapping", {"name": name})
    component = find(kind, name)
    try:
        return component.model_validate(dict(fields or {}), context=context)
    except ValidationError as error:
        raise below(error, name) from None


def below(error: ValidationError, *prefix: str | int) -> ValidationError:
    """The same errors, each at a location below ``prefix``."""
    details: list[InitErrorDetails] = []
    for item in error.errors(include_url=False):
        context = item.get("ctx", {})
        kind: Any = item["type"]
        if kind not in _PYDANTIC_ERRORS:
            kind = PydanticCustomError(kind, "{message}", {**context, "message": item["msg"]})
        details.append(InitErrorDetails(type=kind, loc=(*prefix, *item["loc"]), input=item["input"], ctx=context))
    return ValidationError.from_exception_data(error.title, details)


def dump(component: Component) -> dict[str, JSON]:
    """``{name: fields}``, as a recipe writes it."""
    return {component.component_name(): component.model_dump(mode="json", by_alias=True)}


@dataclass(frozen=True)
class Slot:
    """Marks a field that holds a component of a kind: ``losses: tuple[Annotated[Loss, Slot("losses")], ...]``.

    It reads ``name`` or ``{name: {fields}}`` and dumps the same, with the fields of the class that is there (a field
    typed with a base class would lose them).
    """

    kind: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """Validate by :func:`parse`, serialize by :func:`dump`."""
        return core_schema.with_info_plain_validator_function(
            lambda value, info: parse(self.kind, value, info.context),
            serialization=core_schema.plain_serializer_function_ser_schema(dump),
        )

    def __get_pydantic_json_schema__(self, schema: Any, handler: GetJsonSchemaHandler) -> dict[str, JSON]:
        """A mark that :func:`link` turns into a reference: pydantic refuses references to what it did not define."""
        return {"$comment": f"#/$defs/{self.kind}"}


def link(schema: JSON) -> JSON:
    """A schema with the marks ``$comment: "#/$defs/..."`` as references, which :func:`mmcompress.recipe.json_schema` fills."""
    if isinstance(schema, dict):
        mark = schema.get("$comment")
        if isinstance(mark, str) and mark.startswith("#/$defs/"):
            return {**{key: link(item) for key, item in schema.items() if key != "$comment"}, "$ref": mark}
        return {key: link(item) for key, item in schema.items()}
    return [link(item) for item in schema] if isinstance(schema, list) else schema


def _resolve(value: Any, info: ValidationInfo) -> Any:
    if not isinstance(value, (str, Path)):
        return value
    base = info.context.get("base") if isinstance(info.context, Mapping) else None
    path = Path(value).expanduser()
    if isinstance(value, FromCommandLine):
        base = Path.cwd()
    return path if path.is_absolute() or base is None else Path(os.path.normpath(Path(base) / path))


RecipePath = Annotated[Path, BeforeValidator(_resolve)]
"""A path that a recipe names: relative to the recipe's file, and in keys by the digest of what lies there."""
