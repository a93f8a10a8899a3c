from __future__ import annotations

from functools import cache
from pathlib import Path

import deployed
import numpy as np
import onnx
import pytest
import small_clap
from pydantic import ValidationError

from mmcompress import deploy
from mmcompress._ask import ask
from mmcompress.errors import InputError, UsageError
from mmcompress.families._class_table import ClassTable, class_embeddings
from mmcompress.families.clap import Clap
from mmcompress.families.clip import Clip
from mmcompress.package import load_package
from mmcompress.runtimes import Runtime
from mmcompress.runtimes.onnxruntime import OnnxRuntime
from mmcompress.runtimes.openvino import OpenVino
from mmcompress.runtimes.torch import open_model
from mmcompress.stages import Model

NAMES = ("red star", "green ring", "w7 w8", "small")
TEMPLATES = ("a {}", "on a big {}")
TABLE = {"names": NAMES, "templates": TEMPLATES}
pytestmark = pytest.mark.usefixtures("one_thread")


@cache
def package(precision: str) -> Path:
    """The model of ``deployed`` with its texts as a table of four classes."""
    base = deployed.model()
    family = Clip(path=base.family.path, classes=ClassTable(**TABLE))
    graphs = deployed.folder("classes-fp32")
    facts = deploy.export(family, base.folder, graphs)
    runtime = OnnxRuntime()
    if precision == "int8":
        source, graphs = graphs, deployed.folder("classes-int8")
        facts = deploy.quantize(family, base.folder, source, runtime.scheme(), deployed.Pictures(48), graphs)
    path = deployed.folder(f"classes-package-{precision}")
    probe = deployed.Pictures(16, start=100)
    teacher = Model(family, base.folder)
    deploy.compile(
        family, base.folder, graphs, runtime, precision, teacher, probe, {}, path, asked=facts.get("graphs", {})
    )
    return path


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_classes_of_the_table_are_those_of_the_full_package(precision: str) -> None:
    pictures = [deployed.Pictures(40, start=500)[index].values["image"] for index in range(40)]
    with load_package(deployed.package(precision), threads=1) as full, load_package(package(precision)) as table:
        images = full.embed_images(pictures)
        found = table.classify(pictures)
        assert np.array_equal(table.embed_images(pictures), images)
    with load_package(deployed.package("fp32"), threads=1) as float_texts:
        prompts = float_texts.embed_texts([template.format(name) for name in NAMES for template in TEMPLATES])
    expected = images @ class_embeddings(prompts, len(NAMES)).T
    # Texts come from the model in FP32 in either package, and the last product is not quantized.
    np.testing.assert_allclose([answer.scores for answer in found], expected, atol=1e-5)
    assert [answer.index for answer in found] == expected.argmax(axis=1).tolist()
    assert [answer.label for answer in found] == [NAMES[index] for index in expected.argmax(axis=1)]
    assert len({answer.label for answer in found}) > 1


def test_the_package_has_no_text_tower_and_says_why() -> None:
    with load_package(package("fp32"), threads=1) as table, load_package(deployed.package("fp32")) as full:
        assert table.classify(str(table.path / "probe" / "0000.png")).label in NAMES
        for refused in (
            lambda: table.embed_texts("a red star"),
            lambda: table.classify([], ["a red star"]),
            lambda: table.predict({"text": "a red star"}, "embed_text"),
            lambda: table.ask("embed_text", {"text": ["a red star"]}),
        ):
            with pytest.raises(UsageError, match=r"replaced by a table of 4 classes[\s\S]*without `classes`"):
                refused()
        assert list(table.manifest["graphs"]) == ["vision_model"]
        assert table.manifest["graphs"]["vision_model"]["outputs"]["class_scores"]["shape"] == ["batch", 4]
        assert table.manifest["family_fields"]["classes"] == {"names": list(NAMES), "templates": list(TEMPLATES)}
        assert "table of 4 classes" in table.manifest["left_out"]["embed_text"]
        assert not {"tokenizer.json", "text_model.onnx"} & set(table.manifest["files"])
        # The table has 4 x 64 numbers in FP32; the rest is the picture tower.
        vision = full.manifest["graphs"]["vision_model"]["bytes"]
        assert 1024 <= table.size_bytes - vision <= 2048
        assert full.size_bytes > 1.5 * table.size_bytes
        assert all(check.lowest == pytest.approx(1, abs=1e-6) for check in table.check_probe().values())


def test_concurrent_callers_are_refused_other_texts_too() -> None:
    with (
        load_package(package("fp32"), threads=1, workers=1) as table,
        pytest.raises(UsageError, match="table of 4 classes"),
    ):
        table.embed_texts(["a red star"])


def test_the_product_with_the_table_stays_float_and_the_manifest_says_so() -> None:
    graph = onnx.load(package("int8") / "vision_model.onnx").graph
    (product,) = [node for node in graph.node if "class_scores" in node.output]
    with load_package(package("int8"), threads=1) as table:
        operators = table.manifest["coverage"]["vision_model"]["operators"]
    (covered,) = [operator for operator in operators if operator["name"] == product.name]
    assert (product.op_type, covered["asked"], covered["runs"]) == ("MatMul", "float", "float")
    assert "classes" in covered["why"]
    assert sum(operator["runs"] == "int8" for operator in operators) > 5


def test_sounds_get_classes_too(tmp_path: Path) -> None:
    config = small_clap.write_clap(tmp_path / "config", small_clap.clap_config())
    plain = Clap(config=config)
    table = Clap(config=config, classes=ClassTable(names=("a b", "c", "d e f")))
    plain.write(tmp_path / "model", seed=0)
    rng = np.random.default_rng(0)
    sounds = [(rng.normal(size=small_clap.RATE).astype(np.float32) * 0.1, small_clap.RATE) for _ in range(3)]
    answers = {}
    for family in (plain, table):
        session = open_model(family, tmp_path / "model", None)
        processor = family.processor(tmp_path / "model")
        for request in family.requests:
            values = {"audio": sounds} if "audio" in request.inputs else {"text": table.classes.prompts()}
            answers[family is table, request.name] = ask(family, processor, session.run, request.name, values)
        session.close()
    expected = answers[False, "embed_audio"] @ answers[False, "embed_text"].T
    np.testing.assert_allclose(answers[True, "classify"], expected, atol=1e-5)
    np.testing.assert_allclose(answers[True, "embed_audio"], answers[False, "embed_audio"], atol=1e-6)
    assert table.package_files(tmp_path / "model") == ["config.json", "preprocessor_config.json"]
    assert table.as_trained().identity() == plain.identity() != table.identity()


def test_classes_do_not_train_anything_again() -> None:
    plain = Clip(path=deployed.checkpoint())
    with_classes = Clip(path=deployed.checkpoint(), classes=ClassTable(**TABLE))
    assert with_classes.identity() != plain.identity()
    assert with_classes.as_trained().identity() == plain.identity()
    assert [graph.name for graph in with_classes.traced(with_classes.load(deployed.model().folder))] == [
        "vision_model",
        "text_model",
    ]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"names": []}, "at least 1"),
        ({"names": ["a", "b", "a"]}, "'a' stands there twice"),
        ({"names": ["a", " "]}, "without a name"),
        ({"names": ["a"], "templates": ["no place"]}, "'no place'"),
        ({"names": ["a"], "template": ["{}"]}, "Extra inputs"),
    ],
)
def test_tables_that_cannot_be_meant_are_refused(table: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Clip.model_validate({"path": "somewhere", "classes": table})


def test_a_class_that_is_longer_than_the_model_takes_is_refused() -> None:
    family = Clip(path=deployed.checkpoint(), classes=ClassTable(names=("a", "red " * 20)))
    with pytest.raises(InputError, match="tokens more than the 12"):
        family.load(deployed.model().folder)


def both(runtime: Runtime, work: Path) -> tuple[Clip, Path, dict[str, object]]:
    """The table and bytes in one family, exported and quantized as a runtime has it."""
    base = deployed.model()
    family = Clip(path=deployed.checkpoint(), classes=ClassTable(**TABLE), preprocessing="graph")
    for name in ("float", "int8", "compiled"):
        (work / name).mkdir()
    deploy.export(family, base.folder, work / "float")
    facts = deploy.quantize(family, base.folder, work / "float", runtime.scheme(), deployed.Pictures(48), work / "int8")
    return family, base.folder, facts["graphs"]


def test_a_table_and_bytes_together_in_openvino(tmp_path: Path) -> None:
    runtime = OpenVino()
    family, folder, asked = both(runtime, tmp_path)
    path, probe = tmp_path / "compiled", deployed.Pictures(16, start=100)
    teacher = Model(family, folder)
    deploy.compile(family, folder, tmp_path / "int8", runtime, "int8", teacher, probe, {}, path, asked=asked)
    pictures = [deployed.Pictures(40, start=500)[index].values["image"] for index in range(40)]
    with load_package(path, threads=1) as found, load_package(package("fp32"), threads=1) as exact:
        assert found.manifest["graphs"]["vision_model"]["inputs"]["pixels"]["dtype"] == "uint8"
        answers, expected = found.classify(pictures), exact.classify(pictures)
    assert np.mean([a.index == b.index for a, b in zip(answers, expected, strict=True)]) > 0.9
    difference = np.subtract([a.scores for a in answers], [b.scores for b in expected])
    assert 0 < np.abs(difference).max() < 0.1


def test_a_table_and_bytes_together_build_for_tensorrt_rtx(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    from mmcompress.runtimes.tensorrt_rtx import TensorRtRtx

    runtime = TensorRtRtx.model_validate({"for": "sm86"})
    both(runtime, tmp_path)
    facts = runtime.compile({"vision_model": tmp_path / "int8" / "vision_model.onnx"}, tmp_path / "compiled")
    assert (tmp_path / "compiled" / str(facts["files"]["vision_model"])).stat().st_size > 10_000
