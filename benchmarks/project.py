"""Train and generate with the code of this project. The trainings use the training scripts' classes and defaults."""

import importlib.util
import statistics
import sys
import time
from types import ModuleType

import torch
from transformers import AutoModelForCausalLM, Trainer

from engines import QUIET, Clock, Engine, Throughput, run_timed, token_throughput
from inputs import SEED, Inputs
from med_model import paths
from med_model.allocator import keep_freed_memory
from med_model.data.blocks import BLOCK_TOKENS, PackedBlocks
from med_model.generation.sampling import generate_answers, generate_ids
from med_model.model.directory import load_model
from med_model.model.gpt2 import new_model, start_at_token_frequencies
from med_model.model.head import CHUNK_TOKENS
from med_model.training.health import HealthLines
from med_model.training.muon import optimizers_for
from med_model.training.reference import reference_scores
from med_model.training.views import RowViews, ViewArguments

QUIET_TRAINING = {**QUIET, "eval_strategy": "no", "load_best_model_at_end": False}


def load_script(script: str) -> ModuleType:
    """Import a training script by its path, because the stage folders are not packages."""
    name = script.rpartition("/")[2].removesuffix(".py")
    spec = importlib.util.spec_from_file_location(name, paths.ROOT / script)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # a dataclass needs its module in sys.modules
    spec.loader.exec_module(module)
    return module


class Project(Engine):
    def __init__(self, inputs: Inputs):
        keep_freed_memory()
        super().__init__(inputs)
        self.pretraining = load_script("pre_training/py/run_pretraining.py")
        self.sft_script, self.dpo_script = load_script("sft/py/sft_train.py"), load_script("dpo/py/dpo_train.py")
        self.blocks = PackedBlocks(self.tokenizer, inputs.texts)

    def pretraining_trainer(self, steps: int, bf16: bool | None = None) -> Trainer:
        training = self.pretraining.PretrainingArguments(
            output_dir=self.scratch(), max_steps=steps, seed=SEED, bf16=bf16, **QUIET_TRAINING
        )
        model = new_model(self.tokenizer, dropout=0.0)  # the model reads the text only once, so it needs no dropout
        start = time.perf_counter()
        start_at_token_frequencies(model, self.blocks.tokens)
        self.start_seconds = time.perf_counter() - start
        return self.pretraining.PretrainingTrainer(
            model=model,
            args=training,
            train_dataset=self.blocks,
            processing_class=self.tokenizer,
            optimizers=optimizers_for(model, training),
        )

    def pretrain(self, steps: int, bf16: bool | None = None) -> Throughput:
        return token_throughput(self.pretraining_trainer(steps, bf16))

    pretrain_mixed = pretrain_full_blocks = pretrain  # one method for both measures: our blocks are always full

    def time_to_loss(self, steps: int, every: int, target: float) -> list[tuple[float, float]]:
        """Train until an evaluation gives `target` held-out bits per byte or less, for at most `steps` steps.

        Return (seconds, bits per byte) per evaluation. The seconds include those of `start_at_token_frequencies`.
        """
        clock = run_timed(self.pretraining_trainer(steps), Clock(self.heldout_bits_per_byte, every, target))
        return [(seconds + self.start_seconds, figure) for seconds, figure in clock.curve]

    def arithmetic(self) -> float:
        """Return the number of floating-point operations (FLOP) per token in a training step.

        This is 6 per parameter, without the parameters of the position embeddings. The attention adds
        12 x BLOCK_TOKENS x width x layers, as if each token attended to all tokens of its block.
        """
        model = new_model(self.tokenizer, dropout=0.0)
        multiplying = model.num_parameters() - model.transformer.wpe.weight.numel()
        return 6 * multiplying + 3 * 4 * BLOCK_TOKENS * model.config.n_embd * model.config.n_layer

    def roof(self, repeats: int) -> Throughput:
        """Measure the time of only the matrix products in a pre-training step, in float32.

        All memory is allocated before the measurement. Return the tokens of one step, and the median seconds of
        `repeats` runs after a warm-up run.
        """
        batch = self.pretraining.PretrainingArguments(output_dir=self.scratch(), **QUIET_TRAINING).train_batch_size
        config = new_model(self.tokenizer, dropout=0.0).config
        tokens, width, heads, layers = batch * BLOCK_TOKENS, config.n_embd, config.n_head, config.n_layer
        head_chunk = min(tokens, CHUNK_TOKENS["cpu"])
        layer_shapes = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]
        shapes = [(tokens, *shape) for shape in layer_shapes for _ in range(layers)]
        shapes += [(head_chunk, width, len(self.tokenizer))] * (tokens // head_chunk)
        products = []
        operands: dict[tuple, list] = {}  # products of the same shape use the same tensors, unlike in training
        for m, k, n in shapes:
            if (m, k, n) not in operands:
                x, weight, y = torch.randn(m, k), torch.randn(k, n), torch.randn(m, n)
                operands[m, k, n] = [
                    (x, weight, torch.empty(m, n)),  # forward
                    (y, weight.T, torch.empty(m, k)),  # gradient of the input
                    (x.T, y, torch.empty(k, n)),  # gradient of the weight
                ]
            products += operands[m, k, n]
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
        return Throughput(tokens, statistics.median(seconds[1:]))

    def sft(self, rows: int) -> Throughput:
        """Train one epoch. The KL regularization and the views of the rows are off, because stock TRL has none."""
        training = self.sft_script.SFTArguments(
            output_dir=self.scratch(), num_train_epochs=1, seed=SEED, **QUIET_TRAINING
        )
        conversations = self.inputs.conversations[:rows]
        examples = self.sft_script.encode(self.tokenizer, conversations, training.max_length, "SFT", HealthLines())
        unchanged = ViewArguments(question_noise=0, answer_tokens=0, later_turns=0)
        model, _ = load_model(self.inputs.base_model, training.dropout)
        trainer = self.sft_script.AnswerTrainer(
            RowViews(self.tokenizer, examples, unchanged, training.max_length, SEED),
            model=model,
            args=training,
            processing_class=self.tokenizer,
            optimizers=optimizers_for(model, training),
        )
        return Throughput(len(examples), run_timed(trainer).seconds)

    def dpo(self, pairs: int) -> tuple[Throughput, Throughput]:
        """Train one epoch. The KL regularization and dropout are off, as in stock TRL.

        Return two throughputs of this epoch. The first one includes the time for the log-probabilities of the
        reference model, as in a first epoch. The second one does not, as in a later epoch.
        """
        options = {"num_train_epochs": 1, "disable_dropout": True, "seed": SEED}
        training = self.dpo_script.DPOArguments(output_dir=self.scratch(), **options, **QUIET_TRAINING)
        encoded = self.dpo_script.encode(
            self.tokenizer, self.inputs.pairs[:pairs], training.max_length, "DPO", HealthLines()
        )
        model, _ = load_model(self.inputs.base_model)
        start = time.perf_counter()
        reference = reference_scores(model, encoded, training)
        reference_seconds = time.perf_counter() - start
        trainer = self.dpo_script.PreferenceTrainer(
            model=model,
            args=training,
            train_dataset=self.dpo_script.dataset_of(encoded, reference),
            processing_class=self.tokenizer,
        )
        seconds = run_timed(trainer).seconds
        return Throughput(len(encoded), seconds + reference_seconds), Throughput(len(encoded), seconds)

    def generate(self, prompts: int, new_tokens: int) -> Throughput:
        model, settings, tokens = self.model, self.settings(True, new_tokens), 0
        start = time.perf_counter()
        for prompt in self.prompts[:prompts]:
            tokens += sum(1 for _ in generate_ids(model, [prompt], settings))
        return Throughput(tokens, time.perf_counter() - start)

    def greedy_ids(self, prompts: int, new_tokens: int) -> list[list[int]]:
        settings = self.settings(False, new_tokens)
        return [
            [int(ids) for ids in generate_ids(self.model, [prompt], settings)] for prompt in self.prompts[:prompts]
        ]

    def first_token(self) -> float:
        """Return the seconds that a newly loaded model needs for the first token of its first answer."""
        model = AutoModelForCausalLM.from_pretrained(self.inputs.base_model).eval()
        start = time.perf_counter()
        next(generate_ids(model, [self.prompts[0]], self.settings(True, 8)))
        return time.perf_counter() - start

    def generate_batch(self, prompts: int, new_tokens: int) -> Throughput:
        model, settings = self.model, self.settings(False, new_tokens)
        start = time.perf_counter()
        answers = len(generate_answers(model, self.tokenizer, self.prompts[:prompts], settings))
        return Throughput(answers, time.perf_counter() - start)
