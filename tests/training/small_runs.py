"""Make small trainers and small training data for the tests of this folder, and give prepared logs to callbacks."""

import copy
from types import SimpleNamespace

import numpy as np
import torch
from conftest import ADVICE, DISEASES
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainerState

import dpo_train
import run_pretraining
import sft_train
from med_model.data.prompt import IGNORE, EncodedPair, Example
from med_model.model.quiet import expect_tied_head
from med_model.training.muon import optimizers_for
from med_model.training.progress import Workload
from med_model.training.retention import Retention
from med_model.training.stage import StageArguments, train
from med_model.training.views import RowViews, ViewArguments

STAGES = ("pretraining", "sft", "dpo")
LONGEST = 64  # length of the longest row, in tokens
WORKLOAD = Workload(tokens=2_560, longest=LONGEST)  # the pre-training data: 40 blocks of 64 tokens
PAIR_ROWS = 42
PLAIN = {
    "use_cpu": True,
    "report_to": "none",
    "save_strategy": "no",
    "logging_steps": 1,
    "logging_nan_inf_filter": False,
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}


def random_ids(count: int, shortest: int, longest: int, vocabulary: int) -> list[list[int]]:
    """Return `count` rows of random token ids. The seed is `count`, so equal arguments give equal rows."""
    numbers = np.random.default_rng(count)
    return [
        numbers.integers(4, vocabulary, size).tolist() for size in numbers.integers(shortest, longest + 1, size=count)
    ]


def random_blocks(vocabulary: int, count: int = 40) -> list[dict[str, torch.Tensor]]:
    """Return `count` blocks: rows of exactly LONGEST random token ids. The labels equal the input_ids."""
    return [
        {"input_ids": torch.tensor(ids), "labels": torch.tensor(ids)}
        for ids in random_ids(count, LONGEST, LONGEST, vocabulary)
    ]


def rows_of(stage: str, vocabulary: int) -> Dataset | list[dict[str, torch.Tensor]]:
    """Return the training data of a stage: 40 blocks for pre-training, 41 rows for SFT, or PAIR_ROWS pairs for DPO."""
    if stage == "pretraining":
        return random_blocks(vocabulary)
    if stage == "sft":
        rows = random_ids(41, 20, LONGEST, vocabulary)
        return Dataset.from_dict({"input_ids": rows, "labels": [[IGNORE] * 10 + row[10:] for row in rows]})
    columns = [random_ids(PAIR_ROWS + column, 10, LONGEST // 2, vocabulary)[:PAIR_ROWS] for column in range(3)]
    pairs = [EncodedPair(*ids) for ids in zip(*columns, strict=True)]
    return dpo_train.dataset_of(pairs, [(-200.0, -210.0)] * len(pairs))


def examples_of(rows: Dataset) -> list[Example]:
    """Return the rows as SFT examples. Every answer has another text, so the views of a row are the row itself."""
    texts = [[{"role": "user", "content": ""}, {"role": "assistant", "content": str(i)}] for i in range(len(rows))]
    return [
        Example(row["input_ids"], row["labels"], False, messages) for row, messages in zip(rows, texts, strict=True)
    ]


def small_trainer(
    stage: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: object, **options: object
) -> Trainer:
    """Return the trainer of a stage, with the class and the optimizer that the stage's script uses.

    SFT and DPO use KL regularization. The model must have dropout 0.1. By default, a batch has rows of similar length.
    """
    assert model.config.resid_pdrop == model.config.attn_pdrop == 0.1
    expect_tied_head(model)
    arguments = {
        "pretraining": run_pretraining.PretrainingArguments,
        "sft": sft_train.SFTArguments,
        "dpo": dpo_train.DPOArguments,
    }[stage]
    defaults = {
        "output_dir": str(folder),
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "train_sampling_strategy": "group_by_length",
        "eval_strategy": "no",
        "load_best_model_at_end": False,
        "bf16": False,
        "seed": 7,
    }
    training = arguments(**PLAIN | defaults | options)
    rows = rows_of(stage, len(tokenizer))
    common = {
        "model": model,
        "args": training,
        "train_dataset": rows,
        "eval_dataset": rows,
        "processing_class": tokenizer,
    }
    if stage == "pretraining":
        return run_pretraining.PretrainingTrainer(**common, optimizers=optimizers_for(model, training))
    common["retention"] = Retention(copy.deepcopy(model), random_blocks(len(tokenizer)), 0.3)
    if stage == "sft":
        del common["train_dataset"]
        views = RowViews(tokenizer, examples_of(rows), ViewArguments(later_turns=0), LONGEST, training.seed)
        return sft_train.AnswerTrainer(views, **common, optimizers=optimizers_for(model, training))
    return dpo_train.PreferenceTrainer(**common)


def workload_of(trainer: Trainer) -> Workload:
    """Return the token counts of the training data of a trainer. `small_trainer` must have made the trainer."""
    if isinstance(trainer, dpo_train.PreferenceTrainer):
        columns = [trainer.train_dataset[key] for key in EncodedPair._fields]
        return dpo_train.workload_of([EncodedPair(*ids) for ids in zip(*columns, strict=True)], [], 0)
    lengths = [len(row["input_ids"]) for row in trainer.train_dataset]
    return Workload(sum(lengths), max(lengths))


def train_stage(
    trainer: Trainer, dry_run: bool = False, checkpoint: str | None = None, callbacks: tuple = ()
) -> float:
    """Train as the scripts do. Return the time in seconds. `checkpoint` is the directory to resume from."""
    return train(trainer, StageArguments(dry_run=dry_run), WORKLOAD, checkpoint, callbacks)


def pair_of(disease: str) -> dict:
    """Return a preference pair in the format of TRL: a question, a good answer and a bad answer."""
    question, good, bad = f"{disease}怎么办？", ADVICE[2], ADVICE[1]
    turns = {"prompt": ("user", question), "chosen": ("assistant", good), "rejected": ("assistant", bad)}
    return {name: [{"role": role, "content": text}] for name, (role, text) in turns.items()}


PAIRS = [pair_of(disease) for disease in DISEASES]


def replay(
    callback: TrainerCallback, entries: list[dict], max_steps: int, history: tuple = (), **args: object
) -> list[str]:
    """Call `on_log` of the callback with each log in `entries`, one log per step. Return the callback's warnings.

    `history` has the logs from before a resume. They are in the log history, but `on_log` is not called for them.
    """
    state = TrainerState(log_history=[*history], max_steps=max_steps)
    training = SimpleNamespace(
        **{"fp16": False, "load_best_model_at_end": False, "learning_rate": 1e-3, "beta": 0.1} | args
    )
    for entry in entries:
        state.global_step += 1
        state.log_history.append({**entry, "step": len(state.log_history) + 1})
        callback.on_log(training, state, None, entry)
    return callback.health.lines
