"""What Ray needs of the machine and of the environment, before any is started."""

from __future__ import annotations

import os
import resource

import pytest

from prometar.distributed import local_ray
from prometar.distributed.local_ray import configure_ray, start_ray
from prometar.errors import WorkError


def test_too_few_open_files_are_said_before_ray_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(**_: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(resource, "getrlimit", lambda which: (64, 64))
    monkeypatch.setattr(resource, "setrlimit", lambda which, limits: None)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr(local_ray, "_init", never)
    with pytest.raises(WorkError, match="64 files can be open here, and Ray needs 512: raise `ulimit -n`"):
        start_ray()


@pytest.mark.parametrize(
    ("now", "then"),
    [((64, 4096), (4096, 4096)), ((1024, resource.RLIM_INFINITY), (65_536, resource.RLIM_INFINITY))],
)
def test_the_limit_is_raised_as_far_as_it_may(
    now: tuple[int, int], then: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    monkeypatch.setattr(resource, "getrlimit", lambda which: now)
    monkeypatch.setattr(resource, "setrlimit", lambda which, limits: found.append(limits))
    local_ray._require_open_files()
    assert found == [then]


def test_a_call_after_rays_end_starts_no_other_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ENABLE_AUTO_CONNECT", raising=False)
    configure_ray()
    assert os.environ["RAY_ENABLE_AUTO_CONNECT"] == "0"
    monkeypatch.delenv("RAY_ENABLE_AUTO_CONNECT")
