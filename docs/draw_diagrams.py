"""Draw the Mermaid diagrams of docs/ for the site, which loads no script from elsewhere.

pip install 'mmdr>=0.4,<1' && python docs/draw_diagrams.py
"""

import mmdr
from build_site import ROOT, diagrams, digest_of


def main() -> None:
    for page in sorted(ROOT.glob("docs/*.md")):
        for picture, source in diagrams(page):
            drawn = mmdr.render(source, backend="merman").svg()
            # On white, for dark pages; with what it was drawn from, so that `make docs` notices a change.
            drawn = drawn.replace('style="', 'style="background:white;', 1)
            picture.write_text(f"{drawn.strip()}\n<!-- {digest_of(source)} -->\n", "utf-8")
            print(f"drawn: {picture.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
