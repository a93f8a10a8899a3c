"""The service of recipes/deploy, as a process of its own, asked over the network."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import deployed
import numpy as np
import pytest

from mmcompress import runs
from mmcompress.package import load_package

SERVICE = Path(__file__).parents[1] / "recipes" / "deploy" / "service.py"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    command = [sys.executable, str(SERVICE), str(deployed.package()), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1]
        process.terminate()


def ask(url: str, body: bytes | None = None) -> tuple[int, dict]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data=body), timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def test_it_is_well_and_answers_several_callers_as_the_package_does(address: str) -> None:
    status, health = ask(f"{address}/health")
    assert (status, health["status"]) == (200, "ok") and set(health["requests"]) == {"embed_image", "embed_text"}
    pictures = [(deployed.package() / "probe" / f"{index:04d}.png").read_bytes() for index in range(8)]
    bodies = [json.dumps({"image": base64.b64encode(data).decode()}).encode() for data in pictures]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda body: ask(f"{address}/embed_image", body), bodies))
    with load_package(deployed.package(), threads=1) as package:
        expected = package.embed_images(pictures)
        text = package.embed_texts("a red star")
    assert all(code == 200 for code, _ in found)
    assert np.abs(np.array([value["answer"] for _, value in found]) - expected).max() < 1e-4
    code, answer = ask(f"{address}/embed_text", b'{"text": "a red star"}')
    assert code == 200 and np.abs(np.array(answer["answer"]) - text).max() < 1e-4


@pytest.mark.parametrize(
    ("path", "body", "code", "words"),
    [
        ("nothing", None, 404, "GET /health"),
        ("embed_txt", b'{"text": "a"}', 400, "did you mean 'embed_text'"),
        ("embed_text", b"no json", 400, "Expecting value"),
        ("embed_text", b"[1]", 400, "items"),
        ("embed_text", b'{"text": 5}', 400, "expected a string, got int"),
        ("embed_image", b'{"image": "!"}', 400, "base64"),
        ("embed_image", b'{"image": "AAAA"}', 400, "picture|image"),
        ("embed_text", b"", 413, "expected a body"),
    ],
)
def test_wrong_requests_are_told_what_is_wrong(address: str, path: str, body, code: int, words: str) -> None:
    import re

    status, answer = ask(f"{address}/{path}", body)
    assert status == code and re.search(words, answer["error"], re.IGNORECASE)
    assert ask(f"{address}/health")[0] == 200


@pytest.mark.unit
def test_the_files_of_deployment_name_what_there_is() -> None:
    import yaml

    folder = SERVICE.parent
    environment = yaml.safe_load((folder / "environment.yml").read_text())
    assert environment["dependencies"][-1]["pip"] == ["mmcompress[cpu]"]
    files = sorted(folder.glob("Dockerfile.*"))
    assert [path.suffix for path in files] == [".cpu", ".gpu", ".jetson"]
    for path in files:
        text = path.read_text()
        assert "COPY service.py" in text and "HEALTHCHECK" in text and "/health" in text
    assert "onnxruntime-gpu" in files[1].read_text() and "[cpu]" not in files[1].read_text()
    assert "deploy" not in runs.recipes()
    assert len([line for line in SERVICE.read_text().splitlines() if line.strip()]) < 75
