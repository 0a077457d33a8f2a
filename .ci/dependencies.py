"""Write constraints.txt and THIRD_PARTY.md from what is installed where this runs: `make constraints`."""

import tomllib
from collections.abc import Iterable
from importlib.metadata import distribution, metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS, THIRD_PARTY = ROOT / "constraints.txt", ROOT / "THIRD_PARTY.md"

ABOUT_CONSTRAINTS = """\
# Versions with which all tests have passed (Linux, Python 3.11), as an offer; `make constraints` writes them.
#   pip install -c constraints.txt -e ".[study]"
# What other systems need besides (CUDA's libraries, say) is not here, and pip chooses it.
"""
ABOUT_LICENCES = """\
# Licences of what this project depends on

Nothing of these packages is part of this one: pip installs each of them, under its own licence, here in the
words of its metadata. What they need in turn is in [constraints.txt](constraints.txt); `make constraints`
writes both.

| package | licence | when |
|---|---|---|
"""


def groups() -> dict[str, list[Requirement]]:
    """Return the direct requirements of pyproject.toml: `always`, those of each extra, and of development."""
    tree: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    project, development = tree["project"], tree["dependency-groups"]
    named = {"always": project["dependencies"], **project["optional-dependencies"]}
    named |= {name: [text for text in texts if isinstance(text, str)] for name, texts in development.items()}
    return {group: [Requirement(text) for text in texts] for group, texts in named.items()}


def needed(requirements: Iterable[Requirement]) -> dict[str, str]:
    """The installed versions of all that these need, by name; no local ones such as `+cpu`.

    Raises:
        PackageNotFoundError: one of them is not installed.
    """
    found: dict[str, str] = {}
    seen = set[tuple[str, str]]()
    todo = list(requirements)
    while todo:
        requirement = todo.pop()
        installed = distribution(requirement.name)
        found[canonicalize_name(requirement.name)] = Version(installed.version).public
        parts = [Requirement(text) for text in installed.requires or ()]
        for extra in {"", *requirement.extras}:
            if (requirement.name, extra) not in seen:
                seen.add((requirement.name, extra))
                todo += [part for part in parts if not part.marker or part.marker.evaluate({"extra": extra})]
    return found


def licence(package: str) -> str:
    """Of an installed package, in the words of its metadata."""
    said = metadata(package)
    kinds = [line.split(" :: ") for line in said.get_all("Classifier", [])]
    names = [words[-1] for words in kinds if words[:2] == ["License", "OSI Approved"]]
    texts = (said.get("License") or "").strip().splitlines()
    return said.get("License-Expression") or ", ".join(names) or (texts[0] if texts else "not said")


def constraints() -> str:
    """The text of constraints.txt."""
    versions = needed(requirement for group in groups().values() for requirement in group)
    return ABOUT_CONSTRAINTS + "".join(f"{name}=={versions[name]}\n" for name in sorted(versions))


def third_party() -> str:
    """The text of THIRD_PARTY.md."""
    wanted: dict[str, list[str]] = {}
    for group, requirements in groups().items():
        for requirement in requirements:
            wanted.setdefault(requirement.name, []).append(group)
    rows = [f"| {name} | {licence(name)} | {', '.join(when)} |\n" for name, when in wanted.items()]
    return ABOUT_LICENCES + "".join(rows)


if __name__ == "__main__":
    CONSTRAINTS.write_text(constraints(), "utf-8")
    THIRD_PARTY.write_text(third_party(), "utf-8")
