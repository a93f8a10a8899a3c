"""Several processes that train one model together, as ``torchrun`` starts them: who is who, and what they tell each other.

Without ``torchrun`` there is one process, and nothing here imports torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from mmcompress.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
PATIENCE = timedelta(days=7)
"""How long a process waits for another. Encoding data may take hours; one that died is ended by ``torchrun``, not by time."""


def count() -> int:
    """How many processes train together; 1 without ``torchrun``."""
    return int(os.environ["WORLD_SIZE"]) if {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys() else 1


def rank() -> int:
    """The number of this process, from 0; number 0 writes and tells of progress."""
    return int(os.environ["RANK"]) if count() > 1 else 0


@contextmanager
def together() -> Iterator[None]:
    """Join the other processes, and leave them at the end; nothing for one process, or where it has joined already."""
    if count() == 1:
        yield
        return
    import torch
    import torch.distributed.nn.functional  # before there is a group, which its functions would keep as a default
    from torch import distributed

    if distributed.is_initialized():
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, timeout=PATIENCE)
    try:
        yield
    finally:
        # Ends the group's threads, as nothing else holds it: one that lives on when Python ends aborts the process.
        distributed.destroy_process_group()


def wait() -> None:
    """Go on when all processes have come here."""
    if count() > 1:
        all_the_same("1")


def first(make: Callable[[], T]) -> T:
    """What ``make`` gives: process 0 makes it before the others do, who find what it wrote."""
    if rank() == 0:
        made = make()
        wait()
        return made
    wait()
    return make()


def told_by_first(text: str) -> str:
    """The text of process 0."""
    return _texts(text)[0]


def all_the_same(text: str) -> bool:
    """Whether all processes give the same text."""
    return len(set(_texts(text))) == 1


def agree(what: str, digest: str) -> None:
    """Go on where all processes have the same.

    Raises:
        UsageError: they have not, with what each has.
    """
    found = _texts(digest)
    if len(set(found)) > 1:
        each = ", ".join(f"process {number} has {one[:12]}" for number, one in enumerate(found))
        raise UsageError(
            f"the processes disagree on {what} ({each})\n"
            "  Start all of them with the same recipe, options and files, and the same versions of mmcompress."
        )


def _texts(text: str) -> list[str]:
    """The text of every process, by its number."""
    if count() == 1:
        return [text]
    import torch

    own = torch.tensor(list(text.encode()), dtype=torch.uint8)
    length = torch.tensor([len(own)])
    lengths = [int(one) for one in _all(length)]
    padded = torch.zeros(max(lengths), dtype=torch.uint8)
    padded[: len(own)] = own
    return [bytes(one[:size].tolist()).decode() for one, size in zip(_all(padded), lengths, strict=True)]


def _all(tensor: Tensor) -> list[Tensor]:
    import torch
    from torch import distributed

    parts = [torch.empty_like(tensor) for _ in range(count())]
    distributed.all_gather(parts, tensor.contiguous())
    return parts


def joined(tensor: Tensor) -> Tensor:
    """The rows of all processes, [b, ...] to [processes * b, ...]; where other axes differ they are filled up.

    Numbers that are no whole ones are filled up with 0, whole ones with what fills up the shortest row there is.
    """
    import torch

    if count() == 1:
        return tensor
    own = tensor.detach()
    if own.ndim > 1:
        shapes = torch.stack(_all(torch.tensor(own.shape[1:])))
        largest = shapes.amax(dim=0).tolist()
        if (shapes != shapes[0]).any():
            value = 0.0 if own.is_floating_point() or own.ndim > 2 else filling(_longest_tail(own))
            sides = [side for have, need in zip(own.shape[1:], largest, strict=True) for side in (need - have, 0)]
            own = torch.nn.functional.pad(own, sides[::-1], value=value)
    return torch.cat(_all(own))


def _longest_tail(tokens: Tensor) -> tuple[int, int]:
    """Of the row [s] that repeats its last number most often at its end: how often, and which number."""
    tails = (tokens == tokens[:, -1:]).flip(1).long().cumprod(dim=1).sum(dim=1)
    row = int(tails.argmax())
    return int(tails[row]), int(tokens[row, -1])


def filling(tail: tuple[int, int]) -> int:
    """The number with the longest tail among all processes."""
    import torch

    return int(max(_all(torch.tensor(tail)), key=lambda one: int(one[0]))[1])


def added_up(tensor: Tensor) -> Tensor:
    """The sum over all processes."""
    if count() == 1:
        return tensor
    from torch import distributed

    total = tensor.detach().clone()
    distributed.all_reduce(total)
    return total
