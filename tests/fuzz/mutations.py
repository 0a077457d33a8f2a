"""Random changes of plain data, bytes, JSON and safetensors, by accident or with bad intent."""

import copy
import json
import struct
from collections.abc import Iterable, Iterator
from random import Random
from typing import Any

ODD: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2**31,
    2**63,
    10**30,
    0.5,
    -0.0,
    1e-320,
    1e308,
    float("nan"),
    float("inf"),
    "",
    " ",
    "x",
    "1",
    "1e-3",
    "nan",
    "null",
    "../x",
    "/etc/passwd",
    "a\0b",
    "\ud800",
    "é" * 300,
    "x" * 5000,
    "<script>",
    "{}",
    "%s%n",
    [],
    [None],
    [[]],
    {},
    {"": None},
    {"a": {"b": []}},
    [1] * 1000,
)
"""Values that some reader may not expect."""

WORDS = (
    "",
    " ",
    "-1",
    "0",
    "1e400",
    "nan",
    "inf",
    "9" * 400,
    "0x" + "f" * 400,
    "x" * 300,
    "é",
    "\udcff",
    "a b",
    "../..",
    "/dev/zero",
    "/dev/null",
    "a:b",
    "hf-hub:a/b",
    "file:///x",
    "null",
    "[1",
    "{a: &a [*a]}",
    "--set",
    "=",
    "optim.lr=",
    "=1",
    "optim.lr=[1]",
    "data.shots=0",
    "!!bool x",
    "1 2 3",
    "none",
    "auto",
    "%",
    "~",
    "*",
    "\\",
    "\n",
)
"""Values of options, as a shell could pass them."""


def mutated_tree(tree: Any, rng: Random) -> Any:
    """Return a copy of nested lists and dicts, of whose values one to three are changed.

    They are removed, renamed, repeated, nested, or replaced by another value of the tree or an odd one.
    """
    holder = [copy.deepcopy(tree)]
    num_changes = rng.choice((1, 1, 2, 3))
    for _ in range(num_changes):
        places = list(_places(holder))
        parent, key = rng.choice(places[:400])  # a tree that was nested several times can be large
        match rng.randrange(6):
            case 0 if isinstance(parent, dict):
                del parent[key]
            case 1 if isinstance(parent, dict):
                new_key = rng.choice(("", "x", "trials", str(key).upper(), f"{key} "))
                parent[new_key] = parent.pop(key)
            case 2 if isinstance(parent, list) and parent is not holder:
                parent.insert(key, copy.deepcopy(parent[key]))
            case 3:
                parent[key] = [parent[key]] if rng.random() < 0.5 else {"x": parent[key]}
            case 4:
                parent[key] = copy.deepcopy(_value(rng.choice(places)))
            case _:
                parent[key] = copy.deepcopy(rng.choice(ODD))
    return holder[0]


def _value(place: tuple[Any, Any]) -> Any:
    """Return the value at a place, or None if an earlier change has removed the place."""
    parent, key = place
    try:
        return parent[key]
    except (KeyError, IndexError):
        return None


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the place of each value below a list or dict: the container, and the index or key."""
    keys: Iterable[Any] = ()
    if isinstance(node, dict):
        keys = list(node)
    elif isinstance(node, list):
        keys = range(len(node))
    for key in keys:
        yield node, key
        yield from _places(node[key])


def mutated_bytes(content: bytes, rng: Random) -> bytes:
    """Return bytes of which some are changed, removed, repeated or inserted, or the end is missing."""
    changed = bytearray(content)
    num_changes = rng.choice((1, 1, 2, 8))
    for _ in range(num_changes):
        place = rng.randrange(len(changed) + 1)
        match rng.randrange(6):
            case 0:
                del changed[place:]
            case 1:
                del changed[place : place + rng.choice((1, 4, 64))]
            case 2:
                changed[place:place] = changed[place : place + rng.choice((1, 8, 64))]
            case 3:
                changed[place:place] = rng.randbytes(rng.choice((1, 4, 16)))
            case _:
                if place < len(changed):
                    with_flipped_bit = changed[place] ^ (1 << rng.randrange(8))
                    changed[place] = rng.choice((0, 0xFF, 0x7F, with_flipped_bit))
    return bytes(changed)


def mutated_json(content: bytes, rng: Random) -> bytes:
    """Return a JSON file of which values or bytes are changed."""
    if rng.random() < 0.2:
        return mutated_bytes(content, rng)
    tree = mutated_tree(json.loads(content), rng)
    return json.dumps(tree).encode("utf-8", "surrogatepass")


def mutated_safetensors(content: bytes, rng: Random) -> bytes:
    """Return a safetensors file with a change of its header, its metadata, a number, or bytes.

    Such a file consists of the header's size (8 bytes), the header (JSON), and the numbers.
    """
    if rng.random() < 0.3:
        return mutated_bytes(content, rng)
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    numbers = content[8 + size :]
    metadata = header.get("__metadata__", {})
    keys_of_json = [key for key, text in metadata.items() if text[:1] in "{["]
    if keys_of_json and rng.random() < 0.6:
        key = rng.choice(keys_of_json)
        metadata[key] = mutated_json(metadata[key].encode(), rng).decode("utf-8", "replace")
    elif rng.random() < 0.3:
        position = rng.randrange(0, max(1, len(numbers) - 4), 4)
        odd_number = struct.pack("<f", rng.choice((float("nan"), float("inf"), 1e38, 0.0)))
        numbers = numbers[:position] + odd_number + numbers[position + 4 :]
    else:
        header = mutated_tree(header, rng)
    encoded = json.dumps(header).encode("utf-8", "replace")
    return struct.pack("<Q", len(encoded)) + encoded + numbers
