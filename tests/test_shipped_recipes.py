"""Every recipe that comes along is read without a mistake, and says how it is run."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmcompress.recipe import load_recipe

pytestmark = pytest.mark.unit
RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_read_and_tells_its_command(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.targets or recipe.teacher is None
    assert f"mmcompress run recipes/{path.name}" in path.read_text().splitlines()[0]


def test_they_were_found() -> None:
    assert {"quickstart", "clip_vit_b32", "captioner_vit_gpt2", "blip_captioning"} <= {path.stem for path in RECIPES}
