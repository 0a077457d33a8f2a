"""How a family of CLIPs reads texts and pools its tokens: what its tensors do not tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Form:
    """OpenAI's CLIP by default.

    causal: Whether a text's token sees those up to it alone.
    num_start: How many tokens the tokenizer puts before a text.
    text_pool: The token that a text's feature is: `argmax` the first of the largest id, `eos` the first
        `eos_id`, `last` the last of all, padding or not.
    average: Whether an image's feature is the mean of its patches instead of the first token.
    norm_after_pool: Whether that mean is taken before the last LayerNorm.
    summary: Whether a text's feature is a token of its own, behind the last position (CoCa); its id is the
        last one. A token behind id 0, which is padding and CLIP's "!", then is no key.
    image_size: Pixels, where the patches leave some out at the edge.
    """

    causal: bool = True
    num_start: int = 1
    text_pool: str = "argmax"
    eos_id: int = 2
    average: bool = False
    norm_after_pool: bool = False
    image_size: int | None = None
    summary: bool = False

    def end(self, ids: Sequence[int]) -> int:
        """Where the token stands that a text's feature is."""
        if self.text_pool == "last":
            return len(ids) - 1
        return ids.index(max(ids) if self.text_pool == "argmax" else self.eos_id)


OPENAI = Form()
