from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import ValidationError

from mmcompress.component import dump, parse
from mmcompress.data import _pictures
from mmcompress.data._splits import check_disjoint
from mmcompress.data.image_text import ImageText
from mmcompress.errors import InputError

pytestmark = pytest.mark.unit

Row = dict[str, Any]


def png(colour: tuple[int, ...] = (200, 30, 30), size: tuple[int, int] = (8, 6), kind: str = "PNG") -> bytes:
    buffer = BytesIO()
    Image.new("RGBA" if len(colour) == 4 else "RGB", size, colour).save(buffer, kind)
    return buffer.getvalue()


def huge_png(width: int, height: int) -> bytes:
    """A PNG whose header promises far more pixels than its data holds."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three loose pictures, and three in an archive."""
    (tmp_path / "loose").mkdir()
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as archive:
        for number in range(3):
            (tmp_path / f"loose/{number}.png").write_bytes(png((number * 80, 10, 10)))
            archive.writestr(f"deep/{number}.png", png((10, number * 80, 10, 128)))
    return tmp_path


def table(folder: Path, *rows: Row | str, name: str = "table.jsonl") -> Path:
    path = folder / name
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def simple(folder: Path, **fields: Any) -> ImageText:
    rows = [{"file": f"loose/{n}.png", "name": f"Thing {n}", "kind": "ab"[n % 2]} for n in range(3)]
    rows += [{"file": f"packed.zip/deep/{n}.png", "name": f"Packed {n}", "kind": "c"} for n in range(3)]
    return ImageText(**{"path": table(folder, *rows), "image": "file", "text": "{name}", **fields})


def message(build: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as caught:
        build()
    return str(caught.value)


# --- what is read ----------------------------------------------------------------------------------------------------


def test_pictures_of_folders_and_archives(folder: Path) -> None:
    examples = simple(folder).read()
    assert len(examples) == len(examples.ids) == len(set(examples.ids)) == 6
    assert examples.columns == {"image", "texts"}
    assert examples.notes == {}
    assert examples.classes() == ()
    assert examples[1].values["image"].getpixel((0, 0)) == (80, 10, 10)
    assert examples[1].values["texts"] == ("Thing 1",)
    assert examples[4].values["image"].mode == "RGBA"
    assert examples[4].values["image"].getpixel((0, 0)) == (10, 80, 10, 128)
    assert examples[4].id == examples.ids[4]
    assert examples.ids[4].startswith("packed.zip/deep/1.png@")


def test_texts_by_template(folder: Path) -> None:
    row = {"file": "loose/0.png", "name": " Cat ", "tags": ["Big", "", None, "old", "old"], "count": 2, "none": None}
    path = table(folder, row)

    def texts(*template: str, lower: bool = False) -> Any:
        text = template if len(template) > 1 else template[0]
        return ImageText(path=path, image="file", text=text, lower=lower).read()[0].values["texts"]

    assert texts("{name}") == ("Cat",)
    assert texts("a photo of {name}, {count} of {count}", lower=True) == ("a photo of cat, 2 of 2",)
    assert texts("{tags}") == ("Big", "old")
    assert texts("{tags} {name}", "{name} {{x}}") == ("Big Cat", "old Cat", "Cat {x}")
    assert texts("{none}", "{name}") == ("Cat",)


def test_image_by_template_and_folder_by_name(folder: Path) -> None:
    elsewhere = folder / "captions"
    elsewhere.mkdir()
    path = table(elsewhere, {"number": 2, "name": "x"})
    spec = ImageText(path=path, image="packed.zip/deep/{number}.png", text="{name}", pictures=folder)
    assert spec.read()[0].values["image"].getpixel((0, 0)) == (10, 160, 10, 128)


def test_csv_and_tsv(folder: Path) -> None:
    comma = table(folder, "\ufefffile,name", 'loose/0.png,"one, two"', "", "loose/1.png,three", name="t.csv")
    tab = table(folder, "file\tname", "loose/0.png\tone, two", "loose/1.png\tthree", name="t.tsv")
    for path in (comma, tab):
        examples = ImageText(path=path, image="file", text="{name}").read()
        assert [examples[i].values["texts"] for i in range(2)] == [("one, two",), ("three",)]


def test_labels_ids_and_limit(folder: Path) -> None:
    examples = simple(folder, label="kind", id="name", limit=4).read()
    assert list(examples.ids) == ["Thing 0", "Thing 1", "Thing 2", "Packed 0"]
    assert examples.classes() == ("a", "b", "c")
    assert [examples[i].values["label"] for i in range(4)] == [0, 1, 0, 2]
    assert "label" in examples.columns


def test_kinds_of_pictures(folder: Path) -> None:
    palette = Image.new("P", (4, 4))
    palette.save(folder / "p.png", transparency=0)
    Image.new("L", (4, 4), 7).save(folder / "l.jpg")
    Image.new("CMYK", (4, 4)).save(folder / "cmyk.jpg")
    rows = [{"file": name, "name": "x"} for name in ("p.png", "l.jpg", "cmyk.jpg")]
    examples = ImageText(path=table(folder, *rows), image="file", text="{name}").read()
    assert [examples[i].values["image"].mode for i in range(3)] == ["RGBA", "RGB", "RGB"]


def test_read_from_threads_and_after_pickling(folder: Path) -> None:
    examples = simple(folder).read()
    expected = [examples[i].values["image"].tobytes() for i in range(6)]
    again = pickle.loads(pickle.dumps(examples))
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda i: again[i % 6].values["image"].tobytes(), range(60)))
    assert got == expected * 10


def test_a_forked_process_opens_its_own_archive(folder: Path) -> None:
    source = _pictures.locate(folder, "packed.zip/deep/1.png")
    mine = _pictures._archive(source.file)
    assert _pictures._archive(source.file) is mine
    _pictures._OPENED.process = os.getpid() + 1
    assert _pictures._archive(source.file) is not mine


def test_fingerprints_tell_content_not_names(folder: Path) -> None:
    (folder / "copy.png").write_bytes((folder / "loose/0.png").read_bytes())
    with zipfile.ZipFile(folder / "copy.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0.png", (folder / "loose/0.png").read_bytes())
    names = ["loose/0.png", "copy.png", "copy.zip/0.png", "loose/1.png"]
    rows = [{"file": name, "name": "x"} for name in names]
    examples = ImageText(path=table(folder, *rows), image="file", text="{name}").read()
    first, *copies, other = (examples.fingerprint(i) for i in range(4))
    assert copies == [first, first]
    assert other != first
    train = ImageText(path=table(folder, rows[0], name="train.jsonl"), image="file", text="{name}").read()
    test = ImageText(path=table(folder, *rows[2:], name="test.jsonl"), image="file", text="{name}").read()
    assert "share 1 of test's 2 examples (0 by id, 1 by content alone)" in message(
        lambda: check_disjoint(train, None, test)
    )


def test_the_same_row_twice_has_two_ids(folder: Path) -> None:
    row = {"file": "loose/0.png", "name": "x"}
    ids = ImageText(path=table(folder, row, row), image="file", text="{name}").read().ids
    assert ids[1] == f"{ids[0]}#2"


# --- identity --------------------------------------------------------------------------------------------------------


def test_identity_covers_the_table_the_pictures_and_the_fields(folder: Path) -> None:
    spec = simple(folder)
    first = spec.identity()
    assert first == spec.identity() == simple(folder).identity()
    assert str(folder) not in json.dumps(first)
    assert simple(folder, lower=True).identity() != first
    (folder / "loose/unused.png").write_bytes(png())
    assert spec.identity() == first
    (folder / "loose/0.png").write_bytes(png((1, 2, 3), size=(9, 9)))
    changed = spec.identity()
    assert changed != first
    with zipfile.ZipFile(folder / "packed.zip", "a") as archive:
        archive.writestr("more", b"more")
    assert spec.identity() not in (first, changed)
    path = table(folder, {"file": "loose/1.png", "name": "x"})
    assert ImageText(path=path, image="file", text="{name}").identity() != first


def test_identity_is_that_of_the_content_wherever_it_lies(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("other")
    for file in ("loose/0.png", "loose/1.png", "loose/2.png", "packed.zip"):
        (other / file).parent.mkdir(exist_ok=True)
        (other / file).write_bytes((folder / file).read_bytes())
    assert simple(folder).identity() == simple(other).identity()


def test_in_a_recipe(folder: Path) -> None:
    simple(folder)
    value = {"image_text": {"path": "table.jsonl", "image": "file", "text": ["{name}", "a {kind}"]}}
    spec = parse("data", value, {"base": folder})
    assert isinstance(spec, ImageText)
    assert parse("data", dump(spec)) == spec
    assert spec.read()[0].values["texts"] == ("Thing 0", "a a")


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["a picture", [], ["{name}", "x"], "{", "{name!r}", "{name:>9}", "{a.b}", "{a[0]}", "{}"]
)
def test_templates_that_name_no_column(text: Any) -> None:
    with pytest.raises(ValidationError):
        ImageText.model_validate({"path": "x.jsonl", "image": "file", "text": text})


def test_tables_that_cannot_be_used(folder: Path) -> None:
    def read(path: Path) -> str:
        return message(lambda: ImageText(path=path, image="file", text="{name}").read())

    assert "missing.jsonl: no such file" in read(folder / "missing.jsonl")
    assert "no such file" in read(folder / "no/folder.jsonl")
    assert "loose: a folder\n  Expected a table" in read(folder / "loose")
    assert "a .xlsx file\n  Expected a table: .jsonl" in read(table(folder, "x", name="t.xlsx"))
    assert "empty.jsonl: no examples in it" in read(table(folder, "", name="empty.jsonl"))
    assert "head.csv: no examples in it" in read(table(folder, "file,name", name="head.csv"))
    good = {"file": "loose/0.png", "name": "x"}
    assert "table.jsonl:3: not valid JSON" in read(table(folder, good, "", '{"file": '))
    assert "table.jsonl:2: expected an object" in read(table(folder, good, "[1]"))
    assert "c.csv:3: expected 2 cells, got 3" in read(
        table(folder, "file,name", "loose/0.png,x", "a,b,c", name="c.csv")
    )
    assert "c.csv:1: a column name stands twice" in read(table(folder, "file,file", "a,b", name="c.csv"))
    assert "not valid CSV" in read(table(folder, "file,name", 'loose/0.png,"x', name="c.csv"))
    (folder / "latin.jsonl").write_bytes(b'{"file": "\xe4.png"}')
    assert "latin.jsonl: not UTF-8" in read(folder / "latin.jsonl")
    pictures = folder / "nowhere"
    path = table(folder, good)
    spec = ImageText(path=path, image="file", text="{name}", pictures=pictures)
    assert "nowhere: no such folder" in message(spec.read)


def test_columns_that_are_not_there_or_hold_nothing(folder: Path) -> None:
    def read(row: Row, **fields: Any) -> str:
        spec = ImageText(**{"path": table(folder, row), "image": "file", "text": "{name}", **fields})
        return message(spec.read)

    good = {"file": "loose/0.png", "name": "x", "tags": ["a", "b"]}
    found = read(good, text="{nmae}")
    assert "table.jsonl:1: no column 'nmae' (did you mean 'name'?)" in found
    assert "columns there: file, name, tags" in found
    assert "no column 'image'" in read(good, image="image")
    assert "no column 'kind'" in read(good, label="kind")
    assert "no column 'key'" in read(good, id="key")
    assert "0 pictures named by 'file'" in read({**good, "file": ""})
    assert "2 pictures named by 'tags'" in read(good, image="tags")
    assert "2 values in column 'tags'" in read(good, label="tags")
    assert "no text in {name}" in read({**good, "name": "  "})
    assert "no text in {name}" in read({**good, "name": []})
    assert "column 'name' holds {'en': 'x'}" in read({**good, "name": {"en": "x"}})
    rows = [good, {**good, "file": "loose/1.png"}]
    spec = ImageText(path=table(folder, *rows), image="file", text="{name}", id="name")
    assert "table.jsonl:2: the id 'x' stands already at" in message(spec.read)


def test_captions_without_pictures(folder: Path) -> None:
    def read(name: str) -> str:
        rows = [{"file": "loose/0.png", "name": "x"}, {"file": name, "name": "y"}]
        spec = ImageText(path=table(folder, *rows), image="file", text="{name}", max_skipped=9)
        return message(spec.read)

    assert f"table.jsonl:2: picture not found: {folder / 'loose/9.png'}" in read("loose/9.png")
    assert "no member 'deep/9.png' among the 3 of" in read("packed.zip/deep/9.png")
    assert "picture not found" in read("absent.zip/1.png")
    assert "picture not found" in read("loose")
    (folder / "fake.zip").write_bytes(b"no archive")
    assert "fake.zip: not a zip archive" in read("fake.zip/1.png")


@pytest.mark.parametrize(
    "name",
    ["../secret.png", "/etc/passwd", "loose/../../secret.png", "packed.zip/../../x", "a\\b.png", "C:/x.png", "a\0b"],
)
def test_names_that_leave_the_folder(folder: Path, name: str) -> None:
    (folder.parent / "secret.png").write_bytes(png())
    spec = ImageText(path=table(folder, {"file": name, "name": "x"}), image="file", text="{name}")
    assert "is no path below" in message(spec.read)


@pytest.mark.parametrize("name", ["link.png", "away/secret.png", "away/packed.zip/1.png"])
def test_links_that_leave_the_folder(folder: Path, tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    away = tmp_path_factory.mktemp("away")
    (away / "secret.png").write_bytes(png())
    with zipfile.ZipFile(away / "packed.zip", "w") as archive:
        archive.writestr("1.png", png())
    (folder / "away").symlink_to(away)
    (folder / "link.png").symlink_to(away / "secret.png")
    spec = ImageText(path=table(folder, {"file": name, "name": "x"}), image="file", text="{name}")
    assert "by a link" in message(spec.read)


def test_a_member_with_an_evil_name_is_only_ever_read(folder: Path) -> None:
    with zipfile.ZipFile(folder / "evil.zip", "w") as archive:
        archive.writestr("../../escaped.png", png())
        archive.writestr("fine.png", png())
    spec = ImageText(path=table(folder, {"file": "evil.zip/fine.png", "name": "x"}), image="file", text="{name}")
    spec.read()[0]
    assert not list(folder.parent.glob("**/escaped.png"))


def broken(folder: Path, count: int, **fields: Any) -> ImageText:
    rows = []
    for number in range(6):
        data = png((number, 5, 5), size=(64, 64), kind="JPEG")
        # Cut in the middle: the header is whole, the picture is not.
        (folder / f"{number}.jpg").write_bytes(data[: len(data) // 2] if number < count else data)
        rows.append({"file": f"{number}.jpg", "name": f"n{number}"})
    return ImageText(**{"path": table(folder, *rows), "image": "file", "text": "{name}", **fields})


def test_broken_pictures_are_counted_up_to_the_limit(folder: Path) -> None:
    examples = broken(folder, 2, max_skipped=2).read()
    assert len(examples) == 4
    assert [examples[i].values["texts"] for i in range(4)] == [("n2",), ("n3",), ("n4",), ("n5",)]
    assert examples.notes == {"pictures that cannot be decoded": 2}
    found = message(broken(folder, 2, max_skipped=1).read)
    assert f"table.jsonl:1: {folder / '0.jpg'}: cannot be decoded" in found
    assert "2 of 6 pictures cannot be decoded; max_skipped allows 1" in found
    assert "1 of 6 pictures" in message(broken(folder, 1).read)
    assert "None of the 6 pictures" in message(broken(folder, 6, max_skipped=6).read)


def test_pictures_that_are_none_or_too_large(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(data: bytes, name: str = "odd.png") -> str:
        (folder / name).write_bytes(data)
        return message(ImageText(path=table(folder, {"file": name, "name": "x"}), image="file", text="{name}").read)

    assert "odd.png: cannot be decoded (no picture that can be read)" in read(b"hello")
    assert "cannot be decoded" in read(b"")
    assert "cannot be decoded" in read(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "a.eps")
    assert "9000 x 9000 pixels; at most 80,000,000" in read(huge_png(9000, 9000))
    assert "more than 80,000,000 pixels" in read(huge_png(11_000, 9_000))
    assert "more than 80,000,000 pixels" in read(huge_png(60_000, 60_000))
    deep = BytesIO()
    Image.new("I;16", (4, 4)).save(deep, "PNG")
    assert "more than 8 bits per channel" in read(deep.getvalue())
    monkeypatch.setattr(_pictures, "MAX_BYTES", 1000)
    assert "odd.png: 1,001 bytes; at most 1,000 are read" in read(b"x" * 1001)
    with zipfile.ZipFile(folder / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0.png", b"\0" * 5000)
    spec = ImageText(path=table(folder, {"file": "bomb.zip/0.png", "name": "x"}), image="file", text="{name}")
    assert "bomb.zip/0.png: 5,000 bytes" in message(spec.read)


def test_a_damaged_archive_names_the_member(folder: Path) -> None:
    data = bytearray((folder / "packed.zip").read_bytes())
    data[data.index(b"IDAT") + 6] ^= 0xFF
    (folder / "packed.zip").write_bytes(data)
    spec = ImageText(path=table(folder, {"file": "packed.zip/deep/0.png", "name": "x"}), image="file", text="{name}")
    assert "packed.zip/deep/0.png: cannot be unpacked (Bad CRC-32" in message(spec.read)


def test_a_picture_that_goes_away_later(folder: Path) -> None:
    examples = simple(folder).read()
    (folder / "loose/0.png").unlink()
    assert "loose/0.png: cannot be read" in message(lambda: examples[0])
