"""Errors that a user can cause or mend: each is one line that says what, where, and what to do."""

import re

_ADVICE = re.compile(
    r"Search for `\w+' in http|\w+ kernel errors might be|For debugging consider passing|"
    "Compile with `TORCH_USE_|Device-side assert"
)


class UserError(Exception):
    """Wrong usage or missing input. Command-line tools print the message and exit with `exit_code`."""

    exit_code = 2


class WorkError(UserError):
    """The request was right, but the work failed (a broken image, a diverged run, a lost store)."""

    exit_code = 1


class StorageError(WorkError):
    """Nothing can be kept or read any more: a full disk, a lost store. No trial has failed by that."""


def first_line(error: BaseException) -> str:
    """What an error of another library says, in one line of at most 160 characters."""
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__


def last_line(text: str) -> str:
    """What a traceback ends with, but for the advice that torch puts behind every error of a GPU.

    Example:
        >>> last_line("Traceback:\\nAcceleratorError: CUDA error: some\\nFor debugging consider passing A=1")
        'AcceleratorError: CUDA error: some'
    """
    lines = [line.strip() for line in text.splitlines()]
    return next((line for line in reversed(lines) if line and not _ADVICE.match(line)), "")


def is_of_accelerator(error: BaseException) -> bool:
    """Whether torch tells of a GPU that has no memory left, is another's, or has failed.

    After some of these all that the process asks of its GPU fails. Torch need not be loaded.
    """
    kind, libraries = type(error), ("CUDA error: ", "cuDNN error: ")
    of_torch = kind.__module__ == "torch" and kind.__name__ in {"AcceleratorError", "OutOfMemoryError"}
    return of_torch or (isinstance(error, RuntimeError) and str(error).startswith(libraries))


def one_line(text: str) -> str:
    """A message that no name in it (of a class, of a file) can break or colour.

    Example:
        >>> one_line("a\\nb\\x1b[2J")
        'a b [2J'
    """
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
