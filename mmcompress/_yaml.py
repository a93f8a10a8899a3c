"""YAML as data with positions: where each value of a recipe stands, so that an error can name its line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mmcompress.errors import RecipeError

Location = tuple[str | int, ...]
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)")
_MAX_NODES = 100_000
_BOOLEAN = "tag:yaml.org,2002:bool"


class _Loader(yaml.SafeLoader):
    """Reads ``true`` and ``false`` alone as booleans, as YAML 1.2 does: ``on`` names the runtime of a goal, ``no`` may be a class."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOLEAN]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOLEAN, re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))


class FromCommandLine(str):
    """A text given with ``-s``: a relative path in it is relative to the working directory, not to the recipe."""

    __slots__ = ()


@dataclass(frozen=True)
class Document:
    """A recipe as read: plain data, and the line of each of its values."""

    source: str
    data: dict[str, Any]
    lines: dict[Location, int]

    def line(self, location: Sequence[str | int]) -> int | None:
        """The line of a value, or of the nearest value above it."""
        location = tuple(location)
        while location and location not in self.lines:
            location = location[:-1]
        return self.lines.get(location)


def read(path: Path) -> Document:
    """Read a YAML file whose top level is a mapping.

    Raises:
        RecipeError: no such file, not UTF-8, not YAML, no mapping, a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError([f"{path}: no such recipe"]) from None
    except IsADirectoryError:
        raise RecipeError([f"{path}: is a folder; expected a recipe (a YAML file)"]) from None
    except UnicodeDecodeError:
        raise RecipeError([f"{path}: not UTF-8 text; expected a recipe (a YAML file)"]) from None
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            what = "is empty" if node is None else f"holds a {getattr(node, 'id', 'value')}, not a mapping"
            raise RecipeError([f"{path}:1: {what}; expected keys such as `version: 1` and `teacher: ...`"])
        lines: dict[Location, int] = {}
        problems: list[str] = []
        _walk(node, (), lines, problems, str(path))
        if problems:
            raise RecipeError(problems)
        data = _plain(loader.construct_document(node))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark is not None else str(path)
        raise RecipeError([f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}"]) from None
    finally:
        loader.dispose()
    return Document(str(path), data, lines)


def _walk(node: yaml.Node, location: Location, lines: dict[Location, int], problems: list[str], source: str) -> None:
    lines[location] = node.start_mark.line + 1
    if len(lines) > _MAX_NODES:
        raise RecipeError([f"{source}: more than {_MAX_NODES} values; a recipe is small"])
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            name = str(key.value)
            if name in seen:
                problems.append(f"{source}:{key.start_mark.line + 1}: the key {name!r} stands twice in one mapping")
            seen.add(name)
            _walk(value, (*location, name), lines, problems, source)
            lines[(*location, name)] = key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _walk(item, (*location, index), lines, problems, source)


def _plain(value: Any) -> Any:
    """Keys as text, and numbers such as ``1e-3``, which YAML 1.1 reads as text, as numbers."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        return float(value)
    return value


def loads(text: str) -> Any:
    """YAML as plain data, read as recipes are.

    Raises:
        yaml.YAMLError: it is none.
    """
    loader = _Loader(text)
    try:
        return _plain(loader.get_single_data())
    finally:
        loader.dispose()


def override(data: dict[str, Any], assignment: str) -> None:
    """Apply ``stages.0.distill.epochs=2`` to the data of a recipe, in place.

    Raises:
        RecipeError: no ``=``, or the path leads through something that is neither mapping nor list.
    """
    path, equals, text = assignment.partition("=")
    if not equals or not path:
        raise RecipeError([f"-s {assignment}: expected PATH=VALUE, such as stages.0.distill.epochs=2"])
    try:
        value = _from_command_line(loads(text))
    except yaml.YAMLError as error:
        raise RecipeError([f"-s {assignment}: the value is not valid YAML: {error}"]) from None
    parts = path.split(".")
    here: Any = data
    while len(parts) > 1 and not (isinstance(here, dict) and path_of(parts) in here):
        here, parts = _child(here, parts, assignment)
    last = path_of(parts)
    if isinstance(here, list):
        here[_index(here, last, assignment)] = value
    elif isinstance(here, dict):
        here[last] = value
    else:
        raise RecipeError([f"-s {assignment}: {last!r} stands below {here!r}, which is neither mapping nor list"])


def path_of(parts: Sequence[str]) -> str:
    """Parts of a path as one key: names of metrics hold dots (``demand.retention.recall_at_1``)."""
    return ".".join(parts)


def _child(here: Any, parts: list[str], assignment: str) -> tuple[Any, list[str]]:
    """The value below the longest key that is there, and what is left of the path."""
    if isinstance(here, list):
        return here[_index(here, parts[0], assignment)], parts[1:]
    if not isinstance(here, dict):
        raise RecipeError([f"-s {assignment}: {parts[0]!r} stands below a value that is neither mapping nor list"])
    for length in range(len(parts) - 1, 0, -1):
        key = path_of(parts[:length])
        if key in here:
            if isinstance(here[key], str):  # `- distill` is short for `- distill: {}`
                here[key] = {here[key]: {}}
            return here[key], parts[length:]
    return here.setdefault(parts[0], {}), parts[1:]


def _index(here: list[Any], part: str, assignment: str) -> int:
    if not part.isdecimal() or int(part) >= len(here):
        raise RecipeError([f"-s {assignment}: expected an index from 0 to {len(here) - 1}, got {part!r}"])
    return int(part)


def _from_command_line(value: Any) -> Any:
    if isinstance(value, str):
        return FromCommandLine(value)
    if isinstance(value, dict):
        return {key: _from_command_line(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_from_command_line(item) for item in value]
    return value
