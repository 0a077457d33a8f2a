"""What mkdocs.yml makes a site of: README.md and all that it leads to, each file where it lies here.

So every link is checked, and works, as it is written. Pages are in the order in which README.md names them.
Mermaid diagrams are the pictures that docs/draw_diagrams.py has drawn of them.
"""

import ast
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"\]\(([^)\s#:]+)")  # of Markdown, to a file
DIAGRAM = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)
GALLERY = "examples/index.md"
PICTURES = (".png", ".svg", ".webp", ".gif")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    pages = [path for path in sources() if path.endswith(".md")]
    guides = [page for page in pages if page.startswith("docs/") and page != "docs/api.md"]
    rest = [page for page in pages if page not in {*guides, "README.md", "docs/api.md"}]
    nav = [{"Home": "README.md"}, {"Guides": guides}, {"Examples": GALLERY}, {"In Python": "docs/api.md"}]
    config.nav = [*nav, {"Project": rest}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    site = [file for file in files if file.src_dir != config.docs_dir]  # the theme's
    kept = InclusionLevel.INCLUDED
    for path in sources():
        site.append(File.generated(config, path, abs_src_path=str(ROOT / path), inclusion=kept))
    site.append(File.generated(config, GALLERY, content=gallery(), inclusion=kept))
    return Files(site)


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Each diagram as its picture.

    Raises:
        PluginError: it has not been drawn since it was changed.
    """
    path = page.file.abs_src_path
    for picture, source in diagrams(Path(path)) if path else ():
        if not picture.is_file() or digest_of(source) not in picture.read_text("utf-8"):
            raise PluginError(f"{picture.name} is not the diagram of {path}: python docs/draw_diagrams.py")
        markdown = DIAGRAM.sub(lambda _, name=picture.name: f"![diagram]({name})", markdown, count=1)
    return markdown


def diagrams(page: Path) -> list[tuple[Path, str]]:
    """The Mermaid diagrams of a page, and where their pictures lie."""
    found = DIAGRAM.findall(page.read_text("utf-8"))
    return [(page.with_name(f"{page.stem}-{k}.svg"), source) for k, source in enumerate(found, 1)]


def digest_of(diagram: str) -> str:
    """What its picture says it was drawn from."""
    return f"sha256 {hashlib.sha256(diagram.encode()).hexdigest()}"


def sources() -> list[str]:
    """README.md, what it leads to, then what else is in docs/ and examples/."""
    todo, found = [ROOT / "README.md"], list[str]()
    others = [*sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("examples/*.*"))]
    while todo or others:
        path = todo.pop(0) if todo else others.pop(0)
        name = path.relative_to(ROOT).as_posix()
        if name not in found:
            found.append(name)
            if path.suffix == ".md":
                todo += [*_linked(path), *(picture for picture, _ in diagrams(path))]
    return found


def _linked(page: Path) -> Iterator[Path]:
    """The files of the checkout that a page links to; those that are not there are left to mkdocs."""
    for target in LINK.findall(page.read_text("utf-8")):
        path = (page.parent / target).resolve()
        if path.is_file() and path.is_relative_to(ROOT):
            yield path


def gallery() -> str:
    """A page of all examples: what each is, its pictures, its text."""
    shown = ["# Examples\n"]
    for path in sorted(ROOT.glob("examples/*")):
        if path.suffix in {".py", ".yaml", ".ipynb"}:
            shown.append(f"## [{path.name}]({path.name})\n")
            beside = sorted(path.parent.glob(f"{path.stem}.*"))
            shown += [f"![{each.name}]({each.name})\n" for each in beside if each.suffix in PICTURES]
            shown.append(_notebook(path) if path.suffix == ".ipynb" else _code(path))
    return "\n".join(shown)


def _code(path: Path) -> str:
    text = path.read_text("utf-8")
    if path.suffix != ".py":
        return f"```yaml\n{text}```\n"
    title, _, commands = (ast.get_docstring(ast.parse(text)) or "").partition("\n\n")
    code = text.split('"""', 2)[2].strip()
    return f"{title}\n\n```\n{commands}\n```\n\n```python\n{code}\n```\n"


def _notebook(path: Path) -> str:
    shown = []
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        text = "".join(cell["source"])
        code = cell["cell_type"] == "code"
        shown.append(f"```python\n{text}\n```\n" if code else text.replace("# ", "### ", 1) + "\n")
    return "\n".join(shown)
