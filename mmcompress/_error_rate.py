"""How wrong a transcript is: errors by jiwer, and Whisper's ways to make texts comparable before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mmcompress.errors import InputError, require
from mmcompress.store import read_json

Normalise = Callable[[str], str]
Normaliser = Literal["basic", "whisper_english", "none"]
SPELLINGS = "normalizer.json"
"""British words and their American spelling, as Whisper's checkpoints bring them."""


def normaliser_of(name: Normaliser, spellings: Path | None) -> Normalise:
    """A normaliser by name; ``spellings`` is a JSON object for ``whisper_english``, None to leave spellings.

    Raises:
        InputError: the spellings are no JSON object.
        MissingExtra: transformers is not installed, whose code the normalisers are.
    """
    if name == "none":
        return str.strip
    if name == "basic":
        return basic_normaliser()
    words = {} if spellings is None else read_json(spellings)
    if not isinstance(words, dict):
        raise InputError(f"{spellings}: expected a JSON object of British words and their American spelling")
    return english_normaliser(words)


def basic_normaliser() -> Normalise:
    """Whisper's normaliser of any language."""
    module = require("transformers.models.whisper.english_normalizer", "compress")
    normaliser: Any = module.BasicTextNormalizer()
    return lambda text: str(normaliser(text)).strip()


def english_normaliser(spellings: Mapping[str, str]) -> Normalise:
    """Whisper's normaliser of English."""
    module = require("transformers.models.whisper.english_normalizer", "compress")
    normaliser: Any = module.EnglishTextNormalizer(dict(spellings))
    return lambda text: str(normaliser(text)).strip()


def count(references: Sequence[str], said: str) -> tuple[int, int, int, int]:
    """Wrong words, words, wrong characters and characters, by the reference with the lowest rate of wrong words."""
    jiwer = require("jiwer", "audio")
    found = []
    for text in references:
        words, characters = jiwer.process_words(text, said), jiwer.process_characters(text, said)
        wrong = [each.substitutions + each.deletions + each.insertions for each in (words, characters)]
        of = [each.hits + each.substitutions + each.deletions for each in (words, characters)]
        found.append((wrong[0], of[0], wrong[1], of[1]))
    return min(found, key=lambda each: each[0] / max(each[1], 1))
