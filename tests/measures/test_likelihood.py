import math

import pytest
import torch
from transformers import GenerationConfig

from med_model.data.prompt import END_OF_TEXT, IM_END, EncodedPair, encode_prompt, encode_text
from med_model.data.records import Choice
from med_model.generation.sampling import generate_ids
from med_model.measures import likelihood
from med_model.measures.likelihood import bits_per_byte, choose, preference_scores, score, text_bits

POSITIONS = 128
TEXTS = ("高血压患者要少盐少油。", "糖尿病：按时复查，aspirin 100 mg，😷", "肺炎")
LONG_TEXT = "高血压患者要少盐少油，多吃蔬菜；糖尿病怎么办？按时复查，把结果记下来。" * 60


@pytest.fixture(scope="module")
def model(random_gpt2):
    """Return an untrained model. The weights are so large that the next token depends on all earlier tokens."""
    return random_gpt2(POSITIONS)


@pytest.fixture(scope="module")
def indifferent_model(random_gpt2):
    """Return a model that gives all tokens the same probability after any prompt."""
    model = random_gpt2(POSITIONS, 0.02)
    model.transformer.wte.weight.data.zero_()
    return model


@torch.no_grad()
def next_log_probs(model, ids):
    """Compute log p(ids[i + 1] | ids[: i + 1]) in nats for each i, directly from the logits."""
    log_probs = model(torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)
    return log_probs[range(len(ids) - 1), ids[1:]].tolist()


def test_bits_per_byte_equals_a_direct_computation(model, tokenizer):
    start = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    nats = -sum(sum(next_log_probs(model, [start, *encode_text(tokenizer, text)])) for text in TEXTS)
    expected = nats / math.log(2) / sum(len(text.encode()) for text in TEXTS)
    assert bits_per_byte(model, tokenizer, TEXTS) == pytest.approx(expected, rel=1e-5)


def test_bits_per_byte_counts_each_token_once_in_a_text_longer_than_the_window(indifferent_model, tokenizer):
    tokens = len(encode_text(tokenizer, LONG_TEXT))
    assert tokens > 3 * POSITIONS
    for length in (
        POSITIONS - 2,
        POSITIONS - 1,
        POSITIONS,
        POSITIONS + 1,
        tokens,
    ):  # in tokens: the first four are close to the length of one window, the last is several windows long
        text = tokenizer.decode(encode_text(tokenizer, LONG_TEXT)[:length]).rstrip("\ufffd")
        expected = len(encode_text(tokenizer, text)) * math.log2(len(tokenizer)) / len(text.encode())
        assert bits_per_byte(indifferent_model, tokenizer, [text]) == pytest.approx(expected, rel=1e-5)


def test_bits_per_byte_scores_a_long_text_in_windows_that_overlap_by_half(model, tokenizer):
    ids = [tokenizer.convert_tokens_to_ids(END_OF_TEXT), *encode_text(tokenizer, LONG_TEXT)]
    by_position: dict[int, float] = {}
    for start in [*range(0, len(ids) - POSITIONS, POSITIONS // 2), len(ids) - POSITIONS]:
        for offset, log_prob in enumerate(next_log_probs(model, ids[start : start + POSITIONS]), 1):
            by_position.setdefault(start + offset, log_prob)
    assert len(by_position) == len(ids) - 1
    expected = -sum(by_position.values()) / math.log(2) / len(LONG_TEXT.encode())
    assert bits_per_byte(model, tokenizer, [LONG_TEXT]) == pytest.approx(expected, rel=1e-5)


def test_score_gives_rows_in_a_batch_the_same_as_alone(model, tokenizer, monkeypatch):
    ids = encode_text(tokenizer, LONG_TEXT)
    rows = [
        (ids[:length], ids[length : length + answer])
        for length, answer in ((3, 2), (40, 60), (1, 9), (9, 1), (20, 20))
    ]
    expected = []
    for prompt, answer in rows:
        log_probs = next_log_probs(model, prompt + answer)[-len(answer) :]
        expected.append((pytest.approx(sum(log_probs), rel=1e-5), len(answer)))
    for batch_tokens in (1, 120, 4096):  # 1: one row per batch; 120: batches of 1, 3 and 1 rows; 4096: one batch
        monkeypatch.setattr(likelihood, "BATCH_TOKENS", batch_tokens)
        assert score(model, rows) == expected


def test_preference_scores_are_the_sum_and_the_mean_of_both_answers(model, tokenizer):
    prompt = encode_prompt(tokenizer, [{"role": "user", "content": "高血压怎么办？"}])
    settings = GenerationConfig(
        max_new_tokens=8, eos_token_id=[tokenizer.pad_token_id], pad_token_id=tokenizer.pad_token_id
    )
    likely = torch.stack(list(generate_ids(model, [prompt], settings)))[:, 0].tolist()
    unlikely = encode_text(tokenizer, "请立即拨打120")[: len(likely)]
    good, bad = (sum(next_log_probs(model, prompt + answer)[-len(answer) :]) for answer in (likely, unlikely))
    assert good > bad
    means = good / len(likely), bad / len(unlikely)
    expected = [pytest.approx(value, rel=1e-5) for value in (good, bad, *means)]
    assert preference_scores(model, [EncodedPair(prompt, likely, unlikely)]) == [tuple(expected)]


def test_preference_scores_of_a_longer_answer_are_lower_by_the_sum_and_not_by_the_mean(indifferent_model, tokenizer):
    short, long = [tokenizer.convert_tokens_to_ids(IM_END)], encode_text(tokenizer, "请立即拨打120，不要等")
    [(good, bad, good_mean, bad_mean)] = preference_scores(
        indifferent_model, [EncodedPair(encode_text(tokenizer, "胸痛"), short, long)]
    )
    assert good - bad == pytest.approx((len(long) - 1) * math.log(len(tokenizer)), rel=1e-5)
    assert good_mean == pytest.approx(bad_mean, rel=1e-5)


def test_choose_takes_the_likeliest_option_by_the_mean_of_its_tokens_and_stop(model, tokenizer):
    options = ["少盐少油", "请立即拨打120，不要等", "多喝水", "高血压"]
    prompt = encode_prompt(tokenizer, [{"role": "user", "content": "高血压怎么办？"}])
    stop = tokenizer.convert_tokens_to_ids(IM_END)
    means = []
    for option in options:
        ids = [*encode_text(tokenizer, option), stop]
        means.append(sum(next_log_probs(model, prompt + ids)[-len(ids) :]) / len(ids))
    assert choose(model, tokenizer, [Choice("高血压怎么办？", options, 0)]) == [means.index(max(means))]


def test_text_bits_of_each_text_equal_those_of_the_text_alone(model, tokenizer):
    texts = [*TEXTS, LONG_TEXT]
    each = text_bits(model, tokenizer, texts)
    assert [size for _, size in each] == [len(text.encode()) for text in texts]
    for text, (bits, size) in zip(texts, each, strict=True):
        assert bits / size == pytest.approx(bits_per_byte(model, tokenizer, [text]), rel=1e-5)
