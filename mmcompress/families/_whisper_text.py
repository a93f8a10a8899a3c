"""Texts for Whisper and from it: the tokens before a transcript, those that are never written, and what tokens say.

All of it comes from the checkpoint's own ``generation_config.json``, ``config.json`` and ``tokenizer.json``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from mmcompress.component import nearest
from mmcompress.errors import InputError
from mmcompress.families import PADDING
from mmcompress.families._images import read_object
from mmcompress.families._texts import load_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Task = Literal["transcribe", "translate"]
GENERATION = "generation_config.json"
GENERATION_KEYS = (
    "decoder_start_token_id",
    "eos_token_id",
    "pad_token_id",
    "forced_decoder_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
    "max_length",
)
"""What configurations of before transformers 4.26 hold themselves."""
_TIMESTAMP = re.compile(r"<\|\d+\.\d+\|>")
_LANGUAGE = re.compile(r"<\|([a-z]{2,3})\|>")
_IGNORED = -100
"""Stands in labels where a token is given and not learned."""


class TranscriptSettings(BaseModel):
    """How a transcript begins, ends and is searched for, resolved."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: tuple[int, ...]
    """Tokens before every transcript; :data:`PADDING` in place of a language that the model has to tell."""
    languages: tuple[int, ...] = ()
    """Tokens of the languages to choose from; empty where the prompt is complete."""
    end: tuple[int, ...]
    suppress: tuple[int, ...] = ()
    suppress_first: tuple[int, ...] = ()
    positions: int
    """Tokens that the decoder has places for, the prompt among them."""
    max_tokens: int
    """At most, per chunk of sound."""
    leading_space: bool
    """Whether a space stands before a transcript, as in byte-level vocabularies, whose words begin with one."""

    @property
    def room(self) -> int:
        """Places after the prompt."""
        return self.positions - len(self.prompt)


def read_transcript_settings(
    folder: Path, language: str | None, task: Task, max_tokens: int | None
) -> TranscriptSettings:
    """The settings of a model folder or package.

    Raises:
        InputError: files that are missing or do not fit, a language that the checkpoint does not know, a language or a
            translation asked of an English-only checkpoint, more tokens than the model has places for.
    """
    config, file = read_object(folder / "config.json"), folder / GENERATION
    values = read_object(file)
    start, end = values.get("decoder_start_token_id"), values.get("eos_token_id")
    if not isinstance(start, int) or not isinstance(end, (int, list)):
        raise InputError(f"{file}: expected decoder_start_token_id and eos_token_id")
    prompt, languages = _prompt(values, load_tokenizer(folder), file, language, task)
    size, positions = int(config["vocab_size"]), int(config["max_target_positions"])
    most = min(int(values.get("max_length") or positions), positions) - len(prompt)
    if most < 1 or (max_tokens is not None and max_tokens > positions - len(prompt)):
        raise InputError(
            f"{folder}: the model has {positions} places for tokens, {len(prompt)} for the prompt"
            f"\n  expected max_tokens: 1 to {positions - len(prompt)}"
        )

    def tokens(name: str) -> tuple[int, ...]:
        return tuple(int(token) for token in values.get(name) or () if 0 <= token < size)

    return TranscriptSettings(
        prompt=prompt,
        languages=languages,
        end=(end,) if isinstance(end, int) else tuple(end),
        suppress=tokens("suppress_tokens"),
        suppress_first=tokens("begin_suppress_tokens"),
        positions=positions,
        max_tokens=max_tokens or most,
        leading_space=_is_byte_level(folder),
    )


def _prompt(
    values: Mapping[str, Any], tokenizer: Tokenizer, file: Path, language: str | None, task: Task
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The prompt, and the languages to choose from (Radford et al., arXiv:2212.04356, figure 1)."""
    start = int(values["decoder_start_token_id"])
    forced = [pair[1] for pair in sorted(values.get("forced_decoder_ids") or [])]
    silent = values.get("no_timestamps_token_id", tokenizer.token_to_id("<|notimestamps|>"))
    known = dict(values.get("lang_to_id") or {})
    multilingual = values.get("is_multilingual", bool(known) or len(forced) > 1)
    if not multilingual:
        if language is not None or task != "transcribe":
            raise InputError(f"{file}: an English-only checkpoint\n  Leave language out, and task at transcribe.")
        tokens = [start, *(token for token in forced if token is not None)]
        return (*tokens, *_missing(silent, tokens)), ()
    if not known:
        known = {token: index for token, index in tokenizer.get_vocab().items() if _LANGUAGE.fullmatch(token)}
    of_task = (values.get("task_to_id") or {}).get(task, tokenizer.token_to_id(f"<|{task}|>"))
    if of_task is None or not known:
        raise InputError(f"{file}: no tokens of languages and tasks, nor has the tokenizer any")
    if language is not None:
        if f"<|{language}|>" not in known:
            codes = sorted(token.strip("<|>") for token in known)
            raise InputError(
                f"{file}: the checkpoint knows no language {language!r}{nearest(language, codes)}"
                f"\n  known: {', '.join(codes)}"
            )
        spoken: int | None = known[f"<|{language}|>"]
    else:
        spoken = forced[0] if forced else None
    tokens = [start, PADDING if spoken is None else int(spoken), int(of_task)]
    return (*tokens, *_missing(silent, tokens)), () if spoken is not None else tuple(sorted(known.values()))


def _missing(token: int | None, tokens: Sequence[int]) -> tuple[int, ...]:
    return () if token is None or token == tokens[-1] else (int(token),)


def _is_byte_level(folder: Path) -> bool:
    before = read_object(folder / "tokenizer.json").get("pre_tokenizer") or {}
    steps = before.get("pretokenizers", [before])
    return any(step.get("type") == "ByteLevel" and not step.get("add_prefix_space") for step in steps)


def completed_generation(config: Mapping[str, Any]) -> dict[str, Any]:
    """A ``generation_config.json`` for a checkpoint without one, from what its config.json says."""
    return {name: config[name] for name in GENERATION_KEYS if config.get(name) is not None}


class Transcripts:
    """Texts to tokens for training, and tokens to texts."""

    def __init__(self, folder: Path, settings: TranscriptSettings) -> None:
        self.settings = settings
        self._tokenizer = load_tokenizer(folder)

    def compact(self, texts: Sequence[Any]) -> NDArray[np.int32]:
        """Prompt, text and end token, int32 [n, positions + 1], :data:`PADDING` after the last token of each.

        Raises:
            InputError: a value that is no text, one that is longer than the model writes, or a prompt whose language the
                model would have to tell: training has to name it.
        """
        settings = self.settings
        if settings.languages:
            raise InputError(
                "the checkpoint knows many languages, and training has to say which one the texts are in"
                "\n  Name it: `whisper: {..., language: en}`."
            )
        result = np.full((len(texts), settings.positions + 1), PADDING, np.int32)
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise InputError(f"text {index + 1} of {len(texts)}: expected a string, got {type(text).__name__}")
            whole = f" {text.strip()}" if settings.leading_space else text
            ids = self._tokenizer.encode(whole, add_special_tokens=False).ids
            if len(ids) > settings.room:
                raise InputError(
                    f"text {index + 1} of {len(texts)}: {len(ids)} tokens, and the model has places for {settings.room}:"
                    f" {text[:60]!r}\n  Leave it out, or split it with its sound."
                )
            row = [*settings.prompt, *ids, settings.end[0]]
            result[index, : len(row)] = row
        return result

    def expand(self, tokens: NDArray[np.int32]) -> dict[str, NDArray[Any]]:
        """``decoder_input_ids`` and ``labels`` int64 [n, s]; labels are -100 in the prompt and after the end."""
        longest = max(2, int((tokens != PADDING).sum(axis=1).max(initial=2)))
        given, next_ones = tokens[:, : longest - 1], tokens[:, 1:longest]
        labels = np.where(next_ones != PADDING, next_ones, _IGNORED).astype(np.int64)
        labels[:, : len(self.settings.prompt) - 1] = _IGNORED
        return {
            "decoder_input_ids": np.where(given != PADDING, given, self.settings.end[0]).astype(np.int64),
            "labels": labels,
        }

    def decode(self, rows: NDArray[Any]) -> list[str]:
        """Rows of tokens, :data:`PADDING` after the last, to texts without special tokens and time stamps."""
        texts = self._tokenizer.decode_batch(
            [[int(token) for token in row if token != PADDING] for row in rows], skip_special_tokens=True
        )
        return [_TIMESTAMP.sub("", text).strip() for text in texts]
