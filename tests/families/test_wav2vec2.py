from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from small_wav2vec2 import RATE, TOKENS, speech_config, write_speech

from mmcompress import deploy
from mmcompress._sound import Sound
from mmcompress.errors import InputError, UsageError
from mmcompress.families import FromTeacher
from mmcompress.families._characters import Characters, collapse
from mmcompress.families._wav2vec2_model import ctc_loss
from mmcompress.families._wav2vec2_processing import Waves, WaveSettings, frame_count, receptive_field
from mmcompress.families.wav2vec2 import Wav2vec2

unit = pytest.mark.unit
torch.set_num_threads(1)
CLASSES = {str(number): name for number, name in enumerate(("low", "middle", "high", "none"))}
SPECIAL = {"apply_spec_augment": True, "mask_time_prob": 0.5, "mask_time_length": 2, "layerdrop": 0.5}
KINDS: dict[str, dict[str, Any]] = {
    "wav2vec2 layer": {},
    "hubert group": {"model_type": "hubert", "feat_extract_norm": "group", "do_stable_layer_norm": False},
    "hubert layer classes": {"model_type": "hubert", "use_weighted_layer_sum": True},
    "wav2vec2 group classes": {"feat_extract_norm": "group", "do_stable_layer_norm": False},
}


def make(folder: Path, kind: str = "wav2vec2 layer", **changes: Any) -> Wav2vec2:
    """A family component of random weights whose model folder is ``folder / "model"``."""
    folder.mkdir(parents=True, exist_ok=True)
    config = speech_config(**{**SPECIAL, **KINDS[kind], "id2label": CLASSES, "classifier_proj_size": 16, **changes})
    path = write_speech(folder, config, masked=config["feat_extract_norm"] == "layer")
    family = Wav2vec2(config=path, task="classify" if kind.endswith("classes") else "transcribe", max_seconds=1.0)
    family.write(folder / "model", 0)
    return family


@pytest.fixture(scope="module", params=list(KINDS))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Wav2vec2, Path]:
    folder = tmp_path_factory.mktemp("model")
    return make(folder, request.param), folder / "model"


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> tuple[Wav2vec2, Path]:
    folder = tmp_path_factory.mktemp("speech")
    return make(folder), folder / "model"


def sounds(*seconds: float, rate: int = RATE) -> list[Sound]:
    generator = np.random.default_rng(0)
    return [Sound(generator.normal(0.1, 0.2, round(s * rate)).astype(np.float32), rate) for s in seconds]


# --- processing ----------------------------------------------------------------------------------------------------


@unit
@pytest.mark.parametrize("normalize", [True, False])
def test_sounds_become_what_transformers_makes_of_them(speech: tuple[Wav2vec2, Path], normalize: bool) -> None:
    given = sounds(0.5, 0.31, 0.7)
    theirs = transformers.Wav2Vec2FeatureExtractor(
        sampling_rate=RATE, do_normalize=normalize, return_attention_mask=True
    )([sound.samples for sound in given], sampling_rate=RATE, padding=True, return_tensors="np")
    waves = Waves(WaveSettings(rate=RATE, normalize=normalize, masked=True), 1.0, 100)
    ours = waves.expand(waves.compact(given))
    assert np.array_equal(ours["input_values"], theirs["input_values"])
    assert np.array_equal(ours["sample_counts"], theirs["attention_mask"].sum(axis=1))


@unit
def test_texts_become_what_transformers_makes_of_them_and_back(speech: tuple[Wav2vec2, Path]) -> None:
    family, folder = speech
    theirs = transformers.Wav2Vec2CTCTokenizer.from_pretrained(folder)
    processor = family.processor(folder)
    texts = ["a b", "cab", "dad badcab"]
    found = processor.compact({"text": texts})["text"]
    assert [[token for token in row if token >= 0] for row in found.tolist()] == theirs(texts)["input_ids"]
    frames = np.random.default_rng(1).integers(0, len(TOKENS), (5, 40))
    logits = np.eye(len(TOKENS), dtype=np.float32)[frames]
    ours = processor.decode(collapse(logits, np.full(5, 40), processor.characters.blank_id))
    assert ours == theirs.batch_decode(frames)


@unit
def test_the_best_path_loses_repetitions_and_then_blanks() -> None:
    # Blank is 0; the third row ends after two frames.
    path = np.array([[1, 1, 0, 1, 2, 2], [0, 0, 0, 0, 0, 0], [3, 3, 1, 2, 1, 2]])
    found = collapse(np.eye(4, dtype=np.float32)[path], np.array([6, 6, 2]), 0)
    assert found.tolist() == [[1, 1, 2], [-1, -1, -1], [3, -1, -1]]


@unit
def test_capitals_and_small_letters_follow_the_vocabulary() -> None:
    tokens = {"<pad>": 0, "|": 1, "A": 2, "B": 3, "'": 4}
    capitals = Characters(tokens, "<pad>", "|", False, "vocab.json")
    found = capitals.encode(["ab a'"], 6)
    assert found.tolist() == [[2, 3, 1, 2, 4, -1]]
    assert capitals.decode(found) == ["AB A'"]
    assert Characters(tokens, "<pad>", "|", True, "vocab.json").decode(found) == ["ab a'"]


@unit
def test_frames_are_counted_as_convolutions_make_them() -> None:
    kernels, strides = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)
    assert receptive_field(kernels, strides) == 400
    assert [frame_count(n, kernels, strides) for n in (399, 400, 719, 720, 16_000)] == [0, 1, 1, 2, 49]


@unit
def test_a_sound_of_another_rate_is_resampled(speech: tuple[Wav2vec2, Path]) -> None:
    family, folder = speech
    time = np.arange(16_000) / 16_000
    tone = Sound(np.sin(2 * np.pi * 200 * time).astype(np.float32), 16_000)
    direct = Sound(np.sin(2 * np.pi * 200 * np.arange(RATE) / RATE).astype(np.float32), RATE)
    ours = family.processor(folder).encode({"audio": [tone, direct]})
    assert ours["sample_counts"].tolist() == [RATE, RATE]
    assert np.abs(ours["input_values"][0] - ours["input_values"][1])[100:-100].max() < 0.02


@unit
def test_silence_stays_silence(speech: tuple[Wav2vec2, Path]) -> None:
    family, folder = speech
    found = family.processor(folder).encode({"audio": [Sound(np.zeros(2000, np.float32), RATE)]})
    assert not found["input_values"].any()


@unit
@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("audio", Sound(np.zeros(RATE + 1, np.float32), RATE), "raise max_seconds"),
        ("audio", Sound(np.zeros(20, np.float32), RATE), "first frame"),
        ("audio", (np.zeros(0, np.float32), RATE), "empty"),
        ("text", "a 7", "'7'"),
        ("text", " ", "one word or more"),
        ("text", "a" * 100, "at most"),
        ("label", 1, "columns audio and text"),
    ],
)
def test_what_cannot_be_used_is_told(speech: tuple[Wav2vec2, Path], column: str, value: Any, message: str) -> None:
    family, folder = speech
    with pytest.raises(InputError, match=message):
        family.processor(folder).compact({column: [value]})


@unit
def test_a_label_that_is_no_class_is_told(tmp_path: Path) -> None:
    family = make(tmp_path, "wav2vec2 group classes")
    processor = family.processor(tmp_path / "model")
    assert processor.classes == ("low", "middle", "high", "none")
    assert processor.encode({"label": [3, 0]})["labels"].tolist() == [3, 0]
    with pytest.raises(InputError, match="4 is no class"):
        processor.compact({"label": [4]})


# --- outputs and losses --------------------------------------------------------------------------------------------


@unit
def test_outputs_and_graphs_equal_transformers(made: tuple[Wav2vec2, Path]) -> None:
    family, folder = made
    model: Any = family.load(folder, attention="eager")
    (graph,) = family.graphs(model)
    values = graph.inputs["input_values"]
    masked = model.config.feat_extract_norm == "layer"
    counts = graph.inputs["sample_counts"] if "sample_counts" in graph.inputs else torch.full((3,), values.shape[1])
    mask = (torch.arange(values.shape[1]) < counts[:, None]).long()
    with torch.inference_mode():
        theirs = model(values, attention_mask=mask if masked else None)
        ours = family.outputs(model, graph.inputs, family.provides())
        exported = graph.module(**graph.inputs)
        frames = model._get_feature_vector_attention_mask(ours["encoder.mask"].shape[1], mask)
    assert torch.equal(ours["encoder.logits"], theirs.logits)
    assert torch.allclose(exported["logits"], theirs.logits, atol=1e-5)
    assert torch.equal(ours["encoder.mask"], frames)
    assert len(ours["encoder.hidden_states"]) == len(ours["encoder.attentions"]) == 2
    assert ours["encoder.attentions"][0].sum(dim=-1).allclose(torch.ones(()))
    if "frames" in exported:
        assert torch.equal(exported["frames"], frames.sum(dim=1))


@unit
def test_training_draws_no_masks_and_leaves_out_no_layers(made: tuple[Wav2vec2, Path]) -> None:
    family, folder = made
    model = family.load(folder).train()
    (graph,) = family.graphs(model)
    model.train()
    first, second = (family.outputs(model, graph.inputs, frozenset({"encoder.logits"})) for _ in range(2))
    assert torch.equal(first["encoder.logits"], second["encoder.logits"])
    assert not [name for name, _ in model.named_parameters() if "masked_spec_embed" in name]


@unit
def test_ctc_sums_over_the_paths_of_a_text() -> None:
    # Two frames, tokens blank, a, b: "a" is spelled by the paths aa, a-, -a.
    p = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]])
    logits = torch.stack([p.log(), p.log()])
    mask = torch.tensor([[1, 1], [1, 0]])
    labels = torch.tensor([[1], [2]])
    expected = -(math.log(0.5 * 0.3 + 0.5 * 0.6 + 0.2 * 0.3) + math.log(0.3)) / 2
    assert float(ctc_loss(logits, mask, labels, 0)) == pytest.approx(expected, rel=1e-5)


@unit
def test_ctc_divides_by_the_length_of_the_text() -> None:
    p = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]])
    found = ctc_loss(p.log()[None], torch.ones(1, 2), torch.tensor([[1, 2, -1]]), 0)
    assert float(found) == pytest.approx(-math.log(0.5 * 0.1) / 2, rel=1e-5)


@unit
def test_a_text_that_its_sound_has_no_time_for_is_told() -> None:
    # Equal characters need a blank between them: three frames for two.
    with pytest.raises(InputError, match=r"2 characters needs 3 frames, and its sound has 2"):
        ctc_loss(torch.zeros(1, 2, 3), torch.ones(1, 2), torch.tensor([[1, 1]]), 0)


@unit
def test_the_task_loss_is_that_of_transformers(speech: tuple[Wav2vec2, Path]) -> None:
    family, folder = speech
    model: Any = family.load(folder)
    processor = family.processor(folder)
    batch = {
        name: torch.from_numpy(array)
        for name, array in processor.encode({"audio": sounds(0.5, 0.4), "text": ["ac bd", "bad"]}).items()
    }
    with torch.inference_mode():
        found = family.task_loss(family.outputs(model, batch, family.task_needs()), batch)
        mask = (torch.arange(batch["input_values"].shape[1]) < batch["sample_counts"][:, None]).long()
        labels = batch["labels"].masked_fill(batch["labels"] < 0, -100)
        model.config.ctc_loss_reduction = "mean"
        theirs = model(batch["input_values"], attention_mask=mask, labels=labels).loss
    assert float(found) == pytest.approx(float(theirs), rel=1e-5)


# --- model folders -------------------------------------------------------------------------------------------------


def logits_of(family: Wav2vec2, folder: Path) -> torch.Tensor:
    model = family.load(folder)
    (graph,) = family.graphs(model)
    with torch.inference_mode():
        found: torch.Tensor = graph.module(**graph.inputs)["logits"]
    return found


@unit
def test_published_names_of_weights_load(speech: tuple[Wav2vec2, Path], tmp_path: Path) -> None:
    family, folder = speech
    weights = load_file(folder / "model.safetensors")
    place = "wav2vec2.encoder.pos_conv_embed.conv."
    renamed = {
        name.replace(f"{place}parametrizations.weight.original0", f"{place}weight_g").replace(
            f"{place}parametrizations.weight.original1", f"{place}weight_v"
        ): tensor
        for name, tensor in weights.items()
    }
    assert f"{place}weight_g" in renamed and renamed.keys() != weights.keys()
    source = write_speech(tmp_path, speech_config(**SPECIAL)).parent
    # Published checkpoints of before and after fine-tuning differ in this one.
    save_file({**renamed, "wav2vec2.masked_spec_embed": torch.zeros(64)}, source / "model.safetensors")
    published = Wav2vec2(path=source, max_seconds=1.0)
    published.write(tmp_path / "model", 0)
    assert torch.equal(logits_of(published, tmp_path / "model"), logits_of(family, folder))


@unit
def test_weights_must_be_all_there(speech: tuple[Wav2vec2, Path], tmp_path: Path) -> None:
    _, folder = speech
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    source = write_speech(tmp_path, speech_config()).parent
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"missing: lm_head\.weight"):
        Wav2vec2(path=source).write(tmp_path / "model", 0)


@unit
@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("vocab.json", {"<pad>": 0, "|": 1, "a": 40}, "the token 'a' has number 40"),
        ("vocab.json", {"|": 0, "<pad>": 1}, "pad_token_id is 0"),
        ("vocab.json", {"eng": {"<pad>": 0, "|": 1}}, "several languages"),
        ("vocab.json", {"<pad>": 0, "a": 1}, "word delimiter"),
        ("preprocessor_config.json", {"feature_extractor_type": "WhisperFeatureExtractor"}, "Wav2Vec2FeatureExtractor"),
        ("config.json", speech_config(add_adapter=True), "adapters"),
    ],
)
def test_files_that_do_not_fit_are_told(tmp_path: Path, file: str, change: Any, message: str) -> None:
    config = write_speech(tmp_path, speech_config())
    (tmp_path / file).write_text(json.dumps(change))
    with pytest.raises(InputError, match=message):
        Wav2vec2(config=config).write(tmp_path / "model", 0)


@unit
def test_a_new_head_starts_at_random_and_the_rest_is_kept(speech: tuple[Wav2vec2, Path], tmp_path: Path) -> None:
    _, folder = speech
    before = load_file(folder / "model.safetensors")
    for task, head in (("classify", ("yes", "no", "maybe")), ("transcribe", ("<pad>", "|", "x"))):
        family = Wav2vec2.model_validate({"path": folder, "task": task, "new_head": head, "max_seconds": 1.0})
        family.write(tmp_path / task, 1)
        after = load_file(tmp_path / task / "model.safetensors")
        kept = [name for name in before if name.startswith("wav2vec2.")]
        assert len(kept) > 40 and all(torch.equal(before[name], after[name]) for name in kept)
        assert logits_of(family, tmp_path / task).shape[-1] == 3
    assert Wav2vec2(path=folder, task="classify").processor(tmp_path / "classify").classes == ("yes", "no", "maybe")
    with pytest.raises(InputError, match="missing"):
        Wav2vec2(path=folder, task="classify").write(tmp_path / "refused", 0)


@unit
def test_a_student_has_the_layers_that_are_asked_for(speech: tuple[Wav2vec2, Path], tmp_path: Path) -> None:
    family, folder = speech
    family.student(folder, FromTeacher(encoder_layers=(1,), encoder_feed_forward=32), tmp_path, 0)
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path))
    name = "wav2vec2.encoder.layers.{}.attention.q_proj.weight"
    assert torch.equal(after[name.format(0)], before[name.format(1)])
    model = transformers.Wav2Vec2ForCTC.from_pretrained(tmp_path)
    assert model.config.num_hidden_layers == 1 and model.config.intermediate_size == 32
    assert logits_of(family, tmp_path).shape[-1] == len(TOKENS)


@unit
def test_layers_whose_weighted_sum_is_read_stay(tmp_path: Path) -> None:
    family = make(tmp_path, "hubert layer classes")
    with pytest.raises(UsageError, match="weighted sum"):
        family.student(tmp_path / "model", FromTeacher(encoder_layers=1), tmp_path / "student", 0)


@unit
def test_pruned_models_load_bit_for_bit(made: tuple[Wav2vec2, Path], tmp_path: Path) -> None:
    from mmcompress.stages._pruning import Dependencies

    family, folder = made
    model = family.load(folder)
    dependencies = Dependencies(model, family.graphs(model), family.prunable(model))
    assert [block.groups for block in dependencies.blocks] == [4, 128, 4, 128]
    dependencies.cut(dependencies.blocks[0], [1, 2])
    dependencies.cut(dependencies.blocks[3], list(range(100)))
    (graph,) = family.graphs(model.eval())
    with torch.inference_mode():
        expected = graph.module(**graph.inputs)["logits"]
    family.save(model, folder, tmp_path)
    assert torch.equal(logits_of(family, tmp_path), expected)
    assert family.load(tmp_path).get_submodule(f"{model.base_model_prefix}.encoder.layers.0.attention").num_heads == 2


def test_the_exported_positional_convolution_has_one_weight(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    family = make(tmp_path, "hubert group", num_hidden_layers=1)
    facts = deploy.export(family, tmp_path / "model", tmp_path)["graphs"]["encoder_model"]
    assert facts["max_difference"] <= deploy.TOLERANCE
    graph = onnx.load(tmp_path / "encoder_model.onnx").graph
    constants = {tensor.name for tensor in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 4 and all(node.input[1] in constants for node in convolutions)
