"""Artifacts are there whole or not at all, whatever ends the process that writes them."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mmcompress.errors import InputError, StageError
from mmcompress.store import Artifact, Step, Store, default_store, read_json, write_json

pytestmark = pytest.mark.unit


def step(text: str = "a", build: Any = None, kind: str = "distill") -> Step:
    def write(output: Path, work: Path) -> Mapping[str, Any]:
        (output / "sub").mkdir()
        (output / "sub" / "weights").write_text(text)
        return {"length": len(text)}

    return Step(kind, f"stages.0 {kind}", {"text": text}, build or write)


def content(artifact: Artifact) -> str:
    return (artifact.folder / "sub" / "weights").read_text()


# --- building and finding ------------------------------------------------------------------------------------------


def test_an_artifact_is_built_once_and_found_then(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.find(step()) is None
    built = store.get(step())
    found = Store(tmp_path).get(step(build=lambda output, work: pytest.fail("built again")))
    assert (built.built, found.built) == (True, False)
    assert (found.folder, found.key) == (built.folder, built.key)
    assert found.manifest == built.manifest
    assert content(found) == "a"
    assert found.manifest["facts"] == {"length": 1}
    assert list(found.manifest["files"]) == ["sub/weights"]
    assert not (tmp_path / "work" / built.key).exists()


def test_keys_follow_kind_and_identity_alone() -> None:
    base = step("a")
    assert step("a", build=lambda output, work: {}).key == base.key
    assert Step("distill", "another name", {"text": "a"}, base.build).key == base.key
    assert len({base.key, step("b").key, step("a", kind="prune").key}) == 3


def test_the_default_store_is_named_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMCOMPRESS_STORE", "/x/y")
    assert default_store() == Path("/x/y")
    monkeypatch.setenv("MMCOMPRESS_STORE", "")
    assert default_store() == Path.home() / ".cache" / "mmcompress"


def test_a_folder_without_its_manifest_is_built_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    artifact = store.get(step())
    (artifact.folder / "artifact.json").unlink()
    assert store.find(step()) is None
    assert store.get(step()).built


def test_a_stage_may_not_write_the_manifest(tmp_path: Path) -> None:
    def build(output: Path, work: Path) -> Mapping[str, Any]:
        (output / "artifact.json").write_text("{}")
        return {}

    with pytest.raises(RuntimeError, match=r"artifact\.json"):
        Store(tmp_path).get(step(build=build))


# --- failures ------------------------------------------------------------------------------------------------------


def test_a_failure_is_not_cached_and_the_work_folder_is_kept(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def failing(output: Path, work: Path) -> Mapping[str, Any]:
        (output / "half").write_text("x")
        (work / "checkpoint").write_text("step 3")
        raise StageError("diverged")

    with pytest.raises(StageError, match="diverged"):
        store.get(step(build=failing))
    assert store.find(step()) is None

    def resuming(output: Path, work: Path) -> Mapping[str, Any]:
        assert not list(output.iterdir())
        (output / "sub").mkdir()
        (output / "sub" / "weights").write_text((work / "checkpoint").read_text())
        return {}

    assert content(store.get(step(build=resuming))) == "step 3"
    assert not any((tmp_path / "work").iterdir())


EXHAUSTED = [
    (OSError(errno.ENOSPC, "No space left on device"), "no space left on the disk"),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), "no space left on the disk"),
    (RuntimeError("I/O error: No space left on device (os error 28)"), "no space left on the disk"),
    (MemoryError(), "out of memory"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "out of memory"),
]


@pytest.mark.parametrize(("error", "message"), EXHAUSTED)
def test_exhaustion_is_told_as_what_it_is(tmp_path: Path, error: Exception, message: str) -> None:
    def build(output: Path, work: Path) -> Mapping[str, Any]:
        raise error

    with pytest.raises(StageError, match=message) as raised:
        Store(tmp_path).get(step(build=build))
    assert raised.value.exit_code == 3
    assert "stages.0 distill" in str(raised.value)
    assert raised.value.__cause__ is error


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError(errno.EIO, "I/O error"), KeyboardInterrupt()])
def test_other_errors_stay_what_they_are(tmp_path: Path, error: BaseException) -> None:
    def build(output: Path, work: Path) -> Mapping[str, Any]:
        raise error

    with pytest.raises(type(error)) as raised:
        Store(tmp_path).get(step(build=build))
    assert raised.value is error


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """A file system of 256 KiB where one may be mounted, /dev/full otherwise."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    try:
        store = Store(disk)
        kept = store.get(step("kept"))

        def build(output: Path, work: Path) -> Mapping[str, Any]:
            target = output / "weights" if mounted.returncode == 0 else Path("/dev/full")
            with target.open("wb") as file:
                file.write(b"0" * 2**20)
            return {}

        with pytest.raises(StageError, match="no space left") as raised:
            store.get(step("big", build=build))
        assert raised.value.exit_code == 3
        assert store.find(step("big")) is None
        assert content(store.get(step("kept"))) == "kept"
        assert kept.folder.exists() and store.verify() == []
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", str(disk)], check=True)


def test_a_store_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="the store cannot be written"):
        Store(tmp_path / "file").get(step())


# --- other processes -----------------------------------------------------------------------------------------------

OTHER = """
    import sys, time
    from pathlib import Path
    from mmcompress.store import Step, Store

    root, seconds = Path(sys.argv[1]), float(sys.argv[2])

    def build(output, work):
        (output / "sub").mkdir()
        (output / "sub" / "weights").write_text("half")
        (work / "started").write_text("")
        time.sleep(seconds)
        (output / "sub" / "weights").write_text("a")
        with (root / "builds").open("a") as file:
            file.write("built\\n")
        return {"length": 1}

    artifact = Store(root).get(Step("distill", "stages.0 distill", {"text": "a"}, build))
    print(artifact.built, (artifact.folder / "sub" / "weights").read_text())
"""


def other(root: Path, seconds: float) -> subprocess.Popen[str]:
    code = textwrap.dedent(OTHER)
    return subprocess.Popen([sys.executable, "-c", code, str(root), str(seconds)], stdout=subprocess.PIPE, text=True)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)


def test_killed_in_the_middle_nothing_half_made_is_found(tmp_path: Path) -> None:
    process = other(tmp_path, 600)
    wait_for(tmp_path / "work" / step().key / "started")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    store = Store(tmp_path)
    assert store.find(step()) is None
    assert not list(tmp_path.glob("artifacts/*/*"))
    artifact = store.get(step())
    assert artifact.built and content(artifact) == "a"


def test_two_processes_wait_for_each_other_and_build_once(tmp_path: Path) -> None:
    processes = [other(tmp_path, 0.5) for _ in range(2)]
    told = sorted(process.communicate(timeout=60)[0].strip() for process in processes)
    assert told == ["False a", "True a"]
    assert (tmp_path / "builds").read_text() == "built\n"


# --- verifying -----------------------------------------------------------------------------------------------------


def test_verify_finds_what_was_changed_removed_or_added(tmp_path: Path) -> None:
    store = Store(tmp_path)
    changed, removed, added, renamed = (store.get(step(text)) for text in ("changed", "removed", "added", "renamed"))
    assert store.verify() == []
    weights = changed.folder / "sub" / "weights"
    weights.write_text("chanGed")
    (removed.folder / "sub" / "weights").unlink()
    (added.folder / "extra").write_text("")
    other_name = renamed.folder.with_name("0" * 64)
    renamed.folder.rename(other_name)
    wrong = {weights, removed.folder / "sub" / "weights", added.folder / "extra", other_name / "artifact.json"}
    assert set(map(Path, store.verify())) == wrong


# --- JSON ----------------------------------------------------------------------------------------------------------


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    write_json(file, {"ä": [1, None]})
    assert read_json(file) == {"ä": [1, None]}
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(file, float("inf"))
    assert read_json(file) == {"ä": [1, None]}
    assert os.listdir(tmp_path) == ["x.json"]


@pytest.mark.parametrize(("content", "message"), [(None, "no such file"), (b"{", "not valid"), (b"\xff", "not valid")])
def test_json_that_cannot_be_read(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "x.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_json(file)


def test_a_damaged_manifest_is_named(tmp_path: Path) -> None:
    artifact = Store(tmp_path).get(step())
    manifest = artifact.folder / "artifact.json"
    manifest.write_text(json.dumps(dict(artifact.manifest))[:40])
    with pytest.raises(InputError, match="not valid JSON"):
        Store(tmp_path).get(step())
