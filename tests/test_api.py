"""What ``import mmcompress`` offers."""

from __future__ import annotations

import inspect

import pytest

import mmcompress

pytestmark = pytest.mark.unit


def test_the_public_names_are_these() -> None:
    assert mmcompress.__all__ == ["__version__", "load_package", "run"]
    for name in mmcompress.__all__:
        assert getattr(mmcompress, name) is not None


def test_the_public_functions_have_these_parameters() -> None:
    assert list(inspect.signature(mmcompress.run).parameters) == ["recipe", "overrides", "store", "runs"]
    assert list(inspect.signature(mmcompress.load_package).parameters) == ["path", "threads", "workers"]
