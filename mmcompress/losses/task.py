"""The family's own task loss, as a term beside those that compare with a teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmcompress.losses import Loss, Outputs

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Task(Loss):
    """What the model was trained with (contrastive, cross entropy, ...), on the labels of the data.

    It compares with no teacher and needs the batch besides the outputs, so the training stage recognises this class and
    asks :meth:`mmcompress.families.Family.task_loss`; which outputs that reads, :meth:`~Family.task_needs` tells.
    """

    def needs(self) -> frozenset[str]:
        """Nothing of the teacher."""
        return frozenset()

    def compute(self, student: Outputs, teacher: Outputs, projection: torch.nn.Module | None) -> Tensor:
        """Never called: see the class."""
        raise TypeError("the task loss is the family's: Family.task_loss(outputs, batch)")
