"""Memory and disk that ran out while a stage trained, told for what they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mmcompress.errors import StageError

_MEMORY = ("can't allocate memory", "not enough memory", "CUDA out of memory", "CUDA error: out of memory")
_DISK = ("No space left on device", "PytorchStreamWriter failed", "unexpected pos")


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
        text = str(error)
        if isinstance(error, MemoryError) or any(part in text for part in _MEMORY):
            raise StageError(
                f"not enough memory for a batch of {batch_size}\n"
                "  Lower batch_size (and raise accumulation to keep the number of examples per step)."
            ) from error
        if any(part in text for part in _DISK):
            raise StageError("no space left on the disk for a checkpoint\n  Free space and run it again.") from error
        raise
