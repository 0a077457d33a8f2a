"""A study's folder: who works on it, what it was asked, and one record a trial."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from optuna.trial import FrozenTrial, TrialState
from ray.tune import Callback

from prometar.data.datasets.catalog import file_name
from prometar.environment import environment
from prometar.errors import UserError
from prometar.io.files import write_atomically
from prometar.io.lock import locked
from prometar.io.yamltext import read_yaml
from tune.jobs.files import JobFiles
from tune.jobs.spec import Job
from tune.optimizer.ask_tell import ORIGIN, REASON, REFERENCE, RESULT, Asked, Memory, curve_of
from tune.optimizer.storage import without_password
from tune.stopping import Stopping
from tune.study_spec import StudySpec

EARLIER = "earlier_environments"
_KEYS = {"name", "command", "asked", "space", "config", "environment"}  # of study.yaml


class StudyFolder:
    """OUT/STUDY: study.yaml, study.db, trials/, finals/, best.yaml, report.html."""

    def __init__(self, out: Path, name: str) -> None:
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise UserError(f"--study '{name}' is no folder name: use letters, digits, '-' and '_'")
        self.name = name
        self.path = out.resolve() / name
        if any(c in str(self.path) for c in "?#%"):
            raise UserError(f"--out {out}: a folder's name with ?, # or % cannot hold the study's database")

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def storage(self) -> str:
        """The default storage: a SQLite file in the folder."""
        return f"sqlite:///{self.path / 'study.db'}"

    def trial(self, number: int) -> Path:
        """The folder of a trial of the search."""
        return self.path / "trials" / f"{number:04d}"

    def record(self, number: int) -> Path:
        """The record of a trial that has ended."""
        return self.trial(number) / "record.json"

    def rerun(self, number: int, seed: int) -> Path:
        """The folder of a run in the last round of trial `number`'s settings."""
        return self.path / "lastround" / f"trial-{number:04d}-seed{seed}"

    def final(self, number: int, dataset: str, seed: int) -> Path:
        """The folder of a final run of trial `number`'s settings."""
        return self.path / "finals" / f"trial-{number:04d}-{file_name(dataset)}-seed{seed}"

    def locked(self) -> AbstractContextManager[None]:
        """Hold the study alone.

        Raises:
            WorkError: another process holds it (says which), or the folder cannot be written.
        """
        return locked(self.path, f"the study {self.path}")

    def check(self, identity: dict[str, Any]) -> None:
        """Compare with study.yaml, if there is one.

        Raises:
            UserError: the study was made with other settings; the message shows the difference.
        """
        if (self.path / "study.yaml").exists():
            self.compare(read_study(self.path).get("identity", {}), identity)

    def describe(self, spec: StudySpec, identity: dict[str, Any]) -> None:
        """Write study.yaml."""
        path = self.path / "study.yaml"
        write_atomically(path, yaml.safe_dump(self._description(spec, identity), sort_keys=False).encode())

    def compare(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        """Refuse to go on with a study that was asked for something else.

        Raises:
            UserError: with the difference.
        """
        changed = [
            f"{key}: {old.get(key, 'absent')} then, {new.get(key, 'absent')} now"
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key)
        ]
        if changed:
            shown = "; ".join(changed[:6]) + (f"; and {len(changed) - 6} more" if len(changed) > 6 else "")
            raise UserError(
                f"the study {self.path} was made with other settings ({shown}): "
                "repeat them, or start another with --study NAME"
            )

    def _description(self, spec: StudySpec, identity: dict[str, Any]) -> dict[str, Any]:
        config = spec.config
        return {
            "name": self.name,
            "command": without_password(shlex.join(["python", *sys.argv])),
            "asked": {
                "dataset": " + ".join(spec.names),
                "datasets": list(spec.names),
                "data_root": config.data.root,
                "backbone": config.backbone.name,
                "pretrained": config.backbone.pretrained,
                "method": config.method,
                "objective": spec.objective,
                "trials": spec.trials,
                "epochs": config.train.epochs,
                "shots": config.data.shots,
                "seed": spec.seed,
                "seeds": list(spec.seeds),
                "folds": spec.folds,
                "goals": list(spec.goals),
                "sampler": spec.sampler,
                "pruner": spec.pruner,
                "val_per_class": spec.val_per_class,
                "top": spec.top,
                "top_seeds": list(spec.fresh_seeds if spec.top else ()),
                "final_seeds": list(spec.final_seeds),
            },
            "space": {
                "name": spec.space.name,
                "ranges": {k: r.model_dump(mode="json") for k, r in spec.space.ranges.items()},
            },
            "identity": identity,
            "config": config.model_dump(mode="json"),
            **self._environments(),
        }

    def _environments(self) -> dict[str, Any]:
        """Where this command runs, and where earlier ones did if that differs."""
        now = {**environment(), **_machine()}
        before = read_study(self.path) if (self.path / "study.yaml").exists() else {}
        known = [*before.get(EARLIER, []), before.get("environment", now)]
        return {"environment": now, EARLIER: [each for each in known if each != now]}

    def write_record(self, trial: FrozenTrial) -> None:
        """trials/NNNN/record.json of one trial."""
        write_atomically(self.record(trial.number), json.dumps(record_of(trial), indent=1).encode())


def read_study(path: Path) -> dict[str, Any]:
    """study.yaml of a study's folder.

    Raises:
        UserError: the folder holds no study, or its study.yaml is damaged.
    """
    file = path / "study.yaml"
    if not file.is_file():
        raise UserError(f"{path} holds no study: pass a folder OUT/STUDY that search.py wrote")
    study = read_yaml(file)
    if not isinstance(study, dict):
        raise UserError(f"{file} describes no study: restore it, or start another study")
    missing = sorted(_KEYS - set(study))
    if missing:
        raise UserError(f"{file} is damaged: it has no {', '.join(missing)}")
    return study


def record_of(trial: FrozenTrial) -> dict[str, Any]:
    """A trial as the record file holds it."""
    last = trial.user_attrs.get(RESULT, {})
    curve = curve_of(trial)
    reference = bool(trial.user_attrs.get(REFERENCE, False))
    return {
        "number": trial.number,
        "state": trial.state.name,
        "reference": reference,
        "origin": trial.user_attrs.get(ORIGIN, "released" if reference else "sampled"),
        "settings": dict(trial.params),
        "objective": last.get("objective"),
        "base": last.get("base"),
        "new": last.get("new"),
        "epoch": last.get("epoch", 0),
        "epochs": [{"epoch": epoch, "objective": curve[epoch]} for epoch in sorted(curve)],
        "runs": last.get("runs", []),
        "seconds": last.get("seconds", 0.0),
        "cpus": last.get("cpus", 0.0),
        "gpus": last.get("gpus", 0.0),
        "notes": last.get("notes", []),
        "reason": str(trial.user_attrs.get(REASON, "")) if trial.state is TrialState.FAIL else "",
        "started": _iso(trial.datetime_start),
        "ended": _iso(trial.datetime_complete),
    }


class RecordKeeper(Callback):
    """Writes a trial's record when it ends, and how long the search has taken, also for a killed study."""

    def __init__(
        self, folder: StudyFolder, memory: Memory, stopping: Stopping, job_of: Callable[[Asked], Job]
    ) -> None:
        self._folder, self._memory, self._stopping, self._job_of = folder, memory, stopping, job_of
        self._num_written = 0
        for trial in memory.ended():
            if not folder.record(trial.number).exists():  # killed between a trial's end and its record
                self._write(trial)
            self._num_written += 1

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_step_end(self, iteration: int, trials: list, **info: Any) -> None:
        self.catch_up()

    def catch_up(self) -> None:
        """Write the records of the trials that have ended since."""
        fresh = self._memory.ended(self._num_written)
        for trial in fresh:
            self._write(trial)
            self._num_written += 1
        if fresh:
            self.clock()

    def clock(self) -> None:
        """Keep how long the search has taken."""
        self._memory.searched(self._stopping.elapsed)

    def _write(self, trial: FrozenTrial) -> None:
        self._folder.write_record(trial)
        # A trial that has been told needs no state any more, and states may be large.
        with suppress(UserError):  # of settings that no run takes together
            JobFiles(self._job_of(Asked(trial.number, dict(trial.params)))).drop_states()


def num_ended(memory: Memory) -> dict[str, int]:
    """Ended trials by state."""
    states = [t.state for t in memory.trials()]
    return {s.name: states.count(s) for s in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)}


def _iso(moment: datetime | None) -> str | None:
    return moment.isoformat(timespec="seconds") if moment else None


def _machine() -> dict[str, str]:
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass  # not Linux: the general name stays
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"cpu": cpu, "cores": str(os.cpu_count()), "memory": f"{gib:.0f} GiB"}
