"""The pages of real runs: how large they are, and how long a browser takes to draw them.

    python benchmarks/page.py RUNS --out benchmarks/results/page.json    (half a minute a page)

RUNS is a folder that holds runs, at any depth. The page of every recipe's newest run is written anew and opened in a headless
Chromium, on a screen and on a phone, each time by a browser of its own. The time is from the start of the navigation until everything of the
page has its place. ``--quick`` opens each page once.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _claims import Claim, main

from mmcompress.errors import InputError
from mmcompress.page import write_page
from mmcompress.report import load_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTHS = {"a screen": 1280, "a phone": 390}
LOADS = 5
LARGEST, LONGEST = 2.0, 1000.0
SCRIPT = """<script>addEventListener('load', () => {
  document.body.getBoundingClientRect();
  document.documentElement.dataset.drawn = performance.now();
})</script>"""


def pages(runs: Path, to: Path) -> dict[str, Path]:
    """The page of the newest run of every recipe, as it is written now, by the run's name.

    Raises:
        InputError: there is no run.
    """
    newest = {report.parents[1]: report.parent for report in sorted(runs.rglob("report.json")) if _whole(report.parent)}
    if not newest:
        raise InputError(f"{runs}: no runs in it\n  Name a folder that `mmcompress run` wrote runs to.")
    names = {str(run.relative_to(runs)): run for run in newest.values()}
    return {name: write_page(load_report(run), to / f"{run.name}.html") for name, run in names.items()}


def _whole(run: Path) -> bool:
    return run.name != "latest" and (run / "report.html").is_file()


def draw_ms(browser: str, page: Path, width: int) -> float:
    """Milliseconds until the page is laid out, in a new browser."""
    with tempfile.TemporaryDirectory() as folder:
        watched = Path(folder) / "page.html"
        # The page's own policy forbids scripts, and its only change is the one that takes the time.
        text = re.sub(r"<meta http-equiv[^>]*>", "", page.read_text(encoding="utf-8"))
        watched.write_text(text.replace("</body>", f"{SCRIPT}</body>"), encoding="utf-8")
        command = [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
            *(f"--user-data-dir={folder}/profile", f"--window-size={width},900", "--dump-dom", watched.as_uri()),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, encoding="utf-8")
    found = re.search(r'data-drawn="([\d.]+)"', done.stdout)
    if found is None:
        raise RuntimeError(f"{page}: the browser did not say when it was drawn")
    return float(found[1])


def measure(quick: bool, runs: Path) -> tuple[Sequence[Claim], Mapping[str, Any]]:
    """The largest page, and the median time of the page that takes longest, on each width."""
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        raise InputError(f"no browser is installed; expected one of {', '.join(BROWSERS)}")
    loads = 1 if quick else LOADS
    with tempfile.TemporaryDirectory() as folder:
        found = pages(runs, Path(folder))
        megabytes = {name: page.stat().st_size / 1e6 for name, page in found.items()}
        times = {
            where: {name: [draw_ms(browser, page, width) for _ in range(loads)] for name, page in found.items()}
            for where, width in WIDTHS.items()
        }
    largest = max(megabytes.values())
    claims = [
        Claim("pages of real runs", float(len(found)), "", None, None, True, None),
        Claim("the largest page", largest, "MB", None, LARGEST, False, largest < LARGEST),
    ]
    for where, of_page in times.items():
        slowest = max(float(np.median(found)) for found in of_page.values())
        worst = max(max(found) for found in of_page.values())
        for what, value in (("the median of the slowest page", slowest), ("the slowest load of all", worst)):
            claims.append(Claim(f"drawn on {where}: {what}", value, "ms", None, LONGEST, False, value < LONGEST))
    return claims, {"megabytes": megabytes, "draw_ms": times}


if __name__ == "__main__":
    sys.exit(main(__doc__ or "", measure, paths=["runs"]))
