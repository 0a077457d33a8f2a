"""Safe parsing of YAML from users into plain data, with one-line errors. Writing of YAML."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from prometar.errors import UserError
from prometar.io.files import file_size, read_text

_MAX_BYTES = 1_000_000
_MAX_NODES = 500_000  # after expanding aliases. A file of 1 MB without aliases has fewer
_MAX_LENGTH = 300  # characters per number, because integers of more than 309 digits overflow float
_MERGE_TAG = "tag:yaml.org,2002:merge"
_NUMBER_TAGS = {"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"}


class _Loader(yaml.SafeLoader):
    """Loader of YAML 1.1 that also accepts numbers such as 1e-3, which PyYAML reads as text."""


_E_NOTATION = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$")
# The dumper quotes text that the loader would read as a number, such as the digest 12345e678901.
_FIRST = list("-+0123456789")
yaml.add_implicit_resolver("tag:yaml.org,2002:float", _E_NOTATION, _FIRST, _Loader, yaml.SafeDumper)


def dump_yaml(data: object) -> str:
    """Return plain data as YAML that `parse_yaml` reads back unchanged."""
    return yaml.safe_dump(data, sort_keys=False)


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file.

    Raises:
        UserError: the file cannot be read, is not YAML, or is larger than 1 MB.
    """
    if (file_size(path) or 0) > _MAX_BYTES:
        raise UserError(f"{path} is larger than 1 MB, too large for a configuration. Check the path.")
    return parse_yaml(read_text(path), where=str(path))


def parse_yaml(text: str, *, where: str) -> Any:
    """Return plain data from YAML text. `where` names the source in messages.

    Raises:
        UserError: the text is not YAML, is nested too deeply, or is rejected by `_check_nodes`.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_nodes(node, {}, set())
        return loader.construct_document(node)
    except Exception as error:  # values that do not match their tags raise many kinds of errors
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else reason
        raise UserError(f"{where} is not valid YAML: {reason}") from None


def _check_nodes(node: yaml.Node, size_by_id: dict[int, int], ancestor_ids: set[int]) -> int:
    """Check a node and everything below it. Return the number of nodes, with aliases expanded.

    Raises:
        ValueError: too many nodes, a recursive alias, a repeated key, or a number that is too long.
    """
    if id(node) in ancestor_ids:
        raise ValueError("an alias refers to a node that contains it")
    if id(node) in size_by_id:
        return size_by_id[id(node)]
    children = node.value if isinstance(node, yaml.SequenceNode) else []
    if isinstance(node, yaml.MappingNode):
        children = [child for pair in node.value for child in pair]
        keys = Counter((key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        # PyYAML would silently use the last value of a repeated key.
        if repeated := [value for (tag, value), n in keys.items() if tag != _MERGE_TAG and n > 1]:
            raise ValueError(f"'{repeated[0]}' is given twice")
    elif isinstance(node, yaml.ScalarNode) and node.tag in _NUMBER_TAGS and len(node.value) > _MAX_LENGTH:
        raise ValueError(f"a number has more than {_MAX_LENGTH} characters")
    ancestor_ids.add(id(node))
    size_by_id[id(node)] = 1 + sum(_check_nodes(child, size_by_id, ancestor_ids) for child in children)
    ancestor_ids.discard(id(node))
    if size_by_id[id(node)] > _MAX_NODES:
        raise ValueError(f"aliases expand to more than {_MAX_NODES:,} values")
    return size_by_id[id(node)]
