import pytest

from med_model.measures.facts import count_facts, holds, normalised


@pytest.mark.parametrize(
    "spellings",
    [
        ("15分钟", "十五分钟", "１５ 分钟"),
        ("5%", "百分之五", "百分之 5"),
        ("35.5%", "百分之三十五点五"),
        ("3-5天", "三到五天", "3～5天", "3至5天", "三~五天"),
        ("5-7%", "5%～7%", "百分之五到百分之七"),
        ("120", "一百二十", "一二〇"),
        ("305", "三百零五"),
        ("350", "三百五", "三百五十"),
        ("2000", "两千"),
        ("12000", "一万二", "一万两千"),
        ("20", "二十"),
        ("10050", "一万零五十"),
        ("1030", "一千零三十"),
    ],
)
def test_normalised_gives_one_spelling_of_a_number(spellings):
    assert {normalised(spelling) for spelling in spellings} == {spellings[0]}


@pytest.mark.parametrize(
    "answer, fact",
    [
        ("每天走三十分钟。", "30分钟"),
        ("可能是中风，快去医院。", "脑卒中|中风"),
        ("界线是 140 / 90。", "140/90"),
        ("盐不超过五克。", "5克"),
    ],
)
def test_holds_finds_a_fact_in_another_spelling(answer, fact):
    assert holds(answer, fact)


@pytest.mark.parametrize(
    "answer, fact",
    [
        ("盐不超过15克。", "5克"),
        ("走1.5公里。", "5公里"),
        ("界线是140。", "14"),
        ("体温37.5度。", "37"),
        ("多喝水。", "脑卒中|中风"),
        ("多喝水。", "|"),
    ],
)
def test_holds_refuses_a_part_of_a_number_and_an_empty_alternative(answer, fact):
    assert not holds(answer, fact)


def test_normalised_keeps_a_numeral_after_a_digit_apart():
    assert holds("60到89二期，30到59三期。", "60到89") and holds("60～89二期", "60-89")


def test_count_facts_counts_each_fact_once():
    assert count_facts("少盐少油，每天30分钟。", ["少盐|低盐", "三十分钟", "戒酒"]) == 2
