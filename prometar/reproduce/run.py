"""A grid from beginning to end: check, run what is not there yet, make the tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from prometar.comparison.render import print_comparison
from prometar.data.datasets.catalog import require_outside
from prometar.distributed.local_ray import require_address, start_ray
from prometar.distributed.placement import ResourcePlan, Shares, plan_resources
from prometar.errors import WorkError
from prometar.io.lock import locked
from prometar.reproduce.check import Found, look
from prometar.reproduce.execute import run_jobs
from prometar.reproduce.figures import build_table, pair_methods
from prometar.reproduce.grid import Asked, Entry, GridFolder, Job, Record, entries
from prometar.reproduce.render import print_table, write_tables


@dataclass(frozen=True)
class Place:
    """Where a grid's runs lie and what they may use; none of it changes a result."""

    out: Path
    shares: Shares
    address: str | None = None
    verbose: bool = False

    def __post_init__(self) -> None:
        if self.address is not None:
            require_address(self.address)


def reproduce(asked: Asked, place: Place) -> None:
    """Run or continue a grid, then print and write its table, and its methods in pairs.

    Raises:
        UserError: the request is wrong, or runs in the folder were made with other settings.
        WorkError: something could not be run; the table is made first, of all the rest.
    """
    console = Console(highlight=False, soft_wrap=True, markup=False)
    folder = GridFolder(place.out)
    root = next(iter(asked.configs.values())).data.root
    for name in (*asked.trained_on, *asked.datasets):
        require_outside(folder.path, name, root)
    found = look(asked)
    wanted = entries(asked, found.idle, found.missing)
    folder.require_same(wanted, found.contents)
    with locked(folder.path, f"the grid {folder.path}"):
        todo = [entry for entry in wanted if folder.finished(entry) is None]
        plan, told = _planned(todo, found, place) if todo else (None, "")
        console.print(f"{asked.protocol.name} in {folder.path}: {asked.protocol.about}")
        console.print(f"{len(wanted)} runs, {len(wanted) - len(todo)} are done")
        for reason in found.missing.values():
            console.print(f"cannot be used now: {reason}")
        for note in found.notes:
            console.print(note)
        if plan:
            console.print(told)
            _run(todo, found, folder, plan, console)
        records = [record for entry in wanted if (record := folder.record(entry)) is not None]
        earlier = _of_earlier_runs(found.missing, records)
        left_out = {name: reason for name, reason in found.missing.items() if name not in earlier}
        problems = _problems(left_out, wanted, records)
        table = build_table(
            asked, records, notes=(*found.notes, *earlier.values(), *problems), uncited=found.uncited
        )
        console.print()
        print_table(table, console)
        pairs = pair_methods(asked, records)
        paths = write_tables(table, pairs, folder.path / asked.protocol.name)
        if pairs.differences:
            console.print()
            print_comparison(pairs, console)
    console.print(f"\nwritten: {', '.join(map(str, paths))}")
    if problems:
        raise WorkError(
            f"{len(problems)} of what was asked could not be run, see above; the same command goes on"
        )


def _planned(todo: list[Entry], found: Found, place: Place) -> tuple[ResourcePlan, str]:
    """What each run gets of the machines, and what is said of it."""
    nodes = start_ray(address=place.address, verbose=place.verbose)
    on_gpu = place.shares.on_gpu(nodes)
    configs = {entry.config.method: entry.config for entry in todo}
    memory = max(found.footprint.memory(config, on_gpu=on_gpu) for config in configs.values())
    plan = plan_resources(nodes, place.shares, memory=memory)
    return plan, plan.describe(nodes)


def _run(todo: list[Entry], found: Found, folder: GridFolder, plan: ResourcePlan, console: Console) -> None:
    jobs = [Job(entry, folder.run(entry), plan.threads, plan.stream_cpus) for entry in todo]
    num_ended = 0

    def say(record: Record) -> None:
        nonlocal num_ended
        num_ended += 1
        console.print(f"{record.entry.title}: {_outcome(record)}; {num_ended} of {len(jobs)} done")

    run_jobs(jobs, plan, on_record=say)


def _outcome(record: Record) -> str:
    if record.reason:
        return f"failed: {record.reason}"
    figures = {**record.accuracies, **record.tests}
    said = f"{', '.join(f'{name} {value:.2f}' for name, value in figures.items())} ({record.seconds:.0f} s)"
    return f"{said}; {record.note}" if record.note else said


def _of_earlier_runs(missing: Mapping[str, str], records: Sequence[Record]) -> dict[str, str]:
    """What is said of data sets that cannot be used now, but that every run was tested on before."""
    return {
        dataset: f"{dataset} cannot be used now, its figures are of an earlier run: {reason}"
        for dataset, reason in missing.items()
        if records and all(dataset in record.tests for record in records)
    }


def _problems(missing: Mapping[str, str], wanted: Sequence[Entry], records: Sequence[Record]) -> list[str]:
    """What could not be run, and why."""
    told = {record.entry.name for record in records}
    return [
        *(_left_out(dataset, reason, records) for dataset, reason in missing.items()),
        *(f"{record.entry.title} has failed: {record.reason}" for record in records if record.reason),
        *(f"{entry.title} has left no record" for entry in wanted if entry.name not in told),
    ]


def _left_out(dataset: str, reason: str, records: Sequence[Record]) -> str:
    untested = sum(dataset not in record.tests for record in records)
    some = f" of {untested} of {len(records)} runs (the others were tested on it before)"
    return f"{dataset} was left out{some if untested < len(records) else ''}: {reason}"
