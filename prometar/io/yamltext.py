"""Safe parsing of YAML from users into plain data, with one-line errors, and writing of YAML."""

import re
from pathlib import Path
from typing import Any

import yaml

from prometar.errors import UserError
from prometar.io.files import file_size, read_text

_MAX_BYTES = 1_000_000
# Aliases repeat a part of a file, so a small file may expand to billions of nodes. This limit applies after
# the expansion. A file of 1 MB without aliases has fewer nodes.
_MAX_NODES = 500_000
_MAX_NUMBER_LENGTH = 300  # characters, because integers of more than 309 digits overflow float
_MAX_REASON_LENGTH = 300  # characters of PyYAML's error that a message quotes
_MERGE_TAG = "tag:yaml.org,2002:merge"
_NUMBER_TAGS = {"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"}


class _Loader(yaml.SafeLoader):
    """Loader of YAML 1.1 that also accepts numbers such as 1e-3, which PyYAML reads as text."""


_E_NOTATION = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$")
_FIRST_CHARACTERS = list("-+0123456789")
# The dumper is changed as well, so that it quotes text that the loader would read as a number, such as the
# digest 12345e678901.
yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float", _E_NOTATION, _FIRST_CHARACTERS, Loader=_Loader, Dumper=yaml.SafeDumper
)


def dump_yaml(data: object) -> str:
    """Return plain data as YAML that `parse_yaml` reads back unchanged."""
    return yaml.safe_dump(data, sort_keys=False)


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file.

    Raises:
        UserError: the file cannot be read, is not YAML, or is larger than 1 MB.
    """
    size = file_size(path)
    if size is not None and size > _MAX_BYTES:
        raise UserError(f"{path} is larger than 1 MB, too large for a configuration. Check the path.")
    return parse_yaml(read_text(path), where=str(path))


def parse_yaml(text: str, *, where: str) -> Any:
    """Return plain data from YAML text.

    Args:
        where: Name of the source for messages, such as the path of a file.

    Raises:
        UserError: the text is not YAML, is nested too deeply, repeats a key, or contains a number that is too
            long. An alias is recursive, or aliases expand to too many values.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_nodes(node, {}, set())
        return loader.construct_document(node)
    except RecursionError:
        raise UserError(f"{where} is not valid YAML: it is nested too deeply") from None
    except Exception as error:  # values that do not match their tags raise many kinds of errors
        reason = " ".join(str(error).split())[:_MAX_REASON_LENGTH] or type(error).__name__
        raise UserError(f"{where} is not valid YAML: {reason}") from None


def _check_nodes(node: yaml.Node, size_by_id: dict[int, int], ancestor_ids: set[int]) -> int:
    """Check a node and everything below it. Return the number of nodes, with aliases expanded.

    An alias is the same node object as its anchor, so nodes are identified by `id`.

    Args:
        size_by_id: Results for nodes that have been checked. The results of this call are added.
        ancestor_ids: IDs of the nodes that contain this node.

    Raises:
        ValueError: there are too many nodes, a recursive alias, a repeated key, or a number that is too long.
    """
    if id(node) in ancestor_ids:
        raise ValueError("an alias refers to a node that contains it")
    if id(node) in size_by_id:
        return size_by_id[id(node)]

    children: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        children = node.value
    elif isinstance(node, yaml.MappingNode):
        _reject_repeated_keys(node)
        for key, value in node.value:
            children += [key, value]
    elif node.tag in _NUMBER_TAGS and len(node.value) > _MAX_NUMBER_LENGTH:
        raise ValueError(f"a number has more than {_MAX_NUMBER_LENGTH} characters")

    ancestor_ids.add(id(node))
    size = 1 + sum(_check_nodes(child, size_by_id, ancestor_ids) for child in children)
    ancestor_ids.discard(id(node))
    if size > _MAX_NODES:
        raise ValueError(f"aliases expand to more than {_MAX_NODES:,} values")
    size_by_id[id(node)] = size
    return size


def _reject_repeated_keys(node: yaml.MappingNode) -> None:
    """Raise a ValueError if a key is repeated. PyYAML would silently use its last value."""
    seen: set[tuple[str, str]] = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE_TAG:
            continue
        if (key.tag, key.value) in seen:
            raise ValueError(f"'{key.value}' is given twice")
        seen.add((key.tag, key.value))
