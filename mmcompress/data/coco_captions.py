"""COCO captions, as published (``captions_train2017.json``), or in the split of Karpathy (``dataset_coco.json``).

Source: Chen et al., "Microsoft COCO Captions", 2015; Karpathy and Fei-Fei, "Deep Visual-Semantic Alignments", 2015,
whose file gives every picture a split (also ``dataset_flickr8k.json`` and ``dataset_flickr30k.json``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from mmcompress.component import JSON, RecipePath
from mmcompress.data import Dataset
from mmcompress.data._annotations import AnnotatedExamples, Pictures, Row, entries, field, gather, identity, read_json
from mmcompress.errors import InputError

_EXPECTED = "the captions of COCO (images, annotations) or the file of Karpathy's split (images with sentences)"
_SPLITS = {"train": ("train", "restval"), "validation": ("val",), "test": ("test",)}


class CocoCaptions(Dataset):
    """COCO's pictures with about five captions each, as alternatives."""

    path: RecipePath
    """The JSON file."""
    images: RecipePath
    """The folder or zip archive that the pictures lie in, at any depth."""
    split: Literal["train", "validation", "test"] | None = None
    """Part of Karpathy's split (train holds his restval too); files of COCO itself are one split each."""
    lower: bool = False
    """Put captions in lower case."""
    limit: int | None = Field(None, ge=1)
    """Read the first pictures alone."""
    max_skipped: int = Field(0, ge=0)
    """How many pictures that are absent or cannot be decoded, or have no caption, are left out before that is an error."""

    def identity(self) -> JSON:
        """The fields, the digests of the JSON file and of every file that pictures lie in."""
        rows, _, folder = read_rows(self)
        return identity(self, rows, folder, {"path": self.path})

    def read(self) -> AnnotatedExamples:
        """Open the split: find and decode every picture.

        Raises:
            InputError: what is wrong, with the number of the picture.
        """
        rows, skipped, _ = read_rows(self)
        return AnnotatedExamples(rows, skipped, self.max_skipped)


def read_rows(spec: CocoCaptions) -> tuple[tuple[Row, ...], int, Path]:
    """The pictures with their captions, how many were left out, and the folder that all lie in.

    Raises:
        InputError: the file is none of the two kinds, a split is asked of the wrong one, or too much is missing.
    """
    stamps = tuple(path.stat().st_mtime_ns if path.exists() else 0 for path in (spec.path, spec.images))
    return _rows(spec, stamps)


@lru_cache(maxsize=4)
def _rows(spec: CocoCaptions, stamps: tuple[int, ...]) -> tuple[tuple[Row, ...], int, Path]:
    found = read_json(spec.path, _EXPECTED)
    images = entries(found, "images", spec.path, _EXPECTED)
    karpathy = "sentences" in images[0]
    if karpathy != (spec.split is not None):
        raise InputError(
            f"{spec.path}: {'gives pictures a split' if karpathy else 'is one split by itself'}\n"
            f"  Expected `split` {'train, validation or test' if karpathy else 'left out'}."
        )
    pictures = Pictures(spec.images)
    captioned = _of_karpathy(spec, images) if karpathy else _of_coco(spec, found, images)
    rows = [_row(spec, pictures, *item) for item in islice(captioned, spec.limit)]
    if not rows:
        raise InputError(f"{spec.path}: no picture of the split {spec.split!r}")
    return (*gather(rows, spec.max_skipped), pictures.folder)


def _of_coco(
    spec: CocoCaptions, found: Mapping[str, Any], images: list[Mapping[str, Any]]
) -> Iterator[tuple[Any, str, list[Any]]]:
    """Number, file name and captions of each picture."""
    said: dict[Any, list[Any]] = {}
    for number, item in enumerate(entries(found, "annotations", spec.path, _EXPECTED)):
        said.setdefault(field(item, "image_id", (int, str), f"{spec.path}: annotation {number}"), []).append(
            item.get("caption")
        )
    strange = said.keys() - {item.get("id") for item in images}
    if strange:
        raise InputError(f"{spec.path}: captions of picture {min(strange, key=str)!r}, which is not among the images")
    for number, item in enumerate(images):
        identifier = field(item, "id", (int, str), f"{spec.path}: image {number}")
        yield identifier, field(item, "file_name", str, f"{spec.path}: image {number}"), said.get(identifier, [])


def _of_karpathy(spec: CocoCaptions, images: list[Mapping[str, Any]]) -> Iterator[tuple[Any, str, list[Any]]]:
    assert spec.split is not None
    for number, item in enumerate(images):
        where = f"{spec.path}: image {number}"
        if field(item, "split", str, where) not in _SPLITS[spec.split]:
            continue
        name = field(item, "filename", str, where)
        sentences = field(item, "sentences", list, where)
        yield item.get("cocoid", item.get("imgid", number)), name, [sentence.get("raw") for sentence in sentences]


def _row(spec: CocoCaptions, pictures: Pictures, identifier: Any, name: str, captions: list[Any]) -> Row | InputError:
    where = f"{spec.path}: picture {identifier}"
    texts = [" ".join(text.split()) for text in captions if isinstance(text, str) and text.strip()]
    try:
        source = pictures.find(name, where)
    except InputError as error:
        return error
    if not texts:
        return InputError(f"{where}: no caption\n  Expected at least one per picture.")
    texts = [text.lower() for text in texts] if spec.lower else texts
    return Row(where, f"coco/{identifier}", source, {"texts": tuple(dict.fromkeys(texts))})
