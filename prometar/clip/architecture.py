"""What a CLIP consists of, and how it reads texts and pools tokens: all that its towers must be told."""

from collections.abc import Sequence
from dataclasses import dataclass

from prometar.clip.norm import EPS


class Unlike(ValueError):
    """Why a model is none that the towers compute: its text follows "is not supported: "."""


@dataclass(frozen=True)
class Form:
    """OpenAI's CLIP by default.

    causal: Whether a text's token sees those up to it alone.
    num_start: How many tokens the tokenizer puts before a text.
    text_pool: The token that a text's feature is: `argmax` the first of the largest id, `eos` the first
        `eos_id`, `last` the last of all, padding or not.
    average: Whether an image's feature is the mean of its patches instead of the first token.
    norm_after_pool: Whether that mean is taken before the last LayerNorm.
    image_size: Pixels, where the patches leave some out at the edge.
    """

    causal: bool = True
    num_start: int = 1
    text_pool: str = "argmax"
    eos_id: int = 2
    average: bool = False
    norm_after_pool: bool = False
    image_size: int | None = None

    def end(self, ids: Sequence[int]) -> int:
        """Where the token stands that a text's feature is."""
        if self.text_pool == "last":
            return len(ids) - 1
        return ids.index(max(ids) if self.text_pool == "argmax" else self.eos_id)


OPENAI = Form()


@dataclass(frozen=True)
class Architecture:
    """What a model's configuration says, and its tensors do not.

    From `text_activation` on the defaults are OpenAI's CLIP.
    `custom_text`: the text tower's names begin with "text.". `trunk`: the vision tower has timm's names.
    `closed`: why no prompt can enter the image tower, if so; then it has no heads.
    """

    activation: str
    vision_heads: int = 0
    text_heads: int = 0
    text_activation: str | None = None
    text_eps: float = EPS
    custom_text: bool = False
    vision_eps: float = EPS
    trunk: bool = False
    closed: str = ""
    form: Form = OPENAI
