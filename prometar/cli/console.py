"""Options, exit statuses and error messages of all commands. Errors are printed as one line on stderr."""

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
from pydantic import ValidationError

from prometar.config.sections import SECTIONS, settings_of
from prometar.errors import PrometarError, first_line, is_accelerator_error, one_line
from prometar.io.strict_model import describe_problem

INTERRUPTED = 130  # exit status
_STUDY_PACKAGES = {"jinja2", "markupsafe", "optuna", "plotly", "ray", "scipy", "sqlalchemy"}
"""Packages that the extra `study` installs. `prometar train` does not need them."""
TRACEBACK_VARIABLE = "PROMETAR_TRACEBACK"
"""Environment variable. If it is 1, the traceback of an unexpected error is shown."""

TYPER_OPTIONS: dict[str, Any] = {
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,
}
"""Arguments of every `typer.Typer`, for one-line errors and plain-text help."""


def expand_home(path: str | None) -> str | None:
    """Expand a leading ~, which shells do not expand in `--to=~/data`. None and "" stay as they are."""
    if not path:
        return path
    return os.path.expanduser(path)


def expand_root(path: str | None) -> str | None:
    """Expand a leading ~. Return None for "", which an unset shell variable passes."""
    if path == "":
        return None
    return expand_home(path)


RootOption = Annotated[
    str | None,
    typer.Option(
        "--data-root",
        help="Folder that contains the datasets. Default for benchmarks: $PROMETAR_DATA, or data.",
        callback=expand_root,
    ),
]

TrustOption = Annotated[
    bool,
    typer.Option("--trust-code", help="Import custom components of the run or file. Default: refuse them."),
]

PredictionsOption = Annotated[
    bool, typer.Option("--predictions", help="Write the predictions for each test image (Parquet).")
]


class Command(typer.core.TyperCommand):
    """Command whose list options accept several values, such as `--seeds 1 2 3`.

    `--help` groups the options by their `rich_help_panel`. Options without one are in the group "Options".
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        repeatable = [option for option in self.params if getattr(option, "multiple", False)]
        list_options = {name for option in repeatable for name in option.opts}
        return super().parse_args(ctx, repeat_option_names(args, list_options))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for option in self.get_params(ctx):
            row = option.get_help_record(ctx)
            if row is None:  # the option is hidden
                continue
            group = getattr(option, "rich_help_panel", None)
            if group is None:
                group = "Options"
            groups.setdefault(group, []).append(row)
        for title, rows in groups.items():
            with formatter.section(title):
                formatter.write_dl(rows)


def repeat_option_names(args: Sequence[str], list_options: set[str]) -> list[str]:
    """Repeat the name of a list option before each of its values, as click requires.

    Example:
        >>> repeat_option_names(["--seeds", "1", "2", "--out", "x"], {"--seeds"})
        ['--seeds', '1', '--seeds', '2', '--out', 'x']
    """
    repeated: list[str] = []
    current = None
    for arg in args:
        if arg.startswith("--"):
            current = arg if arg in list_options else None
        elif current is not None and repeated[-1] != current:
            repeated.append(current)
        repeated.append(arg)
    return repeated


def run_cli(app: typer.Typer, args: list[str]) -> int:
    """Run `app`. Return its exit status: 0 (success), 1 (failure), 2 (wrong usage) or 130 (interrupted)."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # not every terminal can print all class names
    try:
        with handle_signals([signal.SIGTERM], signal.default_int_handler):  # batch systems send SIGTERM
            command = typer.main.get_command(app)
            returned = command.main(args, standalone_mode=False)  # None or a status
            status = 0 if returned is None else int(returned)
            print(end="", flush=True)  # unlike sys.stdout.flush(), accepts a closed stdout
    except SystemExit as error:  # raised by typer if the reader of stdout has closed the pipe
        return int(error.code or 0)
    except typer.Exit as error:
        status = error.exit_code
    except (KeyboardInterrupt, typer.Abort) as error:
        status = INTERRUPTED
        # Typer also aborts after an EOFError, which libraries raise for truncated files.
        if isinstance(error.__cause__, EOFError):
            status = _print_error(error.__cause__)
    except Exception as error:
        status = _print_error(error)
        # Frames may reference streams of Ray Data, which must be closed before Ray shuts down.
        traceback.clear_frames(error.__traceback__)
    if status == INTERRUPTED:  # some versions of typer return 130 instead of raising
        return _fail("Interrupted. Rerun the same command to resume.", INTERRUPTED)
    return status


@contextmanager
def handle_signals(signals: Iterable[int], handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Handle signals in a `with` block. Do nothing in threads other than the main one."""
    previous: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in signals:
            previous[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in previous.items():
            # `signal.signal` returned None if Python code had not set the handler, which cannot be restored.
            signal.signal(number, signal.SIG_DFL if old is None else old)


def _print_error(error: Exception) -> int:
    """Print the message of an error, and return the exit status."""
    if isinstance(error, PrometarError):
        return _fail(str(error), error.exit_code)
    if isinstance(error, BrokenPipeError):
        # At exit, Python flushes stdout, which would fail again. Let it flush to /dev/null.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if isinstance(error, OSError) and error.strerror:
        message = error.strerror
        if error.filename:
            message += f": {error.filename}"
        return _fail(message, 1)
    if isinstance(error, ModuleNotFoundError) and error.name in _STUDY_PACKAGES:
        return _fail(f"{error.name} is not installed. Run pip install -e '.[study]'.", 1)
    if isinstance(error, MemoryError):
        return _fail("Out of memory.", 1)
    if is_accelerator_error(error):
        return _fail(first_line(error), 1)
    if hasattr(error, "format_message"):  # the class of such errors depends on the version of typer
        return _print_usage_error(error)
    if os.environ.get(TRACEBACK_VARIABLE) == "1":
        traceback.print_exception(error)
    name = type(error).__name__
    message = first_line(error)
    # `first_line` returns the name if the message is empty.
    described = name if message == name else f"{name}: {message}"
    return _fail(f"Unexpected {described}. Please report it with the traceback ({TRACEBACK_VARIABLE}=1).", 1)


def _print_usage_error(error: Any) -> int:
    """Print the message of an error of the option parser, and return the exit status."""
    message = _describe_usage_error(error)
    if type(error).__name__ == "NoArgsIsHelpError":  # the message is the help text, which has many lines
        print(message, file=sys.stderr)
        return 2
    if "extra argument" in message:
        message += f". {_advice_on_arguments(error)}"
    advice = _advice_on_option(error)
    if advice:
        message = f"{message.rstrip('.')}. {advice}"
    return _fail(message, getattr(error, "exit_code", 2))


def _describe_usage_error(error: Any) -> str:
    """Return the message of the option parser. Some versions of typer validate options with pydantic."""
    cause = error.__cause__
    if not isinstance(cause, ValidationError):
        return str(error.format_message())
    param = error.param
    name = param.opts[0] if param.opts[0].startswith("-") else param.human_readable_name
    problem = describe_problem(cause.errors()[0], name)
    return f"{problem.rstrip('.')}."


def _advice_on_arguments(error: Exception) -> str:
    """Return how to fix an argument that a command does not accept."""
    if "--dataset" in _options_of(error):
        return "Options need their names, such as --dataset NAME. Quote values that contain spaces."
    return "Quote values that contain spaces."


def _advice_on_option(error: Exception) -> str:
    """Return how to change a setting that was given as an unknown option, such as `--lr 0.1`.

    Return "" if the option is known, if no setting has its name, or if the command has no option `--set`.
    """
    option = getattr(error, "option_name", "")
    known_options = _options_of(error)
    if "--set" not in known_options or option in known_options:
        return ""
    name = option.removeprefix("--").replace("-", "_")
    fixes = [f"--set {section}.{name}=VALUE" for section in SECTIONS if name in settings_of(section)]
    return f"Use {' or '.join(fixes)}." if fixes else ""


def _options_of(error: Exception) -> set[str]:
    """Return the options of the command that raised a usage error, such as {"--set", "--out"}."""
    context = getattr(error, "ctx", None)
    command = getattr(context, "command", None)
    options: set[str] = set()
    for param in getattr(command, "params", ()):
        options.update(param.opts)
    return options


def _fail(message: str, status: int) -> int:
    """Print an error message. Return `status`."""
    print(f"error: {one_line(message)}", file=sys.stderr)
    return status


def format_count(number: float, noun: str) -> str:
    """Return a number and a noun. The noun is singular for 1 and for fractions of 1.

    Example:
        >>> format_count(0.5, "hour"), format_count(1200.0, "trial")
        ('0.5 hour', '1,200 trials')
    """
    # Unlike "f", the format "g" drops a fraction of 0. With 12 digits, "g" uses no exponent.
    rounded = f"{round(number, 2):,.12g}"
    is_singular = 0 < number <= 1
    return f"{rounded} {noun}" if is_singular else f"{rounded} {noun}s"


def format_duration(seconds: float) -> str:
    """Return a duration as m:ss, or as h:mm:ss if it is at least one hour.

    Example:
        >>> format_duration(80), format_duration(3661)
        ('1:20', '1:01:01')
    """
    total_minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(total_minutes, 60)
    if hours > 0:
        return f"{hours}:{minutes:02d}:{rest:02d}"
    return f"{minutes}:{rest:02d}"
