"""Private names of Ray Tune. Without each of them something breaks, as its comment says."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.tune.execution import class_cache


@contextmanager
def patched() -> Iterator[None]:
    """Patch Tune.

    Ray raises another error for a worker that its memory monitor killed than for all other deaths. Without a
    conversion, Tune 2.60 ends the whole study.

    Tune sets a variable that only Lightning reads. Without its removal, Ray starts Python twice for each
    worker, which takes a second per worker and stage.
    """
    handle = RayActorManager._actor_task_failed

    def failed(self: RayActorManager, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, OutOfMemoryError):
            reason = MemoryError(str(exception).splitlines()[0])
            death: Any = RayActorError(error_msg=str(reason))
            death.cause = reason  # as errors that a worker raised have it
            exception = death
        handle(self, tracked_actor_task, exception)

    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(RayActorManager, "_actor_task_failed", failed))
        patches.enter_context(mock.patch.object(class_cache, "DEFAULT_ENV_VARS", {}))
        yield
