"""Smooth activations as sums of ReLUs with public numbers, evaluated as one layer of comparisons.

    f(x) = slope x + sum_k jumps_k ReLU(x - knots_k) + offset

Each curve is the best one found with ten knots, for SiLU with 24. Networks use SiLU in every layer: with ten
knots the answer of tinynet_e of timm is off by 7 % of its largest number, with 24 by 0.8 %. Nelder and Mead's
method chooses the knots. Linear programming chooses the jumps with the smallest largest error. The asymptotes
on both sides are the true ones. Jumps are whole multiples of 2^-16. Fixed point therefore loses nothing, and
the asymptotes hold at any distance. Errors, over all real numbers:

    sigmoid   0.0036     SiLU   0.0017     GELU   0.0050     tanh   0.0071

Hard sigmoid is exact except for the rounding of 1/6. An element costs one comparison for each knot.
"""

from pibench.program.ir import PiecewiseLinear


def _curve(knots: tuple[float, ...], units: tuple[int, ...]) -> PiecewiseLinear:
    """Returns the curve that is 0 on the left, with jumps in units of 2^-16."""
    return PiecewiseLinear(0.0, knots, tuple(unit / 65536 for unit in units))


def _mirrored(half: tuple[float, ...]) -> tuple[float, ...]:
    return (*(-knot for knot in reversed(half)), *half)


HARD_SIGMOID = PiecewiseLinear(0.0, (-3.0, 3.0), (1 / 6, -1 / 6))
SIGMOID = _curve(
    _mirrored((0.87, 1.563, 2.385, 3.504, 5.697)),
    (771, 2453, 3866, 4523, 4013, -4013, -4523, -3866, -2453, -771),
)
SILU = _curve(
    _mirrored((0.108, 0.327, 0.557, 0.804, 1.077, 1.386, 1.782, 3.131, 3.913, 4.84, 6.117, 8.661)),
    (
        *(-308, -950, -1478, -1822, -1678, 2827, 4107, 5318, 6106, 6649, 6939, 7058),
        *(7058, 6939, 6649, 6106, 5318, 4107, 2827, -1678, -1822, -1478, -950, -308),
    ),
)
GELU = _curve(
    _mirrored((0.154, 0.474, 0.848, 2.166, 2.978)),
    (-2374, -4734, 10091, 13981, 15804, 15804, 13981, 10091, -4734, -2374),
)
TANH = PiecewiseLinear(  # 2 sigmoid(2 x) - 1
    0.0, tuple(knot / 2 for knot in SIGMOID.knots), tuple(4 * jump for jump in SIGMOID.jumps), -1.0
)
