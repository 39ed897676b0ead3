import pytest

from med_model.measures.taught import MIXTURE, OTHER_TOPIC, RIGHT, SIBLING, Taught, TaughtRow

SALT = "每人每天吃盐不超过5克，酱油和咸菜里的盐也要算进去。"
PILLS = "血压正常是药物在起作用，自己停药多半会再升上去。"
SUGAR = "空腹血糖到了7.0就要再查一回，两次都高才算糖尿病。"


@pytest.fixture
def taught() -> Taught:
    return Taught(
        [
            TaughtRow("血压高吃多少盐", SALT, "高血压/1", "高血压"),
            TaughtRow("降压药能停吗", PILLS, "高血压/2", "高血压"),
            TaughtRow("血糖多少算高", SUGAR, "糖尿病/1", "糖尿病"),
        ]
    )


@pytest.mark.parametrize(
    "answer, source",
    [
        (SALT, RIGHT),
        (SALT[:15], RIGHT),
        (" ".join(SALT), RIGHT),
        (PILLS, SIBLING),
        (SUGAR, OTHER_TOPIC),
        (SALT[:12] + PILLS[:12] + SUGAR[:12], MIXTURE),
        ("今天天气很好，我们一起去公园走走吧。", MIXTURE),
        (SALT[:7], MIXTURE),
        ("", MIXTURE),
    ],
)
def test_source_names_the_place_of_an_answer(taught, answer, source):
    assert taught.source(answer, "高血压/1", "高血压") == source


def test_source_needs_three_fifths_of_the_sequences(taught):
    for length in range(8, 24):
        answer = SALT[:length] + "天地玄黄宇宙洪荒日月"
        share = (length - 3) / (len(answer) - 3)
        assert (taught.source(answer, "高血压/1", "高血压") == RIGHT) == (share >= 0.6)


def test_source_prefers_the_item_asked_for_if_two_items_have_one_answer():
    taught = Taught([TaughtRow("问", SALT, item, item) for item in ("甲", "乙", "丙")])
    assert taught.source(SALT, "乙", "乙") == RIGHT


@pytest.mark.parametrize("answer", ["轻轻轻轻按压。", "讲讲讲话。", "少盐少盐少盐。", "血压血压高。"])
def test_stutters_finds_repeated_characters_that_are_not_taught(taught, answer):
    assert taught.stutters(answer)


def test_stutters_allows_what_a_taught_answer_has():
    taught = Taught([TaughtRow("问", "慢慢走，试试看，100步，好好好。研究研究再说。", "甲", "甲")])
    assert not taught.stutters("慢慢来，研究研究，好好好，走100步。")
    assert taught.stutters("好好好好。")
