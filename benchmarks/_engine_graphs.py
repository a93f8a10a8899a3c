"""The graphs that ``engines.py`` times: ours and those of other tools, made once into a folder."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIDE = 224
CALIBRATION = 16
TYPES = ("QUInt8", "QInt8")


def pictures(count: int, seed: int = 0) -> NDArray[np.float32]:
    """Noise at the size of CLIP's pictures: [n, 3, 224, 224]."""
    return np.random.default_rng(seed).normal(size=(count, 3, SIDE, SIDE)).astype(np.float32)


def tower() -> Any:
    """The image tower of CLIP ViT-B/32 with random weights."""
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        image_size=SIDE,
        patch_size=32,
        projection_dim=512,
        attn_implementation="eager",
    )
    return CLIPVisionModelWithProjection(config).eval()


def make(folder: Path) -> dict[str, tuple[str, Path]]:
    """All graphs: runtime and file by name; what is there already is left."""
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "vision_model.onnx"
    _once(source, export)
    found: dict[str, tuple[str, Path]] = {"onnxruntime fp32": ("onnxruntime", source)}
    for name in ("onnxruntime", "openvino"):
        path = folder / f"ours_{name}.onnx"
        _once(path, lambda output, name=name: _ours(source, output, name))
        found[f"ours {name} int8"] = (name, path)
    found["openvino fp32"] = ("openvino", source)
    found["openvino bf16"] = ("openvino bf16", source)
    prepared = folder / "preprocessed.onnx"
    _once(prepared, lambda output: _preprocess(source, output))
    for types, per_channel, every in ((t, c, e) for t in TYPES for c in (True, False) for e in (True, False)):
        name = (
            f"quantize_static {types} {'per channel' if per_channel else 'per tensor'} {'all' if every else 'products'}"
        )
        path = folder / f"{name.replace(' ', '_')}.onnx"
        _once(path, lambda output, a=(types, per_channel, every): _static(prepared, output, *a))
        found[name] = ("onnxruntime", path)
    for mode in ("static", "dynamic"):
        path = folder / f"transformers_{mode}.onnx"
        if _once(path, lambda output, mode=mode: _transformers(output, mode)):
            found[f"transformers ort_fusions {mode}"] = ("onnxruntime", path)
    nncf = folder / "nncf.xml"
    if _once(nncf, lambda output: _nncf(source, output)):
        found["nncf openvino int8"] = ("openvino", nncf)
    return found


def _once(path: Path, build: Callable[[Path], None]) -> bool:
    """Build a file unless it is there; tells whether it is, and prints why not where a library refuses."""
    if path.is_file():
        return True
    try:
        build(path)
    except (ImportError, RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        print(f"left out: {path.stem}: {type(error).__name__}: {str(error).splitlines()[0][:160]}")
        return False
    return True


def export(output: Path) -> None:
    import torch

    from mmcompress._export import export_graph
    from mmcompress.families import Graph
    from mmcompress.families._modules import Named

    graph = Graph(
        "vision_model",
        Named(tower(), "image_embeds"),
        {"pixel_values": torch.from_numpy(pictures(3))},
        {"pixel_values": {0: "batch"}},
        ("image_embeds",),
    )
    export_graph(graph, output)


def _ours(source: Path, output: Path, runtime: str) -> None:
    from mmcompress.runtimes._quantize import quantize_graph
    from mmcompress.runtimes.onnxruntime import OnnxRuntime
    from mmcompress.runtimes.openvino import OpenVino

    target = OnnxRuntime() if runtime == "onnxruntime" else OpenVino()
    quantize_graph(source, output, target.scheme(), [{"pixel_values": pictures(CALIBRATION)}])


def _preprocess(source: Path, output: Path) -> None:
    from onnxruntime.quantization.shape_inference import quant_pre_process

    quant_pre_process(str(source), str(output))


def _static(source: Path, output: Path, types: str, per_channel: bool, every: bool) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    given = iter(pictures(CALIBRATION))

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Any] | None:
            picture = next(given, None)
            return None if picture is None else {"pixel_values": picture[None]}

    with _quiet():
        quantize_static(
            str(source),
            str(output),
            Reader(),
            per_channel=per_channel,
            activation_type=QuantType[types],
            weight_type=QuantType.QInt8,
            op_types_to_quantize=None if every else ["MatMul", "Gemm", "Conv"],
        )


def _transformers(output: Path, mode: str) -> None:
    import onnx_ir
    import torch
    from transformers.exporters import (
        OnnxConfig,
        OnnxRuntimeDynamicConfig,
        OnnxRuntimeQuantizer,
        OnnxRuntimeStaticConfig,
    )
    from transformers.exporters.exporter_onnx import OnnxExporter

    given = [{"pixel_values": torch.from_numpy(picture[None])} for picture in pictures(CALIBRATION)]
    config = OnnxRuntimeDynamicConfig() if mode == "dynamic" else OnnxRuntimeStaticConfig(per_channel=True)
    quantizer = OnnxRuntimeQuantizer(config, given if mode == "static" else None)
    shapes = {"pixel_values": {0: torch.export.Dim.DYNAMIC}}
    settings = OnnxConfig(dynamic_shapes=shapes, ort_fusions="cpu", quantizer=quantizer)
    exporter: Any = OnnxExporter
    with _quiet():
        program, _ = exporter().export_program(tower(), {"pixel_values": torch.from_numpy(pictures(2))}, settings)
    onnx_ir.save(program, output)


def _nncf(source: Path, output: Path) -> None:
    import nncf
    import openvino

    model = openvino.Core().read_model(source)
    data = nncf.Dataset([picture[None] for picture in pictures(CALIBRATION)])
    openvino.save_model(nncf.quantize(model, data), output, compress_to_fp16=False)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
