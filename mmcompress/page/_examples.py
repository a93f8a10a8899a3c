"""Examples that teacher and package answer differently: which they are, kept beside the report, and shown on its page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mmcompress._probe import EXAMPLES, read_probe
from mmcompress._report_rows import Column
from mmcompress._report_text import title
from mmcompress._values import store_value
from mmcompress.page._html import Html, escape, join, section, table, tag
from mmcompress.page._media import Media, preview
from mmcompress.page._view import Side, View, metric_title, row_of

if TYPE_CHECKING:
    from mmcompress.data import Examples

FOLDER = "examples"
MOST = {"lost": 6, "gained": 3, "other": 3}
"""Examples that are shown of each package, by what became of the answer."""
_KINDS = {"lost": "scored less than the teacher", "gained": "scored more", "other": "another answer, the same score"}
_INNER = frozenset({"id", "score", "true"})
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Comparison:
    """One package's answers beside the teacher's, by one metric."""

    side: Side
    metric: str
    n: int
    pairs: Mapping[str, Sequence[tuple[Record, Record]]]
    """Teacher's and package's records that differ, the largest differences first, by kind."""

    def shown(self) -> Iterator[tuple[str, Record, Record]]:
        """Those that have a card of their own."""
        for kind, pairs in self.pairs.items():
            for teacher, package in pairs[: MOST[kind]]:
                yield kind, teacher, package


def comparisons(view: View) -> list[Comparison]:
    """Every package by every quality that has answers example by example."""
    found = []
    for side in view.packages:
        for column in view.quality:
            compared = _compare(view, side, column)
            if compared is not None:
                found.append(compared)
    return found


def _compare(view: View, side: Side, column: Column) -> Comparison | None:
    rows = [row_of(of, column) for of in (view.teacher, side) if of is not None]
    if len(rows) < 2 or rows[0] is None or rows[1] is None or rows[0].metric not in rows[0].samples:
        return None
    records = [{str(item["id"]): item for item in view.samples(row.samples) if "id" in item} for row in rows if row]
    shared = [name for name in records[0] if name in records[1]]
    if not shared:
        return None
    sign = 1 if rows[1].higher_is_better else -1
    pairs: dict[str, list[tuple[Record, Record]]] = {kind: [] for kind in MOST}
    for name in shared:
        teacher, package = records[0][name], records[1][name]
        difference = sign * (_score(package) - _score(teacher))
        if difference:
            pairs["gained" if difference > 0 else "lost"].append((teacher, package))
        elif _answers(teacher) != _answers(package):
            pairs["other"].append((teacher, package))
    for some in pairs.values():
        some.sort(key=lambda pair: -abs(_score(pair[1]) - _score(pair[0])))
    return Comparison(side, column.metric, len(shared), pairs)


def _score(record: Record) -> float:
    return float(record.get("score") or 0.0)


def _answers(record: Record) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in _INNER}


def _with_cards(found: Sequence[Comparison]) -> list[Comparison]:
    """The first comparison of each package whose records hold answers."""
    first: dict[str, Comparison] = {}
    for comparison in found:
        records = [teacher for _, teacher, _ in comparison.shown()]
        if records and _answers(records[0]):
            first.setdefault(comparison.side.label, comparison)
    return list(first.values())


# --- beside the report ---------------------------------------------------------------------------------------------


def keep_examples(view: View, test: Examples) -> None:
    """Write previews of the examples that have cards, and of those that answers name, to ``examples`` beside the report."""
    assert view.report.folder is not None
    wanted: dict[str, None] = {}
    for comparison in _with_cards(comparisons(view)):
        for _, *records in comparison.shown():
            names = [value for record in records for value in (record["id"], *_answers(record).values())]
            wanted.update(dict.fromkeys(name for name in names if isinstance(name, str)))
    places = {name: index for index, name in enumerate(test.ids) if name in wanted}
    if not places:
        return
    target = view.report.folder / FOLDER
    target.mkdir(exist_ok=True)
    with (target / EXAMPLES).open("w", encoding="utf-8") as file:
        for number, (name, index) in enumerate(places.items()):
            values = {
                key: store_value(preview(value), target, f"{number:04d}-{place}")
                for place, (key, value) in enumerate(_named(test[index].values, test.classes()).items())
            }
            file.write(json.dumps({"id": name, **values}, ensure_ascii=False) + "\n")


def _named(values: Mapping[str, Any], classes: Sequence[str]) -> dict[str, Any]:
    """Values of an example, classes by their names."""
    named = dict(values)
    if classes and "label" in named:
        named["label"] = classes[named["label"]]
    if classes and "labels" in named:
        named["labels"] = tuple(classes[index] for index in named["labels"])
    named.pop("tags", None)
    return named


def _kept(view: View) -> dict[str, dict[str, Any]]:
    folder = view.report.folder
    if folder is None or not (folder / FOLDER / EXAMPLES).is_file():
        return {}
    columns = read_probe(folder / FOLDER)
    names = columns.pop("id")
    return {name: {key: column[index] for key, column in columns.items()} for index, name in enumerate(names)}


# --- on the page ---------------------------------------------------------------------------------------------------


def examples(view: View, room: int) -> Html:
    """How many answers differ, and some of them with what was asked; pictures and sounds take ``room`` bytes at most."""
    found = comparisons(view)
    if not found:
        return Html()
    head = ["package, metric", "examples", *_KINDS.values(), "same"]
    body = []
    for item in found:
        counts = [len(item.pairs[kind]) for kind in _KINDS]
        told = [f"{count:,} ({count / item.n:.1%})" for count in (*counts, item.n - sum(counts))]
        body.append([f"{item.side.label}, {title(item.metric)}", f"{item.n:,}", *told])
    kept, cards = _kept(view), _with_cards(found)
    names = [teacher["id"] for comparison in cards for _, teacher, _ in comparison.shown()]
    media = Media(room, sum(1 for name in names for value in kept.get(name, {}).values() if Media.is_sound(value)))
    parts = [_cards(comparison, kept, media) for comparison in cards]
    return section("examples", "Where teacher and package differ", table(head, body), *parts)


def _cards(comparison: Comparison, kept: Mapping[str, Mapping[str, Any]], media: Media) -> Html:
    parts = [tag("h3", f"{comparison.side.label}: {metric_title(comparison.metric)}")]
    groups: dict[str, list[Html]] = {}
    for kind, teacher, package in comparison.shown():
        groups.setdefault(kind, []).append(_card(teacher, package, kept, media))
    for kind, found in groups.items():
        count = f"{len(found)} of {len(comparison.pairs[kind]):,}: {_KINDS[kind]}"
        parts += [tag("p", count, class_="note"), tag("div", *found, class_="cards")]
    return join(parts)


def _card(teacher: Record, package: Record, kept: Mapping[str, Mapping[str, Any]], media: Media) -> Html:
    name = str(teacher["id"])
    asked = [(key, media.shown(value, f"{key} of {name}")) for key, value in kept.get(name, {}).items()]
    seen = [found for found in asked if "<img" in found[1] or "<audio" in found[1]]
    words = [found for found in asked if found not in seen]
    if "true" in teacher:
        words.append(("true", escape(teacher["true"])))
    changed = [key for key in _answers(teacher) if teacher[key] != package.get(key)] or list(_answers(teacher))
    answers = join(_answer_pair(key, teacher, package, kept, media) for key in changed)
    words.append(("score", escape(f"{_number(teacher)} → {_number(package)}")))
    lines = join(tag("dt", key) + tag("dd", shown) for key, shown in [*seen, *words])
    return tag("article", tag("h4", name), tag("dl", lines), answers)


def _answer_pair(
    key: str, teacher: Record, package: Record, kept: Mapping[str, Mapping[str, Any]], media: Media
) -> Html:
    """Both answers side by side."""
    about = key.removeprefix("answer").replace("_", " ").strip()
    parts = []
    for who, record in (("teacher", teacher), ("package", package)):
        label = tag("dt", f"{who}, {about}" if about else who)
        parts.append(tag("div", label, tag("dd", _answer(key, record.get(key), kept, media))))
    return tag("dl", *parts, class_="pair")


def _number(record: Record) -> str:
    return f"{_score(record):.4g}" if "score" in record else "-"


def _answer(key: str, value: Any, kept: Mapping[str, Mapping[str, Any]], media: Media) -> Html:
    """An answer; where it is another example's id, what that one shows or says."""
    if not isinstance(value, str) or value not in kept:
        return escape(value if not isinstance(value, (list, tuple, np.ndarray)) else ", ".join(map(str, value)))
    columns = kept[value]
    order = ("image", "texts", "text") if key.endswith("to_image") else ("texts", "text", "image")
    found = next((columns[name] for name in order if name in columns), None)
    if isinstance(found, tuple) and found and isinstance(found[0], str):
        found = found[0]
    return media.shown(found, f"answer {value}") if found is not None else escape(value)
