"""Recovery after a cut, and a large cut in steps, each trained by the model before the first."""

from __future__ import annotations

import pytest

from mmcompress.errors import StageError
from mmcompress.stages.prune import Prune

torch = pytest.importorskip("torch")
from pruned_clip import write_small_clip  # noqa: E402
from test_prune import RECOVER, given  # noqa: E402

from mmcompress.families.clip import Clip  # noqa: E402

FIELDS = {"goal": {"macs": 0.5}, "importance": "magnitude", "steps": 2, "recover": {**RECOVER, "epochs": 1}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_small_clip(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def family(folder) -> Clip:
    return Clip(path=folder)


def test_steps_come_to_the_goal_by_equal_ratios_and_go_on_where_they_were_killed(folder, tmp_path, monkeypatch):
    torch.set_num_threads(1)
    family = Clip(path=folder)
    stage = Prune.model_validate(FIELDS)
    asked = given(family, folder, tmp_path)
    asked.output.mkdir()
    run, calls = type(stage.recover).run, []

    def counted(self, each):
        calls.append((each.teacher.folder, each.teacher_key, each.model.folder.name))
        if len(calls) == 2:
            raise StageError("killed")
        return run(self, each)

    monkeypatch.setattr(type(stage.recover), "run", counted)
    with pytest.raises(StageError, match="killed"):
        stage.run(asked)
    facts = stage.run(asked)
    assert [name for _, _, name in calls] == ["pruned-1", "pruned-2", "pruned-2"]
    assert len({(teacher, key) for teacher, key, _ in calls}) == 1 and calls[0][0] == folder
    assert facts["ratio"] == pytest.approx(0.5, rel=0.05)
    assert [step["ratio"] for step in facts["steps"]] == pytest.approx([0.5**0.5] * 2, rel=0.04)
    assert facts["macs"][1] / facts["macs"][0] == pytest.approx(facts["ratio"], rel=1e-6)
    model = family.load(asked.output)
    assert sum(p.numel() for p in model.parameters()) == facts["parameters"][1]
    assert "does not open it" in (asked.output / "README.md").read_text()


def test_recovery_trains_the_pruned_model_towards_the_model_before_the_cut(family, folder, tmp_path):
    cut = {"goal": {"macs": 0.7}, "importance": "magnitude"}
    Prune.model_validate(cut).run(given(family, folder, tmp_path / "cut"))
    facts = Prune.model_validate({**cut, "recover": RECOVER}).run(given(family, folder, tmp_path / "recovered"))
    assert facts["ratio"] == pytest.approx(0.7, rel=0.02)
    assert facts["recover"]
    before, after = (family.load(tmp_path / name / "output") for name in ("cut", "recovered"))
    assert [p.shape for p in before.parameters()] == [p.shape for p in after.parameters()]
    assert any(not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))


def test_recovery_that_was_killed_goes_on_from_the_cut(family, folder, tmp_path, monkeypatch):
    stage = Prune.model_validate({"goal": {"macs": 0.7}, "importance": "magnitude", "recover": RECOVER})
    with monkeypatch.context() as patch:
        patch.setattr(type(stage.recover), "run", lambda self, given: (_ for _ in ()).throw(StageError("killed")))
        with pytest.raises(StageError, match="killed"):
            stage.run(given(family, folder, tmp_path))
    monkeypatch.setattr(Prune, "_cut", lambda *_: pytest.fail("cut again"))
    assert stage.run(given(family, folder, tmp_path))["macs"]
