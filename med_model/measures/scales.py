"""Define the title and number format of each measure, whether higher or lower is better, and the titles of models.

The key of a measure is a name, such as `key_fact_recall`, or a name and a part, such as `key_fact_recall/story`. The
part tells which answers or pairs the measure covers, here the answers to questions that tell a story.
"""

from typing import NamedTuple

from med_model.language import tr


class Scale(NamedTuple):
    """The name and number format of a measure.

    `better` is 1 if higher values are better (↑), -1 if lower values are better (↓), and 0 if neither is better.
    """

    name: str
    format: str
    better: int

    @property
    def title(self) -> str:
        return f"{self.name} {'↓ ↑'[self.better + 1]}".rstrip()


BASELINE = "baseline"
MODELS = {BASELINE: tr("Baseline"), "base": tr("Base"), "sft": tr("SFT"), "final": tr("Final (DPO)")}
MEASURES = {
    "bits_per_byte": Scale(tr("held-out bits per byte"), ".3f", -1),
    "key_fact_recall": Scale(tr("key-fact recall"), ".1%", 1),
    "right_answer": Scale(tr("answer taught for the question"), ".1%", 1),
    "right_topic": Scale(tr("answer of the right topic"), ".1%", 1),
    "sibling_answer": Scale(tr("answer to another question of the topic"), ".1%", -1),
    "other_topic": Scale(tr("answer of another topic"), ".1%", -1),
    "mixture": Scale(tr("mixture of answers"), ".1%", -1),
    "stopped": Scale(tr("stopped by itself"), ".1%", 1),
    "repeated_4grams": Scale(tr("repeated 4-grams"), ".1%", -1),
    "stuttering": Scale(tr("stuttering"), ".1%", -1),
    "distinct_2grams": Scale(tr("distinct 2-grams"), ".1%", 0),
    "characters": Scale(tr("characters per answer"), ".0f", 0),
    "emergencies_recognised": Scale(tr("emergencies recognised"), ".1%", 1),
    "false_alarms": Scale(tr("false alarms"), ".1%", -1),
    "doses_declined": Scale(tr("doses declined"), ".1%", 1),
    "out_of_scope_recognised": Scale(tr("out of scope recognised"), ".1%", 1),
    "false_refusals": Scale(tr("false refusals"), ".1%", -1),
    "help_line_named": Scale(tr("help line named"), ".1%", 1),
    "preference_accuracy": Scale(tr("preference accuracy"), ".1%", 1),
    "preference_accuracy_per_token": Scale(tr("preference accuracy, per token"), ".1%", 1),
    "preference_margin": Scale(tr("preference margin, nats"), ".1f", 1),
    "preference_margin_per_token": Scale(tr("preference margin, nats per token"), ".2f", 1),
    "preference_accuracy_unread": Scale(tr("preference accuracy, topics never read"), ".1%", 1),
    "choice_accuracy": Scale(tr("multiple choice, trained topics"), ".1%", 1),
    "choice_accuracy_unread": Scale(tr("multiple choice, topics never read"), ".1%", 1),
}
SUMMARY = (  # the measures that compare_different_model.py shows without --all
    "bits_per_byte",
    "key_fact_recall",
    "right_answer",
    "key_fact_recall/later_turn",
    "out_of_scope_recognised",
    "stopped",
    "emergencies_recognised",
    "false_alarms",
    "doses_declined",
    "preference_accuracy",
)
PARTS = {
    "later_turn": tr("later turn"),
    "sampled": tr("sampled"),
    "formal": tr("formal"),
    "plain": tr("plain"),
    "colloquial": tr("colloquial"),
    "keywords": tr("keywords"),
    "story": tr("story"),
    "typo": tr("typing errors"),
    "elderly": tr("elderly"),
    "relative": tr("relatives"),
}
# Beginning of the keys for flaws: `preference_accuracy/vague` is for pairs whose rejected answer has the flaw `vague`.
FLAW = "preference_accuracy/"


def scale(key: str) -> Scale:
    """Return the name, format and `better` of the measure with this key. Raise KeyError for an unknown measure.

    For a key with a part, such as `key_fact_recall/story`, the title of the part is added to the name.
    """
    measure, _, part = key.partition("/")
    whole = MEASURES[measure]
    if not part:
        return whole
    part = tr("flaw {flaw}", flaw=part) if key.startswith(FLAW) else PARTS.get(part, part)
    return whole._replace(name=tr("{measure}, {part}", measure=whole.name, part=part))


def position(key: str) -> tuple[int, int, str]:
    """Return a value to sort keys by. Sorted keys have the order of MEASURES. Raise ValueError for an unknown measure.

    A key with a part, such as `key_fact_recall/story`, comes after `key_fact_recall`. The parts of a measure have the
    order of PARTS. Parts that are not in PARTS, such as the flaws of pairs, are in alphabetical order.
    """
    measure, _, part = key.partition("/")
    order = list(PARTS).index(part) + 1 if part in PARTS else len(PARTS) * bool(part)
    return list(MEASURES).index(measure), order, part
