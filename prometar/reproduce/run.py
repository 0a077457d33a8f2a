"""A grid from beginning to end: check it, run what is missing, make the tables."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from prometar.comparison.render import print_comparison
from prometar.data.datasets.catalog import require_outside
from prometar.distributed.local_ray import start_ray
from prometar.distributed.placement import Node, ResourcePlan, Shares, plan_resources
from prometar.errors import WorkError
from prometar.io.files import resolved
from prometar.io.lock import locked
from prometar.reproduce.check import Checked, check
from prometar.reproduce.figures import build_table, pair_methods
from prometar.reproduce.grid import Grid, GridResult, GridRun, read_grid_result, require_same
from prometar.reproduce.published import unlike_published
from prometar.reproduce.render import print_table, write_tables


def reproduce(
    grid: Grid, out: Path, shares: Shares, *, address: str | None = None, verbose: bool = False
) -> None:
    """Run or resume a grid, then print and write its table and the paired comparison.

    Raises:
        UserError: the request is wrong, or runs in the folder were made with other settings.
        WorkError: something could not be run. The tables contain the rest.
    """
    console = Console(highlight=False, soft_wrap=True, markup=False)
    out = resolved(out)
    for name in grid.all_datasets:
        require_outside(out, name, grid.config.data.root)
    checked = check(grid)
    runs = grid.runs(checked.untrained, checked.missing.keys())
    digests = {name: dataset.digest for name, dataset in checked.datasets.items()}
    require_same([read_grid_result(run, out / "runs" / run.name) for run in runs], out / "runs", digests)
    with locked(out, f"the grid {out}"):
        found = {run.name: read_grid_result(run, out / "runs" / run.name) for run in runs}
        todo = [run for run in runs if not found[run.name].finished]
        nodes = start_ray(address=address, verbose=verbose) if todo else []
        plan = _plan(todo, checked, nodes, shares) if todo else None
        console.print(f"{grid.protocol.name} in {out}: {grid.protocol.about}")
        console.print(f"{len(runs)} runs, {len(runs) - len(todo)} are done")
        for reason in checked.missing.values():
            console.print(f"left out: {reason}")
        if plan:
            console.print(plan.describe(nodes))
            found |= _run(todo, out, plan, console)
        results = list(found.values())
        problems = _problems(checked, results)
        uncited = {name: why for name, each in checked.datasets.items() if (why := unlike_published(each))}
        table = build_table(grid, results, uncited=uncited)
        table = replace(table, notes=(*table.notes, *problems))
        print_table(table, console)
        pairs = pair_methods(grid, results)
        if pairs.differences:
            print_comparison(pairs, console)
        paths = write_tables(table, pairs, out / grid.protocol.name)
    console.print(f"written: {', '.join(map(str, paths))}")
    if problems:
        raise WorkError(
            "Some runs are missing, see above. Fix the cause, then rerun the same command to resume."
        )


def _plan(todo: Sequence[GridRun], checked: Checked, nodes: Sequence[Node], shares: Shares) -> ResourcePlan:
    """Plan the runs that are missing.

    Raises:
        UserError: no machine has the resources of one run.
    """
    configs = {run.config.method: run.config for run in todo}
    on_gpu = shares.on_gpu(nodes)
    memory = max(checked.footprint.memory(config, on_gpu=on_gpu) for config in configs.values())
    return plan_resources(nodes, shares, memory=memory)


def _run(todo: Sequence[GridRun], out: Path, plan: ResourcePlan, console: Console) -> dict[str, GridResult]:
    """Run what is missing, and return the results by name."""
    from prometar.reproduce.runner import GridJob, run_jobs

    found = dict[str, GridResult]()

    def report(result: GridResult) -> None:
        found[result.run.name] = result
        figures = {**result.accuracies, **{name: test.accuracy for name, test in result.tests.items()}}
        shown = ", ".join(f"{name} {value:.2f}" for name, value in figures.items())
        outcome = f"failed: {result.reason}" if result.reason else shown
        console.print(f"{result.run.title}: {outcome} ({len(found)} of {len(todo)})")

    run_jobs(
        [GridJob(run, out / "runs" / run.name, plan.threads, plan.stream_cpus) for run in todo],
        plan,
        on_result=report,
    )
    return found


def _problems(checked: Checked, results: Sequence[GridResult]) -> list[str]:
    """Name what could not be run, and why."""
    return [
        *(f"{name} was left out: {reason}" for name, reason in checked.missing.items()),
        *(f"{found.run.title} failed: {found.reason}" for found in results if found.reason),
    ]
