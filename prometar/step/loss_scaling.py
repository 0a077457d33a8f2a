"""Loss scaling, which keeps the cotangents (gradients) of the meta phase within the range of float16.

float16 underflows below 6e-8 and is imprecise below 6e-5. The outer weight (default 5e-4) and the inner lr
(default 5e-4) make cotangents that small. Each cotangent is scaled up before it enters the towers, and the
result is scaled back in float32. Factors are powers of two, so scaling is exact within the range of float16.
The exact factor does not matter: with the backbone `mini`, factors 16 times larger or smaller give the same
gradients.
"""

import math

import torch

HEADROOM = 16.0
"""Divisor of a tangent's scale factor. Tangents are multiplied by cotangents, which must not overflow."""


def scale_factor(dtype: torch.dtype, *numbers: float) -> float:
    """Return the scale factor for a cotangent that is proportional to the product of `numbers`.

    In float16, the factor is the power of two next to 1 / product, and at most 2^40. Otherwise, it is 1.

    Example:
        >>> scale_factor(torch.float16, 0.1), scale_factor(torch.float32, 0.1)
        (8.0, 1.0)
    """
    if dtype is not torch.float16:
        return 1.0
    product = max(math.prod(numbers), 2.0**-40)
    return 2.0 ** -round(math.log2(product))
