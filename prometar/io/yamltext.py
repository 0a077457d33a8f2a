"""YAML from users: plain data, or one line that says what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from prometar.errors import UserError

_MOST_BYTES = 1_000_000


def read_yaml(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        UserError: the file cannot be read, is no YAML, or is larger than 1 MB.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UserError(f"{path} is larger than 1 MB: it is no configuration")
        text = path.read_text("utf-8")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a YAML file: it is not text") from None
    return parse_yaml(text, where=str(path))


def parse_yaml(text: str, *, where: str) -> Any:
    """Plain data from YAML text; `where` names the source in the message. See `read_yaml`."""
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that does not exist
        raise UserError(f"{where} is not YAML: {' '.join(str(error).split())[:300]}") from None
    except RecursionError:
        raise UserError(f"{where} is not YAML that a person wrote: it is nested too deep") from None
