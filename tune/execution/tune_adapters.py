"""Adapters between Ray Tune and the dispatcher: a searcher, a scheduler and a stopper.

Tune calls the searcher to get the next Tune trial, and at the end of each one. It calls the scheduler after
each report and each error, and the stopper regularly.
"""

from pathlib import Path
from typing import Any

from ray import cloudpickle
from ray.exceptions import RayActorError
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

from tune.execution.dispatcher import Dispatcher


class JobSearcher(Searcher):
    """Searcher whose suggestions are the jobs of a dispatcher."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        super().__init__()
        self._dispatcher = dispatcher

    def save(self, checkpoint_path: str) -> None:
        """Do nothing, because Tune's state is never restored."""

    def suggest(self, trial_id: str) -> Any:
        """Return the configuration of a Tune trial, None to be called again later, or `FINISHED`."""
        request = self._dispatcher.next_request(trial_id)
        if request is not None:
            return {"request": request}
        return Searcher.FINISHED if self._dispatcher.finished else None

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        if not error:  # the scheduler passes errors to the dispatcher
            self._dispatcher.completed(trial_id)


class JobScheduler(FIFOScheduler):
    """Scheduler that passes reports and errors to a dispatcher. Tune does not pass errors to searchers."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        super().__init__()
        self._dispatcher = dispatcher

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        if "machine" in result:  # the first result of a worker, see `JobWorker.step`
            stop = self._dispatcher.located(trial.trial_id, result["machine"])
        else:
            stop = self._dispatcher.reported(trial.trial_id, result["report"])
        return TrialScheduler.STOP if stop else TrialScheduler.CONTINUE

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        self._dispatcher.failed(trial.trial_id, _error_of(trial))


class JobStopper(Stopper):
    """Stopper that ends the experiment if the dispatcher must stop."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False  # the scheduler stops single Tune trials

    def stop_all(self) -> bool:
        return self._dispatcher.must_stop


def _error_of(trial: Trial) -> BaseException:
    """Return the error of a Tune trial's worker.

    The file is read here, because `Trial.get_pickled_error` looks for it in Tune's storage, which lacks it.
    """
    path = Path(trial.pickled_error_file) if trial.pickled_error_file else None
    if path is None or not path.exists():
        return RayActorError(error_msg="The worker died.")
    error = cloudpickle.loads(path.read_bytes())
    cause = getattr(error, "cause", None)  # where Ray stores exceptions of a worker's own code
    return error if cause is None else cause
