"""Preprocessing of a ``fusion`` model in numpy: inputs, which of them are there, and what the model shall answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcompress.errors import InputError
from mmcompress.families import PADDING, Feeds
from mmcompress.families._fusion_config import FusionConfig, read_config
from mmcompress.families._input_arrays import Texts, encodings
from mmcompress.families._wanted import class_number, class_numbers, class_sets, finite_numbers

TARGETS = {"class": "label", "several": "labels", "tags": "tags", "number": "number"}
"""The column that training learns from, by what comes out."""


class _Inputs:
    def __init__(self, config: FusionConfig, folder: Path) -> None:
        self.settings = config
        self.encodings = encodings(config.inputs, folder, config.tagged)


class FusionProcessor:
    """See :class:`mmcompress.families.Processor`; :meth:`leave_out` is for training with missing inputs."""

    def __init__(self, folder: Path) -> None:
        self.config = read_config(folder)
        self.inputs = _Inputs(self.config, folder)
        self.classes = self.config.classes
        self._columns = {item.value: item.name for item in self.config.inputs}
        encoded = {column: self.inputs.encodings[name] for column, name in self._columns.items()}
        self.text_encoders = {column: found for column, found in encoded.items() if isinstance(found, Texts)}

    def compact(self, values: Mapping[str, Sequence[Any]]) -> Feeds:
        """Columns by name; ``<input>_present`` (uint8 [n]) comes with inputs that may be missing (None).

        Raises:
            InputError: a value that cannot be used, a missing one where the model was not trained for that, a column
                of another name.
        """
        compact: Feeds = {}
        target = TARGETS[self.config.output.kind]
        unknown = sorted(set(values) - set(self._columns) - {target})
        if unknown:
            known = ", ".join([*self._columns, target])
            raise InputError(f"this model takes the columns {known}; got {', '.join(unknown)}")
        for column, given in values.items():
            if column == target:
                compact[target] = self._target(given)
                continue
            name = self._columns[column]
            here = np.array([value is not None for value in given], np.uint8)
            self._allow(name, column, here)
            compact.update(self.inputs.encodings[name].compact(given))
            if self.config.missing:
                compact[f"{name}_present"] = here
        self._refuse_nothing(compact)
        return compact

    def _allow(self, name: str, column: str, here: NDArray[np.uint8]) -> None:
        if here.all():
            return
        place = f"{column} {int(here.argmin()) + 1} of {len(here)} is missing"
        if not self.config.missing:
            raise InputError(
                f"{place}, and this model was not trained with missing inputs\n"
                "  Give it, or train with `missing` above 0 in the model's config.json."
            )
        if name == self.config.tagged:
            raise InputError(f"{place}, and without its words there is nothing to tag")

    def _refuse_nothing(self, compact: Feeds) -> None:
        names = [f"{item.name}_present" for item in self.config.inputs]
        if not all(name in compact for name in names):
            return
        nothing = ~np.any([compact[name] > 0 for name in names], axis=0)
        if nothing.any():
            raise InputError(f"example {int(nothing.argmax()) + 1} of {len(nothing)} has no input at all; expected one")

    def expand(self, compact: Feeds) -> Feeds:
        """Graph inputs, and what is to be answered as it is."""
        feeds: Feeds = {}
        for name, encoding in self.inputs.encodings.items():
            if f"{name}_values" in compact:
                feeds.update(encoding.expand(compact))
            if f"{name}_present" in compact:
                feeds[f"{name}_present"] = compact[f"{name}_present"].astype(np.float32)
        target = TARGETS[self.config.output.kind]
        if target in compact:
            feeds[target] = np.asarray(compact[target])
            starts = feeds.get(f"{self.config.tagged}_starts")
            if target == "tags" and starts is not None:
                self._refuse_unequal(feeds[target], starts)
                feeds[target] = feeds[target][:, : starts.shape[1]]
        return feeds

    @staticmethod
    def _refuse_unequal(tags: NDArray[Any], starts: NDArray[Any]) -> None:
        counts = [(rows != PADDING).sum(axis=1) for rows in (tags, starts)]
        for number, (own, words) in enumerate(zip(*counts, strict=True)):
            if own != words:
                raise InputError(
                    f"example {number + 1} of {len(tags)}: {own} tags for {words} words; expected one each"
                )

    def encode(self, values: Mapping[str, Sequence[Any]]) -> Feeds:
        """``expand(compact(values))``."""
        return self.expand(self.compact(values))

    def leave_out(self, compact: Feeds, draw: Callable[[str], NDArray[np.float64]]) -> Feeds:
        """The same examples with inputs left out at random, as often as ``missing`` says; never all of one's inputs.

        ``draw(stream)`` gives a number in [0, 1) per example, a stream's always the same.
        """
        if not self.config.missing:
            return compact
        names = [item.name for item in self.config.inputs if item.name != self.config.tagged]
        present = np.stack([compact[f"{name}_present"] for name in names]).astype(bool)
        kept = present & (np.stack([draw(f"missing {name}") for name in names]) >= self.config.missing)
        if not self.config.tagged:
            # Where nothing was left, one of those that were there stays.
            order = np.where(present, np.stack([draw(f"kept {name}") for name in names]), -1.0)
            empty = ~kept.any(axis=0)
            kept[order.argmax(axis=0)[empty], np.nonzero(empty)[0]] = True
        return {**compact, **{f"{name}_present": row.astype(np.uint8) for name, row in zip(names, kept, strict=True)}}

    # --- targets ---

    def _target(self, values: Sequence[Any]) -> NDArray[Any]:
        kind = self.config.output.kind
        if kind == "class":
            return class_numbers(values, self.classes)
        if kind == "number":
            return finite_numbers(values)
        if kind == "several":
            return class_sets(values, self.classes)
        most = self.config.input(self.config.tagged).max_length
        tags = np.full((len(values), most), PADDING, np.int64)
        for index, some in enumerate(values):
            if len(some) > most:
                raise InputError(f"tags {index + 1} of {len(values)}: {len(some)} tags; at most {most}")
            place = f"example {index + 1} of {len(values)}"
            tags[index, : len(some)] = [class_number(value, self.classes, place) for value in some]
        return tags
