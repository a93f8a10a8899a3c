"""Uniformly pruned models of several families open with transformers' own ``from_pretrained``; what cannot says so."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).parent))
import small_blip  # noqa: E402
import small_wav2vec2  # noqa: E402
import tiny_vilt  # noqa: E402
import tiny_whisper  # noqa: E402

from mmcompress.families import Family  # noqa: E402
from mmcompress.families._blip_model import mask_cross_attention  # noqa: E402
from mmcompress.families._structure import STRUCTURE, write_readme  # noqa: E402
from mmcompress.families.blip import Blip  # noqa: E402
from mmcompress.families.wav2vec2 import Wav2vec2  # noqa: E402
from mmcompress.stages._cutting import Budget, find, prune_model  # noqa: E402
from mmcompress.stages._importance import uniform  # noqa: E402

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("one_thread")]
Written = tuple[Family, Path]


def whisper(folder: Path) -> Written:
    return tiny_whisper.tiny(folder, encoder_layers=3, decoder_layers=3)


def vilt(folder: Path) -> Written:
    return tiny_vilt.small(folder)


def blip(folder: Path) -> Written:
    """One that matches: the encoder and decoder of others share a configuration, so that a cut of one is no uniform one."""
    config = small_blip.write_config(folder / "source")
    values = json.loads(config.read_text())
    for section in ("vision_config", "text_config"):
        values[section].update(num_hidden_layers=3, num_attention_heads=4)
    config.write_text(json.dumps(values))
    family = Blip(config=config, task="match")
    family.write(folder / "model", 0)
    return family, folder / "model"


def wav2vec2(folder: Path) -> Written:
    folder.mkdir(parents=True, exist_ok=True)
    config = small_wav2vec2.write_speech(folder, small_wav2vec2.speech_config(num_hidden_layers=3))
    family = Wav2vec2(config=config, max_seconds=1.0)
    family.write(folder / "model", 0)
    return family, folder / "model"


MODELS: dict[str, tuple[Callable[[Path], Written], str]] = {
    "whisper": (whisper, "WhisperForConditionalGeneration"),
    "vilt": (vilt, "ViltForQuestionAnswering"),
    "blip": (blip, "BlipForImageTextRetrieval"),
    "wav2vec2": (wav2vec2, "Wav2Vec2ForCTC"),
}


@pytest.fixture(scope="module", params=list(MODELS))
def written(request, tmp_path_factory) -> tuple[str, Family, Path, str]:
    make, class_name = MODELS[request.param]
    family, folder = make(tmp_path_factory.mktemp(request.param))
    return request.param, family, folder, class_name


def outputs(family: Family, model: Any) -> dict[str, np.ndarray]:
    found = {}
    with torch.no_grad():
        for graph in family.graphs(model):
            found.update({f"{graph.name}.{name}": v.numpy() for name, v in graph.module(**graph.inputs).items()})
    return found


def opened_by_transformers(model: Any, folder: Path, class_name: str) -> Any:
    """The model by transformers alone, and fed as ours is, which no weight tells."""
    import transformers

    opened, told = getattr(transformers, class_name).from_pretrained(folder, output_loading_info=True)
    assert not any(told.values()), told
    if hasattr(model, "sound_settings"):
        opened.sound_settings = model.sound_settings
    if class_name.startswith("Blip"):
        mask_cross_attention(opened)
    return opened.eval()


def cut(family: Family, folder: Path, **how: Any) -> tuple[Any, dict[str, Any]]:
    model = family.load(folder)
    facts = prune_model(
        family,
        model,
        how.pop("budget"),
        lambda blocks: uniform(blocks, 0),
        relative=True,
        ranking="local",
        round_to=4,
        **how,
    )
    return model, facts


@pytest.mark.parametrize(("part", "keep"), [("layers", 0.75), ("feed_forward", 0.85)])
def test_layers_and_feed_forward_widths(written, part, keep, tmp_path):
    name, family, folder, class_name = written
    model, facts = cut(family, folder, budget=Budget("parameters", keep), parts=(part,))
    assert facts["parameters"][1] < facts["parameters"][0] and (part == "layers") == ("kept_layers" in facts)
    family.save(model, folder, tmp_path / "cut")
    assert not (tmp_path / "cut" / STRUCTURE).exists()
    write_readme(name, tmp_path / "cut")
    assert "opens it too" in (tmp_path / "cut/README.md").read_text()
    expected, whole = outputs(family, model.eval()), outputs(family, family.load(folder))
    for opened in (family.load(tmp_path / "cut"), opened_by_transformers(model, tmp_path / "cut", class_name)):
        got = outputs(family, opened)
        assert got.keys() == expected.keys()
        for output, array in expected.items():
            np.testing.assert_array_equal(got[output], array)
    assert any(whole[n].shape != expected[n].shape or not np.array_equal(whole[n], expected[n]) for n in expected)


def test_heads_alone_are_told_by_the_structure_and_the_readme_says_so(written, tmp_path):
    name, family, folder, class_name = written
    model, _ = cut(family, folder, budget=Budget("parameters", 0.85), parts=("heads",))
    family.save(model, folder, tmp_path / "cut")
    write_readme(name, tmp_path / "cut")
    assert "does not open it" in (tmp_path / "cut/README.md").read_text()
    expected, got = outputs(family, model.eval()), outputs(family, family.load(tmp_path / "cut"))
    for output, array in expected.items():
        np.testing.assert_array_equal(got[output], array)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        opened_by_transformers(model, tmp_path / "cut", class_name)


def test_a_width_that_other_parts_depend_on_stays(written):
    """Decoders read the encoder's width, packed heads, joined sequences and weight norm hide it from the graph: told."""
    name, family, folder, _ = written
    tower, reason = {
        "vilt": ("encoder", "has no end"),
        "blip": ("vision", "depend on it"),
        "whisper": ("encoder", "depend on it"),
        "wav2vec2": ("encoder", "pos_conv_embed.conv is computed of others"),
    }[name]
    found = find(family, family.load(folder), ("width", "feed_forward"))
    assert tower not in found.widths
    assert any(note.startswith(f"{tower}: its width stays") and reason in note for note in found.notes)
