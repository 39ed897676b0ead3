import math

import pytest

from med_model.measures.naive_bayes import NaiveBayes


def test_score_is_the_log_ratio_of_the_smoothed_frequencies():
    style = NaiveBayes(["好"], ["坏坏"])
    # Sequences have 1 or 2 characters. The good answer has one: 好. The bad answer has three: 坏, 坏, 坏坏. So three
    # different sequences are known. Smoothing adds 1 to the count of each of them.
    good, bad = math.log((1 + 1) / (1 + 3)), math.log((0 + 1) / (3 + 3))
    assert style.score("好") == pytest.approx(good - bad)
    assert style.score("没见过") == 0


def test_score_tells_a_caricature_and_does_not_tell_a_changed_number():
    good = [f"每天吃盐不超过{number}克。" for number in range(1, 9)]
    style = NaiveBayes(good, ["三天包好，药到病除！", "祖传秘方，断根！"])
    assert style.score("每天吃盐不超过5克。") > style.score("祖传秘方，三天断根！")
    fair = NaiveBayes(good, good[::-1])
    assert fair.score("每天吃盐不超过5克。") == pytest.approx(fair.score("每天吃盐不超过6克。"))
