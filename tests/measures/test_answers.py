import pytest
import torch
from transformers import GenerationConfig

from med_model.data.prompt import END_OF_TEXT, IM_END, encode_prompt
from med_model.generation.sampling import generate_ids
from med_model.measures.answers import Question, answer_questions, judged, question_of, repeated_share


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


def test_question_of_keeps_the_marks_of_its_row():
    marks = {"declines": "dose", "item": "阿司匹林/1", "topic": "阿司匹林", "register": "plain"}
    row = {"instruction": "吃几片？", "output": "我不能替您定。", "key_facts": [120], **marks}
    assert question_of("", row) == Question([{"role": "user", "content": "吃几片？"}], ["120"], **marks)
    outside = question_of("", {"instruction": "你好", "output": "我不懂。", "scope": "out", "help_line": True})
    assert outside.out_of_scope and outside.help_line and not outside.later_turn
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
    assert [(a.question.text, a.key_facts_found) for a in answers] == [("高血压怎么办？", 1), ("糖尿病怎么办？", 0)]
    assert answers[0].answer == answer.strip()
    assert seconds > 0


def test_answer_questions_samples_the_same_answers_with_the_same_seed(model, tokenizer):
    settings = GenerationConfig(
        do_sample=True,
        max_new_tokens=8,
        eos_token_id=tokenizer.convert_tokens_to_ids([IM_END, END_OF_TEXT]),
        pad_token_id=tokenizer.pad_token_id,
    )
    questions = [Question([{"role": "user", "content": "高血压怎么办？"}])]

    def answers(seed):
        return [a.answer for a in answer_questions(model, tokenizer, questions, settings, True, seed=seed)[0]]

    assert answers(1) == answers(1) != answers(2)


def test_as_json_has_the_question_its_marks_the_answer_and_every_judgement():
    turns = [{"role": "user", "content": text} for text in ("血压高", "吃几片？")]
    asked = Question(turns, ["医生"], declines="dose", item="阿司匹林/1", register="plain")
    shown = judged(asked, " 我不能替您定，请问医生。", True, None).as_json()
    assert (shown["question"], shown["earlier"], shown["answer"]) == (
        "吃几片？",
        turns[:1],
        "我不能替您定，请问医生。",
    )
    assert (shown["item"], shown["register"], shown["key_facts_found"]) == ("阿司匹林/1", "plain", 1)
    assert shown["declines_dose"] and not shown["urgent"] and "messages" not in shown
