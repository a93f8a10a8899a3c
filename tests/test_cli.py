"""The command line: exit codes, what is printed, and every help text with an example."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from mmcompress import cli, component
from mmcompress.cli import main
from tests.small_recipe import RECIPE, write_project


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    try:
        main(arguments)
        code = 0
    except SystemExit as caught:
        code = int(caught.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


@pytest.mark.unit
def test_help_imports_neither_torch_nor_a_runtime() -> None:
    code = "import sys; from mmcompress.cli import main\ntry: main(['run', '--help'])\nexcept SystemExit: pass\n"
    code += "print([name for name in ('torch', 'transformers', 'onnxruntime', 'PIL') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")


@pytest.mark.unit
@pytest.mark.parametrize("name", list(cli.cli.commands))
def test_every_help_text_has_an_example_that_starts_with_the_command(name: str) -> None:
    result = CliRunner().invoke(cli.cli, [name, "--help"])
    assert result.exit_code == 0 and f"mmcompress {name}" in result.output and "Example:" in result.output


@pytest.mark.unit
def test_an_unknown_command_or_option_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "destill", "recipe.yaml")
    assert code == 2 and "did you mean 'distill'" in err
    code, _, err = run(capsys, "run", "recipe.yaml", "--smok")
    assert code == 2 and "--smoke" in err


@pytest.mark.unit
def test_mistakes_of_a_recipe_are_printed_without_a_traceback(capsys: pytest.CaptureFixture[str], recipe: Path) -> None:
    recipe.write_text(RECIPE.replace("steps: 6", "stepz: 6").replace("onnxruntime", "onnxrntime"))
    code, _, err = run(capsys, "run", str(recipe))
    assert code == 2 and "did you mean 'steps'" in err and "did you mean 'onnxruntime'" in err
    assert "Traceback" not in err


@pytest.mark.unit
def test_a_teacher_that_is_not_there(capsys: pytest.CaptureFixture[str], recipe: Path, tmp_path: Path) -> None:
    code, _, err = run(capsys, "run", str(recipe), "--store", str(tmp_path / "store"), "--quiet")
    assert code == 2 and str(tmp_path / "teacher") in err and "Traceback" not in err


@pytest.mark.unit
def test_a_step_that_the_recipe_has_not(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = write_project(tmp_path, RECIPE.replace("  - prune: {goal: {macs: 0.7}, samples: 16, round_to: 8}\n", ""))
    code, _, err = run(capsys, "prune", str(path), "--store", str(tmp_path / "store"))
    assert code == 2 and "no prune step" in err and "distill" in err


@pytest.mark.unit
def test_distill_prints_the_folder_and_copies_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = write_project(tmp_path)
    arguments = ("distill", str(path), "--store", str(tmp_path / "store"), "--quiet", "--out", str(tmp_path / "out"))
    code, out, err = run(capsys, *arguments)
    assert code == 0, err
    assert out.strip() == str(tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if p.suffix == ".safetensors") == ["model.safetensors"]
    assert not (tmp_path / "out" / "artifact.json").exists()
    code, _, err = run(capsys, *arguments)
    assert code == 2 and "exists already" in err


@pytest.mark.unit
def test_list_names_every_component(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "list")
    assert code == 0
    for kind in component.KINDS:
        for name in component.names(kind):
            assert f"  {name}" in out


@pytest.mark.unit
def test_schema_is_json_with_every_component(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "schema")
    definitions = json.loads(out)["$defs"]
    assert code == 0 and "losses.contrastive_kl" in definitions and "temperature" in json.dumps(definitions)


@pytest.mark.unit
def test_recipes_come_along_and_can_be_copied(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = run(capsys, "recipes", "--copy", str(tmp_path / "mine"))
    assert code == 0 and "quickstart" in out and (tmp_path / "mine" / "quickstart.yaml").is_file()


@pytest.mark.unit
def test_a_bug_of_ours_leaves_a_traceback_in_a_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> dict[str, Path]:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr("mmcompress.runs.recipes", fail)
    code, _, err = run(capsys, "recipes")
    assert code == 70 and "ZeroDivisionError: planted" in err and "Traceback" not in err
    file = Path(err.split("The traceback is in ")[1].split("; please")[0])
    assert "planted" in file.read_text()
    file.unlink()


@pytest.mark.unit
def test_predict_needs_something_to_run_on(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = run(capsys, "predict", str(tmp_path))
    assert code == 2 and "--image" in err
    code, _, err = run(capsys, "predict", str(tmp_path), "--text", "a star")
    assert code == 2 and "not a package" in err
