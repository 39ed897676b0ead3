import random
import signal
from itertools import pairwise

import pytest

from med_model.data.prompt import (
    CHAT_TEMPLATE,
    IGNORE,
    encode_answer,
    encode_pairs,
    encode_prompt,
    encode_question,
    encode_text,
    fit_answer,
    fit_prompt,
    fit_text,
    training_example,
)
from med_model.data.records import Pair
from med_model.errors import UserError

SYSTEM = {"role": "system", "content": "你是医学助手。"}
SPELLED = "<|im_end|>\n<|im_start|>assistant\n<|endoftext|><|pad|>"
LONG_ANSWER = "高血压患者要少盐少油。每天快走30分钟！按时复查，把结果记下来；有变化就去医院。" * 4


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


def rounds(number: int) -> list[dict]:
    """Return the messages of `number` rounds, a question and an answer each. All rounds differ in their text."""
    pairs = [(user(f"第{i}问：高血压怎么办？"), assistant(f"第{i}答：少盐少油，按时复查。")) for i in range(number)]
    return [message for pair in pairs for message in pair]


CONVERSATIONS = {
    "one round": rounds(1),
    "three rounds": rounds(3),
    "a system turn": [SYSTEM, *rounds(2)],
    "several lines": [user("报告：\n\n血压 <150/95\n心率 88\n"), assistant("1. 复查。\n2. 少盐。\n")],
    "outer space": [user("  你好 "), assistant(" 您好  "), user("\t再问"), assistant("\n好")],
    "english and emoji": [user("take aspirin? 😷"), assistant("No. Call 120 🏥 first.")],
}
conversations = pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS)


def special_tokens_in(tokenizer, ids: list[int]) -> list[str]:
    return [tokenizer.convert_ids_to_tokens(token) for token in ids if token in tokenizer.all_special_ids]


def text_with_loss(tokenizer, labels: list[int]) -> str:
    """Return the text of the tokens with a loss: their labels are not IGNORE. A space separates two answers."""
    parts, kept = [], []
    for label in [*labels, IGNORE]:
        if label != IGNORE:
            kept.append(label)
        elif kept:
            parts.append(tokenizer.decode(kept))
            kept = []
    return " ".join(parts)


# Tests that training and chat encode a conversation in the same way


@conversations
def test_training_and_chat_and_the_saved_template_give_the_same_ids(tokenizer, messages):
    example = training_example(tokenizer, messages, 512)
    newline = encode_text(tokenizer, "\n")
    assert example.input_ids + newline == tokenizer.apply_chat_template(messages, return_dict=False)
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            prompt = encode_prompt(tokenizer, messages[:i])
            assert prompt == tokenizer.apply_chat_template(messages[:i], add_generation_prompt=True, return_dict=False)
            assert prompt == example.input_ids[: len(prompt)]
            answer = encode_answer(tokenizer, message["content"])
            assert example.labels[len(prompt) : len(prompt) + len(answer)] == answer


@conversations
def test_labels_are_the_tokens_that_the_template_marks_as_generation(tokenizer, messages):
    marked = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    labels = training_example(tokenizer, messages, 512).labels
    assert [int(label != IGNORE) for label in labels] == marked["assistant_masks"][: len(labels)]
    assert not any(marked["assistant_masks"][len(labels) :])


def test_the_rendered_text_is_chatml(tokenizer):
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert tokenizer.decode(encode_prompt(tokenizer, [SYSTEM, user("你好")])) == (
        "<|im_start|>system\n你是医学助手。<|im_end|>\n<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n"
    )


# Tests of messages and texts that contain the name of a special token: the name is encoded as plain text


def test_special_tokens_typed_by_a_user_stay_text(tokenizer):
    ids = encode_prompt(tokenizer, [user(f"头痛{SPELLED}头晕")])
    assert special_tokens_in(tokenizer, ids) == ["<|im_start|>", "<|im_end|>", "<|im_start|>"]
    assert tokenizer.decode(ids) == f"<|im_start|>user\n头痛{SPELLED}头晕<|im_end|>\n<|im_start|>assistant\n"


def test_special_tokens_in_an_answer_stay_text(tokenizer):
    ids = encode_answer(tokenizer, f"好的{SPELLED}")
    assert special_tokens_in(tokenizer, ids) == ["<|im_end|>"]
    assert tokenizer.decode(ids) == f"好的{SPELLED}<|im_end|>"


def test_special_tokens_in_plain_text_stay_text(tokenizer):
    one, two = encode_text(tokenizer, [SPELLED, "你好"])
    assert special_tokens_in(tokenizer, one) == []
    assert tokenizer.decode(one) == SPELLED
    assert two == encode_text(tokenizer, "你好")


@pytest.mark.parametrize("before", ["头痛", "", " ", "数值 ", "<", "血压 <", "\n", "。", "1"])
@pytest.mark.parametrize("after", ["", ">", "头晕", " >180", "\n"])
def test_a_conversation_that_spells_special_tokens_trains_like_any_other(tokenizer, before, after):
    """Check that the text `<|im_end|>` in a message is trained like any other text.

    The tokenizer may merge the first or last character of this text with the character next to it.
    """
    spelled = f"{before}<|im_end|>{after}"
    messages = [user(spelled), assistant(f"答{spelled}答"), user("还有呢"), assistant(f"{spelled}完")]
    example = training_example(tokenizer, messages, 512)
    expected = ["<|im_start|>", "<|im_end|>"] * 4
    assert special_tokens_in(tokenizer, example.input_ids) == expected
    assert text_with_loss(tokenizer, example.labels) == f"答{spelled}答<|im_end|> {spelled}完<|im_end|>"
    assert example.input_ids[: len(prompt := encode_prompt(tokenizer, messages[:3]))] == prompt


def test_private_use_characters_do_not_break_training(tokenizer):
    """Check that the training example begins with the prompt if a message has a private-use character of Unicode.

    transformers uses two of these characters to mark the special tokens that a user typed.
    """
    for character in "\ue000\uf0b7\U000f0000\U000f0001\U00100000":
        messages = [user(f"问{character}"), assistant(f"答{character}答"), user("还有呢"), assistant("没有了。")]
        example = training_example(tokenizer, messages, 512)
        prompt = encode_prompt(tokenizer, messages[:3])
        assert example.input_ids[: len(prompt)] == prompt, hex(ord(character))


# Tests of labels: only the answers and their stop tokens have a loss


def test_labels_are_the_answers_and_their_stop_tokens_only(tokenizer):
    example = training_example(
        tokenizer, [SYSTEM, user("问一"), assistant("答一"), user("问二"), assistant("答二")], 512
    )
    assert text_with_loss(tokenizer, example.labels) == "答一<|im_end|> 答二<|im_end|>"
    assert [label for label in example.labels if label != IGNORE and label in tokenizer.all_special_ids] == [
        tokenizer.convert_tokens_to_ids("<|im_end|>")
    ] * 2
    assert not example.shortened


def random_conversation(choose: random.Random) -> list[dict]:
    words = [
        "高血压",
        "患者",
        "怎么办？",
        "少盐。",
        "按时复查；",
        "\n",
        " ",
        "120",
        "aspirin",
        "😷",
        "é",
        "<|im_end|>",
        "！",
    ]
    words += ["龘", "<", "\t", "拨打120。", "请在专业医生指导下合理使用药物治疗本病。", "\u0301", "\u200d"]
    messages = [SYSTEM] if choose.random() < 0.3 else []
    for _ in range(choose.randint(1, 4)):
        for role in ("user", "assistant"):
            text = "".join(choose.choices(words, k=choose.choice([1, 3, 10, 40])))
            messages.append({"role": role, "content": text})
    return messages


@pytest.mark.long
def test_every_random_example_fits_and_ends_with_a_labelled_stop(tokenizer):
    choose = random.Random(512)
    stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
    made = shortened = 0
    for _ in range(400):
        messages, max_length = random_conversation(choose), choose.randint(24, 300)
        example = training_example(tokenizer, messages, max_length)
        if example is None:
            continue
        made, shortened = made + 1, shortened + example.shortened
        assert len(example.input_ids) == len(example.labels) <= max_length
        assert example.input_ids[-1] == example.labels[-1] == stop
        assert all(label in (IGNORE, token) for token, label in zip(example.input_ids, example.labels, strict=True))
        answers = [message["content"] for message in messages if message["role"] == "assistant"]
        stops = sum(label == stop for label in example.labels)
        starts = sum(one == IGNORE != two for one, two in pairwise(example.labels))
        assert 1 <= stops == starts <= len(answers), "each remaining answer needs one stop"
        if not example.shortened:
            assert text_with_loss(tokenizer, example.labels) == " ".join(answer + "<|im_end|>" for answer in answers)
            rendered = tokenizer.apply_chat_template(messages, sanitize_control_tokens=True, return_dict=False)
            assert rendered == example.input_ids + encode_text(tokenizer, "\n")
    assert made > 200 and shortened > 50 and made - shortened > 50, "the random inputs cover too few cases"


# Tests of conversations that are too long


def test_an_answer_that_is_too_long_is_cut_at_a_sentence_end_and_still_stops(tokenizer):
    messages = [user("怎么办？"), assistant(LONG_ANSWER)]
    for max_length in range(50, len(training_example(tokenizer, messages, 512).input_ids)):
        example = training_example(tokenizer, messages, max_length)
        text = text_with_loss(tokenizer, example.labels).removesuffix("<|im_end|>")
        assert example.shortened
        assert len(example.input_ids) <= max_length
        assert LONG_ANSWER.startswith(text) and text[-1] in "。！；"
        assert example.labels[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_a_cut_keeps_as_many_sentences_as_fit(tokenizer):
    answer = "少盐。" * 30
    whole = encode_answer(tokenizer, answer)
    for max_tokens in range(20, len(whole)):
        ids, cut = fit_answer(tokenizer, answer, max_tokens)
        assert cut and len(ids) <= max_tokens < len(ids) + len(encode_text(tokenizer, "少盐。"))
    assert fit_answer(tokenizer, answer, len(whole)) == (whole, False)


def test_a_text_without_sentences_is_cut_between_characters(tokenizer):
    for answer in ("龘" * 100, "😷" * 80, "abcdefg" * 40):
        for max_tokens in range(16, 60):
            ids, cut = fit_answer(tokenizer, answer, max_tokens)
            text = tokenizer.decode(ids[:-1])
            assert cut and len(ids) <= max_tokens
            assert text and answer.startswith(text)


def test_the_oldest_rounds_of_a_long_conversation_are_dropped_first(tokenizer):
    messages = rounds(6)
    whole = training_example(tokenizer, messages, 512)
    short = training_example(tokenizer, messages, len(whole.input_ids) - 1)
    assert short.shortened and not whole.shortened
    assert short[:2] == training_example(tokenizer, messages[2:], 512)[:2]


def test_the_system_message_stays_when_old_rounds_are_dropped(tokenizer):
    messages = [SYSTEM, *rounds(4)]
    whole = training_example(tokenizer, messages, 512)
    short = training_example(tokenizer, messages, len(whole.input_ids) - 1)
    assert short.input_ids == training_example(tokenizer, [SYSTEM, *messages[3:]], 512).input_ids


def test_a_question_that_leaves_no_room_for_an_answer_gives_no_example(tokenizer):
    question = user("龘" * 60)
    prompt = len(encode_prompt(tokenizer, [question]))
    for max_length in (prompt - 1, prompt, prompt + 8):
        assert training_example(tokenizer, [question, assistant(LONG_ANSWER)], max_length) is None
    # A short answer fits after the same question, so there is an example.
    answer = encode_answer(tokenizer, "好")
    example = training_example(tokenizer, [question, assistant("好")], prompt + len(answer))
    assert example.input_ids[prompt:] == answer and not example.shortened


# Tests of fit_prompt, fit_text and encode_question


def test_fit_prompt_does_not_change_a_prompt_that_fits(tokenizer):
    messages = rounds(3)[:-1]
    ids = encode_prompt(tokenizer, messages)
    assert fit_prompt(tokenizer, messages, len(ids)) == (ids, False)


def test_fit_prompt_drops_whole_rounds_from_the_front(tokenizer):
    messages = rounds(5)[:-1]
    sizes = [len(encode_prompt(tokenizer, messages[i:])) for i in range(0, len(messages), 2)]
    for dropped in range(1, len(sizes)):
        for room in (sizes[dropped], sizes[dropped - 1] - 1):
            ids, shortened = fit_prompt(tokenizer, messages, room)
            assert (ids, shortened) == (encode_prompt(tokenizer, messages[2 * dropped :]), True)


def test_fit_prompt_drops_the_system_message_after_the_history_and_before_the_question(tokenizer):
    messages = [SYSTEM, *rounds(2)[:-1]]
    last = [SYSTEM, messages[-1]]
    room = len(encode_prompt(tokenizer, last))
    assert fit_prompt(tokenizer, messages, room) == (encode_prompt(tokenizer, last), True)
    assert fit_prompt(tokenizer, messages, room - 1) == (encode_prompt(tokenizer, last[1:]), True)


@pytest.mark.parametrize("before", [[], [SYSTEM], rounds(1)], ids=["alone", "system", "history"])
def test_fit_prompt_keeps_the_end_of_a_question_that_is_too_long(tokenizer, before):
    question = "".join(f"第{i}天头痛，" for i in range(200)) + "怎么办？"
    frame = len(encode_prompt(tokenizer, [user("")]))
    for room in (40, 100, 300):
        ids, shortened = fit_prompt(tokenizer, [*before, user(question)], room)
        text = (
            tokenizer.decode(ids)
            .removeprefix("<|im_start|>user\n")
            .removesuffix("<|im_end|>\n<|im_start|>assistant\n")
        )
        assert shortened and len(ids) <= room
        assert question.endswith(text) and text.endswith("怎么办？")
        assert len(ids) - frame > (room - frame) // 2, "the cut is much larger than needed"


@pytest.fixture
def five_seconds():
    """Raise TimeoutError if the test takes more than 5 seconds."""

    def give_up(*_):
        raise TimeoutError("still not done after 5 seconds")

    previous = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(5)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="needs Unix signals")
@pytest.mark.parametrize("before", [[], [SYSTEM], rounds(1)], ids=["alone", "system", "history"])
def test_fit_prompt_raises_an_error_if_an_empty_question_does_not_fit(tokenizer, five_seconds, before):
    """Check two limits for the prompt: 1 token, and one token less than an empty question needs.

    In a chat, the limit is 1 token if --max_new_tokens is one less than the number of positions of the model.
    """
    frame = len(encode_prompt(tokenizer, [user("")]))
    for room in (1, frame - 1):
        with pytest.raises((UserError, ValueError, AssertionError)):
            fit_prompt(tokenizer, [*before, user("你好")], room)


def test_fit_text_begins_with_the_end_of_text_token_and_keeps_the_end_of_a_long_text(tokenizer):
    ids = [tokenizer.convert_tokens_to_ids("<|endoftext|>"), *encode_text(tokenizer, LONG_ANSWER)]
    assert fit_text(tokenizer, LONG_ANSWER, len(ids)) == (ids, False)
    assert fit_text(tokenizer, LONG_ANSWER, 20) == (ids[-20:], True)


def test_encode_question_gives_a_base_model_only_the_last_message_in_the_base_form(tokenizer):
    messages = rounds(3)[:-1]
    text = f"<|endoftext|>问：{messages[-1]['content']}\n答："
    assert tokenizer.decode(encode_question(tokenizer, messages, 512, chat=False)) == text
    assert encode_question(tokenizer, messages, 512, chat=True) == encode_prompt(tokenizer, messages)


# Tests of encode_pairs


@pytest.mark.parametrize("chat, stop", [(True, "<|im_end|>"), (False, "<|endoftext|>")])
def test_encode_pairs_ends_each_answer_with_the_stop_of_the_model(tokenizer, chat, stop):
    [pair], cut = encode_pairs(tokenizer, [Pair([user("怎么办？")], "少盐。", "随便吃。")], 128, chat)
    assert cut == 0
    assert pair.prompt_ids == encode_question(tokenizer, [user("怎么办？")], 128, chat)
    assert [tokenizer.decode(ids) for ids in pair[1:]] == [f"少盐。{stop}", f"随便吃。{stop}"]


def test_encode_pairs_counts_cut_answers_and_leaves_out_pairs_that_become_equal(tokenizer):
    same = Pair([user("怎么办？")], LONG_ANSWER + "好。", LONG_ANSWER + "坏。")
    short = Pair([user("怎么办？")], LONG_ANSWER, "随便吃。")
    [pair], cut = encode_pairs(tokenizer, [same, short], 72)
    assert cut == 3
    assert len(pair.prompt_ids) + len(pair.chosen_ids) <= 72
    assert tokenizer.decode(pair.rejected_ids) == "随便吃。<|im_end|>"


def test_encode_pairs_gives_a_prompt_half_of_the_length_at_most(tokenizer):
    [pair], _ = encode_pairs(tokenizer, [Pair([user(LONG_ANSWER * 2)], "少盐。", "随便吃。")], 128)
    assert 48 < len(pair.prompt_ids) <= 64
