"""Teach a model to tell from a question which answer it asks for, before SFT teaches it to say the answers.

In SFT the first token of an answer is one of sixty, and many answers begin with the same token. So SFT teaches the
matching slowly, and mostly sentence by sentence. Here one more linear layer predicts the number of the answer from the
hidden state that will predict its first token. The layer is thrown away; what the model has learned stays. It costs a
quarter of the time of SFT (docs/en/recipes.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainingArguments

from med_model.data.prompt import IGNORE
from med_model.errors import UserError
from med_model.language import tr
from med_model.screen import say
from med_model.training.muon import optimizers_for
from med_model.training.pass_views import PassViews
from med_model.training.progress import ProgressLine, remove_library_progress
from med_model.training.trainer import PassTrainer
from med_model.training.views import RowViews

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


class QuestionViews(PassViews):
    """Show the questions of the rows that have one question, in another form in each pass, without their answers."""

    def __init__(self, views: RowViews):
        super().__init__(views.seed)
        self.views = views
        self.rows = [row for row, full in enumerate(views.rows) if len(full.questions) == len(full.answers) == 1]
        texts = [tuple(label for label in views.rows[row].labels if label != IGNORE) for row in self.rows]
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


class MatchingTrainer(PassTrainer, Trainer):
    """Add the views of the questions to Hugging Face's Trainer."""


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
        train_sampling_strategy="group_by_length",
        remove_unused_columns=False,
        save_strategy="no",
        report_to="none",
        include_num_input_tokens_seen="all",
    )
    classifier = AnswerClassifier(model, questions.distinct)
    trainer = MatchingTrainer(
        questions,
        model=classifier,
        args=arguments,
        data_collator=collate,
        optimizers=optimizers_for(classifier, training),
    )
    remove_library_progress(trainer)
    trainer.add_callback(ProgressLine())
    trainer.train()
