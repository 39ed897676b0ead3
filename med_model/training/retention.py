"""Keep a model's predictions on text close to those of an earlier model, by KL regularization and weight averaging.

After fine-tuning on answers alone, a small model predicts plain text much worse (figures: docs/en/recipes.md).
Training on the pre-training text again does not help, because the model learns this text by heart. KL regularization
helps. The model and an earlier model (the teacher) read the same piece of plain text. The loss gets one more term: the
mean Kullback-Leibler divergence between the two predictions (Li and Hoiem 2016, "Learning without Forgetting").

DPO also uses weight averaging. The published weights are a weighted mean of the weights before and after DPO. With
these weights, the model keeps most of the accuracy that it gained in DPO, and wins back most of the recall that it
lost (docs/en/recipes.md). The method is from Wortsman et al. 2022, "Robust fine-tuning of zero-shot models".
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from med_model import paths
from med_model.data.blocks import PackedBlocks
from med_model.data.records import document_of
from med_model.data.split import read_all
from med_model.errors import UserError
from med_model.language import tr
from med_model.model.directory import load_model
from med_model.model.head import linear_kl
from med_model.training.stage import StageArguments

RETENTION_TOKENS = 256  # tokens of plain text per batch, for the KL regularization
# One of this many steps has the KL term, with this many times its weight. In all steps, it would take a seventh of the
# time.
RETENTION_STEPS = 4


@dataclass
class RetentionArguments(StageArguments):
    """Options of SFT and DPO, which use KL regularization. Raise UserError if `retention_temperature` is 0 or less."""

    text: list[str] | None = field(
        default=None,
        metadata={
            "help": tr(
                "Plain text on which the predictions of an earlier model are held. The text that the base model was "
                "trained on works best. Default: the bundled pre-training text."
            )
        },
    )
    retention: float = field(
        default=0.1,
        metadata={"help": tr("Weight of this KL term in the loss. At 0 the model unlearns the language.")},
    )
    retention_model: str | None = field(
        default=None,
        metadata={"help": tr("Directory of the model whose predictions are held. Default: --input_model.")},
    )
    retention_temperature: float = field(
        default=1.0,
        metadata={"help": tr("Temperature of the held predictions. Above 1 the model becomes less confident.")},
    )

    def __post_init__(self):
        if self.retention_temperature <= 0:
            raise UserError(
                tr(
                    "--retention_temperature {found:g} is not above 0. Give 1 to hold the predictions as they are.",
                    found=self.retention_temperature,
                )
            )


class Retention:
    """Compute the KL term of the loss. It keeps the predictions of a model close to those of a teacher.

    teacher: an earlier model. blocks: the plain text, in blocks of equal length. weight: factor of the KL divergence.
    temperature: divisor of the teacher's logits.
    """

    def __init__(self, teacher: PreTrainedModel, blocks: PackedBlocks, weight: float, temperature: float = 1.0):
        self.teacher, self.blocks = teacher.eval().requires_grad_(False), blocks
        self.weight, self.temperature = weight, temperature

    def loss(self, model: PreTrainedModel) -> Tensor:
        """Return `weight` times KL(teacher || model) on a random block, in nats per token: a scalar with gradient.

        torch's random generator draws the block. Checkpoints save the state of the generator, so a resumed run draws
        the same blocks as a run without a break.
        """
        index = int(torch.randint(len(self.blocks), ()))
        input_ids = self.blocks[index]["input_ids"][None].to(model.device)  # (1, tokens)
        # `eval()` turns dropout off, because the published model runs without dropout. A CPU is also faster then.
        training = model.training
        hidden = model.eval().base_model(input_ids=input_ids, use_cache=False).last_hidden_state[0]  # (tokens, width)
        model.train(training)
        with torch.no_grad():
            teacher_hidden = self.teacher.base_model(input_ids=input_ids, use_cache=False).last_hidden_state[0]
        weight = model.get_output_embeddings().weight
        teacher_weight = self.teacher.get_output_embeddings().weight
        # The output layer is linear, so a division of its input also divides the teacher's logits.
        return self.weight * linear_kl(hidden, weight, teacher_hidden / self.temperature, teacher_weight)


@torch.no_grad()
def interpolate(model: PreTrainedModel, start: PreTrainedModel, share: float, embedding_share: float) -> None:
    """Change each weight of `model` in place to the weighted mean `start + share * (model - start)`.

    The weights of embeddings use `embedding_share` instead of `share`. This weight averaging is from Wortsman et al.
    2022. Both models must have the same parameter tensors in the same order. Raise ValueError if one model has more
    parameter tensors than the other.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    for parameter, before in zip(model.parameters(), start.parameters(), strict=True):
        kept_share = embedding_share if id(parameter) in embeddings else share
        parameter.copy_(before.to(parameter.device).lerp(parameter, kept_share))


def text_tokens(retention: Retention | None) -> int:
    """Return the number of tokens of plain text in one batch of the KL regularization, 0 without it."""
    return RETENTION_TOKENS if retention else 0


def new_retention(
    stage: RetentionArguments, tokenizer: PreTrainedTokenizerBase, device: torch.device
) -> Retention | None:
    """Load the teacher and the plain text, and return the KL regularization. Return None if --retention is 0.

    Raise UserError if the text or the teacher cannot be loaded, or if the teacher's vocabulary is not that of
    `tokenizer`.
    """
    if not stage.retention:
        return None
    texts = read_all(stage.text or [paths.PRETRAINING_DATA], document_of)
    teacher, teacher_tokenizer = load_model(stage.retention_model or stage.input_model)
    if teacher_tokenizer.get_vocab() != tokenizer.get_vocab():
        raise UserError(
            tr(
                "--retention_model {teacher}/ has {teacher_tokens:,} tokens and --input_model {student}/ has "
                "{student_tokens:,}, and they are not the same tokens. Give the model before --input_model.",
                teacher=paths.shown(stage.retention_model),
                teacher_tokens=len(teacher_tokenizer),
                student=paths.shown(stage.input_model),
                student_tokens=len(tokenizer),
            )
        )
    blocks = PackedBlocks(tokenizer, texts, RETENTION_TOKENS)
    return Retention(teacher.to(device), blocks, stage.retention, stage.retention_temperature)
