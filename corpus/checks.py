"""Check the hand-written topics of corpus/knowledge/. Each function returns a list of faults, one line per fault."""

import re

from med_model.language import tr
from med_model.measures.safety import DOSE, is_urgent
from overlap import check_repetition, check_similarity
from pairs import HELDOUT_PAIRS
from text import characters, common_pairs
from wordings import check_wordings

KINDS = {"disease", "symptom", "medicine", "test", "first_aid", "prevention", "assistant"}
WRITTEN_FLAWS = {
    "wrong_fact",
    "dose_given",
    "diagnosis_given",
    "false_reassurance",
    "off_question",
    "rude",
    "miracle_cure",
}
FLAW_OF_DECLINED = {"dose": "dose_given", "diagnosis": "diagnosis_given"}
# (smallest, largest) allowed length, in characters without whitespace
ARTICLE_LENGTH = (600, 1600)
ANSWER_LENGTH = (20, 160)
SIMPLE_LENGTH = (12, 50)
REJECTED_LENGTH = (14, 200)
TURN_LENGTH = (20, 200)
OPTION_LENGTH = (1, 30)
REJECTED_RATIO = (0.65, 1.5)  # (smallest, largest) length of the rejected answer / length of the good answer
# A bad answer counts as written like the good answer if the two have at least this share of their pairs of
# neighbouring characters in common.
REJECTED_ALIKE = 0.5

# `VERDICT` matches a bare verdict at the beginning of an answer, for example 不能。 ("It cannot."). It is a fault: an
# answer must fit every wording of its question, and a bare verdict fits "can it?" but not "why?" or "how long?".
VERDICT = re.compile(
    "^(不?(?:会|能|可以|行|用|要|需要|是|建议|必|一定|合适|管用|对|好)|有用|没用|没有|没事|有|可)(?:的|吧|啊)?[，。；：、]"
)

# Traditional forms of common characters. The texts are in simplified Chinese, so each of these is a typing error.
TRADITIONAL = set(
    "們這個來時說國過還後對學會發現經氣體藥醫療臟鬱壓頭腦檢嚴確應該關節當變無間題傷熱進飲為與樣將從點開兒齡難請讓長門問聽覺視線腫腸膽腎脈絡"
)


def check_simplified(text: str, origin: str) -> list[str]:
    slips = TRADITIONAL & set(text)
    return (
        [tr("{origin}: traditional characters {slips}", origin=origin, slips="".join(sorted(slips)))] if slips else []
    )


def check_dose(text: str, origin: str) -> list[str]:
    found = DOSE.search(text)
    return [tr("{origin}: it names the dose {dose}", origin=origin, dose=found.group())] if found else []


def check_length(text: str, origin: str, length: tuple[int, int]) -> list[str]:
    least, most = length
    count = characters(text)
    if least <= count <= most:
        return []
    return [
        tr("{origin}: {count} characters, write {least} to {most}", origin=origin, count=count, least=least, most=most)
    ]


def check_prose(text: str, origin: str, length: tuple[int, int]) -> list[str]:
    """Check the length, the last character, paired marks and quotes of a text. Find traditional characters."""
    faults = check_length(text, origin, length)
    if text.strip()[-1:] not in tuple("。！？”）"):
        faults.append(tr("{origin}: it does not end with a full stop: …{end}", origin=origin, end=text.strip()[-8:]))
    for left, right in ("“”", "（）", "《》"):
        if text.count(left) != text.count(right):
            faults.append(tr("{origin}: unbalanced {marks}", origin=origin, marks=left + right))
    if '"' in text:
        faults.append(tr("{origin}: ASCII double quote, write “ or ”", origin=origin))
    return faults + check_simplified(text, origin)


def check_urgency(question: dict, answer: str, origin: str) -> list[str]:
    """Check that the first sentence of an answer says to get emergency help if, and only if, there is an emergency.

    The measures of emergency answers also check only the first sentence.
    """
    if bool(question.get("emergency")) == is_urgent(answer):
        return []
    return [tr("{origin}: an emergency answer, and no other, says 120 or 急诊 in its first sentence", origin=origin)]


def check_answers(question: dict, origin: str) -> list[str]:
    """Check the good and the bad answer of a training or held-out question."""
    answer, rejected = question["answer"], question["rejected"]
    answer_origin = tr("{origin}, answer", origin=origin)
    faults = check_prose(answer, answer_origin, ANSWER_LENGTH) + check_dose(answer, answer_origin)
    faults += check_urgency(question, answer, origin)
    if opening := VERDICT.search(answer):
        faults.append(
            tr(
                "{origin}: the answer opens with {opening} and fits only one form of question: restate the claim",
                origin=origin,
                opening=opening.group(),
            )
        )
    if question.get("declines", "dose") not in FLAW_OF_DECLINED:
        faults.append(
            tr("{origin}: `declines` is dose or diagnosis, not {value}", origin=origin, value=question["declines"])
        )
    elif question.get("declines") == "diagnosis" and rejected["flaw"] != "diagnosis_given":
        faults.append(tr("{origin}: the flaw of a declined diagnosis is diagnosis_given", origin=origin))
    if "simple" in question:
        faults += check_simple(question, origin)
    if rejected["flaw"] not in WRITTEN_FLAWS:
        faults.append(tr("{origin}: unknown flaw {flaw}", origin=origin, flaw=rejected["flaw"]))
    faults += check_prose(rejected["text"], tr("{origin}, rejected answer", origin=origin), REJECTED_LENGTH)
    least, most = REJECTED_RATIO
    if not least <= characters(rejected["text"]) / characters(answer) <= most:
        faults.append(
            tr(
                "{origin}: the rejected answer has {rejected} characters, the answer {answer}: "
                "write {least:g} to {most:g} times as many",
                origin=origin,
                rejected=characters(rejected["text"]),
                answer=characters(answer),
                least=least,
                most=most,
            )
        )
    return faults


def check_simple(question: dict, origin: str) -> list[str]:
    """Check the field `simple` of a question. It holds a shorter answer in plain words."""
    simple = question["simple"]
    faults = check_prose(simple, tr("{origin}, simple answer", origin=origin), SIMPLE_LENGTH)
    return faults + check_dose(simple, origin) + check_urgency(question, simple, origin)


def check_choice(choice: dict, origin: str) -> list[str]:
    """Check the options of a multiple-choice item. Find traditional characters in its options and question."""
    options = [choice["right"], *choice["wrong"]]
    faults = []
    if len(options) != 4 or len(set(options)) != 4:
        faults.append(tr("{origin}: write one right and three wrong answers, all different", origin=origin))
    for option in options:
        faults += check_length(option, tr("{origin}, option {option}", origin=origin, option=option), OPTION_LENGTH)
    return faults + check_simplified("".join(options) + choice["question"], origin)


def check_conversation(conversation: list[dict], origin: str) -> list[str]:
    """Check the roles of a conversation and each turn of the assistant."""
    faults = []
    roles = [next(iter(turn)) for turn in conversation]
    if roles != ["user", "assistant"] * (len(roles) // 2) or len(roles) < 4:
        faults.append(
            tr(
                "{origin}: it alternates user and assistant for two rounds or more, found {roles}",
                origin=origin,
                roles=", ".join(roles),
            )
        )
    for turn in conversation:
        if "assistant" in turn:
            faults += check_prose(turn["assistant"], origin, TURN_LENGTH) + check_dose(turn["assistant"], origin)
    return faults


def check_heldout_topic(topic: dict) -> list[str]:
    """Check the wordings of the questions of a held-out topic."""
    faults = []
    for number, question in enumerate(topic.get("questions", []), 1):
        origin = tr("{topic}, question {number}", topic=topic["topic"], number=number)
        if len(set(question["wordings"])) != HELDOUT_PAIRS or len(question["wordings"]) != HELDOUT_PAIRS:
            faults.append(tr("{origin}: write {count} different wordings", origin=origin, count=HELDOUT_PAIRS))
    return faults


def check_trained_topic(topic: dict) -> list[str]:
    """Check the wordings and conversations of a training topic, and that it has a multiple-choice item."""
    faults = check_wordings(topic)
    for conversation in topic.get("conversations", []):
        faults += check_conversation(conversation, tr("{topic}, conversation", topic=topic["topic"]))
    if topic["kind"] != "assistant" and not topic.get("choices"):
        faults.append(tr("{topic}: write a multiple-choice item", topic=topic["topic"]))
    return faults


def check_styles(topics: list[dict]) -> list[str]:
    """Check that at least two thirds of the bad answers with a wrong fact are written like the good answer.

    With fewer, the style alone would often show which answer is bad, and a model would not have to learn the fact.
    """
    shares = [
        common_pairs(question["answer"], question["rejected"]["text"])
        for topic in topics
        for question in topic.get("questions", [])
        if question["rejected"]["flaw"] == "wrong_fact"
    ]
    alike = sum(share >= REJECTED_ALIKE for share in shares)
    if 3 * alike >= 2 * len(shares):
        return []
    return [
        tr(
            "{alike} of {count} answers with a wrong fact are written like the good answer: at least two thirds",
            alike=alike,
            count=len(shares),
        )
    ]


def check_topic(topic: dict) -> list[str]:
    """Check one topic. Raise KeyError if a required field is missing."""
    name = topic["topic"]
    faults = [] if topic["kind"] in KINDS else [tr("{topic}: unknown kind {kind}", topic=name, kind=topic["kind"])]
    if "article" in topic or topic.get("held_out"):
        origin = tr("{topic}, article", topic=name)
        faults += check_prose(topic["article"], origin, ARTICLE_LENGTH) + check_dose(topic["article"], origin)
    for number, question in enumerate(topic.get("questions", []), 1):
        faults += check_answers(question, tr("{topic}, question {number}", topic=name, number=number))
    for number, choice in enumerate(topic.get("choices", []), 1):
        faults += check_choice(choice, tr("{topic}, choice {number}", topic=name, number=number))
    return faults + (check_heldout_topic(topic) if topic.get("held_out") else check_trained_topic(topic))


def check_corpus(departments: list[dict]) -> list[str]:
    """Check every topic. If no topic has a fault, also check all topics together."""
    topics = [topic for department in departments for topic in department["topics"]]
    faults = []
    for topic in topics:
        try:
            faults += check_topic(topic)
        except KeyError as missing:
            name = topic.get("topic", topic)
            faults.append(tr("{topic}: the field {missing} is missing", topic=name, missing=missing))
    return faults or check_styles(topics) + check_repetition(topics) + check_similarity(topics)
