"""Facts of the machine that a measurement was made on. Reads files of the operating system; imports nothing heavy."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

LIBRARIES = (
    "mmcompress",
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx",
    "torch",
    "transformers",
    "onnx",
    "tokenizers",
    "Pillow",
)
INSTRUCTION_SETS = (
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "avx_vnni",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimdhp",
    "asimddp",
    "i8mm",
    "sve",
    "bf16",
)


def environment_facts(threads: int) -> dict[str, Any]:
    """What to know of this machine beside a time: processor, clock, load, memory, system, versions, threads.

    What a system does not tell is None: it is not guessed.
    """
    cpuinfo = _cpuinfo()
    flags = set((cpuinfo.get("flags") or cpuinfo.get("Features") or "").split())
    return {
        "cpu": cpuinfo.get("model name") or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "instruction_sets": [name for name in INSTRUCTION_SETS if name in flags],
        "cores": os.cpu_count(),
        "cores_usable": _usable_cores(),
        "clock_mhz": _number(cpuinfo.get("cpu MHz")),
        "governor": _read(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        "load": _load(),
        "memory_bytes": _memory_bytes(),
        "os": platform.platform(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "libraries": {name: found for name in LIBRARIES if (found := _version(name)) is not None},
        "threads": threads,
        "byte_order": sys.byteorder,
        "gpus": _gpus(),
        "state": machine_state(),
    }


def machine_state(root: Path = Path("/")) -> dict[str, Any]:
    """What changes while one measures: taken before and after, the difference says what happened in between.

    Clocks of all cores, how often the hardware slowed them down for heat, the time that the hypervisor gave to others
    (of all cores together) and the load. What a system does not tell is None.
    """
    throttled = [
        int(text)
        for path in sorted(root.glob("sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/core_throttle_count"))
        if (text := _read(path)) is not None
    ]
    clocks = [
        float(line.partition(":")[2])
        for line in (_read(root / "proc/cpuinfo") or "").splitlines()
        if line.startswith("cpu MHz")
    ]
    times = (_read(root / "proc/stat") or "").split("\n")[0].split()
    ticks = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
    return {
        "clocks_mhz": clocks or None,
        "throttled": sum(throttled) if throttled else None,
        "stolen_seconds": int(times[8]) / ticks if len(times) > 8 else None,
        "load": _load(),
    }


def _gpus() -> list[str]:
    """Name, driver and memory of NVIDIA GPUs, as ``nvidia-smi`` tells them; none where it is not there."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    asked = [program, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.strip().splitlines() if done.returncode == 0 else []


def _cpuinfo() -> dict[str, str]:
    """The first processor's entries of /proc/cpuinfo."""
    facts: dict[str, str] = {}
    for line in (_read(Path("/proc/cpuinfo")) or "").splitlines():
        name, colon, value = line.partition(":")
        if not colon:
            break
        facts[name.strip()] = value.strip()
    return facts


def _usable_cores() -> int | None:
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _load() -> list[float] | None:
    try:
        return [round(value, 2) for value in os.getloadavg()]
    except OSError:
        return None


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
