"""constraints.txt and THIRD_PARTY.md say of every dependency what pyproject.toml and its own metadata say."""

import re
import runpy
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
LINES = [line for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if line[:1] != "#"]
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "THIRD_PARTY.md").read_text("utf-8").splitlines()
    if line.startswith("| ")
][1:]
DEPENDENCIES = SimpleNamespace(**runpy.run_path(str(ROOT / ".ci" / "dependencies.py")))
DIRECT: list[Requirement] = [r for group in DEPENDENCIES.groups().values() for r in group]
PINNED = {canonicalize_name(r.name): r for r in map(Requirement, LINES)}


def test_every_line_is_one_public_version() -> None:
    assert len(LINES) == len(PINNED) > len(DIRECT)
    assert list(PINNED) == sorted(PINNED)
    for line in LINES:
        name, _, exact = line.partition("==")
        assert name == canonicalize_name(name)
        assert str(Version(exact)) == Version(exact).public == exact


@pytest.mark.parametrize("direct", DIRECT, ids=str)
def test_every_direct_dependency_is_there_in_its_range(direct: Requirement) -> None:
    pinned = PINNED[canonicalize_name(direct.name)]
    (exact,) = pinned.specifier
    assert direct.specifier.contains(exact.version), f"{pinned} is not {direct}: make constraints"


def test_licenses_are_those_of_the_packages() -> None:
    """Of the versions in constraints.txt: another one may say it in other words."""
    assert [row[0] for row in ROWS] == list(dict.fromkeys(direct.name for direct in DIRECT))
    for name, stated, when in ROWS:
        assert stated != "unknown"
        assert set(when.split(", ")) == {
            g for g, rs in DEPENDENCIES.groups().items() if name in {r.name for r in rs}
        }
        exact = re.sub(r".*==", "", str(PINNED[canonicalize_name(name)]))
        if Version(version(name)).public == exact:
            assert stated == DEPENDENCIES.license_of(name), f"{name}: make constraints"
