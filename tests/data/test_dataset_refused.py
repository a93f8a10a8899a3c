"""Data through the library `datasets`: what is told of it, and what is refused."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from mmcompress.data.dataset import Dataset
from tests.data.dataset_files import jsonl, message, png, shard, values, wav, write_files

pytestmark = pytest.mark.unit


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_files(tmp_path)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "exactly one of path and hub"),
        ({"path": "x.csv", "hub": "a/b", "revision": "1"}, "exactly one of path and hub"),
        ({"hub": "a/b"}, "needs a revision"),
        ({"path": "x.csv", "streaming": True}, "expected a limit"),
        ({"path": "x.csv", "columns": {"label": "a", "labels": "b"}}, "not both"),
        ({"path": "x.csv", "columns": {"tags": "a"}}, "expected both"),
        ({"path": "x.csv", "columns": {}}, "at least 1"),
        ({"path": "x.csv", "columns": {"text": "{a.b}"}}, "in braces"),
        ({"path": "x.csv", "columns": {"table": []}}, "with a column"),
        ({"path": "x.csv", "classes": {"label": ["a"]}}, "do not map"),
        ({"path": "x.csv", "trust_remote_code": True}, "Extra inputs"),
    ],
)
def test_specifications_that_cannot_work(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        Dataset.model_validate({"columns": {"text": "text"}, **fields})


def test_all_missing_columns_and_files_are_named_with_their_row(folder: Path) -> None:
    path = jsonl(folder, *({"file": f"{n}.png", "q": "why?", "a": ["x"] if n else []} for n in range(5)))
    found = message(Dataset(path=path, columns={"image": "fiel", "question": "quest", "text": "{nope}"}, id="key").read)
    assert "no column 'fiel' for image (did you mean 'file'?)" in found
    assert (
        all(f"no column {name!r}" in found for name in ("quest", "nope", "key"))
        and "columns there: file, q, a" in found
    )
    spec = Dataset(path=path, columns={"image": "file", "question": "q", "answers": "a"})
    found = message(spec.read)
    assert "rows.jsonl: row 1: no answer in 'a'\n  Expected at least one: a question without an answer" in found
    assert f"rows.jsonl: row 4: picture not found: {folder / '3.png'}" in found and "row 5: picture not found" in found
    assert "3 of 5 rows cannot be used; max_skipped allows 0" in found
    examples = spec.model_copy(update={"max_skipped": 3}).read()
    assert len(examples) == 2 and examples.notes == {"rows left out": 3}
    assert [examples[i].values["image"].getpixel((0, 0))[0] for i in (0, 1)] == [50, 100]


def test_strange_pictures_and_sounds_are_counted_and_broken_ones_refused(folder: Path) -> None:
    (folder / "dot.png").write_bytes(png(9, (1, 1)))
    (folder / "print.jpg").write_bytes(png(0, mode="CMYK", kind="JPEG"))
    (folder / "clear.png").write_bytes(png(3, mode="RGBA"))
    rows = [{"file": name} for name in ("dot.png", "print.jpg", "clear.png", "0.png")]
    examples = Dataset(path=jsonl(folder, *rows), columns={"image": "file"}).read()
    assert examples.notes == {
        "pictures of one pixel's width or height": 1,
        "pictures in CMYK, converted to RGB": 1,
        "pictures with transparency": 1,
    }
    assert [examples[i].values["image"].mode for i in range(4)] == ["RGB", "RGB", "RGBA", "RGB"]
    (folder / "broken.png").write_bytes(png(1)[:40])
    (folder / "sounds/empty.wav").write_bytes(wav(0.0, 0))
    (folder / "sounds/text.wav").write_text("no sound")
    found = message(Dataset(path=jsonl(folder, {"file": "broken.png"}), columns={"image": "file"}).read)
    assert "row 1: " in found and "broken.png: cannot be decoded" in found
    rows = [{"file": f"sounds/{name}.wav"} for name in ("empty", "text", "0", "1")]
    spec = Dataset(path=jsonl(folder, *rows), columns={"audio": "file"}, max_skipped=2)
    assert spec.read().notes == {"silent sounds": 1, "rows left out": 2}
    found = message(spec.model_copy(update={"max_skipped": 0}).read)
    assert "empty.wav: an empty sound" in found and "text.wav: not a readable sound" in found
    rows = [{"film": ["0.png", "dot.png"]}]
    assert "several sizes" in message(Dataset(path=jsonl(folder, *rows), columns={"frames": "film"}).read)


def test_values_of_the_wrong_kind_are_refused(folder: Path) -> None:
    row = {"text": "x", "n": "many", "words": ["a", "b"], "tags": [0], "list": [1, 2], "none": None, "deep": {"a": 1}}

    def read(**columns: Any) -> str:
        return message(Dataset(path=jsonl(folder, row, row), columns=columns).read)

    assert "row 1: 'n' holds 'many'\n  Expected a number" in read(number="n")
    assert "1 words and 2 tags" in read(words="text", tags="list")
    assert "2 words and 1 tags" in read(words="words", tags="tags")
    assert "exactly one, got 2" in read(text="list")
    assert "exactly one number, got 0" in read(number="none")
    assert "one in each column" in read(table=["list", "list"])
    assert "no 'b' in column 'deep'" in read(text="deep.b")
    assert "holds {'a': 1}" in read(text="deep")
    assert "no text in 'none'" in read(texts="none")
    rows = [{"id": "a", "text": "x"}, {"id": "a", "text": "y"}]
    found = message(Dataset(path=jsonl(folder, *rows), columns={"text": "text"}, id="id").read)
    assert "row 2: the id 'a' stands already at" in found


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "pictures.zip/../../x", "a\\b.png"])
def test_names_do_not_leave_the_folder(folder: Path, name: str) -> None:
    (folder.parent / "secret.png").write_bytes(png(1))
    assert "is no path below" in message(Dataset(path=jsonl(folder, {"file": name}), columns={"image": "file"}).read)
    path = folder / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([{"file": {"path": str(folder.parent / "secret.png"), "bytes": None}}]), path)
    assert "lies outside the folder" in message(Dataset(path=path, columns={"image": "file"}).read)


def test_names_may_go_up_inside_the_named_folder(folder: Path) -> None:
    (folder / "tables").mkdir()
    path = jsonl(folder / "tables", {"file": "../pictures.zip/1.png"})
    assert "is no path below" in message(Dataset(path=path, columns={"image": "file"}).read)
    found = values({"image": "tables/{file}"}, path, files=folder)
    assert found["image"].getpixel((0, 0)) == (50, 0, 0)


def test_sources_that_cannot_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(name: str, text: str | bytes | None = None, **fields: Any) -> str:
        path = folder / name
        if text is not None:
            path.write_bytes(text.encode() if isinstance(text, str) else text)
        return message(Dataset(path=path, columns={"text": "a"}, **fields).read)

    assert "nothing.csv: no such file" in read("nothing.csv")
    assert "a .xlsx file\n  Expected .csv, .tsv" in read("x.xlsx", "x")
    assert "holds pictures and sounds" in read(".")
    assert "cut.csv:3: expected 2 cells, got 1" in read("cut.csv", "a,b\n1,2\n3")
    assert "cut.jsonl: cannot be read" in read("cut.jsonl", '{"a": 1}\n{"a": ')
    assert "empty.csv: no examples in it" in read("empty.csv", "a,b\n")
    table = io.BytesIO()
    pq.write_table(pa.table({"a": ["x"] * 50}), table)
    assert "cut.parquet: cannot be read" in read("cut.parquet", table.getvalue()[:-9])
    whole = shard(folder / "whole.tar", {f"{n}.a": b"x" * 2000 for n in range(3)}).read_bytes()
    for length in (5 * 512, 4 * 512 + 100):
        assert "cut.tar: " in read("cut.tar", whole[:length])
    packed = shard(folder / "whole.tar.gz", {f"{n}.a": os.urandom(2000) for n in range(3)}).read_bytes()
    assert "cut.tar.gz: cannot be read" in read("cut.tar.gz", packed[:-200])
    (folder / "mixed").mkdir()
    (folder / "mixed/a.csv").write_text("a\n1\n")
    (folder / "mixed/a.parquet").write_bytes(table.getvalue())
    assert "files of csv and parquet" in read("mixed")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("MMCOMPRESS_STORE", str(folder / "store"))
    found = message(Dataset(hub="a/b", revision="main", split="test", columns={"text": "a"}).read)
    assert "a/b@main, split test: cannot be read" in found and "HF_HUB_OFFLINE is set" in found


def test_pickles_are_not_opened(folder: Path) -> None:
    path = shard(folder / "evil.tar", {"0.pth": b"\x80\x04.", "0.txt": b"x"})
    assert "is a pickle and is not opened" in message(Dataset(path=path, columns={"text": "txt"}).read)
    shard(folder / "fine.tar", {"0.pyd": b"\x80\x04.", "0.txt": b"x"})
    assert values({"text": "txt"}, folder / "fine.tar") == {"text": "x"}
    from mmcompress.data._dataset_rows import _check_reader

    reader = type("Pandas", (), {"__module__": "datasets.packaged_modules.pandas.pandas"})()
    assert "pickled tables are not opened" in message(lambda: _check_reader(reader, "a/b"))
