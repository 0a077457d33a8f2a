"""Texts of classes from a JSON file, such as descriptions by a language model: {class: [text, ...]}.

This is the format of CuPL ("What does a platypus look like?", ICCV 2023) and of methods that follow it.
"""

import hashlib
import json
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from prometar.clip.wording import readable
from prometar.errors import InfrastructureError, UserError
from prometar.io.files import MACHINE_FAULTS, read_bytes

ClassTexts = Mapping[str, tuple[str, ...]]
"""Texts of each class. The keys are class names in lower case, with spaces instead of underscores."""


def _key(name: str) -> str:
    """Return the key of a class in `ClassTexts`."""
    return readable(name).strip().lower()


def read_texts(path: Path) -> tuple[ClassTexts, str]:
    """Return the texts of each class, and the SHA-256 (hex) of the file.

    Raises:
        UserError: the file is missing, is not JSON, or does not map class names to lists of texts.
        InfrastructureError: the disk or mount fails. Another machine may be able to read the file.
    """
    try:
        content = read_bytes(path)
    except OSError as error:
        if error.errno in MACHINE_FAULTS:
            raise InfrastructureError(
                f"Cannot read regularizer.texts {path} ({error.strerror}) on {socket.gethostname()}. "
                "Check the disk and the mounts of this machine."
            ) from None
        raise UserError(f"Cannot read regularizer.texts {path} ({error.strerror}). Check the path.") from None
    try:
        tree = json.loads(content)
    except ValueError:
        raise UserError(f"regularizer.texts {path} is not JSON.") from None
    if not isinstance(tree, dict) or not tree:
        raise UserError(f"regularizer.texts {path} must map class names to lists of texts.")
    texts: dict[str, tuple[str, ...]] = {}
    for name, values in tree.items():
        if not _is_text_list(values):
            raise UserError(f"regularizer.texts {path}: {name[:80]!a} must have a list of at least one text.")
        texts[_key(name)] = tuple(values)
    return texts, hashlib.sha256(content).hexdigest()


def _is_text_list(values: object) -> bool:
    """Return True for a list of at least one text, without empty texts."""
    if not isinstance(values, list) or not values:
        return False
    return all(isinstance(value, str) and value for value in values)


def texts_of(
    texts: ClassTexts, names: Sequence[str], *, path: str, equal_numbers: bool
) -> list[tuple[str, ...]]:
    """Return the texts of each class, in the order of `names`.

    Args:
        texts: Texts from `read_texts`.
        names: Class names. Case and underscores do not matter.
        path: Path of the file, for messages.
        equal_numbers: True if all classes must have equally many texts, as for `regularizer.draw`.

    Raises:
        UserError: classes are missing, or have different numbers of texts.
    """
    missing = [name for name in names if _key(name) not in texts]
    if missing:
        shown = ", ".join(missing[:3])
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(f"regularizer.texts {path} has no texts for {shown}{more}.")
    found = [texts[_key(name)] for name in names]
    counts = {len(class_texts) for class_texts in found}
    if equal_numbers and len(counts) > 1:
        raise UserError(
            f"regularizer.draw needs equally many texts for each class, but {path} has "
            f"{min(counts)} to {max(counts)}."
        )
    return found
