"""Put the teacher that recipes/scenes_teacher.yaml makes beside the recipes: its weights rounded to FP16, half the size.

python benchmarks/ship_teacher.py
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from mmcompress.pipeline import Planner
from mmcompress.recipe import load_recipe
from mmcompress.store import Store, default_store

RECIPES = Path(__file__).parents[1] / "recipes"


def main() -> None:
    planner = Planner(load_recipe(RECIPES / "scenes_teacher.yaml"), Store(default_store()))
    made = planner.get(planner.plan().models[0].step).folder
    weights = {name: value.to(torch.float16) for name, value in load_file(made / "model.safetensors").items()}
    target = RECIPES / "scenes_teacher" / "model.safetensors"
    save_file(weights, target, metadata={"format": "pt"})
    print(f"{target}: {target.stat().st_size:,} bytes, from {made}")


if __name__ == "__main__":
    main()
