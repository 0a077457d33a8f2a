"""Runs on the embedded benchmark as records: one JSON file a run; what has one is not run again."""

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

import torch
from common import DEVELOPMENT, machine, require_development

from prometar.analysis.alignment import Alignment, of_run
from prometar.clip.frozen_features import frozen_text
from prometar.clip.openclip import FOREIGN_NAMES, tokenize
from prometar.config.settings import Config, DataConfig, configure
from prometar.data.datasets.dataset import Source
from prometar.data.streaming.plan import Plan
from prometar.data.streaming.stream import Batch, stream_local
from prometar.errors import WorkError
from prometar.io.files import write_atomically
from prometar.metrics import t_interval
from prometar.step.prompted_clip import Model, build_model, prompt_texts
from prometar.training.drift import TEMPLATE, Foreign, foreign_names
from prometar.training.run import Run, build_run
from prometar.training.session import Session

SCORES = ("base", "new", "H")

Record = dict[str, Any]
"""`base`, `new`, `H` in percent (None, and a `reason`, if it failed), `alignment`, and what made them."""


@dataclass(frozen=True)
class Wanted:
    """A run: the name of its record, and all that decides its figures.

    `signals`: measures what else is to be known of the trained prompts, by name (None: nothing).
    """

    name: str
    config: Config
    objective: str = "final"
    signals: Callable[[Session], dict[str, float]] | None = None


def on_mini(
    settings: Mapping[str, Any], dataset: str, *, epochs: int, seed: int, root: str | None = None
) -> Config:
    """ProMetaR's released settings but for these, on a data set."""
    where = {"data.name": dataset, "data.root": root, "backbone.name": "mini"}
    return configure("prometar", {**settings, **where, "train.epochs": epochs, "train.seed": seed})


def run_options(parser: argparse.ArgumentParser, *, out: str) -> None:
    """Where records lie, and how many runs go on at a time."""
    parser.add_argument("--out", type=Path, default=Path(out), help="the records' folder")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, of one thread each")


def run_all(wanted: Sequence[Wanted], out: Path, *, jobs: int, claim: bool = False) -> dict[str, Record]:
    """Records by name, in the order wanted; runs what is not there yet, `jobs` processes of one thread each.

    Raises:
        SystemExit: a record in `out` was made with other settings; a data set that only `claim` opens.
    """
    require_development((run.config.data.name for run in wanted), claim=claim)
    records = read_all(wanted, out)
    todo = [run for run in wanted if run.name not in records]
    if todo:
        print(f"{len(wanted)} runs, {len(records)} are done", flush=True)
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(jobs, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            running = [pool.submit(_run_and_write, run, out) for run in todo]
            for number, done in enumerate(as_completed(running), 1):
                print(f"{number} of {len(todo)}: {_line(done.result())}", flush=True)
    return read_all(wanted, out)


def read_all(wanted: Iterable[Wanted], out: Path) -> dict[str, Record]:
    """The records that are there; see `run_all`."""
    found = {}
    for run in wanted:
        path = out / f"{run.name}.json"
        if path.exists():
            record = json.loads(path.read_text("utf-8"))
            _require_same(path, record, run)
            found[run.name] = record
    return found


def _require_same(path: Path, record: Record, run: Wanted) -> None:
    old = {"objective": record["objective"], **Config.model_validate(record["config"]).flat()}
    new = {"objective": run.objective, **run.config.flat()}
    changed = [f"{key}: {old[key]} then, {new[key]} now" for key in new if old[key] != new[key]]
    if changed:
        raise SystemExit(
            f"error: {path} was made with other settings ({'; '.join(changed)}): use another --out"
        )


def _run_and_write(run: Wanted, out: Path) -> Record:
    record = _run(run)
    write_atomically(out / f"{run.name}.json", (json.dumps(record, indent=1) + "\n").encode())
    return record


def _run(wanted: Wanted) -> Record:
    """Train and score once, at the end."""
    started = time.perf_counter()
    run = replace(build_run(wanted.config, wanted.objective), every_epoch=False)
    scores: dict[str, Any] = {"base": None, "new": None, "objective": None}
    reason, signals = "", dict[str, float]()
    with TemporaryDirectory() as name:
        folder = Path(name)
        watch = None if wanted.signals else Alignment(folder)

        def stream(plan: Plan, step: int) -> Iterator[Batch]:
            return stream_local(plan, kept(session.run.dataset.source), start_step=step)

        session = Session(run, folder, stream, watch)
        try:
            while not session.finished:
                session.epoch()
            scores = session.history[-1]
            if wanted.signals:
                signals = wanted.signals(session)
        except WorkError as error:  # a diverged run is a result too
            reason = str(error)
        alignment = of_run(folder)
    return {
        "name": wanted.name,
        "objective": wanted.objective,
        "base": scores["base"],
        "new": scores["new"],
        "H": scores["objective"],
        "alignment": None if alignment is None else alignment.mean,
        "signals": signals,
        "reason": reason,
        "seconds": round(time.perf_counter() - started, 1),
        "config": wanted.config.model_dump(mode="json"),
        "machine": machine(),
    }


def nothing_else(session: Session) -> dict[str, float]:
    """Nothing but the test: no alignment is measured along the run either."""
    return {}


def seen_by_a_search(session: Session) -> dict[str, float]:
    """What drift says, also on ImageNet's names (`imagenet ...`), and `on_other_sets`."""
    config = session.run.config
    judge = build_run(config, "drift")
    session.run = judge  # the same prompts, on other images
    found = session.score()
    session.run = replace(judge, foreign=on_words_of_imagenet(judge))
    found |= {f"imagenet {name}": value for name, value in session.score().items()}
    return found | on_other_sets(session, config)


_ELSEWHERE = 10  # validation images a class of another data set


def on_other_sets(session: Session, config: Config) -> dict[str, float]:
    """`elsewhere`: percent of validation images of other development sets classified rightly with the trained
    prompts, the mean over sets; `elsewhere zero_shot`: with the frozen CLIP."""
    found = []
    for name in DEVELOPMENT:
        if name == config.data.name:
            continue
        other = config.model_copy(update={"data": DataConfig(name=name)})
        session.run = build_run(other, "drift", val_per_class=_ELSEWHERE)
        found.append(session.score())
    return {
        "elsewhere": mean(each["base"] for each in found),
        "elsewhere zero_shot": mean(each["zero_shot"] for each in found),
    }


def model_of(run: Run, names: Sequence[str]) -> Model:
    """A run's prompts with other class names, worded as its data set's."""
    prompts, template = run.method.prompts, run.dataset.template
    texts = prompt_texts(names, prompts, init=run.config.prompts.init, template=template)
    return build_model(run.backbone.clip, prompts, run.backbone.tokenize(texts))


def on_words_of_imagenet(run: Run) -> Foreign:
    """What drift is measured on, with names of ImageNet in place of the backbone's own."""
    names = foreign_names(run.dataset.classnames, FOREIGN_NAMES)
    frozen_VE = frozen_text(run.backbone.clip, tokenize, names, (TEMPLATE,))
    assert run.foreign is not None  # `drift` predicts new accuracy
    return replace(run.foreign, model=model_of(run, names), frozen_text_VE=frozen_VE)


@dataclass
class Kept:
    """A data set's images, each read (or rendered) once a process: long runs read them hundreds of times."""

    source: Source
    files: dict[str, bytes] = field(default_factory=dict)

    def read_many(self, paths: Sequence[str]) -> list[bytes]:
        missing = [path for path in dict.fromkeys(paths) if path not in self.files]
        self.files |= zip(missing, self.source.read_many(missing), strict=True)
        return [self.files[path] for path in paths]


_KEPT: dict[str, Kept] = {}


def kept(source: Source) -> Kept:
    """This source, kept by the process."""
    return _KEPT.setdefault(repr(source), Kept(source))


def _line(record: Record) -> str:
    if record["reason"]:
        return f"{record['name']}: {record['reason']}"
    figures = ", ".join(f"{key} {record[key]:.2f}" for key in ("base", "new", "H"))
    return f"{record['name']}: {figures} ({record['seconds']:.0f} s)"


def mean_and_interval(values: Sequence[float], *, signed: bool = False, digits: int = 1) -> str:
    """A mean with its 95 % t-interval, as a cell of a table.

    Example:
        >>> mean_and_interval([1.0, 2.0, 3.0], signed=True)
        '+2.0 (-0.5 .. +4.5)'
    """
    form = f"{'+' if signed else ''}.{digits}f"
    interval = t_interval(values)
    if interval is None:
        return f"{values[0]:{form}}" if values else "-"
    return f"{interval.mean:{form}} ({interval.low:{form}} .. {interval.high:{form}})"


def values_of(runs: Mapping[Any, Record], key: str) -> list[float]:
    """A figure of every run that has it."""
    return [run[key] for run in runs.values() if run[key] is not None]


def paired(ours: Mapping[Any, Record], theirs: Mapping[Any, Record], key: str) -> list[float]:
    """Differences of a figure, pair by pair (of a seed, or of a data set and a seed), where both have one."""
    return [
        record[key] - theirs[pair][key]
        for pair, record in ours.items()
        if pair in theirs and record[key] is not None and theirs[pair][key] is not None
    ]
