"""Search hyperparameters of a prompt-learning method: `python tune/search.py --dataset dtd --data-root DIR`.

Without arguments a small study runs on the embedded dataset. Run the same command again to resume a study.
A larger --trials extends it.
"""

if __name__ == "__main__":
    import os
    import sys

    # Python puts tune/ first, where a user's config.py would be ours.
    _HERE = os.path.dirname(os.path.realpath(__file__))
    sys.path[:] = [place for place in sys.path if os.path.realpath(place or ".") != _HERE]

import sys
from collections.abc import Iterator
from inspect import Parameter, Signature
from typing import Annotated, Any

import typer

from prometar.cli.console import run_cli
from prometar.cli.options import PLAIN, Command
from tune.config import OPTIONS, StudyConfig

app = typer.Typer(help=__doc__, **PLAIN)


def _parameters() -> Iterator[Parameter]:
    """Parameters of the command for typer, generated from `OPTIONS`. `StudyConfig` validates the values."""
    for name, option in OPTIONS.items():
        kind = list[str] | None if option.several else str | None
        described = typer.Option(
            f"--{name}", help=option.description, rich_help_panel=option.group, metavar=option.metavar
        )
        yield Parameter(
            name.replace("-", "_"),
            Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[kind, described],
        )
    assign = typer.Option("--set", help="Any setting.", rich_help_panel="Training", metavar="KEY=VALUE")
    yield Parameter(
        "settings", Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[list[str] | None, assign]
    )
    plan = typer.Option("--plan", help="Check the study and show what it costs. Run nothing.")
    yield Parameter("plan", Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, plan])


@app.command(cls=Command)
def search(*, plan: bool = False, **options: Any) -> None:
    """Search settings, confirm the best, and test them."""
    config = StudyConfig.of(**options)
    from tune.study import Study  # loads torch and Ray, which --help does not need

    study = Study(config=config)
    if plan:
        print(study.describe_plan())
    else:
        study.run()


search.__signature__ = Signature(list(_parameters()))  # type: ignore[attr-defined]


def main(args: list[str] | None = None) -> int:
    """Run the command line. Return the exit status."""
    return run_cli(app, sys.argv[1:] if args is None else args)


if __name__ == "__main__":
    sys.exit(main())
