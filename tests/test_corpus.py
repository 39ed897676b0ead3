"""Check corpus/build.py, its modules, and the data sets that it writes."""

import copy
import json
import random
import re
from collections import Counter
from pathlib import Path

import build
import pytest
import yaml
from checks import check_corpus
from pairs import COMPOSED_FLAWS, composed_rejection
from rows import rows_by_file
from text import characters, sentences, shingles

from med_model import paths
from med_model.measures.safety import DOSE, declines_dose

DATASETS = ("pre_training/dataset", "sft/dataset", "dpo/dataset")


def files_below(root: Path) -> dict[str, bytes]:
    folders = [root / dataset for dataset in DATASETS]
    return {str(p.relative_to(root)): p.read_bytes() for f in folders for p in sorted(f.rglob("*")) if p.is_file()}


def rows_of(folder: Path) -> list[dict]:
    files = sorted(folder.rglob("*.jsonl")) if folder.is_dir() else [folder]
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def training_text() -> str:
    folders = (paths.PRETRAINING_DATA, paths.SFT_DATA, paths.DPO_DATA)
    texts = [file.read_text(encoding="utf-8") for folder in folders for file in sorted(folder.rglob("*"))]
    assert len(texts) >= 3
    return "\n".join(texts)


# Tests of the bundled data


@pytest.mark.long
def test_build_writes_every_bundled_file_byte_for_byte_and_no_other(run_script, tmp_path):
    done = run_script("corpus/build.py", "--root", tmp_path)
    assert done.returncode == 0, done.stderr
    made, bundled = files_below(tmp_path), files_below(paths.ROOT)
    assert sorted(made) == sorted(bundled)
    assert [name for name in made if made[name] != bundled[name]] == []


AT_LEAST = {  # the lowest counts that the corpus may have; a test prints the real counts
    "topics trained": 240,
    "topics held out": 15,
    "symptoms": 30,
    "medicines": 40,
    "tests": 25,
    "first-aid situations": 20,
    "prevention topics": 15,
    "characters of written articles": 250_000,
    "characters per article, on average": 1_050,
    "characters of the shortest article": 600,
    "SFT rows": 5_000,
    "SFT rows of the topic that has the fewest": 15,
    "multi-turn conversations": 300,
    "rows answered with 120 or the emergency department": 200,
    "rows that decline to dose or to diagnose": 150,
    "rows about the assistant": 60,
    "off-topic rows": 100,
    "held-out wordings": 480,
    "held-out wordings of the topic that has the fewest": 2,
    "preference pairs": 3_800,
    "held-out preference pairs": 400,
    "multiple-choice items": 150,
    "flaws": 10,
}
OFF_TOPIC = ("寒暄与闲聊", "生活与其他话题")


def corpus_counts() -> dict[str, float]:
    departments = build.read_departments(sorted(paths.KNOWLEDGE.glob("*.yaml")))
    kinds = Counter(topic["kind"] for department in departments for topic in department["topics"])
    written = [row for row in rows_of(paths.PRETRAINING_DATA) if not row["derived"]]
    lengths = [characters(row["text"]) for row in [*written, *rows_of(paths.HELDOUT_TEXT)]]
    rows, heldout = rows_of(paths.SFT_DATA), rows_of(paths.HELDOUT_QUESTIONS)
    trained = {row["topic"] for row in written}
    heldout_per_topic = Counter(row["topic"] for row in heldout)
    return {
        "topics trained": len(trained),
        "topics held out": len(rows_of(paths.HELDOUT_TEXT)),
        "symptoms": kinds["symptom"],
        "medicines": kinds["medicine"],
        "tests": kinds["test"],
        "first-aid situations": kinds["first_aid"],
        "prevention topics": kinds["prevention"],
        "characters of written articles": sum(lengths),
        "characters per article, on average": sum(lengths) / len(lengths),
        "characters of the shortest article": min(lengths),
        "SFT rows": len(rows),
        "SFT rows of the topic that has the fewest": min(Counter(row["topic"] for row in rows).values()),
        "multi-turn conversations": sum("messages" in row for row in rows),
        "rows answered with 120 or the emergency department": sum("emergency" in row for row in rows),
        "rows that decline to dose or to diagnose": sum("declines" in row for row in rows),
        "rows about the assistant": sum(row["topic"] == "关于助手" for row in rows),
        "off-topic rows": sum(row["topic"] in OFF_TOPIC for row in rows),
        "held-out wordings": len(heldout),
        "held-out wordings of the topic that has the fewest": min(heldout_per_topic[topic] for topic in trained),
        "preference pairs": len(rows_of(paths.DPO_DATA)),
        "held-out preference pairs": len(rows_of(paths.HELDOUT_PAIRS)),
        "multiple-choice items": len(rows_of(paths.CHOICES)),
        "flaws": len({row["flaw"] for row in rows_of(paths.DPO_DATA)}),
    }


@pytest.mark.long
def test_corpus_has_the_counts_that_it_promises(note):
    counts = corpus_counts()
    for name, count in counts.items():
        note(f"{name}: {count:,.0f} (at least {AT_LEAST[name]:,})")
    assert {name: count for name, count in counts.items() if count < AT_LEAST[name]} == {}
    assert counts.keys() == AT_LEAST.keys()


def test_topic_of_every_article_has_questions_and_pairs():
    articles = {row["topic"] for row in rows_of(paths.PRETRAINING_DATA)}
    assert {row["topic"] for row in rows_of(paths.SFT_DATA)} == articles
    assert {row["topic"] for row in rows_of(paths.DPO_DATA)} == articles


@pytest.mark.long
def test_heldout_wording_is_in_no_training_file(training_text):
    wordings = [row["instruction"] for row in [*rows_of(paths.HELDOUT_QUESTIONS), *rows_of(paths.EXAM)]]
    assert len(wordings) > 300
    assert [wording for wording in wordings if wording in training_text] == []


def test_heldout_document_has_no_sentence_in_a_training_file(training_text):
    documents = rows_of(paths.HELDOUT_TEXT)
    long = [sentence for row in documents for sentence in sentences(row["text"]) if len(sentence) >= 13]
    assert len(documents) >= 5 and len(long) > 50
    assert [sentence for sentence in long if sentence in training_text] == []


@pytest.mark.long
def test_heldout_document_shares_at_most_1_percent_of_its_shingles_with_the_training_files(training_text):
    trained = shingles(training_text, 13)
    documents = rows_of(paths.HELDOUT_TEXT)
    assert len(documents) >= 15
    for row in documents:
        runs = shingles(row["text"], 13)
        assert len(runs & trained) <= 0.01 * len(runs), row["topic"]


def test_unread_pairs_and_choices_belong_to_the_heldout_topics():
    topics = {row["topic"] for row in rows_of(paths.HELDOUT_TEXT)}
    assert {row["topic"] for row in rows_of(paths.HELDOUT_PAIRS) if row.get("unread")} == topics
    assert {row["topic"] for row in rows_of(paths.CHOICES)} == topics


def test_one_question_per_trained_topic_is_read_in_pretraining_but_not_in_sft_or_dpo():
    read = {row["topic"] for row in rows_of(paths.PRETRAINING_DATA) if not row["derived"]}
    heldout = [row for row in rows_of(paths.HELDOUT_PAIRS) if not row.get("unread")]
    chosen = {row["topic"]: row["response_chosen"] for row in heldout}
    assert set(chosen) == read and len({row["response_chosen"] for row in heldout}) == len(read)
    trained = {row.get("output") for row in rows_of(paths.SFT_DATA)}
    trained |= {row[side] for row in rows_of(paths.DPO_DATA) for side in ("response_chosen", "response_rejected")}
    assert [answer for answer in chosen.values() if answer in trained] == []
    # A rejected answer with the flaw `other_topic` or `vague` is taken from other texts. SFT and DPO must not train on
    # this answer: a model finds a text of its training data more likely than a new text.
    assert [
        row for row in heldout if row["flaw"] in ("other_topic", "vague") and row["response_rejected"] in trained
    ] == []


def test_vague_sentences_of_heldout_pairs_are_in_no_training_pair(training_text):
    vague = yaml.safe_load(paths.VAGUE_SENTENCES.read_text(encoding="utf-8"))
    assert len(vague["held_out"]) >= 10 and all(sentence in training_text for sentence in vague["training"])
    assert [sentence for sentence in vague["held_out"] if sentence in training_text] == []


@pytest.mark.long
def test_answers_of_unread_pairs_are_in_no_training_file(training_text):
    pairs = [row for row in rows_of(paths.HELDOUT_PAIRS) if row.get("unread")]
    answers = {row["response_chosen"] for row in pairs}
    # The flaw `repetition` is left out: an answer that only repeats "不建议" may also be in a training file.
    answers |= {row["response_rejected"] for row in pairs if row["flaw"] != "repetition"}
    assert len(answers) > 300
    assert [answer for answer in answers if answer in training_text] == []


def test_choices_reveal_the_right_answer_neither_by_position_nor_by_length():
    items = rows_of(paths.CHOICES)
    positions = Counter(item["answer"] for item in items)
    assert min(positions[position] for position in range(4)) >= 0.15 * len(items)
    longest = sum(max(map(len, item["options"])) == len(item["options"][item["answer"]]) for item in items)
    assert longest <= 0.5 * len(items)


def test_declines_dose_separates_declining_answers_from_all_others():
    rows = rows_of(paths.HELDOUT_QUESTIONS)
    declining = [declines_dose(row["output"]) for row in rows if row.get("declines") == "dose"]
    others = [declines_dose(row["output"]) for row in rows if "declines" not in row]
    assert len(declining) > 100 and sum(declining) >= 0.97 * len(declining)
    assert sum(others) <= 0.01 * len(others)


def test_exam_has_100_different_questions_with_key_facts_that_only_the_answer_holds():
    exam = rows_of(paths.EXAM)
    assert len(exam) == len({row["instruction"] for row in exam}) == 100
    topics_by_department = {
        file.stem: {row["topic"] for row in rows_of(file)} for file in paths.SFT_DATA.glob("*.jsonl")
    }
    assert len({row["topic"] for row in exam}) >= 90
    assert [d for d, topics in topics_by_department.items() if sum(row["topic"] in topics for row in exam) < 2] == []
    for row in exam:
        assert row["key_facts"], row["instruction"]
        for fact in row["key_facts"]:
            assert fact in row["output"], row["instruction"]
            assert fact not in row["instruction"] and fact not in row["topic"], row["instruction"]


def test_pairs_do_not_reveal_the_chosen_answer_by_length():
    pairs = [*rows_of(paths.DPO_DATA), *rows_of(paths.HELDOUT_PAIRS)]
    shorter = sum(len(row["response_chosen"]) < len(row["response_rejected"]) for row in pairs) / len(pairs)
    assert 0.45 <= shorter <= 0.55
    for flaw in {row["flaw"] for row in pairs}:
        selected = [len(p["response_chosen"]) < len(p["response_rejected"]) for p in pairs if p["flaw"] == flaw]
        assert 0.35 <= sum(selected) / len(selected) <= 0.65, flaw
    composed = [row for row in pairs if row["flaw"] in COMPOSED_FLAWS]
    differences = [abs(len(row["response_chosen"]) - len(row["response_rejected"])) for row in composed]
    assert sum(difference <= 5 for difference in differences) >= 0.9 * len(composed)


def test_pairs_have_a_rejected_answer_that_is_neither_blank_nor_the_chosen_one():
    for row in [*rows_of(paths.DPO_DATA), *rows_of(paths.HELDOUT_PAIRS)]:
        assert row["response_rejected"].strip() not in ("", row["response_chosen"]), row["question"]


# Tests of checks.py and overlap.py


@pytest.fixture(scope="module")
def good() -> dict:
    """Return a department with two topics, in which `check_corpus` finds no fault."""
    department = yaml.safe_load((paths.KNOWLEDGE / "cardiology.yaml").read_text(encoding="utf-8"))
    topics = [topic for topic in department["topics"] if not topic.get("held_out")][:2]
    topics[0]["conversations"] = [
        [{role: "头疼的话要先量血压，再看别的原因，不要自己乱吃药。"} for role in ("user", "assistant")] * 2
    ]
    department = {**department, "topics": topics}
    assert check_corpus([department]) == []
    return department


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


def same_topic_twice(department):
    department["topics"][1]["topic"] = department["topics"][0]["topic"]


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


def same_wording_in_two_topics(department):
    one, two = department["topics"]
    two["questions"][0]["wordings"] = [one["questions"][0]["wordings"][0], *two["questions"][0]["wordings"][1:]]


def same_wording_in_two_questions(department):
    one, two = department["topics"][0]["questions"][:2]
    two["wordings"] = [one["wordings"][0], *two["wordings"][1:]]


def heldout_near_a_wording_of_another_question(department):
    one, two = department["topics"][0]["questions"][:2]
    one["heldout"] = two["wordings"][1] + "呢"


def first_key_fact(question, topic=None):
    return str(question["key_facts"][0])


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
        ", answer: it names the dose 吃两片",
    ),
    "five wordings": (
        question_field("wordings", lambda q, t: q["wordings"][:5]),
        "write 6 different training wordings",
    ),
    "the same wording twice": (
        question_field("wordings", lambda q, t: [*q["wordings"][:5], q["wordings"][0]]),
        "write 6 different training wordings",
    ),
    "a held-out wording that is trained": (
        question_field("heldout", lambda q, t: q["wordings"][2]),
        "held-out wording .* is 0 edits from",
    ),
    "a held-out wording near a trained one": (
        question_field("heldout", lambda q, t: q["wordings"][1] + "呀"),
        "is 1 edits from",
    ),
    "a held-out wording near one of another question": (heldout_near_a_wording_of_another_question, "is 1 edits from"),
    "one key fact": (question_field("key_facts", lambda q, t: q["key_facts"][:1]), "1 key_facts, write 2 to 5"),
    "a key fact that the answer lacks": (
        question_field("key_facts", lambda q, t: [*q["key_facts"], "青霉素"]),
        "key fact 青霉素 is not in the answer",
    ),
    "a key fact in the topic's name": (
        question_field("key_facts", lambda q, t: [*q["key_facts"], t["topic"][:2]]),
        "overlaps with the topic's name",
    ),
    "a key fact in a wording": (
        question_field("wordings", lambda q, t: [*q["wordings"][:5], first_key_fact(q) + "是什么"]),
        "is in the wording",
    ),
    "a key fact in the held-out wording": (
        question_field("heldout", lambda q, t: q["heldout"] + first_key_fact(q)),
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
    "two topics of one name": (same_topic_twice, "2 topics have this name"),
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


def test_dose_does_not_match_laboratory_values():
    for text in ("尿蛋白150毫克/升", "血糖7.0毫摩尔/升", "每天快走30分钟", "每年查一次", "血压140/90毫米汞柱"):
        assert not DOSE.search(text), text


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


# Tests of pairs.py and rows.py


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("longer", [True, False])
@pytest.mark.parametrize("flaw", COMPOSED_FLAWS)
def test_composed_rejection_is_longer_or_shorter_than_the_answer_as_requested(flaw, longer, seed):
    answer = "高血压患者要少盐少油，每天快走半小时。按时复查，把结果记下来。有变化就去医院看看。"
    others = [
        "咳嗽两周以上要查胸片。多喝水，别抽烟。",
        "发烧先量体温，多喝水，注意精神状态。" * 3,
        "腹泻要补水。" * 7,
        "休息。" * 12,
    ]
    vague = ["这个情况因人而异，" + "很" * number + "难讲。" for number in range(8)]
    text = composed_rejection(flaw, answer, others, vague, longer, random.Random(seed))
    assert text and text != answer
    assert (len(text) > len(answer)) == longer
    if flaw != "other_topic":
        assert abs(len(text) - len(answer)) <= 8
    assert (text[-1] in "。！？") == (flaw != "no_ending")


def test_new_topic_changes_neither_questions_nor_heldout_questions_nor_exam_of_the_others(good):
    vague = {
        side: [f"{number}个人有{number}种说法，{side}。" for number in range(20)] for side in ("training", "held_out")
    }
    third = {**copy.deepcopy(good["topics"][1]), "topic": "新的主题"}
    before = rows_by_file([good], vague)
    after = rows_by_file([{**good, "topics": [third, *good["topics"]]}], vague)
    for path, rows in before.items():
        again = [row for row in after[path] if row["topic"] != "新的主题"]
        if path.is_relative_to(paths.DPO_DATA.parent):  # a new topic may change a rejected answer but no question
            again, rows = ([row["question"] for row in part] for part in (again, rows))
        assert again == rows, path
