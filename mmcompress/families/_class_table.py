"""Classes that are fixed when a model is exported: their texts become a table in the graph, and the text tower goes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from mmcompress.component import JSON
from mmcompress.errors import InputError
from mmcompress.families import Graph, Request
from mmcompress.families._texts import TOKENIZER_FILES, TextEncoder

if TYPE_CHECKING:
    from torch import Tensor, nn

SCORES = "class_scores"
"""The output of a graph that holds a table of classes: float32 [n, c]. Its product is never quantized."""
PROMPTS_AT_A_TIME = 64
Embeddings = NDArray[np.float32]


class ClassTable(BaseModel):
    """What is chosen from, and the sentences that a class is put into."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    names: tuple[str, ...] = Field(min_length=1)
    templates: tuple[str, ...] = ("a picture of {}",)
    """Sentences with ``{}`` where the name of the class stands."""

    @model_validator(mode="after")
    def _usable(self) -> ClassTable:
        check_templates(self.templates)
        twice = [name for index, name in enumerate(self.names) if name in self.names[:index]]
        if twice:
            raise ValueError(f"names: {twice[0]!r} stands there twice; each class has one place in the table")
        if any(not name.strip() for name in self.names):
            raise ValueError("names: a class without a name; expected a text for each")
        return self

    def prompts(self) -> list[str]:
        """Every name in every template, class by class."""
        return [template.replace("{}", name) for name in self.names for template in self.templates]

    def request(self, seen: str, graph: str) -> Request:
        """Scores of the classes, for whatever is seen or heard."""
        return Request("classify", (seen,), (graph,), "scores")

    def left_out(self) -> dict[str, str]:
        """Why no other texts are taken, by request."""
        reason = (
            f"the text tower was replaced by a table of {len(self.names)} classes when this package was compiled\n"
            "  `classify` without texts chooses from these; for other texts build a package without `classes`."
        )
        return {"embed_text": reason}


def without_usual(identity: JSON, **usual: JSON) -> JSON:
    """A family's identity without fields that are as they were before there was a choice, so that old keys hold."""
    fields = {name: value for name, value in identity["fields"].items() if name not in usual or value != usual[name]}
    return {**identity, "fields": fields}


def check_templates(templates: Sequence[str]) -> None:
    """Refuse sentences without a place for a class, or with several.

    Raises:
        ValueError: with the wrong ones.
    """
    wrong = [template for template in templates if template.count("{}") != 1]
    if wrong or not templates:
        raise ValueError(f"expected templates with one {{}} each; got {', '.join(map(repr, wrong)) or 'none'}")


def class_embeddings(prompts: Embeddings, classes: int) -> Embeddings:
    """Prompt embeddings [classes * templates, d], class by class, to L2-normalised class embeddings [classes, d].

    Raises:
        InputError: an embedding without a direction.
    """
    heads = _normalised(prompts).reshape(classes, -1, prompts.shape[-1]).mean(axis=1)
    return _normalised(heads)


def _normalised(vectors: Embeddings) -> Embeddings:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    if not bool((lengths > 0).all()):
        raise InputError("an embedding is zero, and has no direction to compare")
    return np.asarray(vectors / lengths, dtype=np.float32)


def hold_classes(model: nn.Module, table: ClassTable, encoder: TextEncoder | None, folder: Path) -> None:
    """Keep the inputs of the text graph for every prompt, class by class, at a model that was loaded from a folder.

    Raises:
        InputError: a prompt that is longer than the model takes; a folder without a tokenizer.
    """
    if encoder is None:
        raise InputError(f"{folder}: no tokenizer, and the texts of `classes` cannot be encoded without one")
    prompts = table.prompts()
    encoder.refuse_long(prompts)
    model.class_feeds = encoder.expand(encoder.compact(prompts))  # type: ignore[assignment]


def texts_are_a_table(table: ClassTable | None, folder: Path) -> bool:
    """Whether a folder is that of a package whose texts are a table: it has no tokenizer."""
    return table is not None and not any((folder / name).is_file() for name in TOKENIZER_FILES)


def with_classes(model: nn.Module, seen: Graph, text: Graph, classes: int) -> Graph:
    """The graph of pictures (or sounds) with ``class_scores`` behind its embeddings: cosines with each class [n, c].

    Args:
        model: One that :func:`hold_classes` was given.
        seen: Gives L2-normalised embeddings as its only output.
        text: The text graph, which is run here once and not exported.
        classes: How many there are.
    """
    import dataclasses

    import torch

    from mmcompress.families._class_table_modules import ClassScorer

    feeds: Any = model.class_feeds
    inputs = {name: torch.from_numpy(value) for name, value in feeds.items()}
    count = next(iter(feeds.values())).shape[0]
    parts: list[Tensor] = []
    with torch.no_grad():
        for start in range(0, count, PROMPTS_AT_A_TIME):
            batch = {name: value[start : start + PROMPTS_AT_A_TIME] for name, value in inputs.items()}
            parts.append(text.module(**batch)[text.outputs[0]])
    table = class_embeddings(torch.cat(parts).numpy(), classes)
    module = ClassScorer(seen.module, seen.outputs[0], torch.from_numpy(table)).eval()
    return dataclasses.replace(seen, module=module, outputs=(*seen.outputs, SCORES))
