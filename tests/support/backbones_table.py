"""The table of docs/backbones.md: `python -m tests.support.backbones_table` writes it anew."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import open_clip
import torch

from prometar.backbone.architecture import Architecture, Unlike
from prometar.backbone.families import architecture
from prometar.backbone.trunks import image_network

PAGE = Path(__file__).parents[2] / "docs" / "backbones.md"
START, END = "<!-- table -->\n", "<!-- end of table -->\n"


def table() -> str:
    """What open_clip's configurations are, those alike in a row."""
    kinds: dict[Kind, list[str]] = defaultdict(list)
    for name in sorted(open_clip.list_models()):
        kinds[kind_of(name)].append(name)
    works, closed, refused = (
        {kind.cells: names for kind, names in kinds.items() if kind.works == how}
        for how in ("whole", "texts", "no")
    )
    total = sum(map(_count, (works, closed, refused)))
    lines = [
        f"Of {total} configurations {_count(works)} work with every method:",
        "",
        "| number | texts | tokenizer | image feature | also | configurations |",
        "|---|---|---|---|---|---|",
    ]
    lines += [_row(len(names), *traits, names=names) for traits, names in _largest_first(works)]
    lines += ["", f"{_count(closed)} work with methods whose prompts are in the texts alone:", ""]
    lines += _reasons(closed)
    if refused:
        lines += ["", f"{_count(refused)} do not work, and say so in one line:", "", *_reasons(refused)]
    return "\n".join(lines) + "\n"


class Kind(NamedTuple):
    """How a configuration works (`whole`, `texts`, `no`), and what its row says."""

    works: str
    cells: tuple[str, ...]


def kind_of(name: str) -> Kind:
    config = open_clip.get_model_config(name)
    assert config is not None
    try:
        arch = architecture(config)
    except Unlike as reason:
        return Kind("no", (str(reason),))
    return Kind("texts", (arch.closed,)) if arch.closed else Kind("whole", _traits(arch, config))


def _reasons(groups: Mapping[tuple[str, ...], Sequence[str]]) -> list[str]:
    head = ["| number | why | configurations |", "|---|---|---|"]
    return head + [_row(len(names), *reason, names=names) for reason, names in _largest_first(groups)]


def _traits(arch: Architecture, config: Mapping[str, Any]) -> tuple[str, ...]:
    form, text = arch.form, config["text_cfg"]
    with torch.device("meta"):
        image_tensors = " ".join(image_network(config).state_dict())
    texts = "a tree of tokens" if form.causal else f"whole, all {text.get('context_length', 77)} tokens"
    if arch.language:
        texts = f"a language model ({arch.language})"
    if form.summary:
        texts += ", with one behind each text"
    image = "attention over all" if "attn_pool." in image_tensors else "the class token"
    if form.average:
        image = "mean of the patches"
    extra = {
        "tanh GELU": "gelu_tanh" in (arch.text_activation, arch.activation),
        "layer scale": "ls_init_value" in text or ".ls_1." in image_tensors or ".ls1." in image_tensors,
        "no first LayerNorm": "ln_pre." not in image_tensors and "norm_pre." not in image_tensors,
        "timm's names": arch.trunk,
        "the contrastive part of a CoCa": "multimodal_cfg" in config,
        "another eps": len({arch.text_eps, arch.vision_eps, 1e-5}) > 1,
    }
    tokenizer = text.get("hf_tokenizer_name")
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
