"""BD-rates against published ones, against interpolations written out here, and what gets no number."""

import math

import numpy as np
import pytest

pytest.importorskip("bjontegaard", reason="svdrd.compress needs pip install 'svdrd[compress]'")

from svdrd.compress.comparison.bd_rate import METHODS, NoBDRate, bd_rate, ms_ssim_db, overlap, rate_at
from svdrd.compress.comparison.bootstrap import interval, resamples

# JCT-VC's cases as Netflix's vmaf has them in python/test/bd_rate_calculator_test.py, class BDrateCalculatorJCTVCTest:
# points in kbit/s and dB, the BD-rate as a fraction.
JCT_VC = [
    (
        [(108048.8736, 43.6471), (61279.976, 40.3953), (33905.6656, 37.247), (18883.6928, 34.2911)],
        [(108061.2784, 43.6768), (61299.9936, 40.4232), (33928.7472, 37.2761), (18910.912, 34.3147)],
        -0.00465215420752807,
    ),
    (
        [(40433.8848, 37.5761), (7622.7456, 35.3756), (2394.488, 33.8977), (1017.6184, 32.0603)],
        [(40370.12, 37.5982), (7587.0024, 35.4025), (2390.0944, 33.9194), (1017.0984, 32.0822)],
        -0.018779823450567612,
    ),
]
# x265 (anchor) and x264 in Mbit/s and dB, with the cubic BD-rate of the Matlab code's Python port, as printed at
# https://videonerd.website/how-compute-bd-rate/.
X265 = [8.914, 13.330, 17.880, 22.990], [37.02, 38.37, 39.42, 40.35]
X264 = [9.525, 14.27, 19.113, 24.393], [37.73, 39.07, 40.07, 40.95]
X264_OVER_X265 = -12.098
# README of the package bjontegaard: libx265 with two presets.
PRESETS = (
    ([9487.76, 4593.60, 2486.44, 1358.24], [40.037, 38.615, 36.845, 34.851]),
    ([9787.80, 4469.00, 2451.52, 1356.24], [40.121, 38.651, 36.970, 34.987]),
)
# Example 3 of the same package: six points.
SIX = (
    ([82472.76, 26875.24, 9487.76, 4593.6, 3600, 2900], [43.825, 41.404, 40.037, 38.615, 36.5, 35.1]),
    ([99896.96, 33952.04, 9787.8, 4469.0, 4040, 3300], [44.731, 41.875, 40.121, 38.651, 37, 36.5]),
)


@pytest.mark.parametrize(("anchor", "test", "published"), JCT_VC)
def test_the_common_test_conditions(anchor, test, published):
    assert bd_rate(*zip(*anchor, strict=True), *zip(*test, strict=True)) == pytest.approx(100 * published, abs=1e-9)


def test_the_cubic_method_as_published():
    assert bd_rate(*X265, *X264, method="cubic") == pytest.approx(X264_OVER_X265, abs=5e-4)


def pchip_slopes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Fritsch and Butland's: a weighted harmonic mean of the neighbouring secants, 0 where these differ in sign."""
    h, secant = np.diff(x), np.diff(y) / np.diff(x)
    slopes = np.zeros_like(x)
    for k in range(1, len(x) - 1):
        if secant[k - 1] * secant[k] > 0:
            w1, w2 = 2 * h[k] + h[k - 1], h[k] + 2 * h[k - 1]
            slopes[k] = (w1 + w2) / (w1 / secant[k - 1] + w2 / secant[k])
    for end, (h0, h1), (s0, s1) in (
        (0, (h[0], h[1]), (secant[0], secant[1])),
        (-1, (h[-1], h[-2]), (secant[-1], secant[-2])),
    ):
        slope = ((2 * h0 + h1) * s0 - h0 * s1) / (h0 + h1)
        if slope * s0 <= 0:
            slope = 0.0
        elif s0 * s1 < 0 and abs(slope) > 3 * abs(s0):
            slope = 3 * s0
        slopes[end] = slope
    return slopes


def akima_slopes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Akima 1970: two secants are extrapolated at each end."""
    secant = list(np.diff(y) / np.diff(x))
    for _ in range(2):
        secant = [2 * secant[0] - secant[1], *secant, 2 * secant[-1] - secant[-2]]
    slopes = []
    for k in range(len(x)):
        m1, m2, m3, m4 = secant[k : k + 4]
        left, right = abs(m4 - m3), abs(m2 - m1)
        slopes.append((left * m2 + right * m3) / (left + right) if left + right > 0 else (m2 + m3) / 2)
    return np.array(slopes)


def hermite_integral(x: np.ndarray, y: np.ndarray, slopes: np.ndarray, low: float, high: float) -> float:
    """Of the piecewise cubic with these values and slopes, exactly, from low to high."""
    total = 0.0
    for k in range(len(x) - 1):
        a, b = max(low, x[k]), min(high, x[k + 1])
        if b <= a:
            continue
        h = x[k + 1] - x[k]
        secant = (y[k + 1] - y[k]) / h
        c2 = (3 * secant - 2 * slopes[k] - slopes[k + 1]) / h
        c3 = (slopes[k] + slopes[k + 1] - 2 * secant) / h**2
        antiderivative = np.polynomial.Polynomial([y[k], slopes[k], c2, c3]).integ()
        total += antiderivative(b - x[k]) - antiderivative(a - x[k])
    return total


def independent_bd_rate(anchor, test, method: str) -> float:
    curves = []
    for rates, qualities in (anchor, test):
        order = np.argsort(rates)
        curves.append((np.asarray(qualities, float)[order], np.log(np.asarray(rates, float)[order])))
    low = max(x[0] for x, _ in curves)
    high = min(x[-1] for x, _ in curves)
    integrals = []
    for x, y in curves:
        if method == "cubic":
            # Centred, and in the normal equations: neither the scaling nor the solver of np.polyfit.
            vandermonde = np.vander(x - x.mean(), 4, increasing=True)
            coefficients = np.linalg.solve(vandermonde.T @ vandermonde, vandermonde.T @ y)
            antiderivative = np.polynomial.Polynomial(coefficients).integ()
            integrals.append(antiderivative(high - x.mean()) - antiderivative(low - x.mean()))
        else:
            slopes = pchip_slopes(x, y) if method == "pchip" else akima_slopes(x, y)
            integrals.append(hermite_integral(x, y, slopes, low, high))
    return 100 * math.expm1((integrals[1] - integrals[0]) / (high - low))


def random_curves(seed: int) -> tuple:
    """Curves of a codec: concave in the logarithm of the rate, of 4 to 7 points that differ in number and place."""
    generator = np.random.default_rng(seed)
    curves = []
    for _ in range(2):
        log_rate = np.sort(generator.uniform(-2.5, 0.7, 7))[: generator.integers(4, 8)]
        log_rate += np.arange(len(log_rate)) * 0.15
        curves.append((np.exp(log_rate), 33 + 4.5 * log_rate - 0.4 * log_rate**2 + generator.uniform(-0.2, 0.2)))
    return tuple(curves)


@pytest.mark.parametrize(
    ("method", "case"),
    [(method, case) for method in METHODS for case in ("presets", "x264", *range(6))] + [("pchip", "six points")],
)
def test_against_the_interpolations_written_out(method: str, case: str | int):
    curves = {"presets": PRESETS, "six points": SIX, "x264": (X265, X264)}.get(case) or random_curves(int(case))
    value = bd_rate(*curves[0], *curves[1], method=method)
    assert value == pytest.approx(independent_bd_rate(*curves, method), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(("method", "at"), [("cubic", "36.5"), ("akima", "37.42")])
def test_curves_that_turn_back_between_monotone_points(method: str, at: str):
    """The package's own example of what these two may do."""
    with pytest.raises(NoBDRate, match=f"test: between its points the {method} curve is not monotone: near {at} dB"):
        bd_rate(*SIX[0], *SIX[1], method=method)


@pytest.mark.parametrize("method", METHODS)
def test_a_constant_factor_is_the_bd_rate(method: str):
    rates, qualities = np.array(X265)
    assert bd_rate(rates, qualities, 0.9 * rates, qualities, method) == pytest.approx(-10, abs=1e-9)
    assert bd_rate(rates, qualities, rates, qualities, method) == 0
    # The order of the points does not matter, and the other way round the factor is the inverse.
    shuffled = [2, 0, 3, 1]
    assert bd_rate(rates[shuffled], qualities[shuffled], *X264, method) == bd_rate(rates, qualities, *X264, method)
    there, back = bd_rate(*X265, *X264, method), bd_rate(*X264, *X265, method)
    assert (1 + there / 100) * (1 + back / 100) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("rates", "qualities", "said"),
    [
        ([0.1, 0.2, 0.4], [30, 32, 34], "basis: 3 points, wanted 4 or more (0.1 bpp 30 dB, 0.2 bpp 32 dB, 0.4"),
        ([0.1, 0.2, 0.4, 0.8], [30, 32, 31.9, 36], "basis: the quality does not rise with the rate from point 2 to 3"),
        ([0.1, 0.2, 0.4, 0.8], [30, 32, 32, 36], "does not rise with the rate from point 2 to 3"),
        ([0.1, 0.2, 0.2, 0.8], [30, 32, 33, 36], "does not rise with the rate from point 2 to 3"),
        ([0.1, 0.2, 0.4, 0.8], [30, 32, 34, math.inf], "basis: a point is not finite"),
        ([0.1, 0.2, 0.4, 0.8], [30, 32, math.nan, 36], "basis: a point is not finite"),
        ([0.0, 0.2, 0.4, 0.8], [30, 32, 34, 36], "basis: a rate of 0 bpp has no logarithm"),
        ([0.1, 0.2, 0.4, 0.8], [40, 41, 42, 43], "no common quality: base 30 to 36 dB, basis 40 to 43 dB"),
        ([0.1, 0.2, 0.4, 0.8], [36, 41, 42, 43], "no common quality"),
    ],
)
def test_no_number_but_the_reason(method: str, rates, qualities, said: str):
    anchor = [0.1, 0.2, 0.4, 0.8], [30, 32, 34, 36]
    with pytest.raises(NoBDRate) as caught:
        bd_rate(*anchor, rates, qualities, method, ("base", "basis"))
    assert said in str(caught.value)
    # The same the other way round, with the other name.
    with pytest.raises(NoBDRate):
        bd_rate(rates, qualities, *anchor, method)


def test_bad_calls():
    with pytest.raises(ValueError, match="method='linear': one of cubic, pchip, akima"):
        bd_rate(*X265, *X264, method="linear")
    with pytest.raises(ValueError, match="wanted as many of both"):
        bd_rate([1, 2, 3, 4], [30, 31, 32], *X264)


def test_overlap():
    assert overlap([30, 40], [30, 40]) == 1
    assert overlap([30, 40], [35, 45]) == pytest.approx(1 / 3)
    assert overlap([30, 35], [36, 40]) == 0
    assert overlap([30, 35], [31, math.inf]) == 0


def test_rate_at_the_points_is_their_rate():
    rates, qualities = np.array(X265)
    for method in METHODS:
        assert rate_at(rates, qualities, qualities, method) == pytest.approx(rates, rel=1e-9)


def test_ms_ssim_in_db():
    assert ms_ssim_db([0.9, 0.99]) == pytest.approx([10, 20])
    assert ms_ssim_db(1) == math.inf


def test_resamples_are_a_function_of_the_seed():
    draws = resamples(24, 500, seed=3)
    assert draws.shape == (500, 24)
    assert np.array_equal(draws, resamples(24, 500, seed=3))
    assert not np.array_equal(draws, resamples(24, 500, seed=4))
    assert set(draws.ravel()) == set(range(24))


def test_interval_holds_95_percent():
    assert interval(np.arange(1001.0)) == pytest.approx((25, 975))
    # Against the textbook: the mean of 400 draws of a normal distribution.
    values = np.random.default_rng(0).normal(5, 2, 400)
    low, high = interval(values[resamples(400, 4000, 0)].mean(axis=1))
    half = 1.96 * values.std(ddof=1) / math.sqrt(400)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)
