"""Write constraints.txt and THIRD_PARTY.md from the installed packages: `make constraints`."""

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
    """Return the direct requirements of pyproject.toml by group: `always`, the extras and development."""
    tree: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    project, development = tree["project"], tree["dependency-groups"]
    named = {"always": project["dependencies"], **project["optional-dependencies"]}
    named |= {name: [text for text in texts if isinstance(text, str)] for name, texts in development.items()}
    return {group: [Requirement(text) for text in texts] for group, texts in named.items()}


def installed_versions(requirements: Iterable[Requirement]) -> dict[str, str]:
    """Return the installed versions of direct and indirect requirements, without local parts like `+cpu`.

    Raises:
        PackageNotFoundError: a required package is not installed.
    """
    versions: dict[str, str] = {}
    seen = set[tuple[str, str]]()
    todo = list(requirements)
    while todo:
        requirement = todo.pop()
        installed = distribution(requirement.name)
        versions[canonicalize_name(requirement.name)] = Version(installed.version).public
        parts = [Requirement(text) for text in installed.requires or ()]
        for extra in {"", *requirement.extras}:
            if (requirement.name, extra) not in seen:
                seen.add((requirement.name, extra))
                todo += [part for part in parts if not part.marker or part.marker.evaluate({"extra": extra})]
    return versions


def license_of(package: str) -> str:
    """Return the license that the metadata of an installed package states, or "unknown"."""
    fields = metadata(package)
    classifiers = [line.split(" :: ") for line in fields.get_all("Classifier", [])]
    names = [words[-1] for words in classifiers if words[:2] == ["License", "OSI Approved"]]
    texts = (fields.get("License") or "").strip().splitlines()
    return fields.get("License-Expression") or ", ".join(names) or (texts[0] if texts else "unknown")


def constraints() -> str:
    """Return the content of constraints.txt."""
    versions = installed_versions(requirement for group in groups().values() for requirement in group)
    return ABOUT_CONSTRAINTS + "".join(f"{name}=={versions[name]}\n" for name in sorted(versions))


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
