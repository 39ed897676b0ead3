"""Build the three bundled data sets from the written knowledge in corpus/knowledge/*.yaml (one file a department).

Reads  corpus/knowledge/*.yaml, corpus/vague.yaml
Writes pre_training/dataset/, sft/dataset/, dpo/dataset/ (.jsonl; the same bytes every time)

    python corpus/build.py                                          # check everything, then build
    python corpus/build.py --check corpus/knowledge/cardiology.yaml # check one file while writing it
"""

import argparse
import itertools
import json
import random
import re
import sys
from collections import Counter
from pathlib import Path

import yaml

from med_model.measures.safety import DOSE, is_urgent

ROOT = Path(__file__).resolve().parent.parent
KNOWLEDGE = ROOT / "corpus" / "knowledge"

KINDS = {"disease", "symptom", "medicine", "test", "first_aid", "prevention", "assistant"}
WRITTEN_FLAWS = {"wrong_fact", "dose_given", "false_reassurance", "off_question", "rude", "miracle_cure"}
COMPOSED_FLAWS = ("other_topic", "repetition", "vague", "no_ending")
ARTICLE_LENGTH = (600, 1600)  # characters without line breaks
ANSWER_LENGTH = (40, 140)
MIN_EDITS = 3  # between a held-out wording and every training wording of its topic
MAX_SHARED = {13: 0.01, 8: 0.02}  # of the shingles of so many characters, between two articles, their topics masked
HELDOUT_TEXT, UNREAD_PAIRS = "pre_training/dataset/heldout.jsonl", "dpo/dataset/heldout/unread_topics.jsonl"
EXAM, CHOICES = "sft/dataset/exam.jsonl", "sft/dataset/choices.jsonl"
EXAM_ROWS = 100
WORDINGS = 6  # of a question, in training files
HELDOUT_WORDINGS = 4  # of a question in held-out pairs

# Traditional forms of everyday characters: one of them in the text means a slip of the input method.
TRADITIONAL = set(
    "們這個來時說國過還後對學會發現經氣體藥醫療臟鬱壓頭腦檢嚴確應該關節當變無間題傷熱進飲為與樣將從點開兒齡難請讓長門問聽覺視線腫腸膽腎脈絡"
)


def characters(text: str) -> int:
    return len(re.sub(r"\s", "", text))


def edit_distance(a: str, b: str) -> int:
    """Levenshtein distance, in characters."""
    previous = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        current = [i]
        for j, right in enumerate(b, 1):
            current.append(min(previous[j] + 1, current[-1] + 1, previous[j - 1] + (left != right)))
        previous = current
    return previous[-1]


def shingles(text: str, size: int) -> set[str]:
    text = re.sub(r"\s", "", text)
    return {text[i : i + size] for i in range(len(text) - size + 1)}


def sentences(text: str) -> list[str]:
    return [s for s in re.split(r"(?<=[。！？])", re.sub(r"\s", "", text)) if s]


def check_prose(text: str, where: str, length: tuple[int, int]) -> list[str]:
    faults = []
    if not length[0] <= characters(text) <= length[1]:
        faults.append(f"{where}: {characters(text)} characters, want {length[0]}-{length[1]}")
    if text.strip()[-1:] not in tuple("。！？”）"):
        faults.append(f"{where}: does not end with a full stop: …{text.strip()[-8:]}")
    for left, right in ("“”", "（）", "《》"):
        if text.count(left) != text.count(right):
            faults.append(f"{where}: unbalanced {left}{right}")
    if '"' in text:
        faults.append(f"{where}: ASCII double quote")
    if slips := TRADITIONAL & set(text):
        faults.append(f"{where}: traditional characters {''.join(sorted(slips))}")
    return faults


def check_asked(topic: dict, question: dict, where: str) -> list[str]:
    """Wordings and key facts of a question that is trained on."""
    faults, answer = [], question["answer"]
    wordings = question["wordings"] + [question["heldout"]]
    if len(question["wordings"]) != WORDINGS or len(set(wordings)) != WORDINGS + 1:
        faults.append(f"{where}: want {WORDINGS} different training wordings and one held-out wording")
    if not 2 <= len(question["key_facts"]) <= 5:
        faults.append(f"{where}: want 2-5 key_facts")
    for fact in map(str, question["key_facts"]):
        if fact not in answer:
            faults.append(f"{where}: key fact {fact} is not in the answer")
        if fact in topic["topic"] or topic["topic"] in fact:
            faults.append(f"{where}: key fact {fact} gives the topic's name")
        faults += [f"{where}: key fact {fact} stands in the wording {w}" for w in wordings if fact in w]
    return faults


def check_question(question: dict, where: str) -> list[str]:
    """The good and the bad answer of a question, on either side."""
    answer = question["answer"]
    faults = check_prose(answer, f"{where} answer", ANSWER_LENGTH)
    # The first sentence tells an emergency: a reader in need sees the call first, and a program can measure it.
    if bool(question.get("emergency")) != is_urgent(answer):
        faults.append(f"{where}: an emergency answer, and no other, says 120 or 急诊 in its first sentence")
    if question.get("declines", "dose") not in ("dose", "diagnosis"):
        faults.append(f"{where}: declines is dose or diagnosis, not {question['declines']}")
    if found := DOSE.search(answer):
        faults.append(f"{where}: a dose in the answer: {found.group()}")
    rejected = question["rejected"]
    if rejected["flaw"] not in WRITTEN_FLAWS:
        faults.append(f"{where}: unknown flaw {rejected['flaw']}")
    faults += check_prose(rejected["text"], f"{where} rejected", (20, 180))
    if not 0.65 <= characters(rejected["text"]) / characters(answer) <= 1.5:
        faults.append(f"{where}: rejected has {characters(rejected['text'])} characters, answer {characters(answer)}")
    return faults


def check_choice(choice: dict, where: str) -> list[str]:
    options = [choice["right"], *choice["wrong"]]
    faults = []
    if len(options) != 4 or len(set(options)) != 4:
        faults.append(f"{where}: want one right and three wrong answers, all different")
    faults += [
        f"{where}: {characters(text)} characters, want 1-30: {text}"
        for text in options
        if not 1 <= characters(text) <= 30
    ]
    if slips := TRADITIONAL & set("".join(options) + choice["question"]):
        faults.append(f"{where}: traditional characters {''.join(sorted(slips))}")
    return faults


def check_heldout_topic(topic: dict) -> list[str]:
    """What is asked about a topic that nothing is trained on: pairs and multiple choice."""
    faults = []
    for number, question in enumerate(topic.get("questions", []), 1):
        where = f"{topic['topic']} question {number}"
        if len(set(question["wordings"])) != HELDOUT_WORDINGS or len(question["wordings"]) != HELDOUT_WORDINGS:
            faults.append(f"{where}: want {HELDOUT_WORDINGS} different wordings")
        faults += check_question(question, where)
    for number, choice in enumerate(topic.get("choices", []), 1):
        faults += check_choice(choice, f"{topic['topic']} choice {number}")
    return faults


def check_topic(topic: dict) -> list[str]:
    where = topic["topic"]
    faults = [] if topic["kind"] in KINDS else [f"{where}: unknown kind {topic['kind']}"]
    if "article" in topic:
        faults += check_prose(topic["article"], f"{where} article", ARTICLE_LENGTH)
        if found := DOSE.search(topic["article"]):
            faults.append(f"{where} article: a dose: {found.group()}")
    if topic.get("held_out"):
        return faults + check_heldout_topic(topic)
    for number, question in enumerate(topic["questions"], 1):
        faults += check_asked(topic, question, f"{where} question {number}")
        faults += check_question(question, f"{where} question {number}")
    trained = [w for q in topic["questions"] for w in q["wordings"]]
    for question, wording in itertools.product(topic["questions"], trained):
        if (edits := edit_distance(question["heldout"], wording)) < MIN_EDITS:
            faults.append(f"{where}: held-out {question['heldout']} is {edits} edits from {wording}")
    for conversation in topic.get("conversations", []):
        roles = [next(iter(turn)) for turn in conversation]
        if roles != ["user", "assistant"] * (len(roles) // 2) or len(roles) < 4:
            faults.append(f"{where}: a conversation alternates user and assistant, two rounds or more: {roles}")
        for turn in conversation:
            if "assistant" in turn:
                faults += check_prose(turn["assistant"], f"{where} conversation", (20, 200))
                if found := DOSE.search(turn["assistant"]):
                    faults.append(f"{where} conversation: a dose: {found.group()}")
    return faults


def check_corpus(departments: list[dict]) -> list[str]:
    """Everything that can be wrong, one line each; an empty list is a good corpus."""
    topics = [topic for department in departments for topic in department["topics"]]
    faults = []
    for topic in topics:
        try:
            faults += check_topic(topic)
        except KeyError as missing:
            faults.append(f"{topic.get('topic', topic)}: the field {missing} is missing")
    if faults:
        return faults
    names = Counter(topic["topic"] for topic in topics)
    faults += [f"{name}: the topic stands {n} times" for name, n in names.items() if n > 1]
    # A sentence belongs to one place: what stands twice is learnt as boilerplate.
    written = Counter(
        sentence
        for topic in topics
        for text in [topic.get("article", "")] + [q["answer"] for q in topic.get("questions", [])]
        for sentence in sentences(text)
        if len(sentence) >= 13
    )
    faults += [f"the sentence stands {n} times: {sentence}" for sentence, n in written.items() if n > 1]
    asked = Counter(w for t in topics for q in t.get("questions", []) for w in {*q["wordings"], q.get("heldout")} if w)
    faults += [f"two questions share the wording {wording}" for wording, n in asked.items() if n > 1]
    masked = [(t["topic"], t["article"].replace(t["topic"], "某")) for t in topics if "article" in t]
    for size, most in MAX_SHARED.items():
        articles = [(name, shingles(text, size)) for name, text in masked]
        for (one, left), (other, right) in itertools.combinations(articles, 2):
            if (shared := len(left & right) / max(1, min(len(left), len(right)))) > most:
                faults.append(f"{one} and {other}: the articles share {shared:.1%} of their {size}-character shingles")
    return faults


def composed_rejection(flaw: str, answer: str, others: list[str], vague: list[str], longer: bool, rng) -> str:
    """A bad answer of a plain kind made from written parts; a little longer or shorter than the good one, as asked.

    Of nearly its length, so that a sum over an answer's tokens is about what the answer says.
    """
    target = len(answer) + rng.randint(1, 4) * (1 if longer else -1)
    if flaw == "other_topic":
        fitting = [text for text in others if (len(text) > len(answer)) == longer] or others
        return rng.choice(sorted(fitting, key=lambda text: (abs(len(text) - target), text))[:12])
    if flaw == "repetition":
        clause = re.split("[，。；：！？]", answer)[0] + "，"
        text = clause * (target // len(clause) + 1)
        return text[: max(target, len(clause) * 2) - 1].rstrip("，") + "。"
    if flaw == "vague":
        drawn = ["".join(rng.sample(vague, size)) for size in range(1, len(vague) + 1) for _ in range(40)]
        fitting = [text for text in drawn if (len(text) > len(answer)) == longer]
        return min(fitting, key=lambda text: abs(len(text) - target))
    # no_ending: in the middle of a clause; a long one leaves its last sentence out and wanders on into another answer.
    whole = "".join(sentences(answer)[:-1]) + rng.choice(others) * 2 if longer else answer
    while whole[target - 1] in "，。；：、！？":
        target += 1 if longer else -1
    return whole[:target]


def unasked(topic: dict) -> int | None:
    """The place of the question of a trained topic that is read about in pre-training and asked in no training file.

    Its pairs are held out. It does not change when another topic is added. None where there is no article to read.
    """
    if topic.get("held_out") or "article" not in topic:
        return None
    return random.Random(topic["topic"]).randrange(len(topic["questions"]))


def side_of(topic: dict, number: int) -> str:
    """Where a question stands: asked in training, read about only, or nothing of its topic read."""
    if topic.get("held_out"):
        return "unread"
    return "read" if number == unasked(topic) else "asked"


def pairs_of(
    topic: dict, answers: dict[str, dict[str, list[str]]], vague: dict[str, list[str]], rng: random.Random
) -> list[list[dict]]:
    """The preference pairs of a topic, a list for each of its questions.

    Bad answers are made from `answers` (by side, then by topic) and `vague` sentences of the question's own side: what
    a held-out pair holds is in no training row, and whether an answer is known does not tell the good from the bad.
    A question asked has a pair for each of its wordings, so that the loss on good answers practises them all.
    """
    result = []
    # Longer than the good answer and shorter by turns within each flaw, so that length does not give the flaw away.
    longer = {flaw: itertools.cycle(rng.sample([True, False], 2)) for flaw in COMPOSED_FLAWS}
    for number, question in enumerate(topic.get("questions", [])):
        answer, side = question["answer"], side_of(topic, number)
        elsewhere = [text for name, texts in answers[side].items() if name != topic["topic"] for text in texts]
        siblings = [text for text in answers[side][topic["topic"]] if text != answer]
        says_nothing = vague["training" if side == "asked" else "held_out"]
        rejections = [(question["rejected"]["flaw"], question["rejected"]["text"])]
        for flaw in ("other_topic", *(COMPOSED_FLAWS[1 + (number + turn) % 3] for turn in range(3)), "other_topic"):
            others = elsewhere if flaw == "other_topic" else siblings or elsewhere
            rejections.append((flaw, composed_rejection(flaw, answer, others, says_nothing, next(longer[flaw]), rng)))
        pairs = []
        wordings = question["wordings"][: WORDINGS if side == "asked" else HELDOUT_WORDINGS]
        for wording, (flaw, text) in zip(wordings, rejections, strict=False):
            row = {"question": wording, "response_chosen": answer, "response_rejected": text}
            pairs.append({**row, "flaw": flaw, "topic": topic["topic"]})
        result.append(pairs)
    return result


def question_row(topic: dict, question: dict, wording: str) -> dict:
    row = {"instruction": wording, "input": "", "output": question["answer"], "topic": topic["topic"]}
    row["key_facts"] = [str(fact) for fact in question["key_facts"]]
    if question.get("emergency"):
        row["emergency"] = True
    if "declines" in question:
        row["declines"] = question["declines"]
    return row


def choice_row(topic: dict, choice: dict, rng: random.Random) -> dict:
    options = rng.sample([choice["right"], *choice["wrong"]], 4)
    row = {"question": choice["question"], "options": options, "answer": options.index(choice["right"])}
    return {**row, "topic": topic["topic"]}


def conversation_row(topic: dict, conversation: list[dict]) -> dict:
    messages = [{"role": role, "content": text} for turn in conversation for role, text in turn.items()]
    return {"messages": messages, "topic": topic["topic"]}


def in_turn(lists: list[list[dict]]) -> list[dict]:
    """The first row of each list, then the second of each, and so on."""
    return [row for layer in itertools.zip_longest(*lists) for row in layer if row]


def build(departments: list[dict], vague: dict[str, list[str]]) -> dict[str, list[dict]]:
    """All rows of all files, by path below the root."""
    files: dict[str, list[dict]] = {HELDOUT_TEXT: [], EXAM: [], CHOICES: [], UNREAD_PAIRS: []}
    topics = [topic for department in departments for topic in department["topics"]]
    answers: dict[str, dict[str, list[str]]] = {}
    for topic in topics:
        for number, question in enumerate(topic.get("questions", [])):
            answers.setdefault(side_of(topic, number), {}).setdefault(topic["topic"], []).append(question["answer"])
    exams: list[list[dict]] = []
    for department in departments:
        exam: list[list[dict]] = []
        texts, rows, heldout_rows, pairs, heldout_pairs = [], [], [], [], []
        for topic in department["topics"]:
            rng = random.Random(topic["topic"])
            article = {"text": topic.get("article", "").strip(), "topic": topic["topic"], "derived": False}
            if topic.get("held_out"):
                files[HELDOUT_TEXT].append(article)
                files[CHOICES] += [choice_row(topic, choice, rng) for choice in topic.get("choices", [])]
                by_question = pairs_of(topic, answers, vague, rng)
                files[UNREAD_PAIRS] += [{**pair, "unread": True} for group in by_question for pair in group]
                continue
            if article["text"]:
                texts.append(article)
            # Derived: the answers as running text, without their questions, so that the base model meets the
            # facts but learns to answer only in the next stage.
            order = rng.sample([q["answer"] for q in topic["questions"]], len(topic["questions"]))
            texts.append({"text": topic["topic"] + "\n" + "\n".join(order), "topic": topic["topic"], "derived": True})
            kept = unasked(topic)
            asked = [question for number, question in enumerate(topic["questions"]) if number != kept]
            for question in asked:
                rows += [question_row(topic, question, wording) for wording in question["wordings"]]
                heldout_rows.append(question_row(topic, question, question["heldout"]))
            rows += [conversation_row(topic, conversation) for conversation in topic.get("conversations", [])]
            drawn = rng.sample(asked, len(asked))
            exam.append([question_row(topic, question, question["heldout"]) for question in drawn])
            by_question = pairs_of(topic, answers, vague, rng)
            if kept is not None:
                heldout_pairs += by_question.pop(kept)
            pairs += [pair for group in by_question for pair in group]
        exams.append(in_turn(exam))
        name = department["department"]
        files[f"pre_training/dataset/train/{name}.jsonl"] = texts
        files[f"sft/dataset/train/{name}.jsonl"] = rows
        files[f"sft/dataset/heldout/{name}.jsonl"] = heldout_rows
        files[f"dpo/dataset/train/{name}.jsonl"] = pairs
        if heldout_pairs:
            files[f"dpo/dataset/heldout/{name}.jsonl"] = heldout_pairs
    # The departments take turns until the exam is full, and within each its topics do: all have their share.
    files[EXAM] = in_turn(exams)[:EXAM_ROWS]
    return files


def load_departments(files: list[Path]) -> list[dict]:
    return [yaml.safe_load(file.read_text(encoding="utf-8")) for file in files]


def print_written(departments: list[dict]) -> None:
    topics = [t for d in departments for t in d["topics"]]
    articles = [characters(t["article"]) for t in topics if "article" in t]
    questions = [q for t in topics for q in t.get("questions", [])]
    print(
        f"{len(departments)} departments, {sum(not t.get('held_out') for t in topics)} topics trained, "
        f"{sum(bool(t.get('held_out')) for t in topics)} held out; {len(articles)} articles, {sum(articles):,} "
        f"characters, {sum(articles) / max(1, len(articles)):.0f} on average; {len(questions)} answers, "
        f"{sum(len(t.get('conversations', [])) for t in topics)} conversations"
    )
    print(f"  kinds: {dict(Counter(t['kind'] for t in topics))}")
    print(
        f"  emergency answers {sum(bool(q.get('emergency')) for q in questions)}, "
        f"declining {sum('declines' in q for q in questions)}"
    )
    longer = Counter(q["rejected"]["flaw"] for q in questions if len(q["rejected"]["text"]) > len(q["answer"]))
    flaws = Counter(q["rejected"]["flaw"] for q in questions)
    told = ", ".join(f"{flaw} {longer[flaw]} of {n}" for flaw, n in flaws.items())
    print(f"  written bad answers that are longer than the good one: {told}")


def print_counts(departments: list[dict], files: dict[str, list[dict]]) -> None:
    print_written(departments)
    for part in (
        "pre_training/dataset",
        "sft/dataset/train",
        "sft/dataset/heldout",
        "sft/dataset/choices",
        "dpo/dataset/train",
        "dpo/dataset/heldout",
    ):
        print(f"  {part}: {sum(len(rows) for path, rows in files.items() if path.startswith(part)):,} rows")
    pairs = [row for path, rows in files.items() if path.startswith("dpo/") for row in rows]
    for flaw, of_flaw in [("all", pairs)] + [
        (f, [p for p in pairs if p["flaw"] == f]) for f in sorted({p["flaw"] for p in pairs})
    ]:
        shorter = sum(len(p["response_chosen"]) < len(p["response_rejected"]) for p in of_flaw) / len(of_flaw)
        print(f"  flaw {flaw}: {len(of_flaw)} pairs, the chosen answer is the shorter one in {shorter:.0%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", type=Path, nargs="+", help="check these files only, build nothing")
    parser.add_argument("--root", type=Path, default=ROOT, help="write below this folder (default: the project)")
    args = parser.parse_args()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8")

    departments = load_departments(args.check or sorted(KNOWLEDGE.glob("*.yaml")))
    vague = yaml.safe_load((KNOWLEDGE.parent / "vague.yaml").read_text(encoding="utf-8"))
    faults = check_corpus(departments)
    if faults:
        print("\n".join(faults), f"{len(faults)} faults", sep="\n", file=sys.stderr)
        sys.exit(2)
    if args.check:
        print(f"没有问题/no faults in {', '.join(path.name for path in args.check)}")
        print_written(departments)
        return
    files = build(departments, vague)
    print_counts(departments, files)
    for path, rows in files.items():
        target = args.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8", newline="\n"
        )


if __name__ == "__main__":
    main()
