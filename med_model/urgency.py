"""Whether an answer sends its reader to help at once: one rule, for the corpus and for the measures."""

import re

CALL = re.compile("打120|叫120|急诊|救护车")


def is_urgent(answer: str) -> bool:
    """True where the first sentence of an answer says to call 120 or to go to the emergency department."""
    return bool(CALL.search(re.split("[。！？]", answer.strip(), maxsplit=1)[0]))
