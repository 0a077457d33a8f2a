"""Exit status and errors of every command: a user's mistake is one line on stderr, never a traceback."""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

import typer

from prometar.errors import PrometarError, first_line, is_of_accelerator, one_line

INTERRUPTED = 130
MESSAGE = "interrupted. Rerun the same command to resume."
_OF_STUDIES = {"jinja2", "markupsafe", "optuna", "plotly", "ray", "scipy", "sqlalchemy"}
SHOW = "PROMETAR_TRACEBACK"
"""Environment variable. If it is 1, an unexpected error is shown with its traceback."""


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
        return _say(MESSAGE, INTERRUPTED)
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
