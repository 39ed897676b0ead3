"""Pre-train a GPT-2 (8.41M parameters with a 20,000-token vocabulary) from zero on medical text.

Reads  pre_training/py/med_tokenizer/ and documents with a `text` field (default: the bundled pre_training/dataset/)
Writes base_model__after_pretraining/ (checkpoints and log.jsonl in pre_training/py/med_model_checkpoints/)

    python pre_training/py/run_pretraining.py
    python pre_training/py/run_pretraining.py --data "my_texts/*.jsonl" --num_train_epochs 1
    python pre_training/py/run_pretraining.py --resume
"""

from dataclasses import dataclass, field

import torch
from transformers import Trainer, TrainingArguments, set_seed

from med_model import paths
from med_model.command import parse, run
from med_model.data.blocks import BLOCK_TOKENS, PackedBlocks
from med_model.data.records import document_of
from med_model.data.split import read_split
from med_model.errors import UserError
from med_model.language import tr
from med_model.measures.heldout import Heldout
from med_model.model.device import choose_precision
from med_model.model.directory import load_tokenizer
from med_model.model.gpt2 import new_model, print_parts, start_at_token_frequencies
from med_model.screen import say
from med_model.training.health import HealthLines, TrainingHealth, check_overlap
from med_model.training.muon import MUON_HELP, optimizers_for
from med_model.training.preflight import preflight
from med_model.training.progress import Workload
from med_model.training.stage import StageArguments, check_output, finish, train
from med_model.training.trainer import OurTrainer

DESCRIPTION = tr("Pre-train a GPT-2 from zero on medical text.")
BUNDLED = (paths.PRETRAINING_DATA, paths.HELDOUT_TEXT)  # training data, held-out data


@dataclass
class DataArguments(StageArguments):
    input_model: str = str(paths.TOKENIZER)
    output_model: str = str(paths.BASE_MODEL)


@dataclass
class PretrainingArguments(TrainingArguments):
    """Hugging Face's training arguments with the defaults of this stage, and the options --muon and --dropout."""

    output_dir: str | None = str(paths.PRETRAINING_CHECKPOINTS)
    num_train_epochs: float = 6.0  # the bundled text is small; a large text needs only one pass
    per_device_train_batch_size: int = 4  # blocks of 512 tokens
    per_device_eval_batch_size: int = 8
    learning_rate: float = 4e-3  # this value, adam_beta2 and the schedule come from the search in docs/en/speed.md
    weight_decay: float = 0.1
    adam_beta2: float = 0.99
    lr_scheduler_type: str = "linear"
    warmup_steps: float = 0.05  # a value below 1 is a share of all steps, also in `eval_steps` and `save_steps`
    eval_strategy: str = "steps"
    eval_steps: float | None = 0.1
    save_strategy: str = "steps"
    save_steps: float = 0.1
    save_total_limit: int | None = 2
    logging_steps: float = 10
    logging_nan_inf_filter: bool = False  # the filter would hide a NaN or infinite loss; such a loss must stop the run
    load_best_model_at_end: bool = True  # publish the checkpoint with the lowest held-out loss
    report_to: str = "none"
    include_num_input_tokens_seen: str = "all"  # count the tokens, to print tokens per second
    bf16: bool | None = None  # None: on if fp16 is off and the device has hardware for bfloat16 products
    dataloader_pin_memory: bool = torch.cuda.is_available()
    muon: bool = field(default=True, metadata={"help": MUON_HELP})
    dropout: float = field(
        default=0.1,
        metadata={"help": tr("Dropout of the model. With it, small data read often is learned by heart later.")},
    )

    def __post_init__(self):
        choose_precision(self)
        super().__post_init__()


class PretrainingTrainer(OurTrainer, Trainer):
    """Add our output layer (model/head.py) to Hugging Face's Trainer."""


def say_size(name: str, texts: list[str], blocks: PackedBlocks) -> None:
    """Print the numbers of documents, tokens and blocks of the training data or the held-out data."""
    say(
        tr(
            "{name}: {documents:,} documents, {tokens:,} tokens, {blocks:,} blocks of {length}.",
            name=name,
            documents=len(texts),
            tokens=len(blocks.tokens),
            blocks=len(blocks),
            length=blocks.length,
        )
    )


def main() -> None:
    stage, training = parse(DataArguments, PretrainingArguments, description=DESCRIPTION, docstring=__doc__)
    checkpoint = check_output(stage, training)
    tokenizer = load_tokenizer(stage.input_model)
    texts, heldout = read_split(
        stage.data, stage.eval_data, BUNDLED, document_of, str, stage.max_records, training.seed
    )
    blocks, heldout_blocks = (PackedBlocks(tokenizer, part) for part in (texts, heldout))
    if len(blocks.tokens) < BLOCK_TOKENS:
        raise UserError(
            tr(
                "Too little text: {tokens:,} tokens, and one block needs {block}. Give more --data.",
                tokens=len(blocks.tokens),
                block=BLOCK_TOKENS,
            )
        )
    say_size(tr("Training data"), texts, blocks)
    say_size(tr("Held-out data"), heldout, heldout_blocks)
    health = HealthLines()
    check_overlap(health, texts, heldout)

    set_seed(training.seed)
    model = new_model(tokenizer, training.dropout)
    start_at_token_frequencies(model, blocks.tokens)
    print_parts(model)
    trainer = PretrainingTrainer(
        model=model,
        args=training,
        train_dataset=blocks,
        eval_dataset=heldout_blocks,
        processing_class=tokenizer,
        optimizers=optimizers_for(model, training),
    )
    workload = Workload(len(blocks) * blocks.length, blocks.length, len(heldout_blocks) * heldout_blocks.length)
    preflight(trainer, stage.output_model, workload)
    seconds = train(trainer, stage, workload, checkpoint, [TrainingHealth(health)])
    if stage.dry_run:
        return

    finish(
        trainer,
        tokenizer,
        stage,
        title="Med_model: base model after pre-training",
        heldout=Heldout(texts=heldout),
        chat=False,
        health=health,
        metrics={
            "training_seconds": round(seconds, 1),
            "training_tokens": len(blocks.tokens),
            "training_documents": len(texts),
        },
    )


if __name__ == "__main__":
    run(main)
