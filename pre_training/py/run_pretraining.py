"""Pre-train a GPT-2 (8.41M parameters with a 20,000-token vocabulary) from zero on medical text.

Reads  pre_training/py/med_tokenizer/ and documents with a `text` field (default: the bundled pre_training/dataset/)
Writes base_model__after_pretraining/ (checkpoints in pre_training/py/med_model_checkpoints/)

    python pre_training/py/run_pretraining.py
    python pre_training/py/run_pretraining.py --data "my_texts/*.jsonl" --num_train_epochs 1
    python pre_training/py/run_pretraining.py --resume
"""

from dataclasses import dataclass, field

import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase, Trainer, TrainingArguments, set_seed

from med_model import paths
from med_model.command import parse, run
from med_model.data.blocks import BLOCK_TOKENS, PackedBlocks
from med_model.data.prompt import BASE_STOPS
from med_model.data.records import document_of
from med_model.data.split import read_split
from med_model.errors import UserError
from med_model.measures.evaluate import Heldout, evaluate
from med_model.model.device import choose_precision
from med_model.model.directory import load_tokenizer
from med_model.model.gpt2 import new_model, print_parts, start_at_token_frequencies
from med_model.model.head import use_chunked_head
from med_model.training.health import TrainingHealth, Warnings, check_overlap
from med_model.training.muon import MUON_HELP, optimizers_for
from med_model.training.preflight import preflight
from med_model.training.stage import StageArguments, check_output, finish, train


@dataclass
class DataArguments(StageArguments):
    input_model: str = str(paths.TOKENIZER)
    output_model: str = str(paths.BASE_MODEL)


@dataclass
class PretrainingArguments(TrainingArguments):
    """Hugging Face's training arguments with the defaults of this stage."""

    output_dir: str | None = str(paths.PRETRAINING_CHECKPOINTS)
    num_train_epochs: float = 6.0  # the bundled set is small and seen often; one pass is enough for a large one
    per_device_train_batch_size: int = 4  # blocks of 512 tokens
    per_device_eval_batch_size: int = 8
    learning_rate: float = 4e-3  # this, beta2 and the decay were searched: benchmarks/README.md
    weight_decay: float = 0.1
    adam_beta2: float = 0.99
    lr_scheduler_type: str = "linear"
    warmup_steps: float = 0.05  # below 1: a share of all steps, here and in the next three
    eval_strategy: str = "steps"
    eval_steps: float | None = 0.1
    save_strategy: str = "steps"
    save_steps: float = 0.1
    save_total_limit: int | None = 2
    logging_steps: float = 10
    logging_nan_inf_filter: bool = False  # a loss that is not finite ends the training instead of hiding
    load_best_model_at_end: bool = True  # the checkpoint with the lowest held-out loss is what is published
    report_to: str = "none"
    include_num_input_tokens_seen: str = "all"  # for the speed shown
    bf16: bool | None = None  # where the device multiplies in it
    dataloader_pin_memory: bool = torch.cuda.is_available()
    muon: bool = field(default=True, metadata={"help": MUON_HELP})
    dropout: float = field(
        default=0.1, metadata={"help": "Dropout of the model: small data seen often is learnt by heart later with it."}
    )

    def __post_init__(self):
        choose_precision(self)
        super().__post_init__()


def new_trainer(
    model: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerBase,
    training: PretrainingArguments,
    blocks: PackedBlocks,
    heldout_blocks: PackedBlocks | None = None,
) -> Trainer:
    """The Trainer with the chunked head and the optimizer of this stage; the benchmark makes its own here too."""
    use_chunked_head(model)
    return Trainer(
        model=model,
        args=training,
        train_dataset=blocks,
        eval_dataset=heldout_blocks,
        processing_class=tokenizer,
        optimizers=optimizers_for(model, training),
    )


def main() -> None:
    stage, training = parse(DataArguments, PretrainingArguments, description=__doc__)
    checkpoint = check_output(stage, training)
    tokenizer = load_tokenizer(stage.input_model)
    texts, heldout = read_split(
        stage.data,
        stage.eval_data,
        (paths.PRETRAINING_DATA, paths.HELDOUT_TEXT),
        document_of,
        stage.max_records,
        training.seed,
    )
    blocks, heldout_blocks = (PackedBlocks(tokenizer, part) for part in (texts, heldout))
    if len(blocks.tokens) < BLOCK_TOKENS:
        raise UserError(
            f"文本太少/{len(blocks.tokens)} tokens of text, one block needs {BLOCK_TOKENS}: give more --data"
        )
    print(
        f"训练/training: {len(texts):,} 篇/documents, {len(blocks.tokens):,} 词元/tokens, "
        f"{len(blocks):,} 块/blocks of {BLOCK_TOKENS}"
    )
    print(f"验证/held-out: {len(heldout):,} 篇/documents, {len(heldout_blocks.tokens):,} 词元/tokens")
    warnings = Warnings()
    check_overlap(warnings, texts, heldout)

    set_seed(training.seed)
    model = new_model(tokenizer, training.dropout)
    start_at_token_frequencies(model, blocks.tokens)
    print_parts(model)
    trainer = new_trainer(model, tokenizer, training, blocks, heldout_blocks)
    preflight(
        trainer,
        output_model=stage.output_model,
        tokens=len(blocks) * blocks.length,
        longest=blocks.length,
        heldout_tokens=len(heldout_blocks) * heldout_blocks.length,
        checkpoint=checkpoint,
    )
    if stage.dry_run:
        return
    seconds = train(trainer, stage, checkpoint, [TrainingHealth(warnings)])

    model.eval()
    finish(
        trainer,
        tokenizer,
        stage,
        title="Med_model: base model after pre-training",
        stops=BASE_STOPS,
        evaluation=evaluate(model, tokenizer, Heldout(texts=heldout), chat=False),
        warnings=warnings,
        metrics={
            "training_seconds": round(seconds, 1),
            "training_tokens": len(blocks.tokens),
            "training_documents": len(texts),
        },
    )


if __name__ == "__main__":
    run(main)
