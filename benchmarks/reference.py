"""Train and generate with stock code, the reference: `Trainer` as in tutorials, TRL's trainers, `model.generate`."""

import copy
import itertools
import random
import time

import torch
from datasets import Dataset
from tokenizers import ByteLevelBPETokenizer
from transformers import DataCollatorForLanguageModeling, GenerationConfig, Trainer, TrainingArguments
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from engines import (
    QUIET,
    REFERENCE_BATCH,
    Clock,
    Engine,
    Throughput,
    peak_megabytes,
    run_timed,
    token_throughput,
)
from inputs import SEED
from med_model.data.blocks import BLOCK_TOKENS, PackedBlocks
from med_model.data.prompt import END_OF_TEXT
from med_model.model.gpt2 import new_model


class Reference(Engine):
    RECIPE = {"per_device_train_batch_size": REFERENCE_BATCH, "learning_rate": 5e-4, "seed": SEED, **QUIET}
    TRL = {"max_length": BLOCK_TOKENS, "seed": SEED, **QUIET}  # max_length: the model has 512 positions

    def pretraining_trainer(self, steps: int) -> Trainer:
        """Return a Trainer with AdamW and a model with dropout 0.1. The learning rate falls linearly.

        Documents are cut or padded to 512 tokens.
        """
        shuffled = random.Random(SEED).sample(self.inputs.texts, k=len(self.inputs.texts))
        # Each text begins with <|endoftext|>, because each held-out text is scored after this token.
        texts = [END_OF_TEXT + text for text in itertools.islice(itertools.cycle(shuffled), steps * REFERENCE_BATCH)]
        encoded = self.tokenizer(texts, truncation=True, padding="max_length", max_length=BLOCK_TOKENS)
        return Trainer(
            new_model(self.tokenizer, dropout=0.1),
            TrainingArguments(
                output_dir=self.scratch(),
                max_steps=steps,
                include_num_input_tokens_seen="non_padding",
                **self.RECIPE,
            ),
            train_dataset=Dataset.from_dict({key: encoded[key] for key in ("input_ids", "attention_mask")}),
            data_collator=DataCollatorForLanguageModeling(self.tokenizer, mlm=False),
            processing_class=self.tokenizer,
        )

    def pretrain_mixed(self, steps: int) -> Throughput:
        return token_throughput(self.pretraining_trainer(steps))

    def pretrain_full_blocks(self, steps: int) -> Throughput:
        trainer = Trainer(
            new_model(self.tokenizer, dropout=0.0),
            TrainingArguments(
                output_dir=self.scratch(), max_steps=steps, include_num_input_tokens_seen="all", **self.RECIPE
            ),
            train_dataset=PackedBlocks(self.tokenizer, self.inputs.texts[: 8 * steps * REFERENCE_BATCH]),
        )
        return token_throughput(trainer)

    def time_to_loss(self, steps: int) -> list[tuple[float, float]]:
        return run_timed(self.pretraining_trainer(steps), Clock(self.heldout_bits_per_byte)).curve

    def sft(self, rows: int, bf16: bool) -> Throughput:
        trainer = SFTTrainer(
            model=str(self.inputs.base_model),
            args=SFTConfig(output_dir=self.scratch(), num_train_epochs=1, bf16=bf16, **self.TRL),
            train_dataset=Dataset.from_dict({"messages": self.inputs.conversations[:rows]}),
            processing_class=self.tokenizer,
        )
        return Throughput(len(self.inputs.conversations[:rows]), run_timed(trainer).seconds)

    def dpo(self, pairs: int, bf16: bool) -> Throughput:
        """Train one epoch. All epochs take the same time: stock TRL runs the reference model of DPO in each epoch."""
        rows = [
            {
                "prompt": pair.messages,
                "chosen": [{"role": "assistant", "content": pair.chosen}],
                "rejected": [{"role": "assistant", "content": pair.rejected}],
            }
            for pair in self.inputs.pairs[:pairs]
        ]
        trainer = DPOTrainer(
            model=str(self.inputs.base_model),
            args=DPOConfig(output_dir=self.scratch(), num_train_epochs=1, bf16=bf16, **self.TRL),
            train_dataset=Dataset.from_list(rows),
            processing_class=self.tokenizer,
        )
        return Throughput(len(rows), run_timed(trainer).seconds)

    def _generated(self, prompts: int, settings: GenerationConfig) -> tuple[list[list[int]], float]:
        """Return the token ids of each answer, and the seconds for all answers together, without loading the model."""
        model, answers = self.model, []
        start = time.perf_counter()
        for prompt in self.prompts[:prompts]:
            ids = torch.tensor([prompt])
            output = model.generate(
                ids, attention_mask=torch.ones_like(ids), generation_config=copy.deepcopy(settings)
            )
            answers.append(output[0, len(prompt) :].tolist())
        return answers, time.perf_counter() - start

    def greedy_ids(self, prompts: int, new_tokens: int) -> list[list[int]]:
        return self._generated(prompts, self.settings(False, new_tokens))[0]

    def generate(self, prompts: int, new_tokens: int) -> Throughput:
        answers, seconds = self._generated(prompts, self.settings(True, new_tokens))
        return Throughput(sum(map(len, answers)), seconds)

    def generate_batch(self, prompts: int, new_tokens: int) -> Throughput:
        """Answer the prompts one after the other. Only the project's own `generate_batch` answers them in batches."""
        answers, seconds = self._generated(prompts, self.settings(False, new_tokens))
        return Throughput(len(answers), seconds)

    def tokenizer_training(self, lines: list[str], vocab_size: int) -> tuple[float, float | None]:
        """Train the stock tokenizer. Return the seconds and the rise of the memory in MB (None if not on Linux)."""
        train = ByteLevelBPETokenizer().train_from_iterator
        start = time.perf_counter()
        megabytes = peak_megabytes(lambda: train(lines, vocab_size=vocab_size, show_progress=False))
        return time.perf_counter() - start, megabytes
