import pytest

from med_model.data.records import (
    Choice,
    Pair,
    choice_of,
    conversation_of,
    document_of,
    first_question,
    pair_of,
    texts_of,
)
from med_model.errors import UserError

QUESTION, ANSWER, WORSE = "高血压要少吃盐吗？", "要，每天不超过5克。", "随便吃。"
ROUND = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
SYSTEM = {"role": "system", "content": "你是医学助手。"}


# Tests of document_of


def test_document_of_strips_the_text():
    assert document_of("f, row 1", {"text": "\n 高血压要少盐。 \n", "topic": "x"}) == "高血压要少盐。"


@pytest.mark.parametrize(
    "read_one, expected",
    [(document_of, "`text`"), (conversation_of, "instruction/input/output"), (pair_of, "response_chosen")],
)
def test_a_record_with_other_fields_gives_an_error_with_origin_found_and_expected_fields(read_one, expected):
    with pytest.raises(UserError, match="f, row 7.*titel, body") as error:
        read_one("f, row 7", {"titel": "x", "body": "y"})
    assert expected in str(error.value)


def test_a_field_that_is_not_text_is_named():
    with pytest.raises(UserError, match="f, row 7.*`text`.*int.*42"):
        document_of("f, row 7", {"text": 42})


# Tests of conversation_of


@pytest.mark.parametrize(
    "record",
    [
        {"instruction": QUESTION, "input": "", "output": ANSWER},
        {"instruction": QUESTION, "output": f" {ANSWER}\n"},
        {"instruction": QUESTION, "input": None, "output": ANSWER},
        {"prompt": QUESTION, "completion": ANSWER},
        {"prompt": ROUND[:1], "completion": ROUND[1:]},
        {"messages": ROUND},
        {"messages": ROUND, "prompt": "ignored", "completion": "ignored"},
        {"conversations": [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": ANSWER}]},
        {"conversations": [{"from": "user", "value": QUESTION}, {"from": "assistant", "value": ANSWER}]},
        {"messages": None, "instruction": QUESTION, "output": ANSWER},  # Parquet stores a missing field as null
    ],
)
def test_conversation_of_reads_every_form_of_a_question_and_an_answer(record):
    assert conversation_of("f, row 1", record) == ROUND


def test_conversation_of_ignores_a_column_that_is_null():
    record = {"conversations": None, "instruction": QUESTION, "output": ANSWER}
    assert conversation_of("f, row 1", record) == ROUND


def test_conversation_of_puts_the_input_on_a_new_line_after_the_instruction():
    turns = conversation_of("f, row 1", {"instruction": "看报告", "input": "血压 150/95", "output": ANSWER})
    assert turns[0]["content"] == "看报告\n血压 150/95"


def test_conversation_of_keeps_several_rounds_and_the_system_message():
    turns = [SYSTEM, *ROUND, *ROUND]
    assert conversation_of("f, row 1", {"messages": turns}) == turns
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    sharegpt = [{"from": names[turn["role"]], "value": turn["content"]} for turn in turns]
    assert conversation_of("f, row 1", {"conversations": sharegpt}) == turns
    assert conversation_of("f, row 1", {"prompt": turns[:-1], "completion": ANSWER}) == turns


@pytest.mark.parametrize(
    "turns",
    [
        ROUND[:1],
        ROUND[1:],
        [*ROUND, ROUND[0]],
        [ROUND[0], *ROUND],
        [*ROUND, ROUND[1]],
        [ROUND[0], {"role": "system", "content": "x"}, ROUND[1]],
        [{"role": "system", "content": "x"}],
    ],
)
def test_conversation_of_refuses_roles_that_do_not_alternate(turns):
    with pytest.raises(UserError, match="f, row 7.*found") as error:
        conversation_of("f, row 7", {"messages": turns})
    assert str([turn["role"] for turn in turns]) in str(error.value)


@pytest.mark.parametrize(
    "turns, message",
    [
        ([{"role": "doctor", "content": "x"}, ROUND[1]], "doctor"),
        ([{"role": "user"}, ROUND[1]], "content"),
        (["好", ROUND[1]], "好"),
        ([{"role": "user", "content": ["x"]}, ROUND[1]], "content.*list"),
        ([{"role": ["user"], "content": "x"}, ROUND[1]], "role"),
    ],
)
def test_conversation_of_names_a_message_that_it_cannot_read(turns, message):
    with pytest.raises(UserError, match=f"f, row 7.*{message}"):
        conversation_of("f, row 7", {"messages": turns})


def test_conversation_of_names_the_keys_that_a_sharegpt_message_lacks():
    with pytest.raises(UserError, match="f, row 7.*`from`, `value`"):
        conversation_of("f, row 7", {"conversations": ROUND})


@pytest.mark.parametrize("blank", ["", "  \n", None])
def test_conversation_of_returns_an_empty_list_for_a_blank_message(blank):
    assert conversation_of("f, row 1", {"instruction": QUESTION, "output": blank}) == []
    assert conversation_of("f, row 1", {"instruction": blank, "output": ANSWER}) == []
    assert conversation_of("f, row 1", {"messages": [*ROUND, ROUND[0], {"role": "assistant", "content": blank}]}) == []


def test_first_question_is_the_first_user_message():
    assert first_question([SYSTEM, *ROUND, {"role": "user", "content": "还有呢？"}]) == QUESTION


def test_texts_of_returns_the_document_or_the_messages():
    assert texts_of("f, row 1", {"text": "高血压要少盐。", "topic": "高血压"}) == ["高血压要少盐。"]
    assert texts_of("f, row 1", {"messages": ROUND}) == [QUESTION, ANSWER]
    assert texts_of("f, row 1", {"text": " "}) == []


# Tests of pair_of


@pytest.mark.parametrize(
    "record",
    [
        {"question": QUESTION, "response_chosen": ANSWER, "response_rejected": WORSE},
        {"prompt": QUESTION, "chosen": f"{ANSWER} ", "rejected": WORSE},
        {"prompt": ROUND[:1], "chosen": ROUND[1:], "rejected": [{"role": "assistant", "content": WORSE}]},
        {"prompt": QUESTION, "chosen": ROUND[1:], "rejected": WORSE},
        {"question": ROUND[:1], "response_chosen": ANSWER, "response_rejected": WORSE},
        {"question": QUESTION, "response_chosen": ROUND[1:], "response_rejected": WORSE},
        {"chosen": ROUND, "rejected": [ROUND[0], {"role": "assistant", "content": WORSE}]},
    ],
)
def test_pair_of_reads_every_form_of_a_preference(record):
    assert pair_of("f, row 1", record) == Pair(ROUND[:1], ANSWER, WORSE)


def test_pair_of_keeps_the_rounds_before_the_last_question():
    turns = [SYSTEM, *ROUND, ROUND[0]]
    assert pair_of("f, row 1", {"prompt": turns, "chosen": ANSWER, "rejected": WORSE}) == Pair(turns, ANSWER, WORSE)


def test_pair_of_keeps_flaw_and_unread():
    record = {"prompt": QUESTION, "chosen": ANSWER, "rejected": WORSE, "flaw": "vague", "unread": True}
    assert pair_of("f, row 1", record) == Pair(ROUND[:1], ANSWER, WORSE, "vague", True)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_pair_of_returns_none_for_a_blank_text(index):
    parts = [QUESTION, ANSWER, WORSE]
    parts[index] = " "
    assert pair_of("f, row 1", dict(zip(("prompt", "chosen", "rejected"), parts, strict=True))) is None


def test_pair_of_returns_none_for_equal_answers():
    assert pair_of("f, row 1", {"prompt": QUESTION, "chosen": ANSWER, "rejected": f" {ANSWER}"}) is None


def test_pair_of_reads_a_prompt_beside_whole_conversations():
    whole = {"prompt": QUESTION, "chosen": ROUND, "rejected": [ROUND[0], {"role": "assistant", "content": WORSE}]}
    assert pair_of("f, row 1", whole) == Pair(ROUND[:1], ROUND[1]["content"], WORSE)


@pytest.mark.parametrize(
    "record, message",
    [
        ({"prompt": ROUND, "chosen": ANSWER, "rejected": WORSE}, "end with user"),
        ({"prompt": QUESTION, "chosen": ROUND, "rejected": WORSE}, "one assistant message"),
        ({"prompt": QUESTION, "chosen": [], "rejected": WORSE}, "one assistant message"),
        ({"prompt": QUESTION, "chosen": 3, "rejected": WORSE}, "int"),
        ({"chosen": ROUND, "rejected": [{"role": "user", "content": "别的？"}, ROUND[1]]}, "same conversation"),
    ],
)
def test_pair_of_names_the_origin_of_a_preference_that_it_cannot_read(record, message):
    with pytest.raises(UserError, match=f"f, row 7.*{message}"):
        pair_of("f, row 7", record)


# Tests of choice_of


def test_choice_of_returns_the_question_the_options_and_the_index():
    record = {"question": f" {QUESTION}", "options": ["是", "否"], "answer": 1}
    assert choice_of("f, row 1", record) == Choice(QUESTION, ["是", "否"], 1)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"options": ["是"]}, "two or more"),
        ({"options": ["是", ""]}, "two or more"),
        ({"answer": 2}, "0 to 1.*2"),
        ({"answer": "否"}, "0 to 1.*否"),
    ],
)
def test_choice_of_refuses_too_few_options_and_an_index_out_of_range(change, message):
    with pytest.raises(UserError, match=f"f, row 7.*{message}"):
        choice_of("f, row 7", {"question": QUESTION, "options": ["是", "否"], "answer": 1} | change)
