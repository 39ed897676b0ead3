"""The project's engine: what its training scripts run with their defaults, imported from them."""

import statistics
import time

import torch
from engines import BLOCK_TOKENS, QUIET, Clock, Engine, Measured, pretrained, timed
from inputs import SEED, Inputs, stage
from transformers import AutoModelForCausalLM, Trainer

from med_model.allocator import keep_freed_memory
from med_model.data.blocks import PackedBlocks
from med_model.generation.sampling import generate_answers, generate_ids
from med_model.model.head import CHUNK_TOKENS
from med_model.training.health import Warnings

UNWATCHED = {**QUIET, "eval_strategy": "no", "load_best_model_at_end": False}


class Project(Engine):
    def __init__(self, inputs: Inputs):
        keep_freed_memory()
        super().__init__(inputs)
        self.sft_script, self.dpo_script = stage("sft/py/sft_train.py"), stage("dpo/py/dpo_train.py")
        self.blocks = PackedBlocks(self.tokenizer, inputs.texts)

    def pretraining_trainer(self, steps: int, bf16: bool | None = None) -> Trainer:
        training = self.pretraining.PretrainingArguments(
            output_dir=self.scratch(), max_steps=steps, seed=SEED, bf16=bf16, **UNWATCHED
        )
        model = self.pretraining.new_model(self.tokenizer, dropout=0.0)  # as for text that is read once
        start = time.perf_counter()
        self.pretraining.start_at_token_frequencies(model, self.blocks.tokens)
        self.start_seconds = time.perf_counter() - start
        return self.pretraining.new_trainer(model, self.tokenizer, training, self.blocks)

    def pretrain(self, steps: int, bf16: bool | None = None) -> Measured:
        return pretrained(self.pretraining_trainer(steps, bf16))

    pretrain_mixed = pretrain_full_blocks = pretrain  # packing makes every text full blocks

    def time_to_loss(self, steps: int, every: int, target: float) -> list[tuple[float, float]]:
        """The start at the tokens' frequencies counts as time too."""
        clock = timed(self.pretraining_trainer(steps), Clock(self.heldout_bits_per_byte, every, target))
        return [(seconds + self.start_seconds, figure) for seconds, figure in clock.curve]

    def arithmetic(self) -> float:
        """FLOP of a training step per token: 6 for each parameter that multiplies, and attention over whole rows."""
        model = self.pretraining.new_model(self.tokenizer, 0.0)
        multiplying = model.num_parameters() - model.transformer.wpe.weight.numel()
        return 6 * multiplying + 3 * 4 * BLOCK_TOKENS * model.config.n_embd * model.config.n_layer

    def roof(self, repeats: int) -> Measured:
        """The matrix products of one step alone, in float32, on memory that is there already."""
        batch = self.pretraining.PretrainingArguments(output_dir=self.scratch(), **UNWATCHED).train_batch_size
        config = self.pretraining.new_model(self.tokenizer, 0.0).config
        tokens, width, heads, layers = batch * BLOCK_TOKENS, config.n_embd, config.n_head, config.n_layer
        head_chunk = min(tokens, CHUNK_TOKENS["cpu"])
        shapes = [(tokens, width, 3 * width), (tokens, width, width), (tokens, width, 4 * width)]
        shapes += [(tokens, 4 * width, width)]
        shapes = [shape for shape in shapes for _ in range(layers)]
        shapes += [(head_chunk, width, len(self.tokenizer))] * (tokens // head_chunk)
        products = []
        made: dict[tuple, list] = {}  # a shape's memory serves all its layers, as in a training step it would not
        for m, k, n in shapes:
            if (m, k, n) not in made:
                x, weight, y = torch.randn(m, k), torch.randn(k, n), torch.randn(m, n)
                made[m, k, n] = [
                    (x, weight, torch.empty(m, n)),  # forward
                    (y, weight.T, torch.empty(m, k)),  # gradient of the input
                    (x.T, y, torch.empty(k, n)),  # gradient of the weight
                ]
            products += made[m, k, n]
        rows, head_width = batch * heads, width // heads
        q, scores = torch.randn(rows, BLOCK_TOKENS, head_width), torch.randn(rows, BLOCK_TOKENS, BLOCK_TOKENS)
        like_scores, like_q = torch.empty_like(scores), torch.empty_like(q)
        batched = [(q, q.mT, like_scores), (scores, q, like_q)] * (3 * layers)
        seconds = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            for a, b, out in products:
                torch.mm(a, b, out=out)
            for a, b, out in batched:
                torch.bmm(a, b, out=out)
            seconds.append(time.perf_counter() - start)
        return Measured(tokens, statistics.median(seconds[1:]))

    def sft(self, rows: int) -> Measured:
        training = self.sft_script.SFTArguments(output_dir=self.scratch(), num_train_epochs=1, seed=SEED, **UNWATCHED)
        dataset = self.sft_script.encode(
            self.tokenizer, self.inputs.conversations[:rows], training.max_length, "SFT", Warnings()
        )
        model, _ = self.sft_script.load_model(self.inputs.base_model, training.dropout)
        trainer = self.sft_script.new_trainer(model, self.tokenizer, training, dataset)
        return Measured(len(dataset), timed(trainer).seconds)

    def dpo(self, pairs: int) -> tuple[Measured, Measured]:
        """(first epoch with the reference pass, later epochs)."""
        options = {"num_train_epochs": 1, "disable_dropout": True, "seed": SEED}  # as stock TRL
        training = self.dpo_script.DPOArguments(output_dir=self.scratch(), **options, **UNWATCHED)
        encoded = self.dpo_script.encode(
            self.tokenizer, self.inputs.pairs[:pairs], training.max_length, "DPO", Warnings()
        )
        model, _ = self.dpo_script.load_model(self.inputs.base_model)
        start = time.perf_counter()
        reference = self.dpo_script.reference_scores(model, encoded, training)
        reference_seconds = time.perf_counter() - start
        dataset = self.dpo_script.dataset_of(encoded, reference)
        trainer = self.dpo_script.new_trainer(model, self.tokenizer, training, dataset)
        seconds = timed(trainer).seconds
        return Measured(len(encoded), seconds + reference_seconds), Measured(len(encoded), seconds)

    def generate(self, prompts: int, new_tokens: int) -> Measured:
        model, settings, made = self.model, self.settings(True, new_tokens), 0
        start = time.perf_counter()
        for prompt in self.prompts[:prompts]:
            made += sum(1 for _ in generate_ids(model, [prompt], settings))
        return Measured(made, time.perf_counter() - start)

    def greedy_ids(self, prompts: int, new_tokens: int) -> list[list[int]]:
        settings = self.settings(False, new_tokens)
        return [
            [int(ids) for ids in generate_ids(self.model, [prompt], settings)] for prompt in self.prompts[:prompts]
        ]

    def first_token(self) -> float:
        """Seconds from a loaded model to the first token of its first answer."""
        model = AutoModelForCausalLM.from_pretrained(self.inputs.base_model).eval()
        start = time.perf_counter()
        next(generate_ids(model, [self.prompts[0]], self.settings(True, 8)))
        return time.perf_counter() - start

    def generate_batch(self, prompts: int, new_tokens: int) -> Measured:
        model, settings = self.model, self.settings(False, new_tokens)
        start = time.perf_counter()
        made = len(generate_answers(model, self.tokenizer, self.prompts[:prompts], settings))
        return Measured(made, time.perf_counter() - start)
