"""PyTorch, as the user had the model: the baseline that packages are compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from mmcompress.component import JSON, library_versions
from mmcompress.errors import UsageError
from mmcompress.families import Family, Feeds
from mmcompress.runtimes import Runtime, Scheme
from mmcompress.runtimes._machine import cpu_class

if TYPE_CHECKING:
    import torch


class Torch(Runtime):
    """Runs model folders, never packages: see :func:`open_model`."""

    extra = "compress"

    def machine_class(self) -> str:
        """That of this machine's processor."""
        return self.machine or cpu_class()

    def scheme(self) -> Scheme:
        """There is none."""
        _not_a_target()

    def versions(self) -> Mapping[str, str]:
        """PyTorch's version."""
        return library_versions("torch")

    def compile(self, graphs: Mapping[str, Path], folder: Path) -> Mapping[str, JSON]:
        """There is nothing to compile."""
        _not_a_target()

    def open(self, folder: Path, graphs: Sequence[str], threads: int | None) -> NoReturn:
        """There is no package to open."""
        _not_a_target()


def _not_a_target() -> NoReturn:
    raise UsageError("torch is the baseline that targets are compared with, not a target\n  Use onnxruntime.")


def open_model(family: Family, folder: Path, threads: int | None) -> TorchSession:
    """The graphs of a model folder as torch modules, in FP32.

    Raises:
        InputError: the model folder cannot be loaded.
    """
    return TorchSession(family, folder, threads)


class TorchSession:
    """Modules by graph name, numpy in and out. The number of threads is the process's; closing sets it back."""

    def __init__(self, family: Family, folder: Path, threads: int | None) -> None:
        import torch

        self._threads = torch.get_num_threads()
        if threads is not None:
            torch.set_num_threads(threads)
        self._modules: dict[str, torch.nn.Module] = {
            graph.name: graph.module.eval() for graph in family.graphs(family.load(folder))
        }

    def run(self, graph: str, feeds: Feeds) -> Feeds:
        """Run a graph by name."""
        import torch

        with torch.inference_mode():
            outputs = self._modules[graph](**{name: torch.from_numpy(value) for name, value in feeds.items()})
        return {name: value.numpy() for name, value in outputs.items()}

    def close(self) -> None:
        """Free the modules."""
        import torch

        self._modules.clear()
        torch.set_num_threads(self._threads)
