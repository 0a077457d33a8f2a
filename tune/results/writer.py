"""A study's folder: where its files lie, who works on it, and what it was asked."""

import os
import platform
import re
import shlex
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import uuid4

from prometar.config.settings import differences
from prometar.data.datasets.catalog import file_name
from prometar.data.splits.objective import objective_of
from prometar.environment import environment
from prometar.errors import UserError
from prometar.io.files import resolved
from prometar.io.lock import locked
from prometar.io.stores import masked
from tune.results.reader import read_study
from tune.results.schema import STUDY, AskedFor, StudyRecord
from tune.study_spec import StudySpec


class StudyFolder:
    """OUT/STUDY: study.yaml, study.db, learned.json, trials/, finals/, best.yaml, report.html."""

    def __init__(self, out: Path, name: str) -> None:
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise UserError(f"--study '{name}' is no folder name: use letters, digits, '-' and '_'")
        self.name = name
        self.path = resolved(out) / name
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

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the study alone. Folders made for it go again where an error leaves nothing in them.

        Raises:
            WorkError: another process holds it (says which), or the folder cannot be written.
        """
        with locked(self.path, f"the study {self.path}"):
            yield

    @property
    def begun(self) -> bool:
        """Whether it has been described: its trials may have begun."""
        return (self.path / "study.yaml").exists()

    @cached_property
    def key(self) -> str:
        """A name that no other study has."""
        return read_study(self.path).key if self.begun else uuid4().hex

    def check(self, identity: dict[str, Any]) -> None:
        """Compare with study.yaml, if there is one.

        Raises:
            UserError: the study was made with other settings; the message shows the difference.
        """
        if self.begun:
            self.compare(dict(read_study(self.path).identity), identity)

    def compare(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        """Refuse to go on with a study that was asked for something else.

        Raises:
            UserError: with the difference.
        """
        if changed := differences(old, new):
            raise UserError(
                f"the study {self.path} was made with other settings ({changed}): "
                "repeat them, or start another with --study NAME"
            )

    def describe(
        self,
        spec: StudySpec,
        identity: dict[str, Any],
        *,
        max_hours: float | None = None,
        command: str | None = None,
        forgiven: Collection[int] = (),
        seconds_searched: float = 0.0,
        gpus: str = "",
    ) -> None:
        """Write study.yaml (`StudyRecord`).

        Args:
            command: This process's own where none is given.
            gpus: The kinds that trials compute on; "" where they do so on CPUs.
        """
        now = {**environment(), **_machine(), **({"gpus": gpus} if gpus else {})}
        path, earlier = self.path / "study.yaml", list[dict[str, str]]()
        if self.begun:
            before = read_study(self.path)
            known = [*before.earlier_environments, before.environment]
            earlier = [dict(each) for each in known if each != now]
        record = StudyRecord(
            name=self.name,
            key=self.key,
            command=masked(command or _own_command(sys.argv)),
            asked=_asked(spec, max_hours),
            space=spec.space,
            identity=identity,
            config=spec.config.model_dump(mode="json"),
            environment=now,
            earlier_environments=tuple(earlier),
            forgiven=tuple(sorted(forgiven)),
            seconds_searched=seconds_searched,
        )
        STUDY.write(path, record)


def _own_command(words: Sequence[str]) -> str:
    """A process's words as they are typed again.

    Example:
        >>> _own_command(["/opt/bin/prometar", "search", "--seed", "3"]), _own_command(["tune/search.py"])
        ('prometar search --seed 3', 'python tune/search.py')
    """
    path = Path(words[0])
    if path.name == "__main__.py":
        return shlex.join(["python", "-m", path.parent.name, *words[1:]])
    if path.is_absolute() and not path.suffix:  # an installed command
        return shlex.join([path.name, *words[1:]])
    return shlex.join(["python", *words])


def _asked(spec: StudySpec, max_hours: float | None) -> AskedFor:
    config, objective = spec.config, objective_of(spec.objective)
    return AskedFor(
        datasets=spec.names,
        data_root=config.data.root,
        backbone=config.backbone.name,
        pretrained=config.backbone.pretrained,
        method=config.method,
        objective=spec.objective,
        leaks=objective.leaks,
        score=objective.title,
        goals=spec.goals,
        trials=spec.trials,
        max_hours=max_hours,
        epochs=spec.most_epochs,
        shots=config.data.shots,
        seed=spec.seed,
        seeds=spec.seeds,
        sampler=spec.sampler,
        pruner=spec.pruner,
        val_per_class=spec.val_per_class,
        top=spec.top,
        top_seeds=spec.fresh_seeds if spec.top else (),
        final_seeds=spec.final_seeds,
        matters=spec.matters,
        bounds=spec.bounds,
    )


def _machine() -> dict[str, str]:
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass  # not Linux: the general name stays
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"cpu": cpu, "cores": str(os.cpu_count()), "memory": f"{gib:.0f} GiB"}
