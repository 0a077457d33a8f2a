"""Which settings a study chooses: the released ones, unless others are probably better on the test.

The highest of many noisy figures flatters, and a score that sees no test image is not the test. How much is
known from other data sets: of each point that a contender leads by in the last round, `slope` arrives on the
test, give or take `spread`. So a lead becomes an expected gain and a probability.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from scipy.special import ndtr

KEEP_UNLESS = 0.8
"""The probability of being better from which on a contender replaces the released settings."""


@dataclass(frozen=True)
class Calibration:
    """What leads of a score have been worth on the development sets, in points of H.

    A contender's true lead is N(0, between^2), one pair measures it with N(0, noise^2), and its gain on the
    test is N(offset + slope * true lead, spread^2): `offset` is the price of a pick.
    """

    offset: float
    slope: float
    spread: float
    between: float
    noise: float


CALIBRATIONS: Mapping[str, Calibration] = {
    # 32 settings on `textures`, leads of the ten best against tests with another seed: a small sample, so
    # the released settings stay unless the lead is large (docs/objectives.md).
    "drift": Calibration(offset=-0.6, slope=0.8, spread=1.8, between=1.5, noise=1.1),
}
"""By objective. What is not here is not known, and the highest mean is chosen."""


@dataclass(frozen=True)
class Candidate:
    """Settings in the last round.

    Args:
        number: Of the trial. lead: Mean difference to the released settings, same seeds, in points.
        pairs: How many differences that is the mean of.
        expected: The gain on the test that it stands for. probability: That the gain is above 0.
    """

    number: int
    lead: float
    pairs: int
    expected: float
    probability: float


def candidate(number: int, differences: Sequence[float], calibration: Calibration) -> Candidate:
    """Settings whose scores differ from the released ones' by so much, block by block.

    The lead is shrunk by k = between^2 / (between^2 + noise^2 / n), the share of its variance that is no
    noise. The gain is then N(offset + slope k lead, spread^2 + slope^2 between^2 (1 - k)).
    """
    c, lead, pairs = calibration, mean(differences), len(differences)
    share = c.between**2 / (c.between**2 + c.noise**2 / pairs)
    expected = c.offset + c.slope * share * lead
    spread = math.sqrt(c.spread**2 + c.slope**2 * c.between**2 * (1 - share))
    return Candidate(number, lead, pairs, expected, float(ndtr(expected / spread)))


def leads(scores: Mapping[int, Sequence[float]], released: int) -> dict[int, list[float]]:
    """Differences to the released settings, block by block, of all others."""
    own = scores[released]
    return {
        number: [score - reference for score, reference in zip(blocks, own, strict=True)]
        for number, blocks in scores.items()
        if number != released
    }
