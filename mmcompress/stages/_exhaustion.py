"""Memory and disk that ran out while a stage trained, told for what they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mmcompress.errors import StageError

_MEMORY = ("can't allocate memory", "not enough memory", "CUDA out of memory", "CUDA error: out of memory")
_DISK = ("No space left on device", "PytorchStreamWriter failed", "unexpected pos")


def is_memory(error: Exception) -> bool:
    """Whether it was the memory that ran out, on the host or on the device."""
    return isinstance(error, MemoryError) or any(part in str(error) for part in _MEMORY)


@contextmanager
def told_errors(batch_size: int) -> Iterator[None]:
    """Tell of memory and disk that ran out for what they are.

    Raises:
        StageError: in place of torch's own error.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (RuntimeError, MemoryError, SafetensorError) as error:
        if is_memory(error):
            raise StageError(
                f"not enough memory for a batch of {batch_size}, in parts neither\n"
                "  Raise accumulation, which changes nothing but memory and time; or lower batch_size."
            ) from error
        if any(part in str(error) for part in _DISK):
            raise StageError("no space left on the disk for a checkpoint\n  Free space and run it again.") from error
        raise
