from __future__ import annotations

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import deployed
import numpy as np
import pytest
from PIL import Image

from mmcompress._ask import TimedRun, ask
from mmcompress._sound import read_sound
from mmcompress.errors import InputError, UsageError
from mmcompress.package import load_package


@pytest.fixture(scope="module")
def package():
    with load_package(deployed.package(), threads=1) as opened:
        yield opened


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(deployed.package(), tmp_path / "copy")
    return tmp_path / "copy"


def test_a_picture_in_every_form_gives_one_answer(package):
    path = deployed.package() / "probe" / "0000.png"
    image = Image.open(path)
    forms = [path, str(path), path.read_bytes(), image, np.asarray(image)]
    answers = package.embed_images(forms)
    assert answers.shape == (5, 64)
    assert all(np.array_equal(answers[0], answer) for answer in answers)
    one = package.embed_images(path)
    assert one.shape == (64,)
    assert np.allclose(one, answers[0], atol=1e-6)
    assert np.linalg.norm(one) == pytest.approx(1, abs=1e-5)


def test_texts(package):
    many = package.embed_texts(["a red star", "a big blue ring of w1 w2"])
    one = package.embed_texts("a red star")
    assert many.shape == (2, 64) and one.shape == (64,)
    assert np.allclose(many[0], one, atol=1e-5)


def test_classify_chooses_the_text_of_the_highest_similarity(package):
    columns, _ = package.probe()
    texts = ["a red star", "a ring", "w1 w2"]
    found = package.classify(columns["image"][:3], texts)
    expected = package.embed_images(columns["image"][:3]) @ package.embed_texts(texts).T
    assert [answer.index for answer in found] == expected.argmax(axis=1).tolist()
    assert [answer.label for answer in found] == [texts[i] for i in expected.argmax(axis=1)]
    assert np.allclose([answer.scores for answer in found], expected)
    assert package.classify(columns["image"][0], texts).label == found[0].label
    with pytest.raises(AttributeError):
        found[0].label = "other"
    with pytest.raises(InputError, match="list of texts"):
        package.classify(columns["image"][0], "a red star")


def test_predict_answers_the_request_that_takes_the_values(package):
    assert np.array_equal(package.predict({"text": "a star"}), package.embed_texts("a star"))
    assert package.predict({"text": ["a star", "a ring"]}).shape == (2, 64)
    with pytest.raises(UsageError, match="0 requests take sound"):
        package.predict({"sound": "x"})


def test_answers_do_not_depend_on_the_batch(package):
    columns, _ = package.probe()
    assert np.allclose(package.ask("embed_text", columns, batch_size=3), package.ask("embed_text", columns), atol=1e-5)


@pytest.mark.parametrize(
    ("request_name", "values", "message"),
    [
        ("embed_image", {}, "image is missing"),
        ("embed_image", {"image": []}, "no image"),
        ("embed_txt", {"text": ["a"]}, "did you mean 'embed_text'"),
        ("embed_image", {"image": [b"no picture"]}, "picture|image"),
    ],
)
def test_bad_questions(package, request_name, values, message):
    with pytest.raises(UsageError, match=message):
        package.ask(request_name, values)


def test_a_text_that_is_too_long_is_refused_where_its_end_would_be_missing(package):
    ten, eleven = " ".join(["red"] * 10), " ".join(["red"] * 11)
    for ask_one in (
        package.embed_texts,
        lambda text: package.predict({"text": ["a", text]}),
        lambda text: package.classify(package.path / "probe" / "0000.png", ["a", text]),
    ):
        ask_one(ten)
        with pytest.raises(InputError, match=r"1 tokens more than the 12 that the model takes\n  Shorten it"):
            ask_one(eleven)
    assert np.array_equal(package.ask("embed_text", {"text": [eleven]}), package.ask("embed_text", {"text": [ten]}))


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (np.zeros((24, 24), np.uint8), r"must be uint8 \[h, w, 3\] in RGB, got uint8 \(24, 24\)"),
        (np.zeros((3, 24, 24), np.uint8), r"must be uint8 \[h, w, 3\]"),
        (np.zeros((24, 24, 3), np.float32), "got float32"),
        (np.zeros((0, 24, 3), np.uint8), "an empty picture"),
        (Image.new("I;16", (8, 8)), "mode 'I;16' have no defined brightness; store it with 8 bits"),
        (Image.new("RGB", (90_000, 900)), "more than 80,000,000 pixels; scale the picture down"),
        ("nowhere.png", "nowhere.png: no such picture"),
    ],
)
def test_pictures_of_a_wrong_size_or_mode(package, picture, words):
    with pytest.raises(InputError, match=words):
        package.embed_images(picture)


@pytest.mark.parametrize(
    ("sound", "words"),
    [
        ((np.zeros(100, np.float32), 50), "a sample rate of 50 Hz; expected 1000 to 384000"),
        ((np.zeros(100, np.float32), 400_000), "a sample rate of 400000 Hz"),
        (
            np.zeros(100, np.float32),
            r"pair \(samples, rate\), got ndarray\n  An array alone does not tell its sample rate",
        ),
    ],
)
def test_sounds_of_a_wrong_rate(sound, words):
    with pytest.raises(InputError, match=words):
        read_sound(sound)


def test_eight_threads_get_the_same_answers(package):
    columns, _ = package.probe()
    for ask_one, inputs in ((package.embed_images, columns["image"]), (package.embed_texts, columns["text"])):
        expected = [ask_one(value) for value in inputs]
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(ask_one, inputs * 6))
        assert all(np.array_equal(answer, expected[i % len(expected)]) for i, answer in enumerate(found))


def test_the_probe_tells_how_the_package_answers(package):
    checks = package.check_probe()
    assert set(checks) == {"embed_image", "embed_text"}
    for check in checks.values():
        assert check.lowest == pytest.approx(1, abs=1e-5)
        assert 0.99 < check.teacher < 1


def test_time_inside_the_engine_is_told_apart(package):
    columns, _ = package.probe()
    timed = TimedRun(package.run)
    answers = ask(package.family, package.processor, timed, "embed_image", columns, batch_size=4)
    assert timed.calls == 4 and timed.seconds > 0
    assert np.allclose(answers, package.ask("embed_image", columns), atol=1e-5)


def test_a_closed_package_says_so():
    with load_package(deployed.package(), threads=1) as opened:
        pass
    with pytest.raises(UsageError, match="closed"):
        opened.embed_texts("a")


def test_no_torch_is_needed():
    """The same answers in a process whose imports of torch and all that compresses fail."""
    script = """
import json, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "transformers", "onnx", "onnxscript", "safetensors", "accelerate", "torch_pruning"}:
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Block())
import mmcompress
with mmcompress.load_package(sys.argv[1], threads=1) as package:
    columns, _ = package.probe()
    print(json.dumps([package.ask(r.name, columns).tolist() for r in package.requests] + [package.check_probe()["embed_text"].lowest]))
"""
    made = subprocess.run(
        [sys.executable, "-c", script, str(deployed.package())],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    answers = json.loads(made.stdout)
    with load_package(deployed.package(), threads=1) as package:
        columns, _ = package.probe()
        for request, answer in zip(package.requests, answers, strict=False):
            assert np.array_equal(np.array(answer, np.float32), package.ask(request.name, columns))


# --- packages that are not what they were --------------------------------------------------------------------------


def edit(folder: Path, change) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", ["vision_model.onnx", "tokenizer.json", "probe/embed_image.npy"])
def test_a_changed_file_is_named(copy, name):
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(InputError, match=f"changed after its manifest was written: {name} has other content"):
        load_package(copy)


def test_a_missing_file_is_named(copy):
    (copy / "config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json is missing"):
        load_package(copy)


def test_an_added_file_is_named_but_for_what_stands_beside(copy):
    for name in ("scores.json", "README.md", "artifact.json"):
        (copy / name).write_text("{}")
    load_package(copy, threads=1).close()
    (copy / "more.json").write_text("{}")
    with pytest.raises(InputError, match=r"more\.json is not part of it"):
        load_package(copy)


def test_files_outside_the_package_are_refused(copy):
    edit(copy, lambda manifest: manifest["files"].update({"../x": {"sha256": "absent", "bytes": 0}}))
    with pytest.raises(InputError, match="outside the package"):
        load_package(copy)


def test_another_format_is_refused(copy):
    edit(copy, lambda manifest: manifest.update(format=99))
    with pytest.raises(InputError, match="format 99"):
        load_package(copy)


def test_a_broken_manifest_is_named(copy):
    edit(copy, lambda manifest: manifest.pop("graphs"))
    with pytest.raises(InputError, match="broken: graphs missing"):
        load_package(copy)
    (copy / "manifest.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        load_package(copy)


def test_int8_for_another_machine_is_refused(copy):
    edit(copy, lambda manifest: manifest["target"].update(machine="arm64"))
    with pytest.raises(InputError, match=r"package for arm64; this machine is .*\n.*for: "):
        load_package(copy)


@pytest.mark.parametrize("name", ["nothing", "empty"])
def test_what_is_no_package(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"not a package: manifest\.json is missing"):
        load_package(tmp_path / name)
