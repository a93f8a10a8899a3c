"""Sample inputs of a model that takes any, by which it is traced and checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mmcompress.families._inputs import FilmInput, Input, PictureInput, SeriesInput, SoundInput, TextInput

if TYPE_CHECKING:
    import torch
    from torch import Tensor

EXAMPLES = 3


@dataclass(frozen=True)
class Samples:
    """Inputs that differ between examples."""

    inputs: Mapping[str, Tensor]
    varying: Mapping[str, str]
    """The axis that varies besides the batch, the second, by input."""
    variants: tuple[Mapping[str, Tensor], ...] = field(default=())
    """The shortest, the longest, an odd length with padding."""

    @property
    def dynamic(self) -> dict[str, dict[int, str]]:
        """Axes that vary, by input."""
        axes: dict[str, dict[int, str]] = {name: {0: "batch"} for name in self.inputs}
        for name, axis in self.varying.items():
            axes[name][1] = axis
        return axes


def sample_inputs(
    items: Sequence[Input],
    values: Callable[[Input, int, torch.Generator], Tensor],
    steps: Callable[[int], int],
    further: Mapping[str, Tensor] | None = None,
) -> Samples:
    """Samples of inputs whose ``values`` are made for a number of steps; ``further`` inputs stand beside them in all.

    ``steps`` gives the steps of the samples, by the most that an input has.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    varying = {
        f"{item.name}_values": f"{item.name}_{'sequence' if isinstance(item, TextInput) else 'steps'}"
        for item in items
        if longest(item) > 1
    }

    def feeds(steps: Callable[[int], int], padded: bool) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for item in items:
            most = longest(item)
            count = steps(most) if most else 0
            found[f"{item.name}_values"] = values(item, count, generator)
            if most:
                lengths = [count, max(1, (count + 1) // 2), max(1, count - 1)] if padded else [count] * EXAMPLES
                found[f"{item.name}_length"] = torch.tensor(lengths)
        return {**found, **(further or {})}

    inputs = feeds(steps, True)
    variants: tuple[Mapping[str, Tensor], ...] = ()
    if varying:
        variants = (feeds(lambda most: 1, False), feeds(lambda most: most, False), feeds(_odd, True))
    return Samples(inputs, varying, variants)


def longest(item: Input) -> int:
    """Most steps, tokens or pictures; 0 for what has none."""
    if isinstance(item, TextInput):
        return item.max_length
    if isinstance(item, (SoundInput, SeriesInput)):
        return item.steps
    return item.frames if isinstance(item, FilmInput) else 0


def _odd(most: int) -> int:
    half = max(1, most * 2 // 3)
    return half if half % 2 else half - 1 or 1


def sample_pictures(item: PictureInput | FilmInput, steps: int, generator: torch.Generator) -> Tensor:
    """Pictures [3, 3, h, w], or films of ``steps`` pictures, that differ in light and contrast, not in their noise alone."""
    size = item.settings.output_size
    assert size is not None
    each = (EXAMPLES, 3, *size) if isinstance(item, PictureInput) else (EXAMPLES, steps, 3, *size)
    shape = (*each[:-2], 1, 1)
    return noise(generator, *shape) + noise(generator, *each) * noise(generator, *shape)


def noise(generator: torch.Generator, *shape: int) -> Tensor:
    """Normal numbers."""
    import torch

    return torch.randn(shape, generator=generator)
