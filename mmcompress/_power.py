"""What a device is, and what it may draw: power mode, clocks and temperatures, as far as the operating system tells."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

from mmcompress._environment import environment_facts

_ROOT = Path("/")
_POLICY = ("scaling_governor", "energy_performance_preference")
_CLOCKS = ("scaling_cur_freq", "scaling_min_freq", "scaling_max_freq")


def device_name(root: Path = _ROOT) -> str:
    """The board's own name (Jetson, Raspberry Pi), else that of the processor."""
    model = _read(root / "proc/device-tree/model") or _read(root / "sys/firmware/devicetree/base/model")
    if model:
        return model.rstrip("\0").strip()
    return str(environment_facts(1)["cpu"] or platform.machine())


def power_facts(root: Path = _ROOT) -> dict[str, Any]:
    """Power mode, clocks in MHz, temperatures in degrees Celsius and whether a mains supply is on.

    Read at the moment of the call; what the system does not tell is left out.
    """
    facts: dict[str, Any] = {}
    mode = power_mode()
    if mode is not None:
        facts["power_mode"] = mode
    profile = _read(root / "sys/firmware/acpi/platform_profile")
    if profile is not None:
        facts["platform_profile"] = profile
    clocks = {path.name: _policy(path) for path in sorted(root.glob("sys/devices/system/cpu/cpufreq/policy*"))}
    if clocks:
        facts["cpu_clocks"] = clocks
    devices = {path.name: _frequencies(path) for path in sorted(root.glob("sys/class/devfreq/*"))}
    if devices:
        facts["device_clocks"] = devices
    supplies = {path.parent.name: _read(path) == "1" for path in sorted(root.glob("sys/class/power_supply/*/online"))}
    if supplies:
        facts["mains"] = any(supplies.values())
    zones = [zone for path in sorted(root.glob("sys/class/thermal/thermal_zone*")) if (zone := _zone(path))]
    if zones:
        facts["temperatures"] = dict(zones)
    return facts


def power_mode() -> str | None:
    """What ``nvpmodel -q`` says of a Jetson (``MAXN``, ``15W``); None elsewhere."""
    tool = shutil.which("nvpmodel")
    if tool is None:
        return None
    try:
        told = subprocess.run([tool, "-q"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    return next((line.partition(":")[2].strip() for line in told.splitlines() if "Power Mode" in line), None)


def _policy(folder: Path) -> dict[str, Any]:
    facts: dict[str, Any] = {name: told for name in _POLICY if (told := _read(folder / name)) is not None}
    for name in _CLOCKS:
        told = _read(folder / name)
        if told is not None and told.isdigit():
            facts[name.replace("scaling_", "").replace("freq", "mhz")] = int(told) / 1000
    return facts


def _frequencies(folder: Path) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for name in ("cur_freq", "min_freq", "max_freq"):
        told = _read(folder / name)
        if told is not None and told.isdigit():
            facts[name.replace("freq", "mhz")] = int(told) / 1_000_000
    governor = _read(folder / "governor")
    return {**facts, "governor": governor} if governor else facts


def _zone(folder: Path) -> tuple[str, float] | None:
    kind, told = _read(folder / "type"), _read(folder / "temp")
    if kind is None or told is None or not told.lstrip("-").isdigit():
        return None
    return kind, int(told) / 1000


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
