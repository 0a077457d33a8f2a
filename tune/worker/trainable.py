"""A worker as Ray runs it: one step tells of one epoch of one of its trials."""

from collections import deque
from functools import cache
from typing import TYPE_CHECKING, Any

from ray import tune

from prometar.distributed.gpus import only_given_gpus, require_given_gpus
from tune.jobs.files import JobFiles
from tune.jobs.spec import Job, jobs_in
from tune.worker.watchdog import Watchdog

if TYPE_CHECKING:
    from tune.worker.trial_group import Crew


class TrialWorker(tune.Trainable):
    """Trains its jobs, epoch by epoch, in a Ray actor that is reused for the next ones.

    The backbone, the data set and the frozen features stay in the actor from trial to trial. Ray's own
    checkpoints are not used: a job's folder holds its state, so a trial goes on wherever it is started. It
    first tells the epochs it finds there again, since nobody may have heard of the last ones.
    """

    _next: dict[str, Any] | None = None

    def setup(self, config: dict[str, Any]) -> None:
        self._start(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        self._next = new_config  # for the first step: what fails while a worker is reset, Tune never lets go
        return True

    def _start(self, config: dict[str, Any]) -> None:
        jobs = jobs_in(config)
        terms = jobs[0].terms
        self._watchdog = Watchdog(JobFiles(jobs[0]).own_disk, terms.session, terms.timeout_seconds)
        verdict = self._watchdog.verdict()
        with self._watchdog.watching():
            self._crew = self.open_crew(jobs, verdict)
        self._untold = deque[dict[str, Any]]()

    def open_crew(self, jobs: list[Job], failure: str) -> "Crew":
        """What trains the jobs, or tells why they are not trained."""
        only_given_gpus()
        crew = _crew()
        import torch

        require_given_gpus("trial")
        torch.set_num_threads(jobs[0].terms.plan.threads)
        return crew(jobs, failure)

    def step(self) -> dict[str, Any]:
        if self._next is not None:
            config, self._next = self._next, None
            self._start(config)
        if not self._untold:
            with self._watchdog.watching():
                self._untold.extend(self._crew.advance())
        result = self._untold.popleft() if self._untold else {}  # nothing where all have been told to stop
        return result | {"done": self._crew.over and not self._untold}

    def cleanup(self) -> None:
        self._crew.close()


@cache
def _crew() -> "type[Crew]":
    """Loaded when it is needed: a worker of another kind need not wait for torch."""
    from tune.worker.trial_group import Crew

    return Crew
