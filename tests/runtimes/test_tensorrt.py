"""TensorRT through the code that it shares with TensorRT for RTX, whose builder stands in for it; no GPU is needed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import tensorrt_rtx
from onnx import TensorProto, helper, numpy_helper
from pydantic import ValidationError

from mmcompress import deploy
from mmcompress.device import compile_package
from mmcompress.errors import InputError, MissingExtra, NotRunnableHere, StageError
from mmcompress.package import load_package, read_manifest
from mmcompress.runtimes import _tensorrt_session as session_module
from mmcompress.runtimes import tensorrt as module
from mmcompress.runtimes._half import KEPT_FLOAT, write_half
from mmcompress.runtimes._tensorrt import network_flags, telling
from mmcompress.runtimes._tensorrt_session import TensorRtSession
from mmcompress.runtimes.onnxruntime import OnnxRuntime
from mmcompress.runtimes.tensorrt import TensorRt
from tests import deployed


def fake(version: str = "10.3.0", **others) -> SimpleNamespace:
    """TensorRT for RTX under the other's name."""
    return SimpleNamespace(**{**vars(tensorrt_rtx), "__name__": "tensorrt", "__version__": version, **others})


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """An Ada GPU with TensorRT 10.3, as far as building goes."""

    def configure(self: TensorRt, trt: SimpleNamespace, config) -> None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM89, 0)

    monkeypatch.setattr(module, "gpu_class", lambda: "sm89")
    monkeypatch.setattr(module, "library_versions", lambda *names: dict.fromkeys(names, "10.3.0"))
    monkeypatch.setattr(TensorRt, "configure", configure)
    monkeypatch.setitem(sys.modules, "tensorrt", fake())


def product(path: Path, constant: np.ndarray) -> Path:
    """``y = softmax(x w)`` with a LayerNorm of ``x`` before it."""
    width = len(constant)
    constants = {"w": constant, "one": np.ones(width, np.float32)}
    nodes = [
        helper.make_node("LayerNormalization", ["x", "one"], ["n"], "norm"),
        helper.make_node("MatMul", ["n", "w"], ["p"], "product"),
        helper.make_node("Softmax", ["p"], ["y"], "softmax"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width]) for name in "xy"]
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, path.stem, ends[:1], ends[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return product(tmp_path / "product.onnx", np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32))


@pytest.fixture(scope="module")
def package() -> Path:
    """INT8 for a Jetson Orin, made where neither TensorRT nor a GPU is."""
    quantized, folder = deployed.folder("trt-int8"), deployed.folder("trt-package")
    graphs, model = deployed.exported()[0], deployed.model()
    deploy.quantize(model.family, model.folder, graphs, TensorRt().scheme(), deployed.Pictures(48), quantized)
    deploy.compile(
        family=model.family,
        model=model.folder,
        graphs=quantized,
        runtime=TensorRt.model_validate({"for": "sm87", "float_precision": "fp16"}),
        precision="int8",
        teacher=model,
        probe=deployed.Pictures(8, start=100),
        provenance={"recipe": "test"},
        output=folder,
    )
    return folder


def test_without_its_gpu_a_package_holds_the_graphs_that_the_device_builds_of(package: Path, monkeypatch) -> None:
    manifest = read_manifest(package)
    assert manifest["graphs"]["text_model"]["file"] == "text_model.onnx" and manifest["target"]["machine"] == "sm87"
    about = json.loads((package / "engines.json").read_text())["engines"]["text_model"]
    assert about["profile"] is None and about["int8_in_the_graph"] == 13 and about["graph"] == "text_model.onnx"
    types = {tensor.data_type for tensor in onnx.load(package / "vision_model.onnx").graph.initializer}
    assert {TensorProto.INT8, TensorProto.FLOAT16} <= types
    assert not any("Quantize" in node.op_type for node in onnx.load(package / "graphs/fp16/text_model.onnx").graph.node)
    with pytest.raises(NotRunnableHere, match="class sm87, and no NVIDIA GPU"):
        load_package(package)
    monkeypatch.setattr(module, "gpu_class", lambda: "sm87")
    with pytest.raises(NotRunnableHere, match=r"(?s)built on the device.*mmcompress compile .* --target tensorrt"):
        load_package(package)


def test_the_graphs_of_such_a_package_answer_as_the_teacher_does(package: Path) -> None:
    """INT8 with FP16 around it, and FP16 alone, in ONNX Runtime: what TensorRT is given is right."""
    columns = deployed.Pictures(16, start=300)
    pictures = [columns[index].values["image"] for index in range(16)]
    with load_package(deployed.package("fp32"), threads=1) as exact:
        want = exact.embed_images(pictures)
        feeds = exact.processor.encode({"image": pictures})
    worst = []
    for folder in (package, package / "graphs" / "fp16"):
        session = OnnxRuntime().open(folder, ["vision_model"], 1)
        worst.append((session.run("vision_model", feeds)["image_embeds"] * want).sum(1).min())
    assert worst[0] > 0.98 and worst[1] > 0.999


def test_a_device_builds_engines_of_the_package_without_the_onnx_library(
    package: Path, tmp_path: Path, gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to the engine: loading one needs the GPU."""
    monkeypatch.setattr(TensorRt, "runs_here", lambda self: self.machine_class() == "sm89")
    monkeypatch.setattr("mmcompress.runtimes._tensorrt_runtime.find_spec", lambda name: None)
    told = []
    with pytest.raises(StageError, match=r"(?s)int8: does not answer: .*\nfp16: does not answer: "):
        compile_package(package, out=tmp_path / "new", listen=lambda *words: told.append(words))
    phases = [message for message, _, _ in told if message.startswith("building text_model: ")]
    assert phases and all(done <= total for message, done, total in told if message in phases)


def test_engines_are_built_where_the_gpu_is(graph: Path, tmp_path: Path, gpu: None) -> None:
    target = TensorRt.model_validate({"shapes": {"batch": (1, 2, 4)}, "workspace_mib": 64, "float_precision": "fp16"})
    folder = tmp_path / "out"
    folder.mkdir()
    facts = target.compile({"product": graph}, folder)
    assert facts["machine"] == "sm89" and facts["versions"] == {"tensorrt": "10.3.0"}
    assert facts["engines"]["product"]["profile"] == {"x": [[1, 16], [2, 16], [4, 16]]}
    assert sorted(path.name for path in folder.iterdir()) == ["engines.json", "product.engine"]


def test_engines_of_another_version_say_what_to_do(graph: Path, tmp_path: Path, gpu: None, monkeypatch) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    TensorRt().compile({"product": graph}, folder)
    monkeypatch.setattr(module, "library_versions", lambda *names: dict.fromkeys(names, "10.16.0"))
    with pytest.raises(
        InputError, match=r"engines of tensorrt 10\.3\.0, and tensorrt 10\.16\.0.*\n  Build the package"
    ):
        TensorRt().open(folder, ["product"], None)
    monkeypatch.setattr(module, "gpu_class", lambda: "sm86")
    with pytest.raises(NotRunnableHere, match="class sm89, and the GPU here is sm86"):
        TensorRt().open(folder, ["product"], None)


@pytest.mark.unit
def test_an_engine_with_other_shapes_than_the_package_says_is_refused(tmp_path: Path, monkeypatch) -> None:
    built = {"x": [(1, 16), (2, 16), (4, 16)]}
    engine = SimpleNamespace(get_tensor_profile_shape=lambda name, index: built[name])
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda data: engine if data == b"engine" else None)
    monkeypatch.setattr(session_module, "require", lambda *names: None)
    (tmp_path / "a.engine").write_bytes(b"engine")
    trt, engines = fake(Runtime=lambda logger: runtime), {"a": tmp_path / "a.engine"}
    TensorRtSession(trt, engines, {"a": {"x": [[1, 16], [2, 16], [4, 16]]}})
    with pytest.raises(
        InputError, match=r"(?s)takes x of shapes .*4, 16.*package says .*8, 16.*Build the package again"
    ):
        TensorRtSession(trt, engines, {"a": {"x": [[1, 16], [2, 16], [8, 16]]}})
    (tmp_path / "a.engine").write_bytes(b"other")
    with pytest.raises(InputError, match="cannot load the engine on this GPU: no reason"):
        TensorRtSession(trt, engines, {"a": {}})


@pytest.mark.unit
def test_networks_are_strongly_typed_in_every_version() -> None:
    flag = 1 << int(tensorrt_rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    assert network_flags(fake("10.3.0")) == network_flags(fake("10.16.1")) == flag
    assert network_flags(fake("11.0.0", NetworkDefinitionCreationFlag=SimpleNamespace())) == 0
    with pytest.raises(InputError, match=r"tensorrt 8\.6\.2 is installed, and 10 or later"):
        network_flags(fake("8.6.2"))


@pytest.mark.unit
@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (["OutOfMemory (Requested size was 9 bytes.)", "Error Code 2"], "ran out of memory while it built"),
        (["Could not find any implementation for node x due to insufficient workspace."], "within its limit of 1 MiB"),
        (["node x of unknown type"], "cannot build the engine: node x"),
    ],
)
def test_a_builder_that_fails_says_why(graph: Path, tmp_path: Path, gpu: None, monkeypatch, said, expected) -> None:
    class Builder:
        def __init__(self, logger) -> None:
            self.logger, self.real = logger, tensorrt_rtx.Builder(logger)

        def __getattr__(self, name: str):
            return getattr(self.real, name)

        def build_serialized_network(self, network, config) -> None:
            for words in said:
                self.logger.log(tensorrt_rtx.ILogger.Severity.ERROR, words)

    monkeypatch.setitem(sys.modules, "tensorrt", fake(Builder=Builder))
    with pytest.raises(StageError, match=expected):
        TensorRt(workspace_mib=1).compile({"product": graph}, tmp_path)


@pytest.mark.unit
def test_the_builder_tells_its_progress(graph: Path, tmp_path: Path, gpu: None) -> None:
    told = []
    with telling(lambda *words: told.append(words)):
        TensorRt().compile({"product": graph}, tmp_path)
    assert told and all(message.startswith("building product: ") for message, _, _ in told)
    count = len(told)
    TensorRt().compile({"product": graph}, tmp_path)
    assert len(told) == count


@pytest.mark.unit
def test_fp16_keeps_norms_and_softmax_in_fp32(tmp_path: Path) -> None:
    """Inputs whose squares leave FP16: the norm of them holds only where it is computed in FP32."""
    weight = np.eye(16, dtype=np.float32)
    product(tmp_path / "exact.onnx", weight)
    write_half(tmp_path / "exact.onnx", tmp_path / "half.onnx")
    nodes = onnx.load(tmp_path / "half.onnx").graph.node
    casts = {name: node.op_type for node in nodes for name in node.output}
    by_type = {node.op_type: node for node in nodes}
    assert {"LayerNormalization", "Softmax"} <= set(KEPT_FLOAT)
    assert casts[by_type["Softmax"].input[0]] == "Cast" and casts[by_type["MatMul"].input[0]] == "Cast"
    feeds = {"x": (np.random.default_rng(1).normal(size=(3, 16)) * 2000).astype(np.float32)}
    exact, half = (OnnxRuntime().open(tmp_path, [name], 1).run(name, feeds)["y"] for name in ("exact", "half"))
    assert exact.dtype == half.dtype == np.float32 and np.abs(exact - half).max() < 1e-3


@pytest.mark.unit
def test_none_installed_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingExtra, match=r"(?s)JetPack.*pip install tensorrt 'mmcompress\[tensorrt\]'"):
        module.load_library()
    monkeypatch.setattr(module, "gpu_class", lambda: None)
    assert TensorRt().machine_class() == "sm87" and not TensorRt().runs_here()
    with pytest.raises(ValidationError, match="known: sm75, sm80, sm86, sm87"):
        TensorRt.model_validate({"for": "sm72"})
    with pytest.raises(ValidationError, match="workspace_mib"):
        TensorRt(workspace_mib=0)
