"""Which settings a study chooses: the released ones, unless others are probably better on the test.

The highest of many noisy figures flatters, and a score that sees no test image is not the test. So leads
over the released settings are taken as measurements of the gain on the test, the search's own among them,
beside what is known of the gain before: of any draw on other data sets, and of the very same settings if the
portfolio holds them. That settings were picked for their scores needs no correction then: these scores are
weighed like all others, and drawn towards what is known before.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from scipy.special import ndtr

KEEP_UNLESS = 0.8
"""The probability of being better from which on a contender replaces the released settings."""


@dataclass(frozen=True)
class Belief:
    """A gain on the test is N(mean, sd^2), in points of H."""

    mean: float
    sd: float

    @property
    def probability(self) -> float:
        """That the gain is above 0."""
        return float(ndtr(self.mean / self.sd))

    def given(self, measured: float, sd: float) -> "Belief":
        """This belief after an independent measurement N(gain, sd^2).

        Example:
            >>> Belief(0.0, 1.0).given(2.0, 1.0)
            Belief(mean=1.0, sd=0.7071067811865476)
        """
        weight = self.sd**2 / (self.sd**2 + sd**2)
        return Belief(self.mean + weight * (measured - self.mean), self.sd * math.sqrt(1 - weight))


@dataclass(frozen=True)
class Calibration:
    """How leads of a score have gone with gains on the test on the development sets, in points.

    A lead over n pairs is N(offset + slope * gain, spread^2 + noise^2 / n), of any settings, however they
    were picked. `spread`: What the score sees and the test does not, the same for every seed.
    """

    offset: float
    slope: float
    spread: float
    noise: float

    def measured(self, lead: float, pairs: int) -> tuple[float, float]:
        """The gain that a lead stands for, and its standard deviation."""
        sd = math.hypot(self.spread, self.noise / math.sqrt(pairs)) / abs(self.slope)
        return (lead - self.offset) / self.slope, sd


CALIBRATIONS: Mapping[str, Calibration] = {
    # benchmarks/objectives.py over the four development sets (docs/objectives.md).
    "drift": Calibration(offset=0.29, slope=0.48, spread=1.16, noise=1.53),
}
"""By objective. What is not here is not known, and the highest mean is chosen."""


@dataclass(frozen=True)
class Promise:
    """Points of gain for a point that other studies promise (`tune.stages.learned`), and their spread.

    The slope is not the same on every data set: much is promised where little is known.
    """

    slope: float
    spread: float

    def belief(self, lead: float, draw: Belief) -> Belief:
        """The gain that a promised lead over a draw stands for.

        Example:
            >>> Promise(1.0, 0.5).belief(6.0, Belief(1.0, 4.0))
            Belief(mean=7.0, sd=5.0)
        """
        return Belief(draw.mean + self.slope * lead, math.hypot(draw.sd, self.spread * lead))


PROMISES: Mapping[str, Promise] = {
    # As above: of settings that none of the others had tried.
    "drift": Promise(slope=1.22, spread=0.77),
}
"""By objective."""

BETWEEN = 2.1
"""The standard deviation over data sets of what draws of a space gain in the mean, as above."""

EMBEDDED = Belief(0.6, 3.7)
"""Gains of random draws on the development sets of the embedded suite. The error of their mean over four
sets is in the standard deviation."""
UNKNOWN = Belief(0.0, 3.6)
"""Where nothing like it has been measured: as different, but no better than the released settings."""


def belief(gains: Sequence[float], before: Belief) -> Belief:
    """What is believed of settings that gained so much on other data sets.

    `before` is what is believed of any. Their mean is shrunk towards it, since settings become known by
    having done well; the spread over data sets, `before` counting as one more, stays in the result.

    Example:
        >>> belief([], Belief(1.0, 2.0))
        Belief(mean=1.0, sd=2.0)
    """
    if not gains:
        return before
    centre, count = mean(gains), len(gains)
    variance = (sum((gain - centre) ** 2 for gain in gains) + before.sd**2) / count
    own = before.given(centre, math.sqrt(variance / count))
    return Belief(own.mean, math.hypot(own.sd, math.sqrt(variance)))


def of_draws(leads: Sequence[float], calibration: Calibration, before: Belief) -> Belief:
    """What is believed of a draw of a space, by how far draws were ahead on other data sets.

    Args:
        leads: Of draws over the released settings, in the mean, one for each other study.
        before: What is believed of a draw without them.

    Example:
        >>> of_draws([], CALIBRATIONS["drift"], Belief(0.6, 3.7))
        Belief(mean=0.6, sd=3.7)
        >>> of_draws([-10.0, -12.0], CALIBRATIONS["drift"], UNKNOWN).mean < -5
        True
    """
    if not leads:
        return before
    gain, sd = calibration.measured(mean(leads), 1)
    average = Belief(before.mean, BETWEEN).given(gain, math.hypot(BETWEEN, sd) / math.sqrt(len(leads)))
    return Belief(average.mean, before.sd)


def believed(differences: Sequence[float], calibration: Calibration, before: Belief) -> Belief:
    """What is believed of settings whose scores differ from the released ones' by so much, block by block.

    Args:
        before: What is believed of their gain without these differences.
    """
    return before.given(*calibration.measured(mean(differences), len(differences)))


def leads(scores: Mapping[int, Sequence[float]], released: int) -> dict[int, list[float]]:
    """Differences to the released settings, block by block, of all others."""
    own = scores[released]
    return {
        number: [score - reference for score, reference in zip(blocks, own, strict=True)]
        for number, blocks in scores.items()
        if number != released
    }
