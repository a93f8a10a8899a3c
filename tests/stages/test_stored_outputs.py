"""Stored teacher outputs: by example, by view and by output; found again, mended alone, written by several processes."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stored_helpers
import torch
from stored_helpers import CLASSES, WIDTH, Teacher, data, keep, names

from mmcompress.errors import StageError
from mmcompress.losses._top_k import likeliest
from mmcompress.stages import _stored_filling, _stored_shards
from mmcompress.stages._batches import Batches
from mmcompress.stages._stored_rows import pack, unpack

unit = pytest.mark.unit
SEQUENCE = ("decoder.logits", "decoder.mask")


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_stored_filling, "CLAIMED", 20)
    monkeypatch.setattr(_stored_filling, "ASKED", 10)
    torch.set_num_threads(1)


def asked_about(cache: Path, of: Any, *want: str, **fields: Any) -> int:
    teacher = Teacher()
    keep(cache, teacher, of, *want, **fields)
    return teacher.rows


def shards(cache: Path) -> list[Path]:
    notes = (cache / "teacher_outputs").glob("*/*.json")
    return sorted(path.with_suffix(".bin") for path in notes if path.name != "about.json")


# --- numbers -------------------------------------------------------------------------------------------------------


@unit
def test_bf16_rounds_to_nearest_even_as_torch_does() -> None:
    values = torch.randn(50, 40, generator=torch.Generator().manual_seed(0)) * 10
    values[0, :4] = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -0.0, 65504.0])  # two ties: down, then up
    packed = pack(values.numpy(), "bf16")
    assert packed["values"].dtype == np.uint16
    np.testing.assert_array_equal(unpack(packed["values"], None), values.bfloat16().float().numpy())


@unit
def test_whole_numbers_with_a_scale_per_row() -> None:
    values = np.array([[1.0, -0.5, 0.1], [0.0, 0.0, 0.0], [-254.0, 2.0, 127.0]], np.float32)
    packed = pack(values, "int8")
    assert packed["values"].tolist() == [[127, -64, 13], [0, 0, 0], [-127, 1, 64]]
    np.testing.assert_allclose(packed["scales"], [1 / 127, 1, 2])
    draw = np.random.default_rng(0).normal(size=(100, 64)).astype(np.float32)
    for store_as, largest in (("int16", 32767), ("int8", 127)):
        packed = pack(draw, store_as)  # type: ignore[arg-type]
        step = np.abs(draw).max(axis=1, keepdims=True) / largest
        assert (np.abs(unpack(packed["values"], packed["scales"]) - draw) <= step * 0.501).all()


@unit
def test_rows_that_whole_numbers_cannot_keep_are_refused() -> None:
    masked = np.array([[1.0, 2.0, 3.0, -1e9]], np.float32)
    with pytest.raises(StageError, match="store_as: bf16"):
        pack(masked, "int16")
    np.testing.assert_allclose(unpack(pack(masked, "bf16")["values"], None), masked, rtol=2**-8)


@unit
@pytest.mark.parametrize("store_as", ["int16", "bf16", "int8"])
def test_what_is_read_is_what_the_teacher_gave_at_few_bytes(tmp_path: Path, store_as: str) -> None:
    of, teacher = data(names(90)), Teacher()
    found = keep(tmp_path, teacher, of, "vision.embeds", "text.embeds", "fusion.logit_scale", store_as=store_as)
    rows = np.random.default_rng(0).permutation(90)
    texts = of.offsets[rows] + rows % 2  # type: ignore[index]
    read = found(rows, texts)
    live = teacher.outputs(None, {n: torch.from_numpy(a) for n, a in of.feeds(rows, texts).items()}, frozenset(read))
    tolerance = {"int16": 2e-5, "bf16": 1e-3, "int8": 2e-3}[store_as]
    for name, value in live.items():
        np.testing.assert_allclose(read[name], value.numpy(), atol=tolerance)
    values = (90 + 180) * WIDTH
    used = sum(path.stat().st_size for path in (tmp_path / "teacher_outputs").rglob("*") if path.suffix == ".bin")
    assert used / values <= 2.4


@unit
def test_sequences_are_kept_without_their_padding_and_with_their_likeliest_classes(tmp_path: Path) -> None:
    of, teacher = data(names(40)), Teacher()
    whole = keep(tmp_path, teacher, of, *SEQUENCE)
    few = keep(tmp_path, teacher, of, *SEQUENCE, top_k={"decoder.logits": 5})
    rows = np.arange(39, -1, -1)
    for batch in (rows[:3], rows):
        texts = 2 * batch + 1
        feeds = {name: torch.from_numpy(array) for name, array in of.feeds(batch, texts).items()}
        live = teacher.outputs(None, feeds, frozenset(SEQUENCE))
        counts = live["decoder.mask"].bool()
        read = whole(batch, texts)
        assert read.keys() == {"decoder.logits"} and read["decoder.logits"].shape == live["decoder.logits"].shape
        logits = live["decoder.logits"][counts]
        np.testing.assert_allclose(read["decoder.logits"][counts.numpy()], logits, atol=2e-3)
        read = few(batch, texts)
        values, classes = likeliest(logits, 5)
        np.testing.assert_allclose(read["decoder.logits.likeliest"][counts.numpy()], values, atol=2e-3)
        np.testing.assert_array_equal(read["decoder.logits.classes"][counts.numpy()], classes)
    tokens = int((of.arrays["text"] >= 0).sum())
    last = max(shards(tmp_path), key=lambda path: path.stat().st_mtime_ns)
    about = _stored_shards.read_json(last.with_suffix(".json"))["arrays"]
    assert about["values"][0] == "<i2" and about["classes"][0] == "<u2" and about["values"][2][1] == 6
    assert (
        sum(path.stat().st_size for path in shards(tmp_path) if path.parent == last.parent)
        < 30 * tokens + 30 * 80 + 600
    )
    assert CLASSES > 5


@unit
def test_sequences_without_a_mask_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"mask: decoder\.mask"):
        keep(tmp_path, Teacher(), data(names(20)), "decoder.logits")


# --- by example ----------------------------------------------------------------------------------------------------


@unit
def test_only_what_is_new_is_asked(tmp_path: Path) -> None:
    assert asked_about(tmp_path, data(names(50))) == 50 + 16  # sixteen for the shapes
    assert asked_about(tmp_path, data(names(50))) == 0
    assert asked_about(tmp_path, data(names(60))) == 10
    assert asked_about(tmp_path, data(names(30, first=20))) == 0
    assert asked_about(tmp_path, data([*names(10), "changed"])) == 1
    assert asked_about(tmp_path, data([f"{name}#another id" for name in names(20)])) == 0
    twice = data([*names(10, 100), *(f"{name}#again" for name in names(10, 100))])
    assert asked_about(tmp_path, twice) == 10


@unit
def test_recipes_share_outputs_one_by_one(tmp_path: Path) -> None:
    of = data(names(30))
    keep(tmp_path, Teacher(), of, "vision.embeds", "fusion.logit_scale")
    assert asked_about(tmp_path, of, "vision.embeds", "text.embeds", "fusion.logit_scale") == 60 + 16
    assert asked_about(tmp_path, of, "text.embeds") == 0
    one_text = data(names(30), texts=1)
    assert asked_about(tmp_path, one_text, "vision.embeds", "text.embeds") == 0


@unit
@pytest.mark.parametrize("change", [{"teacher": "two"}, {"precision": "bf16"}, {"store_as": "bf16"}])
def test_another_teacher_or_precision_is_asked_anew(tmp_path: Path, change: dict[str, Any]) -> None:
    of = data(names(20))
    keep(tmp_path, Teacher(), of)
    other = Teacher(seed=1)
    rows = np.arange(20)
    read = keep(tmp_path, other, of, **change)(rows, rows)["vision.embeds"]
    live = other.outputs(
        None, {n: torch.from_numpy(a) for n, a in of.feeds(rows, rows).items()}, frozenset(["vision.embeds"])
    )
    assert other.rows == 20 + 20 + 16
    np.testing.assert_allclose(read, live["vision.embeds"], atol=1e-3)


@unit
def test_digests_are_kept_beside_the_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "arrays"
    home.mkdir()
    keep(tmp_path, Teacher(), data(names(20), home=home))
    assert [path.name for path in home.iterdir()] == ["image.digests.npy"]
    monkeypatch.setattr("mmcompress.stages._stored_keys.row_digests", None)
    assert asked_about(tmp_path, data(names(20), home=home)) == 0


# --- views ---------------------------------------------------------------------------------------------------------


@unit
@pytest.mark.parametrize("augment", ["shift", "crop"])
def test_the_student_sees_the_very_pictures_that_the_teacher_saw(tmp_path: Path, augment: Any) -> None:
    of, teacher = data(names(24)), Teacher()
    kept = keep(tmp_path, teacher, of, "vision.embeds", "text.embeds", view=(augment, 3))
    assert teacher.rows == 16 + 3 * 24 + 48  # a text has one view
    shown = {picture.tobytes() for batch in teacher.pictures[1:] for picture in batch}
    seen: dict[int, list[set[bytes]]] = {}
    for seed in (0, 1):
        batches = Batches(of, 8, seed, augment, stored=kept, views=3)
        for number in range(6 * batches.per_epoch):
            epoch, rows = batches.rows(number)
            batch = batches[number]
            pixels = batch["inputs"]["pixels"]
            live = teacher.outputs(
                None, {n: torch.from_numpy(a) for n, a in batch["inputs"].items()}, frozenset(["vision.embeds"])
            )
            np.testing.assert_allclose(batch["teacher_outputs"]["vision.embeds"], live["vision.embeds"], atol=2e-5)
            for row, picture in zip(rows.tolist(), pixels, strict=True):
                assert picture.tobytes() in shown
                seen.setdefault(row, [set() for _ in range(4)])[2 * seed + epoch // 3].add(picture.tobytes())
    # Three epochs show each view once, in every seed.
    assert all(one == other and len(one) == 3 for sets in seen.values() for one in sets for other in sets)
    assert asked_about(tmp_path, of, "vision.embeds", view=(augment, 5)) == 2 * 24
    assert asked_about(tmp_path, of, "vision.embeds") == 24
    other = {"shift": "crop", "crop": "shift"}[augment]
    assert asked_about(tmp_path, of, "vision.embeds", view=(other, 1)) == 24


@unit
def test_views_without_end_are_others_in_each_epoch() -> None:
    of = data(names(8))
    batches = Batches(of, 8, 0, "shift")
    first, second = batches[0]["inputs"]["pixels"], batches[1]["inputs"]["pixels"]
    assert not np.array_equal(np.sort(first, axis=0), np.sort(second, axis=0))


# --- faults --------------------------------------------------------------------------------------------------------


@unit
@pytest.mark.parametrize("fault", ["truncated", "altered", "missing"])
def test_a_damaged_shard_is_found_and_made_again_alone(tmp_path: Path, fault: str) -> None:
    of = data(names(90))
    rows = np.arange(90)
    whole = keep(tmp_path, Teacher(), of)(rows, rows)["vision.embeds"]
    _stored_shards._CHECKED.clear()
    found = shards(tmp_path)
    assert len(found) == 5
    content = bytearray(found[2].read_bytes())
    count = _stored_shards.read_json(found[2].with_suffix(".json"))["rows"]
    content[-7] ^= 1
    found[2].unlink()
    if fault != "missing":
        found[2].write_bytes(content if fault == "altered" else content[:-100])
    told: list[str] = []
    teacher = Teacher()
    again = keep(tmp_path, teacher, of, told=told)
    assert teacher.rows == count
    assert str(found[2]) in told[0]
    np.testing.assert_array_equal(again(rows, rows)["vision.embeds"], whole)
    assert shards(tmp_path) == found


@unit
def test_a_disk_that_fills_is_told_and_finished_shards_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of, written, original = data(names(90)), [], os.fsync

    def full(number: int) -> None:
        written.append(number)
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(number)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StageError, match=r"no space left on the disk(.|\n)*mmcompress gc"):
        keep(tmp_path, Teacher(), of)
    assert not list((tmp_path / "teacher_outputs").rglob("*.part"))
    assert len(shards(tmp_path)) == 2
    assert asked_about(tmp_path, of) == 50


@unit
def test_what_a_killed_process_left_is_removed_when_it_is_old(tmp_path: Path) -> None:
    keep(tmp_path, Teacher(), data(names(20)))
    folder = shards(tmp_path)[0].parent
    for name, age in (("old.bin.1.part", 7200), ("new.bin.2.part", 60)):
        (folder / name).write_bytes(b"half")
        os.utime(folder / name, (time.time() - age,) * 2)
    assert asked_about(tmp_path, data(names(20))) == 0
    assert [path.name for path in folder.glob("*.part")] == ["new.bin.2.part"]


@unit
def test_outputs_that_are_not_finite_name_their_examples(tmp_path: Path) -> None:
    of, teacher = data(names(50)), Teacher()
    teacher.spoilt = float(of.arrays["image"][33, 0, 0, 0]) / 255
    spoilt = [
        name
        for name, image in zip(of.ids, of.arrays["image"], strict=True)
        if image[0, 0, 0] == of.arrays["image"][33, 0, 0, 0]
    ]
    with pytest.raises(StageError, match=re.escape(f"vision.embeds is not finite for {spoilt[0]}")):
        keep(tmp_path, teacher, of)
    assert "example 33" in spoilt


@unit
def test_the_size_is_told_before_the_teacher_is_asked(tmp_path: Path) -> None:
    told: list[str] = []
    keep(tmp_path, Teacher(), data(names(500)), told=told)
    assert told[0] == f"asking the teacher about 500 of 500, {500 * (2 * WIDTH + 4 + 16) / 1e6:.1f} MB to keep"
    assert sum(path.stat().st_size for path in shards(tmp_path)) == pytest.approx(500 * (2 * WIDTH + 20), rel=0.02)


# --- processes -----------------------------------------------------------------------------------------------------


def start(cache: Path, count: int, pause: float) -> subprocess.Popen[str]:
    command = [sys.executable, stored_helpers.__file__, str(cache), str(count), str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_a_killed_process_is_gone_on_from_and_two_share_the_rest(tmp_path: Path) -> None:
    killed = start(tmp_path, 400, 0.05)
    end = time.monotonic() + 120
    while len(list((tmp_path / "teacher_outputs").glob("*/*.json"))) < 5:
        assert killed.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    done = sum(_stored_shards.read_json(path.with_suffix(".json"))["rows"] for path in shards(tmp_path))
    assert 60 <= done < 400
    both = [start(tmp_path, 400, 0.1) for _ in range(2)]
    printed = [process.communicate(timeout=120)[0].split() for process in both]
    counts = [int(words[0]) for words in printed]
    assert sum(counts) == 400 - done and min(counts) > 0
    rows = np.arange(400)
    read = keep(tmp_path, Teacher(), data(names(400)))(rows, 2 * rows)["vision.embeds"]
    assert printed[0][1] == printed[1][1] == stored_helpers.hashlib.sha256(read.tobytes()).hexdigest()
