"""The rules of the house that ruff and mypy cannot enforce. See CONTRIBUTING.md."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmcompress import component

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mmcompress"
FILES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
MAX_FILE, MAX_FUNCTION = 400, 60
HEAVY = frozenset(
    {
        *(
            "torch",
            "transformers",
            "accelerate",
            "torch_pruning",
            "onnx",
            "onnxscript",
            "onnxruntime",
            "openvino",
            "nncf",
        ),
        *("tensorrt", "tensorrt_rtx", "safetensors", "PIL", "tokenizers", "datasets", "optimum", "huggingface_hub"),
    }
)
FORBIDDEN_NAMES = frozenset({"pickle", "cPickle", "dill", "joblib", "shelve", "marshal"})
FORBIDDEN_CALLS = frozenset(
    {"torch.save", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system", "eval", "exec"}
)
FORBIDDEN_ARGUMENTS = {("weights_only", False), ("allow_pickle", True), ("trust_remote_code", True), ("shell", True)}


def name_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def each(files: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("file", files, ids=name_of)


def imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        yield node.module


def at_import(nodes: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run when a module is imported: not those of functions, nor of `if TYPE_CHECKING`."""
    for node in nodes:
        yield node
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        checking = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for part in ("body", "orelse", "finalbody"):
            if not (checking and part == "body"):
                yield from at_import(getattr(node, part, []))
        for handler in getattr(node, "handlers", []):
            yield from at_import(handler.body)


def test_the_files_were_found() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "mmcompress/*.py"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    expected = {line for line in tracked.stdout.splitlines() if (ROOT / line).exists()}
    assert expected <= {name_of(file) for file in FILES}
    assert len(FILES) >= 30
    assert len(TESTS) >= 12
    assert all(any(file.parent == PACKAGE / kind for file in FILES) for kind in component.KINDS)


@each(FILES + TESTS)
def test_files_are_short(file: Path) -> None:
    lines = len(file.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_FILE, f"{lines} lines"


@each(FILES)
def test_functions_are_short(file: Path) -> None:
    long = [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(tree(file))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > MAX_FUNCTION
    ]
    assert not long


@each(FILES)
def test_one_level_of_folders(file: Path) -> None:
    assert len(file.relative_to(PACKAGE).parts) <= 2


@each(FILES)
def test_no_blanket_except(file: Path) -> None:
    """A library that raises plain Exception may be caught so, where an error of ours is raised at once."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.ExceptHandler):
            caught = {"everything"} if node.type is None else {ast.unparse(part) for part in ast.walk(node.type)}
            if caught & {"everything", "Exception", "BaseException"} and not isinstance(node.body[-1], ast.Raise):
                # The command line's outermost handler turns a bug of ours into exit 70.
                assert name_of(file) == "mmcompress/cli/__init__.py", f"line {node.lineno}"


@each(FILES)
def test_heavy_libraries_are_imported_where_they_are_needed(file: Path) -> None:
    if file.name.endswith("_modules.py"):
        return
    for node in at_import(tree(file).body):
        for module in imported(node):
            assert module.split(".")[0] not in HEAVY, f"line {node.lineno}: {module}"
            assert not module.endswith("_modules"), f"line {node.lineno}: {module} imports torch"


@each(FILES)
def test_no_pickle_and_no_foreign_code(file: Path) -> None:
    for node in ast.walk(tree(file)):
        for module in imported(node):
            assert module.split(".")[0] not in FORBIDDEN_NAMES, f"line {node.lineno}: {module}"
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in FORBIDDEN_CALLS, f"line {node.lineno}: {ast.unparse(node.func)}"
            for argument in node.keywords:
                given = (argument.arg, getattr(argument.value, "value", None))
                assert given not in FORBIDDEN_ARGUMENTS, f"line {node.lineno}: {argument.arg}={given[1]}"


@pytest.mark.parametrize("kind", component.KINDS)
def test_a_component_file_holds_one_component(kind: str) -> None:
    files = [file for file in FILES if file.parent == PACKAGE / kind and not file.name.startswith("_")]
    assert component.names(kind) == [file.stem for file in files]
    found = list(component.every(kind))  # find() refuses a file with none or two
    assert [cls.component_name() for cls in found] == component.names(kind)
    for cls in found:
        assert cls.__doc__, cls
        expected = cls.__name__.lower()
        assert expected == cls.component_name().replace("_", ""), (
            f"the class of {cls.component_name()} is {cls.__name__}"
        )


IMPORT_ALL = """
import importlib, json, os, sys, warnings
warnings.simplefilter("error")
path, environment, folder = list(sys.path), dict(os.environ), os.listdir(".")
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
    heavy = sorted({module.partition(".")[0] for module in sys.modules} & set(json.loads(sys.argv[2])))
    assert not heavy, f"{name} imports {heavy}"
assert sys.path == path, "sys.path was changed"
assert dict(os.environ) == environment, "the environment was changed"
assert os.listdir(".") == folder, "a file was written"
"""


def test_importing_does_nothing(tmp_path: Path) -> None:
    modules = [
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for file in FILES
        if not file.name.endswith("_modules.py") and file.name != "__main__.py"
    ]
    assert len(modules) >= 30
    arguments = [sys.executable, "-c", IMPORT_ALL, json.dumps(modules), json.dumps(sorted(HEAVY))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_requirement_has_a_tested_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = [
        *project["dependencies"],
        *(item for extra in project["optional-dependencies"].values() for item in extra),
    ]

    def normal(text: str) -> str:
        name = text
        for separator in "[<>=!~; ":
            name = name.partition(separator)[0]
        return name.strip().lower().replace("_", "-")

    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {normal(line) for line in lines if "==" in line}
    missing = {normal(item) for item in requirements} - pinned - {"mmcompress"}
    assert not missing
    assert not [item for item in requirements if "<" in item or "==" in item], "upper bounds block users"
