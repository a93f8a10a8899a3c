"""Reconstruction: what a layer gave of all channels it gives, as nearly as it can, of those that are left.

The heads and units of a block stand in for each other, so that much of what the ones that go added can be had from the ones
that stay. Before channels go, the weights of the layers that take them are set anew by least squares (He et al.,
arXiv:1707.06168, section 3.1), from the front to the back of a tower, each on what the layers before it give by then, so that
errors do not pile up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmcompress.stages._choice import Plan
from mmcompress.stages._pruning import Block
from mmcompress.stages._removing import Found, least_of
from mmcompress.stages._sensitivity import Outputs, Told, narrower, silent, without, zero

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mmcompress.stages._importance import Scores
    from mmcompress.stages._sensitivity import Batches

ROWS = 8192
"""Tokens that a layer is fitted on: some times as many as it has inputs."""
RIDGE = 0.01
"""How strongly weights are drawn to what they were, in mean squares of an input: what the tokens do not tell stays."""


def reconstruct(
    found: Found, plans: Mapping[str, Plan], scores: Scores, outputs: Outputs, batches: Batches, told: Told = silent
) -> None:
    """Set the weights of the layers that take what the plans leave; those of what goes become zero.

    The width of the residual stream is not made up for: what it loses is an input of nearly every layer.

    Args:
        found: The blocks of the model, whose weights are changed in place.
        plans: What is left of each tower.
        scores: The order in which groups go.
        outputs: Of the model: those that a tower moves are what is run of it.
        batches: Examples to fit on; of more tokens than are needed the last stay unread.
        told: Called with how much is done.
    """
    total, done = sum(len(plan.groups) for plan in plans.values()), 0
    for name, plan in plans.items():
        blocks = [block for block in found.dependencies.blocks if block.prunable.tower == name]
        for _ in _tower(found, blocks, plan, scores, outputs.reached_from(blocks).over(batches)):
            done += 1
            told(done, total)


def _tower(found: Found, blocks: Sequence[Block], plan: Plan, scores: Scores, outputs: Outputs) -> Iterator[Block]:
    """Set the weights of a tower, block by block; gives each that is done."""
    model = found.dependencies.model
    stay = [block for block in blocks if block.layer not in plan.dropped]
    whole = _Listening(model, {name for block in stay for name in block.consumers}, inputs=False)
    with whole:
        for _ in outputs.passes():
            if whole.full():
                break
    for layer in plan.dropped:
        zero(model, without(layer, blocks))
    for block in stay:
        if block.name in plan.sizes:
            zero(model, narrower(block, scores, block.size - plan.sizes[block.name], values=False))
    missed = [block.name for block in stay if not set(block.consumers) <= set(whole.order)]
    if missed:
        found.notes.append(f"not reconstructed, for their layers are not called as modules: {', '.join(missed)}")
    changed = bool(plan.dropped)
    for block in sorted((b for b in stay if b.name not in missed), key=lambda b: whole.order.index(b.consumers[0])):
        kept = _kept(block, plan, scores)
        changed = changed or len(kept) < block.channels or block.name in plan.sizes
        if changed:
            now = _Listening(model, block.consumers, inputs=True)
            with now:
                for _ in outputs.passes():
                    if now.full():
                        break
            for name in block.consumers:
                _fit(model.get_submodule(name), kept, now.rows(name), whole.rows(name))
        yield block


def _kept(block: Block, plan: Plan, scores: Scores) -> list[int]:
    """The channels of a block that a plan leaves, of those that its consumers take."""
    gone = set(least_of(scores[block.name], block.groups - plan.groups[block.name]))
    size = plan.sizes.get(block.name, block.size)
    kept = []
    for group in range(block.groups):
        start = group * block.size
        narrowed: set[int] = set()
        if size < block.size:
            values = scores[f"{block.name}.values"][start : start + block.size]
            narrowed = set(least_of(values, block.size - size))
        if group not in gone:
            kept += [start + channel for channel in range(block.size) if channel not in narrowed]
    return kept


def _fit(layer: nn.Module, kept: Sequence[int], inputs: Tensor, outputs: Tensor) -> None:
    """Weights of the kept inputs [n, c] that give outputs [n, o] by least squares; those of the others become zero."""
    import torch

    weight, bias = layer.get_parameter("weight"), dict(layer.named_parameters()).get("bias")
    taken, wanted = inputs[:, kept].double(), outputs.double()
    before = weight.detach()[:, kept].T.double()
    means = (taken.mean(dim=0), wanted.mean(dim=0)) if bias is not None else None
    if means is not None:
        taken, wanted = taken - means[0], wanted - means[1]
    products = taken.T @ taken
    ridge = RIDGE * float(products.diagonal().mean())
    if ridge == 0:
        return  # inputs that never change tell nothing
    damped = products + ridge * torch.eye(len(kept), dtype=torch.float64)
    made = torch.linalg.solve(damped, taken.T @ wanted + ridge * before)
    with torch.no_grad():
        weight.zero_()
        weight[:, kept] = made.T.to(weight.dtype)
        if bias is not None and means is not None:
            bias.copy_(means[1] - means[0] @ made)


class _Listening:
    """Keeps the inputs, or outputs, of layers while a model runs: at most :data:`ROWS` tokens of each, the same each time."""

    def __init__(self, model: nn.Module, names: Iterable[str], *, inputs: bool) -> None:
        self._layers = {name: model.get_submodule(name) for name in sorted(names)}
        self._inputs = inputs
        self._found: dict[str, list[Tensor]] = {}

    @property
    def order(self) -> list[str]:
        """The layers as they were called."""
        return list(self._found)

    def full(self) -> bool:
        """Whether all layers that are called have as many as they need."""
        return all(self._room(name) == 0 for name in self._found)

    def rows(self, name: str) -> Tensor:
        """Tokens of a layer, [n, c]."""
        import torch

        return torch.cat(self._found[name])

    def _room(self, name: str) -> int:
        return ROWS - sum(map(len, self._found.get(name, ())))

    def __enter__(self) -> None:
        self._handles = [layer.register_forward_hook(self._keep(name)) for name, layer in self._layers.items()]

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _keep(self, name: str) -> Any:
        def hook(layer: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
            values = (given[0] if self._inputs else made).detach()
            rows = values.reshape(-1, values.shape[-1])[: self._room(name)]
            self._found.setdefault(name, []).append(rows.clone())

        return hook
