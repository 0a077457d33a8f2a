"""Check that package, changelog, citation and tag state one version, and that the wheel is complete.

    python .ci/release.py out/dist

Prints the problems and exits with status 1 if there are any.
"""

import re
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).resolve().parent.parent
IN_WHEEL = (
    "prometar/py.typed",
    "prometar/embedded/mini.safetensors",
    "tune/py.typed",
    "tune/space/spaces/default.yaml",
    "tune/report/templates/report.html.jinja",
)
"""One file of each kind of package data. tests/tools/test_wheel.py compares all files."""


def first_match(pattern: str, file: str) -> str:
    """Return the first group of the first match in a file of the repository, or "none"."""
    match = re.search(pattern, (ROOT / file).read_text("utf-8"), re.MULTILINE)
    return match[1] if match else "none"


def version_problems(version: str) -> list[str]:
    """Return the files and the tags of the current commit that state another version, one line each."""
    stated = {
        "CHANGELOG.md": first_match(r"^## \[(\d[^\]]*)\] - \d{4}-\d\d-\d\d$", "CHANGELOG.md"),
        "CITATION.cff": first_match(r"^version: (.+)$", "CITATION.cff"),
    }
    problems: list[str] = []
    for file, other in stated.items():
        if other != version:
            problems.append(f"{file} has version {other}, the package {version}")
    command = ["git", "tag", "--points-at", "HEAD"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    for tag in done.stdout.split():
        is_version = re.match(r"v\d", tag)
        if is_version and tag != f"v{version}":
            problems.append(f"the tag {tag} is not v{version}")
    return problems


def archive_problems(dist: Path, version: str) -> list[str]:
    """Return the problems of the built archives in a folder, one line each."""
    wheels = list(dist.glob("*.whl"))
    sources = list(dist.glob("*.tar.gz"))
    wheel_names = [path.name for path in wheels]
    if wheel_names != [f"prometar-{version}-py3-none-any.whl"] or len(sources) != 1:
        return [f"{dist} must hold one wheel and one source archive of {version}. Run make dist."]
    with ZipFile(wheels[0]) as archive:
        names = set(archive.namelist())
    problems = [f"the wheel lacks {name}" for name in IN_WHEEL if name not in names]
    folders = {name.split("/")[0] for name in names}
    unexpected = folders - {"prometar", "tune", f"prometar-{version}.dist-info"}
    problems += [f"the wheel contains {name}" for name in sorted(unexpected)]
    return problems


def main() -> int:
    """Print the problems that prevent a release. Return the exit status."""
    version = first_match(r'^__version__ = "(.+)"', "prometar/__init__.py")
    problems = version_problems(version) + archive_problems(Path(sys.argv[1]), version)
    for problem in problems:
        print(f"error: {problem}")
    if not problems:
        print("ready for release")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
