"""Fusion models in torch: what goes into the answer and what does not, losses by hand, students, pruning, graphs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_fusion as tiny
import torch

from mmcompress import deploy
from mmcompress._ask import ask
from mmcompress.component import JSON
from mmcompress.errors import InputError, UsageError
from mmcompress.families import FromTeacher
from mmcompress.families._fusion_encoder_modules import Standardise
from mmcompress.families.fusion import Fusion
from mmcompress.runtimes.torch import open_model
from mmcompress.stages._cutting import Budget, prune_model
from mmcompress.stages._weighing import rank_by_weights

unit = pytest.mark.unit
torch.set_num_threads(1)

CONFIGS: dict[str, JSON] = {
    "early": tiny.config([tiny.image(), tiny.audio()], missing=0.2),
    "cross": tiny.config([tiny.image(tiny.VIT), tiny.text(), tiny.table()], tiny.CROSS, missing=0.2),
    "late": tiny.config([tiny.series(), tiny.table(), tiny.features()], tiny.LATE, tiny.NUMBER, 0.2),
    "several": tiny.config(
        [tiny.film(over_time="gru"), tiny.text(tiny.LSTM)], output={**tiny.CLASSES, "kind": "several"}
    ),
    "tags": tiny.config([tiny.image(), tiny.text(name="words")], tiny.CROSS, tiny.TAGS),
    "tags-early": tiny.config([tiny.table(), tiny.text(tiny.GRU, "words")], tiny.EARLY, tiny.TAGS),
}


@pytest.fixture(scope="module", params=list(CONFIGS))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Fusion, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    return tiny.write(folder, CONFIGS[request.param]), folder / "model"


def outputs(family: Fusion, folder: Path, given: Any = None) -> Any:
    model = family.load(folder)
    with torch.inference_mode():
        return family.outputs(model, given or tiny.batch(family, folder), family.provides())


# --- one answer ----------------------------------------------------------------------------------------------------


@unit
def test_outputs_have_their_shapes_and_every_input_counts(made: tuple[Fusion, Path]) -> None:
    family, folder = made
    given = outputs(family, folder)
    config = family.described
    shape = given["fusion.logits"].shape
    assert shape[0] == 4 and shape[-1] == config.width and len(shape) == (3 if config.tagged else 2)
    for item in config.inputs:
        torch.testing.assert_close(given[f"{item.name}.embeds"].norm(dim=-1), torch.ones(4))
        other = tiny.batch(family, folder)
        values = other[f"{item.name}_values"]
        other[f"{item.name}_values"] = torch.where(values == 3, 5, 3) if values.dtype == torch.int64 else values + 1.0
        assert not torch.allclose(outputs(family, folder, other)["fusion.logits"], given["fusion.logits"], atol=1e-5)


@unit
def test_padding_changes_nothing(made: tuple[Fusion, Path]) -> None:
    """One example alone, and the same one beside longer ones."""
    family, folder = made
    batch = tiny.batch(family, folder)
    alone: dict[str, torch.Tensor] = {}
    for name, value in batch.items():
        alone[name] = value[:1]
        length = batch.get(name.replace("_values", "_length"))
        if name.endswith("_values") and length is not None:
            alone[name] = value[:1, : int(length[0])]
    words = alone.get("tags", torch.zeros(1, 1)) if family.described.tagged else None
    one, many = outputs(family, folder, alone)["fusion.logits"], outputs(family, folder, batch)["fusion.logits"][:1]
    if words is not None:
        mask = words != -1
        one, many = one[mask], many[mask]
    torch.testing.assert_close(one, many, atol=1e-5, rtol=1e-4)


@unit
@pytest.mark.parametrize("name", ["early", "cross", "late"])
def test_what_is_absent_is_not_read(name: str, tmp_path: Path) -> None:
    family, folder = tiny.write(tmp_path, CONFIGS[name]), tmp_path / "model"
    config = family.described
    batch = tiny.batch(family, folder)
    for item in config.inputs:
        absent = {**batch, f"{item.name}_present": torch.zeros(4)}
        values = batch[f"{item.name}_values"]
        other = {**absent, f"{item.name}_values": values.flip(0)}
        first, second = (outputs(family, folder, given)["fusion.logits"] for given in (absent, other))
        torch.testing.assert_close(first, second)
        assert not torch.allclose(first, outputs(family, folder, batch)["fusion.logits"], atol=1e-5)


@unit
def test_a_request_goes_without_an_input(tmp_path: Path) -> None:
    family = tiny.write(tmp_path, CONFIGS["early"])
    (request,) = family.requests
    assert (request.name, request.inputs, request.optional) == ("classify", ("image", "audio"), ("image", "audio"))
    session, processor = open_model(family, tmp_path / "model", None), family.processor(tmp_path / "model")
    given = tiny.values(3)
    rows = ask(family, processor, session.run, "classify", {"image": given["image"]})
    mixed = ask(
        family, processor, session.run, "classify", {"image": given["image"], "audio": [None, *given["audio"][1:]]}
    )
    assert rows.shape == (3, 3)
    np.testing.assert_allclose(rows[0], mixed[0], atol=1e-6)
    assert not np.allclose(rows[1], mixed[1], atol=1e-5)
    with pytest.raises(InputError, match="has no input at all"):
        ask(family, processor, session.run, "classify", {"image": [None]})


@unit
def test_late_fusion_is_the_weighted_mean_of_those_that_are_there(tmp_path: Path) -> None:
    family = tiny.write(tmp_path, CONFIGS["late"])
    model: Any = family.load(tmp_path / "model")
    with torch.no_grad():
        model.fusion.log_weights.copy_(torch.tensor([1.0, 2.0, 4.0]).log())
        model.scale.see(torch.tensor([[10.0], [30.0]]))  # mean 20, standard deviation 10
        batch = tiny.batch(family, tmp_path / "model")
        batch["series_present"][1] = 0
        given = family.outputs(model, batch, family.provides())
        own = torch.stack([given[f"{name}.logits"][:, 0] for name in ("series", "table", "features")])
        head = model.fusion.heads[1](model.encode(batch)["table"].pooled)[:, 0]
    torch.testing.assert_close(own[1], 20 + 10 * head)
    torch.testing.assert_close(given["fusion.logits"][0, 0], (own[0, 0] + 2 * own[1, 0] + 4 * own[2, 0]) / 7)
    torch.testing.assert_close(given["fusion.logits"][1, 0], (2 * own[1, 1] + 4 * own[2, 1]) / 6)
    assert given["fusion.scale"].item() == pytest.approx(10.0)


@unit
def test_tags_are_those_of_each_word(tmp_path: Path) -> None:
    family = tiny.write(tmp_path, CONFIGS["tags"])
    session, processor = open_model(family, tmp_path / "model", None), family.processor(tmp_path / "model")
    given = tiny.values(3)
    words = [("red",), ("a", "green-blue", "star"), ("the", "ring")]
    rows = ask(family, processor, session.run, "tag", {"image": given["image"], "words": words})
    assert (rows != -1).sum(axis=1).tolist() == [1, 3, 2] and rows.dtype == np.int32
    feeds = processor.encode({"image": given["image"], "words": words})
    logits = session.run("fusion_model", {k: v for k, v in feeds.items() if not k.endswith("starts")})["logits"]
    # `green-blue` is three tokens: the third word's first token is the sixth.
    assert rows[1].tolist() == [int(logits[1, token].argmax()) for token in (1, 2, 5)]


# --- statistics and losses -----------------------------------------------------------------------------------------


@unit
def test_standardising_by_what_training_showed() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal([5.0, -300.0], [2.0, 50.0], (90, 2)).astype(np.float32)
    module = Standardise(2)
    counts = torch.ones(30, dtype=torch.bool)
    for start in (0, 30, 60):
        part = torch.from_numpy(rows[start : start + 30].copy())
        if start == 60:
            part = torch.cat([part, torch.full((7, 2), 1e6)])  # padding and absent rows are not seen
            counts = torch.cat([counts, torch.zeros(7, dtype=torch.bool)])
        module(part, counts)
    torch.testing.assert_close(module.mean, torch.from_numpy(rows.mean(axis=0)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(module.std, torch.from_numpy(rows.std(axis=0)), rtol=1e-4, atol=1e-4)
    before = module.mean.clone()
    module.eval()(torch.zeros(3, 2), torch.ones(3, dtype=torch.bool))
    fixed = Standardise(2, [1.0, 2.0], [2.0, 4.0])
    assert torch.equal(module.mean, before)
    assert fixed(torch.tensor([[3.0, 10.0]]), torch.ones(1, dtype=torch.bool)).tolist() == [[1.0, 2.0]]
    assert fixed.mean.tolist() == [1.0, 2.0]


def loss_of(tmp_path: Path, output: Any, given: dict[str, Any], batch: dict[str, Any], **fields: Any) -> float:
    inputs = [tiny.table(), tiny.text(tiny.GRU, "words")]
    family = Fusion(config=tiny.source(tmp_path, tiny.config(inputs, output=output, **fields)))
    assert family.task_needs() <= set(given) and family.task_needs() <= family.provides()
    return family.task_loss(given, batch).item()


@unit
def test_task_losses_by_hand(tmp_path: Path) -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0], [math.log(2.0), 0.0, 0.0]])
    label = {"label": torch.tensor([1, 0])}
    expected = (math.log(3) + math.log(2)) / 2
    assert loss_of(tmp_path, tiny.CLASSES, {"fusion.logits": logits}, label) == pytest.approx(expected)
    several = loss_of(
        tmp_path,
        {**tiny.CLASSES, "kind": "several"},
        {"fusion.logits": logits},
        {"labels": torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])},
    )
    assert several == pytest.approx((3 * math.log(2) + math.log(1.5) + 2 * math.log(2)) / 2)
    tags = {"fusion.logits": logits[None], "fusion.mask": torch.tensor([[1.0, 0.0]])}
    assert loss_of(tmp_path, tiny.TAGS, tags, {"tags": torch.tensor([[2, -1]])}) == pytest.approx(math.log(3))
    number = {"fusion.logits": torch.tensor([[3.0], [5.0]]), "fusion.scale": torch.tensor(2.0)}
    assert loss_of(tmp_path, tiny.NUMBER, number, {"number": torch.tensor([1.0, 5.0])}) == pytest.approx(0.5)


@unit
def test_votes_are_trained_by_themselves_where_they_are_there(tmp_path: Path) -> None:
    uniform = torch.zeros(2, 3)
    sure = torch.tensor([[0.0, 50.0, 0.0], [50.0, 0.0, 0.0]])
    given = {
        **{"fusion.logits": sure, "table.logits": uniform, "words.logits": sure},
        **{"table.present": torch.tensor([1.0, 0.0]), "words.present": torch.tensor([1.0, 1.0])},
    }
    found = loss_of(tmp_path, tiny.CLASSES, given, {"label": torch.tensor([1, 0])}, fusion=tiny.LATE, missing=0.1)
    assert found == pytest.approx(math.log(3) / 3)


@unit
@pytest.mark.parametrize("name", ["early", "late", "tags", "several"])
def test_a_step_of_training_lowers_the_loss(name: str, tmp_path: Path) -> None:
    family = tiny.write(tmp_path, CONFIGS[name])
    model = family.load(tmp_path / "model").train()
    batch = tiny.batch(family, tmp_path / "model", 8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for _ in range(12):
        loss = family.task_loss(family.outputs(model, batch, family.task_needs()), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


# --- model folders -------------------------------------------------------------------------------------------------


@unit
def test_saved_and_loaded_bit_for_bit(made: tuple[Fusion, Path], tmp_path: Path) -> None:
    family, folder = made
    model = family.load(folder)
    family.save(model, folder, tmp_path)
    assert not (tmp_path / "structure.json").exists()
    again = Fusion(path=tmp_path).load(tmp_path).state_dict()
    assert all(torch.equal(again[name], value) for name, value in model.state_dict().items())
    Fusion(path=tmp_path).write(tmp_path / "copy", 3)
    copied = Fusion(path=tmp_path / "copy").load(tmp_path / "copy").state_dict()
    assert all(torch.equal(copied[name], value) for name, value in again.items())


@unit
def test_the_seed_decides_the_weights(tmp_path: Path) -> None:
    one, two, other = (
        tiny.write(tmp_path / str(index), CONFIGS["early"], seed).load(tmp_path / str(index) / "model").state_dict()
        for index, seed in enumerate((0, 0, 1))
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["fusion.layers.linears.0.weight"], other["fusion.layers.linears.0.weight"])


@unit
def test_pruned_models_are_built_again(tmp_path: Path) -> None:
    family = tiny.write(tmp_path, CONFIGS["cross"])
    model = family.load(tmp_path / "model")
    facts = prune_model(
        family,
        model,
        Budget("macs", 0.6),
        lambda blocks: rank_by_weights(model, blocks, "magnitude", 0),
        relative=True,
        round_to=4,
    )
    assert set(facts["towers"]) == {"image", "text", "table", "fusion"}
    heads = {name: sizes["heads"] for name, sizes in facts["blocks"].items() if "heads" in sizes}
    assert any(after < before for before, after in heads.values())
    assert facts["blocks"]["table.hidden.0"]["width"][1] < 16
    family.save(model, tmp_path / "model", tmp_path / "pruned")
    batch = tiny.batch(family, tmp_path / "model")
    again = Fusion(path=tmp_path / "pruned").load(tmp_path / "pruned")
    with torch.inference_mode():
        first, second = (family.outputs(each, batch, family.provides()) for each in (model, again))
    assert all(torch.equal(first[name], second[name]) for name in first)
    with pytest.raises(UsageError, match="cannot be cut from a pruned model"):
        family.student(tmp_path / "pruned", FromTeacher(image_layers=1), tmp_path / "s", 0)  # type: ignore[call-arg]


@unit
def test_students_have_fewer_layers_with_their_weights(tmp_path: Path) -> None:
    family = tiny.write(tmp_path, CONFIGS["cross"])
    teacher: Any = family.load(tmp_path / "model").state_dict()
    assert family.cuts == {"image_layers", "image_feed_forward", "text_layers", "text_feed_forward", "fusion_layers"}
    cut: Any = FromTeacher(image_layers=2, text_layers=(1,), text_feed_forward=16, fusion_layers=1)  # type: ignore[call-arg]
    family.student(tmp_path / "model", cut, tmp_path / "student", 0)
    student = Fusion(path=tmp_path / "student").load(tmp_path / "student").state_dict()
    image, text = (
        "{}_encoder.encoder.model." + rest
        for rest in ("layers.{}.mlp.fc1.weight", "encoder.layer.{}.attention.self.query.weight")
    )
    assert torch.equal(student[image.format("image", 1)], teacher[image.format("image", 2)])
    assert torch.equal(student[text.format("text", 0)], teacher[text.format("text", 1)])
    assert student["text_encoder.encoder.model.encoder.layer.0.intermediate.dense.weight"].shape == (16, 32)
    assert not any(name.startswith("fusion.layers.1") for name in student)
    assert outputs(Fusion(path=tmp_path / "student"), tmp_path / "student")["fusion.logits"].shape == (4, 3)
    with pytest.raises(UsageError, match="image_layers: 4 is not possible: the teacher has 3"):
        family.student(tmp_path / "model", FromTeacher(image_layers=4), tmp_path / "none", 0)  # type: ignore[call-arg]


@unit
@pytest.mark.parametrize("kind", ["resnet", "vit", "bert"])
def test_pretrained_encoders_are_read_once_and_stay_frozen(kind: str, tmp_path: Path) -> None:
    import transformers

    settings: Any = {"resnet": tiny.RESNET, "vit": tiny.VIT, "bert": tiny.BERT}[kind]["config"]
    model_class: Any = getattr(
        transformers, {"resnet": "ResNetModel", "vit": "ViTModel", "bert": "BertForMaskedLM"}[kind]
    )
    torch.manual_seed(1)
    theirs = model_class(model_class.config_class(**settings)).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    encoder = {"kind": kind, "pretrained": "theirs", "frozen": True}
    first = {k: v for k, v in tiny.image(encoder).items() if k != "size"} if kind != "bert" else tiny.text(encoder)
    if kind != "bert":
        processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}}
        (tmp_path / "theirs" / "preprocessor_config.json").write_text(json.dumps(processor))
    family = tiny.write(tmp_path, tiny.config([first, tiny.table()]))
    name = "text" if kind == "bert" else "image"
    model: Any = family.load(tmp_path / "model")
    batch = tiny.batch(family, tmp_path / "model")
    with torch.no_grad():
        if kind == "bert":
            mask = torch.arange(batch["text_values"].shape[1])[None] < batch["text_length"][:, None]
            want = theirs.bert(batch["text_values"], attention_mask=mask.long()).last_hidden_state
            want = (want * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
        else:
            states = theirs(batch["image_values"]).last_hidden_state
            want = states.mean(dim=(2, 3)) if kind == "resnet" else states[:, 0]
        torch.testing.assert_close(model.encode(batch)[name].pooled, want, atol=1e-5, rtol=1e-4)
    if kind != "bert":
        assert family.described.input("image").picture.resample == 2  # what its own processor does
    before = {key: value.clone() for key, value in model.encoder(name).encoder.state_dict().items()}
    model.train()
    loss = family.task_loss(family.outputs(model, batch, family.task_needs()), batch)
    loss.backward()
    torch.optim.AdamW(model.parameters(), lr=0.1).step()
    after = model.encoder(name).encoder.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert model.get_parameter("table_encoder.encoder.layers.linears.0.weight").grad.abs().sum() > 0


@unit
def test_a_checkpoint_of_another_kind_is_refused(tmp_path: Path) -> None:
    import transformers

    model = transformers.ViTModel(transformers.ViTConfig(**tiny.VIT["config"]))  # type: ignore[arg-type]
    model.save_pretrained(tmp_path / "theirs")
    with pytest.raises(InputError, match="a checkpoint of 'vit'; the encoder is to be 'bert'"):
        tiny.write(tmp_path, tiny.config([tiny.image(), tiny.text({"kind": "bert", "pretrained": "theirs"})]))


# --- graphs --------------------------------------------------------------------------------------------------------


def test_graphs_equal_torch_at_every_length(tmp_path: Path) -> None:
    """What the contract's cases have not: films, samples, an LSTM, votes, a stride, an input without any length."""
    samples = tiny.audio({"kind": "conv1d", "channels": [8, 12], "kernel": 5, "stride": 4}, form="samples")
    inputs = [tiny.film(over_time="gru"), samples, tiny.text(tiny.LSTM), tiny.features()]
    family = tiny.write(tmp_path, tiny.config(inputs, tiny.LATE, {**tiny.CLASSES, "kind": "several"}, 0.1))
    (tmp_path / "graphs").mkdir()
    (graph,) = family.graphs(family.load(tmp_path / "model"))
    lengths = [
        {k: v.shape[1] for k, v in given.items() if k.endswith("_values") and v.ndim > 2} for given in graph.variants
    ]
    assert lengths[0] == {"frames_values": 1, "audio_values": 1}
    assert lengths[1] == {"frames_values": 4, "audio_values": 800}
    assert len(graph.variants) == 3 + 4  # and each of the inputs absent
    facts = deploy.export(family, tmp_path / "model", tmp_path / "graphs")["graphs"]["fusion_model"]
    assert facts["max_difference"] <= deploy.TOLERANCE
    assert {"GRU", "LSTM", "Conv"} <= set(facts["operators"]) and "BatchNormalization" not in facts["operators"]
