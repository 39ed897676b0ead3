"""Make conversations from the questions of a topic. A turn is a question of the user and the answer to it.

Most conversations have two or three turns. The later questions are usually follow-ups: short questions, written by
hand, that do not name the topic. A few are whole questions. turns.yaml has other things that people say after an
answer, for example thanks. The seed of the random numbers comes from the topic's name, so every build makes the same
conversations.
"""

import itertools
import random

PER_TOPIC = {
    "correction": 1,
    "again": 1,
    "simpler": 2,
    "thanks": 3,
    "new question": 2,
    "new topic": 1,
    "three turns": 2,
    "system": 1,
}
THANKS_ITEM = "致谢"
# Wordings of these registers tell who asks, how old and what happened. The answer to a follow-up does not reckon with
# that, so they are no first turn before another question.
PERSONAL = ("story", "elderly", "relative")

Questions = dict[str, dict]  # {item: question}; an item is, for example, 高血压/1


def turn(question: str, answer: str) -> list[dict]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def wordings_of(question: dict) -> list[str]:
    """Return the training wordings of a question, of all registers (kinds of wording)."""
    return list(itertools.chain(*question["wordings"].values()))


def impersonal_wordings_of(question: dict) -> list[str]:
    """Return the training wordings of a question whose register is not in PERSONAL."""
    return [text for register, texts in question["wordings"].items() if register not in PERSONAL for text in texts]


def marks_of(question: dict) -> dict:
    """Return the fields that say what a right answer to a question contains, for example its key facts."""
    marks = {"key_facts": [str(fact) for fact in question["key_facts"]]}
    return marks | {name: question[name] for name in ("emergency", "declines", "scope") if question.get(name)}


class TopicTurns:
    """Make the conversations of one topic. The field `item` of each names its last question, for example 高血压/1."""

    def __init__(self, topic: str, questions: Questions, phrases: dict[str, dict[str, list[str]]]):
        """questions: the questions of the topic that SFT and DPO train on. phrases: the content of turns.yaml."""
        self.topic, self.questions, self.phrases = topic, questions, phrases
        self.rng = random.Random(f"{topic} turns")

    def _some(self, count: int) -> list[tuple[str, dict]]:
        return self.rng.sample(list(self.questions.items()), min(count, len(self.questions)))

    def _earlier(self, *later: str) -> str:
        """Choose the question of an earlier turn. Return its item, for example 高血压/1.

        later: the items of the turns after this turn, the next turn first. If possible, the result is none of them.
        Nobody calmly asks another question after "call 120". So an emergency is chosen only if the next turn is an
        emergency too, or if there is no other question to choose.
        """
        others = [item for item in self.questions if item not in later] or list(self.questions)
        calm = [item for item in others if not self.questions[item].get("emergency")]
        emergency = later and self.questions[later[0]].get("emergency")
        return self.rng.choice(others if emergency else calm or others)

    def _first(self, *later: str) -> list[dict]:
        """Return the first turn of a conversation. later: the items (question ids) of the later turns, in order."""
        question = self.questions[self._earlier(*later)]
        return turn(self.rng.choice(impersonal_wordings_of(question)), question["answer"])

    def _row(self, item: str, marks: dict, *turns: list[dict], topic: str | None = None) -> dict:
        return {"messages": list(itertools.chain(*turns)), "item": item, "topic": topic or self.topic, **marks}

    def _followup(self, item: str, text: str) -> dict:
        """Return two turns: another question of the topic, then `text`, which asks for the answer of `item`."""
        question = self.questions[item]
        return self._row(item, marks_of(question), self._first(item), turn(text, question["answer"]))

    def _about_one_item(self, item: str, text: str, answer: str) -> dict:
        """Return two turns about one question: it and its answer, then `text` ("say it again") and `answer`."""
        question = self.questions[item]
        marks = marks_of(question)
        if answer != question["answer"]:
            del marks["key_facts"]  # they are from the long answer; a simpler answer may lack them
        first = turn(self.rng.choice(wordings_of(question)), question["answer"])
        return self._row(item, marks, first, turn(text, answer))

    def _between(self, kind: str, part: str) -> list[dict]:
        """Return conversations in which the user says a phrase of turns.yaml after the first answer.

        kind: the kind of phrase, for example "thanks". part: "training" or "held_out", the two parts of turns.yaml.
        """
        phrases, count = self.phrases[part][kind], PER_TOPIC[kind] if part == "training" else 1
        if kind == "thanks":
            answers = self.phrases["training"]["you_are_welcome"]
            last = turn(self.rng.choice(phrases), self.rng.choice(answers))
            return [self._row(THANKS_ITEM, {}, self._first(), last) for _ in range(count)]
        if kind == "simpler":
            simple = [(item, question["simple"]) for item, question in self.questions.items() if "simple" in question]
            return [self._about_one_item(item, self.rng.choice(phrases), text) for item, text in simple[:count]]
        if kind == "again":
            chosen = self._some(count)
            return [self._about_one_item(item, self.rng.choice(phrases), q["answer"]) for item, q in chosen]
        key = "followups" if part == "training" else "heldout_followup"
        chosen = [(item, question) for item, question in self._some(len(self.questions)) if key in question][:count]
        rows = []
        for item, question in chosen:
            followup = self.rng.choice(question[key]) if part == "training" else question[key]
            rows.append(self._followup(item, self.rng.choice(phrases).format(question=followup)))
        return rows

    def training(self, others: list[tuple[str, str, dict]]) -> list[dict]:
        """Return the training conversations. others: questions of other topics, as (topic, item, question)."""
        rows = [
            self._followup(item, text) for item, question in self.questions.items() for text in question["followups"]
        ]
        for kind in ("correction", "again", "simpler", "thanks"):
            rows += self._between(kind, "training")
        for item, question in self._some(PER_TOPIC["new question"]):
            rows.append(self._followup(item, self.rng.choice(wordings_of(question))))
        for topic, item, question in self.rng.sample(others, PER_TOPIC["new topic"]):
            last = turn(self.rng.choice(wordings_of(question)), question["answer"])
            rows.append(self._row(item, marks_of(question), self._first(), last, topic=topic))
        for item, question in self._some(PER_TOPIC["three turns"]):
            second = self._earlier(item)
            middle = self.questions[second]
            turns = self._first(second, item), turn(self.rng.choice(middle["followups"]), middle["answer"])
            last = turn(self.rng.choice(question["followups"]), question["answer"])
            rows.append(self._row(item, marks_of(question), *turns, last))
        for item, question in self._some(PER_TOPIC["system"]):
            system = [{"role": "system", "content": self.rng.choice(self.phrases["training"]["system"])}]
            first = turn(self.rng.choice(wordings_of(question)), question["answer"])
            rows.append(self._row(item, marks_of(question), system, first))
        return rows

    def heldout(self) -> list[dict]:
        """Return the held-out conversations.

        There is one per held-out follow-up and, if possible, one with a held-out phrase of turns.yaml.
        """
        written = [
            (i, question["heldout_followup"])
            for i, question in self.questions.items()
            if "heldout_followup" in question
        ]
        rows = [self._followup(item, text) for item, text in written]
        return rows + self._between(self.rng.choice(["correction", "again", "simpler", "thanks"]), "held_out")

    def pairs(self) -> list[dict]:
        """Return one preference pair per question: a conversation whose last question is a follow-up.

        The bad answer is the answer to another question of the topic. Return [] if the topic has no other question.
        """
        if len(self.questions) < 2:
            return []
        rows = []
        for item, question in self.questions.items():
            others = [other["answer"] for name, other in self.questions.items() if name != item]
            messages = self._followup(item, self.rng.choice(question["followups"]))["messages"]
            rows.append(
                {
                    "prompt": messages[:-1],
                    "chosen": question["answer"],
                    "rejected": self.rng.choice(others),
                    "flaw": "sibling",
                    "topic": self.topic,
                }
            )
        return rows
