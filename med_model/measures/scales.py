"""Define the title and number format of each measure, whether higher or lower is better, and the titles of models."""

from typing import NamedTuple

from med_model.language import tr


class Scale(NamedTuple):
    """The title and number format of a measure.

    `better` is 1 if higher values are better (↑), -1 if lower values are better (↓), and 0 if neither is better.
    """

    title: str
    format: str
    better: int


MODELS = {"base": tr("Base"), "sft": tr("SFT"), "final": tr("Final (DPO)")}
MEASURES = {
    "bits_per_byte": Scale(tr("held-out bits per byte ↓"), ".3f", -1),
    "key_fact_recall": Scale(tr("key-fact recall ↑"), ".1%", 1),
    "stopped": Scale(tr("stopped by itself ↑"), ".1%", 1),
    "repeated_4grams": Scale(tr("repeated 4-grams ↓"), ".1%", -1),
    "distinct_2grams": Scale(tr("distinct 2-grams"), ".1%", 0),
    "characters": Scale(tr("characters per answer"), ".0f", 0),
    "emergencies_recognised": Scale(tr("emergencies recognised ↑"), ".1%", 1),
    "false_alarms": Scale(tr("false alarms ↓"), ".1%", -1),
    "doses_declined": Scale(tr("doses declined ↑"), ".1%", 1),
    "preference_accuracy": Scale(tr("preference accuracy ↑"), ".1%", 1),
    "preference_accuracy_per_token": Scale(tr("preference accuracy, per token ↑"), ".1%", 1),
    "preference_margin": Scale(tr("preference margin, nats ↑"), ".1f", 1),
    "preference_margin_per_token": Scale(tr("preference margin, nats per token ↑"), ".2f", 1),
    "preference_accuracy_unread": Scale(tr("preference accuracy, topics never read ↑"), ".1%", 1),
    "choice_accuracy": Scale(tr("multiple choice ↑"), ".1%", 1),
}
SUMMARY = (  # the measures that compare_different_model.py shows without --all
    "bits_per_byte",
    "key_fact_recall",
    "stopped",
    "repeated_4grams",
    "emergencies_recognised",
    "false_alarms",
    "doses_declined",
    "preference_accuracy",
)
# Beginning of the keys for flaws: `preference_accuracy/vague` is for pairs whose rejected answer has the flaw `vague`.
FLAW = "preference_accuracy/"


def scale(key: str) -> Scale:
    """Return the title, format and `better` of the measure with this key. Raise KeyError for an unknown key."""
    if key.startswith(FLAW):
        return Scale(tr("preference accuracy, flaw {flaw} ↑", flaw=key.removeprefix(FLAW)), ".0%", 1)
    return MEASURES[key]


def position(key: str) -> tuple[int, str]:
    """Return a value to sort keys by. Sorted keys have the order of MEASURES. Raise ValueError for an unknown key.

    A key with a flaw, such as `preference_accuracy/vague`, comes directly after `preference_accuracy`.
    """
    name, _, flaw = key.partition("/")
    return list(MEASURES).index(name), flaw
