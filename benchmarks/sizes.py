"""Set the number of rounds and the amount of work: for a full benchmark, for --long and for --smoke."""

from dataclasses import dataclass


@dataclass
class Sizes:
    rounds: int = 3
    megabytes: float = 8.0  # largest size of the text for training the tokenizer, in MB
    heldout_bytes: int = 60_000
    our_steps: int = 16
    reference_steps: int = 8
    roof_repeats: int = 5
    reference_slots: int = 300_000  # tokens, padding included, that the reference trains on in time_to_loss
    our_plan: int = 40  # steps of our first training in time_to_loss; if it misses the target, longer ones follow
    rows: int = 160
    pairs: int = 48
    prompts: int = 6
    new_tokens: int = 128
    batch_prompts: int = 200  # this project answers this many prompts, in batches
    single_prompts: int = 12  # the reference answers this many prompts, one at a time


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
