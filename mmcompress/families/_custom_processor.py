"""Preprocessing of a ``custom`` model in numpy: inputs of any kind, and what the model shall answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcompress.errors import InputError
from mmcompress.families import Feeds
from mmcompress.families._custom_config import CustomConfig, read_config
from mmcompress.families._input_arrays import Texts, encodings
from mmcompress.families._input_samples import longest
from mmcompress.families._wanted import class_numbers, class_sets, finite_numbers


class CustomProcessor:
    """See :class:`mmcompress.families.Processor`."""

    def __init__(self, folder: Path) -> None:
        self.config = read_config(folder)
        self.classes = self.config.classes
        self.encodings = encodings(self.config.inputs, folder)
        self._names = {item.value: item.name for item in self.config.inputs}
        encoded = {column: self.encodings[name] for column, name in self._names.items()}
        self.text_encoders = {column: found for column, found in encoded.items() if isinstance(found, Texts)}

    def compact(self, values: Mapping[str, Sequence[Any]]) -> Feeds:
        """Columns by name: ``<input>_values`` and ``<input>_length``, and what is to be answered.

        Raises:
            InputError: a value that cannot be used or is missing, or a column of another name.
        """
        compact: Feeds = {}
        target = self.config.target
        for column, given in values.items():
            if column == target:
                compact[target] = _wanted(given, self.config)
            elif column in self._names:
                absent = [index for index, value in enumerate(given) if value is None]
                if absent:
                    raise InputError(f"{column} {absent[0] + 1} of {len(given)} is missing")
                compact.update(self.encodings[self._names[column]].compact(given))
            else:
                known = ", ".join([*self._names, *([target] if target else [])])
                raise InputError(f"this model takes the columns {known}; got {column}")
        return compact

    def expand(self, compact: Feeds) -> Feeds:
        """Graph inputs, standardised where the configuration says how, and what is to be answered as it is."""
        feeds: Feeds = {}
        for item in self.config.inputs:
            name = f"{item.name}_values"
            if name not in compact:
                continue
            encoding = self.encodings[item.name]
            feeds.update(encoding.expand(compact))
            mean, std = getattr(item, "mean", None), getattr(item, "std", None)
            if mean is not None and std is not None:
                feeds[name] = (feeds[name] - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
                if f"{item.name}_length" in feeds:
                    feeds[name] *= _within(feeds[name], feeds[f"{item.name}_length"])
            if self.config.padding == "max_length" and longest(item):
                filler = encoding.settings.pad_id if isinstance(encoding, Texts) else 0
                feeds[name] = _padded(feeds[name], longest(item), filler)
        if self.config.target in compact:
            feeds[self.config.target] = np.asarray(compact[self.config.target])
        return feeds

    def encode(self, values: Mapping[str, Sequence[Any]]) -> Feeds:
        """``expand(compact(values))``."""
        return self.expand(self.compact(values))


def _wanted(values: Sequence[Any], config: CustomConfig) -> NDArray[Any]:
    if config.target == "labels":
        return class_sets(values, config.classes)
    return class_numbers(values, config.classes) if config.target == "label" else finite_numbers(values)


def _within(values: NDArray[Any], length: NDArray[np.int64]) -> NDArray[np.float32]:
    """1 for the steps of each example, 0 after them: [n, t, 1]."""
    return (np.arange(values.shape[1])[None, :, None] < length[:, None, None]).astype(np.float32)


def _padded(values: NDArray[Any], steps: int, filler: int) -> NDArray[Any]:
    added = [(0, 0), (0, steps - values.shape[1]), *[(0, 0)] * (values.ndim - 2)]
    return np.pad(values, added, constant_values=filler)
