"""Show each SFT row in another form in each pass.

Its question is changed, mostly only the start of its answer is read, and some rows follow other rows as later turns
of one conversation.

Several wordings of a question have the same answer. Its first tokens tell it from all other answers, so they are what
a new wording must find. The rest of the answer is learned after a few repetitions. To read it again with every wording
would take most of the time and teach nothing (K. Ji et al. 2025, "The first few tokens are all you need").

A question after an answer to something else is still the same question. Rows that follow other rows teach this. Each
row is still read once in a pass, and all rows of a conversation have labels.
"""

import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from med_model.data.noise import noisy_question
from med_model.data.prompt import IGNORE, IM_END, Example, encode_text
from med_model.errors import UserError
from med_model.language import tr
from med_model.training.joined_rows import JoinedRows
from med_model.training.pass_views import PassViews

WHOLE_ANSWERS = 10  # times per pass that an answer is read to its end; rarer answers are always whole
ALPHABET = 1500  # the most frequent characters of the questions may replace another character


@dataclass
class ViewArguments:
    """Options of the views. Raise UserError if one is out of range."""

    question_noise: float = field(
        default=0.15,
        metadata={"help": tr("Share of the characters of a question that change in each pass. 0 changes nothing.")},
    )
    answer_tokens: int = field(
        default=10,
        metadata={
            "help": tr(
                "In a pass, an answer that many rows share is read to its end {whole} times. Elsewhere only "
                "this many tokens are read. 0 reads all to the end.",
                whole=WHOLE_ANSWERS,
            )
        },
    )
    later_turns: float = field(
        default=0.3,
        metadata={"help": tr("Share of the rows that follow other rows in a pass, as later turns of a conversation.")},
    )

    def __post_init__(self):
        if not 0 <= self.question_noise <= 0.5:
            raise UserError(tr("--question_noise {found:g} is not from 0 to 0.5.", found=self.question_noise))
        if self.answer_tokens < 0:
            raise UserError(tr("--answer_tokens {found} is below 0.", found=self.answer_tokens))
        if not 0 <= self.later_turns <= 0.75:
            raise UserError(tr("--later_turns {found:g} is not from 0 to 0.75.", found=self.later_turns))


class _Question(NamedTuple):
    """Hold the place of a question in the input_ids of its row."""

    start: int
    end: int
    text: str
    wordings: list[str]  # of questions with the same answer; empty in a conversation, which depends on its own words


class _Answer(NamedTuple):
    """Hold the place of an answer in the input_ids of its row, and its turn to be read to the end."""

    start: int
    end: int  # after its stop token
    turn: int  # its number among all answers with the same text
    sharing: int  # the number of these answers


class _Row(NamedTuple):
    """Hold a row in its full form."""

    input_ids: list[int]
    labels: list[int]
    questions: list[_Question]
    answers: list[_Answer]
    opens: bool  # True if it begins with a system message: it follows no other row


def spans_of_answers(labels: list[int]) -> list[tuple[int, int]]:
    """Return start and end of each run of labels other than IGNORE."""
    marked = [IGNORE, *labels, IGNORE]
    edges = [i for i in range(len(labels) + 1) if (marked[i] == IGNORE) != (marked[i + 1] == IGNORE)]
    return list(zip(edges[::2], edges[1::2], strict=True))


def _texts(example: Example, role: str) -> list[str]:
    return [message["content"] for message in example.messages if message["role"] == role]


def _questions(example: Example, encoded: dict[str, list[int]], wordings: list[str]) -> list[_Question]:
    """Return the places of the questions in a row. A question that is not found is left out, and never changed."""
    ids, found, position = example.input_ids, [], 0
    for text in _texts(example, "user"):
        question = encoded[text]
        for start in range(position, len(ids) - len(question) + 1):
            if question and ids[start : start + len(question)] == question:
                position = start + len(question)
                found.append(_Question(start, position, text, wordings))
                break
    return found


class RowViews(PassViews):
    """Make the views of all SFT rows. A view is a conversation of one row or more.

    Each row is in one view of a pass.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        examples: Sequence[Example],
        options: ViewArguments,
        max_length: int,
        seed: int,
    ):
        """max_length: a changed question that makes its row longer than this many tokens is not used."""
        super().__init__(seed)
        self.tokenizer, self.options, self.max_length = tokenizer, options, max_length
        texts = [text for example in examples for text in _texts(example, "user")]
        counts = Counter(character for text in texts for character in text if not character.isspace())
        self.alphabet = [character for character, _ in counts.most_common(ALPHABET)]
        texts = list(dict.fromkeys(texts))
        encoded = dict(zip(texts, encode_text(tokenizer, texts), strict=True))

        wordings = defaultdict(list)  # {answer: the questions of the rows with this answer and no other}
        places = defaultdict(list)  # {answer: (row, number of the answer in the row)}
        for row, example in enumerate(examples):
            answers = _texts(example, "assistant")
            if len(answers) == 1:
                wordings[answers[0]] += _texts(example, "user")
            for number, answer in enumerate(answers):
                places[answer].append((row, number))
        turns = {}
        for answer, found in places.items():
            order = random.Random(f"{seed} {answer}").sample(found, len(found))
            turns |= {place: (turn, len(order)) for turn, place in enumerate(order)}
        self.rows = []
        for row, example in enumerate(examples):
            answers = _texts(example, "assistant")
            questions = _questions(example, encoded, wordings[answers[0]] if len(answers) == 1 else [])
            spans = enumerate(spans_of_answers(example.labels))
            answers = [_Answer(*span, *turns[row, number]) for number, span in spans]
            opens = example.messages[0]["role"] == "system"
            self.rows.append(_Row(example.input_ids, example.labels, questions, answers, opens))
        self.joined = JoinedRows([row.opens for row in self.rows], options.later_turns, seed)
        self.stop, self.newline = tokenizer.convert_tokens_to_ids(IM_END), encode_text(tokenizer, "\n")

    def _end(self, answer: _Answer, number: int) -> int:
        """Return the end of the part of an answer that is read in pass `number`. Answers of one text take turns."""
        whole = (answer.turn - number * WHOLE_ANSWERS) % answer.sharing < WHOLE_ANSWERS
        if whole or not self.options.answer_tokens:
            return answer.end
        return min(answer.end, answer.start + self.options.answer_tokens)

    def __len__(self) -> int:
        return len(self.joined)

    def lengths(self, view: int, number: int) -> list[int]:
        """Return the number of tokens of each row of a view, before its questions change."""
        return [self._end(self.rows[row].answers[-1], number) for row in self.joined.rows(view, number)]

    def length(self, view: int, number: int) -> int:
        """Return about the number of tokens of a view: before its questions change and its rows are joined."""
        return sum(self.lengths(view, number))

    def view(self, view: int, number: int) -> dict[str, list[int]]:
        """Return the input_ids and labels of a view in pass `number`."""
        ids, labels = [], []
        for _, row_ids, row_labels in self.row_views(view, number):
            ids, labels = ids + row_ids, labels + row_labels
        return {"input_ids": ids, "labels": labels}

    def row_views(self, view: int, number: int) -> list[tuple[int, list[int], list[int]]]:
        """Return the rows of a view in pass `number`, each with its number, its input_ids and its labels.

        If its rows are too long together, the first ones are left out of this pass.
        """
        found, tokens = [], 0
        for row in reversed(self.joined.rows(view, number)):
            ids, labels = self._row_view(row, number)
            between = [] if not found else self.newline if ids[-1] == self.stop else [self.stop, *self.newline]
            tokens += len(ids) + len(between)
            if found and tokens > self.max_length:
                break
            found.insert(0, (row, ids + between, labels + [IGNORE] * len(between)))
        return found

    def left_out(self, number: int) -> int:
        """Return about how many rows are left out of pass `number`, because their conversation is too long."""
        count = 0
        for view in range(len(self)):
            totals = itertools.accumulate(reversed(self.lengths(view, number)))
            count += sum(total > self.max_length for total in totals)
        return count

    def _row_view(self, row: int, number: int) -> tuple[list[int], list[int]]:
        """Return the input_ids and labels of a row in pass `number`.

        The last answer is cut. An earlier answer stays, because the next question follows from it; only its labels
        are cut.
        """
        full = self.rows[row]
        end = self._end(full.answers[-1], number)
        ids, labels = full.input_ids[:end], full.labels[:end]
        for answer in full.answers[:-1]:
            end = self._end(answer, number)
            labels[end : answer.end] = [IGNORE] * (answer.end - end)
        rng = random.Random(f"{self.seed} {number} {row}")
        for start, end, text, wordings in reversed(full.questions if self.options.question_noise else []):
            changed = noisy_question(text, wordings or [text], self.alphabet, self.options.question_noise, rng)
            new = encode_text(self.tokenizer, changed)
            if len(ids) + len(new) - (end - start) <= self.max_length:
                ids[start:end], labels[start:end] = new, [IGNORE] * len(new)
        return ids, labels
