"""Exported prompts: a safetensors file of the leaves, with a JSON card that says what they belong to.

The card stands in the file's metadata and, for readers, beside the file. It holds no path of the machine that
wrote it; the weights of the backbone are named by their digest.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from prometar.backbone.wording import is_template
from prometar.data.datasets.dataset import flaw_of
from prometar.device import fetch
from prometar.errors import UserError, first_line
from prometar.io.files import read_bytes, resolved, size_of, write_atomically
from prometar.methods.prompts import Leaves

_FAMILY = "prometar-prompts-"
FORMAT = f"{_FAMILY}1"
_KEYS = {"method", "config", "data", "classnames", "template", "backbone", "figures", "versions"}


def write_prompts(path: Path, leaves: Mapping[str, Tensor], card: Mapping[str, Any]) -> Path:
    """Write FILE.safetensors and FILE.json; returns the latter's path.

    Raises:
        UserError: see `require_prompts_target`. WorkError: the folder cannot be written.
    """
    require_prompts_target(path)
    tensors = {name: leaf.contiguous() for name, leaf in fetch(dict(leaves)).items()}
    write_atomically(path, save(tensors, {"format": FORMAT, "card": json.dumps(card)}))
    readable = path.with_suffix(".json")
    write_atomically(readable, (json.dumps({"format": FORMAT, **card}, indent=1) + "\n").encode())
    return readable


def require_prompts_target(path: Path) -> None:
    """Refuse to write prompts over anything but an earlier export, and over no file of a run or a study.

    Raises:
        UserError: another suffix, or a file that is there.
    """
    if path.suffix != ".safetensors":
        raise UserError(f"--to {path}: expected a name that ends in .safetensors")
    folder = resolved(path.parent)
    inside = next((p for p in (folder, *folder.parents) if any((p / n).exists() for n in _OF_RESULTS)), None)
    for target in (path, path.with_suffix(".json")):
        if not os.path.lexists(target):
            continue
        if inside:
            raise UserError(
                f"--to {path}: {target} is there already, in the results of {inside}: take a new name"
            )
        if not _exported(target):
            raise UserError(f"--to {path}: {target} is there already, and no export: take a new name")


_OF_RESULTS = ("config.yaml", "study.yaml", "result.json")  # what the folder of a run or a study holds


def _exported(path: Path) -> bool:
    """Whether `prometar export` wrote a file, of any version."""
    try:
        if path.suffix == ".json":
            return str(json.loads(read_bytes(path))["format"]).startswith(_FAMILY)
        if size_of(path) is None:
            return False
        with safe_open(path, framework="pt") as file:
            return str((file.metadata() or {}).get("format")).startswith(_FAMILY)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError):
        return False


def read_prompts(path: Path) -> tuple[Leaves, dict[str, Any]]:
    """The leaves and the card of an exported file; nothing in it is executed.

    Raises:
        UserError: no such file, damaged, or not written by `prometar export`.
    """
    if size_of(path) is None:
        raise UserError(f"there is no prompts file {path}: write one with `prometar export RUN --to FILE`")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            leaves = {name: file.get_tensor(name).clone() for name in file.offset_keys()}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a safetensors file: {first_line(error)}") from None
    if metadata.get("format") != FORMAT:
        raise UserError(f"{path} holds no prompts that `prometar export` of this version wrote")
    try:
        card = json.loads(metadata["card"])
    except (KeyError, ValueError, RecursionError):
        card = None
    if not isinstance(card, dict) or not card.keys() >= _KEYS or not _plain(card):
        raise UserError(f"{path}: its card is damaged: export the run again")
    return leaves, card


def _plain(card: dict[str, Any]) -> bool:
    match card:
        case {"classnames": [_, *_] as names, "template": str() as template, "backbone": {"digest": str()}}:
            named = all(isinstance(name, str) and not flaw_of(name) for name in names)
            return named and is_template(template)
    return False
