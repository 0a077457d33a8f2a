"""`make docs`: the site is complete, every link works, and it loads nothing from other hosts."""

import os
import re
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


def test_the_site_is_whole_and_needs_no_other_host(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    site = tmp_path / "site"
    pages = {path.relative_to(site).as_posix(): path.read_text("utf-8") for path in site.rglob("*.html")}
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
    for page, text in pages.items():
        assert LOADED.findall(text) == [], page
