"""Options, exit status and errors of every command: a mistake is one line on stderr, never a traceback."""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, Any

import typer

from prometar.errors import PrometarError, first_line, is_of_accelerator, one_line

INTERRUPTED = 130
_OF_STUDIES = {"jinja2", "markupsafe", "optuna", "plotly", "ray", "scipy", "sqlalchemy"}
SHOW = "PROMETAR_TRACEBACK"
"""Environment variable. If it is 1, an unexpected error is shown with its traceback."""

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


def run_cli(app: typer.Typer, args: list[str]) -> int:
    """Run `app`. Return 0, the exit status of its error, 2 for wrong options, or 130 if interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # class names on a terminal that shows only ASCII
    try:
        with handled([signal.SIGTERM], signal.default_int_handler):  # batch systems send it
            status = int(typer.main.get_command(app).main(args, standalone_mode=False) or 0)
            sys.stdout.flush()
    except SystemExit as error:  # typer's answer to a closed pipe
        return int(error.code or 0)
    except typer.Exit as error:
        status = error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except Exception as error:
        status = _report(error)
        # A frame may hold a stream, which Ray must close before it ends itself.
        traceback.clear_frames(error.__traceback__)
        return status
    if status == INTERRUPTED:  # some versions of typer return it
        return _say("interrupted. Rerun the same command to resume.", INTERRUPTED)
    return status


@contextmanager
def handled(numbers: Iterable[int], handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Handle these signals in the block. Only the main thread may set handlers."""
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handler) for number in numbers} if main else {}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, signal.SIG_DFL if earlier is None else earlier)


def _report(error: Exception) -> int:
    """Print an error as one line. Return the exit status."""
    if isinstance(error, PrometarError):
        return _say(str(error), error.exit_code)
    if isinstance(error, BrokenPipeError):  # Python would write the rest at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if isinstance(error, OSError) and error.strerror:
        return _say(f"{error.strerror}{f': {error.filename}' if error.filename else ''}", 1)
    if isinstance(error, ModuleNotFoundError) and error.name in _OF_STUDIES:
        return _say(f"{error.name} is not installed. Install it with: pip install 'prometar[study]'", 1)
    if isinstance(error, MemoryError):
        return _say("out of memory", 1)
    if is_of_accelerator(error):
        return _say(first_line(error), 1)
    if hasattr(error, "format_message"):  # the option parser's, in a module that depends on typer's version
        message = str(error.format_message())
        if type(error).__name__ == "NoArgsIsHelpError":
            print(message, file=sys.stderr)
            return 2
        if "extra argument" in message:
            message += ". Quote values with spaces."
        return _say(message, getattr(error, "exit_code", 2))
    if os.environ.get(SHOW) == "1":
        traceback.print_exception(error)
    kind, problem = type(error).__name__, first_line(error)
    what = kind if problem == kind else f"{kind}: {problem}"
    return _say(f"unexpected {what}. Please report it with the output of {SHOW}=1.", 1)


def _say(message: str, status: int) -> int:
    print(f"error: {one_line(message)}", file=sys.stderr)
    return status


def format_duration(seconds: float) -> str:
    """Return a duration as m:ss, or as h:mm:ss if it is at least one hour.

    Example:
        >>> format_duration(80), format_duration(3661)
        ('1:20', '1:01:01')
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
