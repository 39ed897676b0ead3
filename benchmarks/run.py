"""Measure the project's engine beside the reference recipe, stock TRL and `model.generate`, on this machine.

Reads  the bundled data, or --data: documents, or a folder with pretrain/, dev/, sft/ and dpo/ in it
Writes nothing, or the figures to --json FILE

    python benchmarks/run.py
    python benchmarks/run.py --data ../shared/data --json benchmark.json
    python benchmarks/run.py --data ../shared/data --long
"""

import functools
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from engines import BLOCK_TOKENS, REFERENCE_BATCH, Measured, Worker
from inputs import Inputs, read_inputs
from project import Project
from reference import Reference

from med_model.command import parse, run
from med_model.errors import UserError
from med_model.files import check_json_target, write_json
from med_model.model.device import multiplies_bf16

BARS = {  # measure: (title, bar); each figure is ours over the reference's, above 1 where ours is better
    "pretrain_mixed": ("预训练，长短不一/pre-training, real tokens/s, mixed lengths", 5.0),
    "pretrain_full_blocks": ("预训练，整块/pre-training, tokens/s, full blocks", 1.4),
    "roof_fraction": ("占矩阵乘法上限/share of the roof, FLOP/s, float32", 0.70),
    "time_to_loss": ("达到同样留出损失的用时/time to the reference's bits per byte", 2.5),
    "peak_memory": ("预训练内存峰值/peak memory of pre-training", 3.0),
    "sft_rows": ("SFT rows/s", 3.0),
    "dpo_first_epoch": ("DPO pairs/s, 首轮/first epoch", 4.0),
    "dpo_later": ("DPO pairs/s, 其后/later epochs", 6.0),
    "generate": ("生成/generation, tokens/s, one prompt", 1.5),
    "generate_batch": ("批量生成/generation, prompts/s, 200 prompts", 8.0),
}
STOCK_BF16 = "_stock_bf16"  # the same against stock TRL in bfloat16; reported, without a bar
LONG_BAR = 4.0
MOST_PLANS = 4
SECTIONS = ("pretrain", "memory", "time_to_loss", "sft", "dpo", "generate", "tokenizer")


@dataclass
class Sizes:
    """How much each section does in a round."""

    rounds: int = 3
    megabytes: float = 8.0  # of text for the tokenizer
    heldout_bytes: int = 60_000
    our_steps: int = 16
    reference_steps: int = 8
    roof_repeats: int = 5
    reference_slots: int = 300_000  # token slots, padding counted, that the reference's loss is taken after
    our_plan: int = 40  # steps that our schedule is laid out for; begun anew with half as many more if they miss
    rows: int = 160
    pairs: int = 48
    prompts: int = 6
    new_tokens: int = 128
    batch_prompts: int = 200
    single_prompts: int = 12  # of those, one at a time


LONG = {"rounds": 1, "reference_slots": 1_500_000, "our_plan": 200}
SMOKE = Sizes(
    rounds=1,
    megabytes=0.2,
    heldout_bytes=3_000,
    our_steps=2,
    reference_steps=1,
    roof_repeats=1,
    reference_slots=4_096,
    our_plan=3,
    rows=8,
    pairs=4,
    prompts=1,
    new_tokens=8,
    batch_prompts=4,
    single_prompts=1,
)


@dataclass
class BenchmarkArguments:
    data: list[str] | None = field(
        default=None,
        metadata={
            "help": "Documents (files, folders, globs), or a folder with pretrain/, dev/, sft/train.jsonl and "
            "dpo/train.jsonl in it. Default: the bundled data."
        },
    )
    sections: list[str] | None = field(
        default=None, metadata={"help": f"Only these of: {', '.join(SECTIONS)}. Default: all."}
    )
    json: str | None = field(default=None, metadata={"help": "Write the figures to this file."})
    long: bool = field(default=False, metadata={"help": "Only time_to_loss, against 1.5M token slots."})
    smoke: bool = field(default=False, metadata={"help": "A few seconds of each section: shows that it runs."})


@dataclass
class Figure:
    """One line of the table: a value of each side for each round, and our figure over the reference's."""

    ours: list[float]
    reference: list[float]
    unit: str
    less_is_better: bool = False

    @property
    def ratios(self) -> list[float]:
        pairs = zip(self.ours, self.reference, strict=True)
        return [theirs / mine if self.less_is_better else mine / theirs for mine, theirs in pairs]


class Benchmark:
    """The sections; each gives its figures by the name of the measure."""

    def __init__(self, inputs: Inputs, sizes: Sizes):
        self.inputs, self.sizes = inputs, sizes
        self.ours, self.reference = Worker(Project, inputs), Worker(Reference, inputs)

    def close(self) -> None:
        self.ours.close()
        self.reference.close()

    def rates(self, ours: Callable[[], Measured], reference: Callable[[], Measured]) -> tuple[list, list]:
        """Rounds of both by turns; the first of more than one warms up and is not counted."""
        rounds = []
        for _ in range(self.sizes.rounds + (self.sizes.rounds > 1)):
            rounds.append((ours(), reference()))
        counted = rounds[-self.sizes.rounds :]
        return [mine.rate for mine, _ in counted], [theirs.rate for _, theirs in counted]

    def pretrain(self) -> dict[str, Figure]:
        ours, theirs = self.sizes.our_steps, self.sizes.reference_steps
        figures = {}
        for name in ("pretrain_mixed", "pretrain_full_blocks"):
            rates = self.rates(
                functools.partial(self.ours, name, ours), functools.partial(self.reference, name, theirs)
            )
            figures[name] = Figure(*rates, "tokens/s")
        rates = self.rates(
            functools.partial(self.ours, "pretrain", ours, False),
            functools.partial(self.ours, "roof", self.sizes.roof_repeats),
        )
        gigaflop = self.ours("arithmetic") / 1e9  # of a token
        figures["roof_fraction"] = Figure(*[[rate * gigaflop for rate in side] for side in rates], "GFLOP/s")
        return figures

    def memory(self) -> dict[str, Figure]:
        """Each in a process of its own, which has trained nothing before."""
        peaks: dict[type, list[float]] = {Project: [], Reference: []}
        for _ in range(self.sizes.rounds):
            for engine, of_engine in peaks.items():
                fresh = Worker(engine, self.inputs)
                of_engine.append(fresh("peak_memory", 3))
                fresh.close()
        if None in peaks[Project]:
            return {}
        return {"peak_memory": Figure(peaks[Project], peaks[Reference], "MB", less_is_better=True)}

    def time_to_loss(self) -> dict[str, Figure]:
        steps = self.sizes.reference_slots // (REFERENCE_BATCH * BLOCK_TOKENS)
        ours, reference = [], []
        for _ in range(self.sizes.rounds):
            ((seconds, target),) = self.reference("time_to_loss", steps)
            reference.append(seconds)
            ours.append(self._seconds_to(target))
        print(f"  参考在/the reference's bits per byte after {steps} steps: {target:.3f}")
        return {"time_to_loss": Figure(ours, reference, "s", less_is_better=True)}

    def _seconds_to(self, target: float) -> float:
        """Seconds of training until the target; a plan that misses it counts in full, and a longer one begins anew."""
        plan, spent = self.sizes.our_plan, 0.0
        for _ in range(MOST_PLANS):
            curve = self.ours("time_to_loss", plan, max(1, plan // 20), target)
            spent += curve[-1][0]
            if curve[-1][1] <= target:
                return spent
            print(f"  {plan} 步没有达到/steps reach {curve[-1][1]:.3f}, not {target:.3f}: begun anew")
            plan = plan * 3 // 2 + 1
        raise UserError(f"{MOST_PLANS} 次都没有达到/the reference's bits per byte {target:.3f} was not reached")

    def sft(self) -> dict[str, Figure]:
        ours = functools.partial(self.ours, "sft", self.sizes.rows)
        return {
            name: Figure(*self.rates(ours, functools.partial(self.reference, "sft", self.sizes.rows, bf16)), "rows/s")
            for name, bf16 in self.stock_precisions("sft_rows")
        }

    def dpo(self) -> dict[str, Figure]:
        figures = {}
        for suffix, bf16 in self.stock_precisions(""):
            first, later, reference = [], [], []
            for _ in range(self.sizes.rounds):
                with_reference, without = self.ours("dpo", self.sizes.pairs)
                first.append(with_reference.rate)
                later.append(without.rate)
                reference.append(self.reference("dpo", self.sizes.pairs, bf16).rate)
            figures[f"dpo_first_epoch{suffix}"] = Figure(first, reference, "pairs/s")
            figures[f"dpo_later{suffix}"] = Figure(later, reference, "pairs/s")
        return figures

    def stock_precisions(self, name: str) -> list[tuple[str, bool]]:
        """(measure, bf16) of stock TRL: float32 as the recipe, and its default bfloat16 too where that is fast."""
        return [(name, False), *([(f"{name}{STOCK_BF16}", True)] if multiplies_bf16("cpu") else [])]

    def generate(self) -> dict[str, Figure]:
        prompts, new_tokens = self.sizes.prompts, self.sizes.new_tokens
        print(f"  首个词元/the first token of the first answer: {self.ours('first_token'):.3f} s")
        mine, theirs = (side("greedy_ids", prompts, new_tokens) for side in (self.ours, self.reference))
        same = sum(a == b for a, b in zip(mine, theirs, strict=True))
        print(f"  贪心结果相同/greedy ids identical: {same} / {prompts}")
        one = [functools.partial(side, "generate", prompts, new_tokens) for side in (self.ours, self.reference)]
        batch = [
            functools.partial(self.ours, "generate_batch", self.sizes.batch_prompts, new_tokens),
            functools.partial(self.reference, "generate_batch", self.sizes.single_prompts, new_tokens),
        ]
        return {
            "generate": Figure(*self.rates(*one), "tokens/s"),
            "generate_batch": Figure(*self.rates(*batch), "prompts/s"),
        }

    def tokenizer(self) -> dict[str, Figure]:
        """Only reported: the training itself is the tokenizers library's on both sides."""
        report = json.loads((self.inputs.tokenizer / "metrics.json").read_text(encoding="utf-8"))
        lines = "\n".join(self.inputs.texts).encode()[: report["bytes"]].decode(errors="ignore").split("\n")
        seconds, megabytes = self.reference("tokenizer_training", lines, report["vocabulary"])
        size = report["bytes"] / 1e6
        print(
            f"  {size:.1f} MB, {report['vocabulary']:,} 词元/tokens: {size / report['seconds']:.2f} MB/s, "
            f"peak {report['peak_megabytes'] or 0:.0f} MB of the process; stock ByteLevelBPETokenizer "
            f"{size / seconds:.2f} MB/s, {megabytes or 0:.0f} MB above what stood"
        )
        return {}


def print_table(figures: dict[str, Figure], bars: dict[str, tuple[str, float]]) -> None:
    print("\n| measure | ours | reference | ratio, median (least to most) | bar |\n|---|---|---|---|---|")
    for name, figure in figures.items():
        title, bar = bars[name.removesuffix(STOCK_BF16)]
        if name.endswith(STOCK_BF16):
            title, bar = f"{title}, stock in bfloat16", None
        ratios = figure.ratios
        mine, theirs = (f"{statistics.median(side):,.4g}" for side in (figure.ours, figure.reference))
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"| {title} | {mine} {figure.unit} | {theirs} {figure.unit} | {spread} | {bar or '-'} |")


def machine() -> str:
    name = torch.cpu.get_capabilities().get("cpu_name", platform.processor())
    return f"{name}, {torch.get_num_threads()} 线程/threads, torch {torch.__version__}, {platform.platform()}"


def main() -> None:
    (args,) = parse(BenchmarkArguments, description=__doc__)
    if unknown := set(args.sections or ()) - set(SECTIONS):
        raise UserError(f"--sections {unknown.pop()}: the sections are {', '.join(SECTIONS)}")
    if args.long and (args.sections or args.smoke):
        raise UserError("--long: 只跑 time_to_loss/runs time_to_loss alone: leave out --sections and --smoke")
    check_json_target(args.json)
    sizes = SMOKE if args.smoke else Sizes(**LONG) if args.long else Sizes()
    bars = BARS | ({"time_to_loss": (BARS["time_to_loss"][0], LONG_BAR)} if args.long else {})
    sections = ["time_to_loss"] if args.long else args.sections or SECTIONS
    start = time.time()
    print(machine())
    figures: dict[str, Figure] = {}
    with tempfile.TemporaryDirectory() as folder:
        inputs = read_inputs(args.data, sizes.megabytes, sizes.heldout_bytes, Path(folder))
        benchmark = Benchmark(inputs, sizes)
        for section in sections:
            print(f"{section} ...", flush=True)
            figures |= getattr(benchmark, section)()
            print(f"  {time.time() - start:.0f} s", flush=True)
        benchmark.close()
    print_table(figures, bars)
    if args.json:
        result = {
            "measures": {n: statistics.median(figure.ratios) for n, figure in figures.items() if n in BARS},
            "rounds": {name: asdict(figure) | {"ratios": figure.ratios} for name, figure in figures.items()},
            "machine": machine(),
            "seconds": round(time.time() - start),
        }
        write_json(args.json, result)


if __name__ == "__main__":
    run(main)
