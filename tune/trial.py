"""A trial as Ray runs it: one step is one epoch, and its own checkpoint is all that it resumes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from ray import tune

from prometar.checkpoint import write_atomically
from prometar.config import dump_config, parse
from prometar.data.stream import StreamOptions
from prometar.errors import UserError
from prometar.runs import ray_stream, write_result
from prometar.train import Diverged, Session, build_run
from tune.job import Job


class TrialWorker(tune.Trainable):
    """Trains one job, epoch by epoch, in a Ray actor that is reused for the next one.

    The backbone, the data set and the frozen features stay in the actor from trial to trial. Ray's own
    checkpoints are not used: the job's folder holds its state, so a trial goes on wherever it is started.
    """

    def setup(self, config: dict[str, Any]) -> None:
        self._start(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._session.close()
        self._start(new_config)
        return True

    def _start(self, config: dict[str, Any]) -> None:
        job = Job.from_dict(config)
        self._job, self._folder = job, Path(job.run_dir)
        torch.set_num_threads(job.threads)
        configuration = parse(job.config, where=f"the settings of {self._folder.name}")
        run = build_run(configuration, job.objective, val_per_class=job.val_per_class)
        options = StreamOptions.in_bundle(job.stream_cpus)
        self._session = Session(run, self._folder, ray_stream(run, options))
        write_atomically(self._folder / "config.yaml", dump_config(configuration).encode())

    def step(self) -> dict[str, Any]:
        session = self._session
        if session.finished:  # its result was not told before the study was interrupted
            record = session.history[-1]
        else:
            try:
                record = session.epoch()
            except Diverged as error:
                return self._failed(f"{error}, with {json.dumps(self._job.settings)}")
            except UserError as error:
                return self._failed(str(error))
        if session.finished:
            write_result(self._folder, session)
            session.close()
        keys = ("epoch", "objective", "base", "new", "seconds")
        result = {key: record[key] for key in keys if key in record}
        return {**result, "loss": record.get("direct_ce", 0.0), "failed": "", "done": session.finished}

    def _failed(self, reason: str) -> dict[str, Any]:
        epoch = len(self._session.history) + 1
        self._session.close()
        return {"epoch": epoch, "failed": reason, "done": True}

    def cleanup(self) -> None:
        self._session.close()
