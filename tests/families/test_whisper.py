"""What only the whisper family has: prompts, transcripts, searching as transformers does, sounds that are too long."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_whisper import RATE, SECONDS, multilingual, tiny, whisper_config, write_tiny
from transformers import PreTrainedTokenizerFast, WhisperForConditionalGeneration

from mmcompress._ask import ask
from mmcompress._sound import Sound
from mmcompress.errors import InputError, UsageError
from mmcompress.families import PADDING, Feeds, FromTeacher
from mmcompress.families.whisper import Whisper
from mmcompress.runtimes.torch import open_model
from mmcompress.stages._cutting import Budget, prune_model
from mmcompress.stages._pruning import Dependencies
from mmcompress.stages._weighing import rank_by_weights

torch.set_num_threads(1)
LIVELY = {"init_std": 0.4}
"""Random weights of a size that makes sounds matter."""


def noise(seconds: float, seed: int = 0) -> Sound:
    samples = np.random.default_rng(seed).standard_normal(round(seconds * RATE)) * 0.1
    return Sound(samples.astype(np.float32), RATE)


SOUNDS = [noise(0.2 + 0.25 * index, index) for index in range(7)]


def tokens_of(rows: Any, *end: int) -> list[list[int]]:
    """Rows of ours or of transformers, up to an end token."""
    kept = []
    for row in rows.tolist():
        stop = next((place for place, token in enumerate(row) if token in (PADDING, *end)), len(row))
        kept.append(row[:stop])
    return kept


# --- searching -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beams", [1, 2, 4])
def test_transcripts_equal_those_of_transformers(tmp_path: Path, beams: int) -> None:
    banned = {"suppress_tokens": [4, 7], "begin_suppress_tokens": [1, 5]}
    end = [1, 6, 9]  # random weights rarely meet one
    lengths: set[int] = set()
    for seed in range(4):
        family, folder = tiny(tmp_path / str(seed), seed, **LIVELY, **banned)
        values = json.loads((folder / "generation_config.json").read_text())
        (folder / "generation_config.json").write_text(json.dumps({**values, "eos_token_id": end}))
        family = family.model_copy(update={"beams": beams, "max_tokens": 9})
        model: Any = family.load(folder)
        feeds = family.processor(folder).encode({"audio": SOUNDS})
        ours = tokens_of(family.answer(open_model(family, folder, 1).run, "transcribe", feeds))
        features = torch.from_numpy(feeds["input_features"])
        search = {"num_beams": beams, "max_new_tokens": 9, "do_sample": False, "eos_token_id": end, "pad_token_id": 1}
        assert ours == tokens_of(model.generate(features, **search, **banned), *end)
        assert not any({4, 7} & set(row) for row in ours) and not any(row[:1] == [5] for row in ours)
        lengths.update(map(len, ours))
    assert len(lengths) > 2  # sequences ended early, at different places


def test_language_and_task_are_those_of_transformers(tmp_path: Path) -> None:
    _, folder = multilingual(tmp_path, 11, **LIVELY)
    for fields in ({"language": "de"}, {"language": "en", "task": "translate"}, {}):
        family = Whisper(path=folder, max_tokens=6, **fields)
        model: Any = family.load(folder)
        model.generation_config = type(model.generation_config).from_pretrained(folder)
        processor = family.processor(folder)
        feeds = processor.encode({"audio": SOUNDS})
        session = open_model(family, folder, 1)
        ours = tokens_of(family.answer(session.run, "transcribe", feeds), 0)
        features = torch.from_numpy(feeds["input_features"])
        # Without a task transformers' prompt says none, and Whisper was not trained on such.
        asked = {"task": "transcribe", **fields}
        theirs = model.generate(features, max_new_tokens=6, do_sample=False, num_beams=1, **asked)
        assert ours == tokens_of(theirs, 0)
        if not fields:
            spoken = set(model.detect_language(features).tolist())
            assert len(spoken) > 1  # or else the test could not tell
    with pytest.raises(InputError, match="which one the texts are in"):
        Whisper(path=folder).processor(folder).compact({"text": ["one"]})
    with pytest.raises(InputError, match=r"no language 'dd' \(did you mean 'de'"):
        Whisper(path=folder, language="dd").processor(folder)


def test_forced_length_is_the_same_work_for_all(tmp_path: Path) -> None:
    family, folder = tiny(tmp_path, **LIVELY)
    session = open_model(family, folder, 1)
    feeds = family.processor(folder).encode({"audio": SOUNDS})
    assert (family.answer(session.run, "transcribe", feeds, 7) != PADDING).sum(axis=1).tolist() == [7] * len(SOUNDS)
    # The model has 16 places, one of them for the prompt.
    assert family.answer(session.run, "transcribe", feeds, 32).shape == (len(SOUNDS), 15)


# --- prompts and texts ---------------------------------------------------------------------------------------------


def test_prompts_and_texts_by_hand(tmp_path: Path) -> None:
    _, folder = multilingual(tmp_path)
    processor = Whisper(path=folder, language="de").processor(folder)
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    (row,) = processor.compact({"text": ["zero one"]})["text"]
    prompt = theirs.convert_tokens_to_ids(["<|startoftranscript|>", "<|de|>", "<|transcribe|>", "<|notimestamps|>"])
    end = theirs.convert_tokens_to_ids("<|endoftext|>")
    words = theirs.encode(" zero one", add_special_tokens=False)
    tokens = [*prompt, *words, end]
    assert row[: len(tokens)].tolist() == tokens and (row[len(tokens) :] == PADDING).all()
    feeds = processor.expand({"text": np.stack([row, row])})
    assert feeds["decoder_input_ids"].tolist() == [tokens[:-1]] * 2
    assert feeds["labels"].tolist() == [[-100] * 3 + [*words, end]] * 2
    stamp = theirs.convert_tokens_to_ids("<|0.00|>")
    assert processor.decode(np.array([[*prompt, stamp, *words, end, PADDING]])) == ["zero one"]


def test_english_only_checkpoints_take_neither_language_nor_task(tmp_path: Path) -> None:
    family, folder = tiny(tmp_path)
    assert family.processor(folder).texts.settings.prompt == (0,)
    for fields in ({"language": "en"}, {"task": "translate"}):
        with pytest.raises(InputError, match="English-only"):
            Whisper(path=folder, **fields).processor(folder)
    values = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**values, "forced_decoder_ids": [[1, 9]]}))
    assert family.processor(folder).texts.settings.prompt == (0, 9)


def test_what_does_not_fit_is_told(tmp_path: Path) -> None:
    family, folder = tiny(tmp_path / "fits")
    processor = family.processor(folder)
    with pytest.raises(InputError, match="16 tokens, and the model has places for 15"):
        processor.compact({"text": [" ".join(["one"] * 16)]})
    with pytest.raises(InputError, match="expected max_tokens: 1 to 15"):
        Whisper(path=folder, max_tokens=16).processor(folder)
    with pytest.raises(InputError, match=r"40 bands and 100 frames\n  expected 80"):
        tiny(tmp_path / "bands", num_mel_bins=80)
    with pytest.raises(InputError, match="13 tokens, and the model knows 12"):
        tiny(tmp_path / "words", vocab_size=12)
    with pytest.raises(InputError, match="knows no model_type 'clip'"):
        Whisper(config=write_tiny(tmp_path / "other", model_type="clip")).write(tmp_path / "model", 0)
    with pytest.raises(InputError, match="an empty sound"):
        processor.compact({"audio": [(np.zeros(0, np.float32), RATE)]})
    with pytest.raises(UsageError, match="it answers: transcribe"):
        family.answer(lambda graph, feeds: {}, "caption", {})


def test_silence_and_other_rates_are_heard(tmp_path: Path) -> None:
    family, folder = tiny(tmp_path, **LIVELY)
    processor = family.processor(folder)
    silent = processor.encode({"audio": [(np.zeros(100, np.float32), RATE)]})["input_features"]
    assert np.unique(silent).tolist() == [-1.5]
    tone = np.sin(2 * np.pi * 440 * np.arange(2 * RATE) / (2 * RATE)).astype(np.float32)
    both = processor.encode({"audio": [Sound(tone, 2 * RATE), Sound(tone[::2].copy(), RATE)]})["input_features"]
    middle = both[:, :, 5:40]
    loud = middle > 0
    assert loud.any() and np.abs(middle[0] - middle[1])[loud[0]].max() < 0.05


# --- long sounds ---------------------------------------------------------------------------------------------------


def test_a_long_sound_is_split_and_its_transcripts_joined(tmp_path: Path) -> None:
    family, folder = tiny(tmp_path, **LIVELY)
    session, processor = open_model(family, folder, 1), family.processor(folder)
    first, second = noise(SECONDS * 0.8, 1).samples, noise(SECONDS * 0.9, 2).samples
    pause = np.zeros(round(SECONDS * 0.1 * RATE), np.float32)
    long = Sound(np.concatenate([first, pause, second]), RATE)

    def texts(sounds: list[Any]) -> list[str]:
        return processor.decode(ask(family, processor, session.run, "transcribe", {"audio": sounds}))

    feeds = processor.encode({"audio": [SOUNDS[0], long, SOUNDS[1]]})
    assert feeds["chunks"].tolist() == [1, 2, 1] and len(feeds["input_features"]) == 4
    found = texts([SOUNDS[0], long, SOUNDS[1]])
    pieces = processor.sounds.compact([long])["audio"]
    assert len(pieces) == 2
    parts = [texts([SOUNDS[0]])[0], texts([SOUNDS[1]])[0]]
    assert [found[0], found[2]] == parts
    halves = family.answer(
        session.run, "transcribe", {**processor.encode({"audio": SOUNDS[:2]}), "input_features": pieces}
    )
    assert found[1] == " ".join(processor.decode(halves))


def test_a_long_sound_is_not_trained_on(tmp_path: Path) -> None:
    family, folder = tiny(tmp_path)
    processor = family.processor(folder)
    encoded = processor.encode({"audio": [noise(SECONDS * 1.5)], "text": ["one"]})
    batch = {name: torch.from_numpy(array) for name, array in encoded.items()}
    with pytest.raises(InputError, match="longer than what the model hears"):
        family.outputs(family.load(folder), batch, family.task_needs())


# --- training and cutting ------------------------------------------------------------------------------------------


def batch_of(family: Whisper, folder: Path) -> dict[str, torch.Tensor]:
    feeds: Feeds = family.processor(folder).encode({"audio": SOUNDS[:3], "text": ["one two", "three", "four five six"]})
    return {name: torch.from_numpy(array) for name, array in feeds.items()}


def test_outputs_and_loss_are_those_of_transformers(tmp_path: Path) -> None:
    family, folder = tiny(tmp_path)
    model: Any = family.load(folder, attention="eager")
    batch = batch_of(family, folder)
    with torch.no_grad():
        outputs = family.outputs(model, batch, family.provides())
        theirs = model(
            batch["input_features"],
            decoder_input_ids=batch["decoder_input_ids"],
            labels=batch["labels"],
            output_hidden_states=True,
        )
    assert torch.equal(outputs["decoder.logits"], theirs.logits)
    assert torch.equal(outputs["decoder.hidden_states"][-1], theirs.decoder_hidden_states[-1])
    assert torch.equal(outputs["encoder.hidden_states"][-1], theirs.encoder_last_hidden_state)
    assert [len(outputs[f"{part}.attentions"]) for part in ("encoder", "decoder")] == [1, 2]
    # One of the prompt, then the words and the end token: the mask counts what is learned.
    assert outputs["decoder.mask"].sum(dim=1).tolist() == [3, 2, 4]
    assert outputs["encoder.mask"].shape == (3, 50)
    assert torch.allclose(family.task_loss(outputs, batch), theirs.loss)
    with pytest.raises(UsageError, match="it gives: "):
        family.outputs(model, batch, frozenset({"vision.embeds"}))


def test_students_keep_the_encoder_and_take_a_shallow_decoder(tmp_path: Path) -> None:
    family, folder = tiny(tmp_path, decoder_layers=3, encoder_layers=2)
    family.student(folder, FromTeacher.model_validate({"decoder_layers": 2}), tmp_path / "student", 0)
    student = WhisperForConditionalGeneration.from_pretrained(tmp_path / "student").state_dict()
    teacher = family.load(folder).state_dict()
    assert torch.equal(student["model.decoder.layers.1.fc1.weight"], teacher["model.decoder.layers.2.fc1.weight"])
    assert torch.equal(student["model.encoder.layers.1.fc1.weight"], teacher["model.encoder.layers.1.fc1.weight"])
    assert not any(name.startswith("model.decoder.layers.2.") for name in student)
    assert json.loads((tmp_path / "student" / "config.json").read_text())["decoder_layers"] == 2
    narrow = FromTeacher.model_validate({"decoder_feed_forward": 32, "encoder_feed_forward": 64})
    family.student(folder, narrow, tmp_path / "narrow", 0)
    assert family.load(tmp_path / "narrow").get_submodule("model.decoder.layers.0.fc1").weight.shape == (32, 64)


def test_pruning_cuts_all_attentions_and_is_rebuilt_bit_for_bit(tmp_path: Path) -> None:
    family, folder = tiny(tmp_path)
    model: Any = family.load(folder)
    names = {block.name for block in Dependencies(model, family.traced(model), family.prunable(model)).blocks}
    layer = {"attention", "cross_attention", "feed_forward"}
    assert names == {f"decoder.layers.{index}.{part}" for index in (0, 1) for part in layer} | {
        "encoder.layers.0.attention",
        "encoder.layers.0.feed_forward",
    }
    facts = prune_model(
        family, model, Budget("macs", 0.6), lambda blocks: rank_by_weights(model, blocks, "magnitude", 0)
    )
    assert abs(facts["ratio"] - 0.6) < 0.05
    heads = {name: cut["heads"][1] for name, cut in facts["blocks"].items() if "heads" in cut}
    assert any(count < 4 for name, count in heads.items() if "cross" in name)
    family.save(model, folder, tmp_path / "pruned")
    again = family.load(tmp_path / "pruned")
    assert all(
        torch.equal(one, other)
        for one, other in zip(model.state_dict().values(), again.state_dict().values(), strict=True)
    )
    # A step with a cache reads what a whole text at once reads.
    batch = batch_of(family, folder)
    ids = batch["decoder_input_ids"]
    with torch.no_grad():
        whole = family.outputs(again, batch, frozenset({"decoder.logits"}))["decoder.logits"]
        graphs = {graph.name: graph.module for graph in family.graphs(again)}
        state = graphs["encoder_model"](input_features=batch["input_features"])
        for place in range(ids.shape[1]):
            stepped = graphs["decoder_model"](input_ids=ids[:, place : place + 1], **state)
            assert torch.allclose(stepped["logits"][:, 0], whole[:, place], atol=1e-5)
            grown = {f"past.{n.removeprefix('present.')}": v for n, v in stepped.items() if n != "logits"}
            state = {**state, **grown}


def test_a_checkpoint_of_transformers_is_loaded_strictly(tmp_path: Path) -> None:
    _, folder = tiny(tmp_path)
    source = tmp_path / "source"
    model = WhisperForConditionalGeneration.from_pretrained(folder)
    model.save_pretrained(source)
    (source / "config.json").write_text(json.dumps(whisper_config()))
    Whisper(path=source).write(tmp_path / "again", 0)
    ours, theirs = Whisper(path=source).load(tmp_path / "again").state_dict(), model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    (source / "config.json").write_text(json.dumps(whisper_config(encoder_layers=2)))
    with pytest.raises(InputError, match=r"missing: model.encoder.layers.1"):
        Whisper(path=source).write(tmp_path / "broken", 0)
