"""Checks that a study in OUT/fake, which was killed and resumed, has lost nothing that it had finished."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from tests.support.databases import open_study
from tests.support.driver import NAME, records


def num_epochs(out: Path) -> int:
    """Return how many epochs the trials and runs of OUT/fake have run. Repeated epochs count each time."""
    logs = (out / NAME).glob("*/*/steps.log")
    return sum(len(log.read_text().split()) for log in logs)


class Witness:
    """Observer of the finished results of the study in OUT/fake.

    A trial is finished if its record.json exists. A run of the confirmation or of the final test is finished
    if its result.json exists.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self._seen: dict[str, bytes] = {}  # first content of each file, by path

    def look(self) -> int:
        """Remember the results that have been finished since the last call. Return the number of all."""
        for pattern in ("trials/*/record.json", "confirmation/*/result.json", "finals/*/result.json"):
            for file in (self._out / NAME).glob(pattern):
                self._seen.setdefault(str(file.relative_to(self._out)), file.read_bytes())
        return len(self._seen)

    def losses(self, expected: dict[str, Any]) -> dict[str, list[Any]]:
        """Return the losses of a study that has finished, by kind.

        Args:
            expected: The `outcome` of the same study without interruptions.

        Returns:
            "lost": Files that no longer have the content of the result that was seen first.
            "drawn twice": Settings of more than one trial.
            "left running": Numbers of trials that did not end.
            "failed": Numbers of trials that failed.
            "differing": Names of results that differ from `expected`.
        """
        found = outcome(self._out)
        trials = open_study(f"sqlite:///{self._out / NAME / 'study.db'}", NAME).trials
        num_drawn = Counter(json.dumps(trial.params, sort_keys=True) for trial in trials)
        lost = [name for name, content in self._seen.items() if _content(self._out / name) != content]
        differing = [name for name in sorted(found | expected) if found.get(name) != expected.get(name)]
        return {
            "lost": lost,
            "drawn twice": [settings for settings, times in num_drawn.items() if times > 1],
            "left running": [trial.number for trial in trials if not trial.state.is_finished()],
            "failed": [trial.number for trial in trials if trial.state is TrialState.FAIL],
            "differing": differing,
        }


NO_LOSSES: dict[str, list[Any]] = {
    "lost": [],
    "drawn twice": [],
    "left running": [],
    "failed": [],
    "differing": [],
}
"""`Witness.losses` of a study that has lost nothing."""


def _content(file: Path) -> bytes | None:
    """Return the content of a file, or None if it does not exist."""
    return file.read_bytes() if file.exists() else None


def outcome(out: Path) -> dict[str, Any]:
    """Return the results of a study in OUT/fake: trials, confirmation and final test.

    Times, notes and allocated CPUs are left out, because interruptions may change them.
    """
    found = {f"trial {record['number']}": record for record in records(out)}
    for name in ("confirmation.json", "finals.json"):
        file = out / NAME / name
        found[name] = json.loads(file.read_text()) if file.exists() else {}
    return {name: _without_circumstances(content) for name, content in found.items()}


_CIRCUMSTANCES = ("started", "ended", "seconds", "notes", "cpus")
"""Keys of records that interruptions may change."""


def _without_circumstances(content: Any) -> Any:
    """Return records without the keys of `_CIRCUMSTANCES`."""
    if isinstance(content, dict):
        kept = {key: value for key, value in content.items() if key not in _CIRCUMSTANCES}
        return {key: _without_circumstances(value) for key, value in kept.items()}
    if isinstance(content, list):
        return [_without_circumstances(each) for each in content]
    return content
