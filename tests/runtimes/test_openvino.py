from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from pydantic import ValidationError

from mmcompress import deploy
from mmcompress.errors import InputError, MissingExtra, StageError
from mmcompress.package import load_package
from mmcompress.runtimes import openvino as module
from mmcompress.runtimes._machine import cpu_class
from mmcompress.runtimes.onnxruntime import OnnxRuntime
from mmcompress.runtimes.openvino import OpenVino
from tests import deployed

GRAPHS = ("vision_model", "text_model")


@pytest.fixture(scope="module")
def quantized() -> tuple[Path, dict]:
    """The small CLIP by the scheme of OpenVINO on this machine."""
    folder = deployed.folder("openvino-int8")
    graphs = deployed.exported()[0]
    model = deployed.model()
    made = deploy.quantize(model.family, model.folder, graphs, OpenVino().scheme(), deployed.Pictures(48), folder)
    return folder, made


def package(graphs: Path, precision: str) -> Path:
    folder = deployed.folder(f"openvino-package-{precision}")
    if not (folder / "manifest.json").exists():
        deploy.compile(
            family=deployed.model().family,
            model=deployed.model().folder,
            graphs=graphs,
            runtime=OpenVino(),
            precision=precision,
            teacher=deployed.model(),
            probe=deployed.Pictures(16, start=100),
            provenance={"recipe": "test"},
            output=folder,
        )
    return folder


def answers(folder: Path) -> dict[str, np.ndarray]:
    columns = deployed.Pictures(32, start=300)
    with load_package(folder, threads=1) as opened:
        return {
            "vision_model": opened.embed_images([columns[index].values["image"] for index in range(32)]),
            "text_model": opened.embed_texts([columns[index].values["texts"][0] for index in range(32)]),
        }


def test_the_float_package_equals_onnxruntime() -> None:
    found = answers(package(deployed.exported()[0], "fp32"))
    expected = answers(deployed.package("fp32"))
    for graph in GRAPHS:
        assert np.abs(found[graph] - expected[graph]).max() < 2e-5, graph


def test_the_int8_package_is_near_the_float_one_as_onnxruntimes_is(quantized: tuple[Path, dict]) -> None:
    exact = answers(deployed.package("fp32"))
    found = answers(package(quantized[0], "int8"))
    theirs = answers(deployed.package("int8"))
    for graph in GRAPHS:
        cosine = (found[graph] * exact[graph]).sum(1)
        assert cosine.min() > 0.99, graph
        assert cosine.mean() > (theirs[graph] * exact[graph]).sum(1).mean() - 0.002, graph
        assert np.abs(found[graph] - exact[graph]).max() > 1e-4, "not quantized at all"


def test_the_same_graph_gives_the_same_numbers_in_onnxruntime(quantized: tuple[Path, dict]) -> None:
    """Whoever adds up in another order rounds some activations to the neighbouring step, and no more."""
    for graph in GRAPHS:
        feeds = sample_feeds(graph)
        reference = OnnxRuntime().open(quantized[0], [graph], 1).run(graph, feeds)
        session = OpenVino().open(package(quantized[0], "int8"), [graph], 1)
        (output,) = reference
        cosine = (session.run(graph, feeds)[output] * reference[output]).sum(1)
        assert cosine.min() > 0.998, graph


def test_int8_packages_are_small_and_their_weights_count(quantized: tuple[Path, dict]) -> None:
    with (
        load_package(package(quantized[0], "int8")) as small,
        load_package(package(deployed.exported()[0], "fp32")) as large,
    ):
        weights = sum((small.path / f"{graph}.bin").stat().st_size for graph in GRAPHS)
        assert weights < small.size_bytes < large.size_bytes / 2.5
    assert all(facts["int8"] for facts in quantized[1]["graphs"].values())


def sample_feeds(graph: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    if graph == "vision_model":
        return {"pixel_values": rng.normal(size=(6, 3, 32, 32)).astype(np.float32)}
    ids = rng.integers(2, 500, (6, 9))
    ids[:, -1] = 1
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def test_threads_and_precision_are_as_asked_for() -> None:
    folder = package(deployed.exported()[0], "fp32")
    session = OpenVino().open(folder, GRAPHS, 1)
    for compiled in session._graphs.values():
        assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
        assert compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"
        assert str(compiled.get_property("PERFORMANCE_HINT")).endswith("LATENCY")


def test_answers_of_concurrent_callers_are_their_own() -> None:
    session = OpenVino().open(package(deployed.exported()[0], "fp32"), ["vision_model"], 1)
    rng = np.random.default_rng(0)
    pictures = [rng.normal(size=(1 + index % 3, 3, 32, 32)).astype(np.float32) for index in range(24)]
    alone = [session.run("vision_model", {"pixel_values": item})["image_embeds"] for item in pictures]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda item: session.run("vision_model", {"pixel_values": item}), pictures))
    for want, found in zip(alone, together, strict=True):
        np.testing.assert_allclose(found["image_embeds"], want, atol=1e-6)
    session.close()
    with pytest.raises(KeyError):
        session.run("vision_model", {"pixel_values": pictures[0]})


@pytest.mark.unit
def test_the_scheme_follows_the_machine() -> None:
    def scheme(machine: str) -> dict:
        return dataclasses.asdict(OpenVino.model_validate({"for": machine}).scheme())

    assert scheme("x86-vnni")["symmetric_activations"] and scheme("x86-vnni")["activations"] == "int8"
    assert not scheme("x86-vnni")["reduce_range"] and not scheme("arm64")["reduce_range"]
    assert scheme("x86-avx2")["reduce_range"]
    assert OpenVino().machine_class() == cpu_class() and OpenVino().runs_here()
    with pytest.raises(ValidationError, match="did you mean 'x86-avx2'"):
        OpenVino.model_validate({"for": "x86-avx3"})


@pytest.mark.unit
def test_what_openvino_does_not_know_is_named(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Unheard", ["x"], ["y"], "stranger", domain="nowhere")],
        "g",
        [value("x", TensorProto.FLOAT, [1])],
        [value("y", TensorProto.FLOAT, [1])],
    )
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("nowhere", 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10), tmp_path / "g.onnx")
    (tmp_path / "out").mkdir()
    with pytest.raises(StageError, match="Unheard"):
        OpenVino().compile({"g": tmp_path / "g.onnx"}, tmp_path / "out")


@pytest.mark.unit
def test_a_missing_or_broken_graph_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        OpenVino().open(tmp_path, ["g"], 1)
    (tmp_path / "g.xml").write_text("<net")
    with pytest.raises(InputError, match="cannot open it"):
        OpenVino().open(tmp_path, ["g"], 1)


@pytest.mark.unit
def test_none_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "library_versions", lambda name: {name: "absent"})
    with pytest.raises(MissingExtra, match=r"mmcompress\[openvino\]"):
        module.load_library()
