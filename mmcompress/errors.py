"""What can go wrong, and how the command line ends when it does.

::

    MmcompressError
    ├── UsageError          exit 2: a recipe, an option or an input is wrong; the user can mend it
    │   ├── RecipeError     every mistake found in a recipe, with line and path
    │   ├── InputError      a checkpoint, a data set or a package that cannot be used
    │   │   └── NotRunnableHere   a package that is sound, and made for another machine
    │   └── MissingExtra    a library that is not installed, with the extra that brings it
    └── StageError          exit 3: a stage could not finish (disk, memory, divergence, a failed check)

Everything else that is raised is a bug of ours (exit 70).
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType


class MmcompressError(Exception):
    """An error whose message is written for the user: what, where, what was expected, what to do."""

    exit_code = 3


class UsageError(MmcompressError):
    """The user gave something that cannot work, and can mend it."""

    exit_code = 2


class InputError(UsageError):
    """A checkpoint, a data set or a package cannot be used as it is."""


class NotRunnableHere(InputError):
    """A package is made for another machine: measuring goes on without it, and its rows say why."""


class RecipeError(UsageError):
    """Everything that is wrong with a recipe, found in one reading."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


class MissingExtra(UsageError):
    """A library is not installed; the message names the extra that brings it, or how else to get it."""

    def __init__(self, library: str, extra: str, how: str = "") -> None:
        super().__init__(f"{library} is not installed.\n  {how or f'Install it with: pip install {_quoted(extra)}'}")


def _quoted(extra: str) -> str:
    return f"'mmcompress[{extra}]'"


class StageError(MmcompressError):
    """A stage could not finish. What was finished before it is kept, and a failure is never cached."""


def require(library: str, extra: str) -> ModuleType:
    """Import ``library``, or say which extra of ours brings it.

    Raises:
        MissingExtra: when the library itself is absent. A library that is there and fails to load raises its own error.
    """
    try:
        return importlib.import_module(library)
    except ModuleNotFoundError as error:
        if error.name is not None and library.split(".")[0] != error.name.split(".")[0]:
            raise
        raise MissingExtra(library.split(".")[0], extra) from error
