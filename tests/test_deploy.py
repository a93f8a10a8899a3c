from __future__ import annotations

import dataclasses
import json

import deployed
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from mmcompress import deploy
from mmcompress._ask import agreement, ask
from mmcompress._export import constant_shape, export_graph
from mmcompress._probe import raw_values
from mmcompress.component import digest_path
from mmcompress.errors import StageError
from mmcompress.families import Graph
from mmcompress.package import load_package
from mmcompress.runtimes._quantize import weighted_nodes
from mmcompress.runtimes._tables import quantize_rows
from mmcompress.runtimes.onnxruntime import OnnxRuntime
from mmcompress.runtimes.torch import open_model


def test_exported_graphs_equal_torch_at_other_batches_and_lengths():
    folder, facts = deployed.exported()
    assert set(facts["graphs"]) == {"vision_model", "text_model"}
    assert all(0 <= graph["max_difference"] <= 1e-4 for graph in facts["graphs"].values())
    family, model = deployed.model().family, deployed.model().folder
    processor = family.processor(model)
    engines = OnnxRuntime().open(folder, ["vision_model", "text_model"], 1)
    reference = open_model(family, model, None)
    for count in (1, 3, 8):
        examples = deployed.Pictures(count, start=500)
        values = raw_values([examples[i] for i in range(count)], ("image", "text"))
        for request in ("embed_image", "embed_text"):
            found = ask(family, processor, engines.run, request, values)
            expected = ask(family, processor, reference.run, request, values)
            assert found.shape == (count, 64)
            assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
            assert count == 1 or np.abs(expected[0] - expected[1]).max() > 1e-2
    reference.close()


def test_graphs_are_lean():
    folder, facts = deployed.exported()
    for name, entry in facts["graphs"].items():
        model = onnx.load(folder / f"{name}.onnx")
        weights = sum(len(initializer.raw_data) for initializer in model.graph.initializer)
        assert entry["bytes"] - weights < 40_000
        assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
        assert {axis.dim_param for value in model.graph.input for axis in value.type.tensor_type.shape.dim[:1]} == {
            "batch"
        }
        constants = {initializer.name for initializer in model.graph.initializer}
        assert all(node.input[1] in constants for node in model.graph.node if node.op_type == "Reshape")


def test_a_graph_that_differs_from_torch_is_refused(tmp_path):
    folder, _ = deployed.exported()
    graph = deployed.model().family.graphs(deployed.model().family.load(deployed.model().folder))[0]
    broken = onnx.load(folder / "vision_model.onnx")
    weight = next(w for w in broken.graph.initializer if list(w.dims) == [128, 256])
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.5), weight.name))
    onnx.save(broken, tmp_path / "vision_model.onnx")
    with pytest.raises(StageError, match="vision_model: image_embeds differs from torch by"):
        deploy.check_export(graph, tmp_path / "vision_model.onnx")


def test_a_check_on_equal_examples_is_refused():
    folder, _ = deployed.exported()
    graph = deployed.model().family.graphs(deployed.model().family.load(deployed.model().folder))[0]
    same = {name: value[:1].repeat(3, 1, 1, 1) for name, value in graph.inputs.items()}
    with pytest.raises(StageError, match="different examples differs by only"):
        deploy.check_export(dataclasses.replace(graph, inputs=same), folder / "vision_model.onnx")


def test_an_axis_that_becomes_fixed_is_refused(tmp_path):
    class Fixed(torch.nn.Module):
        def forward(self, x):
            return {"y": x.reshape(2, -1) * 2.0}

    graph = Graph("fixed", Fixed(), {"x": torch.randn(2, 4)}, {"x": {0: "batch"}}, ("y",))
    with pytest.raises(StageError, match="graph fixed"):
        export_graph(graph, tmp_path / "fixed.onnx")


def test_a_weight_that_is_cut_at_run_time_is_folded(tmp_path):
    class Packed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.packed = torch.nn.Parameter(torch.randn(192, 128))

        def forward(self, x):
            query, key, value = self.packed.split(64)
            return {"y": (x @ query.T) * (x @ key.T) + x @ value.T}

    graph = Graph("packed", Packed(), {"x": torch.randn(3, 5, 128)}, {"x": {0: "batch", 1: "sequence"}}, ("y",))
    export_graph(graph, tmp_path / "packed.onnx")
    assert deploy.check_export(graph, tmp_path / "packed.onnx") < 1e-5
    assert len(weighted_nodes(onnx.load(tmp_path / "packed.onnx"))) == 3


@pytest.mark.parametrize(
    ("before", "after", "shape"),
    [
        (["batch", 65, 256], ["batch", 65, 8, 32], [0, 65, 8, 32]),
        (["batch", 8, "sequence", 32], ["batch", "sequence", 256], [0, -1, 256]),
        (["batch", 8, "sequence", 32], ["batch*sequence", 256], [-1, 256]),
        (None, ["batch", "sequence", 256], None),
        (["batch"], None, None),
    ],
)
def test_constant_shape(before, after, shape):
    assert constant_shape(before, after) == shape


def test_int8_graphs_are_a_quarter_and_every_weighted_product_is_int8():
    folder, facts = deployed.quantized()
    assert facts["calibration_examples"] == 48
    for name, entry in facts["graphs"].items():
        assert entry["float"] == []
        assert len(entry["int8"]) == (14 if name == "vision_model" else 13)
        assert entry["float_bytes"] / entry["bytes"] > 3.2
        left = [
            w
            for w in onnx.load(folder / f"{name}.onnx").graph.initializer
            if w.data_type == 1 and len(w.raw_data) > 9000
        ]
        assert [w.name for w in left] == []
    assert len(facts["graphs"]["text_model"]["int8_tables"]) == 1, "the words, and not the twelve positions"


def test_int8_answers_agree_with_fp32():
    with (
        load_package(deployed.package("fp32"), threads=1) as exact,
        load_package(deployed.package(), threads=1) as int8,
    ):
        columns, teacher = exact.probe()
        for request in exact.requests:
            values = {name: columns[name] for name in request.inputs}
            expected, found = exact.ask(request.name, values), int8.ask(request.name, values)
            assert np.abs(expected - teacher[request.name]).max() < 1e-4
            assert 0.99 < agreement("embeds", found, expected).mean() < 0.9999999
            assert agreement("embeds", expected[::-1], expected).mean() < 0.98


def test_nodes_can_stay_float(tmp_path):
    everything = deployed.quantized()[1]["graphs"]["vision_model"]["int8"]
    made = deploy.quantize(
        deployed.model().family,
        deployed.model().folder,
        deployed.exported()[0],
        OnnxRuntime().scheme(),
        deployed.Pictures(4),
        tmp_path,
        {"vision_model": everything[:2]},
    )
    assert made["graphs"]["vision_model"]["float"] == everything[:2]
    assert made["graphs"]["vision_model"]["int8"] == everything[2:]


def test_quantizing_nothing_is_an_error(tmp_path):
    scheme = dataclasses.replace(OnnxRuntime().scheme(), operators=("Conv",))
    with pytest.raises(StageError, match=r"text_model\.onnx: no Conv with weights"):
        deploy.quantize(
            deployed.model().family,
            deployed.model().folder,
            deployed.exported()[0],
            scheme,
            deployed.Pictures(4),
            tmp_path,
        )


def test_quantize_rows_by_hand():
    rows, scales = quantize_rows(np.array([[1.27, -0.635], [0.0, 0.0], [-254.0, 100.0]], np.float32))
    assert rows.tolist() == [[127, -64], [0, 0], [-127, 50]]
    assert scales[:, 0] == pytest.approx([0.01, 1.0, 2.0])


def test_the_manifest_describes_the_package():
    path = deployed.package()
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["family"] == "clip" and manifest["precision"] == "int8"
    assert manifest["graphs"]["vision_model"]["inputs"]["pixel_values"] == {
        "dtype": "float32",
        "shape": ["batch", 3, 32, 32],
    }
    assert manifest["graphs"]["text_model"]["inputs"]["input_ids"] == {"dtype": "int64", "shape": ["batch", "sequence"]}
    assert manifest["preprocessing"]["images"]["mean"] == [0.5, 0.5, 0.5]
    assert manifest["provenance"] == {"recipe": "test"}
    files = {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()} - {"manifest.json"}
    assert set(manifest["files"]) == files
    assert all(digest_path(path / name) == entry["sha256"] for name, entry in manifest["files"].items())
    assert {"vision_model.onnx", "text_model.onnx", "tokenizer.json", "config.json", "probe/0000.png"} <= files
    assert not any(name.endswith((".bin", ".pkl", ".pt", ".safetensors")) for name in files)


def test_a_package_for_another_machine_is_made_but_not_asked_here(tmp_path):
    made = deploy.compile(
        family=deployed.model().family,
        model=deployed.model().folder,
        graphs=deployed.quantized()[0],
        runtime=OnnxRuntime.model_validate({"for": "arm64"}),
        precision="int8",
        teacher=deployed.model(),
        probe=deployed.Pictures(2),
        provenance={},
        output=tmp_path,
    )
    assert made["probe"] is None
    assert json.loads((tmp_path / "manifest.json").read_text())["target"]["machine"] == "arm64"
    assert not list((tmp_path / "probe").glob("*.package.npy"))
