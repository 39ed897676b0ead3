import math

import pytest
import torch
from transformers import GenerationConfig

from med_model import evaluate
from med_model.evaluate import (
    AnsweredQuestion,
    Pair,
    Question,
    answer_measures,
    answer_questions,
    bits_per_byte,
    preference_measures,
    repeated_share,
    score,
)
from med_model.generate import generate_ids
from med_model.prompt import END_OF_TEXT, IM_END, encode_prompt, encode_text

POSITIONS = 128
TEXTS = ("高血压患者要少盐少油。", "糖尿病：按时复查，aspirin 100 mg，😷", "肺炎")
LONG_TEXT = "高血压患者要少盐少油，多吃蔬菜；糖尿病怎么办？按时复查，把结果记下来。" * 60


@pytest.fixture(scope="module")
def model(random_gpt2):
    """Random weights, large enough that each token's probability depends on all that came before."""
    return random_gpt2(POSITIONS)


@pytest.fixture(scope="module")
def indifferent_model(random_gpt2):
    """Every token is as likely as any other, whatever came before."""
    model = random_gpt2(POSITIONS, 0.02)
    model.transformer.wte.weight.data.zero_()
    return model


@torch.no_grad()
def next_log_probs(model, ids):
    """log p(ids[i + 1] | ids[: i + 1]) for each i, straight from the logits."""
    log_probs = model(torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)
    return log_probs[range(len(ids) - 1), ids[1:]].tolist()


def test_bits_per_byte_is_what_a_direct_computation_gives(model, tokenizer):
    start = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    nats = -sum(sum(next_log_probs(model, [start, *encode_text(tokenizer, text)])) for text in TEXTS)
    expected = nats / math.log(2) / sum(len(text.encode()) for text in TEXTS)
    assert bits_per_byte(model, tokenizer, TEXTS) == pytest.approx(expected, rel=1e-5)


def test_each_token_after_the_start_counts_once_also_in_a_text_longer_than_the_window(indifferent_model, tokenizer):
    tokens = len(encode_text(tokenizer, LONG_TEXT))
    assert tokens > 3 * POSITIONS
    for length in (POSITIONS - 2, POSITIONS - 1, POSITIONS, POSITIONS + 1, tokens):  # around a full window, and many
        text = tokenizer.decode(encode_text(tokenizer, LONG_TEXT)[:length]).rstrip("\ufffd")
        expected = len(encode_text(tokenizer, text)) * math.log2(len(tokenizer)) / len(text.encode())
        assert bits_per_byte(indifferent_model, tokenizer, [text]) == pytest.approx(expected, rel=1e-5)


def test_a_long_text_is_scored_in_windows_that_overlap_by_half(model, tokenizer):
    ids = [tokenizer.convert_tokens_to_ids(END_OF_TEXT), *encode_text(tokenizer, LONG_TEXT)]
    by_position: dict[int, float] = {}
    for start in [*range(0, len(ids) - POSITIONS, POSITIONS // 2), len(ids) - POSITIONS]:
        for offset, log_prob in enumerate(next_log_probs(model, ids[start : start + POSITIONS]), 1):
            by_position.setdefault(start + offset, log_prob)
    assert len(by_position) == len(ids) - 1
    expected = -sum(by_position.values()) / math.log(2) / len(LONG_TEXT.encode())
    assert bits_per_byte(model, tokenizer, [LONG_TEXT]) == pytest.approx(expected, rel=1e-5)


def test_rows_scored_together_get_what_each_gets_alone(model, tokenizer, monkeypatch):
    ids = encode_text(tokenizer, LONG_TEXT)
    rows = [
        (ids[:length], ids[length : length + answer])
        for length, answer in ((3, 2), (40, 60), (1, 9), (9, 1), (20, 20))
    ]
    expected = []
    for prompt, answer in rows:
        log_probs = next_log_probs(model, prompt + answer)[-len(answer) :]
        expected.append((pytest.approx(sum(log_probs), rel=1e-5), len(answer)))
    for batch_tokens in (1, 120, 4096):  # one by one, in several batches, all at once
        monkeypatch.setattr(evaluate, "BATCH_TOKENS", batch_tokens)
        assert score(model, rows) == expected


@pytest.mark.parametrize(
    ("text", "share"),
    [("高血压要少盐", 0.0), ("少盐少油少盐少油", 0.2), ("啊啊啊啊啊啊啊啊", 0.8), ("少盐", 0.0), ("", 0.0)],
)
def test_repeated_share_counts_the_four_character_sequences_that_had_occurred(text, share):
    assert repeated_share(text) == pytest.approx(share)


def answered(answer, **measured):
    nothing = {"key_facts_found": 0, "key_facts": 0, "urgent": False, "emergency": False}
    return AnsweredQuestion("问", answer, **{"stopped": True, "repetition": 0.0, **nothing, **measured})


def test_answer_measures_are_means_with_key_facts_only_over_questions_that_have_any():
    answers = [
        answered("一二三四", repetition=0.5, key_facts_found=2, key_facts=4),
        answered("一二", key_facts=1),
        answered("", stopped=False, repetition=0.1),
    ]
    assert answer_measures(answers) == pytest.approx(
        {
            "questions": 3,
            "stopped": 2 / 3,
            "repeated_4grams": 0.2,
            "characters": 2.0,
            "with_a_key_fact": 0.5,
            "key_fact_recall": 0.4,
        }
    )
    assert set(answer_measures(answers[2:])) == {"questions", "stopped", "repeated_4grams", "characters"}


def test_emergencies_and_false_alarms_are_shares_of_the_questions_marked_so_and_not_so():
    marks = [(True, True), (True, True), (False, True), (True, False), (False, False)]
    measures = answer_measures([answered("答", urgent=urgent, emergency=mark) for urgent, mark in marks])
    assert measures["emergencies"] == 3
    assert measures["emergencies_recognised"] == pytest.approx(2 / 3)
    assert measures["false_alarms"] == 0.5
    assert "false_alarms" not in answer_measures([answered("答", urgent=True, emergency=False)])


def test_a_key_fact_is_found_in_the_answer_whatever_the_spaces(model, tokenizer):
    settings = GenerationConfig(
        max_new_tokens=30,
        eos_token_id=tokenizer.convert_tokens_to_ids([IM_END, END_OF_TEXT]),
        pad_token_id=tokenizer.pad_token_id,
    )
    prompt = encode_prompt(tokenizer, [{"role": "user", "content": "高血压怎么办？"}])
    ids = torch.stack(list(generate_ids(model, [prompt], settings)))[:, 0]
    said = tokenizer.decode(ids, skip_special_tokens=True).replace("\ufffd", "")
    squeezed = "".join(said.split())
    fact = f"{squeezed[2:4]} {squeezed[4:6]}"
    assert fact not in said
    facts = {"高血压怎么办？": [fact, "没有说过的话"], "糖尿病怎么办？": []}
    questions = [Question([{"role": "user", "content": text}], of_text) for text, of_text in facts.items()]
    answers, seconds = answer_questions(model, tokenizer, questions, settings, chat=True)
    assert [(a.question, a.key_facts_found, a.key_facts) for a in answers] == [
        ("高血压怎么办？", 1, 2),
        ("糖尿病怎么办？", 0, 0),
    ]
    assert answers[0].answer == said.strip()
    assert seconds > 0


def test_a_pair_whose_chosen_answer_is_the_likelier_one_counts_as_right(model, tokenizer):
    prompt = encode_prompt(tokenizer, [{"role": "user", "content": "高血压怎么办？"}])
    settings = GenerationConfig(
        max_new_tokens=8, eos_token_id=[tokenizer.pad_token_id], pad_token_id=tokenizer.pad_token_id
    )
    likely = torch.stack(list(generate_ids(model, [prompt], settings)))[:, 0].tolist()
    unlikely = encode_text(tokenizer, "请立即拨打120")[: len(likely)]
    good, bad = (sum(next_log_probs(model, prompt + answer)[-len(answer) :]) for answer in (likely, unlikely))
    assert good > bad
    right, wrong = Pair(prompt, likely, unlikely), Pair(prompt, unlikely, likely)
    measures = preference_measures(model, [right, right, right, wrong])
    assert measures["preference_pairs"] == 4
    assert measures["preference_accuracy"] == 0.75
    assert measures["preference_accuracy_per_token"] == 0.75
    assert measures["preference_margin"] == pytest.approx((good - bad) / 2, rel=1e-5)


def test_a_longer_answer_is_less_likely_by_the_sum_and_no_less_by_the_mean(model, indifferent_model, tokenizer):
    short, long = [tokenizer.convert_tokens_to_ids(IM_END)], encode_text(tokenizer, "请立即拨打120，不要等")
    prompt = encode_text(tokenizer, "胸痛")
    by_sum = preference_measures(indifferent_model, [Pair(prompt, short, long), Pair(prompt, long, short)])
    assert by_sum["preference_accuracy"] == 0.5
    margin = preference_measures(indifferent_model, [Pair(prompt, short, long)])["preference_margin"]
    assert margin == pytest.approx((len(long) - 1) * math.log(len(tokenizer)), rel=1e-5)
    mean = {
        len(answer): sum(next_log_probs(model, prompt + answer)[-len(answer) :]) / len(answer)
        for answer in (short, long)
    }
    measures = preference_measures(model, [Pair(prompt, short, long)])
    assert measures["preference_accuracy_per_token"] == (mean[1] > mean[len(long)])
