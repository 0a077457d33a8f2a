"""The study's memory: an Optuna study is the one source of truth, whatever happens to the processes.

A trial is asked, reported to epoch by epoch, and told once. What a dead driver left RUNNING is handed out
again with the same settings; nothing of Ray Tune's own state is needed.
"""

import math
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from optuna.trial import FrozenTrial, Trial, TrialState

from prometar.errors import StorageError, UserError
from prometar.io.custom import failing, is_reference
from tune.optimizer.choices import Search
from tune.optimizer.pruners import FRONT_PRUNERS, pruner_of
from tune.optimizer.samplers import SAMPLERS, Draw, MakeSampler, point_sampler, sampler_of
from tune.optimizer.storage import LOST, drive_study
from tune.optimizer.trial_counts import REPEAT, Tally
from tune.optimizer.trial_schema import (
    CURVE,
    ENQUEUED,
    FORGIVEN,
    KEPT,
    LOSSES,
    ORIGIN,
    REASON,
    REFERENCE,
    RESULT,
    SEARCHED,
    curve_of,
    interrupted,
    record_of,
)
from tune.results.goals import GOALS, SECONDS, loss
from tune.results.schema import TrialRecord, by_score
from tune.space.point_sets import all_points, grid_points

HOPELESS = 5  # failed trials, and none finished, after which a study stops
REDRAWS = 20  # draws of settings already tried, after which one that has not been tried is looked for
RANDOM_REDRAWS = 100  # then, where settings cannot be counted, as many at random: a model may love one of few

IDENTITY = "identity"  # user attributes of the study
OWNER = "owner"


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
        search: How settings are drawn and judged.
        reference: The released settings; always trial 0, never pruned.
        epochs: Of a whole trial.
        admit: Called before anything is written; may `claim` the study, and refuses it by raising.

    Attributes:
        exhausted: Whether every setting of the space has been tried.
        seconds_searched: How long earlier processes have searched.
    Raises:
        WorkError: the storage cannot be reached.
    """

    def __init__(
        self,
        storage: str,
        name: str,
        search: Search,
        *,
        reference: dict[str, Any],
        epochs: int = 100,
        admit: "Callable[[Memory], None]" = lambda memory: None,
    ) -> None:
        self._space, self._seed, self._reference = search.space, search.seed, reference
        self._goals, self._bounds = search.goals, search.bounds
        self._sampler, self._drawing = sampler_of(search.sampler), _own(search.sampler)
        self._front = FRONT_PRUNERS.get(search.pruner) if len(search.goals) > 1 else None
        self._pruning, pruner = _own(search.pruner), pruner_of(search.pruner, epochs)
        directions = [GOALS[goal] for goal in search.goals]
        self._study, self._storage = drive_study(storage, name, directions=directions, pruner=pruner)
        admit(self)
        self._end_repeats()
        self._require_reference()
        self._running: dict[int, Trial] = {}
        self.exhausted = False
        self.seconds_searched = float(self._study.user_attrs.get(SEARCHED, 0.0))
        self._count(self._forgive())

    def _count(self, forgiven: Collection[int]) -> None:
        """Take stock of what the storage holds."""
        trials = self._study.get_trials(deepcopy=False)
        again = [t.number for t in trials if REFERENCE in t.user_attrs]
        self._tally = Tally(trials, list(self._space.ranges), forgiven, again)
        self._waiting = deque(t.number for t in trials if t.state is TrialState.WAITING and not t.params)
        self._interrupted = deque(t.number for t in self.trials() if interrupted(t))

    def _end_repeats(self) -> None:
        """A driver may have died between finding that a trial is a repeat and telling it."""
        for trial in self._study.get_trials(deepcopy=False):
            if REPEAT in trial.user_attrs and not trial.state.is_finished():
                self._storage.set_trial_state_values(trial.number, TrialState.FAIL)

    def _require_reference(self) -> None:
        """Enqueue the reference: at first, after a kill before this line, and again where it has failed."""
        references = [t for t in self.trials() if t.user_attrs.get(REFERENCE)]
        if all(t.state is TrialState.FAIL for t in references):
            self._study.enqueue_trial(self._reference, user_attrs={REFERENCE: True, ORIGIN: "released"})

    def enqueue(self, settings: Sequence[Mapping[str, Any]], origin: str) -> int:
        """Have these settings run before any are drawn; open ones are drawn. Returns how many are new.

        Settings that the study has been given before, by an earlier command, are not taken again, but those
        that have failed and are forgiven.
        """
        forgiven = self.forgiven
        trials = [t for t in self._study.get_trials(deepcopy=False) if t.number not in forgiven]
        known = [t.system_attrs.get(ENQUEUED) for t in trials]
        fresh = [dict(each) for each in settings if dict(each) not in known]
        for each in fresh:
            self._study.enqueue_trial(each, user_attrs={ORIGIN: origin})
        self._count(forgiven)
        return len(fresh)

    def _forgive(self) -> set[int]:
        """Failed trials that are run again: all there are, where none has finished; kept in the storage."""
        trials = self.trials()
        failed = [t.number for t in trials if t.state is TrialState.FAIL]
        if failed and not any(t.state is TrialState.COMPLETE for t in trials):
            self._study.set_user_attr(FORGIVEN, failed)
        return self.forgiven

    def trials(self) -> list[FrozenTrial]:
        """Every trial that counts, by number."""
        return [t for t in self._study.get_trials(deepcopy=False) if REPEAT not in t.user_attrs]

    def claim(self, identity: dict[str, Any], owner: str) -> tuple[dict[str, Any], str]:
        """The identity and the owner (where the trials' files lie) of the study; these where it has none."""
        return self._storage.claim(IDENTITY, identity), self._storage.claim(OWNER, owner)

    @property
    def num_interrupted(self) -> int:
        return len(self._interrupted)

    @property
    def forgiven(self) -> set[int]:
        """Failed trials that count for nothing, since their cause may have been mended."""
        return set(self._study.user_attrs.get(FORGIVEN, []))

    @property
    def num_done(self) -> int:
        """Trials that have ended and count."""
        return len(self._tally.ended) - len(self.forgiven)

    def next(self, target: int, *, fresh: bool = True) -> Asked | None:
        """An interrupted trial, else a new one while fewer than `target` trials exist, else None.

        `fresh`: whether new ones may be begun.
        """
        while self._interrupted:
            asked = self._begin(self._resume(self._interrupted.popleft()))
            if asked is not None:
                return asked
        while fresh and self.wants(target):
            asked = self._begin(self._resume(self._pop(target))) if self._waiting else self._draw()
            if asked is not None:
                return asked
        return None

    def _pop(self, target: int) -> int:
        """What waits longest; of more than `target` trials the reference alone."""
        number = self._waiting[0] if self._begun < target else next(filter(self._is_reference, self._waiting))
        self._waiting.remove(number)
        return number

    def _is_reference(self, number: int) -> bool:
        return REFERENCE in self._trial(number).user_attrs

    @property
    def _begun(self) -> int:
        """Trials that count and do not wait to begin."""
        return self._tally.begun - len(self._waiting)

    def _draw(self) -> Asked | None:
        """A new trial; None where it repeats settings, or (`exhausted`) where all have been tried."""
        if not self._sampler.enumerates and self._tally.repeats < REDRAWS:
            return self._begin(self._ask())
        points = self._points
        if points is None and self._tally.repeats < REDRAWS + RANDOM_REDRAWS:
            return self._begin(self._ask(SAMPLERS["random"].make))
        point = next((p for p in points or () if not self._tally.tried(p)), None)
        if point is None:
            self.exhausted = True
            return None
        return self._begin(self._ask(lambda draw: point_sampler(point, draw.own_seed)))

    @cached_property
    def _points(self) -> Sequence[Mapping[str, Any]] | None:
        """What there is to be tried; None where it cannot be counted."""
        if self._sampler.enumerates:
            return grid_points(self._space, self._seed)
        return all_points(self._space)

    def wants(self, target: int) -> bool:
        """Whether new trials are to be begun: until `target` have been, and the reference is among them.

        What failed before any trial had finished, in an earlier process, does not count: its cause may have
        been mended.
        """
        if self.hopeless():
            return False
        if any(map(self._is_reference, self._waiting)):
            return True
        return self._begun < target and (bool(self._waiting) or not self.exhausted)

    @property
    def num_waiting(self) -> int:
        """Settings that have been enqueued, and not begun."""
        return len(self._waiting)

    def _ask(self, sampler: MakeSampler | None = None) -> Trial:
        number = self._tally.created
        self._tally.created += 1
        self._tally.begun += 1
        self._seed_draw(number, sampler)
        with self._drawing():
            return self._study.ask()

    def _resume(self, number: int) -> Trial:
        self._seed_draw(number)  # it may have died in the draw
        waits = self._trial(number).state is TrialState.WAITING
        if waits and not self._storage.set_trial_state_values(number, TrialState.RUNNING):
            raise StorageError(f"trial {number} of the study has been begun: another process writes it too")
        with self._drawing():
            return Trial(self._study, number)

    def _seed_draw(self, number: int, sampler: MakeSampler | None = None) -> None:
        make = sampler or self._sampler.make
        with self._drawing():
            self._study.sampler = make(Draw(self._space, self._seed, number))

    def close(self) -> None:
        """Let go of the storage, and of the trials begun here: they wait for the next process."""
        for number in sorted(self._running):
            self._storage.set_trial_state_values(number, TrialState.WAITING)
        self._running.clear()
        self._storage.close()

    def searched(self, seconds: float) -> None:
        """Keep that this process has searched for so long."""
        self._study.set_user_attr(SEARCHED, self.seconds_searched + seconds)

    def _begin(self, trial: Trial) -> Asked | None:
        """A trial to run; None where its settings are an earlier trial's."""
        number = trial.number
        with self._drawing():
            asked = Asked(number, self._space.draw(trial))
        first = self._tally.first(number, asked.settings)
        if first == number:
            self._storage.keep()
            self._running[number] = trial
            return asked
        # It stays in the storage, so that the next number draws anew, and counts for nothing.
        self._tally.begun -= 1
        trial.set_user_attr(REPEAT, first)
        trial.set_user_attr(REASON, f"the same settings as trial {first}")
        self._study.tell(trial, state=TrialState.FAIL)
        return None

    def observe(self, number: int, result: Mapping[str, Any]) -> bool:
        """Take in an epoch's result; True if the trial is to be stopped. Safe to call twice.

        A result that failed, lacks its objective, or is not finite ends the trial as FAIL with the reason.
        """
        trial = self._running.get(number)
        if trial is None:
            return True
        reason = failure(result, self._goals)
        if reason:
            self.fail(number, reason)
            return True
        epoch = int(result["epoch"])
        if epoch not in curve_of(self._trial(number)):
            self._report(trial, result, epoch)
        if epoch >= trial.user_attrs.get(RESULT, {}).get("epoch", 0):  # also after a kill between the two
            trial.set_user_attr(RESULT, {k: result[k] for k in KEPT if k in result})
        if result.get("finished"):
            self._succeed(number, TrialState.COMPLETE, [float(result[goal]) for goal in self._goals])
            return True
        if REFERENCE not in trial.user_attrs and (self._overdue(result) or self._prunes(trial, epoch)):
            self._succeed(number, TrialState.PRUNED)
            return True
        return False

    def _overdue(self, result: Mapping[str, Any]) -> bool:
        """Whether a trial has used up the time that it may take."""
        limits = (bound for bound in self._bounds if bound.figure == SECONDS and not bound.least)
        return any(bound.excess(result.get(SECONDS, 0.0)) > 0 for bound in limits)

    def _prunes(self, trial: Trial, epoch: int) -> bool:
        if len(self._goals) == 1:
            with self._pruning():
                return trial.should_prune()
        own = trial.user_attrs.get(LOSSES, {}).get(str(epoch))
        if self._front is None or own is None:
            return False
        finished = (t for t in self.trials() if t.state is TrialState.COMPLETE)
        others = [t.user_attrs.get(LOSSES, {}).get(str(epoch)) for t in finished]
        return self._front(epoch, own, [losses for losses in others if losses])

    def _report(self, trial: Trial, result: Mapping[str, Any], epoch: int) -> None:
        objective = float(result["objective"])
        if len(self._goals) == 1:
            trial.report(objective, epoch)
            return
        # Optuna keeps no curves of several goals.
        trial.set_user_attr(CURVE, {**trial.user_attrs.get(CURVE, {}), str(epoch): objective})
        if self._front is not None and all(goal in result for goal in self._goals):
            losses = [loss(goal, float(result[goal])) for goal in self._goals]
            trial.set_user_attr(LOSSES, {**trial.user_attrs.get(LOSSES, {}), str(epoch): losses})

    def _succeed(self, number: int, state: TrialState, values: list[float] | None = None) -> None:
        trial = self._running.pop(number)
        if self._bounds:
            self._constrain(trial)
        self._study.tell(trial, values, state=state)
        self._tally.end(number)

    def _constrain(self, trial: Trial) -> None:
        """Keep by how much a trial breaks each bound; an earlier driver may have died just behind this."""
        found = self._trial(trial.number)
        for bound in self._bounds:
            if str(bound) not in found.constraints:
                trial.set_constraint(str(bound), bound.excess(found.user_attrs[RESULT].get(bound.figure)))

    def fail(self, number: int, reason: str) -> None:
        """End a trial whose worker is gone for good. Does nothing if it has ended."""
        trial = self._running.pop(number, None)
        if trial is not None:
            trial.set_user_attr(REASON, reason)
            self._study.tell(trial, state=TrialState.FAIL)
            self._tally.end(number, failed=reason)

    def is_running(self, number: int) -> bool:
        """Whether a trial was begun by this process and has not ended."""
        return number in self._running

    def ended(self, since: int = 0) -> list[TrialRecord]:
        """The trials that have ended, in that order, without the first `since` of them."""
        return [record_of(self._trial(number)) for number in self._tally.ended[since:]]

    def _trial(self, number: int) -> FrozenTrial:
        return self._storage.get_trial(number)

    def hopeless(self) -> str | None:
        """The last reason, where many trials have failed and none has finished since this process began."""
        return self._tally.hopeless(HOPELESS)

    def best(self) -> TrialRecord | None:
        """The finished trial with the highest objective, whatever it breaks; the earliest of equals."""
        return next(iter(by_score(self.ended())), None)


def _own(name: str) -> Callable[[], AbstractContextManager[None]]:
    """While a sampler or a pruner works: an error of a user's own is told as that."""
    if not is_reference(name):
        return nullcontext
    return partial(failing, name, but=(UserError, *LOST))


def failure(result: Mapping[str, Any], goals: Sequence[str] = ()) -> str:
    """Why a result counts as a failure, or ""."""
    if result.get("failed"):
        return str(result["failed"])
    needed = dict.fromkeys(["objective", "epoch", *(goals if result.get("finished") else ())])
    missing = [key for key in needed if key not in result]
    if missing:
        return f"the trial reported no {' and no '.join(missing)}"
    for key in needed:
        if not math.isfinite(float(result[key])):
            what = "the objective" if key == "objective" else f"the figure '{key}'"
            return f"{what} is {result[key]} in epoch {result['epoch']}"
    return ""
