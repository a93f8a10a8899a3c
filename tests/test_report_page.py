"""The report's page: what it shows of which rows, that nothing of a user's text is markup, and that browsers like it."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image, ImageStat

from mmcompress import cli
from mmcompress.page import page, write_page
from mmcompress.page._plots import Point, pareto
from mmcompress.page._svg import Scale
from mmcompress.report import load_report
from tests import page_report
from tests.page_report import LIMIT, PACKAGE, TEACHER, Read, row


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "run"
    page_report.make(folder, test=page_report.Test())
    return folder


@pytest.fixture(scope="module")
def shown(made: Path) -> Read:
    return Read((made / "report.html").read_text(encoding="utf-8"))


# --- what it shows -------------------------------------------------------------------------------------------------


@pytest.mark.unit
def test_nothing_of_a_users_text_is_markup_and_the_page_asks_for_nothing(made: Path, shown: Read) -> None:
    text = (made / "report.html").read_text(encoding="utf-8")
    assert not shown.problems and not shown.open
    assert not shown.all("script") and "<script" not in text
    assert shown.text.count("<script>alert('1')</script>&\"'") > 20
    assert not [name for _, attributes in shown.tags for name in attributes if name.startswith("on")]
    addresses = [
        a[key] for _, a in shown.tags for key in ("src", "href", "srcset", "action", "data", "poster") if key in a
    ]
    assert addresses and all(address.startswith(("#", "data:")) for address in addresses)
    assert not re.search(r"url\(|@import|https?:", text)
    policy = next(a["content"] for a in shown.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy


@pytest.mark.unit
def test_links_lead_to_sections_and_the_verdict_comes_first(shown: Read) -> None:
    ids = [attributes["id"] for attributes in shown.all("section") if "id" in attributes]
    assert len(set(ids)) == len(ids)
    assert [a["href"] for a in shown.all("a")] == [f"#{name}" for name in ids]
    assert ids == [
        *("verdict", "compare", "notes", "pareto", "stages", "latency", "structure", "int8", "slices", "examples"),
        *("rows", "environment", "recipe"),
    ]
    assert next(a for a in shown.all("section"))["class"] == "verdict bad"
    assert "Failed: of 8 demands" in shown.text and "target failed: tensorrt int8" in shown.text


@pytest.mark.unit
def test_every_drawing_is_told_in_words_and_numbers(shown: Read) -> None:
    drawings = [a for a in shown.all("svg") if a.get("aria-hidden") != "true" and "preserveaspectratio" not in a]
    assert len(drawings) > 12
    assert all(a.get("role") == "img" and len(a.get("aria-label", "")) > 20 for a in drawings)
    figures, order = 0, [tag for tag, _ in shown.tags]
    for place, tag in enumerate(order):
        if tag == "figure":
            rest = order[place + 1 :]
            inner = rest[: rest.index("figure")] if "figure" in rest else rest
            assert {"svg", "figcaption", "details", "table"} <= set(inner)
            figures += 1
    assert figures > 12
    assert all(a.get("alt") for a in shown.all("img"))


@pytest.mark.unit
def test_an_error_rate_is_better_when_it_is_lower(shown: Read) -> None:
    labels = [a["aria-label"] for a in shown.all("svg") if "aria-label" in a]
    assert (
        "word error rate (lower is better) against transcribe p50 of 3 models. On the Pareto front: onnxruntime int8, teacher onnxruntime fp32."
        in labels
    )
    fall = next(label for label in labels if label.startswith("word error rate (lower is better): teacher"))
    assert "distill 14.0 % (+4.0 points); onnxruntime int8 16.0 % (+2.0 points)" in fall
    size = next(label for label in labels if label.startswith("size (lower is better)"))
    assert "distill 200.00 MB (\N{MINUS SIGN}50 %); onnxruntime int8 50.00 MB (\N{MINUS SIGN}75 %)" in size


@pytest.mark.unit
def test_slices_damage_classes_structure_and_int8_are_there(shown: Read) -> None:
    labels = " ".join(a["aria-label"] for a in shown.all("svg") if "aria-label" in a)
    for words in (
        "north: ",
        "noise 0.1: ",
        "image: ",
        "dog: ",
        "encoder.1 64 → 32 width",
        "encoder 3 of 4 products, 1 tables",
    ):
        assert words in labels, words
    assert "By slice" in shown.text and "Under damage" in shown.text and "With an input left out" in shown.text
    assert "Latency of transcribe, engine alone: teacher p50" in labels
    assert "was not timed: openvino is not installed" in shown.text


@pytest.mark.unit
def test_examples_that_differ_are_seen_heard_and_read(shown: Read) -> None:
    # Every seventh is wrong (6 of 40, all with cards), and every ninth that is not answers other words (4, of which 3).
    assert "onnxruntime int8, word error rate 40 6 (15.0%) 0 (0.0%) 4 (10.0%) 30 (75.0%)" in shown.text
    assert (
        "6 of 6: scored less than the teacher" in shown.text and "3 of 4: another answer, the same score" in shown.text
    )
    assert len(shown.all("article")) == 9
    assert {a["src"].partition(";")[0] for a in shown.all("img")} == {"data:image/jpeg", "data:image/png"}
    sounds = [a["src"] for a in shown.all("audio")]
    assert len(sounds) >= 5 and all(source.startswith("data:audio/wav;base64,UklGR") for source in sounds)
    assert "teacher said 9 " in shown.text and "package said 13 " in shown.text
    assert "label cat <script>" in shown.text


@pytest.mark.unit
def test_the_page_stays_below_its_limit_and_says_what_it_leaves_out(made: Path, tmp_path: Path) -> None:
    whole = (made / "report.html").stat().st_size
    assert whole < LIMIT
    rows = list(load_report(made).rows)
    for metric in ("accuracy", "recall_macro", "f1_macro"):
        values = {f"shop=number {index} {'long ' * 40}": index / 200 for index in range(200)}
        rows += page_report.parts(metric, "subset", values, reason="why " * 500)
    page_report.make(tmp_path, rows=rows, test=page_report.Test())
    found = Read((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert whole < (tmp_path / "report.html").stat().st_size < LIMIT
    assert "24 of 201 are drawn." in found.text and "The first 1,200; all are in report.json." in found.text
    assert (
        "a picture that the page has no room for" in found.text or "a sound that the page has no room for" in found.text
    )


@pytest.mark.unit
def test_the_page_is_made_again_as_it_was(made: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.cli, ["report", str(made), "--out", str(tmp_path / "new" / "page.html")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "new" / "page.html").read_bytes() == (made / "report.html").read_bytes()


@pytest.mark.unit
def test_samples_that_were_changed_are_told_and_not_drawn(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(made, folder)
    report = load_report(folder)
    (folder / report.samples["latency/teacher"].file).write_text("{}\n")
    again = Read(write_page(report, folder).read_text(encoding="utf-8"))
    assert "not drawn: samples latency/teacher: " in again.text
    assert any(
        "Latency of transcribe, engine alone: teacher onnxruntime fp32" in a.get("aria-label", "")
        for a in again.all("svg")
    )


# --- with less -----------------------------------------------------------------------------------------------------


@pytest.mark.unit
@pytest.mark.parametrize(
    "keep",
    [
        lambda row: False,
        lambda row: row.name == PACKAGE[0],
        lambda row: row.target == "torch",
        lambda row: row.target != "torch" and row.role == "package",
        lambda row: "latency" not in row.metric,
        lambda row: row.metric == "latency_ms_p50",
        lambda row: row.status == "not_runnable_here",
        lambda row: row.metric.startswith(("size", "parameters")),
        lambda row: "subset" in row.conditions or "class" in row.conditions,
    ],
)
def test_reports_that_lack_rows_have_a_page_too(made: Path, tmp_path: Path, keep: Any) -> None:
    rows = [found for found in load_report(made).rows if keep(found)]
    page_report.make(tmp_path, rows=rows, verdicts=[], steps=[], notes=[])
    found = Read((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert not found.problems and "No demands were made." in found.text
    assert ("Nothing was measured." in found.text) == (not rows)


@pytest.mark.unit
def test_values_that_are_zero_equal_or_alone_can_be_drawn(tmp_path: Path) -> None:
    same = {"higher_is_better": True, "ci95": (0.0, 0.0), "one_sided95": (0.0, 0.0), "interval_of": "example"}
    rows = [row(who, "accuracy", 0.0, **same) for who in (TEACHER, PACKAGE)]
    rows += [row(who, "size_bytes", 0.0, "byte", conditions={}, higher_is_better=False) for who in (TEACHER, PACKAGE)]
    rows += [row(who, "rmse", -3.0 if who is TEACHER else 1e12, "kWh", ci95=None) for who in (TEACHER, PACKAGE)]
    rows += [row(TEACHER, "latency_ms_p50", 2.0, "ms", conditions={"request": "classify"}, higher_is_better=False)]
    report = page_report.make(tmp_path, rows=rows, samples={}, verdicts=[], steps=[])
    assert not Read(page(report)).problems


@pytest.mark.unit
def test_the_front_holds_what_nothing_beats() -> None:
    points = [
        Point(name, x, y, 0, "circle")
        for name, x, y in (("a", 1, 5), ("b", 2, 4), ("c", 3, 9), ("d", 3, 7), ("e", 9, 9))
    ]
    assert [p.label for p in pareto(points, higher_is_better=True)] == ["a", "c"]
    assert [p.label for p in pareto(points, higher_is_better=False)] == ["a", "b"]


@pytest.mark.unit
def test_scales_mark_round_values() -> None:
    assert Scale(0, 10, 0, 100).ticks(5) == [0, 2, 4, 6, 8, 10]
    assert Scale(0.8, 1.0, 0, 100).ticks(4) == pytest.approx([0.8, 0.85, 0.9, 0.95, 1.0])
    assert Scale(1, 100, 0, 100, logarithmic=True)(10) == pytest.approx(50)
    assert Scale(0.3, 30, 0, 100, logarithmic=True).ticks(3) == pytest.approx([0.5, 1, 2, 5, 10, 20])
    assert Scale(0, 10, 0, 100)(20) == 100 and Scale(3, 3, 0, 100)(3) == 50


# --- in a browser --------------------------------------------------------------------------------------------------

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
in_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
LOADED = """<script>addEventListener('load', () => {
  document.body.getBoundingClientRect();
  const drawn = performance.now(), body = document.body;
  Object.assign(body.style, {width: 'WIDTHpx', overflow: 'hidden'});
  document.documentElement.dataset.seen = [drawn, body.scrollWidth, innerWidth].join(' ');
})</script>"""


class Proxy(BaseHTTPRequestHandler):
    """Answers everything that the browser asks of any host with nothing, and remembers it."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_error(404)

    do_CONNECT = do_POST = do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def asked() -> Iterator[tuple[int, list[str]]]:
    found: list[str] = []
    handler = type("Handler", (Proxy,), {"asked": found})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port, found
        server.shutdown()
        thread.join()


def browse(file: Path, *options: str, width: int = 1280, height: int = 900) -> tuple[str, list[str]]:
    """The page as the browser holds it, and what its console says."""
    assert BROWSER is not None
    profile = file.parent / "profile"
    command = [
        *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage"),
        *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *("--enable-logging=stderr", f"--user-data-dir={profile}", f"--window-size={width},{height}", *options),
        file.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, encoding="utf-8")
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@in_browser
def test_a_browser_has_nothing_to_complain_about_and_asks_for_nothing(
    made: Path, tmp_path: Path, asked: tuple[int, list[str]]
) -> None:
    port, requests = asked
    through = (f"--proxy-server=http://127.0.0.1:{port}", "--proxy-bypass-list=<-loopback>", "--dump-dom")
    control = tmp_path / "control.html"
    control.write_text("<img src='http://picture.example/a.png'><script>console.error('seen')</script>")
    _, said = browse(control, *through)
    assert any("picture.example" in path for path in requests) and any("seen" in line for line in said)
    requests.clear()
    shutil.copyfile(made / "report.html", tmp_path / "report.html")
    dom, said = browse(tmp_path / "report.html", *through)
    assert said == []
    assert not [path for path in requests if "google" not in path]  # the browser's own, which no page asks for
    assert len(Read(dom).all("figure")) == len(Read((made / "report.html").read_text(encoding="utf-8")).all("figure"))


@in_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_it_draws_in_a_second_and_needs_no_sideways_scrolling(made: Path, tmp_path: Path, width: int) -> None:
    text = (made / "report.html").read_text(encoding="utf-8")
    watched = re.sub(r"<meta http-equiv[^>]*>", "", text).replace(
        "</body>", LOADED.replace("WIDTH", str(width)) + "</body>"
    )
    (tmp_path / "watched.html").write_text(watched, encoding="utf-8")
    dom, _ = browse(tmp_path / "watched.html", "--dump-dom", width=width)
    seen = re.search(r'data-seen="([\d.]+) (\d+) (\d+)"', dom)
    assert seen is not None
    milliseconds, wide, inner = map(float, seen.groups())
    assert milliseconds < 1000
    assert wide <= width <= inner  # a browser without a head has no window narrower than 500 pixels


@in_browser
def test_it_is_dark_where_people_want_it_dark(made: Path, tmp_path: Path) -> None:
    shutil.copyfile(made / "report.html", tmp_path / "report.html")
    brightness = {}
    for name, scheme in (("light", 1), ("dark", 0)):
        picture = tmp_path / f"{name}.png"
        browse(tmp_path / "report.html", f"--blink-settings=preferredColorScheme={scheme}", f"--screenshot={picture}")
        with Image.open(picture) as opened:
            assert opened.size[0] == 1280
            brightness[name] = ImageStat.Stat(opened.convert("L")).mean[0]
    assert brightness["light"] > 200 and brightness["dark"] < 70
