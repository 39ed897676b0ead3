"""Find key facts in an answer, in any spelling of their numbers.

A key fact is a text that a right answer contains. It may have alternatives with `|` between them, as in `脑卒中|中风`:
one of them is enough.
"""

import re
import unicodedata

DIGITS = {character: digit for digit, character in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}
UNITS = {"十": 10, "百": 100, "千": 1000, "万": 10_000}
# Leave a Chinese numeral as it is if it comes directly after a digit: 89二期 must not become 892期.
NUMBER = re.compile(rf"(?<![\d.])[{''.join(DIGITS)}{''.join(UNITS)}]+")
POINT = re.compile(r"(?<=\d)点(?=\d)")
PERCENT = re.compile(r"百分之(\d+(?:\.\d+)?)")
# The sign or word between the two numbers of a range. The first number may end in %.
RANGE = re.compile(r"(?<=\d)%?[~—–至到](?=\d)")


def _digits(number: re.Match) -> str:
    """Return a number in Chinese characters as digits: 十五 is 15, 一二〇 is 120, 三百五 is 350."""
    text = number.group()
    if not UNITS.keys() & set(text):
        return "".join(str(DIGITS[character]) for character in text)
    total, value, unit, last_unit = 0, None, 10_000, 10
    for character in text:
        if character in DIGITS:
            value = DIGITS[character]
            continue
        unit = UNITS[character]
        if unit == 10_000:
            total, value = (total + (value or 0) or 1) * unit, None
        else:
            total, value = total + (1 if value is None else value) * unit, None
        last_unit = unit
    if value is not None:  # 三百五 is 350, but 三百零五 is 305
        total += value * (last_unit // 10 if last_unit > 10 and text[-2] not in "零〇" else 1)
    return str(total)


def normalised(text: str) -> str:
    """Return the text without white space, with each number in one spelling.

    Full-width digits and Chinese numerals become ASCII digits, 百分之五 becomes 5%, and 3～5 and 3到5 become 3-5.
    """
    text = "".join(unicodedata.normalize("NFKC", text).split())
    text = NUMBER.sub(_digits, text.replace("百分之", "\0")).replace("\0", "百分之")  # 百 in 百分之 is no number
    return RANGE.sub("-", PERCENT.sub(r"\1%", POINT.sub(".", text)))


def holds(answer: str, fact: str) -> bool:
    """Return True if an answer contains a key fact, that is, one of the alternatives of the fact.

    A number counts only as a whole: 15克 does not contain the fact 5克.
    """
    return _holds(normalised(answer), fact)


def _holds(answer: str, fact: str) -> bool:
    for alternative in fact.split("|"):
        wanted = normalised(alternative)
        before = r"(?<![\d.])" if wanted[:1].isdigit() else ""
        after = r"(?![\d]|\.\d)" if wanted[-1:].isdigit() else ""
        if wanted and re.search(before + re.escape(wanted) + after, answer):
            return True
    return False


def count_facts(answer: str, facts: list[str]) -> int:
    """Return the number of key facts that an answer contains."""
    answer = normalised(answer)
    return sum(_holds(answer, fact) for fact in facts)
