"""`make docs`: the site is complete, every link works, and it loads nothing from other hosts."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs")
pytest.importorskip("material")
pytest.importorskip("mkdocstrings")

ROOT = Path(__file__).resolve().parents[2]
LOADED = re.compile(
    r"<(?:script|img|iframe|source|link)\b[^>]*?\b(?:src|href)=[\"']?((?:https?:)?//[^\"' >]+)"
)


def build(checkout: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(
        command, cwd=checkout, env=quiet, capture_output=True, text=True, timeout=300, check=False
    )


def test_the_site_is_whole_and_needs_no_other_host(tmp_path: Path) -> None:
    done = build(ROOT, tmp_path / "site")
    assert done.returncode == 0, done.stderr
    pages = {
        p.relative_to(tmp_path / "site").as_posix(): p.read_text("utf-8") for p in tmp_path.rglob("*.html")
    }
    guides = {path.relative_to(ROOT).with_suffix(".html").as_posix() for path in ROOT.glob("docs/*.md")}
    assert {"index.html", "examples/index.html", "clusters/index.html", *guides} <= pages.keys()
    for name in (
        "prometar.inference.classifier.load",
        "tune.study.Study.run",
        "prometar.methods.prompts.Prompts",
    ):
        assert f'id="{name}"' in pages["docs/api.html"]
    for example in ("huber.py", "mine.yaml", "study.ipynb"):
        assert f'href="{example}"' in pages["examples/index.html"]
        assert (tmp_path / "site" / "examples" / example).is_file()
    assert (tmp_path / "site" / "docs" / "embedded.webp").is_file()
    assert LOADED.findall('<link rel=x href="https://fonts/a"><script src=//b/c></script>') == [
        "https://fonts/a",
        "//b/c",
    ]
    assert not {page: found for page, text in pages.items() if (found := LOADED.findall(text))}


BROKEN = ("docs/nowhere.md", "nowhere.py", "docs/guide.md#no-such-part")


def test_links_that_lead_nowhere_fail(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    (checkout / "docs").mkdir(parents=True)
    shutil.copy(ROOT / "mkdocs.yml", checkout)
    shutil.copy(ROOT / "docs" / "build_site.py", checkout / "docs")
    (checkout / "docs" / "api.md").write_text("# In Python\n", "utf-8")
    (checkout / "docs" / "guide.md").write_text("# Guide\n\n## Part\n\n[code](../code.py)\n", "utf-8")
    (checkout / "code.py").write_text("pass\n", "utf-8")
    links = "".join(f"\n[link]({link})\n" for link in ("docs/guide.md#part", *BROKEN))
    (checkout / "README.md").write_text(f"# All\n{links}", "utf-8")
    done = build(checkout, tmp_path / "broken")
    assert done.returncode == 1
    assert f"Aborted with {len(BROKEN)} warnings in strict mode" in done.stdout, "each is one"
    for link in BROKEN:
        assert link in done.stderr
