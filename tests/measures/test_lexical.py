import math

import pytest

from med_model.measures.lexical import K1, B, LexicalSearch

ROWS = [
    ("血压高能喝酒吗", "少喝或不喝。"),
    ("高血压 喝酒", "少喝或不喝。"),
    ("血压高吃什么药", "请问医生。"),
    ("发烧怎么办", "多喝水，量体温。"),
]


def test_answer_finds_the_nearest_question_over_all_wordings_of_an_answer():
    search = LexicalSearch(ROWS)
    assert search.answer("高血压的人可以喝白酒不") == "少喝或不喝。"
    assert search.answer("血压高要吃哪种药") == "请问医生。"
    assert search.answer("孩子发烧了") == "多喝水，量体温。"
    assert search.answer("xyz") == ROWS[0][1]


def test_scores_are_those_of_bm25():
    search = LexicalSearch([("甲甲乙", "一"), ("丙", "二")])
    # Sequences have 1 to 3 characters. The first text has six: 甲, 甲, 乙, 甲甲, 甲乙, 甲甲乙.
    # The second text has one: 丙.
    lengths, mean = (6, 1), 3.5
    rarity = math.log(1 + (2 - 1 + 0.5) / (1 + 0.5))
    first = rarity * 2 * (K1 + 1) / (2 + K1 * (1 - B + B * lengths[0] / mean))
    assert search.scores("甲") == pytest.approx([first, 0])
    assert search.scores("丙")[1] == pytest.approx(rarity * (K1 + 1) / (1 + K1 * (1 - B + B * lengths[1] / mean)))
    assert search.scores("甲甲") == pytest.approx(
        [2 * first + rarity * (K1 + 1) / (1 + K1 * (1 - B + B * lengths[0] / mean)), 0]
    )


def test_white_space_does_not_matter():
    search = LexicalSearch(ROWS)
    assert search.scores("高血压 喝酒") == pytest.approx(search.scores("高血压喝酒"))


def test_a_search_needs_a_row():
    with pytest.raises(ValueError):
        LexicalSearch([])
