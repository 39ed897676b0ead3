import json

import pytest

from med_model import paths
from med_model.data.prompt import IM_END, encode_prompt
from med_model.data.records import Choice, Pair
from med_model.errors import UserError
from med_model.measures.baseline import read_training
from med_model.measures.evaluate import Evaluation, by_step, changes, choice_measures, evaluate
from med_model.measures.heldout import BUNDLED, Heldout, read_heldout
from med_model.measures.interval import figure, measure
from med_model.measures.record import check_record

RECORDS = [
    {"text": "高血压患者要少盐少油。"},
    {"instruction": "高血压怎么办？", "output": "少盐少油。", "key_facts": ["少盐"]},
    {
        "question": "高血压怎么办？",
        "response_chosen": "少盐少油。",
        "response_rejected": "多吃咸菜。",
        "flaw": "wrong_fact",
    },
    {"question": "下列正确的是", "options": ["少盐", "多盐"], "answer": 0},
]


@pytest.fixture(scope="module")
def model(random_gpt2):
    return random_gpt2(128)


def written(folder, records):
    file = folder / "heldout.jsonl"
    file.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return str(file)


def test_read_heldout_tells_all_kinds_of_records_apart_in_one_file(tmp_path):
    heldout = read_heldout([written(tmp_path, RECORDS)])
    assert heldout.texts == ["高血压患者要少盐少油。"]
    assert [question.key_facts for question in heldout.questions] == [["少盐"]]
    assert [pair.flaw for pair in heldout.pairs] == ["wrong_fact"]
    assert [item.options for item in heldout.choices] == [["少盐", "多盐"]]


@pytest.mark.parametrize("answer", [2, -1, "0"])
def test_read_heldout_names_a_choice_whose_answer_is_no_index_of_an_option(tmp_path, answer):
    file = written(tmp_path, [{"question": "问", "options": ["甲", "乙"], "answer": answer}])
    with pytest.raises(UserError, match="row 1.*0 to 1"):
        read_heldout([file])


def test_evaluate_takes_each_measure_that_has_data(model, tokenizer, tmp_path):
    heldout = read_heldout([written(tmp_path, RECORDS)])
    whole = evaluate(model, tokenizer, heldout, chat=True, max_new_tokens=4)
    assert {"bits_per_byte", "key_fact_recall", "preference_accuracy", "choice_accuracy"} <= set(whole.measures)
    assert "preference_accuracy/wrong_fact" in whole.measures and len(whole.answers) == 1
    assert set(evaluate(model, tokenizer, Heldout(texts=heldout.texts), chat=True).measures) == {"bits_per_byte"}


def test_evaluate_counts_a_pair_as_right_if_its_chosen_answer_is_likelier(model, tokenizer):
    turns = [{"role": "user", "content": "高血压怎么办？"}]
    pairs = [
        Pair(turns, "少盐少油。", "多吃咸菜。", "a"),
        Pair(turns, "多吃咸菜。", "少盐少油。", "b"),
    ]
    measures = evaluate(model, tokenizer, Heldout(pairs=pairs), chat=True).measures
    figures = {key: figure(measured) for key, measured in measures.items()}
    assert figures["preference_accuracy"].value == 0.5 and figures["preference_accuracy"].n == 2
    assert {figures["preference_accuracy/a"].value, figures["preference_accuracy/b"].value} == {0.0, 1.0}
    assert figures["preference_margin"].value == pytest.approx(0, abs=1e-6)


def test_evaluate_groups_the_pairs_of_one_question(model, tokenizer):
    turns = [{"role": "user", "content": "高血压怎么办？"}]
    pairs = [Pair(turns, "少盐少油。", bad, "") for bad in ("多吃咸菜。", "不用管。", "多喝酒。")]
    measure = evaluate(model, tokenizer, Heldout(pairs=pairs), chat=True).measures["preference_accuracy"]
    assert measure.items == 3 and len(measure.amounts) == 1


def test_evaluate_counts_pairs_of_unread_topics_in_the_total_and_once_more_alone(model, tokenizer):
    turns = [{"role": "user", "content": "高血压怎么办？"}]
    pairs = [
        Pair(turns, "少盐少油。", "多吃咸菜。"),
        Pair(turns, "多吃咸菜。", "少盐少油。", unread=True),
    ]
    measures = evaluate(model, tokenizer, Heldout(pairs=pairs), chat=True).measures
    both, unread = (figure(measures[f"preference_accuracy{name}"]) for name in ("", "_unread"))
    assert (both.n, unread.n) == (2, 1) and both.value == 0.5
    read = figure(evaluate(model, tokenizer, Heldout(pairs=pairs[:1]), chat=True).measures["preference_accuracy"])
    assert read.value == 1 - unread.value
    assert "preference_accuracy_unread" not in evaluate(model, tokenizer, Heldout(pairs=pairs[:1]), chat=True).measures


def test_evaluate_asks_a_base_model_and_a_chat_model_each_in_its_form(model, tokenizer, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "med_model.measures.answers.generate_answers",
        lambda model, tokenizer, prompts, settings, generator: asked.extend(prompts) or [("", True)] * len(prompts),
    )
    heldout = Heldout(questions=read_heldout([str(paths.EXAM)]).questions[:1])
    for chat in (True, False):
        evaluate(model, tokenizer, heldout, chat, max_new_tokens=4)
    assert asked[0] == encode_prompt(tokenizer, heldout.questions[0].messages)
    assert tokenizer.decode(asked[1]).endswith("答：") and tokenizer.convert_tokens_to_ids(IM_END) not in asked[1]


def test_evaluate_with_training_rows_names_sources_and_samples_with_three_seeds(model, tokenizer, tmp_path):
    heldout = read_heldout([written(tmp_path, [RECORDS[1] | {"item": "高血压/1", "topic": "高血压"}])])
    measures = evaluate(model, tokenizer, heldout, True, 8, read_training([written(tmp_path, RECORDS[1:3])])).measures
    assert {"right_answer", "mixture", "stuttering", "right_answer/sampled"} <= set(measures)
    assert measures["stopped/sampled"].items == 3 and len(measures["stopped/sampled"].amounts) == 1
    assert measures["mixture"].amounts.tolist() == [1], "an untrained model recites nothing"


def test_evaluate_samples_no_answers_of_a_base_model(model, tokenizer, tmp_path):
    heldout = read_heldout([written(tmp_path, RECORDS[1:2])])
    measures = evaluate(model, tokenizer, heldout, False, 8, read_training([written(tmp_path, RECORDS[1:3])])).measures
    assert "stopped" in measures and not any(key.endswith("/sampled") for key in measures)


def test_by_step_sorts_checkpoints_by_number_and_leaves_other_directories_in_order():
    assert by_step(["a/checkpoint-1000", "a/checkpoint-500/"]) == ["a/checkpoint-500/", "a/checkpoint-1000"]
    assert by_step(["z", "a/checkpoint-500"]) == ["z", "a/checkpoint-500"]


def test_choice_measures_keep_topics_never_read_apart():
    choices = [Choice("问", ["甲", "乙"], answer) for answer in (0, 1)]
    choices.append(Choice("问", ["甲", "乙"], 1, unread=True))
    measures = choice_measures(choices, [0, 0, 1])
    assert measures["choice_accuracy"].amounts.tolist() == [1, 0]
    assert measures["choice_accuracy_unread"].amounts.tolist() == [1]
    assert choice_measures(choices[:2], [0, 0]).keys() == {"choice_accuracy"}


def test_changes_compares_neighbours_and_each_model_with_the_baseline():
    results = {
        name: Evaluation({"stopped": measure([0, 1, number]), "characters": measure([number] * (3 + number))}, [])
        for number, name in enumerate(["baseline", "base", "sft"])
    }
    found = changes(results)
    assert list(found) == [("base", "sft"), ("baseline", "base"), ("baseline", "sft")]
    assert found["baseline", "base"].keys() == {"stopped"}, "the numbers of characters differ"
    assert found["baseline", "base"]["stopped"].value == pytest.approx(1 / 3)


def test_read_heldout_finds_every_kind_and_all_twelve_flaws_in_the_bundled_files():
    heldout = read_heldout(BUNDLED)
    assert len(heldout.texts) >= 15 and len(heldout.questions) == 400
    assert len(heldout.pairs) >= 400 and len({pair.flaw for pair in heldout.pairs}) == 12
    assert len(heldout.choices) >= 100 and {len(item.options) for item in heldout.choices} == {4}
    assert any(question.declines == "dose" for question in heldout.questions)


@pytest.mark.long
def test_evaluate_as_a_command_prints_the_figures_and_writes_a_record(run_module, model_directory, tmp_path):
    options = ["--model", model_directory, "--data", written(tmp_path, RECORDS), "--max_new_tokens", 4]
    done = run_module("med_model.measures.evaluate", *options, "--json", tmp_path / "figures.json")
    assert done.returncode == 0, done.stderr
    assert "held-out bits per byte" in done.stdout and "at chance: 50.0%" in done.stdout
    result = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    check_record(result)
    bits = result["figures"][str(model_directory)]["bits_per_byte"]
    assert bits["low"] <= bits["value"] <= bits["high"] and bits["n"] == 1
    assert result["command"].startswith("python -m med_model.measures.evaluate --model ")
    assert [len(answers) for answers in result["answers"].values()] == [1]


@pytest.mark.long
def test_evaluate_as_a_command_names_a_missing_model(run_module, tmp_path):
    done = run_module("med_model.measures.evaluate", "--model", paths.ROOT / "no_such_model")
    assert done.returncode == 2 and "no model in no_such_model/" in done.stderr
