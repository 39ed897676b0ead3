"""Check data/noise.py: random changes of a question."""

import random
from collections import Counter

import pytest

from med_model.data.noise import ENDINGS, KEPT, MARKS, OPENINGS, noisy_question

QUESTION = "我妈血压一直高，没头晕就不用吃药吗？"
OTHER = "老人血压高但人没感觉，药能不能不吃"
ALPHABET = list("心肺肝肾脾")


def changed(strength: float, count: int = 400, question: str = QUESTION, wordings=(QUESTION,)) -> list[str]:
    return [noisy_question(question, wordings, ALPHABET, strength, random.Random(seed)) for seed in range(count)]


def without_politeness(text: str) -> str:
    for opening in OPENINGS:
        text = text.removeprefix(opening)
    for ending in ENDINGS:
        text = text.removesuffix(ending)
    return text.rstrip(MARKS)


def test_noisy_question_is_a_function_of_its_arguments():
    assert changed(0.2) == changed(0.2)
    assert len(set(changed(0.2))) > 300


def test_noisy_question_keeps_negations_and_numbers_in_their_order():
    kept = [character for character in QUESTION if character in KEPT]
    assert kept == ["一", "没", "不"]
    for text in changed(0.5):
        assert [character for character in without_politeness(text) if character in KEPT] == kept


@pytest.mark.parametrize("strength", [0.05, 0.15])
def test_noisy_question_changes_the_share_of_characters_that_it_is_asked_for(strength):
    free = Counter(character for character in QUESTION.rstrip(MARKS) if character not in KEPT)
    gone = [(free - Counter(without_politeness(text))).total() / free.total() for text in changed(strength)]
    # A swap changes the order only, so four fifths of the changed characters are gone.
    assert sum(gone) / len(gone) == pytest.approx(0.8 * strength, rel=0.2)


def test_noisy_question_takes_parts_of_other_wordings():
    texts = changed(0.0, wordings=(QUESTION, OTHER))
    assert sum(OTHER in text and "我妈血压一直高" in text for text in texts) > 10
    assert sum(OTHER not in text and OTHER[-4:] in text for text in texts) > 10
    assert sum(without_politeness(text) == QUESTION.rstrip(MARKS) for text in texts) > 200


def test_noisy_question_adds_no_chinese_words_to_another_language_and_leaves_short_questions():
    assert set(changed(0.0, question="what is fever?", wordings=["what is fever?"])) == {"what is fever?"}
    assert set(changed(0.5, question="疼", wordings=["疼"])) == {"疼"}
    assert all(len(text) >= 3 for text in changed(0.5, question="头疼啊", wordings=["头疼啊"]))
