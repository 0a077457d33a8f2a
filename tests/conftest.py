"""Fixtures that all tests share: one local Ray, and a small benchmark folder of photographs-to-be."""

import gc
import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer.main
from alembic.script import ScriptDirectory
from hypothesis import settings
from PIL import Image
from sqlalchemy import event
from sqlalchemy.engine import Engine

os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else every actor without a GPU warns
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "600000")  # as `configure_ray` has it
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")  # this too

# Ray's workers give way to all else that runs: beside two other files they take up to ten times as long.
os.environ.setdefault("RAY_worker_niceness", "0")

# Nobody reads the workers' logs; Ray would look for new ones ten times a second.
os.environ.setdefault("RAY_LOG_MONITOR_MANY_FILES_THRESHOLD", "0")
os.environ.setdefault("LOG_NAME_UPDATE_INTERVAL_S", "3600")
os.environ.setdefault("REPORTER_UPDATE_INTERVAL_MS", "3600000")  # nor what its processes take

DTD_SPLIT = "split_zhou_DescribableTextures.json"
CLASSES = ("banded", "dotted", "grid", "lined", "porous", "woven")

_CACHE = tempfile.mkdtemp(prefix="prometar-tests-")
os.environ["PROMETAR_CACHE"] = _CACHE  # never the user's own; before any process inherits it
_PATHS = [str(Path(__file__).parent.parent / "examples"), os.environ.get("PYTHONPATH", "")]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, _PATHS))  # of Ray's workers, as of a user's

# The same examples each time, however long one takes; --hypothesis-profile=default looks at others.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")


@event.listens_for(Engine, "connect")
def _wait_for_no_disk(connection: Any, _: object) -> None:
    """A killed process loses nothing by it, only a machine without power: which no test here is about."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous = OFF")


@cache
def _scripts(location: str) -> ScriptDirectory:
    return ScriptDirectory(location)


# Optuna reads the history of its tables for each database that it opens: a tenth of a second.
ScriptDirectory.from_config = lambda config: _scripts(config.get_main_option("script_location"))  # type: ignore[method-assign,assignment]

# An application's commands are read from its functions for each line that it is given: 30 milliseconds.
typer.main.get_command = cache(typer.main.get_command)

gc.disable()  # until all modules are there: a fifth of what that takes


def pytest_collection_finish(session: pytest.Session) -> None:
    """What has been loaded by now is looked through by no later collection."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure(config: pytest.Config) -> None:
    gc.unfreeze()  # else triton, which torch brings for GPUs, lists at the end all that was not collected
    shutil.rmtree(_CACHE, ignore_errors=True)


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    """What a test draws without a seed of its own is the same each time, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def ray_local() -> Iterator[str]:
    """A quiet Ray of two CPUs in this process's name; ended with the session.

    Its address: drivers of their own may join it where nothing hangs on how they start theirs.
    """
    import ray

    from tune.execution.ray_cluster import preserve_signal_handlers

    for attempt in range(3):
        ray.shutdown()  # what a test has left running, or a start that broke off half-way
        try:
            with preserve_signal_handlers():
                ray.init(
                    address="local",  # never one that runs already
                    num_cpus=2,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level="ERROR",
                    object_store_memory=256 * 2**20,
                    _memory=8 * 2**30,  # of its plan: what is free beside other tests decides nothing
                )
            break
        except Exception:  # on a machine that is busy with other clusters, a raylet may be late
            if attempt == 2:
                raise
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture(scope="session")
def ray_data(ray_local: str) -> str:
    """The same Ray, with the actor that Ray Data would start again in the resources of each worker."""
    from ray.data._internal.stats import get_or_create_stats_actor

    get_or_create_stats_actor()
    return ray_local


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """An S3 server in this process, on this machine alone: host:port."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", host)
        yield f"{host}:{port}"
    server.stop()


def write_dtd(root: Path, *, per_class: int = 8, classes: tuple[str, ...] = CLASSES, seed: int = 0) -> Path:
    """A folder in DTD's layout below `root`: small JPEGs of uneven sizes and a split file; returns `root`.

    A class has `per_class` training, half as many validation and half as many test images.
    """
    rng = np.random.default_rng(seed)
    folder = root / "dtd"
    split: dict[str, list[list[object]]] = {"train": [], "val": [], "test": []}
    for label, name in enumerate(classes):
        (folder / "images" / name).mkdir(parents=True)
        for k in range(per_class * 2):
            path = f"{name}/{name}_{k:04d}.jpg"
            height, width = (int(side) for side in rng.integers(40, 90, 2))
            coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
            image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
            image.save(folder / "images" / path, quality=80)
            if k < per_class:
                part = "train"
            elif k < per_class * 3 // 2:
                part = "val"
            else:
                part = "test"
            split[part].append([path, label, name])
    for part in split.values():
        rng.shuffle(part)  # labels first appear in no particular order
    (folder / DTD_SPLIT).write_text(json.dumps(split))
    return root


@pytest.fixture(scope="session")
def small_dtd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with a small `dtd/` (six classes of 8 + 4 + 4 images). Do not write into it."""
    return write_dtd(tmp_path_factory.mktemp("data"))


@pytest.fixture
def own_dtd(tmp_path: Path) -> Path:
    """A data root with a small `dtd/` (four classes of 4 + 2 + 2 images) that the test may damage."""
    return write_dtd(tmp_path / "root", per_class=4, classes=CLASSES[:4])
