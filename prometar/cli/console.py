"""What every command-line entry shares: a user's mistake is one line on stderr, never a traceback."""

from __future__ import annotations

import sys

import typer

from prometar.errors import UserError

INTERRUPTED = 130


def run_cli(app: typer.Typer, args: list[str]) -> int:
    """Run `app`; returns 0, the exit status of its `UserError`, 2 for wrong options, 130 if interrupted."""
    command = typer.main.get_command(app)
    try:
        status = int(command.main(args, standalone_mode=False) or 0)
    except UserError as error:
        return _say(str(error), error.exit_code)
    except typer.Exit as error:
        status = error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except Exception as error:
        # Usage errors of the option parser: which module they live in depends on typer's version.
        format_message = getattr(error, "format_message", None)
        if format_message is None:
            raise
        return _say(format_message(), getattr(error, "exit_code", 2))
    if status == INTERRUPTED:  # some versions of typer return it
        return _say("interrupted; the same command goes on from here", INTERRUPTED)
    return status


def _say(message: str, status: int) -> int:
    printable = message.encode("utf-8", "backslashreplace").decode()
    print(f"error: {printable}", file=sys.stderr)
    return status
