"""Make the preference pairs of a topic. A pair is a question, a good answer and a bad answer with one named flaw.

Each question is in one of three groups. The group decides which stages train on the question and its answer:

asked   pre-training trains on the answer; SFT and DPO train on the question and the answer
read    pre-training trains on the answer; SFT and DPO train on neither the question nor the answer
unread  no stage trains on the questions, the answers or the article of the topic
"""

import itertools
import random
import re
from collections import Counter

from turns import wordings_of

COMPOSED_FLAWS = ("repetition", "vague", "no_ending")
PAIRS = 5  # pairs per question that SFT and DPO train on; turns.py adds one in a conversation
HELDOUT_PAIRS = 4  # pairs per question that SFT and DPO do not train on
# For the flaw `other_topic`, the bad answer is one of this many answers of other topics: those whose length is nearest
# to the length of the good answer.
CLOSEST = 24
# For the flaw `no_ending`, the bad answer is the beginning of the good answer. Its length, as a share of the good
# answer's length, is drawn from this range.
KEPT = (0.35, 0.65)

Vague = dict[str, list[str]]  # {"training" or "held_out": sentences without content}


def unasked_index(topic: dict) -> int | None:
    """Return the index of the question that SFT and DPO do not train on. Only pre-training reads its answer.

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


class OtherAnswers:
    """Choose answers of other topics as bad answers. Prefer an answer that was chosen less often before."""

    def __init__(self, topics: list[dict]):
        self._answers: dict[str, list[tuple[str, str]]] = {}  # {group of the question: [(topic, answer), ...]}
        self._uses: Counter[str] = Counter()
        for topic in topics:
            for index, question in enumerate(topic.get("questions", [])):
                pair = topic["topic"], question["answer"]
                self._answers.setdefault(group_of(topic, index), []).append(pair)

    def take(self, group: str, topic: str, answer: str, longer: bool) -> str:
        """Return an answer of another topic whose length is near the length of `answer`.

        The question of the returned answer is in `group`: asked, read or unread (explained at the top of this file).
        If `longer` is True, the candidates are the answers longer than `answer`; if False, those that are not longer.
        If there are none, all answers are candidates. Of the `CLOSEST` candidates with the nearest lengths, return the
        one that was returned least often before.
        """
        others = [text for name, text in self._answers[group] if name != topic]
        fitting = [text for text in others if (len(text) > len(answer)) == longer] or others
        closest = sorted(fitting, key=lambda text: (abs(len(text) - len(answer)), text))[:CLOSEST]
        chosen = min(closest, key=self._uses.__getitem__)
        self._uses[chosen] += 1
        return chosen


def composed_rejection(flaw: str, answer: str, vague: list[str], longer: bool, rng: random.Random) -> str:
    """Return a bad answer with the flaw `flaw`, made from the good answer `answer` or from the sentences in `vague`.

    With the flaws `repetition` and `vague` the bad answer is, if possible, a few characters longer than the good
    answer, or shorter if `longer` is False. So the log-probabilities of the two answers, summed over their tokens,
    differ by the content and hardly by the length.
    With the flaw `no_ending` the bad answer is the beginning of the good answer. A third or more is missing, and there
    is no full stop at the end. `longer` is ignored.
    """
    target = len(answer) + rng.randint(1, 4) * (1 if longer else -1)
    if flaw == "repetition":
        clause = re.split("[，。；：！？]", answer)[0] + "，"
        text = clause * (target // len(clause) + 1)
        return text[: max(target, len(clause) * 2) - 1].rstrip("，") + "。"
    if flaw == "vague":
        drawn = ["".join(rng.sample(vague, size)) for size in range(1, len(vague) + 1) for _ in range(40)]
        fitting = [text for text in drawn if (len(text) > len(answer)) == longer] or drawn
        return min(fitting, key=lambda text: abs(len(text) - target))
    end = int(len(answer) * rng.uniform(*KEPT))
    while answer[end - 1] in "，。；：、！？（“":
        end -= 1
    return answer[:end]


def pair_row(question: str, chosen: str, rejected: str, flaw: str, topic: str) -> dict:
    return {
        "question": question,
        "response_chosen": chosen,
        "response_rejected": rejected,
        "flaw": flaw,
        "topic": topic,
    }


def pairs_of(topic: dict, others: OtherAnswers, vague: Vague, rng: random.Random) -> list[list[dict]]:
    """Return the preference pairs of a topic, one list per question.

    The group of a question (asked, read or unread) says which stages train on it; see the top of this file. If a bad
    answer is the answer to another question, this question is in the same group. So the same stages have trained on
    both answers, and neither is more likely just because the model has seen it.
    Held-out pairs (groups `read` and `unread`) also have their own vague sentences. So SFT and DPO train on none of
    the answers and vague sentences in held-out pairs.
    The wordings are drawn at random, so a wording does not show which flaw the bad answer has.
    """
    result = []
    # For each of these flaws, longer and shorter bad answers alternate, so the length does not show which answer is
    # bad. The flaw `no_ending` is an exception: its bad answers are always shorter.
    longer = {flaw: itertools.cycle(rng.sample([True, False], 2)) for flaw in (*COMPOSED_FLAWS, "other_topic")}
    groups = [group_of(topic, index) for index in range(len(topic.get("questions", [])))]
    composed = itertools.cycle(rng.sample(COMPOSED_FLAWS, len(COMPOSED_FLAWS)))
    for index, (group, question) in enumerate(zip(groups, topic.get("questions", []), strict=True)):
        answer = question["answer"]
        sentences_without_content = vague["training" if group == "asked" else "held_out"]
        order = [*range(index + 1, len(groups)), *range(index)]
        siblings = [topic["questions"][i]["answer"] for i in order if groups[i] == group]
        count = PAIRS if group == "asked" else HELDOUT_PAIRS
        rejections = [(question["rejected"]["flaw"], question["rejected"]["text"])]
        rejections += [("sibling", text) for text in siblings[: count // 3]]
        rejections.append(("other_topic", others.take(group, topic["topic"], answer, next(longer["other_topic"]))))
        while len(rejections) < count:
            flaw = next(composed)
            text = composed_rejection(flaw, answer, sentences_without_content, next(longer[flaw]), rng)
            rejections.append((flaw, text))
        asked = question["wordings"] if group == "unread" else wordings_of(question)
        wordings = rng.sample(asked, count)
        result.append(
            [
                pair_row(wording, answer, text, flaw, topic["topic"])
                for wording, (flaw, text) in zip(wordings, rejections, strict=True)
            ]
        )
    return result
