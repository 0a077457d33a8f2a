"""Changes that a hostile or an unlucky hand makes: to plain data, to bytes, to safetensors."""

import copy
import json
import struct
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
    """A copy with one to three of its nodes replaced, removed, doubled, renamed or nested."""
    holder = [copy.deepcopy(tree)]
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = list(_places(holder))
        parent, key = rng.choice(places[:400])
        match rng.randrange(6):
            case 0 if isinstance(parent, dict):
                del parent[key]
            case 1 if isinstance(parent, dict):
                parent[rng.choice(("", "x", "trials", str(key).upper(), f"{key} "))] = parent.pop(key)
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
    parent, key = place
    try:
        return parent[key]
    except (KeyError, IndexError):
        return None


def _places(node: Any) -> Any:
    """(container, key) of every node below a container."""
    if isinstance(node, dict | list):
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            yield node, key
            yield from _places(node[key])


def mutated_bytes(content: bytes, rng: Random) -> bytes:
    """Some bytes flipped, cut out, doubled, or all behind a place gone."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
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
                    changed[place] = rng.choice((0, 0xFF, 0x7F, changed[place] ^ (1 << rng.randrange(8))))
    return bytes(changed)


def mutated_json(content: bytes, rng: Random) -> bytes:
    """Another tree, or other bytes."""
    if rng.random() < 0.2:
        return mutated_bytes(content, rng)
    return json.dumps(mutated_tree(json.loads(content), rng)).encode("utf-8", "surrogatepass")


def mutated_safetensors(content: bytes, rng: Random) -> bytes:
    """Another header (names, kinds, shapes, places, metadata; its JSON texts too), or other bytes."""
    if rng.random() < 0.3:
        return mutated_bytes(content, rng)
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    numbers = content[8 + size :]
    texts = header.get("__metadata__", {})
    inner = [key for key, text in texts.items() if text[:1] in "{["]
    if inner and rng.random() < 0.6:
        key = rng.choice(inner)
        texts[key] = mutated_json(texts[key].encode(), rng).decode("utf-8", "replace")
    elif rng.random() < 0.3:
        hole = rng.randrange(0, max(1, len(numbers) - 4), 4)
        filler = struct.pack("<f", rng.choice((float("nan"), float("inf"), 1e38, 0.0)))
        numbers = numbers[:hole] + filler + numbers[hole + 4 :]
    else:
        header = mutated_tree(header, rng)
    encoded = json.dumps(header).encode("utf-8", "replace")
    return struct.pack("<Q", len(encoded)) + encoded + numbers
