"""Change the wording of a question at random, as haste, an input method or a habit changes it.

A model that reads every question with the same words in each pass learns whole sentences by heart. With changed words
it must find the answer from the words that remain (J. Wei and K. Zou 2019, "EDA: easy data augmentation techniques for
boosting performance on text classification tasks").
"""

import random
from collections.abc import Sequence

MIN_CHARACTERS = 3  # a question of fewer characters is not changed, and no change leaves fewer
# Negations and numbers are never changed, because the question would ask for something else without them.
KEPT = frozenset("不没无未别非0123456789０１２３４５６７８９零一二两三四五六七八九十百千半")
DELETED, SWAPPED = 0.55, 0.20  # shares of the changed characters; the rest is replaced by another character
JOINED = 0.1  # share of the questions that are joined with another wording of the same question
CROSSED = 0.1  # share of the questions that begin as one wording and end as another wording of the same question
GREETED = 0.25  # share of the questions with a word of politeness before them, and of those with one after them
OPENINGS = (
    "请问",
    "您好，",
    "大夫，",
    "医生您好，",
    "麻烦问下",
    "我想问一下",
    "想问问",
    "请教一下，",
    "问个事，",
    "那个，",
)
ENDINGS = ("啊", "呢", "呀", "嘛", "，谢谢", "，求解答", "，麻烦了", "，在线等", "？？", "！", "。", "？谢谢")
MARKS = "？?。！!"


def _is_han(text: str) -> bool:
    return any("一" <= character <= "龥" for character in text)


def _change_characters(question: str, alphabet: Sequence[str], share: float, rng: random.Random) -> str:
    """Delete, swap or replace about `share` of the characters."""
    characters, changed, i = list(question), [], 0
    while i < len(characters):
        character, kind = characters[i], rng.random()
        if character in KEPT or rng.random() >= share:
            changed.append(character)
        elif kind < DELETED:
            pass
        elif kind < DELETED + SWAPPED and i + 1 < len(characters):
            changed += [characters[i + 1], character]
            i += 1
        else:
            changed.append(rng.choice(alphabet))
        i += 1
    return "".join(changed) if len(changed) >= MIN_CHARACTERS else question


def noisy_question(
    question: str, wordings: Sequence[str], alphabet: Sequence[str], strength: float, rng: random.Random
) -> str:
    """Return another wording of the question. The result is a function of the arguments and the state of `rng`.

    wordings: wordings of the same question, of which one may be joined with it. alphabet: characters that may replace
    another one. strength: the average share of changed characters, 0 to 0.5.
    """
    if len(question) < MIN_CHARACTERS:
        return question
    other, kind = rng.choice(wordings), rng.random()
    if other != question and kind < JOINED:
        question = question.rstrip(MARKS) + rng.choice("，。 ") + other
    elif other != question and kind < JOINED + CROSSED:
        question = question[: max(MIN_CHARACTERS, len(question) * 2 // 3)] + other[len(other) // 3 :]
    # The share differs from question to question, so that the model also reads nearly unchanged ones.
    question = _change_characters(question, alphabet, strength * 2 * rng.random(), rng)
    if not _is_han(question):  # the words of politeness are Chinese
        return question
    if rng.random() < GREETED:
        question = rng.choice(OPENINGS) + question
    if rng.random() < GREETED:
        question = question.rstrip(MARKS) + rng.choice(ENDINGS)
    return question
