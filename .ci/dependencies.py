"""Write constraints.txt and THIRD_PARTY.md from the installed packages: `make constraints`."""

import itertools
import tomllib
from collections.abc import Iterable
from importlib.metadata import distribution, metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
THIRD_PARTY = ROOT / "THIRD_PARTY.md"

ABOUT_CONSTRAINTS = """\
# Versions with which all tests have passed (Linux, Python 3.11). `make constraints` writes this file.
#   pip install -c constraints.txt -e ".[study]"
# pip chooses the versions of packages that only other systems need, such as CUDA libraries.
"""
ABOUT_LICENSES = """\
# Licenses of dependencies

This project contains no code of these packages. pip installs each of them under its own license. The licenses
are quoted from the metadata of the packages. [constraints.txt](constraints.txt) also lists indirect
dependencies. `make constraints` writes both files.

| package | license | required by |
|---|---|---|
"""


def groups() -> dict[str, list[Requirement]]:
    """Return the direct requirements of pyproject.toml by group.

    The groups are `always` (the package without extras), each extra, and each dependency group.
    """
    tree: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    entries_of: dict[str, list[Any]] = {
        "always": tree["project"]["dependencies"],
        **tree["project"]["optional-dependencies"],
        **tree["dependency-groups"],
    }
    requirements: dict[str, list[Requirement]] = {}
    for group, entries in entries_of.items():
        # An entry that is a table includes another group, which lists its requirements itself.
        requirements[group] = [Requirement(entry) for entry in entries if isinstance(entry, str)]
    return requirements


def installed_versions(requirements: Iterable[Requirement]) -> dict[str, str]:
    """Return the installed versions of direct and indirect requirements, without local parts like `+cpu`.

    Raises:
        PackageNotFoundError: a required package is not installed.
    """
    versions: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()  # pairs of a package and one of its extras, "" for none
    todo = list(requirements)
    while todo:
        requirement = todo.pop()
        installed = distribution(requirement.name)
        versions[canonicalize_name(requirement.name)] = Version(installed.version).public
        required = [Requirement(text) for text in installed.requires or ()]
        for extra in {"", *requirement.extras}:
            if (requirement.name, extra) in seen:
                continue
            seen.add((requirement.name, extra))
            for each in required:
                if each.marker is None or each.marker.evaluate({"extra": extra}):
                    todo.append(each)
    return versions


def license_of(package: str) -> str:
    """Return the license that the metadata of an installed package states, or "unknown"."""
    fields = metadata(package)
    expression = fields.get("License-Expression")
    if expression:
        return expression

    classified: list[str] = []
    for classifier in fields.get_all("Classifier", []):
        words = classifier.split(" :: ")
        if words[:2] == ["License", "OSI Approved"]:
            classified.append(words[-1])
    if classified:
        return ", ".join(classified)

    # Some packages put the whole text of their license into this field. It starts with the name.
    lines = (fields.get("License") or "").strip().splitlines()
    return lines[0] if lines else "unknown"


def constraints() -> str:
    """Return the content of constraints.txt."""
    versions = installed_versions(itertools.chain.from_iterable(groups().values()))
    lines = [f"{name}=={versions[name]}\n" for name in sorted(versions)]
    return ABOUT_CONSTRAINTS + "".join(lines)


def third_party() -> str:
    """Return the content of THIRD_PARTY.md."""
    groups_of: dict[str, list[str]] = {}
    for group, requirements in groups().items():
        for requirement in requirements:
            groups_of.setdefault(requirement.name, []).append(group)
    rows = [f"| {name} | {license_of(name)} | {', '.join(names)} |\n" for name, names in groups_of.items()]
    return ABOUT_LICENSES + "".join(rows)


if __name__ == "__main__":
    CONSTRAINTS.write_text(constraints(), "utf-8")
    THIRD_PARTY.write_text(third_party(), "utf-8")
