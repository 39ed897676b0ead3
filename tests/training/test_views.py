"""Check training/views.py: what a model reads of the SFT rows in each pass."""

from collections import Counter

import pytest
import torch
from conftest import ADVICE, DISEASES

from med_model.data.prompt import IGNORE, training_example
from med_model.errors import UserError
from med_model.training import views as views_module
from med_model.training.joined_rows import MOST_JOINED, JoinedRows
from med_model.training.similar_lengths import SimilarLengths
from med_model.training.views import RowViews, ViewArguments

WHOLE = 3  # fewer than there are rows in a test
LONG = "先坐下休息，把领口松开，别走动。" + "".join(ADVICE)
WORDINGS = [f"{disease}{ending}" for disease in DISEASES for ending in ("怎么办？", "要注意什么？", "能治好吗？")]


def row(question: str, answer: str = LONG, *more: str) -> list[dict]:
    texts = [question, answer, *more]
    return [{"role": "user" if i % 2 == 0 else "assistant", "content": text} for i, text in enumerate(texts)]


@pytest.fixture(autouse=True)
def fewer_whole_answers_than_rows(monkeypatch):
    monkeypatch.setattr(views_module, "WHOLE_ANSWERS", WHOLE)


@pytest.fixture
def make_views(tokenizer):
    """Return a function that makes the views of conversations. By default, nothing is changed or cut."""

    def make(rows, question_noise=0.0, answer_tokens=0, seed=1, max_length=512, later_turns=0.0):
        examples = [training_example(tokenizer, messages, 512) for messages in rows]
        options = ViewArguments(question_noise, answer_tokens, later_turns)
        return RowViews(tokenizer, examples, options, max_length, seed)

    return make


def labels_of(view):
    return [label for label in view["labels"] if label != IGNORE]


def is_whole(tokenizer, view):
    return labels_of(view)[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_view_without_options_is_the_row_itself(make_views, tokenizer):
    rows = [row(question) for question in WORDINGS]
    views = make_views(rows)
    for i, messages in enumerate(rows):
        example = training_example(tokenizer, messages, 512)
        assert views.view(i, 3) == {"input_ids": example.input_ids, "labels": example.labels}


def test_in_each_pass_an_answer_is_whole_a_fixed_number_of_times_and_all_rows_take_turns(make_views, tokenizer):
    rows = [row(question) for question in WORDINGS]
    views = make_views(rows, answer_tokens=8)
    times = Counter()
    passes = len(rows)
    for number in range(passes):
        whole = [i for i in range(len(rows)) if is_whole(tokenizer, views.view(i, number))]
        assert len(whole) == WHOLE
        times.update(whole)
    assert set(times.values()) == {WHOLE}, "after as many passes as rows, each was whole equally often"


def test_the_rows_that_are_cut_have_the_first_tokens_of_the_answer_and_end_there(make_views, tokenizer):
    rows = [row(question) for question in WORDINGS]
    full, views = make_views(rows), make_views(rows, answer_tokens=8)
    cut = [i for i in range(len(rows)) if not is_whole(tokenizer, views.view(i, 0))]
    assert len(cut) == len(rows) - WHOLE
    for i in cut:
        view, whole = views.view(i, 0), full.view(i, 0)
        assert labels_of(view) == labels_of(whole)[:8]
        assert view["input_ids"] == whole["input_ids"][: len(view["input_ids"])]
        assert len(view["labels"]) == len(view["input_ids"]) == views.length(i, 0)
        assert view["labels"][-1] == view["input_ids"][-1], "nothing follows the cut answer"


def test_an_answer_that_few_rows_share_is_always_whole(make_views, tokenizer):
    views = make_views([row(WORDINGS[0]), row(WORDINGS[1]), row(WORDINGS[2], "多喝水。")], answer_tokens=2)
    assert all(is_whole(tokenizer, views.view(i, number)) for i in range(3) for number in range(4))


def test_in_a_conversation_an_earlier_answer_stays_as_text_and_only_its_labels_are_cut(make_views, tokenizer):
    rows = [row(question, LONG, f"{question[:-1]}，再问一句", "多喝水。" * 5) for question in WORDINGS]
    views = make_views(rows, answer_tokens=8)
    counted = Counter()
    for i in range(len(rows)):
        view = views.view(i, 0)
        assert LONG in tokenizer.decode(view["input_ids"])
        counted[len(labels_of(view))] += 1
    assert counted[16] >= len(rows) - 2 * WHOLE, "8 tokens of each answer"
    ends = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert sum(labels_of(views.view(i, 0)).count(ends) for i in range(len(rows))) == 2 * WHOLE


def test_questions_change_from_pass_to_pass_and_answers_do_not(make_views, tokenizer):
    rows = [row(question) for question in WORDINGS] + [row(WORDINGS[0], LONG, WORDINGS[1], "多喝水。")]
    plain, views = make_views(rows), make_views(rows, question_noise=0.3)
    different = 0
    for i in range(len(rows)):
        one, other = views.view(i, 0), views.view(i, 1)
        assert labels_of(one) == labels_of(other) == labels_of(plain.view(i, 0))
        assert len(one["input_ids"]) == len(one["labels"])
        different += one != other
        assert one["labels"][-3:] == one["input_ids"][-3:], "labels stay in their places"
    assert different >= len(rows) - 1


def test_a_view_depends_on_the_row_the_pass_and_the_seed_alone(make_views):
    rows = [row(question) for question in WORDINGS]
    one, again = make_views(rows, 0.2, 8), make_views(rows, 0.2, 8)
    backwards = {i: again.view(i, 2) for i in reversed(range(len(rows)))}
    assert {i: one.view(i, 2) for i in range(len(rows))} == backwards
    assert any(one.view(i, 2) != make_views(rows, 0.2, 8, seed=2).view(i, 2) for i in range(len(rows)))


def test_rows_are_joined_to_conversations_that_equal_a_written_conversation(make_views, tokenizer):
    rows = [row(question, f"{question[:-1]}？{LONG}") for question in WORDINGS]
    views = make_views(rows, later_turns=0.5)
    for number in range(4):
        for i in range(len(views)):
            messages = [message for j in views.joined.rows(i, number) for message in rows[j]]
            joined = training_example(tokenizer, messages, 512)
            assert views.view(i, number) == {"input_ids": joined.input_ids, "labels": joined.labels}


def test_each_row_is_in_one_conversation_of_a_pass_and_follows_other_rows_in_each_pass():
    joined = JoinedRows([False] * 990 + [True] * 10, later_turns=0.4, seed=1)
    passes = [[joined.rows(i, number) for i in range(len(joined))] for number in (0, 1)]
    for conversations in passes:
        assert sorted(row for rows in conversations for row in rows) == list(range(1000))
        assert max(map(len, conversations)) == MOST_JOINED
        assert all(len(rows) == 1 for rows in conversations if rows[0] >= 990), "a system message opens it"
    assert 0.35 < 1 - len(joined) / 1000 < 0.43
    assert passes[0] != passes[1]
    again = JoinedRows([False] * 990 + [True] * 10, later_turns=0.4, seed=1)
    assert [again.rows(i, 1) for i in range(len(again))] == passes[1]


def test_a_cut_answer_in_an_earlier_turn_has_a_stop_token_without_a_label(make_views, tokenizer):
    views = make_views([row(question) for question in WORDINGS], answer_tokens=8, later_turns=0.75)
    stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for i in range(len(views)):
        view, turns = views.view(i, 0), len(views.joined.rows(i, 0))
        text = tokenizer.decode(view["input_ids"])
        assert text.count("<|im_end|>\n<|im_start|>") == 2 * turns - 1
        assert len(labels_of(view)) - labels_of(view).count(stop) >= 8 * turns
        assert labels_of(view).count(stop) <= WHOLE


def test_first_rows_are_left_out_and_counted_if_all_together_are_too_long(make_views):
    rows = [row(question) for question in WORDINGS]
    alone = make_views(rows)
    longest = max(len(alone.view(i, 0)["input_ids"]) for i in range(len(rows)))
    views = make_views(rows, later_turns=0.75, max_length=longest + 1)
    last = [views.joined.rows(i, 0)[-1] for i in range(len(views))]
    assert [views.view(i, 0) for i in range(len(views))] == [alone.view(i, 0) for i in last]
    assert views.left_out(0) == len(rows) - len(views) > 0 == alone.left_out(0)


def test_a_changed_question_never_makes_a_row_longer_than_max_length(make_views):
    rows = [row(question) for question in WORDINGS]
    longest = max(len(make_views(rows).view(i, 0)["input_ids"]) for i in range(len(rows)))
    views = make_views(rows, question_noise=0.1, max_length=longest)
    assert max(len(views.view(i, number)["input_ids"]) for i in range(len(rows)) for number in range(5)) <= longest


def test_dataset_gives_the_views_of_the_current_pass(make_views):
    views = make_views([row(question) for question in WORDINGS], 0.2, 8)
    dataset = views.dataset()
    for number in (0, 3):
        views.current_pass = number
        assert dataset[4] == views.view(4, number)


def test_similar_lengths_draws_every_row_once_in_another_order_each_pass(make_views):
    rows = [row(f"第{i}问" + "很" * (i % 37)) for i in range(103)]
    views = make_views(rows, answer_tokens=8)
    sampler, orders = SimilarLengths(views, 4), []
    for number in (0, 1):
        views.current_pass = number
        orders.append(list(sampler))
        assert list(sampler) == orders[-1]
        assert sorted(orders[-1]) == list(range(103)) and len(sampler) == 103
        batches = [orders[-1][start : start + 4] for start in range(0, 103, 4)]
        lengths = [[views.length(i, number) for i in batch] for batch in batches]
        padding = sum(max(batch) - length for batch in lengths for length in batch)
        shuffled = torch.randperm(103, generator=torch.Generator().manual_seed(0)).tolist()
        random_lengths = [[views.length(i, number) for i in shuffled[s : s + 4]] for s in range(0, 103, 4)]
        assert padding < 0.3 * sum(max(batch) - length for batch in random_lengths for length in batch)
    assert orders[0] != orders[1]


@pytest.mark.parametrize(
    "option", [{"question_noise": 0.6}, {"question_noise": -0.1}, {"answer_tokens": -1}, {"later_turns": 0.8}]
)
def test_view_arguments_name_an_option_that_is_out_of_range(option):
    with pytest.raises(UserError, match=f"--{next(iter(option))} {next(iter(option.values()))}"):
        ViewArguments(**option)
