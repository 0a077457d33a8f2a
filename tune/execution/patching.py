"""Private names of Ray Tune. Without each of them something breaks, as its comment says."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.tune.execution import class_cache


@contextmanager
def treat_oom_as_actor_death() -> Iterator[None]:
    """Let Tune report a worker that Ray's memory monitor killed as dead.

    Ray raises another error for it than for all other deaths. Without this, Tune 2.60 ends the whole study.
    """
    manager: Any = RayActorManager
    handle = manager._actor_task_failed

    def failed(self: RayActorManager, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, OutOfMemoryError):
            reason = str(exception).splitlines()[0]
            exception = RayActorError(error_msg=f"ray.exceptions.OutOfMemoryError: {reason}")
        handle(self, tracked_actor_task, exception)

    with mock.patch.object(manager, "_actor_task_failed", failed):
        yield


@contextmanager
def reuse_prestarted_workers() -> Iterator[None]:
    """Start workers without an environment of their own.

    Tune sets a variable that only Lightning reads. Without this, Ray starts Python twice for each worker,
    which takes a second per worker and stage.
    """
    with mock.patch.object(class_cache, "DEFAULT_ENV_VARS", {}):
        yield
