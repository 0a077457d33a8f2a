"""What every command-line entry shares: a user's mistake is one line on stderr, never a traceback."""

import os
import signal
import sys
import traceback
from unicodedata import category

import typer

from prometar.errors import UserError, first_line, is_of_accelerator
from prometar.interrupts import INTERRUPTED, MESSAGE, handled, raise_again

SHOW = "PROMETAR_TRACEBACK"
"""Environment variable: set to 1, an unexpected error shows where it came from."""


def run_cli(app: typer.Typer, args: list[str]) -> int:
    """Run `app`; returns 0, the exit status of its `UserError`, 2 for wrong options, 130 if interrupted.

    No error leaves it, and none keeps the frames that it passed: they may hold a stream, whose end needs Ray,
    until after Ray's own end.
    """
    _open_what_is_closed()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # class names, where only ASCII can be printed
    command = typer.main.get_command(app)
    try:
        raise_again()
        with handled([signal.SIGTERM], signal.default_int_handler):  # as batch systems send it
            status = int(command.main(args, standalone_mode=False) or 0)
            sys.stdout.flush()
    except UserError as error:
        traceback.clear_frames(error.__traceback__)
        return _say(str(error), error.exit_code)
    except SystemExit as error:  # typer's answer where whoever read our output has gone
        return int(error.code or 0)
    except typer.Exit as error:
        status = error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except Exception as error:
        # Usage errors of the option parser: which module they live in depends on typer's version.
        format_message = getattr(error, "format_message", None)
        if format_message is not None:
            message = format_message()
            if type(error).__name__ == "NoArgsIsHelpError":  # the help of a group of commands
                print(message, file=sys.stderr)
                return 2
            if "extra argument" in message:
                message += (
                    "; several values of one option stand in quotes, each behind its name (--option VALUE)"
                )
            return _say(message, getattr(error, "exit_code", 2))
        return _unforeseen(error)
    if status == INTERRUPTED:  # some versions of typer return it
        return _say(MESSAGE, INTERRUPTED)
    return status


def _open_what_is_closed() -> None:
    """Standard streams that whoever started this has closed (`>&-`) lead nowhere, here and in what we start.

    Else the next file that is opened, such as a study's database, would stand in their place.
    """
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(handle, True)
    os.close(handle)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))


def _unforeseen(error: Exception) -> int:
    """What no check has foreseen: the machine's refusals, and our own mistakes."""
    if isinstance(error, BrokenPipeError):
        # Whoever read our output has gone; Python would try to write the rest at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if isinstance(error, OSError) and error.strerror:
        return _say(f"{error.strerror}{f': {error.filename}' if error.filename else ''}", 1)
    if isinstance(error, MemoryError):
        return _say("out of memory", 1)
    if is_of_accelerator(error):
        return _say(first_line(error), 1)
    if os.environ.get(SHOW) == "1":
        traceback.print_exception(error)
    traceback.clear_frames(error.__traceback__)
    kind = type(error).__name__
    said = first_line(error)
    what = kind if said == kind else f"{kind}: {said}"
    return _say(f"unforeseen {what}; please report it, with what {SHOW}=1 shows", 1)


def _say(message: str, status: int) -> int:
    print(f"error: {printable(message)}", file=sys.stderr)
    return status


def printable(message: str) -> str:
    """One line in which a stranger's file name can neither move the cursor nor colour the terminal."""
    line = " ".join(message.encode("utf-8", "backslashreplace").decode().split("\n"))
    return "".join(c if category(c) != "Cc" else c.encode("unicode_escape").decode() for c in line)
