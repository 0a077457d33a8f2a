"""Duration of a study on this machine, estimated from a few timed training steps."""

import os
import time
from itertools import islice

import torch

from prometar.data.streaming.stream import stream_local
from prometar.device import fetch
from prometar.environment import num_cpus
from prometar.training.epoch import rates, train_step
from prometar.training.memory import Footprint
from prometar.training.run import build_run, initial_state
from tune.config import StudyConfig
from tune.execution.resources import on_gpus, study_plan
from tune.stages.plan import StudyPlan

TIMED = 3
"""Timed steps, after one that is not timed."""


def estimate(config: StudyConfig, plan: StudyPlan, footprint: Footprint) -> str:
    """Describe the resources per trial and how long training takes at most.

    Steps of concurrent trials are assumed to take no longer than those of one alone.

    Raises:
        UserError: a trial does not fit on this machine, or its data or weights are unusable.
    """
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    gpus = torch.cuda.device_count()
    nodes = [{"CPU": float(num_cpus()), "GPU": float(gpus), "memory": float(installed)}]
    memory = footprint.memory(config.run, on_gpu=on_gpus(nodes, config.resources))
    resources, reason = study_plan(nodes, config.resources, config.search.trials, memory)
    torch.set_num_threads(resources.threads)
    seconds = seconds_per_step(config)
    _, _, steps = plan.stages["At most"]
    whole = _duration(steps / resources.max_concurrent * seconds)
    return f"{reason}\nTraining on this machine: at most {whole}, {seconds:.2g} s per step"


def seconds_per_step(config: StudyConfig) -> float:
    """Return the mean duration of a training step of the baseline, with its images."""
    run = build_run(config.run, config.search.objective, val_per_class=config.search.val_per_class)
    state, now, started = initial_state(run), rates(run.config, 0), 0.0
    for number, batch in enumerate(islice(stream_local(run.plan, run.dataset.source), 1 + TIMED)):
        state, scalars = train_step(run, state, batch, now)
        fetch(scalars)  # waits for the device
        started = started if number else time.perf_counter()
    return (time.perf_counter() - started) / TIMED


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
