"""Smooth activations as sums of ReLUs with public numbers, evaluated as one layer of comparisons.

    f(x) = slope x + sum_k jumps_k ReLU(x - knots_k) + offset

Each curve is the best one found with ten knots. Nelder and Mead's method chooses the knots. Linear
programming chooses the jumps with the smallest largest error. The asymptotes on both sides are the true ones.
Jumps are whole multiples of 2^-16. Fixed point therefore loses nothing, and the asymptotes hold at any
distance. Errors, over all real numbers:

    sigmoid   0.0036     SiLU   0.0086     GELU   0.0050     tanh   0.0071

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
    _mirrored((0.255, 0.806, 1.39, 4.138, 6.724)),
    (-1443, -3897, 8000, 13667, 16441, 16441, 13667, 8000, -3897, -1443),
)
GELU = _curve(
    _mirrored((0.154, 0.474, 0.848, 2.166, 2.978)),
    (-2374, -4734, 10091, 13981, 15804, 15804, 13981, 10091, -4734, -2374),
)
TANH = PiecewiseLinear(  # 2 sigmoid(2 x) - 1
    0.0, tuple(knot / 2 for knot in SIGMOID.knots), tuple(4 * jump for jump in SIGMOID.jumps), -1.0
)
