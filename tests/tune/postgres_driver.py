"""A fake study over any storage, as a command: `python -m tests.tune.postgres_driver OUT TRIALS URL`."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from prometar.console import run_cli
from tests.tune.driver import run_fake, small_request

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def search(out: Path, trials: int, storage: str) -> None:
    """Run or go on with OUT/fake."""
    _, text = run_fake(out, small_request(trials=trials), storage=storage)
    print(text)


if __name__ == "__main__":
    sys.exit(run_cli(app, sys.argv[1:]))
