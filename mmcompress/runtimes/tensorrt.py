"""TensorRT 10 and 11: engines for NVIDIA GPUs and Jetsons, built on the machine that runs them."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

from mmcompress.component import library_versions
from mmcompress.errors import InputError, MissingExtra
from mmcompress.runtimes._machine import gpu_class
from mmcompress.runtimes._tensorrt_runtime import TensorRtRuntime

_DEFAULT = "sm87"
_DISTRIBUTIONS = ("tensorrt", "tensorrt-cu12", "tensorrt-cu13")
_HOW = (
    "On a Jetson JetPack brings it: apt install python3-libnvinfer, and a venv with --system-site-packages.\n"
    "  Elsewhere: pip install tensorrt 'mmcompress[tensorrt]'"
)


class TensorRt(TensorRtRuntime):
    """Builds an engine per graph where the GPU is; elsewhere the package holds the graphs, and the device builds of them.

    The machine class is that of the GPU that is here; without one ``sm87`` (Jetson Orin) unless the recipe says otherwise.
    """

    extra = "tensorrt"
    classes = ("sm75", "sm80", "sm86", "sm87", "sm89", "sm90", "sm100", "sm103", "sm110", "sm120", "sm121")
    ahead_of_time = False

    def machine_class(self) -> str:
        """The class in the recipe, that of the GPU that is here, or ``sm87``."""
        return self.machine or self.here() or _DEFAULT

    def gpu(self) -> str | None:
        """The class of the first GPU that is here, whether TensorRT knows it or not."""
        return gpu_class()

    def library(self) -> ModuleType:
        """TensorRT, imported."""
        return load_library()

    def versions(self) -> Mapping[str, str]:
        """TensorRT's version, whichever distribution of it is installed; JetPack's is one of them."""
        found = library_versions(*_DISTRIBUTIONS)
        return {"tensorrt": next((told for told in found.values() if told != "absent"), "absent")}


def load_library() -> ModuleType:
    """Import TensorRT, or say how to get it.

    Raises:
        MissingExtra: it is not installed.
        InputError: it is installed and does not load.
    """
    try:
        import tensorrt
    except ModuleNotFoundError as error:
        if error.name != "tensorrt":
            raise InputError(f"tensorrt does not load: {error}\n  Install it again.") from error
        raise MissingExtra("tensorrt", TensorRt.extra, _HOW) from error
    except (ImportError, OSError) as error:
        raise InputError(f"tensorrt does not load: {error}\n  Install it again.") from error
    library: ModuleType = tensorrt
    return library
