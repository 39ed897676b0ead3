"""Keep the language of an earlier model in SFT and DPO: KL regularization on plain text, and weight averaging.

Fine-tuning on questions alone ruins the predictions of a small model on text (docs/en/recipes.md has the figures).
Mixing the old text into the batches does not help: the model reads it even more often and learns it by heart. KL
regularization does help. The model and an earlier model (the teacher) read a block of the old text. The loss gets a
term: the Kullback-Leibler divergence between their predictions, averaged over the positions of the block (Li and
Hoiem 2016, "Learning without Forgetting").

DPO also averages weights. It publishes a model on the straight line between the weights before DPO and those after it.
The first part of this line gains more than it costs (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models").
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

RETENTION_TOKENS = 256  # tokens of plain text per batch


@dataclass
class RetentionArguments(StageArguments):
    """Options of the stages with KL regularization, SFT and DPO. Raise UserError if the temperature is not above 0."""

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
    """The KL regularization of a model towards its teacher. Each call of `loss` reads a random block of plain text.

    weight: factor of the KL divergence. temperature: divisor of the teacher's logits.
    """

    def __init__(self, teacher: PreTrainedModel, blocks: PackedBlocks, weight: float, temperature: float = 1.0):
        self.teacher, self.blocks = teacher.eval().requires_grad_(False), blocks
        self.weight, self.temperature = weight, temperature

    def loss(self, model: PreTrainedModel) -> Tensor:
        """Return the weighted KL(teacher || model) in nats per token, a scalar with gradient.

        torch's random generator draws the block. A checkpoint saves this generator, so a resumed run draws the same.
        """
        index = int(torch.randint(len(self.blocks), ()))
        input_ids = self.blocks[index]["input_ids"][None].to(model.device)  # (1, block)
        # Without dropout, the term regularizes the model as it will be used, and a CPU computes it faster.
        training = model.training
        hidden = model.eval().base_model(input_ids=input_ids, use_cache=False).last_hidden_state[0]  # (block, width)
        model.train(training)
        with torch.no_grad():
            teacher_hidden = self.teacher.base_model(input_ids=input_ids, use_cache=False).last_hidden_state[0]
        weight = model.get_output_embeddings().weight
        teacher_weight = self.teacher.get_output_embeddings().weight
        # The head is linear: dividing the teacher's hidden states divides its logits.
        return self.weight * linear_kl(hidden, weight, teacher_hidden / self.temperature, teacher_weight)


@torch.no_grad()
def interpolate(model: PreTrainedModel, start: PreTrainedModel, share: float, embedding_share: float) -> None:
    """Move the weights of `model` back towards `start`: keep `share` of their change, `embedding_share` in embeddings.

    This is the weight averaging of Wortsman et al. 2022. `model` is changed in place. Both models must have the same
    parameters in the same order. Raise ValueError if their numbers of parameters differ.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    for parameter, before in zip(model.parameters(), start.parameters(), strict=True):
        kept_share = embedding_share if id(parameter) in embeddings else share
        parameter.copy_(before.to(parameter.device).lerp(parameter, kept_share))


def new_retention(
    stage: RetentionArguments, tokenizer: PreTrainedTokenizerBase, device: torch.device
) -> Retention | None:
    """Return the KL regularization of a stage, with its teacher and text loaded. Return None if its weight is 0.

    Raise UserError if there is no usable text or teacher, or if the vocabularies of teacher and stage differ.
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
