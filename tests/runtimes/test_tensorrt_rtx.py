from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from pydantic import ValidationError

from mmcompress import deploy
from mmcompress.errors import InputError, MissingExtra, NotRunnableHere, StageError
from mmcompress.package import check_digests, load_package, read_manifest
from mmcompress.runtimes import tensorrt_rtx as module
from mmcompress.runtimes._axes import read_bounds, read_file_bounds, write_bounds
from mmcompress.runtimes._quantize import quantize_graph
from mmcompress.runtimes.onnxruntime import OnnxRuntime
from mmcompress.runtimes.tensorrt_rtx import TensorRtRtx
from tests import deployed

GRAPHS = ("vision_model", "text_model")
value = helper.make_tensor_value_info


def save(path: Path, nodes: list, inputs: list, outputs: list, constants: dict | None = None, **bounds) -> Path:
    tensors = [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()]
    graph = helper.make_graph(nodes, path.stem, inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    write_bounds(model, bounds)
    onnx.save(model, path)
    return path


def compiled(path: Path, **fields) -> dict:
    output = path.parent / "out"
    output.mkdir(exist_ok=True)
    return dict(TensorRtRtx.model_validate(fields).compile({path.stem: path}, output))


def target(machine: str, **fields) -> TensorRtRtx:
    return TensorRtRtx.model_validate({"for": machine, **fields})


@pytest.fixture(scope="module")
def quantized() -> tuple[Path, dict]:
    folder = deployed.folder("rtx-int8")
    graphs, model = deployed.exported()[0], deployed.model()
    made = deploy.quantize(model.family, model.folder, graphs, TensorRtRtx().scheme(), deployed.Pictures(48), folder)
    return folder, made


@pytest.fixture(scope="module")
def package(quantized: tuple[Path, dict]) -> tuple[Path, dict]:
    folder = deployed.folder("rtx-package")
    facts = deploy.compile(
        family=deployed.model().family,
        model=deployed.model().folder,
        graphs=quantized[0],
        runtime=target("sm86"),
        precision="int8",
        teacher=deployed.model(),
        probe=deployed.Pictures(8, start=100),
        provenance={"recipe": "test"},
        output=folder,
    )
    return folder, facts


def test_a_package_has_engines_their_graphs_and_what_they_were_built_for(package: tuple[Path, dict]) -> None:
    folder, facts = package
    about = json.loads((folder / "engines.json").read_text())
    assert about["machine"] == "sm86" and about["versions"] == dict(TensorRtRtx().versions())
    assert about["engines"]["text_model"]["profile"]["input_ids"] == [[1, 2], [1, 7], [64, 12]]
    assert about["engines"]["vision_model"]["profile"]["pixel_values"][2] == [64, 3, 32, 32]
    for graph in GRAPHS:
        assert (folder / f"{graph}.engine").stat().st_size > (folder / "graphs" / f"{graph}.onnx").stat().st_size
        assert about["engines"][graph]["int8_in_the_graph"] == len(OPERATORS[graph])
        assert about["engines"][graph]["int8_in_the_engine"] is None
    assert facts["size_bytes"] == sum((folder / f"{graph}.engine").stat().st_size for graph in GRAPHS)
    assert facts["probe"] is None
    manifest = read_manifest(folder)
    check_digests(folder, manifest)
    assert "graphs/text_model.onnx" in manifest["files"]


OPERATORS = {
    # patches, four products of attention and two of each feed-forward layer in both layers, and the projection
    "vision_model": ["patches", *(f"{layer}.{part}" for layer in "01" for part in ("q", "k", "v", "o", "1", "2")), "p"],
    "text_model": [*(f"{layer}.{part}" for layer in "01" for part in ("q", "k", "v", "o", "1", "2")), "p"],
}


def test_the_graphs_in_the_package_answer_as_the_teacher_does(package: tuple[Path, dict]) -> None:
    """What the device compiles again is the quantized graph; ONNX Runtime shows that it is right."""
    columns = deployed.Pictures(16, start=300)
    pictures = [columns[index].values["image"] for index in range(16)]
    with load_package(deployed.package("fp32"), threads=1) as exact:
        want = exact.embed_images(pictures)
        feeds = exact.processor.encode({"image": pictures})
    session = OnnxRuntime().open(package[0] / "graphs", ["vision_model"], 1)
    assert (session.run("vision_model", feeds)["image_embeds"] * want).sum(1).min() > 0.99


def test_without_its_gpu_a_package_says_what_it_needs(
    package: tuple[Path, dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    for here, words in ((None, "no NVIDIA GPU"), ("sm90", "the GPU here is sm90")):
        monkeypatch.setattr(module, "gpu_class", lambda here=here: here)
        with pytest.raises(NotRunnableHere, match=f"class sm86, and {words}"):
            load_package(package[0])
    monkeypatch.setattr(module, "gpu_class", lambda: "sm89")
    with pytest.raises(NotRunnableHere, match="for sm86; this machine is sm89"):
        load_package(package[0])


def test_engines_of_another_version_are_refused(package: tuple[Path, dict], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "gpu_class", lambda: "sm86")
    monkeypatch.setattr(module, "library_versions", lambda name: {name: "9.9"})
    with pytest.raises(InputError, match=r"engines of tensorrt-rtx 1\.\d.*, and tensorrt-rtx 9\.9 is installed"):
        load_package(package[0])


def test_the_machine_classes_build(quantized: tuple[Path, dict], tmp_path: Path) -> None:
    for machine in ("sm80", "sm89", "sm120", "sm121"):
        folder = tmp_path / machine
        folder.mkdir()
        facts = target(machine).compile({"text_model": quantized[0] / "text_model.onnx"}, folder)
        assert facts["machine"] == machine
        assert (folder / "text_model.engine").stat().st_size > (quantized[0] / "text_model.onnx").stat().st_size


def test_turing_takes_no_float_products_of_32_bits(quantized: tuple[Path, dict], tmp_path: Path) -> None:
    """Attention multiplies activations in float, and for this class TensorRT has such kernels in FP16 alone."""
    with pytest.raises(StageError, match=r"node_MatMul_.*SM75.*FP32 GEMM is not supported"):
        target("sm75").compile({"text_model": quantized[0] / "text_model.onnx"}, tmp_path)


@pytest.mark.unit
def test_the_machine_class_is_the_recipes_the_gpus_or_sm86(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "gpu_class", lambda: None)
    assert TensorRtRtx().machine_class() == "sm86" and not TensorRtRtx().runs_here()
    monkeypatch.setattr(module, "gpu_class", lambda: "sm90")
    assert TensorRtRtx().machine_class() == "sm86" and not TensorRtRtx().runs_here()
    monkeypatch.setattr(module, "gpu_class", lambda: "sm89")
    assert TensorRtRtx().machine_class() == "sm89" and TensorRtRtx().runs_here()
    assert target("sm75").machine_class() == "sm75" and not target("sm75").runs_here()
    with pytest.raises(ValidationError, match="did you mean 'sm89'"):
        target("sm87")
    for wrong in ([2, 1, 4], [0, 0, 0], [-1, 1, 1]):
        with pytest.raises(ValidationError, match="ascending"):
            TensorRtRtx(shapes={"batch": wrong})


@pytest.mark.unit
def test_profiles_come_from_the_recipe_then_the_model(tmp_path: Path) -> None:
    inputs = [
        value("past", TensorProto.FLOAT, ["batch", 4, "past", 8]),
        value("x", TensorProto.FLOAT, ["batch", 4, 1, 8]),
    ]
    outputs = [value("y", TensorProto.FLOAT, ["batch", 4, "total", 8])]
    nodes = [helper.make_node("Concat", ["past", "x"], ["y"], "join", axis=2)]
    path = save(tmp_path / "decoder.onnx", nodes, inputs, outputs, past=(0, 63))
    assert read_bounds(onnx.load(path)) == {"past": (0, 63)}
    assert read_file_bounds(path) == {"past": (0, 63)}
    assert compiled(path)["engines"]["decoder"]["profile"]["past"] == [[1, 4, 0, 8], [1, 4, 32, 8], [64, 4, 63, 8]]
    assert compiled(path, shapes={"batch": (2, 2, 2)})["engines"]["decoder"]["profile"]["x"] == [[2, 4, 1, 8]] * 3
    bare = save(tmp_path / "bare.onnx", nodes, inputs, outputs)
    with pytest.raises(StageError, match=r"(?s)how long the axis 'past' of past.*shapes: \{past:"):
        compiled(bare)


@pytest.mark.unit
def test_a_table_that_only_its_rows_are_read_of_stays_int8_in_the_engine(tmp_path: Path) -> None:
    """The form that other runtimes read is refused by the builder; the one of the scheme keeps a byte per weight."""
    rng = np.random.default_rng(0)
    constants = {"table": rng.normal(size=(4000, 64)).astype(np.float32), "w": np.eye(64, dtype=np.float32)}
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"], "read"),
        helper.make_node("MatMul", ["rows", "w"], ["y"], "product"),
    ]
    ids = [value("ids", TensorProto.INT64, ["batch", 3])]
    path = save(tmp_path / "float.onnx", nodes, ids, [value("y", TensorProto.FLOAT, ["batch", 3, 64])], constants)
    feeds = {"ids": np.array([[0, 7, 3999], [5, 5, 1]])}
    exact = OnnxRuntime().open(tmp_path, ["float"], 1).run("float", feeds)["y"]
    for form, name in (("dequantize", "after"), ("cast", "before")):
        scheme = deploy.dataclasses.replace(TensorRtRtx().scheme(), tables=form)
        facts = quantize_graph(path, tmp_path / f"{name}.onnx", scheme, iter([feeds]))
        assert facts["int8_tables"] == ["read"]
        found = OnnxRuntime().open(tmp_path, [name], 1).run(name, feeds)["y"]
        assert np.abs(found - exact).max() < 0.05
    compiled(tmp_path / "after.onnx")
    compiled(path)
    engines = {name: (tmp_path / "out" / f"{name}.engine").stat().st_size for name in ("after", "float")}
    assert engines["float"] - engines["after"] > 0.75 * 3 * 4000 * 64  # bytes of the table that float takes more
    with pytest.raises(StageError, match="before DQ"):
        compiled(tmp_path / "before.onnx")


@pytest.mark.unit
def test_what_the_parser_refuses_is_named(tmp_path: Path) -> None:
    shape = ["batch", 4]
    ends = ([value("x", TensorProto.FLOAT, shape)], [value("y", TensorProto.FLOAT, shape)])
    zero_point = {"scale": np.float32(0.1), "zero": np.int8(3)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], "round"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"], "back"),
    ]
    with pytest.raises(
        StageError, match=r"refuses QuantizeLinear 'round': .*zero point.*\n  Expected: .*zero points of"
    ):
        compiled(save(tmp_path / "a.onnx", nodes, *ends, zero_point))
    strings = [value("x", TensorProto.STRING, shape)], [value("y", TensorProto.STRING, shape)]
    with pytest.raises(StageError, match="StringNormalizer 'lower'"):
        compiled(save(tmp_path / "b.onnx", [helper.make_node("StringNormalizer", ["x"], ["y"], "lower")], *strings))
    (tmp_path / "c.onnx").write_bytes(b"no graph")
    with pytest.raises(StageError, match=r"c\.onnx"):
        compiled(tmp_path / "c.onnx")


@pytest.mark.unit
def test_none_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "library_versions", lambda name: {name: "absent"})
    with pytest.raises(MissingExtra, match=r"mmcompress\[tensorrt-rtx\]"):
        module.load_library()


@pytest.mark.unit
def test_a_builder_without_memory_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(
        tmp_path / "a.onnx",
        [helper.make_node("Relu", ["x"], ["y"], "relu")],
        [value("x", TensorProto.FLOAT, ["batch", 4])],
        [value("y", TensorProto.FLOAT, ["batch", 4])],
    )
    import tensorrt_rtx

    class Builder:
        def __init__(self, logger) -> None:
            self.logger, self.real = logger, tensorrt_rtx.Builder(logger)

        def __getattr__(self, name: str):
            return getattr(self.real, name)

        def build_serialized_network(self, network, config) -> None:
            self.logger.log(tensorrt_rtx.ILogger.Severity.ERROR, "OutOfMemory (Requested size was 9 bytes.)")

    library = SimpleNamespace(**{**vars(tensorrt_rtx), "Builder": Builder})
    monkeypatch.setattr(module, "load_library", lambda: library)
    with pytest.raises(StageError, match="ran out of memory"):
        compiled(path)
