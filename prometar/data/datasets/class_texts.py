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


def _key(name: str) -> str:
    return readable(name).strip().lower()


def read_texts(path: Path) -> tuple[ClassTexts, str]:
    """Return the texts of each class, keyed by its name in lower case with spaces, and the file's sha256.

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
        if not isinstance(values, list) or not values or not all(isinstance(v, str) and v for v in values):
            raise UserError(f"regularizer.texts {path}: {name[:80]!a} must have a list of at least one text.")
        texts[_key(name)] = tuple(values)
    return texts, hashlib.sha256(content).hexdigest()


def texts_of(
    texts: ClassTexts, names: Sequence[str], *, path: str, equal_numbers: bool
) -> list[tuple[str, ...]]:
    """Return the texts of each class.

    Args:
        texts: Result of `read_texts`.
        names: Class names. Case and underscores do not matter.
        path: Path of the file, for messages.
        equal_numbers: True if all classes must have equally many texts, as for `regularizer.draw`.

    Raises:
        UserError: classes are missing, or have different numbers of texts.
    """
    missing = [name for name in names if _key(name) not in texts]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(f"regularizer.texts {path} has no texts for {', '.join(missing[:3])}{more}.")
    found = [texts[_key(name)] for name in names]
    numbers = sorted({len(each) for each in found})
    if equal_numbers and len(numbers) > 1:
        raise UserError(
            f"regularizer.draw needs equally many texts for each class, but {path} has "
            f"{numbers[0]} to {numbers[-1]}."
        )
    return found
