"""No garbage is looked for while something large loads, and afterwards as before."""

import gc

import pytest

from prometar.loading import _keep_for_good, loaded_for_good, nothing_collected


def test_collecting_goes_on_afterwards_if_it_was_on() -> None:
    with nothing_collected():
        with nothing_collected():
            pass
        assert not gc.isenabled(), "whoever turned it off turns it on"
    assert gc.isenabled()


def test_what_does_not_load_leaves_it_on_too() -> None:
    with pytest.raises(ModuleNotFoundError), nothing_collected():
        import no_such_module  # type: ignore[import-not-found]  # noqa: F401
    assert gc.isenabled()


def test_what_has_loaded_is_kept_once() -> None:
    gc.unfreeze()  # what the tests have loaded
    _keep_for_good.cache_clear()
    try:
        with loaded_for_good():
            loaded: list[object] = []
        kept = gc.get_freeze_count()
        later = [[] for _ in range(1000)]
        with loaded_for_good():
            pass
        assert gc.isenabled()
        assert kept
        assert gc.get_freeze_count() <= kept, f"{len(later)} things of later would never be given back"
        assert not any(thing is loaded for thing in gc.get_objects())
    finally:
        gc.freeze()
