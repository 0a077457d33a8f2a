"""What a study in OUT/fake has finished, and what became of it after it was killed and resumed."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from tests.support.databases import open_study
from tests.support.driver import NAME, records


def num_epochs(out: Path) -> int:
    """How many epochs the trials and runs of OUT/fake have really run."""
    return sum(len(file.read_text().split()) for file in (out / NAME).glob("*/*/steps.log"))


class Witness:
    """Sees what the study in OUT/fake has finished, and tells what became of it.

    A record, or the result of a run of a comparison, is finished once its file is there.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self._seen: dict[str, bytes] = {}

    def look(self) -> int:
        """Remember what is finished now; what was seen before stays as it was. Returns how much that is."""
        for pattern in ("trials/*/record.json", "confirmation/*/result.json", "finals/*/result.json"):
            for file in (self._out / NAME).glob(pattern):
                self._seen.setdefault(str(file.relative_to(self._out)), file.read_bytes())
        return len(self._seen)

    def losses(self, expected: dict[str, Any]) -> dict[str, list[Any]]:
        """What went wrong in a study that is over, by kind; `expected` is an undisturbed one's `outcome`."""
        found = outcome(self._out)
        trials = open_study(f"sqlite:///{self._out / NAME / 'study.db'}", NAME).trials
        settings = Counter(json.dumps(t.params, sort_keys=True) for t in trials)
        return {
            "lost": [name for name, content in self._seen.items() if _content(self._out / name) != content],
            "drawn twice": [each for each, times in settings.items() if times > 1],
            "left running": [t.number for t in trials if not t.state.is_finished()],
            "failed": [t.number for t in trials if t.state is TrialState.FAIL],
            "differing": [key for key in sorted(found | expected) if found.get(key) != expected.get(key)],
        }


NO_LOSSES: dict[str, list[Any]] = {
    "lost": [],
    "drawn twice": [],
    "left running": [],
    "failed": [],
    "differing": [],
}


def _content(file: Path) -> bytes | None:
    return file.read_bytes() if file.exists() else None


def outcome(out: Path) -> dict[str, Any]:
    """All that a study has found, by file: its records and both comparisons, without times and notes."""
    found = {f"trial {record['number']}": record for record in records(out)}
    for name in ("confirmation.json", "finals.json"):
        file = out / NAME / name
        found[name] = json.loads(file.read_text()) if file.exists() else {}
    return {name: _found(content) for name, content in found.items()}


def _found(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _found(value) for key, value in content.items() if key not in _PASSING}
    return list(map(_found, content)) if isinstance(content, list) else content


_PASSING = ("started", "ended", "seconds", "notes", "cpus")
