"""The work of the benchmark per round: for a full run, for --long and for --smoke."""

from dataclasses import dataclass


@dataclass
class Sizes:
    rounds: int = 3
    megabytes: float = 8.0  # of text for the tokenizer
    heldout_bytes: int = 60_000
    our_steps: int = 16
    reference_steps: int = 8
    roof_repeats: int = 5
    reference_slots: int = 300_000  # token slots, padding included; the reference's loss is measured after them
    our_plan: int = 40  # steps of our schedule; after a miss, training starts anew with half as many more
    rows: int = 160
    pairs: int = 48
    prompts: int = 6
    new_tokens: int = 128
    batch_prompts: int = 200
    single_prompts: int = 12  # of these, the reference answers one at a time


LONG = Sizes(rounds=1, reference_slots=1_500_000, our_plan=200)
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
