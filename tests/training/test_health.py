"""Each warning is provoked: by a real run of a tiny model where a few steps can do it, else by the logs of one."""

import copy
import statistics
from types import SimpleNamespace

import pytest
import torch
from conftest import ADVICE, DISEASES
from datasets import Dataset
from transformers import PrinterCallback, Trainer, TrainerState, TrainingArguments
from trl import DPOConfig, DPOTrainer

from med_model.data.prompt import CHAT_STOPS, IGNORE, encode_prompt, encode_text, training_example
from med_model.errors import UserError
from med_model.training.health import (
    AnswerDrift,
    PreferenceHealth,
    TrainingHealth,
    Warnings,
    check_overlap,
    check_stops,
    check_truncation,
)

POSITIONS, ROW_TOKENS = 256, 64
TEXTS = [f"{disease}{advice}。" for disease in DISEASES for advice in ADVICE[:3]]
OTHER_TEXT = "生僻字：龘䶮𠮷，表情😷；请立即就医。"
COMMON = {
    "use_cpu": True,
    "report_to": "none",
    "save_strategy": "no",
    "logging_steps": 1,
    "logging_nan_inf_filter": False,
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}


@pytest.fixture
def model(random_gpt2):
    return random_gpt2(POSITIONS, initializer_range=0.02)


@pytest.fixture
def text_rows(tokenizer):
    """Makes rows of ROW_TOKENS from texts, each repeated until it fills one."""

    def make(texts: list[str]) -> list[dict]:
        rows = [torch.tensor((ids * ROW_TOKENS)[:ROW_TOKENS]) for ids in encode_text(tokenizer, texts)]
        return [{"input_ids": row, "labels": row} for row in rows]

    return make


@pytest.fixture
def train(tmp_path):
    """Trains for real, watched by the callbacks; gives the trainer."""

    def run(model, rows: list[dict], *callbacks, heldout=None, **options) -> Trainer:
        args = TrainingArguments(str(tmp_path), **COMMON | {"per_device_train_batch_size": 4} | options)
        trainer = Trainer(model, args, train_dataset=rows, eval_dataset=heldout, callbacks=list(callbacks))
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return trainer

    return run


def pair_of(disease: str) -> dict:
    question, good, bad = f"{disease}怎么办？", ADVICE[2], ADVICE[1]
    turns = {"prompt": ("user", question), "chosen": ("assistant", good), "rejected": ("assistant", bad)}
    return {name: [{"role": role, "content": text}] for name, (role, text) in turns.items()}


PAIRS = [pair_of(disease) for disease in DISEASES]


@pytest.fixture(scope="module")
def answering_model(tokenizer, random_gpt2, tmp_path_factory):
    """A tiny model that gives the good or the bad answer of PAIRS and stops, as after SFT. For reading only."""

    def row(conversation: list[dict]) -> dict:
        ids, labels, _ = training_example(tokenizer, conversation, ROW_TOKENS)
        gap = ROW_TOKENS - len(ids)
        return {
            "input_ids": torch.tensor(ids + [tokenizer.pad_token_id] * gap),
            "labels": torch.tensor(labels + [IGNORE] * gap),
        }

    model = random_gpt2(POSITIONS, initializer_range=0.02)
    options = {"max_steps": 80, "learning_rate": 1e-2, "per_device_train_batch_size": 8, "seed": 1}
    args = TrainingArguments(str(tmp_path_factory.mktemp("sft")), **COMMON | options)
    rows = [row(pair["prompt"] + pair[kind]) for pair in PAIRS for kind in ("chosen", "rejected")]
    Trainer(model, args, train_dataset=rows).train()
    return model.eval()


@pytest.fixture
def prefer(tokenizer, answering_model, tmp_path):
    """Runs DPO for real from `answering_model`, watched by all three callbacks; gives (warnings, drift)."""

    def run(**options) -> tuple[Warnings, AnswerDrift]:
        warnings = Warnings()
        prompts = [encode_prompt(tokenizer, pair["prompt"]) for pair in PAIRS[:4]]
        drift = AnswerDrift(warnings, tokenizer, prompts, copy.deepcopy(answering_model))
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
            args=DPOConfig(str(tmp_path), **COMMON | defaults | options),
            train_dataset=Dataset.from_list(PAIRS),
            eval_dataset=Dataset.from_list(PAIRS[:4]),
            processing_class=tokenizer,
            callbacks=[TrainingHealth(warnings, falls=False), PreferenceHealth(warnings), drift],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return warnings, drift

    return run


def replay(callback, entries: list[dict], max_steps: int, history: tuple = (), **args) -> list[str]:
    """Gives the callback the logs of a run, one a step after those in `history`; what it warned of."""
    state = TrainerState(log_history=[*history], max_steps=max_steps)
    args = SimpleNamespace(
        **{"fp16": False, "load_best_model_at_end": False, "learning_rate": 1e-3, "beta": 0.1} | args
    )
    for entry in entries:
        state.global_step += 1
        state.log_history.append({**entry, "step": len(state.log_history) + 1})
        callback.on_log(args, state, None, entry)
    return callback.warnings.lines


def losses(*values: float) -> list[dict]:
    return [{"loss": value} for value in values]


def norms(*values: float) -> list[dict]:
    return [{"grad_norm": value} for value in values]


def rewards(chosen: float, rejected: float, times: int = 1, prefix: str = "") -> list[dict]:
    values = {"chosen": chosen, "rejected": rejected, "margins": chosen - rejected}
    return [{f"{prefix}rewards/{name}": value for name, value in values.items()}] * times


def test_each_kind_is_told_once_on_stderr(capsys):
    warnings = Warnings()
    for kind, line in (("a", "first"), ("a", "again"), ("b", "other")):
        warnings.tell(kind, line)
    printed = capsys.readouterr()
    assert printed.err.splitlines() == ["注意/warning: first", "注意/warning: other"] and not printed.out
    assert warnings.lines == ["first", "other"]


def test_only_the_first_process_prints_but_each_keeps_the_lines(monkeypatch, capsys):
    warnings = Warnings()
    monkeypatch.setenv("RANK", "1")
    warnings.tell("a", "line")
    assert warnings.lines == ["line"] and not capsys.readouterr().err


def test_rows_that_do_not_fit_are_told_with_the_option_that_fits_them(tokenizer):
    rows = [[*pair["prompt"], {"role": "assistant", "content": "。".join(ADVICE)}] for pair in PAIRS]
    for max_length, told in ((ROW_TOKENS * 4, False), (ROW_TOKENS, True)):
        warnings = Warnings()
        shortened = sum(training_example(tokenizer, row, max_length).shortened for row in rows)
        check_truncation(warnings, shortened, len(rows))
        assert bool(warnings.lines) == told
    assert f"{len(rows)} of {len(rows)} rows (100%)" in warnings.lines[0] and "--max_length" in warnings.lines[0]


def test_a_few_shortened_rows_are_no_trouble():
    warnings = Warnings()
    check_truncation(warnings, 5, 100)
    assert not warnings.lines
    check_truncation(warnings, 6, 100)
    assert "6 of 100 rows (6%)" in warnings.lines[0]


def test_rows_without_a_trained_stop_are_told(tokenizer):
    stops = tokenizer.convert_tokens_to_ids(list(CHAT_STOPS))
    whole = [training_example(tokenizer, pair["prompt"] + pair["chosen"], ROW_TOKENS).labels for pair in PAIRS]
    cut = [row[:-1] for row in whole]
    warnings = Warnings()
    check_stops(warnings, whole, stops)
    check_stops(warnings, [*whole * 7, cut[0]], stops)  # one of 113
    assert not warnings.lines
    check_stops(warnings, whole + cut, stops)
    assert "16 of 32 rows (50%)" in warnings.lines[0] and "not learn to stop" in warnings.lines[0]


def test_a_stop_in_the_prompt_is_not_a_trained_one(tokenizer):
    warnings = Warnings()
    row = training_example(tokenizer, PAIRS[0]["prompt"] + PAIRS[0]["chosen"], ROW_TOKENS)
    stops = tokenizer.convert_tokens_to_ids(list(CHAT_STOPS))
    assert set(row.input_ids[:-1]) & set(stops), "the question ends with the same token"
    check_stops(warnings, [row.labels[:-1]], stops)
    assert warnings.lines


@pytest.mark.parametrize(
    ("training", "heldout", "found"),
    [
        (["高血压 怎么办？\n", "湿疹怎么办？"], ["高血压怎么办？", "痛风怎么办？"], "1 of 2"),
        ([("问", "答 一"), ("问", "答二")], [("问", "答一"), ("问 ", "答二")], "2 of 2"),
    ],
)
def test_held_out_records_that_are_trained_on_are_counted(training, heldout, found):
    warnings = Warnings()
    check_overlap(warnings, training, heldout)
    assert f"{found} held-out records" in warnings.lines[0] and "--eval_data" in warnings.lines[0]


def test_another_answer_to_the_same_question_is_no_overlap():
    warnings = Warnings()
    check_overlap(warnings, iter([("问", "答一")]), iter([("问", "答二"), ("问答", "一")]))
    assert not warnings.lines


def test_a_healthy_training_prints_nothing(model, text_rows, train, capsys):
    warnings = Warnings()
    options = {"max_steps": 40, "learning_rate": 3e-3, "eval_strategy": "steps", "eval_steps": 10}
    trainer = train(model, text_rows(TEXTS), TrainingHealth(warnings), heldout=text_rows(TEXTS[::5]), **options)
    logged = [entry for entry in trainer.state.log_history if "loss" in entry or "eval_loss" in entry]
    assert len(logged) == 44 and not warnings.lines
    assert "注意/warning" not in capsys.readouterr().err


@pytest.mark.parametrize("trouble", ["learning rate", "weights"])
def test_a_loss_that_is_not_a_number_ends_the_training_at_once(model, text_rows, train, trouble):
    steps = []
    watch = TrainingHealth(Warnings())
    watch.on_step_begin = lambda args, state, control, **kwargs: steps.append(state.global_step)
    if trouble == "weights":
        model.transformer.ln_f.weight.data[0] = torch.nan
    with pytest.raises(UserError, match=r"step \d: loss is nan.*--learning_rate \(now 1e\+06\).*--bf16 False"):
        train(model, text_rows(TEXTS), watch, max_steps=20, learning_rate=1e6)
    assert len(steps) <= 3


def test_a_held_out_loss_that_is_not_a_number_ends_the_training(model, text_rows, train):
    heldout = text_rows(TEXTS[:4])
    trainer = train(model, text_rows(TEXTS), TrainingHealth(Warnings()), heldout=heldout, max_steps=1)
    model.transformer.ln_f.weight.data[0] = torch.nan
    with pytest.raises(UserError, match="eval_loss is nan"):
        trainer.evaluate()


@pytest.mark.parametrize("key", ["loss", "grad_norm", "eval_loss", "train_loss"])
def test_an_infinite_value_in_a_log_ends_the_training(key):
    with pytest.raises(UserError, match=f"step 2: {key} is inf"):
        replay(TrainingHealth(Warnings()), [{key: 1.0}, {key: float("inf")}], 10)


def test_the_overflows_that_fp16_looks_for_are_no_trouble():
    entries = [{"loss": 5.0, "grad_norm": float("inf")}, {"loss": 4.0, "grad_norm": 1.0}]
    assert not replay(TrainingHealth(Warnings()), entries, 10, fp16=True)


def test_losses_that_the_trainer_hides_are_refused(model, text_rows, train):
    with pytest.raises(AssertionError, match="logging_nan_inf_filter"):
        train(model, text_rows(TEXTS), TrainingHealth(Warnings()), max_steps=1, logging_nan_inf_filter=True)


@pytest.mark.parametrize("falls", [True, False])
def test_a_loss_that_does_not_fall_is_told_unless_it_need_not(model, text_rows, train, falls):
    warnings = Warnings()
    trainer = train(model, text_rows(TEXTS), TrainingHealth(warnings, falls), max_steps=10, learning_rate=0.0)
    first, last = (
        statistics.fmean(trainer.state.log_history[i]["loss"] for i in part) for part in ((0, 1, 2), (2, 3, 4))
    )
    told = f"step 5: the loss is {last:.3f} after {first:.3f} at the start: raise --learning_rate"
    assert len(warnings.lines) == falls and all(told in line for line in warnings.lines)


@pytest.mark.parametrize(
    ("values", "max_steps", "told"),
    [
        ([5.0] * 4, 4, False),  # too few to judge
        ([5.0] * 19, 100, False),  # still in the first fifth
        ([5.0] * 20, 100, True),
        ([5.0, 5.0, 5.0, 4.96, 4.96, 4.96], 30, True),
        ([5.0, 5.0, 5.0, 4.94, 4.94, 4.94], 30, False),
        ([5.0, 3.0, 2.0, 1.0, 4.0, 6.0, 7.0], 7, True),  # fell, and came back
        ([5.5, 3.9, 3.7, 0.8, 2.4, 1.6, 0.4, 1.5, 0.3, 0.9], 10, False),  # SFT: a group of long rows, then of short
        ([5 - 0.03 * i + i // 3 % 2 for i in range(30)], 150, False),  # slow, and the last three logs are a high group
    ],
)
def test_a_loss_falls_when_its_last_logs_are_below_its_first(values, max_steps, told):
    assert bool(replay(TrainingHealth(Warnings()), losses(*values), max_steps)) == told


def test_a_resumed_run_is_judged_from_its_first_step_on():
    history = tuple({"loss": 5.0 / step, "grad_norm": 0.1, "step": step} for step in range(1, 11))
    level = losses(*[0.5] * 8)
    assert not replay(TrainingHealth(Warnings()), level, 18, history)
    assert replay(TrainingHealth(Warnings()), level, 18)
    assert "after 0.1 (median of the last 10 logs)" in replay(TrainingHealth(Warnings()), norms(2.0), 18, history)[0]


def test_a_strange_row_gives_a_spike_of_the_gradient_norm(model, text_rows, train):
    known = text_rows(TEXTS[:1]) * 80
    strange = torch.randint(0, model.config.vocab_size, (ROW_TOKENS,), generator=torch.Generator().manual_seed(0))
    options = {"per_device_train_batch_size": 1, "train_sampling_strategy": "sequential"}
    warnings = Warnings()
    train(model, known, TrainingHealth(warnings), max_steps=80, learning_rate=1e-2, **options)
    assert not warnings.lines
    rows = [*known[:8], {"input_ids": strange, "labels": strange}]
    train(model, rows, TrainingHealth(warnings, falls=False), max_steps=9, learning_rate=1e-5, **options)
    assert len(warnings.lines) == 1
    assert "step 9: the gradient norm is" in warnings.lines[0] and "--warmup_steps" in warnings.lines[0]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([1.0] * 5 + [9.9], False),
        ([1.0] * 5 + [10.1], True),
        ([1.0] * 4 + [99.0], False),  # too few to know what is usual
        ([9.0] * 60 + [1.0] * 26 + [11.0], True),  # usual is what the last 50 logs show
        ([9.0] * 60 + [1.0] * 24 + [11.0], False),
    ],
)
def test_a_spike_is_ten_times_the_median_of_the_last_logs(values, told):
    assert bool(replay(TrainingHealth(Warnings()), norms(*values), 100)) == told


@pytest.mark.parametrize("kept", [True, False])
def test_held_out_loss_that_rises_while_training_loss_falls_is_told(model, text_rows, train, kept):
    warnings = Warnings()
    options = {"max_steps": 24, "learning_rate": 1e-2, "eval_strategy": "steps", "eval_steps": 2}
    saving = {"save_strategy": "steps", "save_steps": 2, "load_best_model_at_end": True} if kept else {}
    heldout = text_rows([OTHER_TEXT])
    trainer = train(model, text_rows(TEXTS[:2]), TrainingHealth(warnings), heldout=heldout, **options, **saving)
    (line,) = warnings.lines
    by_step = {entry["step"]: entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry}
    best = min(by_step, key=by_step.get)
    assert f"its best {by_step[best]:.3f} at step {best}" in line and "--num_train_epochs" in line
    assert ("the checkpoint best by loss is kept and published" in line) == kept
    if kept:  # and so it is
        assert trainer.evaluate()["eval_loss"] == pytest.approx(by_step[best], abs=1e-6)


def epochs(training: list[float], heldout: list[float]) -> list[dict]:
    """Three logs of each training loss, and the held-out loss after them."""
    return [
        entry
        for loss, eval_loss in zip(training, heldout, strict=True)
        for entry in [*losses(loss, loss, loss), {"eval_loss": eval_loss}]
    ]


@pytest.mark.parametrize(
    ("training", "heldout", "told"),
    [
        ([4.0, 3.0], [2.0, 2.03], True),
        ([4.0, 3.0], [2.0, 2.01], False),  # within what two evaluations differ by
        ([4.0, 3.0, 2.0], [2.0, 0.02, 0.10], False),  # next to nothing, after all that it has fallen
        ([4.0, 3.0, 2.0], [2.0, 0.02, 0.13], True),
        ([3.0, 4.0], [2.0, 2.5], False),  # both rise: not learnt by heart
        ([9.0, 3.0, 4.0], [3.0, 2.0, 2.5], False),  # nor here, though below the mean of the whole run
    ],
)
def test_overfitting_needs_both_a_rising_and_a_falling_loss(training, heldout, told):
    assert bool(replay(TrainingHealth(Warnings()), epochs(training, heldout), 100)) == told


def test_the_held_out_loss_of_preference_training_may_rise():
    assert not replay(TrainingHealth(Warnings(), falls=False), epochs([0.7, 0.3], [35.3, 37.0]), 100)


def test_healthy_preference_training_prints_nothing(prefer, capsys):
    warnings, drift = prefer(learning_rate=3e-4, loss_type=["sigmoid", "sft"])
    assert not warnings.lines and "注意/warning" not in capsys.readouterr().err
    assert 0 < drift.kl < 0.5 and drift.length > 1


def test_preference_training_that_learns_nothing_is_told(prefer):
    warnings, drift = prefer(learning_rate=0.0)
    (line,) = warnings.lines
    assert "margin is 0.0000" in line and "0.693" in line and "swapped or equal" in line
    assert drift.kl == 0.0 and drift.length == drift.start_length


def test_a_huge_learning_rate_drags_the_chosen_answers_down_and_the_model_away(prefer, capsys):
    warnings, drift = prefer(learning_rate=3e-2, loss_type=["sigmoid"])
    chosen, length, kl = warnings.lines
    assert "keep sft in --loss_type" in chosen and "--loss_weights (now sigmoid 1)" in chosen
    assert f"at the start {drift.start_length:.0f}:" in length and "--num_train_epochs" in length
    assert "nats a token" in kl and "--beta (now 0.1)" in kl
    assert drift.kl > 0.5 and abs(drift.length / drift.start_length - 1) > 0.25
    printed = [line for line in capsys.readouterr().err.splitlines() if line.startswith("注意/warning: ")]
    assert [line.removeprefix("注意/warning: ") for line in printed] == warnings.lines, "each on a line, each once"


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        (rewards(0.01, 0.0, 9), "no step"),  # before the third of 30 steps
        (rewards(0.01, 0.0, 10), "训练/training step 10"),
        (rewards(0.0, 0.01, 10), "训练/training step 10"),  # or as little below zero
        (rewards(0.03, 0.0, 10), "no step"),
        (rewards(0.0, 0.03, 10), "no step"),
        (rewards(0.03, 0.0, 10) + rewards(0.01, 0.0, prefix="eval_"), "验证/held-out step 11"),
    ],
)
def test_a_margin_is_flat_after_a_third_of_the_steps(entries, told):
    assert [line.split(":")[0].partition("/")[2] for line in replay(PreferenceHealth(Warnings()), entries, 30)] == (
        [] if told == "no step" else [told]
    )


def test_an_evaluation_before_the_training_says_nothing_about_it():
    assert not replay(PreferenceHealth(Warnings()), rewards(0.0, 0.0, prefix="eval_"), 0)


@pytest.mark.parametrize(
    ("beta", "entries", "told"),
    [
        (0.02, rewards(-0.6, -2.0, 3), True),
        (0.02, rewards(-0.6, -2.0, 2), False),  # too few
        (0.02, rewards(-0.4, -2.0, 3), False),
        (0.02, rewards(-0.6, 0.1, 3), False),  # they part the wrong way round: not this trouble
        (0.02, rewards(-1.3, -2.0, 3, prefix="eval_"), False),  # held-out pairs are new: it falls in good runs too
        (0.005, rewards(-0.15, -2.0, 3), True),  # as many nats at a quarter of beta
        (0.005, rewards(-0.1, -2.0, 3), False),
    ],
)
def test_chosen_falls_when_both_rewards_are_down_by_many_nats(beta, entries, told):
    loss = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 4.0], "beta": beta}
    lines = replay(PreferenceHealth(Warnings()), entries, 1000, **loss)
    assert bool(lines) == told
    assert all("(-30 nats an answer)" in line and "(now sigmoid 1, sft 4)" in line for line in lines)


@pytest.fixture
def drifted(tokenizer, answering_model):
    """(an AnswerDrift before its first step, a model that has moved away from its reference)."""
    prompts = [encode_prompt(tokenizer, pair["prompt"]) for pair in PAIRS[::3]]
    moved = copy.deepcopy(answering_model)
    generator = torch.Generator().manual_seed(0)
    for weights in moved.parameters():
        weights.data += 0.05 * torch.randn(weights.shape, generator=generator)
    return AnswerDrift(Warnings(), tokenizer, prompts, copy.deepcopy(answering_model)), moved


def test_length_and_kl_are_those_of_the_answers_that_generate_gives(drifted, answering_model, tokenizer):
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
    assert drift.kl == pytest.approx(statistics.fmean(ratios), rel=1e-4) and abs(drift.kl) > 0.01


def test_a_resumed_run_is_compared_with_the_start_of_the_whole_run(drifted, answering_model):
    drift, moved = drifted
    drift.on_train_begin(None, TrainerState(), None, model=answering_model)
    whole = drift.start_length
    drift.on_train_begin(None, TrainerState(), None, model=moved)
    assert drift.start_length == whole


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_answered_with_in_eval_mode_and_given_back_as_it_was(drifted, training):
    drift, moved = drifted
    seen = []
    answers, drift._answers = drift._answers, lambda model: (seen.append(model.training), answers(model))[1]
    drift.on_evaluate(SimpleNamespace(beta=0.1), TrainerState(), None, model=moved.train(training))
    assert seen == [False] and moved.training == training
