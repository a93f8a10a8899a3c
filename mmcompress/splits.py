"""The splits of a recipe's data: read when first needed, checked to be disjoint, named in keys."""

from __future__ import annotations

from functools import cached_property

from mmcompress.component import JSON
from mmcompress.data import Dataset, Examples
from mmcompress.data._splits import check_disjoint, hold_out, subset
from mmcompress.errors import InputError
from mmcompress.recipe import FromTrain, Recipe


def open_splits(recipe: Recipe) -> tuple[Examples, Examples | None, Examples | None]:
    """The training, validation and test split of a recipe, not yet checked to be disjoint.

    Raises:
        InputError: what is missing or wrong in one of them.
    """
    data = recipe.data
    train = data.train.read()
    validation: Examples | None = None
    if isinstance(data.validation, FromTrain):
        train, validation = hold_out(train, data.validation.from_train, recipe.seed)
    elif isinstance(data.validation, Dataset):
        validation = data.validation.read()
    return train, validation, data.test.read() if data.test is not None else None


def _check_columns(recipe: Recipe, test: Examples | None) -> None:
    """Refuse metrics that read what the test data lack, before anything is trained."""
    for metric in recipe.measure.metrics:
        missing = sorted(metric.columns() - (test.columns if test is not None else frozenset()))
        if missing:
            has = ", ".join(sorted(test.columns)) if test is not None else "nothing"
            raise InputError(f"{metric.component_name()} reads {', '.join(missing)}, and the test data have {has}")


class Splits:
    """The data of a recipe, read when it is first needed and checked to be disjoint."""

    def __init__(self, recipe: Recipe, limit: int | None = None) -> None:
        self.recipe = recipe
        self.limit = limit

    @cached_property
    def _read(self) -> tuple[Examples, Examples | None, Examples | None]:
        train, validation, test = open_splits(self.recipe)
        check_disjoint(train, validation, test)
        _check_columns(self.recipe, test)
        if self.limit is not None:
            train = subset(train, self.limit)
            validation = subset(validation, self.limit) if validation is not None else None
            test = subset(test, self.limit) if test is not None else None
        return train, validation, test

    @property
    def train(self) -> Examples:
        """The training split, without what validation holds out of it."""
        return self._read[0]

    @property
    def validation(self) -> Examples | None:
        """The split that choices are made on."""
        return self._read[1]

    @property
    def test(self) -> Examples | None:
        """The split that the report is made on."""
        return self._read[2]

    @cached_property
    def train_identity(self) -> JSON:
        """What a key takes from the training data."""
        data = self.recipe.data
        held = [data.validation.from_train, self.recipe.seed] if isinstance(data.validation, FromTrain) else None
        return {"data": data.train.identity(), "held_out": held, "limit": self.limit}

    @cached_property
    def validation_identity(self) -> JSON:
        """What a key takes from the validation data."""
        data = self.recipe.data
        return {
            "data": data.validation.identity() if isinstance(data.validation, Dataset) else self.train_identity,
            "given": data.validation is not None,
            "limit": self.limit,
        }
