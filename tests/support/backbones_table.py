"""The table of docs/backbones.md: `python -m tests.support.backbones_table` writes it anew."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import open_clip

from prometar.backbone.expected_tensors import Architecture
from prometar.backbone.families import architecture
from prometar.backbone.unlike import Unlike

PAGE = Path(__file__).parents[2] / "docs" / "backbones.md"
START, END = "<!-- table -->\n", "<!-- end of table -->\n"


def table() -> str:
    """What open_clip's configurations are, those alike in a row."""
    works: dict[tuple[str, ...], list[str]] = defaultdict(list)
    refused: dict[str, list[str]] = defaultdict(list)
    for name in sorted(open_clip.list_models()):
        config = open_clip.get_model_config(name)
        assert config is not None
        try:
            works[_traits(architecture(config), config)].append(name)
        except Unlike as reason:
            refused[str(reason)].append(name)
    lines = [
        f"{_count(works)} of {_count(works) + _count(refused)} configurations work:",
        "",
        "| number | texts | tokenizer | image feature | also | configurations |",
        "|---|---|---|---|---|---|",
    ]
    lines += [_row(len(names), *traits, names=names) for traits, names in _largest_first(works)]
    lines += ["", "Those do not, and say so in one line:", "", "| number | why not | configurations |"]
    lines += ["|---|---|---|"]
    lines += [_row(len(names), reason, names=names) for reason, names in _largest_first(refused)]
    return "\n".join(lines) + "\n"


def _traits(arch: Architecture, config: Mapping[str, Any]) -> tuple[str, ...]:
    form = arch.form
    texts = "a tree of tokens" if form.causal else f"whole, all {arch.context_length} tokens"
    image = "attention over all" if arch.attention_pool else "the class token"
    if form.average:
        image = "mean of the patches"
    extra = {
        "tanh GELU": "gelu_tanh" in (arch.text_activation, arch.activation),
        "layer scale": arch.text_layer_scale or arch.vision_layer_scale,
        "no first LayerNorm": not arch.ln_pre,
        "timm's names": arch.trunk,
        "another eps": len({arch.text_eps, arch.vision_eps, 1e-5}) > 1,
    }
    tokenizer = config["text_cfg"].get("hf_tokenizer_name")
    also = ", ".join(what for what, there in extra.items() if there)
    return texts, "of the hub" if tokenizer else "CLIP's", image, also


def _row(*cells: object, names: Sequence[str]) -> str:
    return "| " + " | ".join([*map(str, cells), ", ".join(f"`{name}`" for name in names)]) + " |"


def _largest_first(groups: Mapping[Any, Sequence[str]]) -> list[tuple[Any, Sequence[str]]]:
    return sorted(groups.items(), key=lambda group: (-len(group[1]), group[1][0]))


def _count(groups: Mapping[Any, Sequence[str]]) -> int:
    return sum(map(len, groups.values()))


if __name__ == "__main__":
    before, _, rest = PAGE.read_text().partition(START)
    PAGE.write_text(before + START + table() + END + rest.partition(END)[2])
