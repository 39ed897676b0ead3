"""Draw the views of the SFT rows in batches of similar length, which need little padding."""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from med_model.training.pass_views import PassViews

SORTED_BATCHES = 50  # batches whose views are sorted by length


class SimilarLengths(Sampler[int]):
    """Draw the views of a pass in batches of similar length. The order is a function of the pass and the seed."""

    def __init__(self, views: PassViews, batch_size: int):
        self.views, self.batch_size = views, batch_size

    def __len__(self) -> int:
        return len(self.views)

    def __iter__(self) -> Iterator[int]:
        number = self.views.current_pass
        generator = torch.Generator().manual_seed(self.views.seed * 1000 + number)
        order = torch.randperm(len(self), generator=generator).tolist()
        batches = []
        size, sorted_views = self.batch_size, SORTED_BATCHES * self.batch_size
        for start in range(0, len(order), sorted_views):
            part = sorted(order[start : start + sorted_views], key=lambda i: self.views.length(i, number))
            batches += [part[k : k + size] for k in range(0, len(part), size)]
        # A batch with fewer views must come last: the Trainer cuts the order into batches of equal size.
        last = [] if len(batches[-1]) == size else batches.pop()
        for k in torch.randperm(len(batches), generator=generator).tolist():
            yield from batches[k]
        yield from last
