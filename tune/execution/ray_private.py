"""All that is used of Ray's private names: another version may lack them, or mean other things by them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.air._internal import usage
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.tune.execution import class_cache
from ray.tune.utils.object_cache import _ObjectCache

from prometar.replaced import replaced


@contextmanager
def killed_for_memory_is_dead() -> Iterator[None]:
    """Tell Tune that a worker is dead which Ray's watch over a machine's memory has killed.

    Ray has another error for that than for all other deaths, and Tune (2.60) ends a whole study with it.
    """
    manager_class: Any = RayActorManager
    handle = manager_class._actor_task_failed

    def failed(manager: RayActorManager, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, OutOfMemoryError):
            reason = str(exception).splitlines()[0]
            exception = RayActorError(error_msg=f"ray.exceptions.OutOfMemoryError: {reason}")
        handle(manager, tracked_actor_task, exception)

    with replaced(manager_class, _actor_task_failed=failed):
        yield


@contextmanager
def callbacks_are_not_counted() -> Iterator[None]:
    """Tune counts what callbacks of other packages are used, and imports MLflow and W&B to know them."""
    with replaced(usage, tag_callbacks=lambda callbacks: False):
        yield


@contextmanager
def workers_are_like_any_other() -> Iterator[None]:
    """Tune asks for workers with a variable of their own, which only Lightning reads.

    So it takes none of those that Ray has started before, and each new one has to start Python's imports
    twice: seconds before a trial begins. Where it must hand on keys of AWS, it still does.
    """
    with replaced(class_cache, DEFAULT_ENV_VARS={}):
        yield


@contextmanager
def idle_workers_stay() -> Iterator[None]:
    """Keep every worker that has nothing to do between two batches of a study, where Tune keeps one.

    A worker that is started anew loads its packages and a backbone. Where a trial waits for a place that none
    of them has, they go as Tune has it.
    """
    cache_class: Any = _ObjectCache
    keep, flush = cache_class.cache_object, cache_class.flush_cached_objects

    def keep_more(cache: Any, place: Any, worker: Any) -> bool:
        if keep(cache, place, worker):
            return True
        if _lacking(cache) - {place}:
            return False
        cache._cached_objects[place].append(worker)
        cache._num_cached_objects += 1
        return True

    def flush_less(cache: Any, force_all: bool = False) -> Iterator[Any]:
        return flush(cache, force_all) if force_all or _lacking(cache) else iter(())

    with replaced(cache_class, cache_object=keep_more, flush_cached_objects=flush_less):
        yield


def _lacking(cache: Any) -> set[Any]:
    """The places that trials wait for and no idle worker has."""
    waited_for = {place for place, trials in cache._max_num_objects.items() if trials}
    return {place for place in waited_for if not cache._cached_objects[place]}
