"""A worker as Ray runs it: one step tells of one epoch of one of its trials."""

from __future__ import annotations

import gc
from collections import deque
from typing import Any

import torch
from ray import tune

from tune.crew import Crew
from tune.job import unpack


class TrialWorker(tune.Trainable):
    """Trains its jobs, epoch by epoch, in a Ray actor that is reused for the next ones.

    The backbone, the data set and the frozen features stay in the actor from trial to trial. Ray's own
    checkpoints are not used: a job's folder holds its state, so a trial goes on wherever it is started. It
    first tells the epochs it finds there again, since nobody may have heard of the last ones.
    """

    def setup(self, config: dict[str, Any]) -> None:
        self._start(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        self._keep_for_good()
        self._start(new_config)
        return True

    def _keep_for_good(self) -> None:
        """Once: what the actor holds after its first trial is looked through by no later collection.

        A stream that is left early must collect garbage, to give its blocks back; among all that torch and
        Ray have loaded that takes a quarter of a second, a trial.
        """
        if not gc.get_freeze_count():
            gc.collect()
            gc.freeze()

    def _start(self, config: dict[str, Any]) -> None:
        jobs = unpack(config)
        torch.set_num_threads(jobs[0].threads)
        self._crew, self._untold = Crew(jobs), deque[dict[str, Any]]()

    def step(self) -> dict[str, Any]:
        if not self._untold:
            self._untold.extend(self._crew.advance())
        result = self._untold.popleft() if self._untold else {}  # nothing where all have been told to stop
        return result | {"done": self._crew.over and not self._untold}

    def cleanup(self) -> None:
        self._crew.close()
