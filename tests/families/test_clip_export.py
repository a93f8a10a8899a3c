from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tiny_clip
import torch

from mmcompress._export import export_graph
from mmcompress.families.clip import Clip

torch.set_num_threads(1)

CONFIGS = {
    "clip": tiny_clip.clip_config(),
    "legacy_end": tiny_clip.clip_config(eos_token_id=2),
    "siglip": tiny_clip.siglip_config(),
}


@pytest.mark.parametrize("name", list(CONFIGS))
def test_exported_graphs_equal_torch(name: str, tmp_path: Path) -> None:
    family = Clip(path=tiny_clip.write_checkpoint(tmp_path / "model", CONFIGS[name]))
    model = family.load(tmp_path / "model", attention="eager")
    for graph in family.graphs(model):
        path = tmp_path / f"{graph.name}.onnx"
        export_graph(graph, path)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        assert {value.name for value in session.get_inputs()} == graph.inputs.keys()
        for feeds in several(graph.inputs):
            with torch.inference_mode():
                expected = graph.module(**feeds)[graph.outputs[0]].numpy()
            (given,) = session.run(None, {key: tensor.numpy() for key, tensor in feeds.items()})
            assert given.shape == expected.shape
            np.testing.assert_allclose(given, expected, atol=1e-5)


def several(inputs: Any) -> list[dict[str, torch.Tensor]]:
    """Batches of 1, 3 and 8; texts of CLIP also shorter and longer than the sample, ended early and padded."""
    found = [
        {key: torch.cat([tensor, tensor.flip(0), tensor])[:rows] for key, tensor in inputs.items()}
        for rows in (1, 3, 8)
    ]
    if "attention_mask" in inputs:
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        found.append({"input_ids": ids[:, -4:].contiguous(), "attention_mask": mask[:, -4:].contiguous()})
        longer = torch.cat([ids, ids[:, -1:].repeat(1, 4)], dim=1)
        found.append({"input_ids": longer, "attention_mask": torch.cat([mask, torch.zeros(3, 4, dtype=mask.dtype)], 1)})
    return found
