"""Site of mkdocs.yml: README.md and everything that it links to, each file at its path in the repository.

Links thus work as written, and mkdocs checks them. Pages are in the order in which README.md links to them.
"""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"\]\(([^)\s#:]+)")  # target file of a Markdown link
GALLERY = "examples/index.md"
PICTURES = (".png", ".svg", ".webp", ".gif")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    pages = [path for path in sources() if path.endswith(".md")]
    guides = [page for page in pages if page.startswith("docs/") and page != "docs/api.md"]
    rest = [page for page in pages if page not in {*guides, "README.md", "docs/api.md"}]
    nav = [{"Home": "README.md"}, {"Guides": guides}, {"Examples": GALLERY}, {"Python API": "docs/api.md"}]
    config.nav = [*nav, {"Project": rest}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    site = [file for file in files if file.src_dir != config.docs_dir]  # files of the theme
    included = InclusionLevel.INCLUDED
    for path in sources():
        site.append(File.generated(config, path, abs_src_path=str(ROOT / path), inclusion=included))
    site.append(File.generated(config, GALLERY, content=gallery(), inclusion=included))
    return Files(site)


def sources() -> list[str]:
    """Return README.md, what it links to, and the remaining files of docs/ and examples/."""
    todo = [ROOT / "README.md"]
    found: list[str] = []
    others = [*sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("examples/*.*"))]
    while todo or others:
        path = todo.pop(0) if todo else others.pop(0)
        name = path.relative_to(ROOT).as_posix()
        if name not in found:
            found.append(name)
            if path.suffix == ".md":
                todo += _linked(path)
    return found


def _linked(page: Path) -> Iterator[Path]:
    """Yield the files of the repository that a page links to. mkdocs reports missing ones."""
    for target in LINK.findall(page.read_text("utf-8")):
        path = (page.parent / target).resolve()
        if path.is_file() and path.is_relative_to(ROOT):
            yield path


def gallery() -> str:
    """Return a page of all examples: description, pictures and code."""
    shown = ["# Examples\n"]
    for path in sorted(ROOT.glob("examples/*")):
        if path.suffix in {".py", ".yaml", ".ipynb"}:
            shown.append(f"## [{path.name}]({path.name})\n")
            siblings = sorted(path.parent.glob(f"{path.stem}.*"))
            shown += [f"![{each.name}]({each.name})\n" for each in siblings if each.suffix in PICTURES]
            shown.append(_notebook(path) if path.suffix == ".ipynb" else _code(path))
    return "\n".join(shown)


def _code(path: Path) -> str:
    text = path.read_text("utf-8")
    if path.suffix != ".py":
        return f"```yaml\n{text}```\n"
    description, _, commands = (ast.get_docstring(ast.parse(text)) or "").partition("\n\n")
    code = text.split('"""', 2)[2].strip()
    return f"{description}\n\n```\n{commands}\n```\n\n```python\n{code}\n```\n"


def _notebook(path: Path) -> str:
    shown = []
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        text = "".join(cell["source"])
        code = cell["cell_type"] == "code"
        shown.append(f"```python\n{text}\n```\n" if code else text.replace("# ", "### ", 1) + "\n")
    return "\n".join(shown)
