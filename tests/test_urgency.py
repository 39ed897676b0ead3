import pytest

from med_model.urgency import is_urgent


@pytest.mark.parametrize(
    "answer",
    ["请立即拨打120，让他平躺。", "\n马上去急诊！路上别吃东西。", "这很危险，叫120", "先叫救护车，再按压胸口。"],
)
def test_a_call_for_help_in_the_first_sentence_is_urgent(answer):
    assert is_urgent(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "多喝水，多休息。若是喘不上气，立即拨打120。",
        "按压每分钟100到120次。",
        "血红蛋白低于120克每升算贫血。",
    ],
)
def test_a_warning_that_follows_and_a_plain_number_are_not(answer):
    assert not is_urgent(answer)
