"""What kind of CPU this is, as far as it decides how an INT8 graph must be quantized, and which NVIDIA GPU is here."""

from __future__ import annotations

import ctypes
import platform
from functools import cache
from pathlib import Path


@cache
def cpu_class() -> str:
    """This machine's class: ``x86-vnni``, ``x86-avx512``, ``x86-avx2``, ``x86``, ``arm64`` or the platform's own name.

    Only Linux tells the flags of an x86 processor; elsewhere it is plain ``x86``, whose scheme is right on all of them.
    """
    machine = platform.machine().lower()
    if machine in ("aarch64", "arm64"):
        return "arm64"
    if machine not in ("x86_64", "amd64"):
        return machine
    cpuinfo = Path("/proc/cpuinfo")
    return x86_class(cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.is_file() else "")


def x86_class(cpuinfo: str) -> str:
    """The class that the flags in the text of ``/proc/cpuinfo`` stand for."""
    line = next((line for line in cpuinfo.splitlines() if line.startswith("flags")), "")
    flags = set(line.partition(":")[2].split())
    if flags & {"avx512_vnni", "avx_vnni"}:
        return "x86-vnni"
    if {"avx512f", "avx512bw"} <= flags:
        return "x86-avx512"
    return "x86-avx2" if "avx2" in flags else "x86"


_DRIVERS = ("libcuda.so.1", "nvcuda.dll")
_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76
"""Of ``CUdevice_attribute`` in NVIDIA's cuda.h."""


@cache
def gpu_class() -> str | None:
    """The first NVIDIA GPU's class by its compute capability, ``sm86``; None where no driver finds one."""
    driver = _driver()
    device = ctypes.c_int()
    if driver is None or driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return None
    found = []
    for attribute in (_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR):
        value = ctypes.c_int()
        if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device):
            return None
        found.append(str(value.value))
    return "sm" + "".join(found)


def _driver() -> ctypes.CDLL | None:
    for name in _DRIVERS:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def driver_cuda() -> tuple[int, int] | None:
    """The newest CUDA that the installed NVIDIA driver runs, as (major, minor); None without a driver."""
    driver, version = _driver(), ctypes.c_int()
    if driver is None or driver.cuDriverGetVersion(ctypes.byref(version)):
        return None
    return version.value // 1000, version.value % 1000 // 10
