"""A trial as Ray runs it: one step is one epoch, and its own checkpoint is all that it resumes from."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import torch
from ray import tune

from prometar.analysis.alignment import Alignment
from prometar.checkpoint import write_atomically
from prometar.config import dump_config, parse
from prometar.data.stream import StreamOptions
from prometar.errors import UserError
from prometar.runs import FINAL, ray_stream, write_result
from prometar.train import Diverged, Session, build_run
from tune.job import Job

_TOLD = ("epoch", "objective", "base", "new", "seconds")


class TrialWorker(tune.Trainable):
    """Trains one job, epoch by epoch, in a Ray actor that is reused for the next one.

    The backbone, the data set and the frozen features stay in the actor from trial to trial. Ray's own
    checkpoints are not used: the job's folder holds its state, so a trial goes on wherever it is started. It
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
        self._job = Job.from_dict(config)
        self._session: Session | None = None
        self._num_told, self._problem = 0, ""
        torch.set_num_threads(self._job.threads)
        try:
            self._session = self._open()
        except UserError as error:  # no retry would help
            self._problem = str(error)

    def _open(self) -> Session:
        job, folder = self._job, Path(self._job.run_dir)
        config = parse(job.config, where=f"the settings of {folder.name}")
        run = build_run(config, job.objective, val_per_class=job.val_per_class)
        watch = Alignment(folder) if job.objective == FINAL else None
        session = Session(run, folder, ray_stream(run, StreamOptions.in_bundle(job.stream_cpus)), watch)
        write_atomically(folder / "config.yaml", dump_config(config).encode())
        return session

    def step(self) -> dict[str, Any]:
        session = self._session
        if session is None:
            return self._failed(self._problem)
        if self._num_told == len(session.history):
            try:
                session.epoch()
            except Diverged as error:
                return self._failed(f"{error}, with {json.dumps(self._job.settings)}")
            except UserError as error:
                return self._failed(str(error))
        record = session.history[self._num_told]
        self._num_told += 1
        done = session.finished and self._num_told == len(session.history)
        if done:
            write_result(Path(self._job.run_dir), session)
            session.close()
        result: dict[str, Any] = {"loss": record.get("direct_ce", 0.0), "failed": "", "done": done}
        return result | {key: record[key] for key in _TOLD if key in record}

    def _failed(self, reason: str) -> dict[str, Any]:
        self.cleanup()
        return {"epoch": self._num_told + 1, "failed": reason, "done": True}

    def cleanup(self) -> None:
        if self._session is not None:
            self._session.close()
