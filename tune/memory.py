"""The study's memory: an Optuna study is the one source of truth, whatever happens to the processes.

A trial is asked, reported to epoch by epoch, and told once. What a dead driver left RUNNING is handed out
again with the same settings; nothing of Ray Tune's own state is needed. Optuna enters here (and its plots
in `tune.plots`).
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from prometar.errors import UserError, WorkError
from tune.sampler import sampler_of
from tune.spaces import Space
from tune.tally import REPEAT, Settings, Tally

# No trial is judged by its first epoch, which trains at the warm-up rate alone.
PRUNERS: dict[str, Callable[[], BasePruner]] = {
    "median": lambda: MedianPruner(n_startup_trials=8, n_warmup_steps=2),
    "asha": lambda: SuccessiveHalvingPruner(min_resource=2, reduction_factor=3),
    "none": NopPruner,
}
HOPELESS = 5  # failed trials, and none finished, after which a study stops
REDRAWS = 20  # draws of settings already tried before a space counts as exhausted

REFERENCE = "reference"  # user attributes of an Optuna trial
REASON = "reason"
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


@dataclass
class _Running:
    """A trial that has not been told, its settings, and the epochs that the storage has of it."""

    trial: Trial
    settings: Settings = ()
    epochs: set[int] = field(default_factory=set)


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
        self._require_reference()
        forgiven, trials = self._forgive(), self._study.get_trials(deepcopy=False)
        self._tally = Tally(trials, list(space.ranges), forgiven)
        self._waiting = deque(t.number for t in trials if t.state is TrialState.WAITING)
        self._interrupted = deque(t.number for t in self.trials() if t.state is TrialState.RUNNING)
        self._running: dict[int, _Running] = {}
        self._exhausted = bool(self._study.user_attrs.get(EXHAUSTED))

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
            self._exhausted = True
            self._study.set_user_attr(EXHAUSTED, True)
        return asked

    def wants(self, target: int) -> bool:
        """Whether new trials are to be begun: until `target` have been, and the reference is among them.

        What failed before any trial had finished, in an earlier process, does not count: its cause may have
        been mended.
        """
        if self.hopeless() or self.exhausted:
            return False
        return bool(self._waiting) or self._tally.begun < target

    @property
    def exhausted(self) -> bool:
        """Whether every setting of the space seems to have been tried."""
        return self._exhausted

    def _ask(self) -> _Running:
        if self._waiting:
            number = self._waiting.popleft()
        else:
            number = self._tally.created
            self._tally.created += 1
            self._tally.begun += 1
        self._study.sampler = sampler_of(self._space, self._seed, number)
        return _Running(self._study.ask())

    def _resume(self, number: int) -> _Running:
        self._study.sampler = sampler_of(self._space, self._seed, number)  # it may have died in the draw
        found = self._study.get_trials(deepcopy=False)[number]
        return _Running(Trial(self._study, found._trial_id), epochs=set(found.intermediate_values))

    def _begin(self, running: _Running) -> Asked | None:
        """A trial to run; None where its settings are an earlier trial's."""
        number = running.trial.number
        asked = Asked(number, self._space.draw(running.trial))
        running.settings = tuple(asked.settings.values())
        first = self._tally.first(number, running.settings)
        if first == number:
            self._running[number] = running
            return asked
        # It stays in the storage, so that the next number draws anew, and counts for nothing.
        self._tally.begun -= 1
        running.trial.set_user_attr(REPEAT, first)
        running.trial.set_user_attr(REASON, f"the same settings as trial {first}")
        self._study.tell(running.trial, state=TrialState.FAIL)
        return None

    def observe(self, number: int, result: Mapping[str, Any]) -> bool:
        """Take in an epoch's result; True if the trial is to be stopped. Safe to call twice.

        A result that failed, lacks its objective, or is not finite ends the trial as FAIL with the reason.
        """
        running = self._running.get(number)
        if running is None:
            return True
        reason = failure(result)
        if reason:
            self.fail(number, reason)
            return True
        trial, value, epoch = running.trial, float(result["objective"]), int(result["epoch"])
        if epoch not in running.epochs:
            trial.report(value, epoch)
            running.epochs.add(epoch)
        if epoch >= trial.user_attrs.get(RESULT, {}).get("epoch", 0):  # also after a kill between the two
            trial.set_user_attr(RESULT, {k: result[k] for k in _KEPT if k in result})
        if result.get("finished"):
            self._succeed(number, TrialState.COMPLETE, value)
            return True
        if REFERENCE not in trial.user_attrs and trial.should_prune():
            self._succeed(number, TrialState.PRUNED)
            return True
        return False

    def _succeed(self, number: int, state: TrialState, value: float | None = None) -> None:
        self._study.tell(self._running.pop(number).trial, value, state=state)
        self._tally.succeed(number)

    def fail(self, number: int, reason: str) -> None:
        """End a trial whose worker is gone for good. Does nothing if it has ended."""
        running = self._running.pop(number, None)
        if running is not None:
            running.trial.set_user_attr(REASON, reason)
            self._study.tell(running.trial, state=TrialState.FAIL)
            self._tally.fail(number, running.settings, reason)

    def is_running(self, number: int) -> bool:
        """Whether a trial was begun by this process and has not ended."""
        return number in self._running

    def ended(self, since: int = 0) -> list[FrozenTrial]:
        """The trials that have ended, in that order, without the first `since` of them."""
        return [self._trial(number) for number in self._tally.ended[since:]]

    def _trial(self, number: int) -> FrozenTrial:
        storage, study = self._study._storage, self._study._study_id
        return storage.get_trial(storage.get_trial_id_from_study_id_trial_number(study, number))

    def hopeless(self) -> str | None:
        """The last reason, where many trials have failed and none has finished since this process began."""
        return self._tally.hopeless(HOPELESS)

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
