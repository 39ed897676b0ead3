"""Check the wordings of a training topic. A wording is one way to ask a question.

Each function returns a list of faults, one line per fault.
"""

from collections import Counter

from med_model.language import tr
from pairs import unasked_index
from text import edit_distance, jaccard, shingles
from turns import wordings_of

REGISTERS = ("plain", "colloquial", "keywords", "story", "typo", "elderly", "relative")  # kinds of wording
WORDINGS = 22  # smallest number of training wordings per question that SFT and DPO train on
# Smallest number of training wordings per question and register. A topic about the assistant needs only one, because
# its questions are not about patients.
PER_REGISTER = 2
STORY_LENGTH = (30, 120)  # (smallest, largest) number of characters
FOLLOWUPS = 4  # smallest number of follow-ups per question; at most a third of them may begin with 那
FOLLOWUP_LENGTH = (2, 30)  # (smallest, largest) number of characters
# A held-out wording must be at least `MIN_EDITS` edits (Levenshtein distance) away from each training wording of its
# topic. Of the pairs of neighbouring characters in the two wordings, a share below `MOST_COMMON` may be in both.
MIN_EDITS = 3
MOST_COMMON = 0.5


def check_lengths(texts: list[str], length: tuple[int, int], name: str, origin: str) -> list[str]:
    least, most = length
    return [
        tr(
            "{origin}: {name} of {count} characters, write {least} to {most}: {text}",
            origin=origin,
            name=name,
            count=len(text),
            least=least,
            most=most,
            text=text,
        )
        for text in texts
        if not least <= len(text) <= most
    ]


def check_counts(topic: dict, question: dict, asked: bool, origin: str) -> list[str]:
    """Check the names of the registers (kinds of wording) of a question.

    If SFT and DPO train on the question (`asked`), also check the numbers of wordings and follow-ups, and the lengths
    of follow-ups and of wordings of the register `story`.
    """
    wordings, faults = question["wordings"], []
    faults += [
        tr("{origin}: unknown register {name}", origin=origin, name=name) for name in wordings if name not in REGISTERS
    ]
    if not asked:
        return faults
    if (count := len(wordings_of(question))) < WORDINGS:
        faults.append(
            tr("{origin}: {count} wordings, write {least} or more", origin=origin, count=count, least=WORDINGS)
        )
    least = 1 if topic["kind"] == "assistant" else PER_REGISTER
    for name in REGISTERS:
        if (count := len(wordings.get(name, []))) < least:
            faults.append(
                tr(
                    "{origin}: {count} {register} wordings, write {least} or more",
                    origin=origin,
                    count=count,
                    register=name,
                    least=least,
                )
            )
    faults += check_lengths(question["wordings"].get("story", []), STORY_LENGTH, "story", origin)
    if topic["kind"] != "assistant":
        faults += check_lengths(question.get("followups", []), FOLLOWUP_LENGTH, "follow-up", origin)
        followups = question.get("followups", [])
        if len(followups) < FOLLOWUPS or sum(text.startswith("那") for text in followups) > len(followups) / 3:
            faults.append(
                tr(
                    "{origin}: write {count} follow-ups or more, at most a third with 那",
                    origin=origin,
                    count=FOLLOWUPS,
                )
            )
    return faults


def check_facts(topic: dict, question: dict, origin: str) -> list[str]:
    """Check the number of key facts and the forms of each key fact. Its forms are separated by `|`.

    At least one form must be in the answer. No form may be in a wording or a follow-up of the question, or overlap
    with the name of the topic.
    """
    answer, facts = question["answer"], [str(fact) for fact in question["key_facts"]]
    wordings = [*wordings_of(question), *question["heldout"].values(), *question.get("followups", [])]
    if "heldout_followup" in question:
        wordings.append(question["heldout_followup"])
    faults = []
    if not (1 if len(answer) < 50 else 2) <= len(facts) <= 5:
        faults.append(tr("{origin}: {count} key_facts, write 2 to 5", origin=origin, count=len(facts)))
    for fact in facts:
        forms = fact.split("|")
        if not any(form and form in answer for form in forms):
            faults.append(tr("{origin}: the key fact {fact} is not in the answer", origin=origin, fact=fact))
        for form in forms:
            if form in topic["topic"] or topic["topic"] in form:
                faults.append(
                    tr("{origin}: the key fact {fact} overlaps with the topic's name", origin=origin, fact=form)
                )
            faults += [
                tr(
                    "{origin}: the key fact {fact} is in the wording {wording}",
                    origin=origin,
                    fact=form,
                    wording=wording,
                )
                for wording in wordings
                if form in wording
            ]
    return faults


def check_alike(topic: dict, origin: str) -> list[str]:
    """Find equal training wordings and equal follow-ups of a topic.

    Also find held-out wordings that are too near to a training wording of the topic.
    """
    faults = []
    trained = [wording for question in topic["questions"] for wording in wordings_of(question)]
    faults += [
        tr("{origin}: two questions share the wording {wording}", origin=origin, wording=wording)
        for wording, count in Counter(trained).items()
        if count > 1
    ]
    known = [(wording, shingles(wording, 2)) for wording in trained]
    for heldout in (text for question in topic["questions"] for text in question["heldout"].values()):
        pairs = shingles(heldout, 2)
        for wording, others in known:
            near = abs(len(heldout) - len(wording)) < MIN_EDITS and edit_distance(heldout, wording) < MIN_EDITS
            if jaccard(pairs, others) >= MOST_COMMON or near:
                faults.append(
                    tr(
                        "{origin}: the held-out wording {heldout} is too near to {wording}",
                        origin=origin,
                        heldout=heldout,
                        wording=wording,
                    )
                )
    followups = Counter(text for question in topic["questions"] for text in question.get("followups", []))
    return faults + [
        tr("{origin}: two questions share the follow-up {wording}", origin=origin, wording=wording)
        for wording, count in followups.items()
        if count > 1
    ]


def check_wordings(topic: dict) -> list[str]:
    """Check the wordings, follow-ups and key facts of all questions of a training topic."""
    faults, unasked = [], unasked_index(topic)
    for index, question in enumerate(topic["questions"]):
        origin = tr("{topic}, question {number}", topic=topic["topic"], number=index + 1)
        faults += check_counts(topic, question, index != unasked, origin) + check_facts(topic, question, origin)
    return faults + check_alike(topic, topic["topic"])
