import math

import pytest
import scipy.stats

from omit_hf.comparison.spread import paired, spread, student_probability, student_quantile


def test_spread_by_hand():
    found = spread([4.0, 8.0, 6.0])
    assert (found.mean, found.deviation, found.values) == (6.0, 2.0, [4.0, 8.0, 6.0])
    half = 4.302652729911275 * 2 / math.sqrt(3)  # t of 2 degrees of freedom, in any table
    assert found.interval == pytest.approx((6 - half, 6 + half), abs=1e-9)


def test_spread_of_few():
    assert (spread([5.0]).deviation, spread([5.0]).interval) == (None, None)
    assert spread([5.0, 7.0]).deviation == pytest.approx(math.sqrt(2))
    assert spread([5.0, 7.0]).interval is None
    assert spread([5.0, 5.0, 5.0]).interval == (5.0, 5.0)
    with pytest.raises(ValueError, match="values is empty; expected at least one"):
        spread([])


def test_paired_is_by_seed():
    found = paired({2: 13.0, 0: 11.0, 1: 12.0, 7: 99.0}, {0: 10.0, 1: 14.0, 2: 10.0, 8: 0.0})
    assert found.values == [3.0, 1.0, -2.0]  # of the seeds 2, 0 and 1
    assert found.mean == pytest.approx(2 / 3)
    assert found.deviation == pytest.approx(math.sqrt(((7 / 3) ** 2 + (1 / 3) ** 2 + (8 / 3) ** 2) / 2))
    assert found.interval == pytest.approx(scipy.stats.t.interval(0.95, 2, 2 / 3, found.deviation / math.sqrt(3)))
    assert paired({0: 1.0}, {1: 1.0}) is None


def test_pairing_takes_out_what_the_seeds_share():
    ours, theirs = {0: 100.0, 1: 150.0, 2: 200.0}, {0: 99.0, 1: 149.5, 2: 198.5}
    assert paired(ours, theirs).deviation < 1 < spread(list(ours.values())).deviation


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 9, 10, 39])
def test_student_against_scipy(freedom):
    for t in (0.0, 0.3, 1.0, 4.3, 60.0):
        assert student_probability(t, freedom) == pytest.approx(scipy.stats.t.cdf(t, freedom), abs=1e-13)
    for probability in (0.5, 0.8, 0.975, 0.9995):
        assert student_quantile(probability, freedom) == pytest.approx(
            scipy.stats.t.ppf(probability, freedom), rel=1e-9, abs=1e-9
        )


@pytest.mark.parametrize(("probability", "freedom"), [(0.3, 2), (1.0, 2), (0.9, 0)])
def test_student_out_of_range(probability, freedom):
    with pytest.raises(ValueError, match=r"expected 0\.5 to below 1"):
        student_quantile(probability, freedom)
