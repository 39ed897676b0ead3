"""Compare the speed and memory of this project with stock code: `Trainer`, TRL's trainers and `model.generate`.

Reads  the bundled data, or --data: documents, or a folder with pretrain/, dev/, sft/ and dpo/ in it
Writes nothing, or the figures to --json FILE

    python benchmarks/run.py
    python benchmarks/run.py --data DIR --json benchmark.json
    python benchmarks/run.py --data DIR --long
"""

import statistics
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from inputs import read_inputs
from med_model.command import parse, run
from med_model.errors import UserError
from med_model.files import check_json_target, write_json
from med_model.language import tr
from med_model.measures.interval import Figure
from med_model.measures.record import machine, new_record
from med_model.screen import say
from sections import SECTIONS, STOCK_BF16, Benchmark, Comparison
from sizes import LONG, SMOKE, Sizes

DESCRIPTION = tr("Measure the speed of this project beside the stock trainers and model.generate, on this machine.")

TITLES = {
    "pretrain_mixed": tr("pre-training, real tokens/s, mixed lengths"),
    "pretrain_full_blocks": tr("pre-training, tokens/s, full blocks"),
    "roof_fraction": tr("share of the roof, FLOP/s, float32"),
    "peak_memory": tr("peak memory of pre-training"),
    "time_to_loss": tr("time to the reference's bits per byte"),
    "sft_rows": tr("SFT, rows/s"),
    "dpo_first_epoch": tr("DPO, pairs/s, first epoch"),
    "dpo_later": tr("DPO, pairs/s, later epochs"),
    "generate": tr("generation, tokens/s, one prompt"),
    "generate_batch": tr("generation, prompts/s, 200 prompts"),
}
# Each measure should reach this ratio or more. A ratio above 1 means that this project is better than the reference,
# the stock code. In roof_fraction the reference is the speed of the matrix products alone.
BARS = {
    "pretrain_mixed": 5.0,
    "pretrain_full_blocks": 1.4,
    "roof_fraction": 0.70,
    "time_to_loss": 2.5,
    "peak_memory": 3.0,
    "sft_rows": 3.0,
    "dpo_first_epoch": 4.0,
    "dpo_later": 6.0,
    "generate": 1.5,
    "generate_batch": 8.0,
}
LONG_BARS = {"time_to_loss": 4.0}


@dataclass
class BenchmarkArguments:
    data: list[str] | None = field(
        default=None,
        metadata={
            "help": tr(
                "Documents (files, folders, globs), or a folder with pretrain/, dev/, sft/train.jsonl and "
                "dpo/train.jsonl in it. Default: the bundled data."
            )
        },
    )
    sections: list[str] | None = field(
        default=None,
        metadata={"help": tr("Run only some of these: {sections}. Default: all.", sections=", ".join(SECTIONS))},
    )
    json: str | None = field(default=None, metadata={"help": tr("Write the figures to this file.")})
    long: bool = field(default=False, metadata={"help": tr("Run only time_to_loss, against 1.5 million token slots.")})
    smoke: bool = field(
        default=False, metadata={"help": tr("Run a few seconds of each section, to see that it runs.")}
    )


def check_arguments(args: BenchmarkArguments) -> None:
    """Raise UserError for an unknown section, an option that --long would ignore, or a missing folder for --json."""
    if unknown := set(args.sections or ()) - set(SECTIONS):
        sections = ", ".join(SECTIONS)
        raise UserError(
            tr("--sections {section}: the sections are {sections}.", section=unknown.pop(), sections=sections)
        )
    if args.long and (args.sections or args.smoke):
        raise UserError(tr("--long runs time_to_loss only. Leave out --sections and --smoke."))
    check_json_target(args.json)


def print_table(comparisons: dict[str, Comparison], bars: dict[str, float]) -> None:
    say("\n" + tr("| measure | ours | reference | ratio, median (least to most) | bar |"))
    say("|---|---|---|---|---|")
    for name, comparison in comparisons.items():
        title = TITLES[name.removesuffix(STOCK_BF16)]
        if name.endswith(STOCK_BF16):
            title = tr("{title}, stock in bfloat16", title=title)
        ratios, unit = comparison.ratios, comparison.unit
        ours, theirs = (f"{statistics.median(side):,.4g}" for side in (comparison.ours, comparison.reference))
        ratio = tr(
            "{median:.2f} ({least:.2f} to {most:.2f})",
            median=statistics.median(ratios),
            least=min(ratios),
            most=max(ratios),
        )
        say(f"| {title} | {ours} {unit} | {theirs} {unit} | {ratio} | {bars.get(name, '-')} |")


def figure_of(rounds: list[float]) -> Figure:
    """Return the median, the least and the greatest value of the rounds, and the number of rounds."""
    return Figure(statistics.median(rounds), min(rounds), max(rounds), len(rounds))


def record_of(
    benchmark: Benchmark, comparisons: dict[str, Comparison], bars: dict[str, float], seconds: float
) -> dict:
    """Return the content of the --json file. Its field `rounds` has the values of each round."""
    sides = {
        "ours": {name: comparison.ours for name, comparison in comparisons.items()},
        "reference": {name: comparison.reference for name, comparison in comparisons.items()},
        "ratio": {name: comparison.ratios for name, comparison in comparisons.items()},
    }
    return new_record(
        benchmark.inputs.sources,
        {side: {name: figure_of(rounds) for name, rounds in values.items()} for side, values in sides.items()},
        units={name: comparison.unit for name, comparison in comparisons.items()},
        bars={name: bar for name, bar in bars.items() if name in comparisons},
        rounds={name: asdict(comparison) for name, comparison in comparisons.items()},
        details=benchmark.details,
        seconds=round(seconds),
    )


def main() -> None:
    (args,) = parse(BenchmarkArguments, description=DESCRIPTION, docstring=__doc__)
    check_arguments(args)
    sizes = SMOKE if args.smoke else LONG if args.long else Sizes()
    bars = LONG_BARS if args.long else BARS
    start = time.time()
    say(machine())
    comparisons: dict[str, Comparison] = {}
    with tempfile.TemporaryDirectory() as folder:
        inputs = read_inputs(args.data, sizes.megabytes, sizes.heldout_bytes, Path(folder))
        benchmark = Benchmark(inputs, sizes)
        for section in ["time_to_loss"] if args.long else args.sections or SECTIONS:
            say(f"{section} ...")
            comparisons |= getattr(benchmark, section)()
            say(f"  {time.time() - start:.0f} s")
        benchmark.close()
    print_table(comparisons, bars)
    if args.json:
        write_json(args.json, record_of(benchmark, comparisons, bars, time.time() - start))


if __name__ == "__main__":
    run(main)
