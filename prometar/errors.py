"""Errors that a user can cause or mend: each is one line that says what, where, and what to do."""


class UserError(Exception):
    """Wrong usage or missing input. Command-line tools print the message and exit with `exit_code`."""

    exit_code = 2


class WorkError(UserError):
    """The request was right, but the work failed (a broken image, a diverged run, a lost store)."""

    exit_code = 1


class StorageError(WorkError):
    """Nothing can be kept any more: a full disk, a lost store. No trial is to blame, so none has failed."""
