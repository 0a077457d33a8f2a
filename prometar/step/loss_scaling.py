"""Scaling: keeps the cotangents of the meta phase within float16's range.

float16 loses what is smaller than 6e-8 and rounds coarsely below 6e-5. The query loss has a weight (5e-4 in
the released settings), and what it tells of the support gradient an inner rate (5e-4) besides. Both are
taken out of a cotangent before it enters the towers, and put in when it has left them, where all is float32
again. Factors are powers of two: but for float16's range, nothing changes. On the bundled backbone factors
16 times larger or smaller give the same gradients.
"""

import math

import torch

ROOM = 16.0
"""Headroom of a tangent: its products with cotangents must not overflow float16 either."""


def factor(dtype: torch.dtype, *numbers: float) -> float:
    """Return the factor of a cotangent that is too small by the product of `numbers` for towers in `dtype`.

    1 / product to the nearest power of two in float16, where zero counts as 2^-40; else 1.

    Example:
        >>> factor(torch.float16, 0.1), factor(torch.float32, 0.1)
        (8.0, 1.0)
    """
    if dtype is not torch.float16:
        return 1.0
    return 2.0 ** -round(math.log2(max(math.prod(numbers), 2.0**-40)))
