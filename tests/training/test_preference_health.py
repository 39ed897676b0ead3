"""Check the warnings of training/preference_health.py with real runs of a tiny model and with prepared logs."""

import copy
import statistics
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from small_runs import PAIRS, PLAIN, replay
from transformers import PrinterCallback, Trainer, TrainerState, TrainingArguments
from trl import DPOConfig, DPOTrainer

from med_model.data.prompt import IGNORE, encode_prompt, training_example
from med_model.training.health import HealthLines, TrainingHealth
from med_model.training.preference_health import AnswerDrift, PreferenceHealth

POSITIONS, ROW_TOKENS = 256, 64


@pytest.fixture(scope="module")
def answering_model(tokenizer, random_gpt2, tmp_path_factory):
    """Return a tiny model after SFT on all answers of PAIRS, chosen and rejected. Tests must not change the model."""

    def row(conversation: list[dict]) -> dict:
        ids, labels, *_ = training_example(tokenizer, conversation, ROW_TOKENS)
        gap = ROW_TOKENS - len(ids)
        return {
            "input_ids": torch.tensor(ids + [tokenizer.pad_token_id] * gap),
            "labels": torch.tensor(labels + [IGNORE] * gap),
        }

    model = random_gpt2(POSITIONS, initializer_range=0.02)
    options = {"max_steps": 80, "learning_rate": 1e-2, "per_device_train_batch_size": 8, "seed": 1}
    args = TrainingArguments(str(tmp_path_factory.mktemp("sft")), **PLAIN | options)
    rows = [row(pair["prompt"] + pair[kind]) for pair in PAIRS for kind in ("chosen", "rejected")]
    Trainer(model, args, train_dataset=rows).train()
    return model.eval()


@pytest.fixture
def prefer(tokenizer, answering_model, tmp_path):
    """Return a function that trains a copy of `answering_model` by DPO.

    The callbacks are TrainingHealth, PreferenceHealth and AnswerDrift. The function returns the collected warnings
    (HealthLines), and the AnswerDrift, which has measured the answers.
    """

    def run(**options) -> tuple[HealthLines, AnswerDrift]:
        health = HealthLines()
        prompts = [encode_prompt(tokenizer, pair["prompt"]) for pair in PAIRS[:4]]
        drift = AnswerDrift(health, tokenizer, prompts, copy.deepcopy(answering_model))
        defaults = {
            "bf16": False,
            "activation_checkpointing": False,
            "max_length": 128,
            "max_steps": 12,
            "per_device_train_batch_size": 4,
            "eval_strategy": "steps",
            "eval_steps": 6,
        }
        trainer = DPOTrainer(
            model=copy.deepcopy(answering_model),
            ref_model=copy.deepcopy(answering_model),
            args=DPOConfig(str(tmp_path), **PLAIN | defaults | options),
            train_dataset=Dataset.from_list(PAIRS),
            eval_dataset=Dataset.from_list(PAIRS[:4]),
            processing_class=tokenizer,
            callbacks=[TrainingHealth(health, falls=False), PreferenceHealth(health), drift],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return health, drift

    return run


def rewards(chosen: float, rejected: float, times: int = 1, prefix: str = "") -> list[dict]:
    """Return `times` equal logs of the two rewards and their margin. For held-out pairs, `prefix` must be `eval_`."""
    values = {"chosen": chosen, "rejected": rejected, "margins": chosen - rejected}
    return [{f"{prefix}rewards/{name}": value for name, value in values.items()}] * times


def test_preference_health_prints_nothing_in_a_healthy_training(prefer, capsys):
    health, drift = prefer(learning_rate=3e-4, loss_type=["sigmoid", "sft"])
    assert not health.lines and "Warning" not in capsys.readouterr().err
    assert 0 < drift.kl < 0.5 and drift.length > 1


@pytest.mark.long
def test_preference_health_warns_of_a_training_that_learns_nothing(prefer):
    health, drift = prefer(learning_rate=0.0)
    (line,) = health.lines
    assert "margin on training pairs is 0.0000" in line and "0.693" in line and "swapped nor equal" in line
    assert drift.kl == 0.0 and drift.length == drift.start_length


@pytest.mark.long
def test_preference_health_warns_of_falling_chosen_answers_and_of_drift_at_a_huge_learning_rate(prefer, capsys):
    health, drift = prefer(learning_rate=3e-1, max_steps=30, loss_type=["sigmoid"])
    length, kl, chosen = health.lines
    assert "Keep sft in --loss_type" in chosen and "--loss_weights (now sigmoid 1)" in chosen
    assert f", {drift.start_length:.0f} at the start." in length and "--num_train_epochs" in length
    assert "nats per token" in kl and "--beta (now 0.1)" in kl
    assert drift.kl > 0.5 and abs(drift.length / drift.start_length - 1) > 0.25
    printed = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Warning: ")]
    assert [line.removeprefix("Warning: ") for line in printed] == health.lines, (
        "each warning is printed once, on a line of its own"
    )


@pytest.mark.parametrize(
    ("entries", "warned"),
    [
        (rewards(0.01, 0.0, 19), None),  # 19 steps are less than two thirds of 30: no check yet
        (rewards(0.01, 0.0, 20), "on training pairs is 0.0100 at step 20"),
        (rewards(0.0, 0.01, 20), "on training pairs is -0.0100 at step 20"),  # a margin of -0.01 is near 0 too
        (rewards(0.03, 0.0, 20), None),
        (rewards(0.0, 0.03, 20), None),
        (rewards(0.03, 0.0, 20) + rewards(0.01, 0.0, prefix="eval_"), "on held-out pairs is 0.0100 at step 21"),
    ],
)
def test_preference_health_warns_of_a_flat_margin_after_two_thirds_of_the_steps(entries, warned):
    lines = replay(PreferenceHealth(HealthLines()), entries, 30)
    assert len(lines) == (warned is not None)
    assert all(f"the reward margin {warned}, " in line for line in lines)


def test_preference_health_ignores_an_evaluation_before_the_training():
    assert not replay(PreferenceHealth(HealthLines()), rewards(0.0, 0.0, prefix="eval_"), 0)


@pytest.mark.parametrize(
    ("beta", "entries", "steps", "warned"),
    [
        (0.02, rewards(-3.2, -9.0, 3), 4, True),
        (0.02, rewards(-3.2, -9.0, 3), 5, False),  # before two thirds of the steps they fall in healthy runs too
        (0.02, rewards(-3.2, -9.0, 2), 3, False),  # too few logs
        (0.02, rewards(-2.8, -9.0, 3), 4, False),
        (0.02, rewards(-3.2, 0.1, 3), 4, False),  # the rejected answers become more likely: a fault not checked here
        # on held-out pairs, the reward of the chosen answers falls in healthy runs too
        (0.02, rewards(-9.3, -11.0, 3, prefix="eval_"), 4, False),
        (0.005, rewards(-0.8, -2.0, 3), 4, True),  # reward / beta is -160 nats, as in the first case
        (0.005, rewards(-0.7, -2.0, 3), 4, False),
    ],
)
def test_preference_health_warns_of_chosen_answers_that_fall_by_many_nats(beta, entries, steps, warned):
    loss = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 4.0], "beta": beta}
    lines = replay(PreferenceHealth(HealthLines()), entries, steps, **loss)
    assert bool(lines) == warned
    assert all("(-160 nats per answer)" in line and "(now sigmoid 1, sft 4)" in line for line in lines)


@pytest.fixture
def drifted(tokenizer, answering_model):
    """Return an AnswerDrift with `answering_model` as reference model, and a copy of this model with other weights."""
    prompts = [encode_prompt(tokenizer, pair["prompt"]) for pair in PAIRS[::3]]
    moved = copy.deepcopy(answering_model)
    generator = torch.Generator().manual_seed(0)
    for weights in moved.parameters():
        weights.data += 0.05 * torch.randn(weights.shape, generator=generator)
    return AnswerDrift(HealthLines(), tokenizer, prompts, copy.deepcopy(answering_model)), moved


def test_answer_drift_measures_length_and_kl_on_the_answers_of_generate(drifted, answering_model, tokenizer):
    drift, moved = drifted
    lengths, ratios = {"moved": [], "start": []}, []
    for prompt in drift.prompts:
        ids = torch.tensor([prompt])
        for name, model in (("start", answering_model), ("moved", moved)):
            row = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=drift.settings)
            lengths[name].append(row.shape[1] - len(prompt))
        answer = row[0, len(prompt) :]
        with torch.no_grad():
            log_probs = [
                model(row).logits[0, len(prompt) - 1 : -1].log_softmax(-1).gather(1, answer[:, None])
                for model in (moved, answering_model)
            ]
        ratios.append((log_probs[0] - log_probs[1]).mean().item())
    state, args = TrainerState(), SimpleNamespace(beta=0.1)
    drift.on_train_begin(args, state, None, model=answering_model)
    assert drift.start_length == drift.length == statistics.fmean(lengths["start"])
    drift.on_evaluate(args, state, None, model=moved)
    assert drift.length == statistics.fmean(lengths["moved"])
    assert drift.kl == pytest.approx(statistics.fmean(ratios), rel=1e-4) and abs(drift.kl) > 0.003


def test_answer_drift_of_a_resumed_run_has_the_start_of_the_whole_run(drifted, answering_model):
    drift, moved = drifted
    drift.on_train_begin(None, TrainerState(), None, model=answering_model)
    whole = drift.start_length
    drift.on_train_begin(None, TrainerState(), None, model=moved)
    assert drift.start_length == whole


@pytest.mark.parametrize("training", [True, False])
def test_answer_drift_generates_in_eval_mode_and_restores_the_mode(drifted, training):
    drift, moved = drifted
    modes = []
    answers, drift._answers = drift._answers, lambda model: (modes.append(model.training), answers(model))[1]
    drift.on_evaluate(SimpleNamespace(beta=0.1), TrainerState(), None, model=moved.train(training))
    assert modes == [False] and moved.training == training


def test_answer_drift_measures_a_model_outside_of_a_training(drifted, answering_model):
    drift, moved = drifted
    drift.on_train_begin(None, TrainerState(), None, model=answering_model)
    drift.measure(answering_model)
    assert drift.kl == 0.0 and drift.length == drift.start_length
    drift.measure(moved)
    assert abs(drift.kl) > 0.003
    assert drift.metrics() == {
        "kl_to_sft_model": drift.kl,
        "answer_tokens": drift.length,
        "answer_tokens_of_sft_model": drift.start_length,
    }
    assert drift.health.lines == [], "only an evaluation warns"


def test_answer_drift_generates_on_the_first_process_only(drifted, monkeypatch):
    drift, moved = drifted

    def generate_ids(*args, **kwargs):
        raise AssertionError("another process generates")

    monkeypatch.setattr("med_model.training.preference_health.generate_ids", generate_ids)
    state = TrainerState(is_world_process_zero=False)
    drift.on_train_begin(SimpleNamespace(beta=0.1), state, None, model=moved)
    drift.on_evaluate(SimpleNamespace(beta=0.1), state, None, model=moved)
    assert drift.kl == drift.length == drift.start_length == 0
    with pytest.raises(AssertionError, match="another process"):
        drift.on_evaluate(SimpleNamespace(beta=0.1), TrainerState(is_world_process_zero=True), None, model=moved)
