"""The parts of training: fields, order, views, encoded data, checkpoints; and that what is killed goes on the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import training_helpers
from pydantic import ValidationError
from training_helpers import stage_input, write_model

from mmcompress.component import digest_json
from mmcompress.errors import InputError, StageError, UsageError
from mmcompress.losses.task import Task
from mmcompress.stages._augment import augment_pictures
from mmcompress.stages._batches import Batches, encode, uniform
from mmcompress.stages._objective_modules import in_batch_retrieval, term_names
from mmcompress.stages._trainer_modules import Course, StageTrainer
from mmcompress.stages._training import freeze
from mmcompress.stages._training_fields import TrainingFields
from mmcompress.stages.finetune import Finetune

unit = pytest.mark.unit


def encoded(root: Path, **given: Any) -> Any:
    model = write_model(root / "model")
    stage = stage_input(root, **given)
    return encode(stage.train, model.family, model.folder, stage.cache, stage.train_identity, stage.progress), stage


# --- fields --------------------------------------------------------------------------------------------------------


@unit
@pytest.mark.parametrize(
    "fields",
    [
        {"epochs": 1, "steps": 1},
        {"batch_size": 0},
        {"batch_size": 4, "accumulation": 5},
        {"learning_rate": 0},
        {"warmup": 1},
        {"patience": 2, "evaluations": 2},
        {"schedule": "step"},
        {"epoch": 1},
    ],
)
def test_impossible_fields_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TrainingFields(**fields)


@unit
def test_steps_follow_from_epochs() -> None:
    assert TrainingFields(epochs=2).step_count(10) == 20
    assert TrainingFields(epochs=0.5, accumulation=2).step_count(10) == 5
    assert TrainingFields(epochs=0.001).step_count(10) == 1
    assert TrainingFields(steps=7).step_count(10) == 7
    assert TrainingFields().step_count(3) == 30


@unit
def test_every_field_changes_the_identity_and_the_dump_loads_equal() -> None:
    changed: dict[str, Any] = {
        "epochs": 2.0,
        "steps": 3,
        "batch_size": 2,
        "accumulation": 2,
        "learning_rate": 0.5,
        "weight_decay": 0.5,
        "warmup": 0.5,
        "schedule": "linear",
        "clip": 2.0,
        "precision": "fp32",
        "attention": "sdpa",
        "augment": "crop",
        "evaluations": 3,
        "best_by": "retrieval",
        "checkpoints": 3,
        "checkpoint_minutes": 1.0,
        "freeze": ("vision_model",),
        "student": "from_teacher",
    }
    assert changed.keys() | {"patience"} == Finetune.model_fields.keys()
    stages = [Finetune(**{name: value}) for name, value in changed.items()]
    stages += [Finetune(evaluations=3, patience=2), Finetune()]
    assert len({digest_json(stage.identity()) for stage in stages}) == len(stages)
    for stage in stages:
        assert Finetune.model_validate(stage.model_dump(mode="json")) == stage


@unit
def test_environment_names_precision_and_versions() -> None:
    environment = Finetune(precision="fp32", attention="sdpa").environment()
    assert (environment["precision"], environment["attention"]) == ("fp32", "sdpa")
    assert environment["libraries"]["torch"] == torch.__version__
    assert Finetune().environment()["precision"] in ("fp32", "bf16")


# --- order and views -----------------------------------------------------------------------------------------------


@unit
def test_draws_are_uniform_and_follow_from_their_arguments() -> None:
    hashes = np.random.default_rng(0).integers(0, 2**63, 20_000).astype(np.uint64)
    draws = uniform(hashes, 0, 1, "texts")
    assert (draws == uniform(hashes, 0, 1, "texts")).all()
    assert abs(draws.mean() - 0.5) < 0.01
    assert abs(np.histogram(draws, 10, (0, 1))[0] / 2000 - 1).max() < 0.1
    for other in ((1, 1, "texts"), (0, 2, "texts"), (0, 1, "x")):
        assert abs(np.corrcoef(draws, uniform(hashes, *other))[0, 1]) < 0.03


@unit
@pytest.mark.parametrize("augment", ["shift", "crop"])
def test_views_are_pure_and_change_each_picture(augment: str) -> None:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (6, 16, 16, 3)).astype(np.uint8)
    draws = {name: rng.random(6) for name in ("x", "y", "area", "light", "gap")}
    views = augment_pictures(pictures, augment, draws)
    assert views.shape == pictures.shape
    assert views.dtype == np.uint8
    assert all((view != picture).any() for view, picture in zip(views, pictures, strict=True))
    alone = augment_pictures(pictures[2:3], augment, {name: value[2:3] for name, value in draws.items()})
    assert (alone[0] == views[2]).all()


@unit
def test_a_shift_moves_and_repeats_the_edge() -> None:
    picture = np.arange(16, dtype=np.uint8).reshape(1, 1, 16, 1).repeat(16, axis=1).repeat(3, axis=3)
    still = {"y": np.array([0.5]), "area": np.array([0.0]), "light": np.array([0.5]), "gap": np.array([0.5])}
    moved = augment_pictures(picture, "shift", {**still, "x": np.array([0.999])})
    assert moved[0, 0, :, 0].tolist() == [*range(2, 16), 15, 15]


def test_batches_follow_from_seed_epoch_and_position(tmp_path: Path) -> None:
    data, _ = encoded(tmp_path, examples=70)
    batches = Batches(data, 16, seed=3)
    assert batches.per_epoch == 4
    seen = np.concatenate([batches.rows(number)[1] for number in range(4)])
    assert len(set(seen.tolist())) == 64
    assert batches.rows(5)[0] == 1
    assert (batches.rows(1)[1] != batches.rows(5)[1]).any()
    again = Batches(data, 16, seed=3)[6]["inputs"]
    for name, array in batches[6]["inputs"].items():
        assert array.tobytes() == again[name].tobytes()
    with pytest.raises(InputError, match="batch_size 71"):
        Batches(data, 71, seed=0)


def test_encoded_arrays_are_those_of_the_processor_and_texts_alternate(tmp_path: Path) -> None:
    data, stage = encoded(tmp_path, examples=40, captions=3)
    rows = np.array([5, 0, 39])
    chosen = {epoch: data.texts(rows, 0, epoch).tolist() for epoch in range(20)}
    assert {item[0] for item in chosen.values()} == {15, 16, 17}
    texts = np.array(chosen[0])
    examples = [stage.train[int(row)].values for row in rows]
    expected = data.processor.encode(
        {
            "image": [values["image"] for values in examples],
            "text": [values["texts"][text % 3] for values, text in zip(examples, texts, strict=True)],
        }
    )
    feeds = data.feeds(rows, texts)
    assert feeds.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(feeds[name], array)


def test_encoded_data_is_found_again_also_for_a_student_and_never_half_written(tmp_path: Path) -> None:
    data, stage = encoded(tmp_path, examples=40)
    told: list[Any] = []
    narrow = write_model(tmp_path / "narrow", width=16)

    def again(**changes: Any) -> Any:
        examples = changes.pop("examples", stage.train)
        identity = changes.pop("identity", stage.train_identity)
        return encode(examples, narrow.family, narrow.folder, stage.cache, identity, lambda *a: told.append(a))

    assert again().key == data.key
    assert not told
    assert again(identity={"other": 1}).key != data.key
    assert told

    class Dying:
        def __getattr__(self, name: str) -> Any:
            return getattr(stage.train, name)

        def __len__(self) -> int:
            return len(stage.train)

        def __getitem__(self, index: int) -> Any:
            if index == 30:
                raise OSError("gone")
            return stage.train[index]

    with pytest.raises(OSError, match="gone"):
        again(examples=Dying(), identity={"third": 1})
    folders = [p for p in (stage.cache / "examples").iterdir() if p.is_dir() and not p.name.endswith(".part")]
    assert len(folders) == 2
    assert len(again(identity={"third": 1})) == 40


def test_data_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    stage = stage_input(tmp_path)

    class Pictures:
        columns = frozenset({"image"})
        ids = stage.train.ids

        def __len__(self) -> int:
            return 96

    with pytest.raises(InputError, match="no texts"):
        encode(Pictures(), model.family, model.folder, stage.cache, None, stage.progress)  # type: ignore[arg-type]


# --- training ------------------------------------------------------------------------------------------------------


@unit
def test_patience_follows_from_the_history() -> None:
    def course(metric: str, patience: int | None = 2) -> Course:
        return Course(10, frozenset(), frozenset(), 60.0, patience, metric)

    history = [{"eval_loss": x, "eval_retrieval": x} for x in (3.0, 2.0, 2.5, 2.0)]
    assert course("eval_loss").worn_out(history)
    assert not course("eval_loss").worn_out(history[:3])
    assert not course("eval_loss", None).worn_out(history)
    assert course("eval_retrieval", 3).worn_out(history)
    assert not course("eval_loss").worn_out([{"loss": 1.0}])


@unit
def test_terms_of_the_same_name_are_numbered() -> None:
    assert term_names([Task(), Task(weight=2.0)]) == ["task", "task_2"]


@unit
def test_retrieval_within_a_batch_by_hand() -> None:
    image = torch.nn.functional.normalize(torch.tensor([[1.0, 0.1], [0.9, 0.3], [0.0, 1.0]]), dim=-1)
    text = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    # Pictures: each own text is among the nearest. Texts: the first two are alike, and picture 0 is nearest to both.
    assert in_batch_retrieval(image, text).item() == pytest.approx((3 / 3 + 2 / 3) / 2)


@unit
def test_freezing_counts_and_refuses_what_matches_nothing() -> None:
    model = torch.nn.ModuleDict({"vision": torch.nn.Linear(2, 3), "text": torch.nn.Linear(2, 2)})
    with pytest.raises(StageError, match="'visual'; the model has text, vision"):
        freeze(model, ("visual",))
    assert freeze(model, ("vision",)) == 9
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]
    with pytest.raises(StageError, match="nothing is left"):
        freeze(model, ("text",))


def test_weight_decay_leaves_vectors_and_scales_alone(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    module = model.family.load(model.folder)
    decayed = StageTrainer.get_decay_parameter_names(None, module)  # type: ignore[arg-type]
    assert "visual_projection.weight" in decayed
    assert not [n for n in decayed if n.endswith("bias") or "norm" in n or n == "logit_scale"]


def test_scalars_are_written_where_they_are_asked_for(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    model = write_model(tmp_path / "model")
    given = stage_input(tmp_path, model=model, track=tmp_path / "scalars")
    facts = Finetune(steps=3, batch_size=16, evaluations=1).run(given)
    read = accumulator.EventAccumulator(str(tmp_path / "scalars"))
    read.Reload()
    train = {"train/loss", "train/task", "train/learning_rate", "train/gradient_norm", "speed/examples_per_second"}
    names = set(read.Tags()["scalars"])
    assert names == train | {"validation/loss", "validation/task", "validation/retrieval"}
    assert {name: [item.step for item in read.Scalars(name)] for name in train} == {name: [1, 2, 3] for name in train}
    losses = [item.value for item in read.Scalars("train/loss")]
    assert sum(losses) / 3 == pytest.approx(facts["losses"]["loss"], rel=1e-5)
    Finetune(steps=1, batch_size=16).run(stage_input(tmp_path, "untracked", model=model))
    assert not list((tmp_path / "untracked").rglob("*tfevents*"))


def test_evaluations_without_validation_data(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    with pytest.raises(UsageError, match=r"data\.validation"):
        Finetune(steps=1, evaluations=1).run(stage_input(tmp_path, model=model, validation=None))


FIELDS = {"steps": 60, "batch_size": 16, "accumulation": 2, "checkpoints": 12, "evaluations": 3, "augment": "shift"}

CHILD = """
import sys
from pathlib import Path
from training_helpers import stage_input
from mmcompress.families.clip import Clip
from mmcompress.stages import Model
from mmcompress.stages.finetune import Finetune
root = Path(sys.argv[1])
given = stage_input(root, sys.argv[2], model=Model(Clip(path=root / "model"), root / "model"))
print("resumed from", Finetune(**{fields}).run(given)["resumed_from"])
"""


def child(root: Path, name: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD.replace("{fields}", repr(FIELDS)), str(root), name]
    path = os.pathsep.join([str(Path(training_helpers.__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, text=True)


def test_a_killed_training_goes_on_to_the_same_weights_bit_for_bit(tmp_path: Path) -> None:
    # Drop-out draws from the generator whose state a checkpoint must bring back.
    model = write_model(tmp_path / "model", dropout=0.1)
    checkpoints = tmp_path / "killed" / "work" / "training"
    killed = child(tmp_path, "killed")
    deadline = time.monotonic() + 120
    while not (checkpoints / "checkpoint-25" / "complete.json").exists():
        assert killed.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "killed" / "output" / "model.safetensors").exists()

    last, before = sorted(checkpoints.glob("*/complete.json"), key=lambda p: -int(p.parent.name.split("-")[1]))[:2]
    weights = last.parent / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    goes_on = child(tmp_path, "killed")
    out, _ = goes_on.communicate(timeout=120)
    assert goes_on.returncode == 0
    assert out == f"resumed from {before.parent.name.split('-')[1]}\n"

    whole = Finetune(**FIELDS).run(stage_input(tmp_path, "whole", model=model))
    assert whole["resumed_from"] == 0
    files = [tmp_path / name / "output" / "model.safetensors" for name in ("killed", "whole")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert not list(checkpoints.rglob("training_args.bin"))
