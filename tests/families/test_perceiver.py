"""What the perceiver family alone has: three kinds of input, transformers' bytes and pictures, blocks that run several times."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from small_perceiver import SUBJECTS, config
from transformers.models.perceiver.image_processing_pil_perceiver import PerceiverImageProcessorPil

from mmcompress import deploy
from mmcompress._sound import Sound
from mmcompress.errors import InputError, UsageError
from mmcompress.families import FromTeacher
from mmcompress.families.perceiver import Perceiver
from mmcompress.stages._cutting import Budget, prune_model
from mmcompress.stages._weighing import rank_by_weights

SIDE, RATE, SAMPLES, PATCH = 16, 4_000, 240, 16
PICTURES = ("Learned", "Fourier", "ConvProcessing")
KINDS = ("text", *PICTURES, "sound")
CLASSES = ("high", "low")


def write_source(folder: Path, kind: str, **changes: Any) -> Path:
    """Configuration and processing files of a kind; gives the configuration's path."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {"id2label": dict(enumerate(SUBJECTS)), "label2id": {name: n for n, name in enumerate(SUBJECTS)}}
    fields: dict[str, Any] = {**names, "d_latents": 32, "d_model": 24}
    if kind in PICTURES:
        fields |= {"architectures": [f"PerceiverForImageClassification{kind}"], "image_size": SIDE}
        fields |= {"num_cross_attention_heads": 1}
        settings = {"image_processor_type": "PerceiverImageProcessor", "size": SIDE, "crop_size": SIDE + 4}
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    elif kind == "sound":
        fields |= {"architectures": ["PerceiverForAudioClassification"], "samples_per_patch": PATCH}
        fields |= {"num_frames": 3, "audio_samples_per_frame": SAMPLES // 3, "num_cross_attention_heads": 1}
        waves = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": RATE}
        (folder / "preprocessor_config.json").write_text(json.dumps(waves))
    (folder / "config.json").write_text(json.dumps({**config(), **fields, **changes}))
    return folder / "config.json"


def task_of(kind: str) -> str:
    return "picture" if kind in PICTURES else kind


@cache
def _made(kind: str, root: Path) -> tuple[Perceiver, Path]:
    family = Perceiver.model_validate({"config": write_source(root / f"{kind}-source", kind), "task": task_of(kind)})
    family.write(root / kind, 0)
    return family, root / kind


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tmp_path_factory.mktemp("perceiver")


@pytest.fixture(params=KINDS)
def made(request: pytest.FixtureRequest, root: Path) -> tuple[Perceiver, Path]:
    return _made(request.param, root)


def logits_of(family: Perceiver, model: Any) -> torch.Tensor:
    (graph,) = family.graphs(model)
    with torch.inference_mode():
        found: torch.Tensor = graph.module(**graph.inputs)["logits"]
    return found


# --- processing ----------------------------------------------------------------------------------------------------


def test_texts_become_the_tokens_of_transformers(root: Path) -> None:
    family, folder = _made("text", root)
    texts = ["", "a b", "Größe 日本 🙂\n\t ", "[MASK] and [CLS][SEP] [X]", "long " * 20]
    theirs = transformers.PerceiverTokenizer(model_max_length=40)(texts, padding=True, truncation=True)
    ours = family.processor(folder).encode({"text": texts})
    assert ours["input_ids"].tolist() == theirs["input_ids"]
    assert ours["attention_mask"].tolist() == theirs["attention_mask"]
    assert ours["input_ids"].shape == (5, 40)


def test_a_text_whose_end_would_be_left_out_is_refused(root: Path) -> None:
    family, folder = _made("text", root)
    (encoder,) = family.processor(folder).text_encoders.values()
    encoder.refuse_long(["a" * 38, "é" * 19, "[MASK]" * 38])
    with pytest.raises(InputError, match="has 2 tokens more than the 40 that the model takes"):
        encoder.refuse_long(["short", "é" * 20])


def test_pictures_become_what_transformers_makes_of_them(root: Path) -> None:
    family, folder = _made("Fourier", root)
    rng = np.random.default_rng(0)
    sizes = [(30, 20), (20, 33), (7, 50), (16, 16), (1, 1), (41, 41)]
    pictures = [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]
    their = PerceiverImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, crop_size={"height": SIDE + 4, "width": SIDE + 4}
    )
    found = family.processor(folder).encode({"image": pictures})["pixel_values"]
    # transformers cuts a picture of one pixel down to none and fails; here the pixel stays.
    kept = [index for index, size in enumerate(sizes) if size != (1, 1)]
    expected = their([pictures[index] for index in kept], return_tensors="np")["pixel_values"]
    assert np.allclose(found[kept], expected, atol=1e-5)
    assert found[4].std(axis=(1, 2)).max() < 1e-6


def test_sounds_are_filled_up_and_counted(root: Path) -> None:
    family, folder = _made("sound", root)
    rng = np.random.default_rng(0)
    waves = [rng.normal(0.3, 0.1, count).astype(np.float32) for count in (SAMPLES, 33)]
    theirs = transformers.Wav2Vec2FeatureExtractor(sampling_rate=RATE, do_normalize=True, return_attention_mask=True)(
        waves, sampling_rate=RATE, padding="max_length", max_length=SAMPLES, return_tensors="np"
    )["input_values"]
    ours = family.processor(folder).encode({"audio": [Sound(wave, RATE) for wave in waves]})
    assert np.allclose(ours["input_values"][0], theirs[0], atol=1e-5)
    assert np.allclose(ours["input_values"][1, :33], theirs[1, :33], atol=1e-5)
    assert not ours["input_values"][1, 33:].any()
    assert ours["sample_counts"].tolist() == [SAMPLES, 33]


@pytest.mark.parametrize(
    ("kind", "column", "value", "message"),
    [
        ("text", "text", 7, "expected a string"),
        ("text", "text", "\ud800", "UTF-8"),
        ("text", "image", "a.png", "expected the columns label, text"),
        ("text", "label", 4, "4 is no class"),
        ("Learned", "image", b"no picture", "picture 1 of 1"),
        ("sound", "audio", Sound(np.zeros(SAMPLES + 1, np.float32), RATE), "Split the sound"),
        ("sound", "audio", Sound(np.zeros(0, np.float32), RATE), "empty"),
    ],
)
def test_what_cannot_be_used_is_told(root: Path, kind: str, column: str, value: Any, message: str) -> None:
    family, folder = _made(kind, root)
    with pytest.raises(InputError, match=message):
        family.processor(folder).compact({column: [value]})


# --- outputs -------------------------------------------------------------------------------------------------------


def test_outputs_are_those_of_transformers(made: tuple[Perceiver, Path]) -> None:
    family, folder = made
    model: Any = family.load(folder)
    (graph,) = family.graphs(model)
    inputs = dict(graph.inputs)
    want = family.provides()
    if family.task == "sound":
        patches = torch.arange(SAMPLES // PATCH) * PATCH
        mask = (patches < inputs["sample_counts"][:, None]).long()
        call = {"inputs": inputs["input_values"], "attention_mask": mask}
    elif family.task == "picture":
        call = {"inputs": inputs["pixel_values"]}
    else:
        call = {"inputs": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
    with torch.inference_mode():
        theirs = model.perceiver(**call, output_hidden_states=True, output_attentions=True)
        ours = family.outputs(model, inputs, want)
        whole = model(**call).logits if family.task != "sound" else theirs.logits
    assert torch.allclose(ours["fusion.logits"], whole, atol=1e-5)
    assert not torch.allclose(whole[0], whole[1], atol=1e-3)
    # Two blocks of two layers; transformers shows what enters each layer, and what leaves each block.
    assert len(ours["encoder.hidden_states"]) == len(ours["encoder.attentions"]) == 4
    leaving = [theirs.hidden_states[index] for index in (1, 2, 4, 5)]
    assert all(map(lambda a, b: torch.allclose(a, b, atol=1e-5), ours["encoder.hidden_states"], leaving))
    assert all(map(lambda a, b: torch.allclose(a, b, atol=1e-5), ours["encoder.attentions"], theirs.attentions))
    assert ours["encoder.mask"].tolist() == [[1.0] * 8] * 3


def test_padding_changes_nothing(root: Path) -> None:
    family, folder = _made("text", root)
    model, processor = family.load(folder), family.processor(folder)
    alone = processor.encode({"text": ["rain"]})
    padded = processor.encode({"text": ["rain", "a much longer sentence than that"]})
    with torch.inference_mode():
        one, other = (
            family.outputs(model, {k: torch.from_numpy(v) for k, v in feeds.items()}, frozenset({"fusion.logits"}))
            for feeds in (alone, padded)
        )
    assert torch.allclose(one["fusion.logits"][0], other["fusion.logits"][0], atol=1e-6)


def test_the_loss_is_cross_entropy(root: Path) -> None:
    family, _ = _made("text", root)
    logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    found = family.task_loss({"fusion.logits": logits}, {"labels": torch.tensor([0, 2])})
    expected = (np.log(np.exp([2.0, 0.0, 1.0]).sum()) - 2.0 + np.log(3.0)) / 2
    assert float(found) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "kind",
    ["Fourier", "sound", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("Learned", "ConvProcessing"))],
)
def test_graphs_equal_torch(kind: str, tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", kind, num_blocks=1, num_self_attends_per_block=1)
    family = Perceiver.model_validate({"config": source, "task": task_of(kind)})
    family.write(tmp_path / "model", 0)
    facts = deploy.export(family, tmp_path / "model", tmp_path)["graphs"]["model"]
    assert facts["max_difference"] <= deploy.TOLERANCE
    # Fourier features follow from the sizes alone.
    assert not {"Sin", "Cos", "Range"} & facts["operators"].keys()


# --- model folders -------------------------------------------------------------------------------------------------


def test_weights_must_be_all_there(root: Path, tmp_path: Path) -> None:
    _, folder = _made("Learned", root)
    source = write_source(tmp_path / "source", "Learned").parent
    weights = load_file(folder / "model.safetensors")
    del weights["perceiver.embeddings.latents"]
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"missing: perceiver\.embeddings\.latents"):
        Perceiver(path=source, task="picture").write(tmp_path / "model", 0)


@pytest.mark.parametrize(
    ("kind", "file", "change", "message"),
    [
        ("text", "config.json", {"architectures": ["PerceiverForMaskedLM"]}, "PerceiverForSequenceClassification"),
        ("Learned", "config.json", {"architectures": None}, "names nothing"),
        ("Learned", "config.json", {"architectures": ["PerceiverForOpticalFlow"]}, "Learned or .*Fourier"),
        ("Learned", "preprocessor_config.json", {"size": 32}, "pictures of 32 x 32"),
        ("text", "config.json", {"vocab_size": 100}, "vocab_size 100"),
        ("text", "tokenizer_config.json", {"tokenizer_class": "BertTokenizer"}, "a BertTokenizer"),
        ("sound", "config.json", {"samples_per_patch": 7}, "patches of 7"),
    ],
)
def test_files_that_do_not_fit_are_told(tmp_path: Path, kind: str, file: str, change: Any, message: str) -> None:
    source = write_source(tmp_path, kind)
    before = json.loads((tmp_path / file).read_text()) if (tmp_path / file).is_file() else {}
    (tmp_path / file).write_text(json.dumps({**before, **change}))
    family = Perceiver.model_validate({"config": source, "task": task_of(kind)})
    with pytest.raises(InputError, match=message):
        family.write(tmp_path / "model", 0)


def test_a_model_that_fills_in_bytes_gets_a_decoder_for_classes(tmp_path: Path) -> None:
    fields = {**config(), "architectures": ["PerceiverForMaskedLM"], "d_latents": 64, "d_model": 48}
    torch.manual_seed(0)
    theirs = transformers.PerceiverForMaskedLM(transformers.PerceiverConfig.from_dict(fields))
    theirs.save_pretrained(tmp_path / "source")
    family = Perceiver(path=tmp_path / "source", new_head=CLASSES)
    family.write(tmp_path / "model", 0)
    model: Any = Perceiver(path=tmp_path / "model").load(tmp_path / "model")
    encoder = model.perceiver.encoder.state_dict()
    assert all(torch.equal(value, encoder[name]) for name, value in theirs.perceiver.encoder.state_dict().items())
    assert logits_of(family, model).shape == (3, 2)
    assert family.processor(tmp_path / "model").classes == CLASSES


def test_a_new_last_layer_starts_at_random_also_for_as_many_classes(root: Path, tmp_path: Path) -> None:
    _, folder = _made("Fourier", root)
    names = ("a", "b", "c", "d")
    family = Perceiver(path=folder, task="picture", new_head=names)
    family.write(tmp_path, 1)
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"perceiver.decoder.decoder.final_layer.weight"}
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [
        "PerceiverForImageClassificationFourier"
    ]
    assert family.processor(tmp_path).classes == names


def test_a_student_has_fewer_layers_per_block_and_opens_with_transformers(root: Path, tmp_path: Path) -> None:
    family, folder = _made("ConvProcessing", root)
    family.student(folder, FromTeacher(encoder_layers=(1,)), tmp_path, 0)
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path))
    name = "perceiver.encoder.self_attends.{}.mlp.dense1.weight"
    assert torch.equal(after[name.format(0)], before[name.format(1)]) and name.format(1) not in after
    theirs = transformers.PerceiverForImageClassificationConvProcessing.from_pretrained(tmp_path).eval()
    model: Any = family.load(tmp_path)
    assert theirs.config.num_self_attends_per_block == 1 and theirs.config.num_blocks == 2
    (graph,) = family.graphs(model)
    with torch.inference_mode():
        assert torch.allclose(theirs(**graph.inputs).logits, logits_of(family, model), atol=1e-5)
    with pytest.raises(UsageError, match="encoder_layers: 3"):
        family.student(folder, FromTeacher(encoder_layers=3), tmp_path / "no", 0)


@pytest.mark.parametrize(("kind", "ratio"), [("text", 0.6), ("Learned", 0.985)])
def test_a_pruned_model_is_narrower_and_loads_bit_for_bit(kind: str, ratio: float, root: Path, tmp_path: Path) -> None:
    family, folder = _made(kind, root)
    model = family.load(folder)
    facts = prune_model(
        family,
        model,
        Budget("parameters", ratio),
        lambda blocks: rank_by_weights(model, blocks, "magnitude", 0),
        relative=True,
    )
    assert {name.rpartition(".")[2] for name in facts["blocks"]} == {"attention", "feed_forward"}
    expected = logits_of(family, model.eval())
    family.save(model, folder, tmp_path)
    again: Any = family.load(tmp_path)
    assert torch.equal(logits_of(family, again), expected)
    heads = [layer.attention.self.num_heads for layer in again.perceiver.encoder.self_attends]
    widths = [layer.mlp.dense1.out_features for layer in again.perceiver.encoder.self_attends]
    assert min(heads) < 4 or min(widths) < 64


def test_heads_stay_where_keys_are_narrower_than_values(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", "text", qk_channels=16, v_channels=32)
    family = Perceiver(config=source)
    family.write(tmp_path / "model", 0)
    blocks = [item.block for item in family.prunable(family.load(tmp_path / "model"))]
    assert blocks == [
        "encoder.cross_attention.feed_forward",
        "encoder.layers.0.feed_forward",
        "encoder.layers.1.feed_forward",
        "decoder.feed_forward",
    ]
