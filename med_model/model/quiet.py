"""Turn off the messages of transformers that report no mistake."""

import logging

import transformers
from transformers import PreTrainedModel

PADDING_ADVICE = "We strongly recommend passing in an `attention_mask` since your input_ids may be padded."
LENGTH_WARNING = "Token indices sequence length is longer than the specified maximum sequence length for this model"


def _is_worth_showing(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith((PADDING_ADVICE, LENGTH_WARNING))


def quiet_transformers() -> None:
    """Turn off two messages of transformers, and its progress bars for loading and saving.

    The bars are not needed: with a vocabulary of 20,000 tokens a model has 34 MB, so it loads and saves quickly.

    `GPT2Model.forward` logs PADDING_ADVICE if there is no attention mask and a row begins or ends with the pad token.
    This project needs no mask: it pads rows on the right, and causal attention never looks to the right. A mask would
    also make attention slower.

    The tokenizer logs LENGTH_WARNING for a text with more tokens than the model has positions. This is no fault here:
    the project cuts such a text after it has counted the tokens. The tokenizer's option `verbose=False`
    is not enough: the library ignores it if `sanitize_control_tokens` is True, as for each chat of this project.
    """
    transformers.utils.logging.disable_progress_bar()
    for module in ("modeling_utils", "tokenization_utils_base"):
        logging.getLogger(f"transformers.{module}").addFilter(_is_worth_showing)


def expect_tied_head(model: PreTrainedModel) -> None:
    """Tell the Trainer that a checkpoint of `model` has no weights of its own for a tied output layer.

    A checkpoint holds tied weights once, under the name of the embeddings, so the key of the output layer is missing.
    `Trainer._issue_warnings_after_load` compares the missing keys with `_keys_to_ignore_on_save`. If the two sets are
    equal, the Trainer ties the weights again. If any other key is missing too, the Trainer logs a warning.
    """
    model._keys_to_ignore_on_save.update(model.all_tied_weights_keys)
