"""Which settings a study chooses: the released ones, unless others are probably better on the test.

The highest of many noisy figures flatters, and a score that sees no test image is not the test. How much is
known from other data sets: of each point that a contender leads by in the last round, `slope` arrives on the
test, give or take `spread`. So a lead becomes an expected gain and a probability.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from scipy.special import ndtr

KEEP_UNLESS = 0.8
"""The probability of being better from which on a contender replaces the released settings."""


@dataclass(frozen=True)
class Calibration:
    """gain on the test ~ N(slope * lead, spread^2), in points of H; fitted on the development sets.

    Args:
        noise: Standard deviation of one pair's difference in the score.
    """

    slope: float
    spread: float
    noise: float


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

    The lead is shrunk by the share of its variance that is not noise, b^2 / (b^2 + noise^2 / n), with
    b = spread / slope, what leads differ by.
    """
    lead, pairs = mean(differences), len(differences)
    between = (calibration.spread / calibration.slope) ** 2
    shrunk = lead * between / (between + calibration.noise**2 / pairs)
    expected = calibration.slope * shrunk
    return Candidate(number, lead, pairs, expected, float(ndtr(expected / calibration.spread)))


def choose(candidates: Sequence[Candidate], *, keep_unless: float = KEEP_UNLESS) -> Candidate | None:
    """The candidate of the highest expected gain; None where the released settings are kept.

    Example:
        >>> calibration = Calibration(slope=0.8, spread=1.0, noise=1.0)
        >>> far = candidate(7, [3.0, 2.0], calibration)
        >>> choose([far, candidate(9, [0.1, -0.2], calibration)]).number
        7
        >>> choose([candidate(9, [0.1, -0.2], calibration)]) is None
        True
    """
    best = max(candidates, key=lambda each: (each.expected, -each.number), default=None)
    return best if best is not None and best.probability >= keep_unless else None


def leads(scores: Mapping[int, Sequence[float]], released: int) -> dict[int, list[float]]:
    """Differences to the released settings, block by block, of all others."""
    own = scores[released]
    return {
        number: [score - reference for score, reference in zip(blocks, own, strict=True)]
        for number, blocks in scores.items()
        if number != released
    }
