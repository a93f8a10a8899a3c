"""What the ``blip`` family feeds its models: pictures, texts that are read, texts that are written, and classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcompress.errors import InputError
from mmcompress.families import Feeds
from mmcompress.families._images import PREPROCESSOR_FILES, ImageEncoder, read_image_settings
from mmcompress.families._targets import TargetEncoder, TargetSettings
from mmcompress.families._texts import TOKENIZER_FILES, TextEncoder, load_tokenizer, read_text_settings

FILES = (*PREPROCESSOR_FILES, *TOKENIZER_FILES)


class BlipProcessor:
    """Columns by the task; see :class:`mmcompress.families.Processor`."""

    def __init__(self, folder: Path, config: Mapping[str, Any], task: str, max_tokens: int) -> None:
        text = config.get("text_config") or {}
        self._read = {"vqa": "question", "match": "text", "retrieval": "text", "pretrained": "text"}.get(task)
        self._written = {"vqa": "answers", "caption": "text"}.get(task)
        self.images = ImageEncoder(read_image_settings(folder))
        positions = int(text.get("max_position_embeddings", 512))
        self.texts = TextEncoder(load_tokenizer(folder), read_text_settings(folder, positions))
        self.text_encoders = dict.fromkeys(("text", "question"), self.texts)
        settings = TargetSettings(
            prompt=(int(text.get("bos_token_id", 30522)),),
            end=int(text.get("sep_token_id", 102)),
            max_tokens=min(max_tokens, positions - 1),
        )
        self.targets = TargetEncoder(load_tokenizer(folder), settings)
        names = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
        self.classes = tuple(names[key] for key in sorted(names, key=int)) if task in ("match", "pretrained") else ()
        self._columns = {"image", *filter(None, (self._read, self._written)), *(["label"] if task == "match" else [])}

    def compact(self, values: Mapping[str, Sequence[Any]]) -> Feeds:
        """``image`` to uint8 [n, h, w, 3], texts to int32 [n, s] with -1 as padding, ``label`` to int64 [n].

        Of the answers of several annotators, the most frequent is written (of equally frequent ones the first by name).

        Raises:
            InputError: a picture or text that cannot be used, a question without an answer, a column of another name.
        """
        unknown = sorted(set(values) - self._columns)
        if unknown:
            raise InputError(f"blip takes {', '.join(sorted(self._columns))} for this task, got {', '.join(unknown)}")
        compact: Feeds = {}
        if "image" in values:
            compact["image"] = self.images.compact(values["image"])
        if self._read is not None and self._read in values:
            compact[f"{self._read}_read"] = self.texts.compact(values[self._read])
        if self._written is not None and self._written in values:
            written = values[self._written]
            texts = [most_frequent(answers) for answers in written] if self._written == "answers" else written
            compact[f"{self._written}_written"] = self.targets.compact(texts)
        if "label" in values:
            compact["label"] = np.asarray([int(label) for label in values["label"]], dtype=np.int64)
        return compact

    def expand(self, compact: Feeds) -> Feeds:
        """Graph inputs, with ``prompt`` and ``end`` for decoders; ``decoder_input_ids``, ``labels`` and ``label``."""
        feeds: Feeds = {}
        if "image" in compact:
            feeds["pixel_values"] = self.images.expand(compact["image"])
            if self._written is not None:
                count = len(compact["image"])
                feeds["prompt"] = self.targets.prompts(count)
                feeds["end"] = np.full((count, 1), self.targets.settings.end, np.int64)
        if f"{self._read}_read" in compact:
            feeds.update(self.texts.expand(compact[f"{self._read}_read"]))
        if f"{self._written}_written" in compact:
            feeds.update(self.targets.expand(compact[f"{self._written}_written"]))
        if "label" in compact:
            feeds["label"] = compact["label"]
        return feeds

    def encode(self, values: Mapping[str, Sequence[Any]]) -> Feeds:
        """``expand(compact(values))``."""
        return self.expand(self.compact(values))

    def decode(self, rows: NDArray[Any]) -> list[str]:
        """Tokens [n, s] to texts."""
        return self.targets.decode(rows)


def most_frequent(answers: Sequence[str]) -> str:
    """The answer that most annotators gave; of equally frequent ones the first by name.

    Raises:
        InputError: there is none.
    """
    counts = Counter(answers)
    if not counts:
        raise InputError("a question without an answer\n  Leave it out of the training data.")
    return min(counts, key=lambda answer: (-counts[answer], answer))
