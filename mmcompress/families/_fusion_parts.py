"""What a ``fusion`` model's config.json says of its encoders, of how they are joined, and of what comes out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from mmcompress.families._inputs import Section

if TYPE_CHECKING:
    from typing import Self  # not in the Python 3.10 of some devices

# --- encoders ------------------------------------------------------------------------------------------------------


class _Encoder(Section):
    frozen: bool = False
    """Not trained: it computes without drop-out and keeps its weights, but pruning may narrow it."""


class _OfTransformers(_Encoder):
    """An encoder whose class and configuration are transformers'."""

    config: dict[str, Any] | None = None
    """transformers' configuration; on top of that of ``pretrained`` where both are given."""
    pretrained: str | None = None
    """A checkpoint that the first weights come from: a folder beside this file, or with ``revision`` a hub id. Its
    encoder alone is taken, without heads; it is read once, when the model folder is written."""
    revision: str | None = None

    @model_validator(mode="after")
    def _some_source(self) -> Self:
        if self.config is None and self.pretrained is None:
            raise ValueError("expected config (transformers' configuration of the encoder) or pretrained, or both")
        if self.revision is not None and self.pretrained is None:
            raise ValueError("a revision belongs to a pretrained hub id; expected both")
        return self


class ResNet(_OfTransformers):
    """``ResNetModel``: features [b, h * w, c] of its last stage, and their mean."""

    kind: Literal["resnet"]


class ViT(_OfTransformers):
    """``ViTModel``: the class token and its patches, and the class token."""

    kind: Literal["vit"]


class Bert(_OfTransformers):
    """``BertModel``: its tokens, and their mean."""

    kind: Literal["bert"]


class Recurrent(_Encoder):
    """A GRU or LSTM (from the first step to the last): the state after each step, and after the last."""

    kind: Literal["gru", "lstm"]
    width: int = Field(64, ge=1)
    layers: int = Field(1, ge=1)
    embedding: int | None = Field(None, ge=1)
    """Width of the tokens' embeddings (for texts alone); ``width`` where absent."""
    dropout: float = Field(0.0, ge=0, lt=1)


class Conv1d(_Encoder):
    """Convolutions over time, each with a layer norm and GELU: the states of the last, and their mean."""

    kind: Literal["conv1d"]
    channels: tuple[Annotated[int, Field(ge=1)], ...] = Field((64,), min_length=1)
    """Of each layer; the last is the encoder's width."""
    kernel: int = Field(5, ge=1)
    """Odd, so that a state stands at the middle of what it sees."""
    stride: int = Field(2, ge=1)
    """Of each layer."""
    embedding: int | None = Field(None, ge=1)
    """Width of the tokens' embeddings (for texts alone); the first of ``channels`` where absent."""

    @field_validator("kernel")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError(f"expected an odd number, got {value}")
        return value


class Mlp(_Encoder):
    """Linear layers with GELU between them: one token."""

    kind: Literal["mlp"]
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = Field((64,), min_length=1)
    """Widths of the layers inside, which pruning may narrow."""
    width: int = Field(32, ge=1)


Encoder = ResNet | ViT | Bert | Recurrent | Conv1d | Mlp
OfPictures = Annotated[ResNet | ViT, Field(discriminator="kind")]
OfTexts = Annotated[Bert | Recurrent | Conv1d, Field(discriminator="kind")]
OfSteps = Annotated[Recurrent | Conv1d, Field(discriminator="kind")]


# --- fusion and output ---------------------------------------------------------------------------------------------


class Early(Section):
    """The inputs' features, joined, into linear layers with GELU between them."""

    kind: Literal["early"]
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = Field((64,), min_length=1)
    dropout: float = Field(0.0, ge=0, lt=1)


class Intermediate(Section):
    """Cross-attention: in each layer the tokens of every input read those of all others."""

    kind: Literal["intermediate"]
    width: int = Field(64, ge=1)
    layers: int = Field(1, ge=1)
    heads: int = Field(4, ge=1)
    feed_forward: int = Field(128, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _whole_heads(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide the width {self.width}")
        return self


class Late(Section):
    """Every input answers by itself; the answers' logits are averaged over the inputs that are there."""

    kind: Literal["late"]
    weights: Literal["mean", "learned"] = "mean"
    """``mean``: every input's vote counts the same; ``learned``: by a weight per input."""


class Classes(Section):
    """One of the classes (``class``, column ``label``), or any of them (``several``, column ``labels``)."""

    kind: Literal["class", "several"]
    classes: tuple[str, ...] = Field(min_length=1)


class TagsOutput(Section):
    """A class per word of a text (column ``tags``)."""

    kind: Literal["tags"]
    classes: tuple[str, ...] = Field(min_length=2)
    of: str | None = None
    """The text input whose words are tagged; the only one where absent."""


class NumberOutput(Section):
    """A number (column ``number``)."""

    kind: Literal["number"]
    unit: str = ""


Output = Annotated[Classes | TagsOutput | NumberOutput, Field(discriminator="kind")]
Joining = Annotated[Early | Intermediate | Late, Field(discriminator="kind")]
