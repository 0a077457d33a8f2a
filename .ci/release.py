"""Check a release: one version in package, changelog, citation and tag, and a complete wheel.

python .ci/release.py out/dist
"""

import re
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).resolve().parent.parent
IN_WHEEL = (
    "prometar/py.typed", "tune/py.typed", "prometar/embedded/mini.safetensors",
    "tune/space/spaces/default.yaml", "tune/report/templates/report.html.jinja",
)  # fmt: skip


def first_match(pattern: str, file: str) -> str:
    """Return the first group of the first match in a file of the repository, or "none"."""
    match = re.search(pattern, (ROOT / file).read_text("utf-8"), re.MULTILINE)
    return match[1] if match else "none"


def problems(dist: Path) -> list[str]:
    """Return the problems that prevent a release, one line each."""
    version = first_match(r'^__version__ = "(.+)"', "prometar/__init__.py")
    other_versions = {
        "CHANGELOG.md": first_match(r"^## \[(\d[^\]]*)\] - \d{4}-\d\d-\d\d$", "CHANGELOG.md"),
        "CITATION.cff": first_match(r"^version: (.+)$", "CITATION.cff"),
    }
    wrong = [
        f"{file} has version {other}, the package {version}"
        for file, other in other_versions.items()
        if other != version
    ]
    tags = subprocess.run(
        ["git", "tag", "--points-at", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    wrong += [
        f"the tag {tag} is not v{version}" for tag in tags if re.match(r"v\d", tag) and tag != f"v{version}"
    ]
    wheels, sources = list(dist.glob("*.whl")), list(dist.glob("*.tar.gz"))
    if [path.name for path in wheels] != [f"prometar-{version}-py3-none-any.whl"] or len(sources) != 1:
        return [*wrong, f"{dist} must hold one wheel and one source archive of {version}. Run make dist."]
    with ZipFile(wheels[0]) as archive:
        names = set(archive.namelist())
    wrong += [f"the wheel lacks {name}" for name in IN_WHEEL if name not in names]
    extra = {name.split("/")[0] for name in names} - {"prometar", "tune", f"prometar-{version}.dist-info"}
    return wrong + [f"the wheel contains {name}" for name in sorted(extra)]


if __name__ == "__main__":
    wrong = problems(Path(sys.argv[1]))
    print("\n".join(f"error: {line}" for line in wrong) or "ready for release")
    sys.exit(bool(wrong))
