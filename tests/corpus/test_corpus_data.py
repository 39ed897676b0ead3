"""Check the bundled data sets that corpus/build.py writes."""

import json
from collections import Counter
from pathlib import Path

import pytest
import yaml

import build
from med_model import paths
from med_model.data.records import Pair, pair_of
from med_model.measures.baseline import read_training
from med_model.measures.facts import count_facts, holds
from med_model.measures.safety import declines, declines_dose, names_help_line
from pairs import COMPOSED_FLAWS
from text import characters, sentences, shingles
from wordings import REGISTERS

DATASETS = ("pre_training/dataset", "sft/dataset", "dpo/dataset")


def files_below(root: Path) -> dict[str, bytes]:
    folders = [root / dataset for dataset in DATASETS]
    return {str(p.relative_to(root)): p.read_bytes() for f in folders for p in sorted(f.rglob("*")) if p.is_file()}


def rows_of(folder: Path) -> list[dict]:
    files = sorted(folder.rglob("*.jsonl")) if folder.is_dir() else [folder]
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def pairs_of(folder: Path) -> list[Pair]:
    pairs = [pair_of(row["topic"], row) for row in rows_of(folder)]
    assert None not in pairs  # no answer is blank, and no rejected answer is the chosen one
    return pairs


@pytest.fixture(scope="module")
def training_text() -> str:
    folders = (paths.PRETRAINING_DATA, paths.SFT_DATA, paths.DPO_DATA)
    texts = [file.read_text(encoding="utf-8") for folder in folders for file in sorted(folder.rglob("*"))]
    assert len(texts) >= 3
    return "\n".join(texts)


@pytest.mark.long
def test_build_writes_every_bundled_file_byte_for_byte_and_no_other(run_script, tmp_path):
    done = run_script("corpus/build.py", "--root", tmp_path)
    assert done.returncode == 0, done.stderr
    made, bundled = files_below(tmp_path), files_below(paths.ROOT)
    assert sorted(made) == sorted(bundled)
    assert [name for name in made if made[name] != bundled[name]] == []


AT_LEAST = {  # the lowest counts that the corpus may have; a test prints the real counts
    "topics trained": 290,
    "topics held out": 15,
    "symptoms": 30,
    "medicines": 40,
    "tests": 25,
    "first-aid situations": 20,
    "prevention topics": 15,
    "characters of written articles": 300_000,
    "characters per article, on average": 1_050,
    "characters of the shortest article": 600,
    "SFT rows": 50_000,
    "SFT rows of the topic that has the fewest": 60,
    "wordings of the asked question that has the fewest": 22,
    **{f"training wordings, {register}": 4_200 for register in REGISTERS},
    "held-out wordings, formal": 1_319,
    **{f"held-out wordings, {register}": 200 for register in REGISTERS},
    "training rows of two turns": 10_000,
    "training rows of three turns": 300,
    "training rows with a system turn": 200,
    "held-out conversations": 300,
    "out-of-scope rows": 3_000,
    "held-out out-of-scope rows": 180,
    "answers of 20 to 50 characters": 200,
    "answers of 105 to 160 characters": 270,
    "rows answered with 120 or the emergency department": 200,
    "rows that decline to dose or to diagnose": 150,
    "rows about the assistant": 60,
    "off-topic rows": 100,
    "preference pairs": 7_900,
    "held-out preference pairs": 1_500,
    "multiple-choice items, trained topics": 200,
    "multiple-choice items, topics never read": 150,
    "flaws": 12,
}
FLAWS = (*COMPOSED_FLAWS, "other_topic", "sibling", "wrong_fact", "false_reassurance", "rude")  # the frequent flaws
OFF_TOPIC = ("寒暄与闲聊", "生活与其他话题")


def corpus_counts() -> dict[str, float]:
    departments = build.read_departments(sorted(paths.KNOWLEDGE.glob("*.yaml")))
    kinds = Counter(topic["kind"] for department in departments for topic in department["topics"])
    written = [row for row in rows_of(paths.PRETRAINING_DATA) if not row["derived"]]
    lengths = [characters(row["text"]) for row in [*written, *rows_of(paths.HELDOUT_TEXT)]]
    rows, choices = rows_of(paths.SFT_DATA), rows_of(paths.CHOICES)
    wordings = [row for row in rows if "register" in row]
    heldout = Counter(
        row["register"] for row in [*rows_of(paths.HELDOUT_QUESTIONS), *rows_of(paths.HELDOUT_REGISTERS)]
    )
    turns = Counter(sum(turn["role"] == "user" for turn in row.get("messages", [])) for row in rows)
    answers = {row["output"] for row in wordings}
    return {
        "topics trained": len({row["topic"] for row in written}),
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
        "SFT rows of the topic that has the fewest": min(Counter(row["topic"] for row in wordings).values()),
        "wordings of the asked question that has the fewest": min(Counter(row["item"] for row in wordings).values()),
        **{f"training wordings, {name}": sum(row["register"] == name for row in wordings) for name in REGISTERS},
        **{f"held-out wordings, {name}": heldout[name] for name in ("formal", *REGISTERS)},
        "training rows of two turns": turns[2],
        "training rows of three turns": turns[3],
        "training rows with a system turn": sum(row.get("messages", [{}])[0].get("role") == "system" for row in rows),
        "held-out conversations": len(rows_of(paths.HELDOUT_TURNS)),
        "out-of-scope rows": sum(row.get("scope") == "out" for row in rows),
        "held-out out-of-scope rows": len(rows_of(paths.HELDOUT_OUT_OF_SCOPE)),
        "answers of 20 to 50 characters": sum(20 <= len(answer) <= 50 for answer in answers),
        "answers of 105 to 160 characters": sum(105 <= len(answer) <= 160 for answer in answers),
        "rows answered with 120 or the emergency department": sum("emergency" in row for row in rows),
        "rows that decline to dose or to diagnose": sum("declines" in row for row in rows),
        "rows about the assistant": sum(row["topic"] == "关于助手" for row in rows),
        "off-topic rows": sum(row["topic"] in OFF_TOPIC for row in rows),
        "preference pairs": len(rows_of(paths.DPO_DATA)),
        "held-out preference pairs": len(rows_of(paths.HELDOUT_PAIRS)),
        "multiple-choice items, trained topics": sum(not row.get("unread") for row in choices),
        "multiple-choice items, topics never read": sum(bool(row.get("unread")) for row in choices),
        "flaws": len({row["flaw"] for row in rows_of(paths.DPO_DATA)}),
    }


@pytest.mark.long
def test_corpus_has_the_counts_that_it_promises(note):
    counts = corpus_counts()
    for name, count in counts.items():
        note(f"{name}: {count:,.0f} (at least {AT_LEAST[name]:,})")
    assert {name: count for name, count in counts.items() if count < AT_LEAST[name]} == {}
    assert counts.keys() == AT_LEAST.keys()


TOLD_BY_STYLE = {"wrong_fact": 0.75, "off_question": 0.75, "other_topic": 0.65, "sibling": 0.65}


@pytest.mark.long
def test_the_style_of_an_answer_does_not_tell_whether_it_is_right(note):
    style = read_training([str(paths.DPO_DATA)]).style
    told = {}
    for pair in pairs_of(paths.HELDOUT_PAIRS):
        told.setdefault(pair.flaw, []).append(style.score(pair.chosen) > style.score(pair.rejected))
    shares = {flaw: sum(right) / len(right) for flaw, right in sorted(told.items())}
    for flaw, share in shares.items():
        note(f"pairs with the flaw {flaw} that a naive Bayes classifier tells: {share:.0%} of {len(told[flaw])}")
    assert {flaw: shares[flaw] for flaw, most in TOLD_BY_STYLE.items() if shares[flaw] > most} == {}


@pytest.mark.long
def test_a_lexical_search_finds_at_most_three_quarters_of_each_heldout_register(note):
    search = read_training([str(paths.SFT_DATA)]).search
    found, facts = Counter(), Counter()
    for row in [*rows_of(paths.HELDOUT_QUESTIONS), *rows_of(paths.HELDOUT_REGISTERS)]:
        found[row["register"]] += count_facts(search.answer(row["instruction"]), row["key_facts"])
        facts[row["register"]] += len(row["key_facts"])
    shares = {register: found[register] / facts[register] for register in facts}
    for register, share in shares.items():
        note(f"key facts that a lexical search finds, {register}: {share:.0%}")
    assert {register: share for register, share in shares.items() if register != "formal" and share > 0.75} == {}


def test_topic_of_every_article_has_questions_and_pairs():
    articles = {row["topic"] for row in rows_of(paths.PRETRAINING_DATA)}
    outside = {row["topic"] for row in rows_of(paths.HELDOUT_OUT_OF_SCOPE)}
    assert {row["topic"] for row in rows_of(paths.SFT_DATA)} - outside == articles
    assert {row["topic"] for row in rows_of(paths.DPO_DATA)} - outside == articles


def test_heldout_wording_is_in_no_training_file():
    parts = (paths.HELDOUT_QUESTIONS, paths.HELDOUT_REGISTERS, paths.HELDOUT_OUT_OF_SCOPE)
    wordings = {row["instruction"] for part in parts for row in rows_of(part)}
    rows = rows_of(paths.SFT_DATA)
    trained = {row["instruction"] for row in rows if "instruction" in row} | {
        turn["content"] for row in rows for turn in row.get("messages", [])
    }
    trained |= {pair.question for pair in pairs_of(paths.DPO_DATA)}
    assert len(wordings) > 2_700 and wordings & trained == set()


def test_the_last_question_of_a_heldout_conversation_stands_in_no_training_conversation():
    def last(row):
        return [turn["content"] for turn in row["messages"] if turn["role"] == "user"][-1]

    trained = {last(row) for row in rows_of(paths.SFT_DATA) if "messages" in row}
    asked = [last(row) for row in rows_of(paths.HELDOUT_TURNS)]
    assert len(asked) >= 300 and [question for question in asked if question in trained] == []


def test_followups_begin_in_many_ways():
    rows = [row for row in rows_of(paths.SFT_DATA) if "messages" in row]
    last = [[turn["content"] for turn in row["messages"] if turn["role"] == "user"][-1] for row in rows]
    assert sum(text.startswith("那") for text in last) <= 0.25 * len(last)


def test_a_conversation_leaves_an_emergency_only_if_its_topic_has_no_other_question():
    emergencies: dict[str, set[str]] = {}  # {topic: answers}
    calm: dict[str, set[str]] = {}
    for row in rows_of(paths.SFT_DATA):
        if "register" in row:
            side = emergencies if row.get("emergency") else calm
            side.setdefault(row["topic"], set()).add(row["output"])
    conversations = [row for row in rows_of(paths.SFT_DATA) + rows_of(paths.HELDOUT_TURNS) if "messages" in row]
    assert len(conversations) > 7_000
    for row in conversations:
        *earlier, last = [turn["content"] for turn in row["messages"] if turn["role"] == "assistant"]
        topic = row["topic"]
        if last in calm.get(topic, ()) and emergencies.get(topic, set()) & set(earlier):
            assert len(calm[topic]) <= len(earlier), row


def test_out_of_scope_rows_for_training_name_no_heldout_topic():
    departments = build.read_departments(sorted(paths.KNOWLEDGE.glob("*.yaml")))
    heldout = [topic["topic"] for department in departments for topic in department["topics"] if topic.get("held_out")]
    asked = [
        row["instruction"] for row in rows_of(paths.SFT_DATA) if row.get("scope") == "out" and "instruction" in row
    ]
    assert len(heldout) == 15 and [text for text in asked if any(topic in text for topic in heldout)] == []


def test_out_of_scope_answers_decline_and_no_answer_within_the_scope_does():
    rows = [*rows_of(paths.SFT_DATA), *rows_of(paths.HELDOUT_QUESTIONS), *rows_of(paths.HELDOUT_OUT_OF_SCOPE)]
    outside = [row for row in rows if row.get("scope") == "out"]
    assert [row["output"] for row in outside if not row.get("help_line") and not declines(row["output"])] == []
    assert [row["output"] for row in outside if row.get("help_line") and not names_help_line(row["output"])] == []
    inside = [
        row["output"]
        for row in rows
        if "output" in row and "scope" not in row and "declines" not in row and row["topic"] != "关于助手"
    ]
    assert sum(map(declines, inside)) <= 0.005 * len(inside)


def test_answers_of_other_topics_are_rejected_evenly():
    pairs = pairs_of(paths.DPO_DATA)
    uses = Counter(pair.rejected for pair in pairs if pair.flaw == "other_topic")
    answers = {pair.chosen for pair in pairs}
    assert max(uses.values()) <= 4 and len(uses) >= 0.6 * len(answers)


def test_pairs_with_a_conversation_ask_for_another_answer_of_the_topic():
    rows = rows_of(paths.SFT_DATA)
    asked: dict[str, dict[str, str]] = {}  # {topic: {answer: item}}
    for row in rows:
        if "register" in row:
            asked.setdefault(row["topic"], {})[row["output"]] = row["item"]
    followups = {(row.get("item"), row["messages"][-2]["content"]) for row in rows if "messages" in row}
    pairs = [(row["topic"], pair_of("", row)) for row in rows_of(paths.DPO_DATA) if "prompt" in row]
    assert len(pairs) >= 1_300
    for topic, pair in pairs:
        assert len(pair.messages) == 3 and pair.flaw == "sibling"
        assert (asked[topic][pair.chosen], pair.question) in followups
        assert asked[topic][pair.rejected] != asked[topic][pair.chosen]


def test_pairs_out_of_scope_prefer_the_refusal_or_the_help_line():
    hints = {row["topic"]: bool(row.get("help_line")) for row in rows_of(paths.HELDOUT_OUT_OF_SCOPE)}
    pairs = [(hints[row["topic"]], pair_of("", row)) for row in rows_of(paths.DPO_DATA) if row["topic"] in hints]
    assert sum(hint for hint, _ in pairs) >= 80 and sum(not hint for hint, _ in pairs) >= 100
    for hint, pair in pairs:
        says_so = names_help_line if hint else declines
        assert says_so(pair.chosen) and not names_help_line(pair.rejected), pair
    assert sum(declines(pair.rejected) for _, pair in pairs) <= 0.1 * len(pairs)


def test_no_wording_or_register_tells_the_flaw():
    pairs = pairs_of(paths.DPO_DATA)
    marks = {flaw: [pair.question.endswith("？") for pair in pairs if pair.flaw == flaw] for flaw in FLAWS}
    shares = {flaw: sum(found) / len(found) for flaw, found in marks.items()}
    assert max(shares.values()) - min(shares.values()) < 0.25, shares


def test_an_answer_without_an_end_lacks_a_third_or_more():
    for pair in [*pairs_of(paths.DPO_DATA), *pairs_of(paths.HELDOUT_PAIRS)]:
        if pair.flaw == "no_ending":
            assert pair.chosen.startswith(pair.rejected)
            assert len(pair.rejected) <= 2 / 3 * len(pair.chosen)


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
    assert {row["topic"] for row in rows_of(paths.CHOICES) if row.get("unread")} == topics
    trained = {row["topic"] for row in rows_of(paths.CHOICES) if not row.get("unread")}
    assert trained == {row["topic"] for row in rows_of(paths.PRETRAINING_DATA) if not row["derived"]}


def test_one_question_per_trained_topic_is_read_in_pretraining_but_not_in_sft_or_dpo():
    read = {row["topic"] for row in rows_of(paths.PRETRAINING_DATA) if not row["derived"]}
    heldout = [row for row in rows_of(paths.HELDOUT_PAIRS) if not row.get("unread")]
    chosen = {row["topic"]: row["response_chosen"] for row in heldout}
    assert set(chosen) == read and len({row["response_chosen"] for row in heldout}) == len(read)
    trained = {row.get("output") for row in rows_of(paths.SFT_DATA)}
    trained |= {text for pair in pairs_of(paths.DPO_DATA) for text in (pair.chosen, pair.rejected)}
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
    assert longest <= 0.5 * len(items), "the right option has the length of the longest one"


def test_declines_dose_separates_declining_answers_from_all_others():
    rows = rows_of(paths.HELDOUT_QUESTIONS)
    declining = [declines_dose(row["output"]) for row in rows if row.get("declines") == "dose"]
    others = [declines_dose(row["output"]) for row in rows if "declines" not in row]
    assert len(declining) > 100 and sum(declining) >= 0.97 * len(declining)
    assert sum(others) <= 0.01 * len(others)


def test_exam_has_a_hundred_questions_of_each_part_with_key_facts_that_only_the_answer_holds():
    exam = rows_of(paths.EXAM)
    formal = [row for row in exam if row.get("register") == "formal"]
    registers = Counter(row["register"] for row in exam if row.get("register", "formal") != "formal")
    assert len(formal) == registers.total() == sum("messages" in row for row in exam) == 100
    assert sum(row.get("scope") == "out" for row in exam) == 100 and len(exam) == 400
    assert set(registers) == set(REGISTERS) and min(registers.values()) >= 5
    topics_by_department = {
        file.stem: {row["topic"] for row in rows_of(file)} for file in paths.PRETRAINING_DATA.glob("*.jsonl")
    }
    assert len({row["topic"] for row in formal}) >= 90
    assert [d for d, topics in topics_by_department.items() if sum(row["topic"] in topics for row in formal) < 2] == []
    for row in exam:
        for fact in row.get("key_facts", []):
            question = row["instruction"] if "instruction" in row else row["messages"][-2]["content"]
            answer = row["output"] if "output" in row else row["messages"][-1]["content"]
            assert holds(answer, fact), question
            assert not any(form in question or form in row["topic"] for form in fact.split("|")), question


def test_pairs_do_not_reveal_the_chosen_answer_by_length():
    pairs = [*pairs_of(paths.DPO_DATA), *pairs_of(paths.HELDOUT_PAIRS)]
    pairs = [pair for pair in pairs if pair.flaw != "no_ending"]
    shorter = sum(len(pair.chosen) < len(pair.rejected) for pair in pairs) / len(pairs)
    assert 0.45 <= shorter <= 0.55
    for flaw in {pair.flaw for pair in pairs}:
        selected = [len(pair.chosen) < len(pair.rejected) for pair in pairs if pair.flaw == flaw]
        assert 0.3 <= sum(selected) / len(selected) <= 0.7, flaw
    composed = [pair for pair in pairs if pair.flaw in ("repetition", "vague", "other_topic")]
    differences = [abs(len(pair.chosen) - len(pair.rejected)) for pair in composed]
    assert sum(difference <= 5 for difference in differences) >= 0.8 * len(composed)
