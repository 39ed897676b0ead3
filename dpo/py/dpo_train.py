"""Direct preference optimization: tune the SFT model on pairs of a good and a bad answer.

Reads  post_model__after_sft/, base_model__after_pretraining/ (whose language is held) and preference pairs (default:
       the bundled dpo/dataset/)
Writes final_model__after_dpo/ (checkpoints and reference log-probabilities in dpo/py/med_dpo_checkpoints/)

    python dpo/py/dpo_train.py
    python dpo/py/dpo_train.py --data my_pairs.jsonl --beta 0.2
    python dpo/py/dpo_train.py --resume
"""

import hashlib
import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from trl import DPOConfig, DPOTrainer

from med_model import paths
from med_model.command import parse, run
from med_model.data.prompt import CHAT_STOPS, Pair, encode_pairs, encode_prompt
from med_model.data.records import document_of, labelled_pair_of
from med_model.data.split import read_all, read_split
from med_model.errors import UserError
from med_model.measures.answers import Question
from med_model.measures.evaluate import Heldout, evaluate
from med_model.measures.likelihood import preference_scores
from med_model.model.device import choose_precision
from med_model.model.directory import load_model, load_tokenizer
from med_model.model.head import use_chunked_head
from med_model.training.health import (
    AnswerDrift,
    PreferenceHealth,
    TrainingHealth,
    Warnings,
    check_overlap,
    check_truncation,
)
from med_model.training.preflight import preflight
from med_model.training.retention import (
    RETENTION_TOKENS,
    Retaining,
    Retention,
    RetentionArguments,
    interpolate,
    new_retention,
)
from med_model.training.stage import check_output, finish, train

EVALUATED_PAIRS = 400  # while training; the figures at the end are of all held-out pairs
DRIFT_QUESTIONS = 32  # answered at each evaluation, to see how far the answers move from the SFT model's
MEASURED_QUESTIONS = 100  # answered at the end, to see whether the model still stops and does not repeat itself


@dataclass
class DataArguments(RetentionArguments):
    input_model: str = str(paths.SFT_MODEL)
    output_model: str = str(paths.FINAL_MODEL)
    retention: float = 2.0  # the losses on pairs are steeper than SFT's
    retention_model: str | None = str(paths.BASE_MODEL)  # SFT has lost some of its language: this wins it back
    interpolation: float = field(
        default=0.75,  # this and the next: docs/recipes.md
        metadata={"help": "Published is the SFT model with this share of what DPO changed in its layers (1: all)."},
    )
    embedding_interpolation: float = field(
        default=0.0, metadata={"help": "The same of its embeddings: 0 leaves the words as SFT taught them."}
    )


@dataclass
class DPOArguments(DPOConfig):
    """TRL's DPO arguments with the defaults of this stage."""

    output_dir: str | None = str(paths.DPO_CHECKPOINTS)
    num_train_epochs: float = 1.0
    per_device_train_batch_size: int = 8  # pairs
    per_device_eval_batch_size: int = 16
    learning_rate: float = 4e-4  # this and the next are the choice of docs/recipes.md
    beta: float = 0.005  # an answer's log-probability is a sum of some 60: a margin of a hundred nats is wanted
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = 0.1  # below 1: a share of all steps, here and in the next two
    eval_strategy: str = "steps"
    eval_steps: float | None = 0.2
    save_strategy: str = "steps"
    save_steps: float = 0.2
    save_total_limit: int | None = 2
    logging_steps: float = 10
    logging_nan_inf_filter: bool = False  # a loss that is not finite ends the training instead of hiding
    load_best_model_at_end: bool = True
    metric_for_best_model: str | None = "rewards/margins"  # held-out; their accuracy is best too early
    report_to: str = "none"
    loss_type: list[str] = field(default_factory=lambda: ["sigmoid", "sft"])  # the second keeps the good answer likely
    loss_weights: list[float] | None = field(default_factory=lambda: [1.0, 1.0])
    max_length: int | None = 512  # the model's positions
    train_sampling_strategy: str = "group_by_length"  # pairs of like length share a batch: little padding
    remove_unused_columns: bool = False  # the `length` that they are grouped by is no input of the model
    include_num_input_tokens_seen: str = "non_padding"  # for the speed shown
    activation_checkpointing: bool | None = False  # saves memory that a model this small does not need
    precompute_ref_log_probs: bool = True  # the reference is run once, before training
    disable_dropout: bool = False  # unlike TRL: without dropout the known wordings win over the unseen ones
    bf16: bool | None = None  # where the device multiplies in it
    dataloader_pin_memory: bool = torch.cuda.is_available()
    dropout: float = field(
        default=0.1, metadata={"help": "Dropout while training: without it known wordings win over unseen ones."}
    )

    def __post_init__(self):
        choose_precision(self)
        super().__post_init__()


class ReadyDPOTrainer(Retaining, DPOTrainer):
    """TRL's trainer on pairs that are rendered already, with the reference's log-probabilities in their columns.

    The divergence from the SFT model on plain text is added to its training loss.
    """

    def _prepare_dataset(self, dataset, *args, **kwargs):
        return dataset

    def _precompute_ref_logps(self, dataset, *args, **kwargs):
        return dataset


def encode(
    tokenizer: PreTrainedTokenizerBase, rows: list, max_length: int, name: str, warnings: Warnings
) -> list[Pair]:
    """The pairs as ids; says how many answers had to be cut, and how many pairs that left out."""
    pairs, cut = encode_pairs(tokenizer, [row[:3] for row in rows], max_length)
    if not pairs:
        raise UserError(f"{name}: 截断后没有一对不同/no pair differs within --max_length {max_length}")
    print(f"{name}: {len(pairs):,} 对/pairs, {sum(len(p) + len(c) + len(r) for p, c, r in pairs):,} 词元/tokens")
    if cut:
        print(f"  {cut:,} 个答案太长，从句末截断并保留停止符/answers too long: cut at a sentence end, the stop kept")
    check_truncation(warnings, cut, 2 * len(rows))
    if same := len(rows) - len(pairs):
        print(f"  {same:,} 对截断后相同，已舍去/left out: the same once cut")
    return pairs


def reference_scores(model: PreTrainedModel, pairs: list[Pair], training: DPOConfig) -> list[tuple[float, float]]:
    """(chosen, rejected) summed log-probabilities under the reference; from an earlier run's cache if it has them.

    Computed in the precision of the training, so that policy and reference begin equal. The file's name is a hash of
    the weights, the ids and the precision: it can never belong to something else.
    """
    folder = Path(training.output_dir)
    digest = hashlib.sha256(repr((pairs, training.bf16)).encode())
    for name, weights in sorted(model.state_dict().items()):
        digest.update(name.encode() + weights.cpu().numpy().tobytes())
    file = folder / f"reference_{digest.hexdigest()[:16]}.safetensors"
    if file.is_file():
        print(f"参考模型的对数概率取自缓存/reference log-probabilities from the cache: {paths.shown(file)}")
        return list(map(tuple, load_file(file)["log_probs"].tolist()))
    start = time.time()
    with torch.autocast(training.device.type, torch.bfloat16, enabled=training.bf16):
        scores = [(chosen, rejected) for chosen, rejected, _, _ in preference_scores(model, pairs)]
    folder.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{os.getpid()}.partial")
    save_file({"log_probs": torch.tensor(scores, dtype=torch.float64)}, partial)
    partial.replace(file)
    print(
        f"参考模型的对数概率已算好/reference log-probabilities computed once: {len(pairs):,} 对/pairs, "
        f"{time.time() - start:.1f} s"
    )
    return scores


def dataset_of(pairs: list[Pair], reference: list[tuple[float, float]]) -> Dataset:
    columns = {key: [getattr(pair, key) for pair in pairs] for key in Pair._fields}
    columns["length"] = [len(prompt) + max(len(chosen), len(rejected)) for prompt, chosen, rejected in pairs]
    columns["ref_chosen_logps"], columns["ref_rejected_logps"] = map(list, zip(*reference, strict=True))
    return Dataset.from_dict(columns)


def new_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    training: DPOArguments,
    train_dataset: Dataset,
    eval_dataset: Dataset | None = None,
    retention: Retention | None = None,
) -> ReadyDPOTrainer:
    """TRL's trainer with the chunked head, on pairs made by `dataset_of`; the benchmark makes its own here too."""
    trainer = ReadyDPOTrainer(
        model=model,
        args=training,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
    )
    trainer.retention = retention
    use_chunked_head(model)
    return trainer


def main() -> None:
    stage, training = parse(DataArguments, DPOArguments, description=__doc__)
    checkpoint = check_output(stage, training)
    rows, heldout_rows = read_split(
        stage.data,
        stage.eval_data,
        (paths.DPO_DATA, paths.HELDOUT_PAIRS),
        labelled_pair_of,
        stage.max_records,
        training.seed,
    )
    tokenizer = load_tokenizer(stage.input_model)
    warnings = Warnings()
    pairs = encode(tokenizer, rows, training.max_length, "训练/training", warnings)
    heldout = encode(tokenizer, heldout_rows, training.max_length, "验证/held-out", warnings)
    heldout = heldout[:: math.ceil(len(heldout) / EVALUATED_PAIRS)]
    check_overlap(
        warnings, *([(row.messages[-1]["content"], row.chosen) for row in part] for part in (rows, heldout_rows))
    )

    set_seed(training.seed)
    model, _ = load_model(stage.input_model, training.dropout)
    if training.max_length > model.config.n_positions:
        raise UserError(f"--max_length {training.max_length}: the model has {model.config.n_positions} positions")
    reference = reference_scores(model.to(training.device), pairs + heldout, training)
    train_dataset = dataset_of(pairs, reference[: len(pairs)])
    eval_dataset = dataset_of(heldout, reference[len(pairs) :])
    retention = new_retention(stage, tokenizer, training.device)
    trainer = new_trainer(model, tokenizer, training, train_dataset, eval_dataset, retention)
    lengths = [[len(pair.prompt_ids) + len(ids) for ids in pair[1:]] for pair in (*pairs, *heldout)]
    preflight(
        trainer,
        output_model=stage.output_model,
        tokens=sum(map(sum, lengths[: len(pairs)])),
        longest=max(map(max, lengths)),
        heldout_tokens=sum(map(sum, lengths[len(pairs) :])),
        beside=RETENTION_TOKENS if retention else 0,
        checkpoint=checkpoint,
    )
    if stage.dry_run:
        return
    asked = {pair.messages[-1]["content"]: pair.messages for pair in heldout_rows}  # each question once
    questions = [
        Question(messages) for messages in list(asked.values())[:: math.ceil(len(asked) / MEASURED_QUESTIONS)]
    ]
    prompts = [encode_prompt(tokenizer, question.messages) for question in questions[:DRIFT_QUESTIONS]]
    sft_model, _ = load_model(stage.input_model)
    drift = AnswerDrift(warnings, tokenizer, prompts, sft_model)
    health = [TrainingHealth(warnings, falls=False), PreferenceHealth(warnings), drift]
    seconds = train(trainer, stage, checkpoint, health)

    model.eval()
    interpolate(model, sft_model, stage.interpolation, stage.embedding_interpolation)
    measured = Heldout(read_all([paths.HELDOUT_TEXT], document_of), questions, heldout_rows)
    after = trainer.evaluate()
    finish(
        trainer,
        tokenizer,
        stage,
        title="Med_model: final model after DPO",
        stops=CHAT_STOPS,
        evaluation=evaluate(model, tokenizer, measured, chat=True),
        warnings=warnings,
        metrics={
            "heldout_loss": after["eval_loss"],
            "heldout_reward_accuracy": after["eval_rewards/accuracies"],
            "heldout_reward_margin": after["eval_rewards/margins"],
            "kl_to_sft_model": drift.kl,
            "answer_tokens": drift.length,
            "answer_tokens_of_sft_model": drift.start_length,
            "training_seconds": round(seconds, 1),
            "training_pairs": len(pairs),
        },
    )


if __name__ == "__main__":
    run(main)
