"""Options that several commands share."""

import os
from collections.abc import Sequence
from typing import Annotated, Any

import typer

PLAIN: dict[str, Any] = {"add_completion": False, "pretty_exceptions_enable": False, "rich_markup_mode": None}
"""Options of every `typer.Typer`: errors of one line, plain texts."""


def at_home(given: str | None) -> str | None:
    """Expand a leading ~ that the shell left, as in `--to=~/data`."""
    return given and os.path.expanduser(given)


RootOption = Annotated[
    str | None,
    typer.Option(
        "--data-root",
        help="Folder that contains the datasets' folders [PROMETAR_DATA, or data].",
        callback=lambda given: at_home(given) or None,  # "": an unset variable of a shell
    ),
]

TrustOption = Annotated[
    bool,
    typer.Option("--trust-parts", help="Import modules that the files name [rejected]."),
]


class Command(typer.core.TyperCommand):
    """Command whose list options take several values, such as `--seeds 1 2 3`.

    Its plain `--help` has a section per `rich_help_panel` of its options.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        lists = {name for option in self.params if getattr(option, "multiple", False) for name in option.opts}
        return super().parse_args(ctx, repeat(args, lists))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for option in self.get_params(ctx):
            if row := option.get_help_record(ctx):
                groups.setdefault(getattr(option, "rich_help_panel", None) or "Options", []).append(row)
        for title, rows in groups.items():
            with formatter.section(title):
                formatter.write_dl(rows)


def repeat(args: Sequence[str], lists: set[str]) -> list[str]:
    """Repeat an option's name before each of its values.

    Example:
        >>> repeat(["--seeds", "1", "2", "--out", "x"], {"--seeds"})
        ['--seeds', '1', '--seeds', '2', '--out', 'x']
    """
    given: list[str] = []
    current = None
    for arg in args:
        if arg.startswith("--"):
            current = arg if arg in lists else None
        elif current is not None and given[-1] != current:
            given.append(current)
        given.append(arg)
    return given
