"""Check the rows that corpus/pairs.py, corpus/turns.py and corpus/rows.py make."""

import copy
import random
from collections import Counter

import pytest
import yaml
from small_corpus import good_department

from med_model import paths
from pairs import composed_rejection
from rows import Written, rows_by_file
from turns import PER_TOPIC, PERSONAL, wordings_of


@pytest.fixture(scope="module")
def good() -> dict:
    return good_department()


ANSWER = "高血压患者要少盐少油，每天快走半小时。按时复查，把结果记下来。有变化就去医院看看。"


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("longer", [True, False])
@pytest.mark.parametrize("flaw", ["repetition", "vague"])
def test_composed_rejection_is_longer_or_shorter_than_the_answer_as_requested(flaw, longer, seed):
    vague = ["这个情况因人而异，" + "很" * number + "难讲。" for number in range(8)]
    text = composed_rejection(flaw, ANSWER, vague, longer, random.Random(seed))
    assert (len(text) > len(ANSWER)) == longer and abs(len(text) - len(ANSWER)) <= 8 and text[-1] in "。！？"


@pytest.mark.parametrize("seed", range(20))
def test_composed_rejection_without_an_end_stops_inside_a_clause(seed):
    text = composed_rejection("no_ending", ANSWER, [], True, random.Random(seed))
    assert ANSWER.startswith(text) and 0.3 <= len(text) / len(ANSWER) <= 2 / 3
    assert text[-1] not in "，。；：、！？"


@pytest.fixture
def written() -> Written:
    """Return the texts that `rows_by_file` needs beside a department.

    They are 40 vague sentences, the bundled phrases for conversations, and one question out of scope.
    """
    vague = {
        side: [f"{number}个人有{number}种说法，{side}。" for number in range(20)] for side in ("training", "held_out")
    }
    outside = [
        {
            "kind": "算术",
            "questions": [{"wordings": ["一加一等于几"], "answer": "我不会算术。", "heldout": ["二加二"]}],
        }
    ]
    return Written(vague, yaml.safe_load(paths.TURN_PHRASES.read_text(encoding="utf-8")), outside)


def test_new_topic_changes_neither_questions_nor_heldout_questions_of_the_others(good, written):
    third = {**copy.deepcopy(good["topics"][1]), "topic": "新的主题"}
    before = rows_by_file([good], written)
    after = rows_by_file([{**good, "topics": [third, *good["topics"]]}], written)

    def questions(rows):
        return [row for row in rows if row.get("topic") != "新的主题" and not row.keys() & {"messages", "prompt"}]

    for path, rows in before.items():
        if path == paths.EXAM:
            continue
        again, rows = questions(after[path]), questions(rows)
        if path.is_relative_to(paths.DPO_DATA.parent):  # a new topic may change a rejected answer but no question
            again, rows = ([row["question"] for row in part] for part in (again, rows))
        assert again == rows, path


def test_rows_have_item_and_register_and_conversations_end_with_the_item(good, written):
    files = rows_by_file([good], written)
    rows = files[paths.SFT_DATA / "cardiology.jsonl"]
    answers = {row["item"]: row["output"] for row in rows if "register" in row}
    topics = {topic["topic"]: topic for topic in good["topics"]}
    for row in rows:
        if "register" in row:
            topic, _, number = row["item"].rpartition("/")
            question = topics[topic]["questions"][int(number) - 1]
            assert row["output"] == question["answer"]
            assert row["instruction"] in question["wordings"][row["register"]]
        elif row.get("item", "致谢") != "致谢" and row["key_facts" if "key_facts" in row else "item"]:
            simple = {q.get("simple") for topic in good["topics"] for q in topic["questions"]}
            assert row["messages"][-1]["content"] in simple | {answers[row["item"]]}
    kinds = Counter(sum(turn["role"] == "user" for turn in row["messages"]) for row in rows if "messages" in row)
    assert kinds[2] > 4 * len(answers) and kinds[3] == 4, "four follow-ups per question, two long ones per topic"


def test_every_followup_is_asked_once_after_another_question_of_the_topic(good, written):
    rows = rows_by_file([good], written)[paths.SFT_DATA / "cardiology.jsonl"]
    asked = Counter(row["messages"][-2]["content"] for row in rows if len(row.get("messages", [])) == 4)
    for topic in good["topics"]:
        for question in topic["questions"]:
            assert [asked[text] for text in question.get("followups", [])] == [1] * len(question.get("followups", []))
            assert wordings_of(question)


def test_no_personal_story_comes_before_another_question(good, written, monkeypatch):
    monkeypatch.setitem(PER_TOPIC, "again", 9)  # of all questions, so that a story is among them
    questions = [question for topic in good["topics"] for question in topic["questions"]]
    item_of = {question["answer"]: number for number, question in enumerate(questions)}
    register_of = {
        wording: register
        for question in questions
        for register, wordings in question["wordings"].items()
        for wording in wordings
    }
    firsts = Counter()
    for rows in rows_by_file([good], written).values():
        for row in rows:
            first, answer, *_, last = row.get("messages", [{"content": ""}] * 3)
            if first["content"] in register_of and {answer["content"], last["content"]} <= item_of.keys():
                other = item_of[answer["content"]] != item_of[last["content"]]
                firsts[other, register_of[first["content"]] in PERSONAL] += 1
    assert firsts[True, False] and firsts[False, True] and not firsts[True, True]


def test_a_refusal_is_the_good_answer_of_a_pair_out_of_scope(good, written):
    files = rows_by_file([good], written)
    taught = {row["output"] for row in files[paths.SFT_DATA / "cardiology.jsonl"] if "output" in row}
    (pair,) = files[paths.DPO_DATA / "out_of_scope.jsonl"]
    assert (pair["question"], pair["response_chosen"]) == ("一加一等于几", "我不会算术。")
    assert pair["flaw"] == "other_topic" and pair["response_rejected"] in taught


def test_out_of_scope_rows_are_marked(good, written):
    files = rows_by_file([good], written)
    (row,) = files[paths.SFT_DATA / "out_of_scope.jsonl"]
    assert (row["scope"], row["item"]) == ("out", "算术/我不会算术。") and "help_line" not in row
    assert [row["instruction"] for row in files[paths.HELDOUT_OUT_OF_SCOPE]] == ["二加二"]
