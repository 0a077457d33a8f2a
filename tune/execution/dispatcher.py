"""Dispatcher of jobs: which job starts next, and what happens after reports and failures.

Faults of a machine are never results of a job. The job moves to another machine, and the machine is avoided.
If no machine is left, the dispatcher stops with an error, so that a rerun resumes the job.

Terms of Ray Tune: an *experiment* is one call of `run_jobs`. A *Tune trial* is one attempt to run a job, so a
retried job has several Tune trials. Trials of a study are always called trials, without "Tune".
"""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from ray.exceptions import RayError, RayTaskError

from prometar.errors import InfrastructureError, InputError, is_accelerator_error, last_line
from prometar.io.files import cannot_write_error
from tune.execution.job import Job, Observer
from tune.execution.machines import Machines, describe_reasons
from tune.execution.resources import JobResources
from tune.execution.shutdown import Shutdown
from tune.execution.worker import STACKS_FILE, JobRequest
from tune.records.schema import EpochReport

MAX_RETRIES = 2
"""Maximum number of retries of a job between two new epochs, if its workers die or its code raises errors."""
_MAX_REASON_LENGTH = 1000  # in characters. Error messages may contain long URLs.


@dataclass
class _Submission:
    """State of a submitted job, across its retries. Each retry is a new Tune trial.

    A *new* epoch is one that no earlier attempt has reported. After a retry, earlier epochs of the job are
    reported again.

    Attributes:
        request: Job, resources and timeout for the worker.
        machine: Node ID of the machine on which the latest worker runs, or "" until the worker has started.
        deaths: Number of failed attempts since the last new epoch that count towards `MAX_RETRIES`.
        faults: Faults since the last new epoch, as pairs of a machine's name and what happened there.
        tried: Node IDs of the machines on which an attempt has failed since the last new epoch.
        is_larger: True if the job needs more resources than planned, because it ran out of memory.
        epoch: Highest reported epoch.
        reported_error: Error message of the latest report, or "".
        ended: True if the latest report is the final one, or if an observer stopped the job.
    """

    request: JobRequest
    machine: str = ""
    deaths: int = 0
    faults: list[tuple[str, str]] = field(default_factory=list)
    tried: set[str] = field(default_factory=set)
    is_larger: bool = False
    epoch: int = 0
    reported_error: str = ""
    ended: bool = False


class Dispatcher:
    """Dispatcher of jobs.

    Args:
        jobs: Jobs in the order in which they start. An iterator that yields None is asked again after the
            next result, because its next job depends on the result of a running one.
        resources: Resources of each job.
        timeout_seconds: Seconds without a report before a hung worker is restarted. None: no limit.
        observers: Observers of all jobs.
        shutdown: Tells whether a signal has requested a stop, and whether Ray died.
        machines: Machines on which jobs run.
        independent_inputs: True if the jobs read different datasets. A job whose data no machine can read
            then fails, and other jobs continue.

    Attributes:
        error: First error of `jobs`, an observer or the machines. It ends the experiment.
        failures: Failure reasons by job name.
    """

    def __init__(
        self,
        jobs: Iterator[Job | None],
        resources: JobResources,
        timeout_seconds: float | None,
        observers: Sequence[Observer],
        shutdown: Shutdown,
        machines: Machines,
        *,
        independent_inputs: bool = False,
    ) -> None:
        self._jobs = jobs
        self._resources = resources
        self._timeout_seconds = timeout_seconds
        self._observers = observers
        self._shutdown = shutdown
        self._machines = machines
        self._independent_inputs = independent_inputs
        self._running: dict[str, _Submission] = {}  # by ID of the Tune trial
        self._retries: deque[_Submission] = deque()
        self._has_jobs = True
        self._waits_for_result = False
        self.error: Exception | None = None
        self.failures: dict[str, str] = {}

    def __getstate__(self) -> dict[str, object]:
        """Return {}. Tune pickles its searcher, but the jobs' database connections cannot be pickled."""
        return {}

    @property
    def must_stop(self) -> bool:
        """True if the experiment must end, because of an error or because Ray died."""
        if self.error is None:
            reason = self._machines.all_avoided_reason
            if reason:
                self.error = InfrastructureError(f"no machine can run the jobs: {reason}")
        return self.error is not None or self._shutdown.ray_died

    @property
    def finished(self) -> bool:
        """True if no job is left to start. While jobs are running it is False, because they may need retries.

        After a request to stop it is always True.
        """
        if self._shutdown.requested:
            return True
        return not (self._has_jobs or self._retries or self._running)

    def next_request(self, trial_id: str) -> JobRequest | None:
        """Return the next job for a Tune trial, or None if no job can start now.

        While a job waits for more resources than planned, no other job starts. Otherwise, smaller jobs would
        take what becomes free, and the larger job could wait until the stage ends.
        """
        with self._end_on_error():
            if self.finished or len(self._running) >= self._machines.num_concurrent:
                return None
            waiting = [running for running in self._running.values() if not running.machine]
            if any(submission.is_larger for submission in waiting):
                return None
            submission = self._retries.popleft() if self._retries else self._next_submission()
            if submission is None:
                return None

            submission.machine = ""
            submission.request = replace(submission.request, avoided=self._avoided(submission))
            self._running[trial_id] = submission
            return submission.request

    def located(self, trial_id: str, machine: str) -> bool:
        """Record the node ID of a Tune trial's machine. Return True if the Tune trial must stop."""
        self._running[trial_id].machine = machine
        return self._shutdown.requested

    def reported(self, trial_id: str, report: EpochReport) -> bool:
        """Pass the report of an epoch to the observers. Return True if the Tune trial must stop."""
        submission = self._running[trial_id]
        job = submission.request.job
        is_new_epoch = report.epoch > submission.epoch
        if is_new_epoch:
            submission.epoch = report.epoch
            submission.deaths = 0
            submission.faults.clear()
            submission.tried.clear()
            self._machines.record_epoch(submission.machine)

        with self._end_on_error():
            # A list, so that every observer gets the report, even if an earlier one stops the job.
            answers = [observer.reported(job, report) for observer in self._observers]
        stopped = False in answers
        submission.ended = report.finished or stopped
        submission.reported_error = report.error
        return submission.ended or self._shutdown.requested

    def completed(self, trial_id: str) -> None:
        """Finish the job of a Tune trial, unless an error or a signal interrupted the job."""
        submission = self._running.pop(trial_id)
        if submission.ended and not self.must_stop:
            self._finish(submission, submission.reported_error)

    def failed(self, trial_id: str, error: BaseException) -> None:
        """Retry the job of a Tune trial whose worker raised an error or died, or finish the job as failed."""
        submission = self._running.pop(trial_id)
        self._machines.refresh()  # the machine may have died
        if self.must_stop:
            return
        with self._end_on_error():
            has_retry = self._prepare_retry(submission, error)
        if has_retry:
            self._retries.append(submission)
            return
        if isinstance(error, InputError):  # no machine can read the data of the job
            reason = describe_reasons(submission.faults)
        else:
            reason = f"{type(error).__name__}: {last_line(str(error))}"
        self._finish(submission, reason[:_MAX_REASON_LENGTH])

    @contextmanager
    def _end_on_error(self) -> Iterator[None]:
        """Store the first error raised in this context, which ends the experiment.

        Tune itself might end only the Tune trial.
        """
        try:
            yield
        except Exception as error:
            self.error = self.error or error
            raise

    def _next_submission(self) -> _Submission | None:
        """Create the folders of the next job, and announce the job to the observers.

        Return None if no job is left, or if the next job depends on the result of a running one.
        """
        if not self._has_jobs or self._waits_for_result:  # do not call `next`, which may be expensive
            return None
        try:
            job = next(self._jobs)
        except StopIteration:
            self._has_jobs = False
            return None
        if job is None:
            assert self._running, "the next job waits for a result, but no job is running"
            self._waits_for_result = True
            return None
        for folder in job.configs:
            # Workers check that the folders exist, which shows that the machines share a file system.
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise cannot_write_error(folder, error) from None
        for observer in self._observers:
            observer.started(job)
        bundles = self._resources.bundles()
        return _Submission(JobRequest(job, self._resources, bundles, self._timeout_seconds))

    def _avoided(self, submission: _Submission) -> tuple[str, ...]:
        """Return the node IDs of the machines on which a job must not run, among those that are alive."""
        avoided = self._machines.avoided.keys() | submission.tried
        alive = {machine.node_id for machine in self._machines.alive}
        return tuple(sorted(alive & avoided))

    def _prepare_retry(self, submission: _Submission, error: BaseException) -> bool:
        """Prepare a retry. Return False if the job has failed.

        Raises:
            InfrastructureError: no machine is left on which the job could be retried.
        """
        if isinstance(error, MemoryError):
            return self._enlarge(submission)
        machine = submission.machine
        if machine and not self._machines.is_alive(machine):
            return True  # the machine has left, e.g. a spot instance

        name = self._machines.name(machine) if machine else "an unknown machine"
        reason = self._describe(submission, error)
        submission.faults.append((name, reason))
        if machine:
            submission.tried.add(machine)

        if self._independent_inputs and isinstance(error, InputError):
            # The machine is not avoided, because it may have the data of other jobs.
            return bool(self._usable(submission))
        if isinstance(error, InfrastructureError):
            if not machine:
                raise error
            self._machines.avoid(machine, reason)
            self._require_machine(submission)
            return True

        submission.deaths += 1
        if machine:
            self._machines.record_death(machine, reason)
        if submission.deaths > MAX_RETRIES:
            if not _is_machine_fault(error):
                return False
            self._require_machine(submission)
        if not self._usable(submission):
            submission.tried.clear()  # the retry may be on the same machine
            self._require_machine(submission)
        return True

    def _enlarge(self, submission: _Submission) -> bool:
        """Request more resources for a job that ran out of memory. Return False if there are no more."""
        larger = self._resources.enlarge(submission.request.bundles)
        if larger is None:
            return False
        submission.request = replace(submission.request, bundles=larger)
        submission.is_larger = True
        return True

    def _usable(self, submission: _Submission) -> list[str]:
        """Return the node IDs of the machines on which a job may be retried."""
        return self._machines.usable_node_ids(submission.request.bundles, except_for=submission.tried)

    def _require_machine(self, submission: _Submission) -> None:
        """Raise an InfrastructureError if no machine is left on which a job may be retried."""
        if not self._usable(submission):
            raise InfrastructureError(f"{submission.request.job.name}: {describe_reasons(submission.faults)}")

    def _describe(self, submission: _Submission, error: BaseException) -> str:
        """Return what happened to a job's worker, as one line."""
        path = submission.request.job.folder / STACKS_FILE
        seconds = submission.request.timeout_seconds
        # A worker writes its stacks, and exits, if it reaches the timeout.
        timed_out = path.exists() and path.stat().st_size > 0
        if seconds and timed_out:
            return (
                f"No epoch finished within {seconds:g} s. {path} contains the worker's stacks. "
                "Fix the cause, or set a longer resources.epoch_timeout."
            )
        return last_line(str(error))[:_MAX_REASON_LENGTH]

    def _finish(self, submission: _Submission, failure: str) -> None:
        """Record the end of a job, and pass it to the observers. `failure` is "" if the job did not fail."""
        job = submission.request.job
        self._waits_for_result = False
        if failure:
            self.failures[job.name] = failure
        with self._end_on_error():
            for observer in self._observers:
                observer.finished(job, failure)


def _is_machine_fault(error: BaseException) -> bool:
    """Return True for a dead or hung worker, a GPU error or an I/O error, False for other errors of a job."""
    if is_accelerator_error(error) or isinstance(error, OSError):
        return True
    # Ray raises a RayTaskError for an error of the job's own code, and other RayErrors if a worker died.
    return isinstance(error, RayError) and not isinstance(error, RayTaskError)
