"""Fine-tuning without unlearning the language: predictions on plain text are held where they were.

Fine-tuning on questions alone ruins what a small model knew of text (docs/recipes.md has the figures). Training on the
old text beside it is no cure: read more often still, it is learnt by heart. What holds is the distribution of a
model before (the teacher) over the next token, at every position of a block of old text: the Kullback-Leibler
divergence from it is added to the loss (Li and Hoiem 2016, "Learning without Forgetting").

DPO also gives back a part of what it changed: on the straight way from the model before to the one after, the first
steps gain more than they cost (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models").
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
from med_model.model.directory import load_model
from med_model.model.head import linear_kl
from med_model.training.stage import StageArguments

RETENTION_TOKENS = 256  # of plain text beside each batch


@dataclass
class RetentionArguments(StageArguments):
    """Options of the stages that hold the language of the model that they begin with."""

    text: list[str] | None = field(
        default=None,
        metadata={
            "help": "Plain text on which the model shall go on predicting as --input_model does (default: the "
            "bundled pre-training text; best is what the base model was trained on)."
        },
    )
    retention: float = field(
        default=0.1,
        metadata={"help": "Weight of that in the loss; 0 leaves it out, and the model unlearns the language."},
    )
    retention_model: str | None = field(
        default=None,
        metadata={"help": "Directory of the model whose predictions are held (default: --input_model)."},
    )
    retention_temperature: float = field(
        default=1.0,
        metadata={"help": "What is held is softened by it: above 1 the model becomes less sure of the next token."},
    )

    def __post_init__(self):
        if self.retention_temperature <= 0:
            raise UserError(
                f"温度须大于零/--retention_temperature {self.retention_temperature:g}: give more than 0 (1 holds the "
                "predictions as they were)"
            )


class Retention:
    """The divergence of a model from its teacher on plain text, a block drawn at random each time."""

    def __init__(self, teacher: PreTrainedModel, blocks: PackedBlocks, weight: float, temperature: float = 1.0):
        self.teacher, self.blocks = teacher.eval().requires_grad_(False), blocks
        self.weight, self.temperature = weight, temperature

    def loss(self, model: PreTrainedModel) -> Tensor:
        """The weighted divergence on a block, which torch's random numbers choose, so that a resumed run agrees."""
        place = int(torch.randint(len(self.blocks), ()))
        input_ids = self.blocks[place]["input_ids"][None].to(model.device)  # (1, block)
        # Without dropout: what is held is the model as it will be used, and a CPU is faster.
        training = model.training
        hidden = model.eval().base_model(input_ids=input_ids, use_cache=False).last_hidden_state[0]
        model.train(training)
        with torch.no_grad():
            teacher_hidden = self.teacher.base_model(input_ids=input_ids, use_cache=False).last_hidden_state[0]
        table, teacher_table = (of.get_output_embeddings().weight for of in (model, self.teacher))
        # The head is linear: what is divided here divides the teacher's logits.
        return self.weight * linear_kl(hidden, table, teacher_hidden / self.temperature, teacher_table)


class Retaining:
    """Mixed into a Trainer: the divergence joins its training loss."""

    retention: Retention | None = None

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        # Asked for outputs TRL would run the model once more; training never asks.
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self.retention and model.training:
            # Where the labels of a whole step are counted the Trainer does not divide by its batches.
            batches = 1 if num_items_in_batch is None else self.args.gradient_accumulation_steps
            result = result + self.retention.loss(self.model) / batches
        return result


@torch.no_grad()
def interpolate(model: PreTrainedModel, start: PreTrainedModel, share: float, embedding_share: float) -> None:
    """Leaves in `model` only a share of what its layers, and its embeddings, are away from those of `start`."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    for parameter, before in zip(model.parameters(), start.parameters(), strict=True):
        left = embedding_share if id(parameter) in embeddings else share
        parameter.copy_(before.to(parameter.device).lerp(parameter, left))


def new_retention(
    stage: RetentionArguments, tokenizer: PreTrainedTokenizerBase, device: torch.device
) -> Retention | None:
    """The teacher and the text that the stage names; None at weight 0. UserError for a teacher of other tokens."""
    if not stage.retention:
        return None
    text = read_all(stage.text or [paths.PRETRAINING_DATA], document_of)
    teacher, teacher_tokenizer = load_model(stage.retention_model or stage.input_model)
    if teacher_tokenizer.get_vocab() != tokenizer.get_vocab():
        raise UserError(
            f"词表不同/--retention_model {paths.shown(stage.retention_model)}/ has {len(teacher_tokenizer):,} tokens, "
            f"{paths.shown(stage.input_model)}/ {len(tokenizer):,}, and not the same: give the model it was made from"
        )
    blocks = PackedBlocks(tokenizer, text, RETENTION_TOKENS)
    return Retention(teacher.to(device), blocks, stage.retention, stage.retention_temperature)
