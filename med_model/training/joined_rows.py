"""Choose the SFT rows that form one conversation in a pass."""

import functools
import random
from collections.abc import Sequence

MOST_JOINED = 4  # rows in one conversation


class JoinedRows:
    """Divide the rows into conversations, in each pass anew. Each row is in one conversation of a pass.

    The rows of a conversation are a function of its number, the number of the pass and the seed. Every pass has the
    same number of conversations. A row that opens a conversation is the only row of its conversation.
    """

    def __init__(self, opens: Sequence[bool], later_turns: float, seed: int):
        """opens: for each row, True if it begins with a system message. later_turns: see `ViewArguments`."""
        self.opens, self.shuffled, self.seed = opens, later_turns > 0, seed
        self.order = functools.lru_cache(maxsize=2)(self._order)  # the orders of this pass and of the one before
        self.bounds: list[tuple[int, int]] = []  # places of the rows of each conversation in the order of a pass
        rng, joined, start = random.Random(f"{seed} bounds"), len(opens) - sum(opens), 0
        while start < len(opens):
            end, last = start + 1, min(start + MOST_JOINED, joined)
            while end < last and rng.random() < later_turns:
                end += 1
            self.bounds.append((start, end))
            start = end

    def __len__(self) -> int:
        return len(self.bounds)

    def _order(self, number: int) -> list[int]:
        """Return all rows in the order of pass `number`. Rows that open a conversation are the last ones."""
        order = list(range(len(self.opens)))
        if self.shuffled:
            random.Random(f"{self.seed} {number} order").shuffle(order)
        return sorted(order, key=self.opens.__getitem__)

    def rows(self, conversation: int, number: int) -> list[int]:
        """Return the rows of a conversation in pass `number`, in the order of its turns."""
        start, end = self.bounds[conversation]
        return self.order(number)[start:end]
