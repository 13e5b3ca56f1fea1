import pytest

from services.scheduler.simulator.fitting import fit

POINTS = [(batch * length, batch * length**2) for batch in (1, 2, 8) for length in (16, 128, 512)]


def test_times_that_follow_the_model_are_fitted_exactly():
    times = [3.0 + 0.02 * tokens + 1e-6 * squares for tokens, squares in POINTS]
    coefficients, errors = fit(POINTS, times)
    assert coefficients == pytest.approx([3.0, 0.02, 1e-6], rel=1e-6)
    assert max(map(abs, errors)) < 1e-9


def test_a_coefficient_that_would_be_negative_is_zero():
    times = [3.0 + 0.02 * tokens - 1e-6 * squares for tokens, squares in POINTS]
    coefficients, _ = fit(POINTS, times)
    assert coefficients[2] == 0
    assert coefficients[1] > 0


def test_small_batches_weigh_as_much_as_large_ones():
    times = [3.0 + 0.02 * tokens for tokens, _ in POINTS]
    times[-1] *= 1.1
    _, errors = fit(POINTS, times)
    assert max(map(abs, errors[:3])) < 0.05


def test_one_variable_is_fitted_as_well_as_two():
    coefficients, errors = fit([(size,) for size in (1e3, 1e5, 1e7)], [1.0 + size * 2e-7 for size in (1e3, 1e5, 1e7)])
    assert coefficients == pytest.approx([1.0, 2e-7], rel=1e-6)
    assert max(map(abs, errors)) < 1e-9


def test_two_points_are_too_few():
    with pytest.raises(ValueError, match="2 points"):
        fit([(1, 1), (2, 4)], [1.0, 2.0])
