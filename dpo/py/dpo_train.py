"""Direct preference optimization: tune the SFT model on pairs of a good and a bad answer.

Reads  post_model__after_sft/, base_model__after_pretraining/ and preference pairs (default: the bundled dpo/dataset/)
Writes final_model__after_dpo/ (checkpoints, log.jsonl and reference log-probabilities in dpo/py/med_dpo_checkpoints/)

The SFT model is also the reference model of DPO. The KL regularization (--retention) keeps the predictions on plain
text (--text, by default the bundled pre-training text) close to those of the base model.

    python dpo/py/dpo_train.py
    python dpo/py/dpo_train.py --data my_pairs.jsonl --beta 0.2
    python dpo/py/dpo_train.py --resume
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, set_seed
from trl import DPOConfig, DPOTrainer

from med_model import paths
from med_model.command import parse, run
from med_model.data.prompt import EncodedPair, encode_pairs, encode_prompt
from med_model.data.records import Pair, document_of, pair_of, prompt_of
from med_model.data.split import read_all, read_split
from med_model.errors import UserError
from med_model.language import tr
from med_model.measures.answers import Question
from med_model.measures.heldout import Heldout
from med_model.model.device import choose_precision
from med_model.model.directory import load_model, load_tokenizer
from med_model.screen import say
from med_model.training.health import HealthLines, TrainingHealth, check_overlap, check_truncation
from med_model.training.preference_health import AnswerDrift, PreferenceHealth
from med_model.training.preflight import preflight
from med_model.training.progress import Workload
from med_model.training.reference import reference_scores
from med_model.training.retention import RetentionArguments, interpolate, new_retention, text_tokens
from med_model.training.stage import check_output, check_positions, finish, train
from med_model.training.trainer import OurTrainer

DESCRIPTION = tr("Direct preference optimization: tune the SFT model on pairs of a good and a bad answer.")
BUNDLED = (paths.DPO_DATA, paths.HELDOUT_PAIRS)  # training data, held-out data

EVALUATED_PAIRS = 400  # largest number of held-out pairs per evaluation; the measures after the training use all pairs
DRIFT_QUESTIONS = 32  # largest number of questions per evaluation; the answers show the drift from the SFT model
MEASURED_QUESTIONS = 100  # largest number of held-out questions for the measures after the training


@dataclass
class DataArguments(RetentionArguments):
    input_model: str = str(paths.SFT_MODEL)
    output_model: str = str(paths.FINAL_MODEL)
    # Weight of the KL regularization. With 0.1, the weight of SFT, held-out bits per byte get worse by 0.007. With 1
    # they get worse by 0.002. With 10 the preference accuracy rises less than with 2 (docs/en/recipes.md).
    retention: float = 2.0
    retention_model: str | None = str(paths.BASE_MODEL)  # the base model predicts text better than the SFT model
    interpolation: float = field(
        default=0.3,  # docs/en/recipes.md has the measurements for this option and the next one
        metadata={"help": tr("Publish this share of DPO's change in the layers; 1 publishes all of it.")},
    )
    embedding_interpolation: float = field(
        default=0.0,
        metadata={"help": tr("The same share for the embeddings; 0 leaves them as SFT has trained them.")},
    )


@dataclass
class DPOArguments(DPOConfig):
    """TRL's DPO arguments with the defaults of this stage, and the option --dropout."""

    output_dir: str | None = str(paths.DPO_CHECKPOINTS)
    num_train_epochs: float = 1.0
    per_device_train_batch_size: int = 8  # pairs
    per_device_eval_batch_size: int = 16
    learning_rate: float = 4e-4  # chosen from the runs in docs/en/recipes.md
    # The margin of a pair is the gain in log p(chosen) - log p(rejected). For answers of 60 tokens it can be 100 nats.
    # With beta 0.02 the sigmoid loss is small at 100 nats, so the margin stops growing. With 0.005 it goes on growing.
    beta: float = 0.005
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = 0.1  # a value below 1 is a share of all steps, also in `eval_steps` and `save_steps`
    eval_strategy: str = "steps"
    eval_steps: float | None = 0.2
    save_strategy: str = "steps"
    save_steps: float = 0.2
    save_total_limit: int | None = 2
    logging_steps: float = 10
    logging_nan_inf_filter: bool = False  # the filter would hide a NaN or infinite loss; such a loss must stop the run
    load_best_model_at_end: bool = True
    # Choose the checkpoint with the largest held-out margin. The held-out accuracy would choose a worse checkpoint: it
    # is often best early, when the answers lack many key facts.
    metric_for_best_model: str | None = "rewards/margins"
    report_to: str = "none"
    loss_type: list[str] = field(default_factory=lambda: ["sigmoid", "sft"])  # "sft" keeps chosen answers likely
    loss_weights: list[float] | None = field(default_factory=lambda: [1.0, 1.0])
    max_length: int | None = 512  # tokens; the model has 512 positions
    train_sampling_strategy: str = "group_by_length"  # pairs of similar length need little padding
    remove_unused_columns: bool = False  # keep the column `length`: the sampler groups pairs by it
    include_num_input_tokens_seen: str = "non_padding"  # count the tokens, to print tokens per second
    activation_checkpointing: bool | None = False  # it would save memory but cost time; this model needs little memory
    precompute_ref_log_probs: bool = True  # the reference model runs once, before training
    # TRL's default is True. Key-fact recall on new wordings: 0.722 with dropout, 0.666 without (docs/en/recipes.md).
    disable_dropout: bool = False
    bf16: bool | None = None  # None: on if fp16 is off and the device has hardware for bfloat16 products
    dataloader_pin_memory: bool = torch.cuda.is_available()
    dropout: float = field(
        default=0.1,
        metadata={"help": tr("Dropout while training. Without it, known wordings win over unseen ones.")},
    )

    def __post_init__(self):
        choose_precision(self)
        super().__post_init__()


class PreferenceTrainer(OurTrainer, DPOTrainer):
    """Add our output layer (model/head.py) and the KL regularization to TRL's DPO trainer.

    The two methods return the dataset unchanged: `dataset_of` has already made the columns that TRL would add.
    """

    def _prepare_dataset(self, dataset, *args, **kwargs):
        return dataset

    def _precompute_ref_logps(self, dataset, *args, **kwargs):
        return dataset


def encode(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Pair], max_length: int, name: str, health: HealthLines
) -> list[EncodedPair]:
    """Return the pairs as input_ids, cut to `max_length` tokens. Leave out a pair if its answers are then equal.

    Print the numbers of pairs, tokens, cut answers and left-out pairs. Add a warning to `health` if too many answers
    are cut. Raise UserError if no pair is left, or if `max_length` has no room for a question.
    """
    pairs, cut = encode_pairs(tokenizer, rows, max_length)
    if not pairs:
        raise UserError(tr("{name}: no pair differs within --max_length {length}.", name=name, length=max_length))
    tokens = sum(len(ids) for pair in pairs for ids in pair)
    say(tr("{name}: {pairs:,} pairs, {tokens:,} tokens.", name=name, pairs=len(pairs), tokens=tokens))
    if cut:
        line = tr(
            "{count:,} answers are too long: each is cut at the end of a sentence and keeps its stop token.", count=cut
        )
        say(f"  {line}")
    check_truncation(health, cut, 2 * len(rows))
    if left_out := len(rows) - len(pairs):
        say("  " + tr("{count:,} pairs are left out: both answers are equal once cut.", count=left_out))
    return pairs


def dataset_of(pairs: list[EncodedPair], reference: list[tuple[float, float]]) -> Dataset:
    """Return a dataset with the columns that TRL's trainer reads, and the column `length`.

    `length` is the number of tokens of the prompt and the longer answer. The pairs of a batch have similar lengths.
    reference: the log-probabilities of (chosen, rejected) under the reference model, in nats per answer.
    """
    columns = {key: [getattr(pair, key) for pair in pairs] for key in EncodedPair._fields}
    columns["length"] = [len(prompt) + max(len(chosen), len(rejected)) for prompt, chosen, rejected in pairs]
    columns["ref_chosen_logps"], columns["ref_rejected_logps"] = map(list, zip(*reference, strict=True))
    return Dataset.from_dict(columns)


def spread(items: Sequence, most: int) -> list:
    """Return every n-th item, with the smallest n that gives at most `most` items."""
    return list(items)[:: math.ceil(len(items) / most)]


def measured_questions(rows: Sequence[Pair]) -> list[Question]:
    """Return the distinct questions of the pairs, or every n-th of them if there are more than MEASURED_QUESTIONS."""
    return spread({row.question: Question(row.messages) for row in rows}.values(), MEASURED_QUESTIONS)


def workload_of(pairs: list[EncodedPair], heldout: list[EncodedPair], retention_tokens: int) -> Workload:
    """Return the token counts of the training. A prompt counts twice: the model reads it with each answer."""
    lengths, heldout_lengths = (
        [len(pair.prompt_ids) + len(ids) for pair in part for ids in (pair.chosen_ids, pair.rejected_ids)]
        for part in (pairs, heldout)
    )
    return Workload(sum(lengths), max(lengths + heldout_lengths), sum(heldout_lengths), retention_tokens)


def main() -> None:
    stage, training = parse(DataArguments, DPOArguments, description=DESCRIPTION, docstring=__doc__)
    checkpoint = check_output(stage, training)
    rows, heldout_rows = read_split(
        stage.data, stage.eval_data, BUNDLED, pair_of, prompt_of, stage.max_records, training.seed
    )
    tokenizer = load_tokenizer(stage.input_model)
    health = HealthLines()
    pairs = encode(tokenizer, rows, training.max_length, tr("Training data"), health)
    heldout = encode(tokenizer, heldout_rows, training.max_length, tr("Held-out data"), health)
    heldout = spread(heldout, EVALUATED_PAIRS)
    check_overlap(health, *([(row.question, row.chosen) for row in part] for part in (rows, heldout_rows)))

    set_seed(training.seed)
    model, _ = load_model(stage.input_model, training.dropout)
    check_positions(model, training.max_length)
    reference = reference_scores(model.to(training.device), pairs + heldout, training)
    retention = new_retention(stage, tokenizer, training.device)
    trainer = PreferenceTrainer(
        model=model,
        args=training,
        train_dataset=dataset_of(pairs, reference[: len(pairs)]),
        eval_dataset=dataset_of(heldout, reference[len(pairs) :]),
        processing_class=tokenizer,
        retention=retention,
    )
    workload = workload_of(pairs, heldout, text_tokens(retention))
    preflight(trainer, stage.output_model, workload)
    questions = measured_questions(heldout_rows)
    prompts = [encode_prompt(tokenizer, question.messages) for question in questions[:DRIFT_QUESTIONS]]
    sft_model, _ = load_model(stage.input_model)
    drift = AnswerDrift(health, tokenizer, prompts, sft_model)
    callbacks = [TrainingHealth(health, falls=False), PreferenceHealth(health), drift]
    seconds = train(trainer, stage, workload, checkpoint, callbacks)
    if stage.dry_run:
        return

    interpolate(model, sft_model, stage.interpolation, stage.embedding_interpolation)
    trainer.remove_callback(drift)
    if trainer.is_world_process_zero():
        drift.measure(model)  # measured again, because interpolate() has changed the weights
    after = trainer.evaluate()
    finish(
        trainer,
        tokenizer,
        stage,
        title="Med_model: final model after DPO",
        heldout=Heldout(read_all([paths.HELDOUT_TEXT], document_of), questions, heldout_rows),
        chat=True,
        health=health,
        metrics={
            "heldout_loss": after["eval_loss"],
            "heldout_reward_accuracy": after["eval_rewards/accuracies"],
            "heldout_reward_margin": after["eval_rewards/margins"],
            **drift.metrics(),
            "training_seconds": round(seconds, 1),
            "training_pairs": len(pairs),
        },
    )


if __name__ == "__main__":
    run(main)
