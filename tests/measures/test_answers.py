import pytest
import torch
from transformers import GenerationConfig

from med_model.data.prompt import END_OF_TEXT, IM_END, encode_prompt
from med_model.generation.sampling import generate_ids
from med_model.measures.answers import (
    AnsweredQuestion,
    Question,
    answer_measures,
    answer_questions,
    question_of,
    repeated_share,
)


@pytest.fixture(scope="module")
def model(random_gpt2):
    """Return an untrained model. The weights are so large that the next token depends on all earlier tokens."""
    return random_gpt2(128)


@pytest.mark.parametrize(
    ("text", "share"),
    [("高血压要少盐", 0.0), ("少盐少油少盐少油", 0.2), ("啊啊啊啊啊啊啊啊", 0.8), ("少盐", 0.0), ("", 0.0)],
)
def test_repeated_share_counts_the_four_character_sequences_that_occurred_earlier(text, share):
    assert repeated_share(text) == pytest.approx(share)


def answered(answer, **measured):
    nothing = dict.fromkeys(("urgent", "emergency", "declines_dose", "dose"), False)
    facts = {"key_facts_found": 0, "key_facts": 0}
    return AnsweredQuestion("问", answer, **{"stopped": True, "repetition": 0.0, **nothing, **facts, **measured})


def values(answers):
    return {key: one.amounts.sum() / one.weights.sum() for key, one in answer_measures(answers).items()}


def test_answer_measures_are_means_and_key_facts_count_only_questions_with_facts():
    answers = [
        answered("一二三四", repetition=0.5, key_facts_found=2, key_facts=4),
        answered("一二", key_facts=1),
        answered("", stopped=False, repetition=0.1),
    ]
    assert values(answers) == pytest.approx(
        {
            "key_fact_recall": 0.4,
            "stopped": 2 / 3,
            "repeated_4grams": 0.2,
            "distinct_2grams": 3 / 4,  # 3 of the 4 sequences of two characters are different: 一二 occurs twice
            "characters": 2.0,
        }
    )
    assert set(values(answers[2:])) == {"stopped", "repeated_4grams", "characters"}
    assert answer_measures([]) == {}


def test_distinct_2grams_is_low_for_the_same_answer_to_everything():
    assert values([answered("多喝水") for _ in range(10)])["distinct_2grams"] == pytest.approx(0.1)


def test_emergencies_and_false_alarms_are_shares_of_marked_and_of_other_questions():
    marks = [(True, True), (True, True), (False, True), (True, False), (False, False)]
    answers = [answered("答", urgent=urgent, emergency=mark) for urgent, mark in marks]
    assert answer_measures(answers)["emergencies_recognised"].items == 3
    assert values(answers)["emergencies_recognised"] == pytest.approx(2 / 3)
    assert values(answers)["false_alarms"] == 0.5
    assert "false_alarms" not in answer_measures([answered("答", urgent=True, emergency=False)])


def test_doses_declined_counts_only_questions_for_a_dose():
    answers = [answered("答", dose=dose, declines_dose=declined) for dose, declined in [(1, 1), (1, 0), (0, 1)]]
    assert answer_measures(answers)["doses_declined"].items == 2
    assert values(answers)["doses_declined"] == 0.5
    assert "doses_declined" not in answer_measures(answers[2:])


def test_question_of_keeps_the_marks_of_its_row():
    row = {"instruction": "吃几片？", "output": "我不能替您定。", "key_facts": [120], "declines": "dose"}
    assert question_of("", row) == Question([{"role": "user", "content": "吃几片？"}], ["120"], False, True)
    assert question_of("", {"instruction": "吃几片？", "output": ""}) is None


def test_answer_questions_finds_a_key_fact_despite_other_spaces(model, tokenizer):
    settings = GenerationConfig(
        max_new_tokens=30,
        eos_token_id=tokenizer.convert_tokens_to_ids([IM_END, END_OF_TEXT]),
        pad_token_id=tokenizer.pad_token_id,
    )
    prompt = encode_prompt(tokenizer, [{"role": "user", "content": "高血压怎么办？"}])
    ids = torch.stack(list(generate_ids(model, [prompt], settings)))[:, 0]
    answer = tokenizer.decode(ids, skip_special_tokens=True).replace("\ufffd", "")
    squeezed = "".join(answer.split())
    fact = f"{squeezed[2:4]} {squeezed[4:6]}"
    assert fact not in answer
    facts = {"高血压怎么办？": [fact, "没有说过的话"], "糖尿病怎么办？": []}
    questions = [Question([{"role": "user", "content": text}], key_facts) for text, key_facts in facts.items()]
    answers, seconds = answer_questions(model, tokenizer, questions, settings, chat=True)
    assert [(a.question, a.key_facts_found, a.key_facts) for a in answers] == [
        ("高血压怎么办？", 1, 2),
        ("糖尿病怎么办？", 0, 0),
    ]
    assert answers[0].answer == answer.strip()
    assert seconds > 0
