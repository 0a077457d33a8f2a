"""No garbage is looked for while something large loads, and afterwards as before."""

from __future__ import annotations

import gc

import pytest

from prometar.loading import nothing_collected


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
