"""YAML from users: plain data, or one line that says what is wrong."""

from pathlib import Path
from typing import Any

import yaml

from prometar.errors import UserError
from prometar.io.files import read_bytes, size_of

_MOST_BYTES = 1_000_000
_MOST_NODES = 500_000  # 1 MB without aliases holds no more
_MOST_DIGITS = 300
_MERGE = "tag:yaml.org,2002:merge"
_NUMBERS = {"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"}


def read_yaml(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        UserError: the file cannot be read, is no YAML, or is larger than 1 MB.
    """
    try:
        if (size_of(path) or 0) > _MOST_BYTES:
            raise UserError(f"{path} is larger than 1 MB: it is no configuration")
        text = read_bytes(path).decode()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a YAML file: it is not text") from None
    return parse_yaml(text, where=str(path))


def parse_yaml(text: str, *, where: str) -> Any:
    """Plain data from YAML text; `where` names the source in the message. See `read_yaml`."""
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {}, set())
        return loader.construct_document(node)
    except RecursionError:
        raise UserError(f"{where} is not YAML that a person wrote: it is nested too deep") from None
    except Exception as error:  # over values that their tags do not allow, it raises whatever it stumbles on
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{where} is not YAML: {reason}") from None


def _count(node: yaml.Node, sizes: dict[int, int], inside: set[int]) -> int:
    """The nodes below and with this one, their aliases written out.

    Raises:
        ValueError: more than `_MOST_NODES`, or no end; or a number of more than `_MOST_DIGITS` characters.
    """
    if id(node) in inside:
        raise ValueError("an alias stands inside of what it means")
    if id(node) not in sizes:
        inside.add(id(node))
        children = node.value if isinstance(node, yaml.SequenceNode) else []
        if isinstance(node, yaml.MappingNode):
            children = [part for pair in node.value for part in pair]
            _require_once(node)
        elif isinstance(node, yaml.ScalarNode) and node.tag in _NUMBERS and len(node.value) > _MOST_DIGITS:
            raise ValueError(f"a number has {len(node.value)} characters")
        sizes[id(node)] = 1 + sum(_count(child, sizes, inside) for child in children)
        inside.discard(id(node))
        if sizes[id(node)] > _MOST_NODES:
            raise ValueError(f"its aliases stand for more than {_MOST_NODES:,} values")
    return sizes[id(node)]


def _require_once(node: yaml.MappingNode) -> None:
    """Raises a ValueError where a key is given twice, of which YAML would take the last one."""
    seen = set[tuple[str, str]]()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:
            if (key.tag, key.value) in seen:
                raise ValueError(f"'{key.value}' is given twice, again in line {key.start_mark.line + 1}")
            seen.add((key.tag, key.value))
