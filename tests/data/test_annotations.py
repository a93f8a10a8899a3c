"""COCO captions, Karpathy's split and VQA v2 in the formats that were published."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmcompress.component import dump, parse
from mmcompress.data._splits import check_disjoint
from mmcompress.data.coco_captions import CocoCaptions
from mmcompress.data.vqa_v2 import VqaV2
from mmcompress.errors import InputError

pytestmark = pytest.mark.unit

TEST_DATA = Path(os.environ.get("MMCOMPRESS_TEST_DATA", "absent"))
"""A folder with `coco_mini/images.zip` and `coco_mini/captions.jsonl`: COCO's own pictures, which are not ours to ship."""


def png(red: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), (red, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures 42, 57 and 99 in a zip archive as COCO packs them, and in a folder."""
    (tmp_path / "pictures/val2014").mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / "val2014.zip", "w") as archive:
        archive.writestr("val2014/", "")
        for number in (42, 57, 99):
            name = f"val2014/COCO_val2014_{number:012d}.png"
            archive.writestr(name, png(number))
            (tmp_path / "pictures" / name).write_bytes(png(number))
    return tmp_path


def write(folder: Path, name: str, found: Any) -> Path:
    path = folder / name
    path.write_text(json.dumps(found))
    return path


def coco(*numbers: int) -> dict[str, Any]:
    images = [{"id": n, "file_name": f"COCO_val2014_{n:012d}.png", "height": 4, "width": 6} for n in numbers]
    said = [{"id": 10 * n + i, "image_id": n, "caption": f" A {n} {i}.\n"} for i in range(2) for n in numbers]
    return {"info": {}, "licenses": [], "images": images, "annotations": said}


def message(build: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as caught:
        build()
    return str(caught.value)


@pytest.mark.parametrize("images", ["val2014.zip", "pictures"])
def test_captions_as_published(folder: Path, images: str) -> None:
    spec = CocoCaptions(path=write(folder, "captions.json", coco(42, 57)), images=folder / images)
    examples = spec.read()
    assert list(examples.ids) == ["coco/42", "coco/57"] and examples.columns == {"image", "texts"}
    assert examples[1].values["texts"] == ("A 57 0.", "A 57 1.")
    assert examples[1].values["image"].getpixel((0, 0)) == (57, 0, 0)
    assert examples.notes == {} and len({examples.fingerprint(i) for i in range(2)}) == 2
    assert spec.model_copy(update={"lower": True, "limit": 1}).read()[0].values["texts"] == ("a 42 0.", "a 42 1.")
    assert parse("data", dump(spec)) == spec
    first = spec.identity()
    assert str(folder) not in json.dumps(first)
    write(folder, "captions.json", coco(42, 99))
    os.utime(folder / "captions.json", (1, 1))
    assert spec.identity() != first


def test_karpathys_split(folder: Path) -> None:
    splits = {42: "train", 57: "restval", 99: "test"}
    images = [
        {
            **{"cocoid": number, "imgid": i, "filepath": "val2014", "filename": f"COCO_val2014_{number:012d}.png"},
            **{"split": split, "sentences": [{"raw": f"A {number}.", "tokens": ["a", str(number)]}]},
        }
        for i, (number, split) in enumerate(splits.items())
    ]
    path = write(folder, "dataset_coco.json", {"images": images, "dataset": "coco"})

    def read(split: str | None) -> Any:
        return CocoCaptions.model_validate({"path": path, "images": folder / "val2014.zip", "split": split}).read()

    assert list(read("train").ids) == ["coco/42", "coco/57"]
    assert read("test")[0].values["texts"] == ("A 99.",)
    check_disjoint(read("train"), None, read("test"))
    assert "gives pictures a split\n  Expected `split` train, validation or test" in message(lambda: read(None))
    assert "no picture of the split 'validation'" in message(lambda: read("validation"))
    path = write(folder, "captions.json", coco(42))
    assert "is one split by itself" in message(lambda: read("test"))


def vqa(folder: Path, questions: list[Any], annotations: list[Any], **fields: Any) -> VqaV2:
    return VqaV2(
        questions=write(folder, "questions.json", {"data_subtype": "val2014", "questions": questions}),
        annotations=write(folder, "annotations.json", {"annotations": annotations}),
        images=fields.pop("images", folder / "val2014.zip"),
        **fields,
    )


def asked(number: int, image: int) -> dict[str, Any]:
    return {"question_id": number, "image_id": image, "question": f"Is it {number}?"}


def answered(number: int, image: int, *answers: str) -> dict[str, Any]:
    given = [{"answer": answer, "answer_confidence": "yes", "answer_id": i} for i, answer in enumerate(answers, 1)]
    return {
        "question_id": number,
        "image_id": image,
        "question_type": "is it",
        "answer_type": "yes/no",
        "answers": given,
    }


def test_questions_with_ten_answers(folder: Path) -> None:
    answers = ("yes",) * 7 + ("no",) * 3
    spec = vqa(folder, [asked(421, 42), asked(422, 42)], [answered(422, 42, "no"), answered(421, 42, *answers)])
    examples = spec.read()
    assert list(examples.ids) == ["vqa/421", "vqa/422"]
    assert examples.columns == {"image", "question", "answers", "question_type", "answer_type"}
    values = examples[0].values
    assert values["question"] == "Is it 421?" and values["answers"] == answers and values["answer_type"] == "yes/no"
    assert values["image"].getpixel((0, 0)) == (42, 0, 0)
    assert examples.fingerprint(0) != examples.fingerprint(1)
    assert parse("data", dump(spec)) == spec


def test_what_is_wrong_is_told_with_its_number(folder: Path) -> None:
    questions = [asked(1, 42), asked(2, 7), asked(3, 57), asked(4, 99), asked(5, 99)]
    annotations = [answered(1, 42, "yes"), answered(2, 7, "no"), answered(4, 57, "x"), answered(5, 99)]
    spec = vqa(folder, questions, annotations)
    found = message(spec.read)
    assert "question 2: picture 7 not found in" in found and "question 3: no answer in" in found
    assert "question 4: its annotation is of picture 57, not 99" in found and "question 5: no answers" in found
    assert "4 of 5 cannot be used; max_skipped allows 0" in found
    examples = spec.model_copy(update={"max_skipped": 4}).read()
    assert list(examples.ids) == ["vqa/1"] and examples.notes == {"rows left out": 4}
    assert "answers none of the questions" in message(vqa(folder, questions, [answered(9, 42, "x")]).read)
    written = coco(42, 7)
    written["annotations"][0]["caption"] = written["annotations"][2]["caption"] = "  "
    path = write(folder, "captions.json", written)
    found = message(CocoCaptions(path=path, images=folder / "val2014.zip").read)
    assert "picture 42: no caption" in found and "picture COCO_val2014_000000000007.png not found" in found
    (folder / "pictures/val2014/COCO_val2014_000000000057.png").write_bytes(png(57)[:40])
    spec = CocoCaptions(path=write(folder, "captions.json", coco(42, 57)), images=folder / "pictures")
    assert "picture 57: " in message(spec.read) and "cannot be decoded" in message(spec.read)
    assert spec.model_copy(update={"max_skipped": 1}).read().notes == {"rows left out": 1}


def test_files_of_another_kind(folder: Path) -> None:
    def read(found: Any, images: str = "val2014.zip", text: str | None = None) -> str:
        path = write(folder, "captions.json", found)
        if text is not None:
            path.write_text(text)
        os.utime(path, (len(str(found)), len(text or "")))
        return message(CocoCaptions(path=path, images=folder / images).read)

    assert "not valid JSON" in read({}, text=json.dumps(coco(42))[:-20])
    assert "got a list" in read([1])
    assert "no 'images' among 'questions'" in read({"questions": []})
    assert "no 'annotations' among 'images'" in read({"images": [{"id": 1}]})
    assert "'file_name' is None" in read({"images": [{"id": 1}], "annotations": [{"image_id": 1, "caption": "a"}]})
    assert "which is not among the images" in read({**coco(42), "images": coco(57)["images"]})
    assert "no such folder or archive" in read(coco(42), images="nothing")
    assert "not a zip archive" in read(coco(42), images="captions.json")
    (folder / "pictures/copy").mkdir()
    (folder / "pictures/copy/COCO_val2014_000000000042.png").write_bytes(png(1))
    assert "stands 2 times" in read(coco(42), images="pictures")
    assert "no such file" in message(CocoCaptions(path=folder / "no.json", images=folder).read)


@pytest.mark.skipif(
    not (TEST_DATA / "coco_mini").is_dir(), reason="MMCOMPRESS_TEST_DATA names no folder with coco_mini"
)
def test_cocos_own_pictures(tmp_path: Path) -> None:
    lines = (TEST_DATA / "coco_mini/captions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    images = [{"id": int(row["image"][:12]), "file_name": row["image"]} for row in rows]
    said = [{"image_id": int(row["image"][:12]), "caption": text} for row in rows for text in row["captions"]]
    path = write(tmp_path, "captions.json", {"images": images, "annotations": said})
    examples = CocoCaptions(path=path, images=TEST_DATA / "coco_mini/images.zip").read()
    assert len(examples) == len(rows) == 86
    assert all(len(examples[i].values["texts"]) >= 4 for i in range(0, 86, 20))
    assert min(examples[0].values["image"].size) > 200
