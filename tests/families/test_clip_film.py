"""Films in the clip family: the mean over the frames of each, in torch, in the graph, and from raw values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_clip import clip_config, siglip_config, write_checkpoint

from mmcompress import deploy
from mmcompress.errors import InputError, UsageError
from mmcompress.families import FromTeacher
from mmcompress.families._clip_model import sample_films
from mmcompress.families._films import evenly_chosen
from mmcompress.families._modules import mean_over_frames
from mmcompress.families.clip import Clip
from mmcompress.runtimes.onnxruntime import OnnxRuntime
from mmcompress.stages._batches import Encoded, View

torch.set_num_threads(1)


def pictures(count: int, side: int = 16, seed: int = 0) -> tuple[Image.Image, ...]:
    rng = np.random.default_rng(seed)
    return tuple(Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(count))


@pytest.fixture(scope="module", params=["clip", "siglip"])
def model_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    source = write_checkpoint(folder / "source", {"clip": clip_config, "siglip": siglip_config}[request.param]())
    Clip(path=source, frames=4).write(folder / "model", 0)
    return folder / "model"


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("film")
    Clip(path=write_checkpoint(folder / "source", clip_config()), frames=4).write(folder / "model", 0)
    return folder / "model"


def test_mean_by_hand() -> None:
    frames = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [1.0, 0.0]])
    mask = torch.tensor([[1, 1], [1, 0]])
    found = mean_over_frames(frames, mask)
    assert torch.allclose(found, torch.tensor([[0.5**0.5, 0.5**0.5], [0.6, 0.8]]))


def test_a_film_is_the_normalised_mean_of_its_pictures(model_folder: Path) -> None:
    films, still = Clip(path=model_folder, frames=4), Clip(path=model_folder)
    model = films.load(model_folder)
    shown = [pictures(3, seed=1), pictures(1, seed=2), pictures(4, seed=3)]
    feeds = films.processor(model_folder).encode({"frames": shown})
    assert feeds["pixel_values"].shape == (3, 4, 3, 16, 16)
    assert feeds["frame_mask"].tolist() == [[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]]
    batch = {name: torch.from_numpy(value) for name, value in feeds.items()}
    with torch.inference_mode():
        found = films.outputs(model, batch, frozenset({"vision.embeds"}))["vision.embeds"].numpy()
        from_graph = films.graphs(model)[0].module(**batch)["image_embeds"].numpy()
    processor = still.processor(model_folder)
    for row, film in enumerate(shown):
        values = torch.from_numpy(processor.encode({"image": list(film)})["pixel_values"])
        with torch.inference_mode():
            each = still.outputs(model, {"pixel_values": values}, frozenset({"vision.embeds"}))["vision.embeds"].numpy()
        mean = each.mean(axis=0)
        assert np.allclose(found[row], mean / np.linalg.norm(mean), atol=1e-6)
    assert np.allclose(from_graph, found, atol=1e-6)


def test_order_does_not_show_and_content_does(clip_folder: Path) -> None:
    family = Clip(path=clip_folder, frames=4)
    model = family.load(clip_folder)
    film = pictures(4, seed=5)
    feeds = family.processor(clip_folder).encode({"frames": [film, film[::-1], pictures(4, seed=6)]})
    batch = {name: torch.from_numpy(value) for name, value in feeds.items()}
    with torch.inference_mode():
        embeds = family.outputs(model, batch, frozenset({"vision.embeds"}))["vision.embeds"]
    assert torch.allclose(embeds[0], embeds[1], atol=1e-6)
    assert (embeds[0] - embeds[2]).abs().max() > 1e-2


def test_states_of_all_frames_in_a_row(clip_folder: Path) -> None:
    family = Clip(path=clip_folder, frames=3)
    model = family.load(clip_folder)
    batch = sample_films(model, 3, padded=True)
    want = frozenset({"vision.hidden_states", "vision.mask"})
    found = family.outputs(model, batch, want)
    assert [tuple(states.shape) for states in found["vision.hidden_states"]] == [(3, 3 * 5, 32)] * 3
    assert found["vision.mask"].sum(dim=1).tolist() == [15, 10, 5]
    second = model.vision_model(pixel_values=batch["pixel_values"][0, 1:2], output_hidden_states=True)
    assert torch.allclose(found["vision.hidden_states"][0][0, 5:10], second.hidden_states[1][0], atol=1e-5)
    with pytest.raises(UsageError, match="other frame"):
        Clip(path=clip_folder).outputs(model, batch, frozenset({"vision.attentions"}))
    with pytest.raises(UsageError, match=r"gives no vision\.attentions"):
        family.outputs(model, batch, frozenset({"vision.attentions"}))


def test_export_at_any_number_of_frames(model_folder: Path, tmp_path: Path) -> None:
    family = Clip(path=model_folder, frames=4)
    facts = deploy.export(family, model_folder, tmp_path)["graphs"]
    assert facts["vision_model"]["max_difference"] <= deploy.TOLERANCE
    assert deploy.graph_signature(tmp_path / "vision_model.onnx")["inputs"] == {
        "pixel_values": {"dtype": "float32", "shape": ["batch", "frames", 3, 16, 16]},
        "frame_mask": {"dtype": "int64", "shape": ["batch", "frames"]},
    }
    session = OnnxRuntime().open(tmp_path, ["vision_model"], threads=1)
    film = pictures(2, seed=7)
    feeds = family.processor(model_folder).encode({"frames": [film]})
    padded = {
        "pixel_values": np.concatenate([feeds["pixel_values"], np.ones((1, 3, 3, 16, 16), np.float32)], axis=1),
        "frame_mask": np.array([[1, 1, 0, 0, 0]]),
    }
    alone, among = (family.answer(session.run, "embed_image", given) for given in (feeds, padded))
    assert np.allclose(alone, among, atol=1e-5)
    session.close()


def test_a_student_keeps_films(clip_folder: Path, tmp_path: Path) -> None:
    family = Clip(path=clip_folder, frames=4)
    cut = FromTeacher.model_validate({"vision_layers": 1, "vision_width": 16})
    family.student(clip_folder, cut, tmp_path / "student", 0)
    (vision, _) = family.graphs(family.load(tmp_path / "student"))
    assert vision.module(**vision.inputs)["image_embeds"].shape == (3, 20)


@pytest.mark.parametrize(("have", "most", "chosen"), [(1, 4, [0]), (4, 4, [0, 1, 2, 3]), (9, 4, [0, 3, 5, 8])])
def test_pictures_are_evenly_chosen(have: int, most: int, chosen: list[int]) -> None:
    assert evenly_chosen(have, most) == chosen


def test_films_in_two_halves(clip_folder: Path) -> None:
    processor = Clip(path=clip_folder, frames=4).processor(clip_folder)
    film = pictures(6, seed=8)
    compact = processor.compact({"frames": [film, film[:2]]})
    assert {name: (array.dtype.name, array.shape) for name, array in compact.items()} == {
        "frames": ("uint8", (2, 4, 16, 16, 3)),
        "frames_count": ("int64", (2,)),
    }
    assert np.array_equal(compact["frames"][0, 3], np.asarray(film[5]))
    assert compact["frames_count"].tolist() == [4, 2]
    assert not compact["frames"][1, 2:].any()
    short = processor.expand({name: array[1:] for name, array in compact.items()})
    assert short["pixel_values"].shape == (1, 2, 3, 16, 16)


def test_pictures_of_a_film_are_altered_alike(clip_folder: Path) -> None:
    processor = Clip(path=clip_folder, frames=3).processor(clip_folder)
    films = [pictures(1, seed=9) * 3, pictures(1, seed=10) * 3]
    encoded = Encoded("key", ("a", "b"), processor, processor.compact({"frames": films}), frozenset(), None)
    rows = np.arange(2)
    plain, altered = (encoded.feeds(rows, rows, view)["pixel_values"] for view in (None, View(0, 1, "crop")))
    assert np.array_equal(altered[:, 0], altered[:, 2])
    assert all((altered[row] != plain[row]).mean() > 0.5 for row in rows)


@pytest.mark.parametrize(
    ("film", "told"),
    [
        ((), "film 2 of 2: expected a tuple of pictures, one or more, got none"),
        ("film.mp4", "film 2 of 2: expected a tuple of pictures, one or more, got a str"),
        ((np.zeros((4, 4), np.uint8),), "film 2 of 2: picture 1: a picture given as an array must be uint8"),
    ],
)
def test_bad_films_are_told(film: object, told: str, clip_folder: Path) -> None:
    processor = Clip(path=clip_folder, frames=4).processor(clip_folder)
    with pytest.raises(InputError) as caught:
        processor.compact({"frames": [pictures(1), film]})
    assert told in str(caught.value)


def test_pictures_are_no_films(clip_folder: Path) -> None:
    with pytest.raises(InputError, match="takes the columns frames and text, got image"):
        Clip(path=clip_folder, frames=4).processor(clip_folder).compact({"image": pictures(1)})
    assert Clip(path=clip_folder, frames=4).columns == {"frames", "texts"}
    assert [request.inputs for request in Clip(path=clip_folder, frames=4).requests] == [("frames",), ("text",)]
