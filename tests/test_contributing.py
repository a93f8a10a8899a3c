"""The example of CONTRIBUTING.md, as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from mmcompress import component

pytestmark = pytest.mark.unit


def test_the_loss_shown_is_a_component(root: Path, tmp_path: Path) -> None:
    shown = re.search(r"```python\n(.*?)```", (root / "CONTRIBUTING.md").read_text(), re.DOTALL)
    assert shown is not None
    (tmp_path / "losses").mkdir()
    (tmp_path / "losses" / "manhattan.py").write_text(shown[1])
    component.SEARCH.folders.append(tmp_path)
    loss = component.parse("losses", {"manhattan": {"weight": 2.0}})
    student, teacher = torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    found = loss.compute({"vision.embeds": student}, {"vision.embeds": teacher}, None)  # type: ignore[attr-defined]
    assert found.item() == pytest.approx((0.0 + 0.4 + 0.8) / 2)
