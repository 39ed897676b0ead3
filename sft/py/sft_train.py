"""Supervised fine-tuning: teach the base model to answer.

Reads  base_model__after_pretraining/ and question-answer rows or conversations (default: the bundled sft/dataset/)
Writes post_model__after_sft/ (checkpoints and log.jsonl in sft/py/med_sft_checkpoints/)

The KL regularization (--retention) keeps the predictions on plain text (--text, by default the bundled pre-training
text) close to those of the base model.

    python sft/py/sft_train.py
    python sft/py/sft_train.py --data my_answers.jsonl --num_train_epochs 2
    python sft/py/sft_train.py --resume
"""

import time
from dataclasses import dataclass, field

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, set_seed
from trl import SFTConfig, SFTTrainer

from med_model import paths
from med_model.command import parse, run
from med_model.data.prompt import IGNORE, Example, stop_ids, training_example
from med_model.data.records import Message, conversation_of, document_of, first_question
from med_model.data.split import read_all, read_split
from med_model.errors import UserError
from med_model.language import tr
from med_model.measures.answers import Question
from med_model.measures.heldout import Heldout
from med_model.model.device import choose_precision
from med_model.model.directory import load_model, load_tokenizer
from med_model.screen import say
from med_model.training.health import HealthLines, TrainingHealth, check_overlap, check_stops, check_truncation
from med_model.training.matching import MatchingArguments, match
from med_model.training.muon import MUON_HELP, optimizers_for
from med_model.training.preflight import preflight
from med_model.training.progress import Workload
from med_model.training.retention import RetentionArguments, new_retention, text_tokens
from med_model.training.stage import check_output, check_positions, finish, train
from med_model.training.trainer import OurTrainer, PassTrainer
from med_model.training.views import RowViews, ViewArguments

DESCRIPTION = tr("Supervised fine-tuning: teach the base model to answer.")
BUNDLED = (paths.SFT_DATA, paths.HELDOUT_QUESTIONS)  # training data, held-out data

MEASURED_QUESTIONS = 100  # largest number of held-out questions for the measures after the training
# These options of TRL would change the rows or their labels. To set one is an error, because `encode` makes both.
RENDERED_HERE = ("packing", "padding_free", "assistant_only_loss")


@dataclass
class DataArguments(ViewArguments, MatchingArguments, RetentionArguments):
    input_model: str = str(paths.BASE_MODEL)
    output_model: str = str(paths.SFT_MODEL)

    def __post_init__(self):
        for options in (ViewArguments, MatchingArguments, RetentionArguments):
            options.__post_init__(self)


@dataclass
class SFTArguments(SFTConfig):
    """TRL's SFT arguments with the defaults of this stage, and the options --muon and --dropout."""

    output_dir: str | None = str(paths.SFT_CHECKPOINTS)
    num_train_epochs: float = 3.0
    per_device_train_batch_size: int = 23  # conversations; with --later_turns 0.3 about 32 rows
    per_device_eval_batch_size: int = 32
    learning_rate: float = 3e-3
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = 0.05  # a value below 1 is a share of all steps, also in `eval_steps` and `save_steps`
    eval_strategy: str = "steps"
    eval_steps: float | None = 0.2
    save_strategy: str = "steps"
    save_steps: float = 0.2
    save_total_limit: int | None = 2
    logging_steps: float = 10
    logging_nan_inf_filter: bool = False  # the filter would hide a NaN or infinite loss; such a loss must stop the run
    load_best_model_at_end: bool = True
    # Publish the checkpoint that predicts the largest share of tokens in held-out answers correctly. The held-out loss
    # would choose a worse checkpoint, because a few wrong answers dominate this loss.
    metric_for_best_model: str | None = "mean_token_accuracy"
    report_to: str = "none"
    remove_unused_columns: bool | None = False  # the training data are the numbers of the views
    max_length: int | None = 512  # tokens; the model has 512 positions
    train_sampling_strategy: str = "group_by_length"  # rows of similar length need little padding
    include_num_input_tokens_seen: str = "non_padding"  # count the tokens, to print tokens per second
    activation_checkpointing: bool | None = False  # it would save memory but cost time; this model needs little memory
    bf16: bool | None = None  # None: on if fp16 is off and the device has hardware for bfloat16 products
    dataloader_pin_memory: bool = torch.cuda.is_available()
    muon: bool = field(default=True, metadata={"help": MUON_HELP})
    dropout: float = field(
        default=0.0,
        metadata={"help": tr("Dropout while training. Changed questions (--question_noise) work better.")},
    )

    def __post_init__(self):
        choose_precision(self)
        super().__post_init__()
        self.dataset_kwargs = {"skip_prepare_dataset": True}  # `encode` makes the input_ids, not TRL


class AnswerTrainer(PassTrainer, OurTrainer, SFTTrainer):
    """Add our output layer (model/head.py), the KL regularization and the views of the rows to TRL's SFT trainer."""


def encode(
    tokenizer: PreTrainedTokenizerBase, rows: list[list[Message]], max_length: int, name: str, health: HealthLines
) -> list[Example]:
    """Return the encoded rows. Print their size and the numbers of shortened and left-out rows.

    A row is left out if its question leaves too little of `max_length` for its answer. Add a warning to `health` if
    too many rows are shortened or lack a stop token. Raise UserError if no row is left.
    """
    examples = [training_example(tokenizer, messages, max_length) for messages in rows]
    kept = [example for example in examples if example is not None]
    if not kept:
        raise UserError(
            tr("{name}: no row leaves room for an answer in --max_length {length}.", name=name, length=max_length)
        )
    say(
        tr(
            "{name}: {rows:,} rows, {tokens:,} tokens, {labels:,} of them in answers.",
            name=name,
            rows=len(kept),
            tokens=sum(len(example.input_ids) for example in kept),
            labels=sum(label != IGNORE for example in kept for label in example.labels),
        )
    )
    shortened = sum(example.shortened for example in kept)
    if shortened:
        say(
            "  "
            + tr(
                "{count:,} rows are too long: each is cut at the end of a sentence and keeps its stop token.",
                count=shortened,
            )
        )
    check_truncation(health, shortened, len(kept))
    check_stops(health, [example.labels for example in kept], stop_ids(tokenizer, chat=True))
    if left_out := len(examples) - len(kept):
        say(
            "  "
            + tr(
                "{count:,} rows are left out: the question alone fills --max_length {length}.",
                count=left_out,
                length=max_length,
            )
        )
    return kept


def workload_of(
    views: RowViews, examples: list[Example], heldout: list[Example], max_length: int, retention_tokens: int
) -> Workload:
    """Return the token counts of the training. Print how many rows are left out of the first pass, if any."""
    if left_out := views.left_out(0):
        line = tr("{count:,} rows are left out of the first pass: their conversation is too long.", count=left_out)
        say(f"  {line}")
    lengths = [views.length(view, 0) for view in range(len(views))]
    return Workload(
        tokens=sum(lengths),
        longest=min(max(*lengths, *(len(example.input_ids) for example in examples)), max_length),
        heldout_tokens=sum(len(example.input_ids) for example in heldout),
        retention_tokens=retention_tokens,
    )


def main() -> None:
    stage, training = parse(DataArguments, SFTArguments, description=DESCRIPTION, docstring=__doc__)
    checkpoint = check_output(stage, training)
    for option in RENDERED_HERE:
        if getattr(training, option):
            raise UserError(
                tr("--{option}: this script renders and labels the rows itself. Leave it out.", option=option)
            )
    rows, heldout = read_split(
        stage.data, stage.eval_data, BUNDLED, conversation_of, first_question, stage.max_records, training.seed
    )
    tokenizer = load_tokenizer(stage.input_model)
    health = HealthLines()
    examples = encode(tokenizer, rows, training.max_length, tr("Training data"), health)
    heldout_examples = encode(tokenizer, heldout, training.max_length, tr("Held-out data"), health)
    check_overlap(health, *([tuple(turn["content"] for turn in row) for row in part] for part in (rows, heldout)))

    set_seed(training.seed)
    model, _ = load_model(stage.input_model, training.dropout)
    check_positions(model, training.max_length)
    retention = new_retention(stage, tokenizer, training.device)
    views = RowViews(tokenizer, examples, stage, training.max_length, training.seed)
    trainer = AnswerTrainer(
        views,
        model=model,
        args=training,
        eval_dataset=Dataset.from_list([{"input_ids": e.input_ids, "labels": e.labels} for e in heldout_examples]),
        processing_class=tokenizer,
        optimizers=optimizers_for(model, training),
        retention=retention,
    )
    workload = workload_of(views, examples, heldout_examples, training.max_length, text_tokens(retention))
    preflight(trainer, stage.output_model, workload)
    start = time.time()
    if checkpoint is None:  # the model of a checkpoint has learned the matching already
        match(model, views, training, stage.matching_passes, retention, stage.dry_run)
    train(trainer, stage, workload, checkpoint, [TrainingHealth(health)])
    seconds = time.time() - start
    if stage.dry_run:
        return

    questions = [Question(conversation[:-1]) for conversation in heldout[:MEASURED_QUESTIONS]]
    finish(
        trainer,
        tokenizer,
        stage,
        title="Med_model: model after SFT",
        heldout=Heldout(texts=read_all([paths.HELDOUT_TEXT], document_of), questions=questions),
        chat=True,
        health=health,
        metrics={
            "heldout_loss": trainer.evaluate()["eval_loss"],
            "training_seconds": round(seconds, 1),
            "training_rows": len(examples),
        },
    )


if __name__ == "__main__":
    run(main)
