"""What is known of a study's trials, kept from trial to trial: none has to look through all others."""

from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState

REPEAT = "repeat_of"  # user attribute of a trial that counts for nothing: its settings are an earlier one's


class Tally:
    """Counts of a study's trials, and which settings have been tried.

    Args:
        trials: What the storage holds at the beginning.
        names: The space's settings.
        forgiven: Numbers of failed trials that do not count; their settings may be tried again.
        again: Numbers of failed trials that count, and whose settings are run again.

    Attributes:
        created: Trials in the storage, repeats among them.
        begun: Those that count towards the number asked for.
        ended: Numbers of the trials that have ended: by number at the beginning, then as they end.
    """

    def __init__(
        self,
        trials: Sequence[FrozenTrial],
        names: Sequence[str],
        forgiven: Collection[int],
        again: Collection[int],
    ) -> None:
        self._names = names
        counted = [t for t in trials if REPEAT not in t.user_attrs]
        self.created = len(trials)
        self.begun = len({t.number for t in counted} - set(forgiven))
        self.ended = [t.number for t in counted if t.state.is_finished()]
        self._last = max((t.number for t in counted), default=-1)
        self._first: dict[tuple[Hashable, ...], int] = {}  # by the values of settings
        excused = {*forgiven, *again}
        for trial in counted:
            if trial.state is not TrialState.FAIL or trial.number not in excused:
                self.first(trial.number, trial.params)
        self._ended_before = len(self.ended)
        self._reasons: list[str] = []

    def first(self, number: int, settings: Mapping[str, Any]) -> int:
        """Take in a trial's settings; the number of the earliest trial that has them."""
        first = min(number, self._first.setdefault(self._values(settings), number))
        if first == number:
            self._last = max(self._last, number)
        return first

    @property
    def repeats(self) -> int:
        """How many of the latest draws only repeated settings."""
        return self.created - 1 - self._last

    def tried(self, settings: Mapping[str, Any]) -> bool:
        """Whether a trial has these settings."""
        return self._values(settings) in self._first

    def _values(self, settings: Mapping[str, Any]) -> tuple[Hashable, ...]:
        return tuple(settings.get(name) for name in self._names)

    def end(self, number: int, *, failed: str | None = None) -> None:
        """A trial has ended. Where it has failed, its settings would fail again with the same seeds."""
        self.ended.append(number)
        if failed is not None:
            self._reasons.append(failed)

    def hopeless(self, most: int) -> str | None:
        """The last reason, where `most` trials have failed and none has ended otherwise.

        Those that had ended before this process do not count: their cause may have been mended.
        """
        failed = len(self._reasons)
        only_failed = failed == len(self.ended) - self._ended_before
        return self._reasons[-1] if failed >= most and only_failed else None
