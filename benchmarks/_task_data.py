"""Real data for the task benchmarks, made from public sets that a folder holds (see benchmarks/tasks.py).

Every function writes ``<split>.jsonl`` for train, validation and test into a folder, and the pictures and sounds that
they name; all of it follows from the sources and a fixed seed, and no clip or picture crosses a split.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SPLITS = ("train", "validation", "test")
RATE = 8000
KEPT_ENERGY = 0.25
"""Of the degraded digits' pictures, as the AV-MNIST papers keep (Vielzeuf et al., arXiv:1808.07275)."""
NOISE_DB = -6.0
"""Signal over noise of the degraded digits' sounds."""


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def write_rows(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows as JSONL."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


class Clips:
    """The spoken digits of the Free Spoken Digit Dataset, as samples at 8 kHz."""

    def __init__(self, data: Path) -> None:
        import soundfile

        self._samples: dict[str, NDArray[np.float32]] = {}
        with zipfile.ZipFile(data / "fsdd" / "fsdd.zip") as archive:
            for name in archive.namelist():
                if name.endswith(".wav"):
                    samples, rate = soundfile.read(BytesIO(archive.read(name)), dtype="float32")
                    assert rate == RATE
                    self._samples[name] = samples

    def __getitem__(self, member: str) -> NDArray[np.float32]:
        return self._samples[member.rpartition(".zip/")[2]]


def _write_sounds(archive: Path, sounds: Iterator[tuple[str, NDArray[np.float32]]]) -> None:
    import soundfile

    archive.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive, "w") as file:
        for name, samples in sounds:
            buffer = BytesIO()
            soundfile.write(buffer, samples, RATE, format="WAV", subtype="PCM_16")
            file.writestr(name, buffer.getvalue())


# --- digit strings -------------------------------------------------------------------------------------------------

STRINGS = {"train": 6000, "validation": 400, "test": 1000}


def digit_strings(data: Path, folder: Path) -> None:
    """Two to five digits of one speaker, with pauses of 20 to 200 ms and noise of 25 to 35 dB below: ``audio``, ``text``."""
    clips = Clips(data)
    for split in SPLITS:
        rng = np.random.default_rng([7, SPLITS.index(split)])
        chosen = _choose(read_rows(data / "fsdd" / f"{split}.jsonl"), STRINGS[split], rng)
        sounds = (
            (f"{index}.wav", _spliced([clips[row["audio"]] for row in rows], rng)) for index, rows in enumerate(chosen)
        )
        _write_sounds(folder / f"{split}.zip", sounds)
        write_rows(
            folder / f"{split}.jsonl",
            [
                {
                    "id": f"{split}/{index}",
                    "audio": f"{split}.zip/{index}.wav",
                    "text": " ".join(row["text"] for row in rows),
                    "speaker": rows[0]["speaker"],
                    "digits": str(len(rows)),
                }
                for index, rows in enumerate(chosen)
            ],
        )


def _choose(rows: Sequence[dict[str, Any]], count: int, rng: np.random.Generator) -> list[list[dict[str, Any]]]:
    """For each string a speaker, and two to five of their clips."""
    by_speaker: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_speaker.setdefault(row["speaker"], []).append(row)
    pools = [by_speaker[speaker] for speaker in sorted(by_speaker)]
    chosen = []
    for _ in range(count):
        pool = pools[int(rng.integers(len(pools)))]
        chosen.append([pool[int(rng.integers(len(pool)))] for _ in range(int(rng.integers(2, 6)))])
    return chosen


def _spliced(clips: Sequence[NDArray[np.float32]], rng: np.random.Generator) -> NDArray[np.float32]:
    pieces = [_silence(rng)]
    for clip in clips:
        pieces += [clip / max(float(np.abs(clip).max()), 1e-4) * 0.7, _silence(rng)]
    signal = np.concatenate(pieces)
    level = float(np.sqrt((signal**2).mean())) * 10 ** (-rng.uniform(25, 35) / 20)
    return np.clip(signal + rng.normal(0, level, len(signal)), -1, 1).astype(np.float32)


def _silence(rng: np.random.Generator) -> NDArray[np.float32]:
    return np.zeros(int(RATE * rng.uniform(0.02, 0.2)), np.float32)


# --- pictures and sounds of digits, both degraded ------------------------------------------------------------------


def degraded_digits(data: Path, folder: Path) -> None:
    """AV-MNIST with both sides degraded: ``image``, ``audio``, ``label``.

    Pictures lose all but the principal components that hold a quarter of the energy; sounds get noise 6 dB above them.
    """
    from PIL import Image

    clips = Clips(data)
    basis, mean = None, None
    with zipfile.ZipFile(data / "avmnist" / "mnist.zip") as archive:
        for split in SPLITS:
            rows = read_rows(data / "avmnist" / f"{split}.jsonl")
            rng = np.random.default_rng([11, SPLITS.index(split)])
            pictures = np.stack(
                [
                    np.asarray(Image.open(BytesIO(archive.read(row["image"].partition(".zip/")[2]))).convert("L"))
                    for row in rows
                ]
            ).reshape(len(rows), -1) / np.float32(255)
            if basis is None or mean is None:
                mean = pictures.mean(axis=0)
                basis = _components(pictures - mean)
            kept = (pictures - mean) @ basis @ basis.T + mean
            _write_pictures(folder / f"{split}-pictures.zip", kept.reshape(len(rows), 28, 28))

            def sounds(rows: Any = rows, rng: Any = rng) -> Iterator[tuple[str, Any]]:
                for index, row in enumerate(rows):
                    yield f"{index}.wav", _noisy(clips[row["audio"]], rng)

            _write_sounds(folder / f"{split}-sounds.zip", sounds())
            write_rows(
                folder / f"{split}.jsonl",
                [
                    {
                        "id": f"{split}/{index}",
                        "image": f"{split}-pictures.zip/{index}.png",
                        "audio": f"{split}-sounds.zip/{index}.wav",
                        "label": str(row["label"]),
                    }
                    for index, row in enumerate(rows)
                ],
            )


def _components(centred: NDArray[np.float32]) -> NDArray[np.float32]:
    """The leading principal components that together hold :data:`KEPT_ENERGY` of the variance, [pixels, components]."""
    values, vectors = np.linalg.eigh(centred.T @ centred)
    share = np.cumsum(values[::-1]) / values.sum()
    count = int(np.searchsorted(share, KEPT_ENERGY)) + 1
    return np.asarray(vectors[:, ::-1][:, :count], dtype=np.float32)


def _write_pictures(archive: Path, pictures: NDArray[np.float32]) -> None:
    from PIL import Image

    archive.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive, "w") as file:
        for index, picture in enumerate(pictures):
            buffer = BytesIO()
            Image.fromarray(np.clip(np.rint(picture * 255), 0, 255).astype(np.uint8)).save(buffer, format="PNG")
            file.writestr(f"{index}.png", buffer.getvalue())


def _noisy(clip: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    level = float(np.sqrt((clip**2).mean())) * 10 ** (-NOISE_DB / 20)
    noisy = clip + rng.normal(0, max(level, 1e-4), len(clip))
    return np.asarray(noisy / max(1.0, float(np.abs(noisy).max())), dtype=np.float32)


# --- groceries, sentences about boxes, emoji -----------------------------------------------------------------------

WINDOW = 5
"""Words of a description that a grocery example shows."""


def groceries(data: Path, folder: Path) -> None:
    """Photos with a few words of their class's description, its names taken out: ``image``, ``text``, ``label``, ``name``.

    The whole description would tell the class by itself; five words of it tell a part.
    """
    for split in SPLITS:
        rng = np.random.default_rng([13, SPLITS.index(split)])
        rows = []
        for row in read_rows(data / "grocery" / f"{split}.jsonl"):
            names = set(f"{row['fine']} {row['coarse']}".lower().replace("-", " ").split())
            words = [word for word in row["description"].lower().split() if word.strip(".,;()'") not in names]
            start = int(rng.integers(max(1, len(words) - WINDOW + 1)))
            name = row["fine"].replace("-", " ").lower()
            rows.append(
                {
                    "id": row["id"],
                    "image": f"grocery_128.zip/{row['image'].partition('.zip/')[2]}",
                    "text": " ".join(words[start : start + WINDOW]),
                    "label": row["fine"],
                    "coarse": row["coarse"],
                    "name": name,
                }
            )
        write_rows(folder / f"{split}.jsonl", rows)
    _link(data / "grocery" / "grocery_128.zip", folder)


def sentences(data: Path, folder: Path) -> None:
    """Cornell NLVR: ``image`` of three boxes, ``text``, ``label`` true or false, ``example``.

    Training examples whose picture and sentence also stand in another split are left out.
    """
    rows = {split: read_rows(data / "nlvr" / f"{split}.jsonl") for split in SPLITS}
    with zipfile.ZipFile(data / "nlvr" / "nlvr_images.zip") as archive:
        pictures = {item.filename: (item.CRC, item.file_size) for item in archive.infolist()}

    def content(row: Mapping[str, Any]) -> tuple[Any, ...]:
        return (*pictures[row["image"].partition(".zip/")[2]], row["text"])

    others = {content(row) for split in SPLITS[1:] for row in rows[split]}
    rows["train"] = [row for row in rows["train"] if content(row) not in others]
    for split in SPLITS:
        write_rows(folder / f"{split}.jsonl", [{**row, "label": str(row["label"]).lower()} for row in rows[split]])
    _link(data / "nlvr" / "nlvr_images.zip", folder)


def emoji(data: Path, folder: Path) -> None:
    """Drawings with their name in lower case: ``image``, ``text``."""
    for split in SPLITS:
        rows = read_rows(data / "emoji" / f"{split}.jsonl")
        write_rows(folder / f"{split}.jsonl", [{**row, "text": row["name"].lower()} for row in rows])
    for archive in (data / "emoji").glob("*.zip"):
        _link(archive, folder)


def _link(archive: Path, folder: Path) -> None:
    """A copy beside the tables: a name must not lead out of their folder."""
    target = folder / archive.name
    if not target.exists():
        target.write_bytes(archive.read_bytes())
