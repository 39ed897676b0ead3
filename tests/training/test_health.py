"""Check the warnings of training/health.py.

The checks of the data run without a training. The callback TrainingHealth warns during a training. If a few steps can
cause a warning, the test trains a tiny model. Otherwise the test gives prepared logs to the callback.
"""

import re
import statistics

import pytest
import torch
from conftest import ADVICE, DISEASES
from small_runs import PAIRS, PLAIN, replay
from transformers import PrinterCallback, Trainer, TrainingArguments

from med_model.data.prompt import encode_text, stop_ids, training_example
from med_model.errors import UserError
from med_model.training.health import HealthLines, TrainingHealth, check_overlap, check_stops, check_truncation

POSITIONS, ROW_TOKENS = 256, 64
TEXTS = [f"{disease}{advice}。" for disease in DISEASES for advice in ADVICE[:3]]
OTHER_TEXT = "生僻字：龘䶮𠮷，表情😷；请立即就医。"


@pytest.fixture
def model(random_gpt2):
    return random_gpt2(POSITIONS, initializer_range=0.02)


@pytest.fixture
def text_rows(tokenizer):
    """Return a function that makes one row of ROW_TOKENS tokens per text. A short text is repeated."""

    def make(texts: list[str]) -> list[dict]:
        rows = [torch.tensor((ids * ROW_TOKENS)[:ROW_TOKENS]) for ids in encode_text(tokenizer, texts)]
        return [{"input_ids": row, "labels": row} for row in rows]

    return make


@pytest.fixture
def train(tmp_path):
    """Return a function that trains a model with the given callbacks and returns the trainer."""

    def run(model, rows: list[dict], *callbacks, heldout=None, **options) -> Trainer:
        args = TrainingArguments(str(tmp_path), **PLAIN | {"per_device_train_batch_size": 4} | options)
        trainer = Trainer(model, args, train_dataset=rows, eval_dataset=heldout, callbacks=list(callbacks))
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return trainer

    return run


def losses(*values: float) -> list[dict]:
    return [{"loss": value} for value in values]


def norms(*values: float) -> list[dict]:
    return [{"grad_norm": value} for value in values]


def test_warn_prints_each_kind_once_on_stderr(capsys):
    health = HealthLines()
    for kind, line in (("a", "first"), ("a", "again"), ("b", "other")):
        health.warn(kind, line)
    printed = capsys.readouterr()
    assert printed.err.splitlines() == ["Warning: first", "Warning: other"] and not printed.out
    assert health.lines == ["first", "other"]


def test_warn_prints_on_the_first_process_only_and_keeps_the_lines_on_each(monkeypatch, capsys):
    health = HealthLines()
    monkeypatch.setenv("RANK", "1")
    health.warn("a", "line")
    assert health.lines == ["line"] and not capsys.readouterr().err


def test_check_truncation_names_the_option_that_makes_the_rows_fit(tokenizer):
    rows = [[*pair["prompt"], {"role": "assistant", "content": "。".join(ADVICE)}] for pair in PAIRS]
    for max_length, warned in ((ROW_TOKENS * 4, False), (ROW_TOKENS, True)):
        health = HealthLines()
        shortened = sum(training_example(tokenizer, row, max_length).shortened for row in rows)
        check_truncation(health, shortened, len(rows))
        assert bool(health.lines) == warned
    assert f"{len(rows)} of {len(rows)} rows (100%)" in health.lines[0] and "--max_length" in health.lines[0]


def test_check_truncation_allows_a_twentieth_of_the_rows():
    health = HealthLines()
    check_truncation(health, 5, 100)
    assert not health.lines
    check_truncation(health, 6, 100)
    assert "6 of 100 rows (6%)" in health.lines[0]


def test_check_stops_counts_rows_without_a_stop_among_their_labels(tokenizer):
    stops = stop_ids(tokenizer, chat=True)
    whole = [training_example(tokenizer, pair["prompt"] + pair["chosen"], ROW_TOKENS).labels for pair in PAIRS]
    cut = [row[:-1] for row in whole]
    health = HealthLines()
    check_stops(health, whole, stops)
    check_stops(health, [*whole * 7, cut[0]], stops)  # 1 of 113 rows has no stop token: below the limit of 1%
    assert not health.lines
    check_stops(health, whole + cut, stops)
    assert "16 of 32 rows (50%)" in health.lines[0] and "not learn to stop" in health.lines[0]


def test_check_stops_does_not_count_a_stop_in_the_prompt(tokenizer):
    health = HealthLines()
    row = training_example(tokenizer, PAIRS[0]["prompt"] + PAIRS[0]["chosen"], ROW_TOKENS)
    stops = stop_ids(tokenizer, chat=True)
    assert set(row.input_ids[:-1]) & set(stops), "the question ends with the same token"
    check_stops(health, [row.labels[:-1]], stops)
    assert health.lines


@pytest.mark.parametrize(
    ("training", "heldout", "found"),
    [
        (["高血压 怎么办？\n", "湿疹怎么办？"], ["高血压怎么办？", "痛风怎么办？"], "1 of 2"),
        ([("问", "答 一"), ("问", "答二")], [("问", "答一"), ("问 ", "答二")], "2 of 2"),
    ],
)
def test_check_overlap_counts_held_out_records_in_the_training_data(training, heldout, found):
    health = HealthLines()
    check_overlap(health, training, heldout)
    assert f"{found} held-out records" in health.lines[0] and "--eval_data" in health.lines[0]


def test_check_overlap_accepts_another_answer_to_the_same_question():
    health = HealthLines()
    check_overlap(health, iter([("问", "答一")]), iter([("问", "答二"), ("问答", "一")]))
    assert not health.lines


def test_training_health_prints_nothing_in_a_healthy_training(model, text_rows, train, capsys):
    health = HealthLines()
    options = {"max_steps": 40, "learning_rate": 3e-3, "eval_strategy": "steps", "eval_steps": 10}
    trainer = train(model, text_rows(TEXTS), TrainingHealth(health), heldout=text_rows(TEXTS[::5]), **options)
    logged = [entry for entry in trainer.state.log_history if "loss" in entry or "eval_loss" in entry]
    assert len(logged) == 44 and not health.lines
    assert "Warning" not in capsys.readouterr().err


@pytest.mark.parametrize("cause", ["learning rate", "weights"])
def test_training_health_ends_the_training_at_a_loss_that_is_not_a_number(model, text_rows, train, cause):
    steps = []
    callback = TrainingHealth(HealthLines())
    callback.on_step_begin = lambda args, state, control, **kwargs: steps.append(state.global_step)
    if cause == "weights":
        model.transformer.ln_f.weight.data[0] = torch.nan
    with pytest.raises(UserError, match=r"loss is nan at step \d\..*--learning_rate \(now 1e\+06\).*--bf16 False"):
        train(model, text_rows(TEXTS), callback, max_steps=20, learning_rate=1e6)
    assert len(steps) <= 3


def test_training_health_ends_the_training_at_a_held_out_loss_that_is_not_a_number(model, text_rows, train):
    heldout = text_rows(TEXTS[:4])
    trainer = train(model, text_rows(TEXTS), TrainingHealth(HealthLines()), heldout=heldout, max_steps=1)
    model.transformer.ln_f.weight.data[0] = torch.nan
    with pytest.raises(UserError, match="eval_loss is nan"):
        trainer.evaluate()


@pytest.mark.parametrize("key", ["loss", "grad_norm", "eval_loss", "train_loss"])
def test_training_health_ends_the_training_at_an_infinite_value_in_a_log(key):
    with pytest.raises(UserError, match=f"{key} is inf at step 2"):
        replay(TrainingHealth(HealthLines()), [{key: 1.0}, {key: float("inf")}], 10)


def test_training_health_allows_the_gradient_overflows_of_fp16():
    entries = [{"loss": 5.0, "grad_norm": float("inf")}, {"loss": 4.0, "grad_norm": 1.0}]
    assert not replay(TrainingHealth(HealthLines()), entries, 10, fp16=True)


def test_training_health_refuses_a_trainer_that_hides_losses(model, text_rows, train):
    with pytest.raises(AssertionError, match="logging_nan_inf_filter"):
        train(model, text_rows(TEXTS), TrainingHealth(HealthLines()), max_steps=1, logging_nan_inf_filter=True)


@pytest.mark.long
@pytest.mark.parametrize("falls", [True, False])
def test_training_health_warns_of_a_loss_that_does_not_fall_unless_it_need_not(model, text_rows, train, falls):
    health = HealthLines()
    trainer = train(model, text_rows(TEXTS), TrainingHealth(health, falls), max_steps=10, learning_rate=0.0)
    first, last = (
        statistics.fmean(trainer.state.log_history[i]["loss"] for i in part) for part in ((0, 1, 2), (2, 3, 4))
    )
    wanted = f"{last:.3f} at step 5, {first:.3f} at the start. Raise --learning_rate"
    assert len(health.lines) == falls and all(wanted in line for line in health.lines)


@pytest.mark.parametrize(
    ("values", "max_steps", "warned"),
    [
        ([5.0] * 4, 4, False),  # too few logs to judge
        ([5.0] * 19, 100, False),  # no check in the first fifth of the steps
        ([5.0] * 20, 100, True),
        ([5.0, 5.0, 5.0, 4.96, 4.96, 4.96], 30, True),
        ([5.0, 5.0, 5.0, 4.94, 4.94, 4.94], 30, False),
        ([5.0, 3.0, 2.0, 1.0, 4.0, 6.0, 7.0], 7, True),  # the loss falls and rises again
        # In SFT the loss jumps, because the rows of some batches are longer. But on average the loss falls.
        ([5.5, 3.9, 3.7, 0.8, 2.4, 1.6, 0.4, 1.5, 0.3, 0.9], 10, False),
        # The loss falls slowly and with jumps. The last 3 logs are high, but the mean of the last 6 is not.
        ([5 - 0.03 * i + i // 3 % 2 for i in range(30)], 150, False),
    ],
)
def test_training_health_compares_the_last_losses_with_the_first(values, max_steps, warned):
    assert bool(replay(TrainingHealth(HealthLines()), losses(*values), max_steps)) == warned


def test_training_health_judges_a_resumed_run_from_its_first_step_on():
    history = tuple({"loss": 5.0 / step, "grad_norm": 0.1, "step": step} for step in range(1, 11))
    level = losses(*[0.5] * 8)
    assert not replay(TrainingHealth(HealthLines()), level, 18, history)
    assert replay(TrainingHealth(HealthLines()), level, 18)
    (line,) = replay(TrainingHealth(HealthLines()), norms(2.0), 18, history)
    assert "the median of the last 10 logs is 0.1" in line


@pytest.mark.long
def test_training_health_warns_of_the_gradient_spike_of_a_strange_row(model, text_rows, train):
    known = text_rows(TEXTS[:1]) * 80
    strange = torch.randint(0, model.config.vocab_size, (ROW_TOKENS,), generator=torch.Generator().manual_seed(0))
    options = {"per_device_train_batch_size": 1, "train_sampling_strategy": "sequential"}
    health = HealthLines()
    train(model, known, TrainingHealth(health), max_steps=80, learning_rate=1e-2, **options)
    assert not health.lines
    rows = [*known[:8], {"input_ids": strange, "labels": strange}]
    train(model, rows, TrainingHealth(health, falls=False), max_steps=9, learning_rate=1e-5, **options)
    assert len(health.lines) == 1
    assert re.search(r"the gradient norm is \S+ at step 9;", health.lines[0]) and "--warmup_steps" in health.lines[0]


@pytest.mark.parametrize(
    ("values", "warned"),
    [
        ([1.0] * 5 + [9.9], False),
        ([1.0] * 5 + [10.1], True),
        ([1.0] * 4 + [99.0], False),  # too few logs for a median
        ([9.0] * 60 + [1.0] * 26 + [11.0], True),  # the median of the 50 logs before 11.0 is 1
        ([9.0] * 60 + [1.0] * 24 + [11.0], False),
    ],
)
def test_training_health_takes_ten_times_the_median_for_a_spike(values, warned):
    assert bool(replay(TrainingHealth(HealthLines()), norms(*values), 100)) == warned


@pytest.mark.long
@pytest.mark.parametrize("kept", [True, False])
def test_training_health_warns_of_a_rising_held_out_loss_while_the_training_loss_falls(model, text_rows, train, kept):
    health = HealthLines()
    options = {"max_steps": 24, "learning_rate": 1e-2, "eval_strategy": "steps", "eval_steps": 2}
    saving = {"save_strategy": "steps", "save_steps": 2, "load_best_model_at_end": True} if kept else {}
    heldout = text_rows([OTHER_TEXT])
    trainer = train(model, text_rows(TEXTS[:2]), TrainingHealth(health), heldout=heldout, **options, **saving)
    (line,) = health.lines
    by_step = {entry["step"]: entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry}
    best = min(by_step, key=by_step.get)
    assert f"its best, {by_step[best]:.3f}, at step {best}" in line and "--num_train_epochs" in line
    assert ("The checkpoint that is best by loss is published." in line) == kept
    assert ("--load_best_model_at_end True publishes the best checkpoint." in line) != kept
    if kept:  # the warning is true: the trainer has loaded the best checkpoint
        assert trainer.evaluate()["eval_loss"] == pytest.approx(by_step[best], abs=1e-6)


def epochs(training: list[float], heldout: list[float]) -> list[dict]:
    """Return the logs of all epochs: per epoch, three equal logs of training loss, then one log of held-out loss."""
    return [
        entry
        for loss, eval_loss in zip(training, heldout, strict=True)
        for entry in [*losses(loss, loss, loss), {"eval_loss": eval_loss}]
    ]


@pytest.mark.parametrize(
    ("training", "heldout", "warned"),
    [
        ([4.0, 3.0], [2.0, 2.03], True),
        ([4.0, 3.0], [2.0, 2.01], False),  # on a plateau, two evaluations may differ by this much
        ([4.0, 3.0, 2.0], [2.0, 0.02, 0.10], False),  # the rise is small compared with the drop before
        ([4.0, 3.0, 2.0], [2.0, 0.02, 0.13], True),
        ([3.0, 4.0], [2.0, 2.5], False),  # both losses rise: this is not overfitting
        ([9.0, 3.0, 4.0], [3.0, 2.0, 2.5], False),  # both losses rise at the end
    ],
)
def test_training_health_takes_a_rising_and_a_falling_loss_for_overfitting(training, heldout, warned):
    assert bool(replay(TrainingHealth(HealthLines()), epochs(training, heldout), 100)) == warned


def test_training_health_lets_the_held_out_loss_of_dpo_rise():
    assert not replay(TrainingHealth(HealthLines(), falls=False), epochs([0.7, 0.3], [35.3, 37.0]), 100)
