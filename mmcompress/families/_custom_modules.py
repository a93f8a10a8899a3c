"""Torch modules around a user's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from mmcompress.errors import StageError
from mmcompress.families._custom_config import CustomConfig, PredictNumber


class CustomModel(nn.Module):
    """A user's module with the configuration that it was built from; its own weights are below ``inner``."""

    def __init__(self, inner: nn.Module, settings: CustomConfig, vocabulary: int) -> None:
        super().__init__()
        self.inner = inner
        self.settings = settings
        self.vocabulary = vocabulary
        """Tokens of the texts' tokenizer."""

    def answer(self, inputs: Mapping[str, Tensor], wanted: str) -> dict[str, Tensor]:
        """The module's outputs.

        Raises:
            StageError: it gives no dict of tensors, or not the one that is wanted.
        """
        found = self.inner(**inputs)
        name = self.settings.mmcompress_model
        if not isinstance(found, dict) or not isinstance(found.get(wanted), Tensor):
            told = sorted(map(str, found)) if isinstance(found, dict) else type(found).__name__
            raise StageError(f"the model {name!r} gives {told}; expected a dict with the tensor {wanted!r}")
        return found

    def number(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Predicted numbers in their unit, [b, 1]."""
        task = self.settings.task
        assert isinstance(task, PredictNumber)
        return self.answer(inputs, "number")["number"].float().reshape(-1, 1) * task.std + task.mean


class CustomGraph(nn.Module):
    """What is exported: a task's answer to all inputs, or the normalised embeddings of one."""

    def __init__(self, model: CustomModel, embedded: str = "") -> None:
        super().__init__()
        self.model = model
        self.embedded = embedded

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """``logits`` [b, c], ``number`` [b, 1] or ``embeds`` [b, d]."""
        if self.embedded:
            name = f"{self.embedded}_embeds"
            return {"embeds": nn.functional.normalize(self.model.answer(inputs, name)[name].float(), dim=-1)}
        if isinstance(self.model.settings.task, PredictNumber):
            return {"number": self.model.number(inputs)}
        return {"logits": self.model.answer(inputs, "logits")["logits"].float()}


def tensors_of(batch: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """Those of a batch that belong to inputs of these names."""
    wanted = {f"{name}_{part}" for name in names for part in ("values", "length")}
    return {name: value for name, value in batch.items() if name in wanted}
