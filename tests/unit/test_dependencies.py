"""constraints.txt and THIRD_PARTY.md agree with pyproject.toml and with the metadata of the packages."""

import re
import runpy
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
DEPENDENCIES = SimpleNamespace(**runpy.run_path(str(ROOT / ".ci" / "dependencies.py")))
"""The script that writes both files."""
GROUPS: dict[str, list[Requirement]] = DEPENDENCIES.groups()
DIRECT = [requirement for group in GROUPS.values() for requirement in group]


def lines_of_constraints() -> list[str]:
    """Return the lines of constraints.txt without comments."""
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    return [line for line in lines if not line.startswith("#")]


PINNED = {canonicalize_name(each.name): each for each in map(Requirement, lines_of_constraints())}
"""The requirement of each line of constraints.txt, by name of the package."""


class Row(NamedTuple):
    """Row of the table in THIRD_PARTY.md."""

    package: str
    license: str
    required_by: str


def rows_of_licenses() -> list[Row]:
    """Return the rows of the table in THIRD_PARTY.md, without its head."""
    lines = (ROOT / "THIRD_PARTY.md").read_text("utf-8").splitlines()
    cells = [line.strip("|").split("|") for line in lines if line.startswith("| ")]
    _head, *rows = [Row(*(cell.strip() for cell in row)) for row in cells]
    return rows


def test_constraints_pin_more_than_the_direct_dependencies() -> None:
    assert len(PINNED) > len(DIRECT)


def test_constraints_are_sorted_and_name_each_package_once() -> None:
    assert len(lines_of_constraints()) == len(PINNED)
    assert list(PINNED) == sorted(PINNED)


def test_every_line_of_the_constraints_is_one_public_version() -> None:
    for line in lines_of_constraints():
        name, _, exact = line.partition("==")
        assert name == canonicalize_name(name)
        assert str(Version(exact)) == Version(exact).public == exact


@pytest.mark.parametrize("direct", DIRECT, ids=str)
def test_every_direct_dependency_is_pinned_within_its_range(direct: Requirement) -> None:
    pinned = PINNED[canonicalize_name(direct.name)]
    (exact,) = pinned.specifier
    assert direct.specifier.contains(exact.version), f"{pinned} is not {direct}: make constraints"


def test_licenses_list_every_direct_dependency_once() -> None:
    names = [row.package for row in rows_of_licenses()]
    assert names == list(dict.fromkeys(direct.name for direct in DIRECT))


def test_licenses_name_the_groups_that_require_a_package() -> None:
    for row in rows_of_licenses():
        expected = set()
        for group, requirements in GROUPS.items():
            if row.package in {requirement.name for requirement in requirements}:
                expected.add(group)
        assert set(row.required_by.split(", ")) == expected, row.package


def test_licenses_are_quoted_from_the_metadata_of_the_packages() -> None:
    for row in rows_of_licenses():
        assert row.license != "unknown", row.package
        pinned = re.sub(r".*==", "", str(PINNED[canonicalize_name(row.package)]))
        # The metadata of another version may state the license in other words.
        if Version(version(row.package)).public == pinned:
            assert row.license == DEPENDENCIES.license_of(row.package), f"{row.package}: make constraints"
