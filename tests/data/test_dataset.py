"""Data through the library `datasets`: formats, columns, classes, identity."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmcompress._sound import Sound
from mmcompress.component import dump, parse
from mmcompress.data._splits import check_disjoint, subset
from mmcompress.data.dataset import Dataset
from tests.data.dataset_files import jsonl, message, png, shard, values, wav, write_files

pytestmark = pytest.mark.unit


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_files(tmp_path)


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


def test_parquet_as_the_hub_stores_it(folder: Path) -> None:
    names = datasets.ClassLabel(names=["y", "x"])
    features = datasets.Features(
        {
            **{"image": datasets.Image(), "audio": datasets.Audio(), "label": names},
            **{
                "words": datasets.List(datasets.Value("string")),
                "tags": datasets.List(datasets.ClassLabel(names=["O", "B"])),
            },
        }
    )
    row = {
        **{"image": {"bytes": png(50), "path": "a.png"}, "audio": {"bytes": wav(0.25), "path": "a.wav"}, "label": 1},
        **{"words": ["a", "star"], "tags": [0, 1]},
    }
    pq.write_table(pa.Table.from_pylist([row, row], schema=features.arrow_schema), folder / "hub.parquet")
    for more in ({}, {"streaming": True, "limit": 1}):
        spec = {"path": folder / "hub.parquet", "columns": {name: name for name in features}, **more}
        examples = Dataset.model_validate(spec).read()
        found = examples[0].values
        assert examples.classes() == ("y", "x") and examples.tag_classes() == ("O", "B")
        assert found["image"].getpixel((0, 0)) == (50, 0, 0) and found["audio"].samples[0] == pytest.approx(
            0.25, abs=1e-4
        )
        assert found["label"] == 1 and found["words"] == ("a", "star") and found["tags"] == (0, 1)


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
