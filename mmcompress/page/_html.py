"""Pieces of the report's page: escaped text, tables, figures with their data as text, and how it all looks."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from string import Template


class Html(str):
    """Text that is markup already; every other text is escaped where it is put on the page."""

    def __add__(self, other: str) -> Html:
        """Markup and what follows it, escaped where it is none."""
        return Html(str.__add__(self, escape(other)))


def escape(value: object) -> Html:
    """A value as text of the page; markup as it is."""
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def join(parts: Iterable[str]) -> Html:
    """Markup after markup."""
    return Html("".join(escape(part) for part in parts))


def tag(name: str, *content: object, **attributes: object) -> Html:
    """An element. ``class_`` is the attribute ``class``; an underscore within a name is a hyphen; None is left out."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in ("img", "input", "meta"):
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{''.join(escape(part) for part in content)}</{name}>")


def table(head: Sequence[object], body: Iterable[Sequence[object]], *, class_: str = "", label: str = "") -> Html:
    """A table whose first column names its rows; it scrolls sideways by itself where it is too wide."""
    heads = join(tag("th", cell, scope="col") for cell in head)
    lines = (
        tag("tr", tag("th", line[0], scope="row"), *(tag("td", cell) for cell in line[1:])) for line in body if line
    )
    found = tag("table", tag("thead", tag("tr", heads)), tag("tbody", *lines), class_=class_ or None)
    return tag("div", found, class_="scroll", tabindex="0", role="region", aria_label=label or f"Table: {head[0]}")


def details(summary: object, *content: object, open_: bool = False) -> Html:
    """What is shown when it is asked for."""
    return Html(f"<details{' open' if open_ else ''}>{tag('summary', summary)}{join(map(escape, content))}</details>")


def bullets(lines: Iterable[object], class_: str | None = None) -> Html:
    """A list."""
    return tag("ul", *(tag("li", line) for line in lines), class_=class_)


def section(name: str, heading: str, *content: object) -> Html:
    """A part of the page that links can name; nothing where it has no content."""
    inner = join(map(escape, content))
    return tag("section", tag("h2", heading), inner, id=name) if inner else Html()


def figure(
    caption: object, drawing: Html, head: Sequence[object], body: Sequence[Sequence[object]], note: object = ""
) -> Html:
    """A drawing with a caption and its numbers as a table."""
    under = tag("p", note, class_="note") if note else Html()
    return tag("figure", tag("figcaption", caption), drawing, under, details("Numbers", table(head, body)))


def document(title: str, body: Html) -> str:
    """A whole page. It carries all it needs, and a policy that keeps browsers from asking for anything."""
    return _DOCUMENT.substitute(title=escape(title), body=body, style=STYLE)


_DOCUMENT = Template(
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>$title</title>
<style>$style</style>
</head>
<body>
$body
</body>
</html>
"""
)

STYLE = """
:root {
  color-scheme: light dark; --text: #1b2330; --soft: #596477; --line: #d9dee7; --back: #f5f7fa; --card: #fff;
  --good: #10774a; --bad: #c02f2f; --open: #8f5f00; --link: #1f5fbf;
  --m0: #566174; --m1: #1f6fd0; --m2: #d2691e; --m3: #12876a; --m4: #9445bb; --m5: #b98a00; --m6: #c23b72; --m7: #3d8fa8;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
}
@media (prefers-color-scheme: dark) { :root {
  --text: #e5e9f0; --soft: #9aa5b8; --line: #333d4d; --back: #12161d; --card: #1a2029;
  --good: #4cc98f; --bad: #ff7d75; --open: #e3b341; --link: #82b4ff;
  --m0: #a3afc2; --m1: #62a8ff; --m2: #f0975a; --m3: #47c7a2; --m4: #c98be8; --m5: #e0b83c; --m6: #f283ad; --m7: #6cc3dc;
} }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--back); color: var(--text); }
header, main, footer { max-width: 80rem; margin: 0 auto; padding: 0 1rem; }
header { padding-top: 1.5rem; } footer { color: var(--soft); padding-bottom: 2rem; font-size: .85rem; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 0 0 .75rem; } h3 { font-size: .95rem; margin: 1.1rem 0 .5rem; }
p { margin: 0 0 .75rem; } a { color: var(--link); } ul { padding-left: 1.2rem; margin: 0 0 .75rem; }
li { overflow-wrap: anywhere; margin-bottom: .2rem; }
.soft, .note, figcaption small, .under { color: var(--soft); } .note { font-size: .82rem; margin: .35rem 0; }
nav { display: flex; flex-wrap: wrap; gap: .2rem .9rem; margin: .7rem 0 1rem; font-size: .88rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: .7rem; padding: 1rem; margin: 0 0 1rem; }
.scroll { overflow-x: auto; max-width: 100%; } .scroll:focus-visible { outline: 2px solid var(--link); }
table { border-collapse: separate; border-spacing: 0; font-size: .86rem; font-variant-numeric: tabular-nums; min-width: 100%; }
th, td { padding: .34rem .6rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; white-space: nowrap; }
th[scope=row] { text-align: left; font-weight: 500; position: sticky; left: 0; background: var(--card); }
thead th { color: var(--soft); font-weight: 600; vertical-align: bottom; white-space: normal; min-width: 5.5rem; } thead th:first-child { text-align: left; position: sticky; left: 0; background: var(--card); }
tbody tr:last-child > * { border-bottom: 0; } .words td { text-align: left; white-space: normal; min-width: 6rem; }
.group > th { color: var(--soft); font-size: .75rem; text-transform: uppercase; letter-spacing: .05em; padding-top: .8rem; }
td .under { display: block; font-size: .76rem; } td .good, td .bad { display: block; font-size: .76rem; }
.good { color: var(--good); } .bad { color: var(--bad); } .open { color: var(--open); }
.verdict { border-left: .45rem solid var(--soft); } .verdict.good { border-left-color: var(--good); }
.verdict.bad { border-left-color: var(--bad); } .verdict.open { border-left-color: var(--open); }
.verdict, .verdict h2 { color: var(--text); } .verdict h2 { font-size: 1.35rem; } .verdict ul { list-style: none; padding: 0; margin: 0; }
.verdict li { border-top: 1px solid var(--line); padding: .5rem 0; } .verdict li:last-child { padding-bottom: 0; }
.badge { display: inline-block; font-weight: 650; font-size: .82rem; border: 1px solid; border-radius: 1rem; padding: 0 .55rem; margin-right: .5rem; }
section > h3:first-child { margin-top: 0; } .tiles:last-child { margin-bottom: 0; } .tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .6rem; margin-bottom: .9rem; }
.tile { border: 1px solid var(--line); border-radius: .5rem; padding: .55rem .7rem; } .tile b { font-size: 1.35rem; display: block; line-height: 1.25; }
.tile span { font-size: .8rem; color: var(--soft); display: block; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 23.5rem), 1fr)); gap: 1.4rem 1.6rem; }
figure { margin: 0; min-width: 0; max-width: 36rem; } figcaption { font-weight: 600; font-size: .92rem; margin-bottom: .3rem; overflow-wrap: anywhere; }
figcaption small { font-weight: 400; display: block; }
figure svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { font: 12px system-ui, sans-serif; fill: var(--text); } svg .s { fill: var(--soft); font-size: 11px; } svg .e { text-anchor: end; } svg .m { text-anchor: middle; }
svg text.halo { paint-order: stroke; stroke: var(--card); stroke-width: 3px; stroke-linejoin: round; }
svg .grid { stroke: var(--line); stroke-width: 1; } svg .axis { stroke: var(--soft); stroke-width: 1; } svg .dash { stroke-dasharray: 4 3; }
svg .track { fill: var(--line); opacity: .6; } svg .front { fill: none; stroke: var(--soft); stroke-width: 1.4; stroke-dasharray: 5 4; }
svg .area { opacity: .3; } svg .up { fill: var(--good); } svg .down { fill: var(--bad); } svg .same { fill: var(--soft); } svg .goal { stroke: var(--text); stroke-width: 2; }
.m0 { color: var(--m0); } .m1 { color: var(--m1); } .m2 { color: var(--m2); } .m3 { color: var(--m3); } .m4 { color: var(--m4); } .m5 { color: var(--m5); } .m6 { color: var(--m6); } .m7 { color: var(--m7); }
svg .f { fill: currentColor; } svg .k { stroke: currentColor; stroke-width: 1.6; } svg .i { stroke: currentColor; stroke-width: 1.6; opacity: .55; } svg .k2 { stroke: currentColor; stroke-width: 2.4; } svg .hollow { fill: var(--card); stroke: currentColor; stroke-width: 2; }
.legend { display: flex; flex-wrap: wrap; gap: .15rem .9rem; font-size: .82rem; margin: 0 0 .8rem; padding: 0; list-style: none; } .legend li { margin: 0; } .legend svg { width: .8rem; height: .8rem; vertical-align: -.08rem; margin-right: .3rem; overflow: visible; }
details { margin-top: .4rem; font-size: .9rem; } summary { cursor: pointer; color: var(--link); } details[open] > summary { margin-bottom: .4rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 16rem), 1fr)); gap: .8rem; margin-bottom: .8rem; }
article { border: 1px solid var(--line); border-radius: .5rem; padding: .7rem; min-width: 0; overflow-wrap: anywhere; font-size: .88rem; }
article h4 { font: .74rem ui-monospace, monospace; color: var(--soft); margin: 0 0 .4rem; } dl { margin: 0; } article dt { font-size: .74rem; color: var(--soft); } article dd { margin: 0 0 .35rem; }
article img { max-width: 100%; min-width: 5rem; max-height: 12rem; image-rendering: auto; border-radius: .3rem; background: var(--line); display: block; } article img.tiny { image-rendering: pixelated; min-width: 9rem; }
.film { display: flex; gap: 2px; overflow-x: auto; } .film img { min-width: 4rem; } audio { width: 100%; display: block; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .6rem; border-top: 1px solid var(--line); padding-top: .4rem; } article .pair img { min-width: 0; } article .pair img.tiny { width: 100%; max-width: 7rem; }
article svg { width: 100%; height: 4rem; } polyline { fill: none; stroke: currentColor; }
pre { margin: 0; padding: .8rem; background: var(--back); border-radius: .5rem; overflow-x: auto; font: .8rem/1.45 ui-monospace, Menlo, Consolas, monospace; }
.facts { display: grid; grid-template-columns: minmax(7rem, max-content) 1fr; gap: .2rem 1rem; font-size: .88rem; } .facts dt { color: var(--soft); } .facts dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 40rem) { header, main, footer { padding-left: .6rem; padding-right: .6rem; } section { padding: .8rem; } h1 { font-size: 1.35rem; } th[scope=row] { white-space: normal; min-width: 7.4rem; max-width: 9rem; overflow-wrap: anywhere; } th, td { padding: .34rem .45rem; } .facts { grid-template-columns: 1fr; } .facts dd { margin-bottom: .4rem; } }
@media print { body { background: #fff; } section { break-inside: avoid; } nav { display: none; } }
"""
