"""Turn the hand-written topics into the rows of the data files for pre-training, SFT and DPO."""

import itertools
import random
from pathlib import Path
from typing import NamedTuple

from med_model import paths
from pairs import OtherAnswers, Vague, pair_row, pairs_of, unasked_index
from turns import Questions, TopicTurns, marks_of

# sft/dataset/exam.jsonl has at most this many held-out rows of each kind: formal wordings, wordings in other registers
# (a register is a kind of wording), conversations, and questions out of scope.
EXAM_ROWS = 100
OUT_OF_SCOPE = "out_of_scope"
HELP_LINE_PAIRS = 12  # preference pairs per answer to a hint of self-harm; other answers out of scope have one pair

Files = dict[Path, list[dict]]


def take_turns(lists: list[list]) -> list:
    """Return the first item of each list, then the second item of each, and so on."""
    return [item for layer in itertools.zip_longest(*lists) for item in layer if item]


class Written(NamedTuple):
    """The hand-written texts that are not in corpus/knowledge/."""

    vague: Vague
    phrases: dict[str, dict[str, list[str]]]  # the content of turns.yaml
    out_of_scope: list[dict]  # the content of out_of_scope.yaml


def question_row(topic: dict, item: str, question: dict, wording: str, register: str) -> dict:
    row = {"instruction": wording, "input": "", "output": question["answer"], "topic": topic["topic"], "item": item}
    return {**row, "register": register, **marks_of(question)}


def out_of_scope_row(kind: dict, question: dict, wording: str) -> dict:
    """Return the row of a question that the model must not answer."""
    item = f"{kind['kind']}/{question['answer']}"
    row = {"instruction": wording, "input": "", "output": question["answer"], "topic": kind["kind"], "item": item}
    return {**row, "scope": "out", **({"help_line": True} if kind.get("help_line") else {})}


def choice_row(topic: dict, choice: dict, rng: random.Random) -> dict:
    options = rng.sample([choice["right"], *choice["wrong"]], 4)
    row = {"question": choice["question"], "options": options, "answer": options.index(choice["right"])}
    return {**row, "topic": topic["topic"], **({"unread": True} if topic.get("held_out") else {})}


def conversation_row(topic: dict, conversation: list[dict]) -> dict:
    messages = [{"role": role, "content": text} for turn in conversation for role, text in turn.items()]
    return {"messages": messages, "topic": topic["topic"]}


def asked_questions(topic: dict) -> Questions:
    """Return {item: question} of the questions that SFT and DPO train on. An item is, for example, 高血压/1."""
    unasked = unasked_index(topic)
    questions = enumerate(topic["questions"])
    return {f"{topic['topic']}/{i + 1}": question for i, question in questions if i != unasked}


def add_heldout_topic(files: Files, topic: dict, others: OtherAnswers, vague: Vague) -> None:
    rng = random.Random(topic["topic"])
    files[paths.HELDOUT_TEXT].append({"text": topic["article"].strip(), "topic": topic["topic"], "derived": False})
    files[paths.CHOICES] += [choice_row(topic, choice, rng) for choice in topic.get("choices", [])]
    pairs = itertools.chain(*pairs_of(topic, others, vague, rng))
    files[paths.UNREAD_PAIRS] += [{**pair, "unread": True} for pair in pairs]


def add_articles(files: Files, file: str, topic: dict, rng: random.Random) -> None:
    texts, name = files[paths.PRETRAINING_DATA / file], topic["topic"]
    if "article" in topic:
        texts.append({"text": topic["article"].strip(), "topic": name, "derived": False})
    # The base model reads the answers as running text without their questions. It learns to answer later, in SFT.
    answers = [question["answer"] for question in topic["questions"]]
    texts.append({"text": "\n".join([name, *rng.sample(answers, len(answers))]), "topic": name, "derived": True})


def add_trained_topic(files: Files, department: str, topic: dict, others: OtherAnswers, written: Written) -> None:
    """Add the rows of a topic to `files`, except the conversations that `add_turns` makes from its questions.

    The seed of the random numbers is the topic's name. So a new topic changes these rows of other topics only where
    a bad answer comes from another topic.
    """
    rng = random.Random(topic["topic"])
    file = f"{department}.jsonl"
    add_articles(files, file, topic, rng)
    for item, question in asked_questions(topic).items():
        rows = [
            question_row(topic, item, question, wording, register)
            for register, wordings in question["wordings"].items()
            for wording in wordings
        ]
        files[paths.SFT_DATA / file] += rows
        for register, wording in question["heldout"].items():
            target = paths.HELDOUT_QUESTIONS if register == "formal" else paths.HELDOUT_REGISTERS
            files[target / file].append(question_row(topic, item, question, wording, register))
    files[paths.SFT_DATA / file] += [conversation_row(topic, turns) for turns in topic.get("conversations", [])]
    files[paths.CHOICES] += [choice_row(topic, choice, rng) for choice in topic.get("choices", [])]
    pairs, unasked = pairs_of(topic, others, written.vague, rng), unasked_index(topic)
    if unasked is not None:
        files.setdefault(paths.HELDOUT_PAIRS / file, []).extend(pairs.pop(unasked))
    files[paths.DPO_DATA / file] += itertools.chain(*pairs)


def add_turns(files: Files, departments: list[dict], phrases: dict) -> None:
    """Add the conversations that `TopicTurns` makes from the questions of a topic.

    Leave out held-out topics, and topics in which a training question has no follow-ups (hand-written questions for a
    later turn).
    """
    topics = [
        (d["department"], t["topic"], asked_questions(t))
        for d in departments
        for t in d["topics"]
        if not t.get("held_out")
    ]
    topics = [
        (department, name, questions)
        for department, name, questions in topics
        if all("followups" in q for q in questions.values())
    ]
    everything = [(name, item, question) for _, name, questions in topics for item, question in questions.items()]
    for department, name, questions in topics:
        turns = TopicTurns(name, questions, phrases)
        file = f"{department}.jsonl"
        files[paths.SFT_DATA / file] += turns.training([row for row in everything if row[0] != name])
        files[paths.HELDOUT_TURNS / file] += turns.heldout()
        files[paths.DPO_DATA / file] += turns.pairs()


def add_out_of_scope(files: Files, kinds: list[dict]) -> None:
    for kind in kinds:
        for question in kind["questions"]:
            rows = [out_of_scope_row(kind, question, wording) for wording in question["wordings"]]
            files[paths.SFT_DATA / f"{OUT_OF_SCOPE}.jsonl"] += rows
            rows = [out_of_scope_row(kind, question, wording) for wording in question.get("heldout", [])]
            files[paths.HELDOUT_OUT_OF_SCOPE] += rows


def add_out_of_scope_pairs(files: Files, kinds: list[dict]) -> None:
    """Add preference pairs for questions that the model must not answer. The bad answer is one to a medical question.

    Without them, DPO unlearns what SFT has taught about such questions (docs/en/recipes.md).
    """
    medical = sorted(
        {
            row["output"]
            for path, rows in files.items()
            if path.parent == paths.SFT_DATA and path.stem not in ("assistant", OUT_OF_SCOPE)
            for row in rows
            if "register" in row and "declines" not in row
        }
    )
    for kind in kinds:
        for question in kind["questions"]:
            answer, rng = question["answer"], random.Random(question["answer"])
            count = HELP_LINE_PAIRS if kind.get("help_line") else 1
            wordings = rng.sample(question["wordings"], min(count, len(question["wordings"])))  # some have none
            files[paths.DPO_DATA / f"{OUT_OF_SCOPE}.jsonl"] += [
                pair_row(wording, answer, rng.choice(medical), "other_topic", kind["kind"]) for wording in wordings
            ]


def exam_rows(files: Files) -> list[dict]:
    """Return at most `EXAM_ROWS` held-out rows of each kind for the exam.

    The kinds are formal wordings, wordings in other registers, conversations, and questions out of scope.
    Departments take turns, and so do the topics of a department. So the exam covers all departments evenly.
    """
    exam = []
    for part in (paths.HELDOUT_QUESTIONS, paths.HELDOUT_REGISTERS, paths.HELDOUT_TURNS):
        departments = [rows for path, rows in sorted(files.items()) if path.parent == part]
        exam += take_turns([take_turns(by_topic(rows)) for rows in departments])[:EXAM_ROWS]
    return exam + take_turns(by_topic(files[paths.HELDOUT_OUT_OF_SCOPE]))[:EXAM_ROWS]


def by_topic(rows: list[dict]) -> list[list[dict]]:
    """Return one list per topic. The rows of a list are in random order."""
    topics: dict[str, list[dict]] = {}
    for row in rows:
        topics.setdefault(row["topic"], []).append(row)
    return [random.Random(topic).sample(rows, len(rows)) for topic, rows in topics.items()]


def rows_by_file(departments: list[dict], written: Written) -> Files:
    """Return {path: rows} of the data files. Leave out files without rows."""
    files: Files = {paths.HELDOUT_TEXT: [], paths.CHOICES: [], paths.UNREAD_PAIRS: [], paths.HELDOUT_OUT_OF_SCOPE: []}
    parts = (paths.PRETRAINING_DATA, paths.SFT_DATA, paths.HELDOUT_QUESTIONS, paths.HELDOUT_REGISTERS)
    others = OtherAnswers([topic for department in departments for topic in department["topics"]])
    files |= {folder / f"{OUT_OF_SCOPE}.jsonl": [] for folder in (paths.SFT_DATA, paths.DPO_DATA)}
    for department in departments:
        name = department["department"]
        for folder in (*parts, paths.HELDOUT_TURNS, paths.DPO_DATA):
            files[folder / f"{name}.jsonl"] = []
        for topic in department["topics"]:
            if topic.get("held_out"):
                add_heldout_topic(files, topic, others, written.vague)
            else:
                add_trained_topic(files, name, topic, others, written)
    add_turns(files, departments, written.phrases)
    add_out_of_scope(files, written.out_of_scope)
    add_out_of_scope_pairs(files, written.out_of_scope)
    files[paths.EXAM] = exam_rows(files)
    return {path: rows for path, rows in files.items() if rows}
