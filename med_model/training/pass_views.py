"""Show the training data in another form in each pass."""

from datasets import Dataset
from transformers import TrainerCallback


class PassViews:
    """The base class of views, which are forms of the training data that differ from pass to pass.

    A view is a function of its number, the number of the pass and the seed. So a resumed run reads the same views as a
    run without a break. `current_pass` counts the passes from 0; `PassCounter` sets it.
    """

    def __init__(self, seed: int):
        self.seed, self.current_pass = seed, 0

    def __len__(self) -> int:
        """Return the number of views, which is the same in each pass."""
        raise NotImplementedError

    def length(self, view: int, number: int) -> int:
        """Return about the number of tokens of a view in pass `number`."""
        raise NotImplementedError

    def view(self, view: int, number: int) -> dict:
        """Return the `input_ids` and `labels` of a view in pass `number`."""
        raise NotImplementedError

    def dataset(self) -> Dataset:
        """Return a dataset with `input_ids` and `labels`, the views of the current pass."""

        def views(batch: dict[str, list[int]]) -> dict[str, list]:
            made = [self.view(i, self.current_pass) for i in batch["view"]]
            return {name: [view[name] for view in made] for name in ("input_ids", "labels")}

        return Dataset.from_dict({"view": range(len(self))}).with_transform(views)


class PassCounter(TrainerCallback):
    """Tell the views which pass begins."""

    def __init__(self, views: PassViews):
        self.views = views

    def on_epoch_begin(self, args, state, control, **kwargs):
        # In a run that is resumed in the middle of a pass, state.epoch is a fraction.
        self.views.current_pass = int(state.epoch)
