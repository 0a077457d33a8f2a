"""A prompt file's way to the hub: it is checked, and its README.md is made of what it says of itself."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import yaml

from prometar.backbone.openclip import outline
from prometar.config.settings import Config, parse
from prometar.errors import UserError
from prometar.inference.classifier import require_finite, require_prompts
from prometar.inference.hub import PromptRepo, push
from prometar.inference.prompt_file import read_prompts
from prometar.io.files import read_bytes
from prometar.methods.composition import build_prompts
from prometar.metrics import is_percent, wilson_interval

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]{0,39}")
_MARKDOWN = re.compile(r"([\\`*_\[\]#|~$@:])")


def publish(path: Path, name: PromptRepo, *, public: bool = False, license: str = "unknown") -> str:
    """Push a prompt file with its model card, and nothing else; returns the repository's address.

    Args:
        public: Whether everybody may read it (default: it is private).
        license: The licence's identifier in the hub's list (default "unknown").
    Raises:
        UserError: no prompt file, prompts that `load` would refuse, a revision in the name, no licence's
            identifier; see `hub.push`.
        WorkError: no network.
    """
    if name.revision:
        raise UserError(f"{name}: a push is a new revision by itself; leave @{name.revision} out")
    if not _LICENSE.fullmatch(license):
        raise UserError(f"--license '{license}': expected an identifier such as mit, cc-by-4.0 or other")
    leaves, card = read_prompts(path)
    config = parse(card["config"], where=f"{path}: its card")
    if config.prompts.reference:  # code of one's own, which a push does not run
        require_finite(path, leaves)
    else:
        require_prompts(path, outline(config.backbone.name), build_prompts(config), leaves)
    return push(name, read_bytes(path), model_card(card, config, name, license=license), public=public)


def model_card(card: Mapping[str, Any], config: Config, name: PromptRepo, *, license: str) -> str:
    """README.md of a repository: YAML that the hub reads, and what there is to know for people.

    A card may come from a stranger: its texts are escaped, or lie in JSON, where no line ends a code block.
    """
    head = {
        "library_name": "prometar",
        "license": license,
        "pipeline_tag": "image-classification",
        "tags": ["clip", "prompt-learning", "prometar"],
    }
    data = config.data
    facts = {
        "Method": config.method,
        "Data set": data.name,
        "Images a class": data.shots,
        "Seed": config.train.seed,
        "Backbone": " ".join(filter(None, (config.backbone.name, config.backbone.pretrained))),
        "Weights' sha256": card["backbone"]["digest"],
    }
    scores = list(_scores(card))
    table = _table(("images", "accuracy, %", "n", "95 % interval"), scores)
    return "\n".join(
        [
            f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n",
            f"# Prompts for {_plain(data.name)}\n",
            "Learned prompts of a frozen CLIP, which is not in this repository. From the file's own card.\n",
            *_table(("", ""), facts.items()),
            f"## Use\n\n```python\n{_usage(card, config, name)}\n```\n",
            "## Scores\n",
            *(table if scores else ["None is known.\n"]),
            "Of one run with one seed. An interval (Wilson's) says what n test images tell; other seeds and "
            "other training images differ too.\n",
            f"## Classes\n\n{_block(card['classnames'])}",
            f"## Settings\n\n{_block(config.model_dump(mode='json'))}",
            f"## Versions\n\n{_block(card['versions'])}",
        ]
    )


def _usage(card: Mapping[str, Any], config: Config, name: PromptRepo) -> str:
    options = ['pretrained="FILE"'] if card["backbone"].get("file") else []
    options += ["trust_parts=True"] if config.own else []
    given = ", ".join([f'"{name}"', *options])
    return f'from prometar.inference import load\n\nload({given}).predict(["image.jpg"]).names'


def _scores(card: Mapping[str, Any]) -> Iterable[Sequence[Any]]:
    """Rows of what is known: files of older versions do not say how many images there were."""
    figures, images = card["figures"], card.get("images")
    for key, value in figures.items() if isinstance(figures, dict) else ():
        if not is_percent(value):
            continue
        n = images.get(key) if isinstance(images, dict) else None
        if isinstance(n, int) and 0 < n < 2**63:
            interval = wilson_interval(value, n)
            yield key, f"{value:.2f}", n, f"{interval.low:.1f} to {interval.high:.1f}"
        else:
            yield key, f"{value:.2f}", "not known", "not known"


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return [*lines, *(f"| {' | '.join(map(_plain, row))} |" for row in rows), ""]


def _plain(value: Any) -> str:
    """A text that Markdown and HTML show as it is, in one line."""
    return _MARKDOWN.sub(r"\\\1", escape(" ".join(str(value).split()), quote=False))


def _block(value: Any) -> str:
    return f"```json\n{json.dumps(value, indent=1)}\n```\n"
