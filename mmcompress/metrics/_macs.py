"""Multiply-accumulates of a module, counted operator by operator while it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


def count_macs(module: nn.Module, inputs: Mapping[str, Tensor]) -> int:
    """Multiply-accumulates per example of one forward pass: matrix products, convolutions and attention.

    One is counted per product of a weight (or key, or value) and an activation; biases, normalisations, activations and
    look-ups are not. Attention counts in full, also where a causal mask hides half of it, and the same in the ``eager``
    and ``sdpa`` implementations. Sequences count as long as they are in ``inputs``, whose first axes are the batch.

    Raises:
        ValueError: the inputs have no common batch axis.
    """
    return macs_by_module(module, inputs)[""]


def macs_by_module(module: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, int]:
    """Multiply-accumulates per example by dotted module name, each with all that lies below it; ``""`` is the whole."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    def sdpa(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
        flops: int = sdpa_flop_count(query, key, value)  # type: ignore[no-untyped-call]
        return flops

    batches = {tensor.shape[0] for tensor in inputs.values()}
    if len(batches) != 1:
        shapes = {name: list(tensor.shape) for name, tensor in inputs.items()}
        raise ValueError(f"the inputs have no common batch axis: {shapes}")
    (batch,) = batches
    # PyTorch 2.13 knows the kernels of GPUs alone and would count the CPU's attention as nothing.
    counter = FlopCounterMode(
        display=False, custom_mapping={torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: sdpa}
    )
    with _evaluating(module), torch.no_grad(), counter:
        module(**inputs)
    whole = counter.get_flop_counts()
    counts = {name: 0 for name, _ in module.named_modules()}
    for name, by_operator in whole.items():
        # Names begin with the class of the module that was called.
        counts[name.partition(".")[2]] = sum(by_operator.values()) // 2 // batch
    counts[""] = counter.get_total_flops() // 2 // batch
    return counts


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, and without what no counter sees into: ``nn.MultiheadAttention``'s and oneDNN's fused kernels."""
    import torch

    training, fused = module.training, torch.backends.mha.get_fastpath_enabled()
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    module.eval()
    torch.backends.mha.set_fastpath_enabled(False)
    # The counter looks for the gradient of what a submodule gives, and a bare view of a parameter has none.
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        # oneDNN's LSTM is one operator.
        with torch.backends.mkldnn.flags(enabled=False, allow_tf32=None):
            yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
        module.train(training)
        torch.backends.mha.set_fastpath_enabled(fused)
