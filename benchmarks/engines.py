"""What is measured: the project's own engine and the references, with one method for each section of the benchmark.

Each runs in a worker process of its own, since the project's engine also changes how its process keeps memory.
"""

import copy
import functools
import importlib.util
import itertools
import random
import re
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    GenerationConfig,
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from med_model.data import Message
from med_model.evaluate import bits_per_byte, question_ids
from med_model.generate import generate_answers, generate_ids
from med_model.loss import CHUNK_TOKENS, use_chunked_head
from med_model.memory import keep_freed_memory
from med_model.model import sampling_defaults
from med_model.optimizer import optimizers_for
from med_model.paths import ROOT
from med_model.prompt import CHAT_STOPS

REFERENCE_BATCH, BLOCK_TOKENS = 4, 512
SEED = 42
QUIET = {"report_to": "none", "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True}


@dataclass
class Inputs:
    """The same for every engine."""

    folder: Path  # for what engines write
    tokenizer: Path
    base_model: Path  # without training: speed does not depend on what the weights say
    texts: list[str]
    heldout: list[str]
    conversations: list[list[Message]]
    pairs: list[tuple[list[Message], str, str]]


@dataclass
class Measured:
    """What one round did: so many units (tokens, rows, pairs, prompts) in so many seconds."""

    units: float
    seconds: float

    @property
    def rate(self) -> float:
        return self.units / self.seconds


_engine = None  # of this worker process


def start_worker(engine: type, inputs: Inputs) -> None:
    global _engine
    _engine = engine(inputs)


def call_worker(method: str, arguments: tuple):
    return getattr(_engine, method)(*arguments)


def stage(script: str):
    """A training script of the project as a module."""
    name = Path(script).stem
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / script)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


class Clock(TrainerCallback):
    """Seconds and real tokens of a training loop, evaluation excluded; stops it at a held-out figure if asked to."""

    def __init__(self, evaluate=None, every: int = 0, target: float = float("-inf")):
        self.evaluate, self.every, self.target = evaluate, every, target
        self.curve: list[tuple[float, float]] = []  # (seconds, held-out figure)

    def on_train_begin(self, args, state, control, **kwargs):
        self.excluded, self.begin = 0.0, time.perf_counter()

    def on_step_end(self, args, state, control, model=None, **kwargs):
        now = time.perf_counter()
        self.seconds, self.tokens = now - self.begin - self.excluded, state.num_input_tokens_seen
        last = state.global_step == state.max_steps
        if self.evaluate and (last or (self.every and state.global_step % self.every == 0)):
            model.eval()
            self.curve.append((self.seconds, self.evaluate(model)))
            model.train()
            control.should_training_stop = control.should_training_stop or self.curve[-1][1] <= self.target
            self.excluded += time.perf_counter() - now


def timed(trainer: Trainer, clock: Clock | None = None) -> Clock:
    clock = clock or Clock()
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(clock)
    trainer.train()
    return clock


class Engine:
    """What both sides share: the inputs, and how the held-out figure is taken."""

    def __init__(self, inputs: Inputs):
        set_seed(SEED)
        self.inputs = inputs
        self.tokenizer = AutoTokenizer.from_pretrained(inputs.tokenizer)
        self.pretraining = stage("pre_training/py/run_pretraining.py")
        self.prompts = [question_ids(self.tokenizer, c[:1], 256, chat=True) for c in inputs.conversations[:200]]

    @functools.cached_property
    def model(self) -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(self.inputs.base_model).eval()

    def scratch(self) -> str:
        return tempfile.mkdtemp(dir=self.inputs.folder)

    def heldout_bits_per_byte(self, model) -> float:
        return bits_per_byte(model, self.tokenizer, self.inputs.heldout)

    def settings(self, sample: bool, new_tokens: int) -> GenerationConfig:
        """The chats' settings, or greedy ones; without a stop, so that every side makes as many tokens."""
        settings = sampling_defaults(self.tokenizer, CHAT_STOPS)
        if not sample:
            settings = GenerationConfig(pad_token_id=self.tokenizer.pad_token_id)
        settings.max_new_tokens, settings.eos_token_id, settings.use_cache = new_tokens, -1, True
        return settings

    def peak_memory(self, steps: int) -> float | None:
        """MB that pre-training takes at its peak above what stands once the model is built; None but on Linux."""
        if not sys.platform.startswith("linux"):
            return None
        trainer = self.memory_trainer(steps)
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak, proc(5)
        before = _status_megabytes("VmRSS")
        timed(trainer)
        return _status_megabytes("VmHWM") - before


def _status_megabytes(name: str) -> float:
    return int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1e3


class Project(Engine):
    """The engine of the project: what its training scripts run, with their defaults."""

    def __init__(self, inputs: Inputs):
        keep_freed_memory()
        super().__init__(inputs)
        self.sft_script, self.dpo_script = stage("sft/py/sft_train.py"), stage("dpo/py/dpo_train.py")
        self.blocks = self.pretraining.PackedBlocks(self.tokenizer, inputs.texts)

    def _pretraining_trainer(self, steps: int, **options) -> Trainer:
        training = self.pretraining.PretrainingArguments(
            output_dir=self.scratch(), max_steps=steps, eval_strategy="no", seed=SEED, **QUIET | options
        )
        model = self.pretraining.new_model(self.tokenizer, training.dropout)
        self.pretraining.start_at_token_frequencies(model, self.blocks.tokens)
        use_chunked_head(model)
        optimizers = optimizers_for(model, training)
        return Trainer(model, training, train_dataset=self.blocks, optimizers=optimizers)

    def pretrain(self, steps: int) -> Measured:
        clock = timed(self._pretraining_trainer(steps))
        return Measured(clock.tokens, clock.seconds)

    pretrain_mixed = pretrain_full_blocks = pretrain  # packing makes every text full blocks

    def pretrain_float32(self, steps: int) -> Measured:
        clock = timed(self._pretraining_trainer(steps, bf16=False))
        return Measured(clock.tokens, clock.seconds)

    def memory_trainer(self, steps: int) -> Trainer:
        return self._pretraining_trainer(steps)

    def time_to_loss(self, steps: int, every: int, target: float) -> list[tuple[float, float]]:
        clock = Clock(self.heldout_bits_per_byte, every, target)
        return timed(self._pretraining_trainer(steps), clock).curve

    def arithmetic(self) -> dict[str, float]:
        """FLOP per token of one pre-training step: 6 per parameter that multiplies, and attention over whole rows."""
        model = self.pretraining.new_model(self.tokenizer, 0.0)
        config = model.config
        multiplying = model.num_parameters() - model.transformer.wpe.weight.numel()
        attention = 3 * 4 * BLOCK_TOKENS * config.n_embd * config.n_layer  # QK and AV, forward and twice backward
        return {"parameters": 6 * multiplying, "attention": attention}

    def roof(self, repeats: int) -> Measured:
        """The matrix products of one step alone, in float32, on memory that is there already."""
        batch = self.pretraining.PretrainingArguments(output_dir=self.scratch(), **QUIET).train_batch_size
        tokens, width, heads, layers = batch * BLOCK_TOKENS, 256, 4, 4
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
        training = self.sft_script.SFTArguments(
            output_dir=self.scratch(), num_train_epochs=1, eval_strategy="no", seed=SEED, **QUIET
        )
        training.dataset_kwargs = {"skip_prepare_dataset": True}
        dataset = self.sft_script.encode(self.tokenizer, self.inputs.conversations[:rows], training.max_length, "SFT")
        model, _ = self.sft_script.load_model(self.inputs.base_model, training.dropout)
        trainer = SFTTrainer(
            model=model,
            args=training,
            train_dataset=dataset,
            processing_class=self.tokenizer,
            optimizers=optimizers_for(model, training),
        )
        use_chunked_head(model)
        return Measured(len(dataset), timed(trainer).seconds)

    def dpo(self, pairs: int) -> tuple[Measured, Measured]:
        """(first epoch with the reference pass, later epochs)."""
        training = self.dpo_script.DPOArguments(
            output_dir=self.scratch(), num_train_epochs=1, eval_strategy="no", seed=SEED, **QUIET
        )
        encoded = self.dpo_script.encode(self.tokenizer, self.inputs.pairs[:pairs], training.max_length, "DPO")
        model, _ = self.dpo_script.load_model(self.inputs.base_model)
        start = time.perf_counter()
        reference = self.dpo_script.reference_scores(model, encoded, training)
        reference_seconds = time.perf_counter() - start
        trainer = self.dpo_script.ReadyDPOTrainer(
            model=model,
            args=training,
            train_dataset=self.dpo_script.dataset_of(encoded, reference),
            processing_class=self.tokenizer,
        )
        use_chunked_head(model)
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


class Reference(Engine):
    """Hugging Face's Trainer as a tutorial writes it, stock TRL trainers, and `model.generate`."""

    RECIPE = {"per_device_train_batch_size": REFERENCE_BATCH, "learning_rate": 5e-4, "seed": SEED, **QUIET}
    FLOAT32 = {"bf16": False, "max_length": BLOCK_TOKENS, "seed": SEED, **QUIET}  # what TRL needs to run on a CPU

    def __init__(self, inputs: Inputs):
        super().__init__(inputs)
        self.tokenized: dict[int, Dataset] = {}

    def _pretraining_trainer(self, steps: int) -> Trainer:
        """Every document cut and padded to 512, dropout 0.1, AdamW with linear decay."""
        shuffled = random.Random(SEED).sample(self.inputs.texts, k=len(self.inputs.texts))
        texts = list(itertools.islice(itertools.cycle(shuffled), steps * REFERENCE_BATCH))
        encoded = self.tokenizer(texts, truncation=True, padding="max_length", max_length=BLOCK_TOKENS)
        return Trainer(
            self.pretraining.new_model(self.tokenizer, dropout=0.1),
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

    def pretrain_mixed(self, steps: int) -> Measured:
        clock = timed(self._pretraining_trainer(steps))
        return Measured(clock.tokens, clock.seconds)

    def pretrain_full_blocks(self, steps: int) -> Measured:
        trainer = Trainer(
            self.pretraining.new_model(self.tokenizer, dropout=0.0),
            TrainingArguments(
                output_dir=self.scratch(), max_steps=steps, include_num_input_tokens_seen="all", **self.RECIPE
            ),
            train_dataset=self.pretraining.PackedBlocks(
                self.tokenizer, self.inputs.texts[: 8 * steps * REFERENCE_BATCH]
            ),
        )
        clock = timed(trainer)
        return Measured(clock.tokens, clock.seconds)

    def memory_trainer(self, steps: int) -> Trainer:
        return self._pretraining_trainer(steps)

    def time_to_loss(self, steps: int) -> list[tuple[float, float]]:
        return timed(self._pretraining_trainer(steps), Clock(self.heldout_bits_per_byte)).curve

    def sft(self, rows: int) -> Measured:
        trainer = SFTTrainer(
            model=str(self.inputs.base_model),
            args=SFTConfig(output_dir=self.scratch(), num_train_epochs=1, **self.FLOAT32),
            train_dataset=Dataset.from_dict({"messages": self.inputs.conversations[:rows]}),
            processing_class=self.tokenizer,
        )
        return Measured(rows, timed(trainer).seconds)

    def dpo(self, pairs: int) -> Measured:
        """The reference model is run in every epoch, so that all epochs take the same time."""
        rows = [
            {
                "prompt": prompt,
                "chosen": [{"role": "assistant", "content": chosen}],
                "rejected": [{"role": "assistant", "content": rejected}],
            }
            for prompt, chosen, rejected in self.inputs.pairs[:pairs]
        ]
        trainer = DPOTrainer(
            model=str(self.inputs.base_model),
            args=DPOConfig(output_dir=self.scratch(), num_train_epochs=1, **self.FLOAT32),
            train_dataset=Dataset.from_list(rows),
            processing_class=self.tokenizer,
        )
        return Measured(pairs, timed(trainer).seconds)

    def _generated(self, prompts: int, settings: GenerationConfig) -> list[list[int]]:
        answers = []
        for prompt in self.prompts[:prompts]:
            ids = torch.tensor([prompt])
            made = self.model.generate(
                ids, attention_mask=torch.ones_like(ids), generation_config=copy.deepcopy(settings)
            )
            answers.append(made[0, len(prompt) :].tolist())
        return answers

    def greedy_ids(self, prompts: int, new_tokens: int) -> list[list[int]]:
        return self._generated(prompts, self.settings(False, new_tokens))

    def generate(self, prompts: int, new_tokens: int) -> Measured:
        self.model.eval()  # loaded before the clock starts
        start = time.perf_counter()
        answers = self._generated(prompts, self.settings(True, new_tokens))
        return Measured(sum(map(len, answers)), time.perf_counter() - start)

    def generate_batch(self, prompts: int, new_tokens: int) -> Measured:
        """One prompt at a time."""
        self.model.eval()
        start = time.perf_counter()
        return Measured(len(self._generated(prompts, self.settings(False, new_tokens))), time.perf_counter() - start)

    def tokenizer_training(self, lines: list[str], vocab_size: int) -> tuple[float, float | None]:
        """(seconds, peak MB above the lines) of the stock byte-level BPE."""
        linux = sys.platform.startswith("linux")
        if linux:
            Path("/proc/self/clear_refs").write_text("5")
        before = _status_megabytes("VmRSS") if linux else 0.0
        start = time.perf_counter()
        ByteLevelBPETokenizer().train_from_iterator(lines, vocab_size=vocab_size, show_progress=False)
        seconds = time.perf_counter() - start
        return seconds, _status_megabytes("VmHWM") - before if linux else None
