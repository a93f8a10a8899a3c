"""Tiny Whisper checkpoints: a word-level or a byte-level tokenizer, two seconds of sound at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmcompress.data.codes import DIGITS
from mmcompress.families._texts import write_word_level_tokenizer
from mmcompress.families.whisper import Whisper

RATE, SECONDS = 4_000, 2


def whisper_config(**changes: Any) -> dict[str, Any]:
    config = {
        "model_type": "whisper",
        "vocab_size": len(DIGITS) + 3,
        "num_mel_bins": 40,
        "d_model": 64,
        "encoder_layers": 1,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 128,
        "decoder_layers": 2,
        "decoder_attention_heads": 4,
        "decoder_ffn_dim": 128,
        "max_source_positions": 50,
        "max_target_positions": 16,
        "decoder_start_token_id": 0,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
        "suppress_tokens": [],
        "begin_suppress_tokens": [],
        "init_std": 0.05,
    }
    return {**config, **changes}


def extractor() -> dict[str, Any]:
    return {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": 40,
        "sampling_rate": RATE,
        "chunk_length": SECONDS,
        "n_fft": 200,
        "hop_length": 80,
    }


def write_tiny(folder: Path, **changes: Any) -> Path:
    """The files of a small checkpoint without weights, which ``config:`` takes."""
    folder.mkdir(parents=True, exist_ok=True)
    write_word_level_tokenizer(DIGITS, 16, folder)
    (folder / "config.json").write_text(json.dumps(whisper_config(**changes)))
    (folder / "preprocessor_config.json").write_text(json.dumps(extractor()))
    return folder / "config.json"


def tiny(folder: Path, seed: int = 0, **changes: Any) -> tuple[Whisper, Path]:
    """A family component and its model folder, of random weights."""
    family = Whisper(config=write_tiny(folder / "source", **changes))
    family.write(folder / "model", seed)
    return family, folder / "model"


def multilingual(folder: Path, seed: int = 0, **changes: Any) -> tuple[Whisper, Path]:
    """A checkpoint of two languages with a byte-level tokenizer and a generation_config.json, as published ones have."""
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE

    source = folder / "source"
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>", "<|transcribe|>"]
    special.append("<|notimestamps|>")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE({letter: index for index, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken("<|0.00|>", normalized=False)])
    ids = {token: tokenizer.token_to_id(token) for token in special}
    start, end = ids["<|startoftranscript|>"], ids["<|endoftext|>"]
    tokens = {"decoder_start_token_id": start, "bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    config = {"vocab_size": tokenizer.get_vocab_size(), "max_target_positions": 24, **tokens, **changes}
    write_tiny(source, **config)
    (source / "tokenizer.json").write_text(tokenizer.to_str())
    generation = {
        **tokens,
        "is_multilingual": True,
        "lang_to_id": {token: ids[token] for token in ("<|en|>", "<|de|>")},
        "task_to_id": {task: ids[f"<|{task}|>"] for task in ("transcribe", "translate")},
        "no_timestamps_token_id": ids["<|notimestamps|>"],
        "forced_decoder_ids": [[1, None], [2, ids["<|transcribe|>"]]],
        "suppress_tokens": [3, 4],
        "begin_suppress_tokens": [5],
        "max_length": 24,
    }
    (source / "generation_config.json").write_text(json.dumps(generation))
    family = Whisper(config=source / "config.json")
    family.write(folder / "model", seed)
    return family, folder / "model"
