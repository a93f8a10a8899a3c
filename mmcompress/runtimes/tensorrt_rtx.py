"""TensorRT for RTX: engines for NVIDIA RTX GPUs, built ahead of time on any machine."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from mmcompress.component import library_versions
from mmcompress.errors import InputError, MissingExtra
from mmcompress.runtimes._machine import gpu_class
from mmcompress.runtimes._tensorrt_runtime import TensorRtRuntime

_DEFAULT = "sm86"


class TensorRtRtx(TensorRtRuntime):
    """Builds an engine per graph for one kind of GPU; without a GPU here, for ``sm86`` unless the recipe says otherwise."""

    extra = "tensorrt-rtx"
    classes = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")
    ahead_of_time = True

    def machine_class(self) -> str:
        """The class in the recipe, that of the GPU that is here, or ``sm86``."""
        return self.machine or self.here() or _DEFAULT

    def gpu(self) -> str | None:
        """The class of the first GPU that is here, whether TensorRT for RTX knows it or not."""
        return gpu_class()

    def library(self) -> ModuleType:
        """TensorRT for RTX, imported."""
        return load_library()

    def configure(self, trt: ModuleType, config: Any) -> None:
        """Build for the machine class, whatever is here."""
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, self.machine_class().upper()), 0)

    def versions(self) -> Mapping[str, str]:
        """TensorRT for RTX's version."""
        return library_versions("tensorrt-rtx")


def load_library() -> ModuleType:
    """Import TensorRT for RTX, or say which extra brings it.

    Raises:
        MissingExtra: it is not installed.
        InputError: it is installed and does not load.
    """
    if library_versions("tensorrt-rtx")["tensorrt-rtx"] == "absent":
        raise MissingExtra("tensorrt-rtx", TensorRtRtx.extra)
    try:
        import tensorrt_rtx
    except (ImportError, OSError) as error:
        raise InputError(f"tensorrt-rtx does not load: {error}\n  Install it again.") from error
    library: ModuleType = tensorrt_rtx
    return library
