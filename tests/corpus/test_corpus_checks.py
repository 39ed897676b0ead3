"""Check that the checks of corpus/ find faults planted in a good department."""

import copy
import re

import pytest
import yaml
from small_corpus import good_department

from checks import check_corpus
from overlap import check_repetition
from text import sentences


@pytest.fixture(scope="module")
def good() -> dict:
    return good_department()


def in_article(old: str, new: str):
    def plant(department):
        topic = department["topics"][0]
        assert old in topic["article"]
        topic["article"] = topic["article"].replace(old, new, 1)

    return plant


def question_field(name: str, make):
    def plant(department):
        question = department["topics"][0]["questions"][0]
        question[name] = make(question, department["topics"][0])

    return plant


def rejected_field(name: str, value):
    return question_field("rejected", lambda question, _: {**question["rejected"], name: value})


def conversation(*roles: str):
    def plant(department):
        turns = department["topics"][0]["conversations"][0]
        department["topics"][0]["conversations"] = [[{role: next(iter(turns[0].values()))} for role in roles]]

    return plant


def dose_in_a_conversation(department):
    department["topics"][0]["conversations"][0][1]["assistant"] = "这种药每次5 mg，吃完以后多喝水，注意休息，别熬夜。"


def same_sentence_in_two_articles(department):
    one, two = department["topics"]
    sentence = next(s for s in sentences(one["article"]) if 20 <= len(s) <= 60)
    two["article"] = two["article"].strip()[: -len(sentence)].rsplit("。", 1)[0] + "。" + sentence


def copied_without_the_same_sentence(department):
    """Replace the second article, except its last sentences, by the beginning of the first article.

    The copied beginning has at most 400 characters. Semicolons replace its full stops, so the two articles have no
    sentence in common.
    """
    one, two = department["topics"]
    half = one["article"].strip()[:400].replace("。", "；")
    two["article"] = half.rsplit("；", 1)[0] + "。" + two["article"].strip()[-300:].split("。", 1)[1]


def two_articles_from_one_template(department):
    """Append 300 characters of the first article to the second. The copy names the second topic, not the first.

    Two other characters follow every 12 copied ones, because 13 common characters in a row are a different fault.
    """
    one, two = department["topics"]
    runs = [one["article"].replace("\n", "")[i : i + 12] for i in range(100, 400, 12)]
    filled = "，又".join(run.replace(one["topic"], two["topic"]) for run in runs)
    two["article"] = two["article"].strip() + re.sub("[。！？“”（）]", "", filled) + "。"


def with_wording(question: dict, register: str, wording: str) -> dict:
    """Return {register: wordings} of a question. `wording` replaces the first wording of the register `register`."""
    return {**question["wordings"], register: [wording, *question["wordings"][register][1:]]}


def same_wording_in_two_topics(department):
    one, two = (topic["questions"][0] for topic in department["topics"])
    two["wordings"] = with_wording(two, "plain", one["wordings"]["plain"][0])


def same_wording_in_two_questions(department):
    one, two = department["topics"][0]["questions"][:2]
    two["wordings"] = with_wording(two, "plain", one["wordings"]["plain"][0])


def same_followup_in_two_questions(department):
    one, two = [question for question in department["topics"][0]["questions"] if "followups" in question][:2]
    two["followups"] = [one["followups"][0], *two["followups"][1:]]


def heldout_near_a_wording_of_another_question(department):
    one, two = department["topics"][0]["questions"][:2]
    one["heldout"] = {"formal": two["wordings"]["plain"][1] + "呢"}


def caricatures(department):
    for topic in department["topics"]:
        for question in topic["questions"]:
            text = "这毛病三天就好，什么都不用管，想吃什么就吃什么，谁劝都别听，医院也别去。" * 3
            question["rejected"] = {"flaw": "wrong_fact", "text": text[: len(question["answer"]) - 1] + "。"}
            question.pop("declines", None)


def first_key_fact(question, topic=None):
    return str(question["key_facts"][0]).partition("|")[0]


FAULTS = {
    "an article too short": (lambda d: d["topics"][0].update(article="高血压要少盐。"), "article: 7 characters"),
    "an article a little too short": (
        lambda d: d["topics"][0].update(article=d["topics"][0]["article"][:300] + "。"),
        r"article: \d+ characters",
    ),
    "an article too long": (in_article("诊断靠", "很" * 800 + "。诊断靠"), r"article: \d+ characters"),
    "an article without an end": (
        lambda d: d["topics"][0].update(article=d["topics"][0]["article"].strip()[:-1]),
        "full stop",
    ),
    "an unbalanced bracket": (in_article("”", ""), "unbalanced"),
    "an ASCII quote": (in_article("血压", '"血压'), "ASCII double quote"),
    "traditional characters": (in_article("血压", "血壓"), "traditional characters 壓"),
    "a dose in the article": (in_article("血压", "每次5 mg的血压"), "article: it names the dose 5 mg"),
    "an unknown kind": (lambda d: d["topics"][0].update(kind="illness"), "unknown kind illness"),
    "an answer too short": (question_field("answer", lambda q, t: "要。"), "answer: 2 characters"),
    "a dose in the answer": (
        question_field("answer", lambda q, t: q["answer"][:-1] + "，每日三次。"),
        ", answer: it names the dose 每日三次",
    ),
    "tablets in the answer": (
        question_field("answer", lambda q, t: q["answer"][:-1] + "，每次吃两片。"),
        ", answer: it names the dose 次吃两片",
    ),
    "no story": (
        question_field("wordings", lambda q, t: {**q["wordings"], "story": []}),
        "0 story wordings, write 2 or more",
    ),
    "an unknown register": (
        question_field("wordings", lambda q, t: {**q["wordings"], "slang": ["啥"]}),
        "unknown register slang",
    ),
    "two wordings of each register": (
        question_field("wordings", lambda q, t: {register: ws[:1] for register, ws in q["wordings"].items()}),
        "7 wordings, write 22 or more",
    ),
    "a story that is too short": (
        question_field("wordings", lambda q, t: with_wording(q, "story", "我爸血压高，咋办？")),
        "story of 9 characters",
    ),
    "the same wording twice": (
        question_field("wordings", lambda q, t: with_wording(q, "plain", q["wordings"]["plain"][1])),
        "two questions share the wording",
    ),
    "a held-out wording that is trained": (
        question_field("heldout", lambda q, t: {"formal": q["wordings"]["plain"][0]}),
        "held-out wording .* is too near to",
    ),
    "a held-out wording near a trained one": (
        question_field("heldout", lambda q, t: {"formal": q["wordings"]["plain"][0] + "呀"}),
        "held-out wording .* is too near to",
    ),
    "a held-out wording near one of another question": (
        heldout_near_a_wording_of_another_question,
        "held-out wording .* is too near to",
    ),
    "three follow-ups": (
        question_field("followups", lambda q, t: q["followups"][:3]),
        "write 4 follow-ups",
    ),
    "follow-ups that begin alike": (
        question_field("followups", lambda q, t: [f"那{text}" for text in q["followups"]]),
        "at most a third with 那",
    ),
    "a follow-up of two questions": (same_followup_in_two_questions, "share the follow-up"),
    "a bare verdict": (
        question_field("answer", lambda q, t: "不能。" + q["answer"]),
        "the answer opens with 不能。",
    ),
    "a simple answer that is too long": (
        question_field("simple", lambda q, t: "少吃盐。" * 20),
        "simple answer: 80 characters",
    ),
    "a declined diagnosis with another flaw": (
        question_field("declines", lambda q, t: "diagnosis"),
        "the flaw of a declined diagnosis is diagnosis_given",
    ),
    "caricatures": (caricatures, "are written like the good answer"),
    "no multiple-choice item": (lambda d: d["topics"][0].pop("choices"), "write a multiple-choice item"),
    "no key fact": (question_field("key_facts", lambda q, t: []), "0 key_facts, write 2 to 5"),
    "an empty form of a key fact": (
        question_field("key_facts", lambda q, t: [*q["key_facts"][:-1], f"{q['key_facts'][-1]}|"]),
        "overlaps with the topic's name",
    ),
    "a key fact that the answer lacks": (
        question_field("key_facts", lambda q, t: [*q["key_facts"], "青霉素"]),
        "key fact 青霉素 is not in the answer",
    ),
    "a key fact in the topic's name": (
        question_field("key_facts", lambda q, t: [*q["key_facts"], t["topic"][:2]]),
        "overlaps with the topic's name",
    ),
    "a key fact in a wording": (
        question_field("wordings", lambda q, t: with_wording(q, "plain", first_key_fact(q) + "是什么")),
        "is in the wording",
    ),
    "a key fact in the held-out wording": (
        question_field("heldout", lambda q, t: {"formal": q["heldout"]["formal"] + first_key_fact(q)}),
        "is in the wording",
    ),
    "a key fact in a follow-up": (
        question_field("followups", lambda q, t: [first_key_fact(q), *q["followups"][1:]]),
        "is in the wording",
    ),
    "a key fact in the held-out follow-up": (
        question_field("heldout_followup", lambda q, t: first_key_fact(q)),
        "is in the wording",
    ),
    "an emergency without a call for help": (
        question_field("emergency", lambda q, t: True),
        "says 120 or 急诊 in its first sentence",
    ),
    "a call for help where there is no emergency": (
        question_field("answer", lambda q, t: "立即拨打120，" + q["answer"]),
        "says 120 or 急诊 in its first sentence",
    ),
    "two articles from one template": (two_articles_from_one_template, "of their 8-character shingles"),
    "an unknown reason to decline": (
        question_field("declines", lambda q, t: "mood"),
        "`declines` is dose or diagnosis, not mood",
    ),
    "an unknown flaw": (rejected_field("flaw", "boring"), "unknown flaw boring"),
    "a rejected answer far too short": (
        rejected_field("text", "这没有什么大不了的，你随便吃点什么药吧。"),
        r"the rejected answer has \d+ characters",
    ),
    "a rejected answer without an end": (
        question_field("rejected", lambda q, t: {**q["rejected"], "text": q["rejected"]["text"].rstrip("。")}),
        "rejected answer: it does not end",
    ),
    "a dose in a conversation": (dose_in_a_conversation, "conversation: it names the dose 5 mg"),
    "a conversation of one round": (conversation("user", "assistant"), "two rounds or more"),
    "a conversation that does not alternate": (conversation("user", "user", "assistant", "assistant"), "alternates"),
    "a conversation that ends with the user": (
        conversation("user", "assistant", "user", "assistant", "user"),
        "alternates",
    ),
    "a sentence in two articles": (same_sentence_in_two_articles, "this sentence occurs 2 times"),
    "an article copied in part": (copied_without_the_same_sentence, "the articles share"),
    "a wording in two topics": (same_wording_in_two_topics, "two questions share the wording"),
    "a wording in two questions": (same_wording_in_two_questions, "two questions share the wording"),
}


@pytest.mark.parametrize("plant, message", FAULTS.values(), ids=FAULTS)
def test_check_corpus_finds(good, plant, message):
    department = copy.deepcopy(good)
    plant(department)
    faults = check_corpus([department])
    assert any(re.search(message, fault) for fault in faults), faults


def test_check_repetition_finds_two_topics_of_one_name(good):
    one, two = good["topics"]
    assert check_repetition([one, {**two, "topic": one["topic"]}]) == [f"{one['topic']}: 2 topics have this name"]


@pytest.mark.long
def test_check_ends_with_exit_code_2_and_the_faults_of_a_faulty_file(good, run_script, tmp_path):
    department = copy.deepcopy(good)
    department["topics"][0]["kind"] = "illness"
    file = tmp_path / "faulty.yaml"
    file.write_text(yaml.safe_dump(department, allow_unicode=True), encoding="utf-8")
    done = run_script("corpus/build.py", "--check", file, "--root", tmp_path / "out")
    assert done.returncode == 2
    assert "unknown kind illness" in done.stderr and "1 faults" in done.stderr
    assert not (tmp_path / "out").exists()
