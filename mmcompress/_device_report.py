"""Puts the report of a device beside the other rows of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmcompress.errors import InputError
from mmcompress.report import Report, read_samples, write_report


def add_report(run: Report, device: Report) -> Report:
    """Write a run's report again with the rows, the samples and the environment of a device's; gives the new one.

    Rows of the same device in the same runtime and precision, which an earlier call added, are replaced. Verdicts stay:
    they are about the machine of the run.

    Raises:
        InputError: the other report is of no device, is the run's own, or their samples were changed.
    """
    name = device.environment.get("device")
    if run.folder is None or device.folder is None or run.folder.resolve() == device.folder.resolve():
        raise InputError("a report cannot be added to itself; name a device's report and the run it joins")
    if not isinstance(name, str):
        raise InputError(
            f"{device.folder}: not the report of a device\n"
            "  On the device, `mmcompress compile PACKAGE` writes one beside the new package."
        )
    replaced = {row.name for row in device.rows}
    kept = [row for row in run.rows if row.name not in replaced]
    samples: dict[str, Sequence[Mapping[str, Any]]] = {}
    for report, rows in ((run, kept), (device, device.rows)):
        for key in dict.fromkeys(row.samples for row in rows if row.samples):
            samples[key] = read_samples(report, key)
        unused = set(report.samples) - {row.samples for row in report.rows}
        samples |= {key: read_samples(report, key) for key in sorted(unused)}
    devices = {**run.environment.get("devices", {}), name: dict(device.environment)}
    return write_report(
        run.folder,
        title=run.title,
        rows=[*kept, *device.rows],
        samples=samples,
        environment={**run.environment, "devices": devices},
        recipe_text=run.recipe,
        verdicts=run.verdicts,
        notes=list(dict.fromkeys([*run.notes, *(f"{name}: {note}" for note in device.notes)])),
        steps=run.steps,
    )
