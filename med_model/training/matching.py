"""Teach a model to tell from a question which answer it asks for, before SFT teaches it to say the answers.

In SFT the first token of an answer is one of sixty, and many answers begin with the same token. So SFT teaches the
matching slowly, and mostly sentence by sentence. Here one more linear layer predicts the number of the answer from the
hidden state that will predict its first token, and another one from the mean of the token embeddings. The layers are
thrown away; what the model has learned stays. It takes two fifths of the time of SFT (docs/en/results.md).
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
from med_model.training.progress import ProgressLine, TimeLeft, Workload, remove_library_progress
from med_model.training.retention import Retention, text_tokens
from med_model.training.stage import train_in_memory
from med_model.training.trainer import PassTrainer, RetentionTrainer
from med_model.training.views import RowViews, spans_of_answers

INITIAL_DEVIATION = 0.02  # standard deviation of the initial weights, as in GPT-2
# The KL term has this many times its weight in SFT, because the loss of the matching is larger (docs/en/recipes.md).
RETENTION_FACTOR = 8
# The matching takes these options of SFT over. Its optimizer is that of SFT, too.
COPIED = (
    "output_dir",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
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
    """Show the conversations of SFT in another form in each pass, up to the start of their last answer."""

    def __init__(self, views: RowViews):
        super().__init__(views.seed)
        self.views = views
        texts = [[tuple(row.input_ids[a.start : a.end]) for a in row.answers] for row in views.rows]
        numbers = {text: i for i, text in enumerate(dict.fromkeys(text for row in texts for text in row))}
        self.answers = [[numbers[text] for text in row] for row in texts]  # the numbers of the answers of each row
        self.distinct = len(numbers)

    def __len__(self) -> int:
        return len(self.views)

    def length(self, view: int, number: int) -> int:
        """Return about the number of tokens of a view in pass `number`."""
        last = self.views.joined.rows(view, _other(number))[-1]
        return sum(self.views.lengths(view, _other(number))[:-1]) + self.views.rows[last].answers[-1].start

    def view(self, view: int, number: int) -> dict:
        """Return the `input_ids` of a view in pass `number`, and for each of its answers, as `labels`, three numbers.

        These are the start of its row, its own start, both as places in the input_ids, and the number of the answer.
        """
        ids, labels = [], []
        for row, row_ids, row_labels in self.views.row_views(view, _other(number)):
            starts = [len(ids) + start for start, _ in spans_of_answers(row_labels)]
            labels += [(len(ids), *answer) for answer in zip(starts, self.answers[row], strict=True)]
            ids += row_ids
        return {"input_ids": ids[: labels[-1][1]], "labels": labels}


def _other(number: int) -> int:
    """Return a number that no pass of SFT has, so that the views differ from those of SFT."""
    return -1 - number


def collate(rows: Sequence[dict]) -> dict[str, Tensor]:
    """Return input_ids (batch, seq), padded on the right with 0, and labels (batch, answers, 3), with IGNORE."""
    ids, labels = ([torch.tensor(row[name]) for row in rows] for name in ("input_ids", "labels"))
    return {
        "input_ids": nn.utils.rnn.pad_sequence(ids, batch_first=True),
        "labels": nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=IGNORE),
    }


class AnswerClassifier(nn.Module):
    """Predict the numbers of the answers that the rows of conversations ask for. `model` is trained too.

    There are two predictions, and the loss is the sum of both. One is made from the last hidden state before an
    answer, as SFT predicts the first token. The other one is made from the mean of the token embeddings of the row up
    to there. It makes each word tell what it is about, wherever it stands, as in a search; new wordings need that.
    """

    def __init__(self, model: PreTrainedModel, answers: int):
        super().__init__()
        self.model = model
        shape = (answers, model.config.n_embd)
        self.from_hidden = nn.Parameter(torch.randn(shape) * INITIAL_DEVIATION)
        self.from_words = nn.Parameter(torch.randn(shape) * INITIAL_DEVIATION)

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the loss in nats and the logits from the hidden states, (answers of the batch, all answers).

        For the shapes see `collate`.
        """
        place, answer = (labels[..., 0] != IGNORE).nonzero(as_tuple=True)
        start, end, number = labels[place, answer].unbind(-1)
        # Causal attention never looks to the right, so no question sees its padding.
        hidden = self.model.base_model(input_ids, use_cache=False).last_hidden_state[place, end - 1]
        sums = nn.functional.pad(self.model.get_input_embeddings()(input_ids).float().cumsum(1), (0, 0, 1, 0))
        # A sum is as good as a mean here: the normalization removes the scale.
        words = nn.functional.layer_norm(sums[place, end] - sums[place, start], hidden.shape[-1:])
        logits = hidden.float() @ self.from_hidden.T
        loss = nn.functional.cross_entropy(logits, number)
        loss = loss + nn.functional.cross_entropy(words @ self.from_words.T, number)
        return {"loss": loss, "logits": logits}


class MatchingTrainer(PassTrainer, RetentionTrainer, Trainer):
    """Add the views of the questions and the KL regularization to Hugging Face's Trainer."""

    def retention_loss(self) -> Tensor:
        return RETENTION_FACTOR * self.retention.loss(self.model.model)


def match(
    model: PreTrainedModel,
    views: RowViews,
    training: TrainingArguments,
    passes: float,
    retention: Retention | None = None,
    dry_run: bool = False,
) -> None:
    """Train the model to tell which answer a question asks for. Print the progress, and save nothing.

    training: the options of SFT. retention: the KL regularization of SFT. dry_run: print the time that it takes, and
    stop after four steps. With equal answers for all rows, do nothing. Raise UserError if the memory of a GPU is too
    small.
    """
    questions = QuestionViews(views)
    if not passes or questions.distinct < 2:
        return
    rows = sum(len(answers) for answers in questions.answers)
    say(tr("Matching: {rows:,} questions, {answers:,} answers.", rows=rows, answers=questions.distinct))
    arguments = TrainingArguments(
        **{name: getattr(training, name) for name in COPIED},
        num_train_epochs=passes,
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
        retention=retention,
    )
    remove_library_progress(trainer)
    if not dry_run:
        trainer.add_callback(ProgressLine())
    lengths = [questions.length(view, 0) for view in range(len(questions))]
    workload = Workload(sum(lengths), max(lengths), retention_tokens=text_tokens(retention))
    trainer.add_callback(TimeLeft(trainer, workload, dry_run))
    train_in_memory(trainer)
