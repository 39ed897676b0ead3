"""Turn the hand-written topics into the rows of the data files for pre-training, SFT and DPO."""

import itertools
import random
from pathlib import Path

from pairs import Answers, answers_by_group, pairs_of, unasked_index

from med_model import paths

EXAM_ROWS = 100  # number of held-out questions in sft/dataset/exam.jsonl

Files = dict[Path, list[dict]]


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


def take_turns(lists: list[list]) -> list:
    """Return the first item of each list, then the second item of each, and so on."""
    return [item for layer in itertools.zip_longest(*lists) for item in layer if item]


def add_heldout_topic(files: Files, topic: dict, answers: Answers, vague: dict[str, list[str]]) -> None:
    rng = random.Random(topic["topic"])
    files[paths.HELDOUT_TEXT].append({"text": topic["article"].strip(), "topic": topic["topic"], "derived": False})
    files[paths.CHOICES] += [choice_row(topic, choice, rng) for choice in topic.get("choices", [])]
    pairs = itertools.chain(*pairs_of(topic, answers, vague, rng))
    files[paths.UNREAD_PAIRS] += [{**pair, "unread": True} for pair in pairs]


def add_trained_topic(
    files: Files, department: str, topic: dict, answers: Answers, vague: dict[str, list[str]]
) -> list[dict]:
    """Add the rows of a topic to the files of its department. Return its rows with held-out wordings in random order.

    The seed of the random numbers is the topic's name, so a new topic does not change the order in other topics.
    """
    rng = random.Random(topic["topic"])
    name, file = topic["topic"], f"{department}.jsonl"
    texts, rows = files[paths.PRETRAINING_DATA / file], files[paths.SFT_DATA / file]
    if "article" in topic:
        texts.append({"text": topic["article"].strip(), "topic": name, "derived": False})
    # The base model reads the answers as running text without their questions. It learns to answer later, in SFT.
    answer_texts = [question["answer"] for question in topic["questions"]]
    running = "\n".join([name, *rng.sample(answer_texts, len(answer_texts))])
    texts.append({"text": running, "topic": name, "derived": True})

    unasked = unasked_index(topic)
    asked = [question for index, question in enumerate(topic["questions"]) if index != unasked]
    for question in asked:
        rows += [question_row(topic, question, wording) for wording in question["wordings"]]
    rows += [conversation_row(topic, conversation) for conversation in topic.get("conversations", [])]
    heldout = [question_row(topic, question, question["heldout"]) for question in asked]
    files[paths.HELDOUT_QUESTIONS / file] += heldout
    exam = rng.sample(heldout, len(heldout))

    pairs = pairs_of(topic, answers, vague, rng)
    if unasked is not None:
        files.setdefault(paths.HELDOUT_PAIRS / file, []).extend(pairs.pop(unasked))
    files[paths.DPO_DATA / file] += itertools.chain(*pairs)
    return exam


def rows_by_file(departments: list[dict], vague: dict[str, list[str]]) -> Files:
    """Return the rows of each file. `vague` maps "training" and "held_out" to sentences without content."""
    files: Files = {paths.HELDOUT_TEXT: [], paths.EXAM: [], paths.CHOICES: [], paths.UNREAD_PAIRS: []}
    answers = answers_by_group([topic for department in departments for topic in department["topics"]])
    exams = []  # one list of held-out rows per department
    for department in departments:
        name = department["department"]
        for folder in (paths.PRETRAINING_DATA, paths.SFT_DATA, paths.HELDOUT_QUESTIONS, paths.DPO_DATA):
            files[folder / f"{name}.jsonl"] = []
        exam = []  # one list of held-out rows per trained topic
        for topic in department["topics"]:
            if topic.get("held_out"):
                add_heldout_topic(files, topic, answers, vague)
            else:
                exam.append(add_trained_topic(files, name, topic, answers, vague))
        exams.append(take_turns(exam))
    # Departments take turns, and so do the topics of a department. So the exam covers all departments evenly.
    files[paths.EXAM] = take_turns(exams)[:EXAM_ROWS]
    return files
