"""Run the sections of the benchmark, for example pre-training or SFT.

A section measures this project ("ours") and stock code (the reference). It returns {name of a measure: comparison}.
"""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass

from engines import REFERENCE_BATCH, Throughput, Worker
from inputs import Inputs
from med_model.data.blocks import BLOCK_TOKENS
from med_model.errors import UserError
from med_model.language import tr
from med_model.model.device import multiplies_bf16
from med_model.screen import say
from project import Project
from reference import Reference
from sizes import Sizes

SECTIONS = ("pretrain", "memory", "time_to_loss", "sft", "dpo", "generate", "tokenizer")
STOCK_BF16 = "_stock_bf16"  # name suffix of measures against stock TRL in bfloat16; these have no required ratio
MAX_PLANS = 4  # largest number of schedules that time_to_loss tries


@dataclass
class Comparison:
    """Hold the values of one measure for this project and for the reference. Each list has one value per round."""

    ours: list[float]
    reference: list[float]
    unit: str
    less_is_better: bool = False

    @property
    def ratios(self) -> list[float]:
        """Return one ratio per round. A ratio above 1 means that ours is better."""
        rounds = zip(self.ours, self.reference, strict=True)
        return [theirs / ours if self.less_is_better else ours / theirs for ours, theirs in rounds]


class Benchmark:
    """Run this project and the reference, each in its own process. Each name in SECTIONS is a method.

    `details` collects the figures that are not comparisons.
    """

    def __init__(self, inputs: Inputs, sizes: Sizes):
        self.inputs, self.sizes = inputs, sizes
        self.ours, self.reference = Worker(Project, inputs), Worker(Reference, inputs)
        self.details: dict[str, object] = {}

    def close(self) -> None:
        self.ours.close()
        self.reference.close()

    def rates(self, ours: Callable[[], Throughput], reference: Callable[[], Throughput]) -> tuple[list, list]:
        """Run `ours` and `reference` in turn, once per round. Return the rates of `ours` and those of `reference`.

        If there are several rounds, a warm-up round comes first and is not counted.
        """
        rounds = []
        for _ in range(self.sizes.rounds + (self.sizes.rounds > 1)):
            rounds.append((ours().rate, reference().rate))
        ours_rates, reference_rates = zip(*rounds[-self.sizes.rounds :], strict=True)
        return list(ours_rates), list(reference_rates)

    def pretrain(self) -> dict[str, Comparison]:
        steps, reference_steps = self.sizes.our_steps, self.sizes.reference_steps
        comparisons = {}
        for name in ("pretrain_mixed", "pretrain_full_blocks"):
            rates = self.rates(
                functools.partial(self.ours, name, steps), functools.partial(self.reference, name, reference_steps)
            )
            comparisons[name] = Comparison(*rates, "tokens/s")
        rates = self.rates(
            functools.partial(self.ours, "pretrain", steps, False),
            functools.partial(self.ours, "roof", self.sizes.roof_repeats),
        )
        gigaflop = self.ours("arithmetic") / 1e9  # per token
        flops = [[rate * gigaflop for rate in side] for side in rates]
        comparisons["roof_fraction"] = Comparison(*flops, "GFLOP/s")
        return comparisons

    def memory(self) -> dict[str, Comparison]:
        """Start a new process for each measurement: memory left from an earlier training would change the result."""
        peaks: dict[type, list[float]] = {Project: [], Reference: []}
        for _ in range(self.sizes.rounds):
            for engine, megabytes in peaks.items():
                fresh = Worker(engine, self.inputs)
                megabytes.append(fresh("peak_memory", 3))
                fresh.close()
        if None in peaks[Project]:
            return {}
        return {"peak_memory": Comparison(peaks[Project], peaks[Reference], "MB", less_is_better=True)}

    def time_to_loss(self) -> dict[str, Comparison]:
        steps = self.sizes.reference_slots // (REFERENCE_BATCH * BLOCK_TOKENS)
        ours, reference = [], []
        for _ in range(self.sizes.rounds):
            ((seconds, target),) = self.reference("time_to_loss", steps)
            reference.append(seconds)
            ours.append(self._seconds_to(target))
        say("  " + tr("The reference has {target:.3f} bits per byte after {steps} steps.", target=target, steps=steps))
        self.details |= {"reference_bits_per_byte": target, "reference_steps": steps}
        return {"time_to_loss": Comparison(ours, reference, "s", less_is_better=True)}

    def _seconds_to(self, target: float) -> float:
        """Return the seconds of training until the model reaches `target` bits per byte.

        A plan is a schedule with a fixed number of steps. If a plan misses the target, its time counts in full, and
        training starts anew with a longer plan. Raise UserError if MAX_PLANS plans miss the target.
        """
        plan, spent = self.sizes.our_plan, 0.0
        for _ in range(MAX_PLANS):
            curve = self.ours("time_to_loss", plan, max(1, plan // 20), target)
            spent += curve[-1][0]
            if curve[-1][1] <= target:
                return spent
            say(
                "  "
                + tr(
                    "{steps} steps reach {reached:.3f} bits per byte, not {target:.3f}: a longer plan starts anew.",
                    steps=plan,
                    reached=curve[-1][1],
                    target=target,
                )
            )
            plan = plan * 3 // 2 + 1
        raise UserError(
            tr(
                "{plans} plans did not reach the reference's {target:.3f} bits per byte. Give other --data.",
                plans=MAX_PLANS,
                target=target,
            )
        )

    def sft(self) -> dict[str, Comparison]:
        rows = self.sizes.rows
        ours = functools.partial(self.ours, "sft", rows)
        return {
            f"sft_rows{suffix}": Comparison(
                *self.rates(ours, functools.partial(self.reference, "sft", rows, bf16)), "rows/s"
            )
            for suffix, bf16 in stock_precisions()
        }

    def dpo(self) -> dict[str, Comparison]:
        comparisons = {}
        for suffix, bf16 in stock_precisions():
            first, later, reference = [], [], []
            for _ in range(self.sizes.rounds):
                with_reference, without = self.ours("dpo", self.sizes.pairs)
                first.append(with_reference.rate)
                later.append(without.rate)
                reference.append(self.reference("dpo", self.sizes.pairs, bf16).rate)
            comparisons[f"dpo_first_epoch{suffix}"] = Comparison(first, reference, "pairs/s")
            comparisons[f"dpo_later{suffix}"] = Comparison(later, reference, "pairs/s")
        return comparisons

    def generate(self) -> dict[str, Comparison]:
        prompts, new_tokens = self.sizes.prompts, self.sizes.new_tokens
        seconds = self.ours("first_token")
        say("  " + tr("The first token of the first answer took {seconds:.3f} s.", seconds=seconds))
        ours, theirs = (side("greedy_ids", prompts, new_tokens) for side in (self.ours, self.reference))
        same = sum(a == b for a, b in zip(ours, theirs, strict=True))
        say("  " + tr("Greedy ids are identical for {same} of {prompts} prompts.", same=same, prompts=prompts))
        self.details |= {"first_token_seconds": seconds, "greedy_ids_identical": f"{same} of {prompts}"}
        one = [functools.partial(side, "generate", prompts, new_tokens) for side in (self.ours, self.reference)]
        batch = [
            functools.partial(self.ours, "generate_batch", self.sizes.batch_prompts, new_tokens),
            functools.partial(self.reference, "generate_batch", self.sizes.single_prompts, new_tokens),
        ]
        return {
            "generate": Comparison(*self.rates(*one), "tokens/s"),
            "generate_batch": Comparison(*self.rates(*batch), "prompts/s"),
        }

    def tokenizer(self) -> dict[str, Comparison]:
        """Print speed and memory of tokenizer training. Stock code uses the same library, so nothing is compared."""
        report = json.loads((self.inputs.tokenizer / "metrics.json").read_text(encoding="utf-8"))
        lines = "\n".join(self.inputs.texts).encode()[: report["bytes"]].decode(errors="ignore").split("\n")
        seconds, stock_megabytes = self.reference("tokenizer_training", lines, report["vocabulary"])
        megabytes = report["bytes"] / 1e6
        details = {
            "megabytes": megabytes,
            "tokens": report["vocabulary"],
            "megabytes_per_second": megabytes / report["seconds"],
            "peak_megabytes_of_process": report["peak_megabytes"] or 0,
            "stock_megabytes_per_second": megabytes / seconds,
            "stock_megabytes_above_before": stock_megabytes or 0,
        }
        self.details["tokenizer"] = details
        say(
            "  "
            + tr(
                "Ours: {megabytes:.1f} MB to {tokens:,} tokens at {megabytes_per_second:.2f} MB/s, "
                "{peak_megabytes_of_process:.0f} MB at the peak of the process.",
                **details,
            )
        )
        say(
            "  "
            + tr(
                "Stock ByteLevelBPETokenizer: {stock_megabytes_per_second:.2f} MB/s, "
                "{stock_megabytes_above_before:.0f} MB above the memory before.",
                **details,
            )
        )
        return {}


def stock_precisions() -> list[tuple[str, bool]]:
    """Return (name suffix of the measure, bf16) for each precision of stock TRL.

    The precisions are float32, and bfloat16 if the CPU has hardware for it.
    """
    return [("", False), *([(STOCK_BF16, True)] if multiplies_bf16("cpu") else [])]
