"""Small models for the task benchmarks: configurations, tokenizers and preprocessing, written beside each recipe."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from _task_data import RATE, read_rows

from mmcompress.data.scenes import answer_vocabulary, film_vocabulary, question_vocabulary
from mmcompress.families._texts import write_word_level_tokenizer

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def _write(folder: Path, name: str, value: Any) -> None:
    (folder / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _words(folder: Path, *columns: str) -> set[str]:
    """Words and marks of columns of the training table, as the word-level tokenizer splits them."""
    from tokenizers.pre_tokenizers import Whitespace

    texts = (str(row[column]).lower() for row in read_rows(folder / "train.jsonl") for column in columns)
    return {piece for text in texts for piece, _ in Whitespace().pre_tokenize_str(text)}


def _bert_tokenizer(words: Iterable[str], max_length: int, folder: Path) -> int:
    """A word-level tokenizer with BERT's special tokens; gives the size of its vocabulary."""
    from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers, processors
    from tokenizers.models import WordLevel

    entries = [*_SPECIAL, *sorted(set(words))]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(entries)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    _write(
        folder, "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", "model_max_length": max_length, **names}
    )
    return len(entries)


# --- speech --------------------------------------------------------------------------------------------------------


def digit_strings(folder: Path) -> None:
    """A Whisper of 4 + 4 layers of 96, which hears five seconds in frames of 20 ms."""
    write_word_level_tokenizer(DIGITS, 16, folder)
    layers = {"attention_heads": 4, "ffn_dim": 288, "layers": 4}
    _write(
        folder,
        "config.json",
        {
            "model_type": "whisper",
            "vocab_size": len(DIGITS) + 3,
            "num_mel_bins": 40,
            "d_model": 96,
            **{f"{half}_{name}": value for half in ("encoder", "decoder") for name, value in layers.items()},
            "max_source_positions": 125,
            "max_target_positions": 16,
            "decoder_start_token_id": 0,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 1,
            "suppress_tokens": [],
            "begin_suppress_tokens": [],
        },
    )
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    _write(folder, "small.json", {**config, "decoder_layers": 1})
    settings = {"feature_size": 40, "sampling_rate": RATE, "chunk_length": 5, "n_fft": 256, "hop_length": 160}
    _write(folder, "preprocessor_config.json", {"feature_extractor_type": "WhisperFeatureExtractor", **settings})


def digit_strings_ctc(folder: Path) -> None:
    """A Wav2Vec2 of 3 layers of 96 over frames of 20 ms, which spells."""
    from mmcompress.families._characters import BLANK, DELIMITER, write_characters

    tokens = (BLANK, DELIMITER, *sorted({letter for word in DIGITS for letter in word}))
    write_characters(tokens, folder)
    config = {
        "model_type": "wav2vec2",
        "vocab_size": len(tokens),
        "pad_token_id": 0,
        "hidden_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 288,
        "conv_dim": [32, 48, 64],
        "conv_kernel": [20, 8, 8],
        "conv_stride": [10, 4, 4],
        "conv_bias": True,
        "feat_extract_norm": "layer",
        "do_stable_layer_norm": False,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "final_dropout": 0.0,
        "feat_proj_dropout": 0.0,
    }
    _write(folder, "config.json", config)
    _write(folder, "small.json", {**config, "num_hidden_layers": 2})
    settings = {"sampling_rate": RATE, "do_normalize": True, "return_attention_mask": True, "padding_value": 0.0}
    extractor = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "feature_size": 1}
    _write(folder, "preprocessor_config.json", {**extractor, **settings})


# --- fusion --------------------------------------------------------------------------------------------------------


def av_digits(folder: Path) -> None:
    """A small picture transformer and a GRU over log-mel frames, joined early; trained with inputs left out."""

    def config(width: int, layers: int) -> dict[str, Any]:
        return {
            "model_type": "mmcompress-fusion",
            "inputs": [
                {"name": "image", "kind": "picture", "size": 28, "encoder": _vit(28, 7, width, layers)},
                {
                    "name": "audio",
                    "kind": "sound",
                    "rate": RATE,
                    "seconds": 1.0,
                    "mels": 32,
                    "hop": 0.016,
                    "encoder": {"kind": "gru", "width": width, "layers": 1},
                },
            ],
            "fusion": {"kind": "early", "hidden": [2 * width]},
            "output": {"kind": "class", "classes": [str(digit) for digit in range(10)]},
            "missing": 0.15,
        }

    _write(folder, "config.json", config(96, 4))
    _write(folder, "small.json", config(48, 2))


def grocery_fusion(folder: Path) -> None:
    """A small picture transformer and a GRU over five words, joined by cross-attention."""
    size = len(_words(folder, "text")) + 3
    write_word_level_tokenizer(_words(folder, "text"), 12, folder)
    classes = sorted({row["label"] for row in read_rows(folder / "train.jsonl")})

    def config(width: int, layers: int) -> dict[str, Any]:
        text = {"kind": "gru", "width": width, "layers": 1, "embedding": size}
        return {
            "model_type": "mmcompress-fusion",
            "inputs": [
                {"name": "image", "kind": "picture", "size": 64, "encoder": _vit(64, 8, width, layers)},
                {"name": "text", "kind": "text", "max_length": 12, "encoder": text},
            ],
            "fusion": {"kind": "intermediate", "width": width, "layers": 1, "heads": 4, "feed_forward": 2 * width},
            "output": {"kind": "class", "classes": classes},
            "missing": 0.15,
        }

    _write(folder, "config.json", config(128, 5))
    _write(folder, "small.json", config(64, 3))


def _vit(size: int, patch: int, width: int, layers: int) -> dict[str, Any]:
    return {
        "kind": "vit",
        "config": {
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "intermediate_size": 3 * width,
            "image_size": size,
            "patch_size": patch,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
    }


# --- pictures and language -----------------------------------------------------------------------------------------


def _vilt(classes: Sequence[str], size: int, **fields: Any) -> dict[str, Any]:
    return {
        "model_type": "vilt",
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "patch_size": 8,
        "vocab_size": size,
        "pad_token_id": 0,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        # Tokens and patches of a small model start too near each other to be told apart with the usual 0.02.
        "initializer_range": 0.1,
        "id2label": {str(index): name for index, name in enumerate(classes)},
        "label2id": {name: index for index, name in enumerate(classes)},
        **fields,
    }


def _vilt_pictures(folder: Path, shorter: int, patch: int = 8) -> None:
    settings = {"size": {"shortest_edge": shorter}, "size_divisor": patch, "resample": 3, **_HALF}
    _write(folder, "preprocessor_config.json", {"image_processor_type": "ViltImageProcessor", **settings})


def scenes_vqa(folder: Path) -> None:
    """A ViLT of 5 layers of 128; a patch is a cell of the scene."""
    size = _bert_tokenizer(question_vocabulary(), 24, folder)
    config = _vilt(answer_vocabulary(), size, image_size=48, patch_size=16, max_position_embeddings=24)
    _write(folder, "config.json", config)
    _write(folder, "small.json", {**config, "num_hidden_layers": 3})
    _vilt_pictures(folder, 48, 16)


def nlvr(folder: Path) -> None:
    """A ViLT of 5 layers of 128 on one picture of three boxes."""
    size = _bert_tokenizer(_words(folder, "text"), 40, folder)
    config = _vilt(("false", "true"), size, image_size=48, max_position_embeddings=40, num_images=1)
    _write(folder, "config.json", config)
    _write(folder, "small.json", {**config, "num_hidden_layers": 3})
    _vilt_pictures(folder, 48)


def emoji_naming(folder: Path) -> None:
    """A ViT of 6 layers of 160 and a GPT-2 of 3 layers of 128."""
    words = _words(folder, "text")
    write_word_level_tokenizer(words, 12, folder)
    tokens = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}

    def config(encoder: int, decoder: int) -> dict[str, Any]:
        return {
            "model_type": "vision-encoder-decoder",
            "decoder_start_token_id": 0,
            **tokens,
            "encoder": {"model_type": "vit", **_vit(48, 8, 160, encoder)["config"]},
            "decoder": {
                "model_type": "gpt2",
                "is_decoder": True,
                "add_cross_attention": True,
                "vocab_size": len(words) + 3,
                "n_embd": 128,
                "n_layer": decoder,
                "n_head": 4,
                "n_positions": 16,
                "n_inner": 384,
                "resid_pdrop": 0.0,
                "embd_pdrop": 0.0,
                "attn_pdrop": 0.0,
                **tokens,
            },
        }

    _write(folder, "config.json", config(6, 3))
    _write(folder, "small.json", config(3, 1))
    _square(folder, 48)


def _square(folder: Path, size: int) -> None:
    settings = {"size": {"height": size, "width": size}, "resample": 2, "rescale_factor": 1 / 255, **_HALF}
    _write(folder, "preprocessor_config.json", {"image_processor_type": "ViTImageProcessor", **settings})


def grocery_zero_shot(folder: Path) -> None:
    """A CLIP of 5 layers of 160 and 2 of 96 on photos and their names with words of their descriptions."""
    words = _words(folder, "name", "text", "coarse")
    write_word_level_tokenizer(words, 20, folder)

    def config(layers: int) -> dict[str, Any]:
        vision = {**_vit(64, 8, 160, layers)["config"], "num_attention_heads": 5}
        text = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 288}
        ids = {"vocab_size": len(words) + 3, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
        return {
            "model_type": "clip",
            "projection_dim": 96,
            "vision_config": vision,
            "text_config": {**text, **ids, "max_position_embeddings": 20},
        }

    _write(folder, "config.json", config(5))
    _write(folder, "small.json", config(2))
    _square(folder, 64)


def scenes_films(folder: Path) -> None:
    """A CLIP of 4 layers of 96 and 2 of 96, whose pictures are the mean over the frames of a film; a patch is a cell of the scene."""
    words = film_vocabulary()
    write_word_level_tokenizer(words, 32, folder)

    def config(layers: int) -> dict[str, Any]:
        vision = _vit(48, 16, 96, layers)["config"]
        text = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 288}
        ids = {"vocab_size": len(words) + 3, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
        return {
            "model_type": "clip",
            "projection_dim": 96,
            "vision_config": vision,
            "text_config": {**text, **ids, "max_position_embeddings": 32},
        }

    _write(folder, "config.json", config(4))
    _write(folder, "small.json", config(2))
    _square(folder, 48)
