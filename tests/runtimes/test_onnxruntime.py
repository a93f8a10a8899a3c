from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from pydantic import ValidationError

from mmcompress.errors import InputError, MissingExtra, UsageError
from mmcompress.runtimes import onnxruntime as module
from mmcompress.runtimes._machine import cpu_class, x86_class
from mmcompress.runtimes.onnxruntime import OnnxRuntime
from mmcompress.runtimes.torch import Torch

pytestmark = pytest.mark.unit


@pytest.fixture
def doubled(tmp_path):
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"], "twice")],
        "double",
        [value("x", TensorProto.FLOAT, ["batch", 2])],
        [value("y", TensorProto.FLOAT, ["batch", 2])],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "double.onnx"
    )
    return tmp_path


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fpu avx2 avx512f avx512bw avx512_vnni", "x86-vnni"),
        ("fpu avx2 avx_vnni", "x86-vnni"),
        ("fpu avx2 avx512f avx512bw", "x86-avx512"),
        ("fpu avx avx2", "x86-avx2"),
        ("fpu sse2", "x86"),
    ],
)
def test_machine_class_from_flags(flags, expected):
    assert x86_class(f"processor : 0\nflags\t\t: {flags}\nbugs :\n") == expected


def test_machine_class_without_flags():
    assert x86_class("") == "x86"


def test_scheme_per_machine_class():
    def scheme(machine):
        return OnnxRuntime.model_validate({"for": machine}).scheme()

    assert not scheme("x86-vnni").reduce_range and scheme("x86-vnni").activations == "uint8"
    assert scheme("x86-avx2").reduce_range and scheme("x86-avx512").reduce_range and scheme("x86").reduce_range
    assert scheme("arm64").activations == "int8" and not scheme("arm64").reduce_range
    assert OnnxRuntime().machine_class() == cpu_class()


def test_an_unknown_machine_class_is_named():
    with pytest.raises(ValidationError, match="did you mean 'x86-avx2'"):
        OnnxRuntime.model_validate({"for": "x86-avx3"})


def test_open_and_run(doubled):
    session = OnnxRuntime().open(doubled, ["double"], 1)
    assert session.run("double", {"x": np.ones((3, 2), np.float32)})["y"].tolist() == [[2.0, 2.0]] * 3
    session.close()


def test_compile_copies_and_opens(doubled, tmp_path):
    (tmp_path / "out").mkdir()
    facts = OnnxRuntime().compile({"double": doubled / "double.onnx"}, tmp_path / "out")
    assert facts["files"] == {"double": "double.onnx"}
    assert (tmp_path / "out" / "double.onnx").is_file()


def test_what_is_no_graph_is_refused(tmp_path):
    (tmp_path / "double.onnx").write_bytes(b"no graph")
    with pytest.raises(InputError, match="cannot open it"):
        OnnxRuntime().open(tmp_path, ["double"], 1)
    with pytest.raises(InputError, match="cannot open it"):
        OnnxRuntime().open(tmp_path, ["absent"], 1)


def test_a_provider_that_is_not_there_is_an_error(doubled):
    with pytest.raises(InputError, match="CUDAExecutionProvider"):
        OnnxRuntime(provider="cuda").open(doubled, ["double"], 1)


def test_two_distributions_are_an_error(monkeypatch):
    monkeypatch.setattr(module, "version", lambda name: "1.0")
    with pytest.raises(InputError, match="both installed"):
        module.load_library()


def test_none_installed_names_the_extra(monkeypatch):
    monkeypatch.setattr(module, "_DISTRIBUTIONS", ("absent-distribution",))
    with pytest.raises(MissingExtra, match=r"mmcompress\[cpu\]"):
        module.load_library()


def test_torch_is_no_target(tmp_path):
    with pytest.raises(UsageError, match="baseline"):
        Torch().compile({}, tmp_path)
