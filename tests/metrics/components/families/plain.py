"""A family without a checkpoint: words are numbers, and its one graph adds. For timing graphs whose work is known."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mmcompress.families import Family, Feeds, Processor, Request, Run


class Numbers:
    def compact(self, values: Mapping[str, Sequence[Any]]) -> Feeds:
        return {"x": np.array([[float(word)] for word in values["text"]], dtype=np.float32)}

    def expand(self, compact: Feeds) -> Feeds:
        return {"x": np.repeat(compact["x"], 64, axis=1)}

    def encode(self, values: Mapping[str, Sequence[Any]]) -> Feeds:
        return self.expand(self.compact(values))


class Plain(Family):
    requests: ClassVar[tuple[Request, ...]] = (Request("embed_text", ("text",), ("net",)),)
    columns: ClassVar[frozenset[str]] = frozenset({"texts"})

    def processor(self, folder: Path) -> Processor:
        return Numbers()

    def package_files(self, folder: Path) -> list[str]:
        return []

    def answer(self, run: Run, request: str, feeds: Feeds, length: int | None = None) -> Any:
        return run("net", feeds)["y"]
