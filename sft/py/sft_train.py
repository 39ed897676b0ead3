"""Supervised fine-tuning: teach the base model to answer.

Reads  base_model__after_pretraining/ and question-answer rows or conversations (default: the bundled sft/dataset/)
Writes post_model__after_sft/ (checkpoints in sft/py/med_sft_checkpoints/)

    python sft/py/sft_train.py
    python sft/py/sft_train.py --data my_answers.jsonl --num_train_epochs 2
    python sft/py/sft_train.py --resume
"""

import random
from dataclasses import dataclass, field

import torch
from datasets import Dataset
from transformers import GenerationConfig, PreTrainedTokenizerBase, set_seed
from trl import SFTConfig, SFTTrainer

from med_model import paths
from med_model.command import UserError, parse, run
from med_model.data import Message, conversation_of, read_all
from med_model.evaluate import answer_measures, answer_questions
from med_model.loss import use_chunked_head
from med_model.model import load_model, load_tokenizer, use_bf16
from med_model.prompt import END_OF_TEXT, IM_END, Example, training_example
from med_model.training import StageArguments, check_output, finish, train

HELDOUT_SHARE, MAX_HELDOUT_ROWS = 0.02, 500  # of the user's own rows, where no --eval_data is given
MEASURED_QUESTIONS = 100  # answered at the end, to see whether the model stops and repeats itself


@dataclass
class DataArguments(StageArguments):
    input_model: str = field(default=str(paths.BASE_MODEL), metadata={"help": "Directory of the base model."})
    output_model: str = field(default=str(paths.SFT_MODEL), metadata={"help": "Directory to publish the model in."})


@dataclass
class SFTArguments(SFTConfig):
    """TRL's SFT arguments with the defaults of this stage."""

    output_dir: str | None = field(default=str(paths.SFT_CHECKPOINTS), metadata={"help": "Where checkpoints are written."})
    num_train_epochs: float = field(default=6.0, metadata={"help": "Passes over the data."})
    per_device_train_batch_size: int = field(default=16, metadata={"help": "Rows per step and device."})
    per_device_eval_batch_size: int = field(default=32, metadata={"help": "Rows per evaluation step."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule after the warm-up."})
    warmup_steps: float = field(default=0.05, metadata={"help": "Steps of warm-up; below 1: share of all steps."})
    max_length: int | None = field(default=512, metadata={"help": "Longest conversation in tokens; the model has 512 positions."})
    train_sampling_strategy: str = field(default="group_by_length", metadata={"help": "Rows of like length share a batch: little padding."})
    logging_steps: float = field(default=10, metadata={"help": "Log every so many steps."})
    eval_strategy: str = field(default="steps", metadata={"help": "When the held-out loss is measured."})
    eval_steps: float | None = field(default=0.2, metadata={"help": "Steps between evaluations; below 1: share of all steps."})
    save_strategy: str = field(default="steps", metadata={"help": "When checkpoints are saved."})
    save_steps: float = field(default=0.2, metadata={"help": "Steps between checkpoints; below 1: share of all steps."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept."})
    report_to: str = field(default="none", metadata={"help": "`tensorboard` writes logs to --output_dir too."})
    include_num_input_tokens_seen: str = field(default="non_padding", metadata={"help": "Count tokens for the speed shown."})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Saves memory a model this small does not need."})
    bf16: bool | None = field(default=None, metadata={"help": "bfloat16; default: where the GPU has it."})
    dataloader_pin_memory: bool = field(default=torch.cuda.is_available(), metadata={"help": "Pinned memory; for CUDA only."})

    def __post_init__(self):
        self.bf16 = use_bf16() if self.bf16 is None else self.bf16
        super().__post_init__()


def read_conversations(stage: StageArguments, seed: int) -> tuple[list[list[Message]], list[list[Message]]]:
    """(training conversations, held-out ones); without --eval_data a part of the user's own rows is split off."""
    rows = read_all(stage.data or [paths.SFT_DATA], conversation_of)
    if stage.eval_data or not stage.data:
        return rows, read_all(stage.eval_data or [paths.HELDOUT_QUESTIONS], conversation_of)
    if len(rows) < 2:
        raise UserError("只有一条数据/one row cannot be split: give more --data, or a held-out file with --eval_data")
    random.Random(seed).shuffle(rows)
    heldout = min(MAX_HELDOUT_ROWS, max(1, round(len(rows) * HELDOUT_SHARE)))
    return rows[heldout:], rows[:heldout]


def encode(tokenizer: PreTrainedTokenizerBase, rows: list[list[Message]], max_length: int, name: str) -> Dataset:
    """The rows as `input_ids` and `labels`; says how many had to be shortened or left out."""
    examples = [training_example(tokenizer, messages, max_length) for messages in rows]
    kept = [example for example in examples if example is not None]
    if not kept:
        raise UserError(f"{name}: 没有一条放得下/no row leaves room for an answer in --max_length {max_length}")
    print(f"{name}: {len(kept):,} 条/rows, {sum(len(e.input_ids) for e in kept):,} 词元/tokens, ", end="")
    print(f"其中答案/of them answers {sum(label != -100 for e in kept for label in e.labels):,}")
    if shortened := sum(example.shortened for example in kept):
        print(f"  {shortened:,} 条太长，从句末截断并保留停止符/too long: cut at a sentence end, the stop kept ({shortened / len(kept):.1%})")
    if dropped := len(examples) - len(kept):
        print(f"  {dropped:,} 条问题太长，已舍去/left out: the question alone fills --max_length {max_length}")
    return Dataset.from_dict({key: [getattr(example, key) for example in kept] for key in Example._fields[:2]})


def main() -> None:
    stage, training = parse(DataArguments, SFTArguments, description=__doc__)
    checkpoint = check_output(stage, training)
    rows, heldout = read_conversations(stage, training.seed)
    tokenizer = load_tokenizer(stage.input_model)
    train_dataset = encode(tokenizer, rows, training.max_length, "训练/training")
    eval_dataset = encode(tokenizer, heldout, training.max_length, "验证/held-out")

    set_seed(training.seed)
    model, _ = load_model(stage.input_model)
    if training.max_length > model.config.n_positions:
        raise UserError(f"--max_length {training.max_length}: the model has {model.config.n_positions} positions")
    training.dataset_kwargs = {"skip_prepare_dataset": True}  # the rows are rendered already, by med_model.prompt
    trainer = SFTTrainer(
        model=model, args=training, train_dataset=train_dataset, eval_dataset=eval_dataset, processing_class=tokenizer
    )
    use_chunked_head(model)
    seconds = train(trainer, stage, checkpoint)

    model.eval()
    questions = [(row[0]["content"], []) for row in heldout if len(row) == 2 and row[0]["role"] == "user"]
    greedy = GenerationConfig(
        max_new_tokens=200,
        eos_token_id=tokenizer.convert_tokens_to_ids([IM_END, END_OF_TEXT]),
        pad_token_id=tokenizer.pad_token_id,
    )
    answered, _ = answer_questions(model, tokenizer, questions[:MEASURED_QUESTIONS], greedy, chat=True)
    finish(
        trainer,
        tokenizer,
        stage,
        title="Med_model: model after SFT",
        stops=[IM_END, END_OF_TEXT],
        metrics={
            "heldout_loss": trainer.evaluate()["eval_loss"],
            **{f"greedy_{name}": value for name, value in answer_measures(answered).items()},
            "training_seconds": round(seconds, 1),
            "training_rows": len(train_dataset),
        },
    )


if __name__ == "__main__":
    run(main)
