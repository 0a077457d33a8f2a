"""Ray Data's private names that the stream rests on: another version may lack them, or mean other things."""

import threading
from collections.abc import Iterator
from typing import Any

import ray
from ray.data import Dataset, ExecutionResources
from ray.data._internal.cluster_autoscaler import ClusterAutoscaler
from ray.data._internal.execution import streaming_executor
from ray.data._internal.execution.interfaces import RefBundle
from ray.data._internal.execution.streaming_executor import StreamingExecutor

from prometar.replaced import replaced

_STARTING = threading.Lock()


class _WhatIsThere(ClusterAutoscaler):
    """All of the cluster, from the first moment on, and no wish for more machines.

    Ray Data's own asks an actor, knows of no CPU until it has answered, and has a cluster grow for a trial
    whose tasks run where its CPUs are held.
    """

    def __init__(self, *_: object, **__: object) -> None:
        self._total = ExecutionResources.from_resource_dict(ray.cluster_resources())

    def try_trigger_scaling(self) -> None:
        pass

    def on_executor_shutdown(self) -> None:
        pass

    def get_total_resources(self) -> ExecutionResources:
        return self._total


class _NoFigures:
    """What would tell an actor of each execution, for a page that shows them."""

    @staticmethod
    def register_dataset_to_stats_actor(*_: object) -> None:
        pass

    update_execution_metrics = register_dataset_to_stats_actor


class _Execution(StreamingExecutor):
    """One that needs no process beside those that make its blocks."""

    def execute(self, *given: Any, **options: Any) -> Any:
        parts = {"create_cluster_autoscaler": _WhatIsThere, "_StatsManager": _NoFigures}
        with _STARTING, replaced(streaming_executor, **parts):
            return super().execute(*given, **options)

    def _update_stats_metrics(self, *_: object, **__: object) -> None:
        pass


def bundles_of(dataset: Dataset) -> Iterator[RefBundle]:
    """The blocks of `dataset`, made from now on.

    Ray Data would start two actors first, for the whole cluster: one shares it among executions, the other
    keeps their figures. Each takes two seconds of a core to load, a hundred MB, and a stream's first second.
    """
    own: Any = dataset
    own._create_executor = lambda: _Execution(dataset.context, dataset.get_dataset_id())
    return dataset.iter_internal_ref_bundles()
