"""Provide a department with two topics for the tests of corpus/checks.py and corpus/rows.py."""

import yaml

from checks import check_corpus
from med_model import paths


def good_department() -> dict:
    """Return a department with two topics, in which `check_corpus` finds no fault."""
    department = yaml.safe_load((paths.KNOWLEDGE / "cardiology.yaml").read_text(encoding="utf-8"))
    topics = [topic for topic in department["topics"] if not topic.get("held_out")][:2]
    topics[0]["conversations"] = [
        [{role: "头疼的话要先量血压，再看别的原因，不要自己乱吃药。"} for role in ("user", "assistant")] * 2
    ]
    department = {**department, "topics": topics}
    assert check_corpus([department]) == []
    return department
