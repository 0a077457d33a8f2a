"""The study's memory: an Optuna study is the one source of truth, whatever happens to the processes.

A trial is asked, reported to epoch by epoch, and told once. What a dead driver left RUNNING is handed out
again with the same settings; nothing of Ray Tune's own state is needed. Optuna enters here (and its plots
in `tune.plots`).
"""

from __future__ import annotations

import math
import re
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from prometar.errors import UserError, WorkError
from tune.spaces import Space

# No trial is judged by its first epoch, which trains at the warm-up rate alone.
PRUNERS: dict[str, Callable[[], BasePruner]] = {
    "median": lambda: MedianPruner(n_startup_trials=8, n_warmup_steps=2),
    "asha": lambda: SuccessiveHalvingPruner(min_resource=2, reduction_factor=3),
    "none": NopPruner,
}
STARTUP_TRIALS = 6  # random draws before TPE's model is used
HOPELESS = 5  # failed trials, and none finished, after which a study stops
REDRAWS = 20  # draws of settings already tried before a space counts as exhausted

REFERENCE = "reference"  # user attributes of an Optuna trial
REASON = "reason"
REPEAT = "repeat_of"
RESULT = "result"
IDENTITY = "identity"  # user attributes of the study
EXHAUSTED = "exhausted"
FORGIVEN = "forgiven"

GO_ON = "the same command goes on from here"


@dataclass(frozen=True)
class Asked:
    """A trial to run: its number in the study and the searched settings."""

    number: int
    settings: dict[str, Any]


class Memory:
    """Asks and tells one Optuna study, and survives the death of whoever does.

    Args:
        storage: An Optuna storage URL, e.g. sqlite:///out/textures/study.db.
        name: The study's name in it.
        space: What is searched.
        reference: The released settings; always trial 0, never pruned.
        seed: Of the sampler. Each draw is seeded by (seed, trial number): a restarted study draws what an
            undisturbed one would have drawn, where trials end in the same order.
        pruner: A name in `PRUNERS`.
    Raises:
        UserError: unknown pruner. WorkError: the storage cannot be reached.
    """

    def __init__(
        self, storage: str, name: str, space: Space, *, reference: dict[str, Any], seed: int, pruner: str
    ) -> None:
        if pruner not in PRUNERS:
            raise UserError(f"unknown pruner '{pruner}': choose one of {', '.join(PRUNERS)}")
        self._space, self._seed, self._reference = space, seed, reference
        self._study = open_study(storage, name, create=True, pruner=PRUNERS[pruner]())
        self._running: dict[int, Trial] = {}
        self._require_reference()
        self._interrupted = deque(t.number for t in self.trials() if t.state is TrialState.RUNNING)
        self._forgiven = self._forgive()
        self._ended_before = {t.number for t in self.trials() if t.state.is_finished()}

    def _require_reference(self) -> None:
        """Enqueue the reference: at first, after a kill before this line, and again where it has failed."""
        references = [t for t in self.trials() if t.user_attrs.get(REFERENCE)]
        if all(t.state is TrialState.FAIL for t in references):
            self._study.enqueue_trial(self._reference, user_attrs={REFERENCE: True})

    def _forgive(self) -> set[int]:
        """Failed trials that are run again: all there are, where none has finished; kept in the storage."""
        trials = self.trials()
        failed = [t.number for t in trials if t.state is TrialState.FAIL]
        if failed and not any(t.state is TrialState.COMPLETE for t in trials):
            self._study.set_user_attr(FORGIVEN, failed)
        return set(self._study.user_attrs.get(FORGIVEN, []))

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray Tune pickles its searcher; the study itself needs no second copy

    def trials(self) -> list[FrozenTrial]:
        """Every trial that counts, by number."""
        return [t for t in self._study.get_trials(deepcopy=False) if REPEAT not in t.user_attrs]

    def claim(self, identity: dict[str, Any]) -> dict[str, Any]:
        """The identity that the study has in its storage; this one where it has none yet."""
        return self._study.user_attrs.get(IDENTITY) or self._sign(identity)

    def _sign(self, identity: dict[str, Any]) -> dict[str, Any]:
        self._study.set_user_attr(IDENTITY, identity)
        return identity

    @property
    def num_interrupted(self) -> int:
        return len(self._interrupted)

    def next(self, target: int) -> Asked | None:
        """An interrupted trial, else a new one while fewer than `target` trials exist, else None."""
        while self._interrupted:
            asked = self._begin(self._resume(self._interrupted.popleft()))
            if asked is not None:
                return asked
        if not self.wants(target):
            return None
        asked = next(filter(None, (self._begin(self._ask()) for _ in range(REDRAWS))), None)
        if asked is None:
            self._study.set_user_attr(EXHAUSTED, True)
        return asked

    def wants(self, target: int) -> bool:
        """Whether new trials are to be begun: until `target` have been, and the reference is among them.

        What failed before any trial had finished, in an earlier process, does not count: its cause may have
        been mended.
        """
        trials = self.trials()
        if self.hopeless() or self.exhausted:
            return False
        if any(t.state is TrialState.WAITING for t in trials):
            return True
        return len({t.number for t in trials} - self._forgiven) < target

    @property
    def exhausted(self) -> bool:
        """Whether every setting of the space seems to have been tried."""
        return bool(self._study.user_attrs.get(EXHAUSTED))

    def _ask(self) -> Trial:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            waiting = self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
            number = waiting[0].number if waiting else len(self._study.get_trials(deepcopy=False))
            self._study.sampler = self._sampler(number)
            return self._study.ask()

    def _resume(self, number: int) -> Trial:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            self._study.sampler = self._sampler(number)  # its driver may have died in the middle of the draw
            return Trial(self._study, self._study.get_trials(deepcopy=False)[number]._trial_id)

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        """A fresh sampler a draw has no state that could be lost."""
        seed = np.random.SeedSequence([self._seed, number]).generate_state(1)[0]
        return optuna.samplers.TPESampler(
            seed=int(seed) or 1,  # 0 would mean "no seed"
            multivariate=True,
            constant_liar=True,
            n_startup_trials=STARTUP_TRIALS,
        )

    def _begin(self, trial: Trial) -> Asked | None:
        """A trial to run; None where its settings are an earlier trial's."""
        self._running[trial.number] = trial
        asked = Asked(trial.number, self._space.draw(trial))
        earlier = self._earlier(asked)
        if earlier is None:
            return asked
        # It stays in the storage, so that the next number draws anew, and counts for nothing.
        trial.set_user_attr(REPEAT, earlier)
        self._tell(asked.number, TrialState.FAIL, reason=f"the same settings as trial {earlier}")
        return None

    def _earlier(self, asked: Asked) -> int | None:
        others = (
            t for t in self.trials() if t.number < asked.number and t.state is not TrialState.FAIL
        )  # what failed may be tried again
        return next((t.number for t in others if dict(t.params) == asked.settings), None)

    def observe(self, number: int, result: Mapping[str, Any]) -> bool:
        """Take in an epoch's result; True if the trial is to be stopped. Safe to call twice.

        A result that failed, lacks its objective, or is not finite ends the trial as FAIL with the reason.
        """
        trial = self._running.get(number)
        if trial is None:
            return True
        reason = failure(result)
        if reason:
            self._tell(number, TrialState.FAIL, reason=reason)
            return True
        value, epoch = float(result["objective"]), int(result["epoch"])
        if epoch not in self._study.get_trials(deepcopy=False)[number].intermediate_values:
            trial.report(value, epoch)
        if epoch >= trial.user_attrs.get(RESULT, {}).get("epoch", 0):  # also after a kill between the two
            trial.set_user_attr(RESULT, {k: result[k] for k in _KEPT if k in result})
        if result.get("done"):
            self._tell(number, TrialState.COMPLETE, value=value)
            return True
        if REFERENCE not in trial.user_attrs and trial.should_prune():
            self._tell(number, TrialState.PRUNED)
            return True
        return False

    def fail(self, number: int, reason: str) -> None:
        """End a trial whose worker is gone for good. Does nothing if it has ended."""
        if number in self._running:
            self._tell(number, TrialState.FAIL, reason=reason)

    def _tell(self, number: int, state: TrialState, *, value: float | None = None, reason: str = "") -> None:
        trial = self._running.pop(number)
        if reason:
            trial.set_user_attr(REASON, reason)
        self._study.tell(trial, value, state=state)

    def hopeless(self) -> str | None:
        """The last reason, where many trials have failed and none has finished since this process began.

        Earlier failures do not count: their cause may have been mended.
        """
        ended = [t for t in self.trials() if t.state.is_finished() and t.number not in self._ended_before]
        failed = [t for t in ended if t.state is TrialState.FAIL]
        if len(failed) < HOPELESS or len(failed) < len(ended):
            return None
        return str(failed[-1].user_attrs.get(REASON, "no reason recorded"))

    def best(self) -> FrozenTrial | None:
        """The finished trial with the highest objective; the earliest of equals."""
        return best_of(self.trials())


_KEPT = ("epoch", "objective", "base", "new", "loss", "seconds")


def failure(result: Mapping[str, Any]) -> str:
    """Why a result counts as a failure, or ""."""
    if result.get("failed"):
        return str(result["failed"])
    missing = [key for key in ("objective", "epoch") if key not in result]
    if missing:
        return f"the trial reported no {' and no '.join(missing)}"
    if not math.isfinite(float(result["objective"])):
        return f"the objective is {result['objective']} in epoch {result['epoch']}"
    return ""


def best_of(trials: list[FrozenTrial]) -> FrozenTrial | None:
    """The finished trial with the highest objective; the earliest of equals."""
    complete = [t for t in trials if t.state is TrialState.COMPLETE and t.value is not None]
    return max(complete, key=lambda t: (t.value, -t.number), default=None)


@contextmanager
def reachable(storage: str) -> Iterator[None]:
    """While a study's storage is used: its loss is one line, not a traceback.

    Raises:
        WorkError: the storage failed.
    """
    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        reason = without_password(f"the study storage {storage} failed: {str(error).splitlines()[0]}")
        raise WorkError(f"{reason}; {GO_ON}") from None


def without_password(text: str) -> str:
    """Text with the passwords of its URLs hidden.

    Example:
        >>> without_password("postgresql://me:secret@host/db")
        'postgresql://me:***@host/db'
    """
    return re.sub(r"(://[^:/@\s]*):[^@\s]+@", r"\1:***@", text)


def open_study(
    storage: str, name: str, *, create: bool = False, pruner: BasePruner | None = None
) -> optuna.Study:
    """The Optuna study `name` in `storage`.

    Raises:
        UserError: there is no such study. WorkError: the storage cannot be reached.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        if create:
            return optuna.create_study(
                storage=storage, study_name=name, direction="maximize", load_if_exists=True, pruner=pruner
            )
        return optuna.load_study(storage=storage, study_name=name)
    except KeyError:
        raise UserError(f"no study '{name}' in {storage}") from None
    except (SQLAlchemyError, ImportError, ValueError) as error:
        reason = f"cannot open the study storage {storage}: {str(error).splitlines()[0]}"
        raise WorkError(without_password(reason)) from None
