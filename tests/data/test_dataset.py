"""Data through the library `datasets`: formats, columns, what is refused, what is told."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from PIL import Image
from pydantic import ValidationError

from mmcompress._sound import Sound
from mmcompress.component import dump, parse
from mmcompress.data._splits import check_disjoint, subset
from mmcompress.data.dataset import Dataset
from mmcompress.errors import InputError

pytestmark = pytest.mark.unit


def png(red: int, size: tuple[int, int] = (6, 4), mode: str = "RGB", kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, (red,) + (0,) * (len(mode) - 1)).save(buffer, kind)
    return buffer.getvalue()


def wav(value: float, count: int = 100) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.full(count, value), 8000, format="WAV")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures in a folder and a zip archive, three sounds."""
    (tmp_path / "sounds").mkdir()
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        for n in range(3):
            archive.writestr(f"{n}.png", png(n * 50))
            (tmp_path / f"{n}.png").write_bytes(png(n * 50))
            (tmp_path / f"sounds/{n}.wav").write_bytes(wav(n / 4))
    return tmp_path


def jsonl(folder: Path, *rows: dict[str, Any], name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def shard(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, content in members.items():
            information = tarfile.TarInfo(name)
            information.size = len(content)
            archive.addfile(information, io.BytesIO(content))
    return path


def values(columns: dict[str, Any], path: Path, index: int = 0, **fields: Any) -> dict[str, Any]:
    return dict(Dataset(path=path, columns=columns, **fields).read()[index].values)


def message(build: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as caught:
        build()
    return str(caught.value)


# --- formats ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json", "parquet"])
def test_tables_of_every_format_hold_the_same(folder: Path, kind: str, streaming: bool) -> None:
    rows = [{"file": f"pictures.zip/{n}.png", "id": f"00{n}", "note": "a, b" if n else "NA"} for n in range(3)]
    path = folder / f"rows.{kind}"
    if kind in ("csv", "tsv"):
        mark = "," if kind == "csv" else "\t"
        lines = [mark.join(rows[0]), *(mark.join(f'"{cell}"' for cell in row.values()) for row in rows)]
        path.write_text("\ufeff" + "\n".join(lines))
    elif kind == "jsonl":
        jsonl(folder, *rows)
    elif kind == "json":
        path.write_text(json.dumps(rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    more = {"streaming": True, "limit": 2} if streaming else {"limit": 2}
    spec = Dataset.model_validate({"path": path, "columns": {"image": "file", "text": "id", "note": "note"}, **more})
    examples = spec.read()
    assert len(examples) == 2 and examples.columns == {"image", "text", "note"} and examples.notes == {}
    assert [examples[i].values["text"] for i in range(2)] == ["000", "001"]
    assert [examples[i].values["note"] for i in range(2)] == ["NA", "a, b"]
    assert examples[1].values["image"].getpixel((0, 0)) == (50, 0, 0)
    plain = Dataset(path=jsonl(folder, *rows, name="other.jsonl"), columns=spec.columns, limit=2).read()
    assert list(plain.ids) == list(examples.ids)
    assert [plain.fingerprint(i) for i in range(2)] == [examples.fingerprint(i) for i in range(2)]


def test_shards_of_webdataset(folder: Path) -> None:
    for number, suffix in ((0, "tar"), (1, "tar.gz")):
        members = {}
        for n in range(2):
            key = f"{number}{n}"
            members |= {f"{key}.png": png(n * 50), f"{key}.wav": wav(0.25), f"{key}.json": b'{"caption": "c%d"}' % n}
            array = io.BytesIO()
            np.save(array, np.arange(4, dtype=np.float32) + n)
            members |= {f"{key}.txt": "\N{LATIN SMALL LETTER E WITH ACUTE}".encode(), f"{key}.npy": array.getvalue()}
        shard(folder / f"s{number}.{suffix}", members)
    columns = {"image": "png", "audio": "wav", "texts": ["json.caption", "txt"], "features": "npy", "key": "__key__"}
    for more in ({}, {"streaming": True, "limit": 4}):
        examples = Dataset.model_validate({"path": folder / "s*.tar*", "columns": columns, **more}).read()
        assert [examples[i].values["key"] for i in range(4)] == ["00", "01", "10", "11"]
        found = examples[3].values
        assert found["image"].getpixel((0, 0)) == (50, 0, 0) and found["audio"].rate == 8000
        assert found["texts"] == ("c1", "é") and found["features"].tolist() == [1, 2, 3, 4]


def test_folders_of_pictures_and_of_sounds(folder: Path) -> None:
    for name, n in (("dog", 0), ("cat", 1)):
        (folder / "data" / name).mkdir(parents=True)
        (folder / "data" / name / "1.png").write_bytes(png(n * 50))
        (folder / "spoken" / name).mkdir(parents=True)
        (folder / "spoken" / name / "1.wav").write_bytes(wav(n / 4))
    examples = Dataset(path=folder / "data", columns={"image": "image", "label": "label"}).read()
    assert examples.classes() == ("cat", "dog")
    assert {
        examples.classes()[examples[i].values["label"]]: examples[i].values["image"].getpixel((0, 0))[0] for i in (0, 1)
    } == {
        "dog": 0,
        "cat": 50,
    }
    examples = Dataset(path=folder / "spoken", columns={"audio": "audio", "label": "label"}).read()
    assert examples.notes == {"silent sounds": 1}
    assert sorted(round(float(examples[i].values["audio"].samples[0]), 2) for i in (0, 1)) == [0, 0.25]
    (folder / "data" / "metadata.csv").write_text("file_name,caption\ndog/1.png,a dog\ncat/1.png,a cat\n")
    examples = Dataset(path=folder / "data", columns={"image": "image", "texts": "caption"}).read()
    assert {examples[i].values["texts"] for i in (0, 1)} == {("a dog",), ("a cat",)}


# --- values ----------------------------------------------------------------------------------------------------------


def test_every_value_has_its_type(folder: Path) -> None:
    np.save(folder / "steps.npy", np.ones((5, 2)))
    row = {
        **{"file": "1.png", "films": ["0.png", "1.png"], "sound": "sounds/1.wav", "names": ["Cat", " ", "cat", "Cat"]},
        **{"answers": [{"answer": "yes"}, {"answer": "no"}, {"answer": "yes"}], "question": " why? ", "kind": "b"},
        **{"parts": ["x", "b"], "size": 3, "width": "1.5", "steps": [1, 2, 3], "file2": "steps.npy", "vector": [1, 2]},
        **{"words": ["a", "big", "star"], "tags": ["O", "B", "I"], "where": {"place": "here"}},
    }
    other = {**row, "kind": "a", "parts": [], "tags": ["O", "A", "O"]}
    columns = {
        **{
            "image": "file",
            "frames": "films",
            "audio": "sound",
            "texts": ["names", "a {kind}"],
            "question": "question",
        },
        **{"answers": "answers.answer", "label": "kind", "number": "width", "table": ["size", "width"]},
        **{"series": "steps", "features": "vector", "words": "words", "tags": "tags", "place": "where.place"},
    }
    found = values(columns, jsonl(folder, row, other))
    assert found["image"].getpixel((0, 0)) == (50, 0, 0) and isinstance(found["audio"], Sound)
    assert [frame.getpixel((0, 0))[0] for frame in found["frames"]] == [0, 50]
    assert found["texts"] == ("Cat", "cat", "a b") and found["question"] == "why?"
    assert found["answers"] == ("yes", "no", "yes") and found["label"] == 1 and found["number"] == 1.5
    assert found["table"].tolist() == [3, 1.5] and found["table"].dtype == np.float32
    assert found["series"].tolist() == [[1], [2], [3]] and found["features"].tolist() == [1, 2]
    assert found["words"] == ("a", "big", "star") and found["tags"] == (0, 2, 3) and found["place"] == "here"
    examples = Dataset(path=folder / "rows.jsonl", columns={"labels": "parts", "series": "file2"}).read()
    assert [examples[i].values["labels"] for i in (0, 1)] == [(0, 1), ()] and examples.classes() == ("b", "x")
    assert examples[0].values["series"].shape == (5, 2)
    tags = Dataset(path=folder / "rows.jsonl", columns={"words": "words", "tags": "tags"}).read()
    assert tags.tag_classes() == subset(tags, 1).tag_classes() == ("O", "A", "B", "I")  # type: ignore[attr-defined]


def test_classes_by_number_by_given_order_and_by_the_source(folder: Path) -> None:
    path = jsonl(folder, {"n": 10, "kind": "dog"}, {"n": 2, "kind": "cat"})

    def read(column: str, *names: str) -> tuple[int, int, int]:
        examples = Dataset(path=path, columns={"label": column}, classes={"label": names} if names else {}).read()
        return examples[0].values["label"], examples[1].values["label"], len(examples.classes())

    assert read("n") == (10, 2, 11)
    assert read("kind") == (1, 0, 2)
    assert read("kind", "dog", "bird", "cat") == (0, 2, 3)
    assert "the class 'cat' of label is none of 2 (did you mean 'cats'?)" in message(
        lambda: read("kind", "dog", "cats")
    )
    assert "the class 10 of label is none of 2" in message(lambda: read("n", "a", "b"))


def test_examples_survive_pickling_and_leave_nothing_behind(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = folder / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    path = shard(folder / "s.tar", {f"{n}.png": png(n * 50) for n in range(3)})
    code = (
        "import pickle, sys\nfrom mmcompress.data.dataset import Dataset\n"
        "examples = Dataset(path=sys.argv[1], columns={'image': 'png'}).read()\n"
        "again = pickle.loads(pickle.dumps(examples))\n"
        "assert again[1].values['image'].getpixel((0, 0)) == (50, 0, 0)\n"
        "del again\nassert examples[2].values['image'].getpixel((0, 0)) == (100, 0, 0)\n"
    )
    home = folder / "home"
    home.mkdir()
    environment = {**os.environ, "TMPDIR": str(scratch), "HOME": str(home), "HF_HUB_OFFLINE": "1"}
    environment.pop("MMCOMPRESS_STORE", None)
    subprocess.run([sys.executable, "-W", "error", "-c", code, str(path)], check=True, env=environment)
    assert not list(scratch.iterdir()), "what the library wrote stays in the temporary folder"
    assert not [p for p in home.rglob("*") if p.is_file()], "something was written to the user's home"
    examples = Dataset(path=path, columns={"image": "png"}).read()
    assert pickle.loads(pickle.dumps(examples))[1].id == examples.ids[1]


def test_identity_and_fingerprints_follow_content(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    columns = {"image": "file", "text": "name"}
    rows = [{"file": f"{n}.png", "name": "x"} for n in range(3)]
    spec = Dataset(path=jsonl(folder, *rows), columns=columns)
    first = spec.identity()
    assert str(folder) not in json.dumps(first)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for n in range(3):
        (elsewhere / f"p{n}.png").write_bytes(png(n * 50))
    moved = [{"name": "x", "file": f"p{n}.png"} for n in range(3)]
    assert Dataset(path=jsonl(elsewhere, *moved), columns=columns).identity() == first
    (folder / "1.png").write_bytes(png(7, (9, 9)))
    assert spec.identity() != first
    train, test = (Dataset(path=p, columns=columns).read() for p in (elsewhere / "rows.jsonl", folder / "rows.jsonl"))
    assert "share 2 of test's 3 examples" in message(lambda: check_disjoint(train, None, test))


def test_in_a_recipe(folder: Path) -> None:
    jsonl(folder, {"file": "0.png", "name": "x"})
    spec = parse(
        "data", {"dataset": {"path": "rows.jsonl", "columns": {"image": "file", "texts": ["name"]}}}, {"base": folder}
    )
    assert isinstance(spec, Dataset) and parse("data", dump(spec)) == spec
    assert spec.read()[0].values["texts"] == ("x",)


# --- what is told and refused ----------------------------------------------------------------------------------------


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
