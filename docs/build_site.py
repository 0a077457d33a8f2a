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
    """Set the navigation. mkdocs calls this hook after it has read mkdocs.yml."""
    home = "README.md"
    api = "docs/api.md"
    guides = []
    others = []
    for path in sources():
        if not path.endswith(".md") or path in (home, api):
            continue
        section = guides if path.startswith("docs/") else others
        section.append(path)
    config.nav = [
        {"Home": home},
        {"Guides": guides},
        {"Examples": GALLERY},
        {"Python API": api},
        {"Project": others},
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replace the files of docs/ by those of `sources` and the gallery. mkdocs calls this hook."""
    site = [file for file in files if file.src_dir != config.docs_dir]  # files of the theme
    included = InclusionLevel.INCLUDED
    for path in sources():
        site.append(File.generated(config, path, abs_src_path=str(ROOT / path), inclusion=included))
    site.append(File.generated(config, GALLERY, content=gallery(), inclusion=included))
    return Files(site)


def sources() -> list[str]:
    """Return README.md, what it links to, and the remaining files of docs/ and examples/."""
    found: list[str] = []
    starts = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("examples/*.*"))]
    for start in starts:
        todo = [start]
        while todo:
            path = todo.pop(0)
            name = path.relative_to(ROOT).as_posix()
            if name in found:
                continue
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
    content_of = {".py": _script, ".yaml": _recipe, ".ipynb": _notebook}
    shown = ["# Examples\n"]
    for path in sorted(ROOT.glob("examples/*")):
        if path.suffix not in content_of:
            continue
        shown.append(f"## [{path.name}]({path.name})\n")
        for sibling in sorted(path.parent.glob(f"{path.stem}.*")):
            if sibling.suffix in PICTURES:
                shown.append(f"![{sibling.name}]({sibling.name})\n")
        shown.append(content_of[path.suffix](path))
    return "\n".join(shown)


def _script(path: Path) -> str:
    """Return the docstring of a Python example (a description, then commands) and its code, in Markdown."""
    text = path.read_text("utf-8")
    docstring = ast.get_docstring(ast.parse(text)) or ""
    description, _, commands = docstring.partition("\n\n")
    code = text.split('"""', 2)[2].strip()  # what follows the docstring
    return f"{description}\n\n```\n{commands}\n```\n\n```python\n{code}\n```\n"


def _recipe(path: Path) -> str:
    """Return a YAML example in Markdown."""
    return f"```yaml\n{path.read_text('utf-8')}```\n"


def _notebook(path: Path) -> str:
    """Return the cells of a notebook, without outputs, in Markdown."""
    notebook = json.loads(path.read_text("utf-8"))
    shown = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "code":
            shown.append(f"```python\n{text}\n```\n")
        else:
            shown.append(text.replace("# ", "### ", 1) + "\n")  # headings below that of the example
    return "\n".join(shown)
