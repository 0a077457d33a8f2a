"""The README's pictures of a study: the top of its report, and what the terminal shows.

    python benchmarks/pictures.py [--quick]

Runs `python tune/search.py`, or goes on with it; needs Chromium. The terminal's picture is made of what the
command prints on a terminal of 100 columns.
"""

import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from common import ROOT, parser_of
from PIL import Image
from rich.console import Console
from rich.text import Text

from prometar.io.files import write_atomically

CHROMIUM = (
    "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
QUICK = ("--study", "quick", "--trials", "2", "--epochs", "1", "--top", "0", "--final-seeds", "1")
COLUMNS = 100


def shown(command: list[str]) -> str:
    """What a command prints on a terminal, its codes included; lines that it overwrites are left out."""
    ours, its = pty.openpty()
    env = {**os.environ, "COLUMNS": str(COLUMNS), "TERM": "xterm-256color"}
    process = subprocess.Popen(command, cwd=ROOT, stdin=its, stdout=its, stderr=its, env=env)
    os.close(its)
    parts = []
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # its end is closed
            break
        if not part:
            break
        parts.append(part)
    if process.wait():
        raise SystemExit(f"error: {' '.join(command)} ended with status {process.returncode}")
    lines = b"".join(parts).decode().replace("\r\n", "\n").split("\n")
    return "\n".join(line.rsplit("\r", 1)[-1] for line in lines)


def terminal(text: str, to: Path) -> None:
    """An SVG of a terminal's text."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        console = Console(width=COLUMNS, record=True, file=nowhere, force_terminal=True)
        console.print(Text.from_ansi(text.strip("\n")))
    picture = console.export_svg(title="python tune/search.py")
    whole = re.sub(r"@font-face \{.*?\}", "", picture, flags=re.DOTALL)  # it fetches no font from anywhere
    write_atomically(to, whole.encode())


def report(page: Path, to: Path, *, height: int) -> None:
    """A WebP of the top of a page."""
    with TemporaryDirectory() as name:
        picture = Path(name) / "page.png"
        target = [f"--user-data-dir={name}", f"--window-size=1200,{height}", f"--screenshot={picture}"]
        subprocess.run([*CHROMIUM, *target, page.as_uri()], check=True, capture_output=True, timeout=120)
        with Image.open(picture) as image:
            image.convert("RGB").resize((900, height * 900 // 1200)).save(to, quality=70, method=6)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "out", help="where the study lies")
    parser.add_argument("--to", type=Path, default=ROOT / "docs", help="the pictures' folder")
    parser.add_argument("--quick", action="store_true", help="a study of two trials of one epoch")
    args = parser.parse_args()
    if shutil.which(CHROMIUM[0]) is None:
        raise SystemExit("error: the report's picture needs Chromium")
    small = QUICK if args.quick else ()
    command = [sys.executable, "tune/search.py", "--out", str(args.out), *small]
    subprocess.run(command, cwd=ROOT, check=True)
    text = shown(command)  # again: what it says of the finished study, without the progress of hours
    terminal(text.replace(f"{ROOT}/", ""), args.to / "terminal.svg")
    report(
        args.out / ("quick" if args.quick else "textures") / "report.html",
        args.to / "report.webp",
        height=1150,
    )


if __name__ == "__main__":
    main()
