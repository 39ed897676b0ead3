"""Provide what both engines of the benchmark share: the clock, the generation settings and the worker process.

An engine is a class that trains models and generates answers. `Project` does so with the code of this project, and
`Reference` with stock code: `Trainer`, TRL and `model.generate`.
"""

import ctypes
import functools
import multiprocessing
import re
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    set_seed,
)

from inputs import SEED, Inputs
from med_model.data.prompt import encode_question
from med_model.measures.likelihood import bits_per_byte
from med_model.model.directory import sampling_defaults
from med_model.training.progress import remove_library_progress

REFERENCE_BATCH = 4  # documents, or blocks of 512 tokens, per pre-training step of the reference
PROMPTS, PROMPT_TOKENS = 200, 256  # largest number of prompts, and of tokens per prompt
QUIET = {"report_to": "none", "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True, "use_cpu": True}


@dataclass
class Throughput:
    """Hold an amount of work and its seconds. `units` is a number of tokens, SFT rows, preference pairs or prompts."""

    units: float
    seconds: float

    @property
    def rate(self) -> float:
        return self.units / self.seconds


class Clock(TrainerCallback):
    """Measure the seconds and the tokens of a training. The time of `evaluate` is not counted.

    evaluate: a function that returns the held-out bits per byte of a model, or None. The function runs once per
    `every` steps and after the last step. If `every` is 0, it runs only after the last step.
    target: training stops as soon as `evaluate` returns `target` or less.
    """

    def __init__(self, evaluate: Callable | None = None, every: int = 0, target: float = float("-inf")):
        self.evaluate, self.every, self.target = evaluate, every, target
        self.curve: list[tuple[float, float]] = []  # (seconds, result of `evaluate`)

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


def run_timed(trainer: Trainer, clock: Clock | None = None) -> Clock:
    """Train without progress output. `clock` measures the training; None makes a new clock. Return the clock."""
    clock = clock or Clock()
    remove_library_progress(trainer)
    trainer.add_callback(clock)
    trainer.train()
    return clock


def token_throughput(trainer: Trainer) -> Throughput:
    """Train. Return the number of tokens that the Trainer counted, and the seconds."""
    clock = run_timed(trainer)
    return Throughput(clock.tokens, clock.seconds)


class Engine:
    """Hold the inputs and the prompts, which are the same for both subclasses.

    `Project` trains and generates with the code of this project, `Reference` with stock code.
    """

    def __init__(self, inputs: Inputs):
        set_seed(SEED)
        self.inputs = inputs
        self.tokenizer = AutoTokenizer.from_pretrained(inputs.tokenizer)
        conversations = inputs.conversations[:PROMPTS]
        self.prompts = [encode_question(self.tokenizer, c[:1], PROMPT_TOKENS, chat=True) for c in conversations]

    @functools.cached_property
    def model(self) -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(self.inputs.base_model).eval()

    def scratch(self) -> str:
        return tempfile.mkdtemp(dir=self.inputs.folder)

    def heldout_bits_per_byte(self, model: PreTrainedModel) -> float:
        return bits_per_byte(model, self.tokenizer, self.inputs.heldout)

    def settings(self, sample: bool, new_tokens: int) -> GenerationConfig:
        """Return the sampling settings of the chat scripts, or greedy settings if `sample` is False.

        With these settings every answer has `new_tokens` tokens.
        """
        if sample:
            settings = sampling_defaults(self.tokenizer, chat=True)
        else:
            settings = GenerationConfig(pad_token_id=self.tokenizer.pad_token_id)
        # No token has the id -1, so no answer stops early.
        settings.max_new_tokens, settings.eos_token_id, settings.use_cache = new_tokens, -1, True
        return settings

    def peak_memory(self, steps: int) -> float | None:
        """Return how far the memory rises during pre-training, in MB. Return None if the system is not Linux.

        The model is built before the measurement, so its weights are not counted.
        """
        trainer = self.pretraining_trainer(steps)
        return peak_megabytes(lambda: run_timed(trainer))


def peak_megabytes(action: Callable[[], object]) -> float | None:
    """Run an action. Return how far the memory rises in MB, or None if the system is not Linux."""
    if not sys.platform.startswith("linux"):
        action()
        return None
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # returns freed memory to the system, so that `before` does not count it
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, the peak of the memory: see proc(5)
    before = _status_megabytes("VmRSS")
    action()
    return _status_megabytes("VmHWM") - before


def _status_megabytes(name: str) -> float:
    return int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1e3


_engine = None  # the engine of this process, if it is a worker process


def _start_worker(engine: type[Engine], inputs: Inputs) -> None:
    global _engine
    _engine = engine(inputs)


def _call_worker(method: str, arguments: tuple):
    return getattr(_engine, method)(*arguments)


class Worker:
    """Run an engine in a separate process. A call of the worker runs a method of the engine and returns the result."""

    def __init__(self, engine: type[Engine], inputs: Inputs):
        context = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(1, context, initializer=_start_worker, initargs=(engine, inputs))

    def __call__(self, method: str, *arguments):
        return self.pool.submit(_call_worker, method, arguments).result()

    def close(self) -> None:
        self.pool.shutdown()
