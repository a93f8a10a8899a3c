"""What the ``vilt`` family does with a model in torch: outputs, losses, what can be pruned, graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from mmcompress.errors import UsageError
from mmcompress.families import Graph, Prunable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mmcompress.families._vilt_modules import States
    from mmcompress.losses import Outputs

Task = Literal["vqa", "retrieval", "nlvr", "mlm"]
INPUTS = ("input_ids", "attention_mask", "pixel_values", "patch_positions")
GRAPH = "model"
LONGEST = 1333 / 800
"""A picture's longer side is at most so many times the wanted shorter side."""
_IMPOSSIBLE = -1e4
"""The score of a text that is equal to the picture's own, among the other texts."""


def outputs(
    model: Any, batch: Mapping[str, Tensor], want: frozenset[str], task: Task, negatives: int
) -> dict[str, Any]:
    """The wanted outputs by name; see :meth:`mmcompress.families.vilt.Vilt.provides`."""
    from mmcompress.families import _vilt_modules as modules

    given = [batch[name] for name in INPUTS]
    if task == "retrieval":
        return {"fusion.logits": candidates(model, batch, negatives)}
    hidden, maps = "fusion.hidden_states" in want, "fusion.attentions" in want
    run: Callable[..., States] = modules.several_states if task == "nlvr" else modules.states
    found = run(model.vilt, *given, hidden=hidden, maps=maps)
    result: dict[str, Any] = {"fusion.mask": found.mask}
    if hidden:
        result["fusion.hidden_states"] = found.hidden_states
    if maps:
        result["fusion.attentions"] = found.attentions
    if task == "mlm":
        result["text.logits"] = model.mlm_score(found.last[:, : given[0].shape[1]])
        result["text.mask"] = batch["labels"] >= 0
    else:
        pooled = modules.joined(found.pooled, given[2].shape[1]) if task == "nlvr" else found.pooled
        result["fusion.logits"] = model.classifier(pooled)
    return result


def candidates(model: Any, batch: Mapping[str, Tensor], negatives: int) -> Tensor:
    """How well a picture fits its own text, in column 0, and the next texts of the batch, [b, 1 + negatives].

    A text equal to the picture's own is no negative. A batch with fewer other texts gives fewer columns.

    Raises:
        UsageError: a batch of one, which has no other text.
    """
    import torch

    from mmcompress.families._vilt_modules import states

    ids, mask, patches, positions = (batch[name] for name in INPUTS)
    size = len(ids)
    if size < 2:
        raise UsageError("vilt learns retrieval from the other texts of a batch\n  Set batch_size to 2 or more.")
    count = min(negatives, size - 1) + 1
    each = torch.arange(size, device=ids.device)
    shifted = torch.cat([(each + shift) % size for shift in range(count)])
    found = states(
        model.vilt,
        ids[shifted],
        mask[shifted],
        patches.repeat(count, 1, 1),
        positions.repeat(count, 1, 1),
    )
    scores: Tensor = model.rank_output(found.pooled).reshape(count, size).T
    equal = (ids[shifted].reshape(count, size, -1) == ids[None]).all(dim=-1).T
    equal[:, 0] = False
    return scores.masked_fill(equal, _IMPOSSIBLE)


def task_loss(outputs: Outputs, batch: Mapping[str, Tensor], task: Task) -> Tensor:
    """The loss of a task.

    - vqa: binary cross entropy with soft scores, summed over the answers, mean over the questions;
    - retrieval: cross entropy of the picture's own text among the candidates;
    - nlvr: cross entropy of the class;
    - mlm: cross entropy of the hidden words, mean over these.
    """
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

    if task == "mlm":
        labels, logits = batch["labels"].flatten(), outputs["text.logits"].flatten(0, 1)
        total = cross_entropy(logits, labels, ignore_index=-1, reduction="sum")
        return total / (labels >= 0).sum().clamp(min=1)
    logits = outputs["fusion.logits"]
    if task == "vqa":
        return binary_cross_entropy_with_logits(logits, batch["labels"].to(logits.dtype), reduction="sum") / len(logits)
    if task == "retrieval":
        return cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))
    return cross_entropy(logits, batch["labels"])


# --- pruning -------------------------------------------------------------------------------------------------------


def prunable(model: Any) -> list[Prunable]:
    """Attention heads and feed-forward units of each layer."""
    found: list[Prunable] = []
    for index, layer in enumerate(model.vilt.encoder.layer):
        base = f"vilt.encoder.layer.{index}"
        attention = f"{base}.attention.attention"
        found.append(
            Prunable(
                block=f"encoder.layers.{index}.attention",
                tower="encoder",
                root=f"{attention}.query",
                heads=int(layer.attention.attention.num_attention_heads),
                together=(f"{attention}.key", f"{attention}.value"),
                # attention_head_size stays: whole heads are cut.
                head_attributes={attention: ("num_attention_heads", "all_head_size")},
            )
        )
        block = f"encoder.layers.{index}.feed_forward"
        found.append(Prunable(block=block, tower="encoder", root=f"{base}.intermediate.dense", heads=None))
    return found


# --- graphs --------------------------------------------------------------------------------------------------------


def graphs(model: Any, task: Task) -> list[Graph]:
    """The one graph: texts and patches of any number, up to the longest of the checkpoint."""
    from mmcompress.families import _vilt_modules as modules

    wrappers: Mapping[Task, type[torch.nn.Module]] = {
        "vqa": modules.QuestionAnswerer,
        "retrieval": modules.Matcher,
        "nlvr": modules.Reasoner,
        "mlm": modules.Filler,
    }
    config, pictures = model.config, 0 if task != "nlvr" else int(model.config.num_images)
    side = int(config.image_size) // int(config.patch_size)
    far = max(side, int(LONGEST * config.image_size) // int(config.patch_size))
    longest = int(config.max_position_embeddings)

    def sample(lengths: tuple[int, ...], sizes: tuple[tuple[int, int], ...]) -> dict[str, Tensor]:
        return sample_inputs(config, lengths, sizes, pictures)

    grids = ((side, side), (max(1, side - 1), far), (far, max(1, side // 2)))
    patches = 2 if pictures else 1
    axes = {"input_ids": {0: "batch", 1: "sequence"}, "pixel_values": {0: "batch", patches: "patches"}}
    return [
        Graph(
            name=GRAPH,
            module=wrappers[task](model).eval(),
            inputs=sample((min(8, longest), min(6, longest), min(5, longest)), grids),
            dynamic={**axes, "attention_mask": axes["input_ids"], "patch_positions": axes["pixel_values"]},
            outputs=("logits",),
            variants=(
                sample((2, 2), ((1, 1), (1, 1))),
                sample((longest,), ((side, far),)),
                sample((7, 3), ((side, far), (1, side))),
            ),
        )
    ]


def sample_inputs(
    config: Any, lengths: tuple[int, ...], sizes: tuple[tuple[int, int], ...], pictures: int = 0
) -> dict[str, Tensor]:
    """Random texts of these lengths with pictures of these rows and columns of patches; the same at every call."""
    import torch

    generator = torch.Generator().manual_seed(0)
    places = torch.arange(max(lengths))
    mask = (places[None] < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(0, config.vocab_size, mask.shape, generator=generator) * mask
    count = max(rows * columns for rows, columns in sizes)
    positions = torch.full((len(sizes), count, 2), -1.0)
    for row, (rows, columns) in enumerate(sizes):
        grid = torch.meshgrid(torch.linspace(0, 1, rows), torch.linspace(0, 1, columns), indexing="ij")
        positions[row, : rows * columns] = torch.stack(grid, dim=-1).reshape(-1, 2)
    width = int(config.num_channels) * int(config.patch_size) ** 2
    shape = (len(sizes), *([pictures] if pictures else []), count, width)
    patches = torch.randn(shape, generator=generator)
    if pictures:
        positions = positions[:, None].repeat(1, pictures, 1, 1)
    shown = (positions[..., :1] >= 0).float()
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": patches * shown, "patch_positions": positions}
