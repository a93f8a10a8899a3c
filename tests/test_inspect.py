"""What `mmcompress inspect` tells of a model: its blocks before and after, their costs, and a drawing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).parent / "stages"))
from pruned_clip import write_small_clip  # noqa: E402

from mmcompress import cli  # noqa: E402
from mmcompress.errors import InputError  # noqa: E402
from mmcompress.families.clip import Clip  # noqa: E402
from mmcompress.inspect import _cuts, _original, inspect, lines, locate, page  # noqa: E402
from mmcompress.stages._cutting import Budget, prune_model  # noqa: E402
from mmcompress.store import Store  # noqa: E402

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[Path, Path]:
    """A small CLIP, and the same without its second layer, with fewer heads and units."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    whole = write_small_clip(tmp_path_factory.mktemp("whole"))
    cut = tmp_path_factory.mktemp("cut")
    family = Clip(path=whole)
    model = family.load(whole)

    def second_layer_last(blocks):
        return {b.name: [0.001 if ".1." in b.name else float(g + 1) for g in range(b.groups)] for b in blocks}

    parts = ("heads", "feed_forward", "layers")
    facts = prune_model(family, model, Budget("macs", 0.5, {"text": 1.0}), second_layer_last, parts=parts, round_to=4)
    family.save(model, whole, cut)
    (cut / "artifact.json").write_text(json.dumps({"facts": facts}))
    torch.set_num_threads(threads)
    return whole, cut


def test_blocks_are_shown_before_and_after_under_their_first_numbers(models, tmp_path):
    whole, cut = models
    after, before = inspect(cut, Store(tmp_path), whole, "clip")
    told = lines(after, before)
    rows = {line.split("  ")[0]: line for line in told}
    assert "vision.layers.1.attention (removed)" in rows
    assert "8 > " in rows["vision.layers.0.attention"] or "128 > " in rows["vision.layers.0.feed_forward"]
    assert rows["text.layers.0.attention"].split()[1] == "6", "what did not change is told once"
    kept = after.towers["vision"]["macs"] / before.towers["vision"]["macs"]
    assert any(line.startswith("vision: MACs") and f"({kept:.1%} of" in line for line in told)
    attention = before.parts["vision.layers.0.attention"]
    tokens, width = 5, 64
    assert attention.macs == 4 * tokens * width * width + 2 * tokens * tokens * width
    assert attention.parameters == 4 * width * width + 3 * width


def test_the_page_draws_every_block(models, tmp_path):
    whole, cut = models
    result = CliRunner().invoke(
        cli.cli,
        ["inspect", str(cut), "--before", str(whole), "--family", "clip", "--out", str(tmp_path / "page.html")],
    )
    assert result.exit_code == 0, result.output
    drawn = (tmp_path / "page.html").read_text()
    assert drawn.count("<rect") == 2 * 10 and drawn.count("<svg") == 2
    assert "0% of its MACs" in drawn and "removed" in drawn


def test_a_model_alone_has_no_before(models, tmp_path):
    after, before = inspect(models[0], Store(tmp_path), family="clip")
    assert before is None and not any(" > " in line for line in lines(after, None))
    assert "<svg" in page(after, None)


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(InputError, match="no model folder"):
        locate(tmp_path, Store(tmp_path))
    (tmp_path / "packages").mkdir()
    with pytest.raises(InputError, match="no packages"):
        locate(tmp_path, Store(tmp_path))


def test_layers_keep_their_first_numbers_through_several_cuts_and_trainings(tmp_path):
    """Of layers 0 to 3, 0, 2 and 3 are kept; of these three, after a training, the second and third."""
    stack = "model.decoder.layers"
    chain = {
        "prune/a": {"facts": {"kept_layers": {stack: [0, 2, 3]}}, "identity": {"teacher": "t"}},
        "distill/b": {"facts": {"steps": 4}, "identity": {"model": "a"}},
        "prune/c": {"facts": {"steps": [{"kept_layers": {stack: [1, 2]}}, {}]}, "identity": {"model": "b"}},
    }
    for name, told in chain.items():
        (tmp_path / "artifacts" / name).mkdir(parents=True)
        (tmp_path / "artifacts" / name / "artifact.json").write_text(json.dumps(told))
    cuts = _cuts(tmp_path / "artifacts/prune/c")
    names = [_original(f"decoder.layers.{i}.feed_forward", f"{stack}.{i}.fc1", cuts) for i in range(2)]
    assert names == ["decoder.layers.2.feed_forward", "decoder.layers.3.feed_forward"]
    other = _original("encoder.layers.1.feed_forward", "model.encoder.layers.1.fc1", cuts)
    assert other == "encoder.layers.1.feed_forward", "the encoder kept its own"
