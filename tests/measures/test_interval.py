import numpy as np
import pytest

from med_model.measures.interval import difference, figure, measure, outside_noise


def test_figure_of_a_share_has_about_the_interval_of_the_normal_approximation():
    found = figure(measure([1] * 300 + [0] * 700))
    assert found.value == 0.3 and found.n == 1000
    half = 1.96 * np.sqrt(0.3 * 0.7 / 1000)
    assert found.low == pytest.approx(0.3 - half, abs=0.005) and found.high == pytest.approx(0.3 + half, abs=0.005)


def test_figure_has_an_interval_that_holds_the_true_value_in_nine_of_ten_cases():
    rng = np.random.default_rng(1)
    held = [low <= 0.8 <= high for _, low, high, _ in (figure(measure(rng.random(100) < 0.8)) for _ in range(200))]
    assert 0.89 <= np.mean(held) <= 0.99


def test_figure_of_a_share_of_0_or_1_still_has_an_interval():
    none, all_of_them = figure(measure([0] * 50)), figure(measure([1] * 50))
    assert none.low == 0 and none.high == pytest.approx(0.071, abs=0.001)
    assert all_of_them.high == 1 and all_of_them.low == pytest.approx(1 - 0.071, abs=0.001)


def test_measure_with_weights_weighs_each_item_by_its_size():
    assert figure(measure([1, 6], [1, 3])).value == 7 / 4


def test_measure_with_groups_has_a_wider_interval():
    values = [0, 1] * 20
    alone = figure(measure([value for value in values for _ in range(4)]))
    together = figure(measure([value for value in values for _ in range(4)], groups=[i // 4 for i in range(160)]))
    assert together.value == alone.value == 0.5 and together.n == 160
    assert together.high - together.low > 1.7 * (alone.high - alone.low)


def test_difference_sees_a_small_gain_on_every_item_though_the_intervals_overlap():
    rng = np.random.default_rng(2)
    before = rng.normal(size=200)
    change = difference(measure(before + 0.05), measure(before))
    assert change.value == pytest.approx(0.05) and outside_noise(change)
    assert figure(measure(before + 0.05)).low < figure(measure(before)).high


def test_difference_by_chance_is_within_the_noise():
    rng = np.random.default_rng(3)
    outside = [
        outside_noise(difference(measure(rng.random(200) < 0.5), measure(rng.random(200) < 0.5))) for _ in range(100)
    ]
    assert 0 < sum(outside) <= 12
    assert not outside_noise(difference(measure([1, 0, 1]), measure([1, 0, 1])))


def test_difference_refuses_measures_of_different_items():
    with pytest.raises(ValueError, match="3 and 2 items"):
        difference(measure([1, 0, 1]), measure([1, 0]))
