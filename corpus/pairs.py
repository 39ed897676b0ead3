"""Make the preference pairs of a topic. A pair is a question, a good answer and a bad answer with one named flaw.

Each question is in one of three groups. The group decides which stages train on the question and its answer:

asked   pre-training trains on the answer; SFT and DPO train on the question and the answer
read    pre-training trains on the answer; SFT and DPO train on neither the question nor the answer
unread  no stage trains on the questions, the answers or the article of the topic
"""

import itertools
import random
import re

from checks import HELDOUT_WORDINGS, WORDINGS
from text import sentences

COMPOSED_FLAWS = ("other_topic", "repetition", "vague", "no_ending")
# For the flaw other_topic, the bad answer is drawn from this many answers of other topics: from those whose length is
# nearest to the wanted length.
CLOSEST = 12

Answers = dict[str, dict[str, list[str]]]  # group of questions (asked, read or unread) -> topic -> answers


def unasked_index(topic: dict) -> int | None:
    """Return the index of the question that SFT and DPO do not train on. Its group is `read`.

    Each trained topic with an article has one such question. For other topics, return None. The preference pairs of
    the question are held out.
    The index depends only on the topic's name and the number of its questions. So a new topic does not change the
    index in other topics.
    """
    if topic.get("held_out") or "article" not in topic:
        return None
    return random.Random(topic["topic"]).randrange(len(topic["questions"]))


def group_of(topic: dict, index: int) -> str:
    """Return the group of the question at `index`: asked, read or unread (explained at the top of this file)."""
    if topic.get("held_out"):
        return "unread"
    return "read" if index == unasked_index(topic) else "asked"


def answers_by_group(topics: list[dict]) -> Answers:
    answers: Answers = {}
    for topic in topics:
        for index, question in enumerate(topic.get("questions", [])):
            group = answers.setdefault(group_of(topic, index), {})
            group.setdefault(topic["topic"], []).append(question["answer"])
    return answers


def composed_rejection(
    flaw: str, answer: str, others: list[str], vague: list[str], longer: bool, rng: random.Random
) -> str:
    """Return a bad answer with the flaw `flaw`, made from the good answer `answer`, from `others` or from `vague`.

    others: answers to other questions. vague: sentences without content.
    If possible, the bad answer is a few characters longer than the good answer, or shorter if `longer` is False. So
    the log-probabilities of the two answers, summed over their tokens, differ by the content and hardly by the length.
    """
    target = len(answer) + rng.randint(1, 4) * (1 if longer else -1)
    if flaw == "other_topic":
        fitting = [text for text in others if (len(text) > len(answer)) == longer] or others
        return rng.choice(sorted(fitting, key=lambda text: (abs(len(text) - target), text))[:CLOSEST])
    if flaw == "repetition":
        clause = re.split("[，。；：！？]", answer)[0] + "，"
        text = clause * (target // len(clause) + 1)
        return text[: max(target, len(clause) * 2) - 1].rstrip("，") + "。"
    if flaw == "vague":
        drawn = ["".join(rng.sample(vague, size)) for size in range(1, len(vague) + 1) for _ in range(40)]
        fitting = [text for text in drawn if (len(text) > len(answer)) == longer]
        return min(fitting, key=lambda text: abs(len(text) - target))
    # no_ending: the bad answer ends without a punctuation mark. To be longer than the good answer, it has text of
    # another answer instead of the last sentence.
    whole = "".join(sentences(answer)[:-1]) + rng.choice(others) * 2 if longer else answer
    while whole[target - 1] in "，。；：、！？":
        target += 1 if longer else -1
    return whole[:target]


def pairs_of(topic: dict, answers: Answers, vague: dict[str, list[str]], rng: random.Random) -> list[list[dict]]:
    """Return the preference pairs of a topic, one list per question.

    The pairs of questions in the group `asked` are for training: one pair per training wording, so DPO sees every
    wording. The pairs of the groups `read` and `unread` are held out.
    One bad answer per question is hand-written. The others are composed from answers of the same group, or from vague
    sentences. Held-out pairs have their own vague sentences, vague["held_out"]. So SFT and DPO train on no answer and
    no vague sentence of a held-out pair.
    """
    result = []
    # Longer and shorter bad answers alternate within each flaw. So the length does not show which answer is bad.
    longer = {flaw: itertools.cycle(rng.sample([True, False], 2)) for flaw in COMPOSED_FLAWS}
    for index, question in enumerate(topic.get("questions", [])):
        answer, group = question["answer"], group_of(topic, index)
        elsewhere = [text for name, texts in answers[group].items() if name != topic["topic"] for text in texts]
        siblings = [text for text in answers[group][topic["topic"]] if text != answer]
        vague_sentences = vague["training" if group == "asked" else "held_out"]
        rejections = [(question["rejected"]["flaw"], question["rejected"]["text"])]
        for flaw in ("other_topic", *(COMPOSED_FLAWS[1 + (index + turn) % 3] for turn in range(3)), "other_topic"):
            others = elsewhere if flaw == "other_topic" else siblings or elsewhere
            text = composed_rejection(flaw, answer, others, vague_sentences, next(longer[flaw]), rng)
            rejections.append((flaw, text))
        wordings = question["wordings"][: WORDINGS if group == "asked" else HELDOUT_WORDINGS]
        pairs = []
        for wording, (flaw, text) in zip(wordings, rejections, strict=False):
            row = {"question": wording, "response_chosen": answer, "response_rejected": text}
            pairs.append({**row, "flaw": flaw, "topic": topic["topic"]})
        result.append(pairs)
    return result
