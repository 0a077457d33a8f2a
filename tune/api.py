"""Studies in Python and in notebooks: `from tune import Study, Space`."""

import os
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, SupportsIndex, overload

from prometar.config.settings import absolute_root
from prometar.errors import UserError
from prometar.io.files import resolved
from prometar.io.stores import masked
from tune.options import Options, options_of, plain, plan_of, run
from tune.reporting.html import Report, write_report
from tune.results.reader import Records, read_records
from tune.results.schema import TrialRecord

if TYPE_CHECKING:
    from pandas import DataFrame

    from tune.stages.budget import Budget

_OF_THE_FOLDER = ("out", "study", "command")
_COLUMNS = (
    "state", "objective", "base", "new", "epoch", "seconds", "reference", "origin", "started", "ended"
)  # fmt: skip


class TrialRecords(tuple[TrialRecord, ...]):
    """A study's trials that have ended, by number."""

    @overload
    def __getitem__(self, index: SupportsIndex, /) -> TrialRecord: ...

    @overload
    def __getitem__(self, index: slice, /) -> "TrialRecords": ...

    def __getitem__(self, index: SupportsIndex | slice, /) -> "TrialRecord | TrialRecords":
        if isinstance(index, slice):
            return TrialRecords(super().__getitem__(index))
        return super().__getitem__(index)

    def to_frame(self) -> "DataFrame":
        """A pandas table: a row a trial, with its figures and its settings by dotted name.

        Raises:
            UserError: pandas is not installed.
        """
        try:
            from pandas import DataFrame, Index
        except ImportError:
            raise UserError(
                "to_frame() makes a table of pandas, which is missing: pip install pandas"
            ) from None
        rows = [{name: getattr(trial, name) for name in _COLUMNS} | dict(trial.settings) for trial in self]
        settings = dict.fromkeys(key for trial in self for key in trial.settings)
        numbers = Index([trial.number for trial in self], name="number")
        return DataFrame(rows, index=numbers, columns=[*_COLUMNS, *settings])


class Study:
    """A study in a folder: to be run, gone on with, or read.

    What it has found is read from its folder each time, so a study that runs elsewhere can be watched.

    Args:
        folder: Where it lies, OUT/STUDY.
        options: Those of `tune/search.py` by name, with `_` for `-` (`tune.options.Options`); to
            read a study, none.
    Raises:
        UserError: no folder, an option that does not exist, or a value of another kind.

    Example:
        >>> study = Study("out/mine", dataset="textures", trials=40, settings={"data.shots": 4})
        >>> study.run().best  # doctest: +SKIP
    """

    __signature__: ClassVar[Signature]  # what notebooks complete

    def __init__(self, folder: str | Path, **options: Any) -> None:
        if not isinstance(folder, str | os.PathLike):
            raise UserError(f"a study has a folder of its own, OUT/STUDY: found {folder!r}")
        asked = [repr(str(folder)), *(f"{key}={_shown(value)!r}" for key, value in options.items())]
        self._asked = masked(", ".join(asked))
        self.folder = resolved(folder)
        if not self.folder.name:
            raise UserError(f"a study has a folder of its own, OUT/STUDY: found {folder}")
        if options.get("data_root"):
            options["data_root"] = absolute_root(str(options["data_root"]))  # of now, as the folder
        given = [name for name in _OF_THE_FOLDER if name in options]
        if given:
            raise UserError(f"Study takes no '{given[0]}': its first argument is the folder OUT/STUDY")
        place = {"out": self.folder.parent, "study": self.folder.name, "command": f"{self!r}.run()"}
        self.options = options_of({**options, **place})

    def run(self) -> "Study":
        """Run it, or go on where it was left: search, last round, final test and report. Returns itself.

        Raises:
            UserError: it is asked for wrongly, or was begun with other options.
            WorkError: another process runs it, or all its trials fail.
            KeyboardInterrupt: it was asked to stop; the same call goes on.
        """
        run(self.options)
        return self

    def plan(self) -> "Budget":
        """How much it trains at most: runs, epochs, steps. Nothing is run, and nothing is written.

        Raises:
            UserError: it is asked for wrongly, or a data set is not there.
        """
        return plan_of(self.options)[1]

    @property
    def records(self) -> Records:
        """All that its folder holds.

        Raises:
            UserError: the folder holds no study, or a damaged one.
        """
        return read_records(self.folder)

    @property
    def trials(self) -> TrialRecords:
        """The trials of the search that have ended."""
        return TrialRecords(self.records.trials)

    @property
    def best(self) -> TrialRecord | None:
        """The trial whose settings it ends with, or the best so far; None before any has finished."""
        return self.records.chosen

    def report(self) -> Report:
        """Write report.html anew from the records. Returns what a notebook shows of it, with its path."""
        records = self.records
        return Report(write_report(records, self.folder), records)

    def __repr__(self) -> str:
        return f"Study({self._asked})"


def _shown(value: object) -> object:
    """Without paths and arrays, whose names need an import."""
    value = plain(value)
    return [_shown(each) for each in value] if isinstance(value, list | tuple) else value


Study.__signature__ = Signature(
    [
        Parameter("folder", Parameter.POSITIONAL_OR_KEYWORD),
        *(each for name, each in signature(Options).parameters.items() if name not in _OF_THE_FOLDER),
    ]
)
