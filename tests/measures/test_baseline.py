import json

import pytest

from med_model.errors import UserError
from med_model.measures.baseline import baseline_measures, read_training
from med_model.measures.heldout import read_heldout
from med_model.measures.taught import TaughtRow

TOPIC = {"topic": "高血压"}
ROWS = [
    {"instruction": "血压高能喝酒吗", "output": "最好不喝酒，喝酒会让血压升高。", "item": "高血压/1", **TOPIC},
    {"instruction": "血压高吃咸菜行吗", "output": "少吃咸菜，盐多了血压难控制。", "item": "高血压/2", **TOPIC},
    {"question": "血压高", "response_chosen": "请问医生。", "response_rejected": "药到病除！", "flaw": "miracle_cure"},
]
HELDOUT = [
    ROWS[0] | {"instruction": "高血压的人可以喝白酒不", "key_facts": ["不喝酒"]},
    ROWS[1] | {"instruction": "喝酒", "key_facts": ["咸菜"]},
    {"question": "糖尿病", "response_chosen": "请问医生。", "response_rejected": "三天除根！", "flaw": "miracle_cure"},
    {"text": "高血压患者要少盐少油。"},
]


@pytest.fixture
def written(tmp_path):
    def write(rows):
        file = tmp_path / f"rows{len(list(tmp_path.iterdir()))}.jsonl"
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return [str(file)]

    return write


def test_the_search_answers_the_questions_and_the_classifier_judges_the_pairs(written):
    measures, answers = baseline_measures(read_training(written(ROWS)), read_heldout(written(HELDOUT)))
    values = {key: measure.amounts.sum() / measure.weights.sum() for key, measure in measures.items()}
    assert [answer.source for answer in answers] == ["right", "sibling"]
    assert values["key_fact_recall"] == values["right_answer"] == values["sibling_answer"] == 0.5
    assert values["preference_accuracy"] == values["preference_accuracy/miracle_cure"] == 1
    assert "bits_per_byte" not in values


@pytest.mark.parametrize("rows, missing", [(ROWS[:2], "preference_accuracy"), (ROWS[2:], "right_answer")])
def test_a_part_without_training_rows_is_left_out(rows, missing, written):
    measures, _ = baseline_measures(read_training(written(rows)), read_heldout(written(HELDOUT)))
    assert measures and missing not in measures


def test_read_training_keeps_every_answer_and_gives_item_and_topic_to_the_last(written):
    salt, pills, sugar = "每人每天吃盐不超过5克。", "自己停药多半会再升上去。", "两次都高才算糖尿病。"
    turns = [{"role": "user", "content": "血压高吃多少盐"}, {"role": "assistant", "content": salt}]
    turns += [{"role": "user", "content": "药能停不"}, {"role": "assistant", "content": pills}]
    rows = [{"messages": turns, "item": "高血压/2", **TOPIC}, {"instruction": "血糖多少算高", "output": sugar}]
    assert read_training(written(rows)).taught.rows == [
        TaughtRow("血压高吃多少盐", salt, salt, "高血压"),
        TaughtRow("药能停不", pills, "高血压/2", "高血压"),
        TaughtRow("血糖多少算高", sugar, sugar, sugar),
    ]


def test_read_training_names_a_record_without_answer(written):
    with pytest.raises(UserError, match="row 1"):
        read_training(written([{"text": "高血压"}]))
