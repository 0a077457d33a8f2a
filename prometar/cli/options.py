"""Options that several commands share."""

import os
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from prometar.errors import UserError

PLAIN: dict[str, Any] = {"add_completion": False, "pretty_exceptions_enable": False, "rich_markup_mode": None}
"""How every command-line application here is made: errors are one line, texts are plain."""


def at_home(given: str | None) -> str | None:
    """A folder whose leading ~ the shell has left, as in `--to=~/data`."""
    return given and os.path.expanduser(given)


RootOption = Annotated[
    str | None,
    typer.Option(
        "--data-root",
        help="The folder that holds the data sets' folders.",
        callback=lambda given: at_home(given) or None,  # "" is what a shell makes of a variable not set
    ),
]

TrustOption = Annotated[
    bool,
    typer.Option("--trust-parts", help="Import modules that the files name; otherwise they are refused."),
]


class ManyValues(typer.core.TyperCommand):
    """A command whose list options take several values, such as `--seeds 1 2 3`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        lists = {name for option in self.params if getattr(option, "multiple", False) for name in option.opts}
        return super().parse_args(ctx, repeat(args, lists))


class GroupedHelp(ManyValues):
    """A command whose `--help` has a section for each `rich_help_panel` of its options, as plain text."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        if not any(getattr(option, "rich_help_panel", None) for option in self.get_params(ctx)):
            return super().format_options(ctx, formatter)
        groups: dict[str, list[tuple[str, str]]] = {}
        for option in self.get_params(ctx):
            row = option.get_help_record(ctx)
            if row is not None:
                groups.setdefault(getattr(option, "rich_help_panel", None) or "Other", []).append(row)
        for title, rows in groups.items():
            with formatter.section(title):
                formatter.write_dl(rows)
        return None


def repeat(args: Sequence[str], lists: set[str]) -> list[str]:
    """The option's name before each of its values.

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


def number_or_auto(option: str, text: str) -> float | None:
    """A number, or None for `auto`.

    Raises:
        UserError: anything else.

    Example:
        >>> number_or_auto("--gpus-per-run", "0.25")
        0.25
    """
    if text == "auto":
        return None
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{option} '{text}': expected a number, or auto") from None
