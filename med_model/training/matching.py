"""Teach a model to tell from a question which answer it asks for, before SFT teaches it to say the answers.

In SFT the first token of an answer is one of sixty, and many answers begin with the same token. So SFT teaches the
matching slowly, and mostly sentence by sentence. Here one more linear layer predicts the number of the answer from the
hidden state that will predict its first token. The layer is thrown away; what the model has learned stays. It costs a
quarter of the time of SFT (docs/en/recipes.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from med_model.data.prompt import IGNORE
from med_model.errors import UserError
from med_model.language import tr
from med_model.screen import say
from med_model.training.muon import optimizers_for
from med_model.training.progress import ProgressLine
from med_model.training.similar_lengths import SimilarLengths
from med_model.training.views import PassCounter, RowViews

BATCH = 32  # questions
INITIAL_DEVIATION = 0.02  # standard deviation of the initial weights, as in GPT-2
# The matching takes these options of SFT over. Its optimizer is that of SFT, too.
COPIED = (
    "output_dir",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "max_grad_norm",
    "bf16",
    "fp16",
    "use_cpu",
    "seed",
    "logging_steps",
    "disable_tqdm",
    "dataloader_pin_memory",
)


@dataclass
class MatchingArguments:
    """The option of the matching. Raise UserError if it is out of range."""

    matching_passes: float = field(
        default=3.0,
        metadata={"help": tr("Passes over the questions, to learn which answer each asks for, before SFT. 0: none.")},
    )

    def __post_init__(self):
        if self.matching_passes < 0:
            raise UserError(tr("--matching_passes {found:g} is below 0.", found=self.matching_passes))


class QuestionViews:
    """Show the questions of the rows that have one question, in another form in each pass, without their answers."""

    def __init__(self, views: RowViews):
        self.views, self.seed, self.current_pass = views, views.seed, 0
        self.rows = [row for row, full in enumerate(views.rows) if len(full.questions) == len(full.answers) == 1]
        texts = [tuple(views.rows[row].labels) for row in self.rows]
        texts = [tuple(label for label in labels if label != IGNORE) for labels in texts]
        numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        self.answers = [numbers[text] for text in texts]  # the number of the answer of each row
        self.distinct = len(numbers)

    def __len__(self) -> int:
        return len(self.rows)

    def length(self, i: int, number: int) -> int:
        """Return about the number of tokens of a view in any pass: before its question changes."""
        return self.views.rows[self.rows[i]].answers[0].start

    def view(self, i: int, number: int) -> dict:
        """Return the input_ids up to the answer in pass `number`, and the number of the answer as `labels`."""
        # Other numbers than those of the passes of SFT give other changes.
        ids, labels = self.views.row_view(self.rows[i], -1 - number)
        first = next(place for place, label in enumerate(labels) if label != IGNORE)
        return {"input_ids": ids[:first], "labels": self.answers[i]}

    def dataset(self) -> Dataset:
        """Return a dataset of the views of the current pass."""

        def views(batch: dict[str, list[int]]) -> dict[str, list]:
            made = [self.view(i, self.current_pass) for i in batch["view"]]
            return {name: [view[name] for view in made] for name in ("input_ids", "labels")}

        return Dataset.from_dict({"view": range(len(self))}).with_transform(views)


def collate(rows: Sequence[dict]) -> dict[str, Tensor]:
    """Return input_ids (batch, seq), padded on the right with 0, lengths (batch,) and labels (batch,)."""
    ids = [torch.tensor(row["input_ids"]) for row in rows]
    return {
        "input_ids": nn.utils.rnn.pad_sequence(ids, batch_first=True),
        "lengths": torch.tensor([len(row) for row in ids]),
        "labels": torch.tensor([row["labels"] for row in rows]),
    }


class AnswerClassifier(nn.Module):
    """Predict the number of an answer from the last hidden state of its question. `model` is trained too."""

    def __init__(self, model: PreTrainedModel, answers: int):
        super().__init__()
        self.model = model
        self.weight = nn.Parameter(torch.randn(answers, model.config.n_embd) * INITIAL_DEVIATION)

    def forward(self, input_ids: Tensor, lengths: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the mean cross-entropy in nats and the logits, (batch, answers). For the shapes see `collate`."""
        # Causal attention never looks to the right, so no question sees its padding.
        hidden = self.model.base_model(input_ids, use_cache=False).last_hidden_state
        last = hidden[torch.arange(len(lengths), device=hidden.device), lengths - 1]
        logits = last.float() @ self.weight.T
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class MatchingTrainer(Trainer):
    """Draw batches of questions of similar length."""

    def _get_train_sampler(self, train_dataset=None):
        return SimilarLengths(self.questions, BATCH)


def match(model: PreTrainedModel, views: RowViews, training: TrainingArguments, passes: float) -> None:
    """Train the model to tell which answer a question asks for. Print the progress, and save nothing.

    training: the options of SFT. With equal answers for all rows, or without rows of one question, do nothing.
    """
    questions = QuestionViews(views)
    if not passes or questions.distinct < 2:
        return
    say(tr("Matching: {rows:,} questions, {answers:,} answers.", rows=len(questions), answers=questions.distinct))
    arguments = TrainingArguments(
        **{name: getattr(training, name) for name in COPIED},
        num_train_epochs=passes,
        per_device_train_batch_size=BATCH,
        remove_unused_columns=False,
        save_strategy="no",
        report_to="none",
        include_num_input_tokens_seen="all",
    )
    classifier = AnswerClassifier(model, questions.distinct)
    trainer = MatchingTrainer(
        model=classifier,
        args=arguments,
        train_dataset=questions.dataset(),
        data_collator=collate,
        optimizers=optimizers_for(classifier, training),
    )
    trainer.questions = questions
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(PassCounter(questions))
    trainer.add_callback(ProgressLine())
    trainer.train()
