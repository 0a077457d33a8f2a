"""Errors that a user can cause or fix: one line each, the problem and the fix."""

import re

_ADVICE = re.compile(
    r"Search for `\w+' in http|\w+ kernel errors might be|For debugging consider passing|"
    "Compile with `TORCH_USE_|Device-side assert"
)


class PrometarError(Exception):
    """Base class. Commands print the message and exit with `exit_code`."""

    exit_code = 1


class UserError(PrometarError):
    """Wrong usage or missing input."""

    exit_code = 2


class WorkError(PrometarError):
    """Failed work: a corrupt image, a diverged run."""


class StorageError(PrometarError):
    """Storage that cannot be used: a full disk, an unreachable store. No run is to blame."""


def first_line(error: BaseException) -> str:
    """Return the message of another library's error in one line of at most 160 characters."""
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__


def last_line(text: str) -> str:
    """Return the last line of a traceback without the advice that torch appends to GPU errors.

    Example:
        >>> last_line("Traceback:\\nAcceleratorError: CUDA error: some\\nFor debugging consider passing A=1")
        'AcceleratorError: CUDA error: some'
    """
    lines = [line.strip() for line in text.splitlines()]
    return next((line for line in reversed(lines) if line and not _ADVICE.match(line)), "")


def is_of_accelerator(error: BaseException) -> bool:
    """Return True for errors of a GPU: out of memory, in use, or failed. Torch need not be imported."""
    kind, libraries = type(error), ("CUDA error: ", "cuDNN error: ")
    of_torch = kind.__module__ == "torch" and kind.__name__ in {"AcceleratorError", "OutOfMemoryError"}
    return of_torch or (isinstance(error, RuntimeError) and str(error).startswith(libraries))


def one_line(text: str) -> str:
    """Return text in one line in which names of files or classes cannot control the terminal.

    Example:
        >>> print(one_line("a\\nb\\x1b[2J"))
        a b\\x1b[2J
    """
    line = text.replace("\n", " ")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
