"""Pre-train a GPT-2 (8.41M parameters with a 20,000-token vocabulary) from zero on medical text.

Reads  pre_training/py/med_tokenizer/ and documents with a `text` field (default: the bundled pre_training/dataset/)
Writes base_model__after_pretraining/ (checkpoints in pre_training/py/med_model_checkpoints/)

    python pre_training/py/run_pretraining.py
    python pre_training/py/run_pretraining.py --data "my_texts/*.jsonl" --num_train_epochs 1
    python pre_training/py/run_pretraining.py --resume
"""

import random
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase, Trainer, TrainingArguments, set_seed

from med_model import paths
from med_model.command import UserError, parse, run
from med_model.data import document_of, read_all
from med_model.evaluate import bits_per_byte
from med_model.loss import use_chunked_head
from med_model.model import load_tokenizer, use_bf16
from med_model.prompt import END_OF_TEXT, encode_text
from med_model.training import StageArguments, check_output, finish, train

BLOCK_TOKENS = 512  # the model's positions
HELDOUT_SHARE, MAX_HELDOUT_DOCUMENTS = 0.02, 500  # of the user's own documents, where no --eval_data is given
ENCODE_BATCH = 1000  # documents; enough to keep the tokenizer's threads busy


@dataclass
class DataArguments(StageArguments):
    input_model: str = field(default=str(paths.TOKENIZER), metadata={"help": "Directory of the tokenizer."})
    output_model: str = field(default=str(paths.BASE_MODEL), metadata={"help": "Directory to publish the model in."})


@dataclass
class PretrainingArguments(TrainingArguments):
    """Hugging Face's training arguments with the defaults of this stage."""

    output_dir: str | None = field(default=str(paths.PRETRAINING_CHECKPOINTS), metadata={"help": "Where checkpoints are written."})
    num_train_epochs: float = field(default=40.0, metadata={"help": "Passes over the data: many for the small bundled set, 1 for a large one."})
    per_device_train_batch_size: int = field(default=8, metadata={"help": "Blocks of 512 tokens per step and device."})
    per_device_eval_batch_size: int = field(default=8, metadata={"help": "Blocks of 512 tokens per evaluation step."})
    learning_rate: float = field(default=2e-3, metadata={"help": "Peak learning rate; a model this small takes a large one."})
    weight_decay: float = field(default=0.1, metadata={"help": "AdamW's weight decay."})
    adam_beta2: float = field(default=0.95, metadata={"help": "AdamW's beta2; 0.95 as in GPT-3 (Brown et al. 2020, appendix B)."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule after the warm-up."})
    warmup_steps: float = field(default=0.05, metadata={"help": "Steps of warm-up; below 1: share of all steps."})
    logging_steps: float = field(default=10, metadata={"help": "Log every so many steps."})
    eval_strategy: str = field(default="steps", metadata={"help": "When the held-out loss is measured."})
    eval_steps: float | None = field(default=0.1, metadata={"help": "Steps between evaluations; below 1: share of all steps."})
    save_strategy: str = field(default="steps", metadata={"help": "When checkpoints are saved."})
    save_steps: float = field(default=0.1, metadata={"help": "Steps between checkpoints; below 1: share of all steps."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept."})
    report_to: str = field(default="none", metadata={"help": "`tensorboard` writes logs to --output_dir too."})
    include_num_input_tokens_seen: str = field(default="all", metadata={"help": "Count tokens for the speed shown."})
    bf16: bool | None = field(default=None, metadata={"help": "bfloat16; default: where the GPU has it."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout of the model; worth 0.1 where small data is seen many times."})
    dataloader_pin_memory: bool = field(default=torch.cuda.is_available(), metadata={"help": "Pinned memory; for CUDA only."})

    def __post_init__(self):
        self.bf16 = use_bf16() if self.bf16 is None else self.bf16
        super().__post_init__()


class PackedBlocks(Dataset):
    """Documents laid end to end, `<|endoftext|>` after each, and cut into full blocks: no padding, nothing cut away.

    The last block reaches back over tokens of the one before it, so that short data loses no tail.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, texts: list[str]):
        end = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
        dtype = np.uint16 if len(tokenizer) <= 2**16 else np.int32
        parts = [np.array([end], dtype)]
        for start in range(0, len(texts), ENCODE_BATCH):
            parts += [np.array([*ids, end], dtype) for ids in encode_text(tokenizer, texts[start : start + ENCODE_BATCH])]
        self.tokens = np.concatenate(parts)
        if len(self.tokens) < BLOCK_TOKENS:
            raise UserError(f"文本太少/{len(texts)} documents give {len(self.tokens)} tokens, one block needs {BLOCK_TOKENS}: give more --data")
        self.starts = [*range(0, len(self.tokens) - BLOCK_TOKENS, BLOCK_TOKENS), len(self.tokens) - BLOCK_TOKENS]

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        block = torch.from_numpy(self.tokens[self.starts[i] : self.starts[i] + BLOCK_TOKENS].astype(np.int64))
        return {"input_ids": block, "labels": block}


def read_texts(stage: StageArguments, seed: int) -> tuple[list[str], list[str]]:
    """(training texts, held-out texts); without --eval_data a part of the user's own documents is split off."""
    texts = read_all(stage.data or [paths.PRETRAINING_DATA], document_of)
    if stage.eval_data or not stage.data:
        return texts, read_all(stage.eval_data or [paths.HELDOUT_TEXT], document_of)
    if len(texts) < 2:
        raise UserError("只有一篇文档/one document cannot be split: give more --data, or a held-out file with --eval_data")
    random.Random(seed).shuffle(texts)
    heldout = min(MAX_HELDOUT_DOCUMENTS, max(1, round(len(texts) * HELDOUT_SHARE)))
    return texts[heldout:], texts[:heldout]


def new_model(tokenizer: PreTrainedTokenizerBase, dropout: float) -> GPT2LMHeadModel:
    """The project's GPT-2 with random weights: 8,410,624 parameters at a vocabulary of 20,000."""
    end = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=BLOCK_TOKENS,
        n_embd=256,
        n_layer=4,
        n_head=4,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    return GPT2LMHeadModel(config)


def print_parts(model: GPT2LMHeadModel) -> None:
    """The table of where the parameters are."""
    body = model.transformer
    parts = {
        "词向量，与输出层共用/token embeddings, tied to the head": body.wte,
        "位置向量/position embeddings": body.wpe,
        f"{len(body.h)} 层：注意力/attention": [block.attn for block in body.h],
        f"{len(body.h)} 层：前馈/feed-forward": [block.mlp for block in body.h],
        "归一化/layer norms": [body.ln_f, *[norm for block in body.h for norm in (block.ln_1, block.ln_2)]],
    }
    print("参数/parameters")
    for name, modules in parts.items():
        modules = modules if isinstance(modules, list) else [modules]
        print(f"  {sum(p.numel() for module in modules for p in module.parameters()):>10,}  {name}")
    print(f"  {model.num_parameters():>10,}  合计/total")


def main() -> None:
    stage, training = parse(DataArguments, PretrainingArguments, description=__doc__)
    checkpoint = check_output(stage, training)
    tokenizer = load_tokenizer(stage.input_model)
    texts, heldout = read_texts(stage, training.seed)
    blocks, heldout_blocks = PackedBlocks(tokenizer, texts), PackedBlocks(tokenizer, heldout)
    print(f"训练/training: {len(texts):,} 篇/documents, {len(blocks.tokens):,} 词元/tokens, {len(blocks):,} 块/blocks of {BLOCK_TOKENS}")
    print(f"验证/held-out: {len(heldout):,} 篇/documents, {len(heldout_blocks.tokens):,} 词元/tokens")

    set_seed(training.seed)
    model = new_model(tokenizer, training.dropout)
    print_parts(model)
    use_chunked_head(model)
    trainer = Trainer(
        model=model, args=training, train_dataset=blocks, eval_dataset=heldout_blocks, processing_class=tokenizer
    )
    seconds = train(trainer, stage, checkpoint)

    model.eval()
    finish(
        trainer,
        tokenizer,
        stage,
        title="Med_model: base model after pre-training",
        stops=[END_OF_TEXT],
        metrics={
            "heldout_bits_per_byte": bits_per_byte(model, tokenizer, heldout),
            "training_seconds": round(seconds, 1),
            "training_tokens": len(blocks.tokens),
            "training_documents": len(texts),
        },
    )


if __name__ == "__main__":
    run(main)
