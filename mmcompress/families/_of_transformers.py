"""What families share whose model folders hold one of transformers' classes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mmcompress.families import Family, FromTeacher
from mmcompress.families._students import Tower, cuts_of, write_student
from mmcompress.families._transformers import Architecture, load_model, save_model, write_model

if TYPE_CHECKING:
    import torch


class TransformersFamily(Family):
    """Reads, loads, saves and cuts by what :meth:`architecture` and :meth:`towers` say."""

    def architecture(self) -> Architecture:
        """The classes of transformers, by ``model_type``, and the files that travel with a model."""
        raise NotImplementedError

    def towers(self) -> tuple[Tower, ...]:
        """The stacks of layers that a student may have fewer of."""
        return ()

    @property
    def cuts(self) -> frozenset[str]:
        """Layers, and feed-forward widths where a tower has them."""
        return cuts_of(self.towers())

    def write(self, folder: Path, seed: int) -> None:
        """Write the checkpoint as a model folder.

        Raises:
            InputError: no weights, weights missing or unexpected, pickled weights, another kind of model, processing files
                that do not fit the model.
        """
        write_model(self, self.architecture(), folder, seed)
        self.processor(folder)

    def load(self, folder: Path, *, attention: str = "sdpa") -> torch.nn.Module:
        """The model of a model folder, in FP32 and evaluation mode.

        Raises:
            InputError: weights that do not fit config.json and structure.json; an unknown kind of attention.
        """
        model: torch.nn.Module = load_model(folder, self.architecture(), attention)
        return model

    def save(self, model: torch.nn.Module, source: Path, folder: Path) -> None:
        """Write a model that came from ``source``: its files, the weights in FP32, what pruning changed."""
        save_model(model, source, folder, self.architecture())

    def student(self, teacher: Path, cut: FromTeacher, folder: Path, seed: int) -> None:
        """Cut a student from an unpruned teacher: fewer layers, evenly spaced, or narrower feed-forward blocks.

        Raises:
            UsageError: a cut that the teacher does not allow, with what it allows.
        """
        write_student(teacher, cut, folder, seed, self.architecture(), self.towers())

    def package_files(self, folder: Path) -> list[str]:
        """Configuration and processing files, as far as the folder has them."""
        return [name for name in ("config.json", *self.architecture().files) if (folder / name).is_file()]
