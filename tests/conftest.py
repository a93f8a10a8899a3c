"""What all tests share: nothing of theirs touches the user's store, a network or the search path of components."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmcompress import component


@pytest.fixture(autouse=True)
def _apart(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MMCOMPRESS_STORE", str(tmp_path_factory.getbasetemp() / "default-store"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folders = list(component.SEARCH.folders)
    component.SEARCH.folders.clear()
    yield
    component.SEARCH.folders[:] = folders
    for name in [name for name in sys.modules if name.startswith("mmcompress_components")]:
        del sys.modules[name]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of one file, and contract tests of one case, share what is costly to make: one process runs them."""
    for item in items:
        case = getattr(getattr(item, "callspec", None), "params", {}).get("case")
        # No bracket: xdist takes an id for a group's only where no bracket follows the group's name.
        name = f"case {case.name}" if hasattr(case, "name") else item.nodeid.partition("::")[0]
        item.add_marker(pytest.mark.xdist_group(name))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Refuse to make everything in each process: pytest-xdist 3.8 writes groups where pytest 9.2 no longer reads them."""
    if session.config.getoption("loadgroup", False) and any(
        item.nodeid.rfind("@") <= item.nodeid.rfind("]") for item in session.items
    ):
        raise pytest.UsageError("tests are not grouped by what they share; install pytest as in constraints.txt")


@pytest.fixture
def root() -> Path:
    """The checkout."""
    return Path(__file__).parents[1]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch on one thread: small models are slower on two, and their last digits follow the number."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
