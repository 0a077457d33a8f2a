"""Run or resume a tuned comparison: all studies in one queue, then tables and the page."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from rich.console import Console

from prometar.data.datasets.catalog import reject_output_in_dataset
from prometar.errors import FIX_AND_RESUME, WorkError, one_line
from prometar.io.files import file_size, lock_folder, write_atomically
from prometar.training.memory import Footprint
from tune.config import ResourcesConfig
from tune.execution.executor import run_jobs
from tune.execution.flows import FairQueue, Flow, Stages
from tune.execution.job import Job
from tune.execution.live import LiveView, stdout_console
from tune.execution.progress import StageProgress
from tune.execution.ray_cluster import start_ray
from tune.execution.resources import uses_gpus
from tune.records.folder import StudyFolder
from tune.records.schema import EpochReport
from tune.records.timeline import TimelineEntry, append_entry, read_timeline
from tune.report.page import write_report
from tune.stages.study_jobs import run_unfinished
from tune.study import Study
from tune.tuned.comparison import Cell, TunedComparison
from tune.tuned.page import write_page
from tune.tuned.results import collect
from tune.tuned.statements import summary
from tune.tuned.tables import print_tables, ranks_csv, results_csv

UNTRAINED_STAGE = "Published"
"""Stage of the runs of methods without training."""


def run_comparison(
    comparison: TunedComparison, resources: ResourcesConfig, address: str | None = None
) -> None:
    """Run or resume a tuned comparison. Print and write tables and the page.

    Raises:
        UserError: data or weights are missing, or a study in the output folder has other settings.
        WorkError: some runs failed. The tables are written without these runs.
    """
    console = stdout_console()
    for name in comparison.grid.datasets:
        reject_output_in_dataset(comparison.out, name, comparison.grid.config.data.root)
    comparison.check()
    nodes = start_ray(address=address)
    with lock_folder(comparison.out, f"the output folder {comparison.out}"), ExitStack() as stack:
        console.print(comparison.title)
        flows, footprints = _open_flows(comparison, stack)
        memory = comparison.memory_bytes(footprints, on_gpu=uses_gpus(nodes, resources))
        pool, summary_of_pool = comparison.plan_pool(nodes, resources, memory)
        console.print(summary_of_pool)
        queue = FairQueue(list(flows.values()))
        progress = QueueProgress(list(flows.values()))
        timeline = QueueTimeline(queue, progress, comparison.folder)
        with LiveView(console, progress) as view, timeline:
            run_jobs(
                queue,
                pool,
                [queue, progress, view, timeline],
                console=console,
                timeout_seconds=comparison.epoch_timeout,
            )
    failures = {cell: flow.failure for cell, flow in flows.items() if flow.failure}
    _write_results(comparison, failures, console)


def _open_flows(
    comparison: TunedComparison, stack: ExitStack
) -> tuple[dict[Cell, Flow], dict[Cell, Footprint]]:
    """Return a flow per method and dataset, in the order of the datasets, and the sizes of their runs."""
    flows: dict[Cell, Flow] = {}
    footprints: dict[Cell, Footprint] = {}
    for job in comparison.untrained_jobs:
        cell = job.config.method, job.config.data.name
        flow = Flow(f"{cell[1]}, {cell[0]}", _untrained_stages(job), total=1)
        flows[cell] = stack.enter_context(flow)
    for cell, config in comparison.studies.items():
        study = Study(config=config, console=Console(quiet=True))
        flows[cell], footprints[cell] = stack.enter_context(study.open_flow())
    return flows, footprints


def _untrained_stages(job: Job) -> Stages[None]:
    """Run a method without training, unless there is a result.

    Raises:
        WorkError: the run failed.
    """
    failures = yield from run_unfinished(UNTRAINED_STAGE, [job])
    for reason in failures.values():
        raise WorkError(reason)


class QueueProgress(StageProgress):
    """Progress of all flows of a queue. The number of jobs is an upper bound, until flows are finished."""

    def __init__(self, flows: Sequence[Flow]) -> None:
        super().__init__("Tuning", self._total_of(flows), has_best=False)
        self._flows = flows

    @property
    def done(self) -> int:
        return sum(flow.num_ended for flow in self._flows)

    def finished(self, job: Job, failure: str) -> None:
        super().finished(job, failure)
        self.total = self._total_of(self._flows)

    @staticmethod
    def _total_of(flows: Sequence[Flow]) -> int:
        return sum(flow.num_ended if flow.finished else flow.total for flow in flows)


class QueueTimeline:
    """Observer that appends each job to the timelines of the comparison and of the job's study.

    Use it as a context manager. List it after the queue and its progress.
    """

    def __init__(self, queue: FairQueue, progress: StageProgress, folder: Path) -> None:
        self._queue = queue
        self._progress = progress
        self._folder = folder

    def __enter__(self) -> "QueueTimeline":
        self._folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        """Add the interrupted jobs."""
        for progress in self._progress.running.values():
            progress.ended = datetime.now()
            progress.interrupted = True
            queued = self._queue.origin(progress.job)
            self._append(progress.job, progress.timeline_entry(queued.stage))

    def started(self, job: Job) -> None:
        """Do nothing. The progress knows when the job started."""

    def reported(self, job: Job, report: EpochReport) -> None:
        """Do nothing. Only ended jobs are appended."""

    def finished(self, job: Job, failure: str) -> None:
        queued = self._queue.origin(job)
        self._append(job, self._progress.ended[-1].timeline_entry(queued.stage))

    def _append(self, job: Job, entry: TimelineEntry) -> None:
        queued = self._queue.origin(job)
        append_entry(self._folder, entry)
        if queued.stage != UNTRAINED_STAGE:
            # FOLDER/trials/0000, FOLDER/confirmation/NAME or FOLDER/finals/NAME, perhaps with a subfolder
            study = next(path for path in queued.job.folder.parents if (path / "study.yaml").exists())
            append_entry(study, replace(entry, job=queued.job.name))


def _write_results(comparison: TunedComparison, failures: Mapping[Cell, str], console: Console) -> None:
    """Write the reports of the studies, tables and page, and print the summary.

    Raises:
        WorkError: results are missing.
    """
    for folder in _folders_without_report(comparison):
        records = StudyFolder(folder).read_all()
        if records is not None:
            write_report(records)
    results = collect(comparison, failures)
    problems = [one_line(text) for text in results.missing]
    print_tables(results, console)
    for line in (*summary(comparison, results, problems), *comparison.describe_searched_settings()):
        console.print(line)
    folder = comparison.folder
    tables = {"table.csv": results_csv(results), "ranks.csv": ranks_csv(results)}
    for name, content in tables.items():
        write_atomically(folder / name, content.encode())
    page = write_page(comparison, results, problems, read_timeline(folder))
    console.print(
        f"Wrote {page}, and table.csv and ranks.csv beside it. Reports of studies: {comparison.out}/studies"
    )
    if problems:
        raise WorkError(f"Some results are missing (see above). {FIX_AND_RESUME}")


def _folders_without_report(comparison: TunedComparison) -> Iterator[Path]:
    """Yield the folders of studies whose report is missing or older than their records."""
    for config in comparison.studies.values():
        folder = StudyFolder.of(config).path
        report = folder / "report.html"
        records = [folder / name for name in ("finals.json", "confirmation.json", "study.yaml")]
        newest = max((path.stat().st_mtime for path in records if file_size(path) is not None), default=0.0)
        if file_size(report) is None or report.stat().st_mtime < newest:
            yield folder
