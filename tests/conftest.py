"""What all tests share: settings of Ray and Optuna, a local Ray, an S3 server, and small images like DTD."""

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

os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # otherwise, actors without a GPU warn
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

# `configure_ray` sets the same values for studies.
os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "600000")
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")

# By default, Ray's workers are niced. Beside two other suites, they would take up to ten times as long.
os.environ.setdefault("RAY_worker_niceness", "0")

# No test reads the logs of workers, for which Ray would look ten times a second, or the memory and CPU time
# of its processes, which it would measure every few seconds.
os.environ.setdefault("RAY_LOG_MONITOR_MANY_FILES_THRESHOLD", "0")
os.environ.setdefault("LOG_NAME_UPDATE_INTERVAL_S", "3600")
os.environ.setdefault("REPORTER_UPDATE_INTERVAL_MS", "3600000")

DTD_SPLIT = "split_zhou_DescribableTextures.json"
CLASSES = ("banded", "dotted", "grid", "lined", "porous", "woven")

_CACHE = tempfile.mkdtemp(prefix="prometar-tests-")
os.environ["PROMETAR_CACHE"] = _CACHE  # not the user's cache. Set here, so that all processes inherit it.

# Ray's workers import the examples.
_PATHS = [str(Path(__file__).parent.parent / "examples"), os.environ.get("PYTHONPATH", "")]
os.environ["PYTHONPATH"] = os.pathsep.join(path for path in _PATHS if path)

# The same examples in each run, without a limit of time. --hypothesis-profile=default draws other examples.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")


@event.listens_for(Engine, "connect")
def _wait_for_no_disk(connection: Any, _: object) -> None:
    """Do not wait for the disk. Only a power failure could lose data, and no test is about power failures."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous = OFF")


@cache
def _scripts(location: str) -> ScriptDirectory:
    return ScriptDirectory(location)


# For each database that it opens, Optuna reads the history of its tables, which takes 0.1 s. Read it once.
ScriptDirectory.from_config = lambda config: _scripts(config.get_main_option("script_location"))  # type: ignore[method-assign,assignment]

# Typer builds its commands for each call, which takes 30 ms. Build them once.
typer.main.get_command = cache(typer.main.get_command)

gc.disable()  # until all modules are imported, which makes imports a fifth faster


def pytest_collection_finish(session: pytest.Session) -> None:
    """Exclude imported modules from garbage collections."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure(config: pytest.Config) -> None:
    gc.unfreeze()  # otherwise, triton lists all objects that were not collected
    shutil.rmtree(_CACHE, ignore_errors=True)


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    """Seed torch before each test, so that its random numbers do not depend on the tests before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def ray_local() -> Iterator[str]:
    """Return the address of a local Ray with two CPUs, which runs until the session ends.

    Drivers in other processes can connect to it, if a test is not about how a driver starts Ray.
    """
    import ray

    from tune.execution.ray_cluster import TOKEN, preserve_signal_handlers

    # Ray reads a token once per process. If an earlier test ran a study, it was this one. Drivers in other
    # processes inherit it.
    os.environ.setdefault("RAY_AUTH_TOKEN", TOKEN)
    for attempt in range(3):
        ray.shutdown()  # a Ray that a test has left running, or an incomplete start
        try:
            with preserve_signal_handlers():
                ray.init(
                    address="local",  # never a Ray that already runs
                    num_cpus=2,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level="ERROR",
                    object_store_memory=256 * 2**20,
                    _memory=8 * 2**30,  # fixed, so that plans do not depend on the memory of other tests
                )
            break
        except Exception:  # beside other clusters, a raylet may start too late
            if attempt == 2:
                raise
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture(scope="session")
def ray_data(ray_local: str) -> str:
    """Return the same address. Ray Data's actor for statistics runs already, so no worker has to start it."""
    from ray.data._internal.stats import get_or_create_stats_actor

    get_or_create_stats_actor()
    return ray_local


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """Return host:port of an S3 server in this process, which listens on localhost only."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", host)
        yield f"{host}:{port}"
    server.stop()


def write_dtd(root: Path, *, per_class: int = 8, classes: tuple[str, ...] = CLASSES, seed: int = 0) -> Path:
    """Write a folder `dtd` in DTD's layout below `root`: small JPEGs of various sizes, and a split file.

    Each class has `per_class` training images, half as many validation images, and half as many test images.

    Returns:
        `root`.
    """
    rng = np.random.default_rng(seed)
    folder = root / "dtd"
    split: dict[str, list[list[object]]] = {"train": [], "val": [], "test": []}
    for label, name in enumerate(classes):
        (folder / "images" / name).mkdir(parents=True)
        for number in range(per_class * 2):
            path = f"{name}/{name}_{number:04d}.jpg"
            height, width = rng.integers(40, 90, 2).tolist()
            coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
            image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
            image.save(folder / "images" / path, quality=80)
            if number < per_class:
                part = "train"
            elif number < per_class * 3 // 2:
                part = "val"
            else:
                part = "test"
            split[part].append([path, label, name])
    for part in split.values():
        rng.shuffle(part)  # the order of labels must not matter
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
