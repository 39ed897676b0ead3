"""Supervised fine-tuning: teach the base model to answer.

Reads  base_model__after_pretraining/ and question-answer rows or conversations (default: the bundled sft/dataset/)
Writes post_model__after_sft/ (checkpoints in sft/py/med_sft_checkpoints/)

    python sft/py/sft_train.py
    python sft/py/sft_train.py --data my_answers.jsonl --num_train_epochs 2
    python sft/py/sft_train.py --resume
"""

from dataclasses import dataclass, field

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from trl import SFTConfig, SFTTrainer

from med_model import paths
from med_model.command import parse, run
from med_model.data.prompt import CHAT_STOPS, IGNORE, Example, training_example
from med_model.data.records import Message, conversation_of, document_of
from med_model.data.split import read_all, read_split
from med_model.errors import UserError
from med_model.measures.answers import Question
from med_model.measures.evaluate import Heldout, evaluate
from med_model.model.device import choose_precision
from med_model.model.directory import load_model, load_tokenizer
from med_model.model.head import use_chunked_head
from med_model.training.health import TrainingHealth, Warnings, check_overlap, check_stops, check_truncation
from med_model.training.muon import MUON_HELP, optimizers_for
from med_model.training.preflight import preflight
from med_model.training.retention import RETENTION_TOKENS, Retaining, Retention, RetentionArguments, new_retention
from med_model.training.stage import check_output, finish, train

MEASURED_QUESTIONS = 100  # answered at the end, to see whether the model stops and repeats itself


@dataclass
class DataArguments(RetentionArguments):
    input_model: str = str(paths.BASE_MODEL)
    output_model: str = str(paths.SFT_MODEL)


@dataclass
class SFTArguments(SFTConfig):
    """TRL's SFT arguments with the defaults of this stage."""

    output_dir: str | None = str(paths.SFT_CHECKPOINTS)
    # The answers are learnt by the second pass; which question wants which of them takes the rest.
    num_train_epochs: float = 10.0
    per_device_train_batch_size: int = 16  # rows
    per_device_eval_batch_size: int = 32
    learning_rate: float = 3e-3
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = 0.05  # below 1: a share of all steps, here and in the next two
    eval_strategy: str = "steps"
    eval_steps: float | None = 0.2
    save_strategy: str = "steps"
    save_steps: float = 0.2
    save_total_limit: int | None = 2
    logging_steps: float = 10
    logging_nan_inf_filter: bool = False  # a loss that is not finite ends the training instead of hiding
    load_best_model_at_end: bool = True
    metric_for_best_model: str | None = "mean_token_accuracy"  # held-out; a few wrong answers rule the loss
    report_to: str = "none"
    max_length: int | None = 512  # the model's positions
    train_sampling_strategy: str = "group_by_length"  # rows of like length share a batch: little padding
    include_num_input_tokens_seen: str = "non_padding"  # for the speed shown
    activation_checkpointing: bool | None = False  # saves memory that a model this small does not need
    bf16: bool | None = None  # where the device multiplies in it
    dataloader_pin_memory: bool = torch.cuda.is_available()
    muon: bool = field(default=True, metadata={"help": MUON_HELP})
    dropout: float = field(
        default=0.1, metadata={"help": "Dropout while training: with it more unseen wordings find their answer."}
    )

    def __post_init__(self):
        choose_precision(self)
        super().__post_init__()


def encode(
    tokenizer: PreTrainedTokenizerBase, rows: list[list[Message]], max_length: int, name: str, warnings: Warnings
) -> Dataset:
    """The rows as `input_ids` and `labels`; says how many had to be shortened or left out."""
    examples = [training_example(tokenizer, messages, max_length) for messages in rows]
    kept = [example for example in examples if example is not None]
    if not kept:
        raise UserError(f"{name}: 没有一条放得下/no row leaves room for an answer in --max_length {max_length}")
    print(f"{name}: {len(kept):,} 条/rows, {sum(len(e.input_ids) for e in kept):,} 词元/tokens, ", end="")
    print(f"其中答案/of them answers {sum(label != IGNORE for e in kept for label in e.labels):,}")
    if shortened := sum(example.shortened for example in kept):
        print(
            f"  {shortened:,} 条太长 ({shortened / len(kept):.1%})，从句末截断并保留停止符/"
            "too long: cut at a sentence end, the stop kept"
        )
    check_truncation(warnings, shortened, len(kept))
    check_stops(warnings, [example.labels for example in kept], tokenizer.convert_tokens_to_ids(list(CHAT_STOPS)))
    if dropped := len(examples) - len(kept):
        print(f"  {dropped:,} 条问题太长，已舍去/left out: the question alone fills --max_length {max_length}")
    return Dataset.from_dict({key: [getattr(example, key) for example in kept] for key in Example._fields[:2]})


class RetainingSFTTrainer(Retaining, SFTTrainer):
    """TRL's trainer, with the divergence from the base model on plain text added to its training loss."""


def new_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    training: SFTArguments,
    train_dataset: Dataset,
    eval_dataset: Dataset | None = None,
    retention: Retention | None = None,
) -> RetainingSFTTrainer:
    """TRL's trainer with the chunked head and the optimizer of this stage; the benchmark makes its own here too."""
    training.dataset_kwargs = {"skip_prepare_dataset": True}  # the rows are rendered already, by med_model.data.prompt
    trainer = RetainingSFTTrainer(
        model=model,
        args=training,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        optimizers=optimizers_for(model, training),
    )
    trainer.retention = retention
    use_chunked_head(model)
    return trainer


def main() -> None:
    stage, training = parse(DataArguments, SFTArguments, description=__doc__)
    checkpoint = check_output(stage, training)
    for option in ("packing", "padding_free", "assistant_only_loss"):
        if getattr(training, option):
            raise UserError(
                f"--{option}: 本脚本自行渲染并标注/the rows are rendered and labelled here already; leave it out"
            )
    rows, heldout = read_split(
        stage.data,
        stage.eval_data,
        (paths.SFT_DATA, paths.HELDOUT_QUESTIONS),
        conversation_of,
        stage.max_records,
        training.seed,
    )
    tokenizer = load_tokenizer(stage.input_model)
    warnings = Warnings()
    train_dataset = encode(tokenizer, rows, training.max_length, "训练/training", warnings)
    eval_dataset = encode(tokenizer, heldout, training.max_length, "验证/held-out", warnings)
    check_overlap(warnings, *([tuple(turn["content"] for turn in row) for row in part] for part in (rows, heldout)))

    set_seed(training.seed)
    model, _ = load_model(stage.input_model, training.dropout)
    if training.max_length > model.config.n_positions:
        raise UserError(f"--max_length {training.max_length}: the model has {model.config.n_positions} positions")
    retention = new_retention(stage, tokenizer, training.device)
    trainer = new_trainer(model, tokenizer, training, train_dataset, eval_dataset, retention)
    preflight(
        trainer,
        output_model=stage.output_model,
        tokens=sum(map(len, train_dataset["input_ids"])),
        longest=max(map(len, train_dataset["input_ids"])),
        heldout_tokens=sum(map(len, eval_dataset["input_ids"])),
        beside=RETENTION_TOKENS if retention else 0,
        checkpoint=checkpoint,
    )
    if stage.dry_run:
        return
    seconds = train(trainer, stage, checkpoint, [TrainingHealth(warnings)])

    model.eval()
    questions = [Question(conversation[:-1]) for conversation in heldout[:MEASURED_QUESTIONS]]
    measured = Heldout(texts=read_all([paths.HELDOUT_TEXT], document_of), questions=questions)
    finish(
        trainer,
        tokenizer,
        stage,
        title="Med_model: model after SFT",
        stops=CHAT_STOPS,
        evaluation=evaluate(model, tokenizer, measured, chat=True),
        warnings=warnings,
        metrics={
            "heldout_loss": trainer.evaluate()["eval_loss"],
            "training_seconds": round(seconds, 1),
            "training_rows": len(train_dataset),
        },
    )


if __name__ == "__main__":
    run(main)
