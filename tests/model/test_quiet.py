import logging

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from med_model.data.prompt import encode_prompt
from med_model.model.directory import load_model
from med_model.model.gpt2 import new_model
from med_model.model.quiet import LENGTH_WARNING, PADDING_ADVICE


@pytest.fixture
def library_log():
    """Return a list that collects the messages of transformers during a test.

    The caplog fixture may miss these messages: it reads the root logger, and outside CI transformers does not pass its
    log records to the root logger.
    """
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logging.getLogger("transformers").addHandler(handler)
    yield messages
    logging.getLogger("transformers").removeHandler(handler)


@pytest.fixture
def load_best_checkpoint(tmp_path):
    """Return a function that saves a model and loads it as the Trainer loads its best checkpoint.

    After saving, the function removes the weights named in `left_out` from the file. The function returns
    all saved weights, including the removed ones.
    """

    def load(model, left_out=()):
        trainer = Trainer(model, TrainingArguments(str(tmp_path), use_cpu=True))
        trainer.save_model(tmp_path / "checkpoint-1")
        file = tmp_path / "checkpoint-1" / "model.safetensors"
        weights = load_file(file)
        save_file({name: weight for name, weight in weights.items() if name not in left_out}, file)
        with torch.no_grad():
            model.transformer.wte.weight.zero_()
        trainer.state.best_model_checkpoint = str(tmp_path / "checkpoint-1")
        trainer._load_best_model()
        return weights

    return load


@pytest.mark.parametrize("source", ["new", "loaded"])
def test_the_best_checkpoint_of_a_tied_model_loads_without_a_warning(
    source, tokenizer, model_directory, load_best_checkpoint, library_log
):
    model = new_model(tokenizer, dropout=0.0) if source == "new" else load_model(model_directory)[0]
    weights = load_best_checkpoint(model)
    assert "lm_head.weight" not in weights
    assert torch.equal(model.lm_head.weight, weights["transformer.wte.weight"])
    assert not [message for message in library_log if "missing keys" in message]


def test_a_checkpoint_that_lacks_another_weight_still_warns(model_directory, load_best_checkpoint, library_log):
    load_best_checkpoint(load_model(model_directory)[0], left_out=["transformer.ln_f.bias"])
    assert [message for message in library_log if "missing keys" in message and "transformer.ln_f.bias" in message]


def message_source(logger_name: str, filtered: bool, monkeypatch) -> logging.Logger:
    """Return a logger of transformers. If `filtered` is False, remove its filters.

    Without the filters, the test checks that the library really logs the message that a filter hides.
    """
    logger = logging.getLogger(logger_name)
    if not filtered:
        monkeypatch.setattr(logger, "filters", [])
    logging.Logger.warning_once.cache_clear()
    return logger


@pytest.mark.parametrize("filtered", [True, False])
def test_the_warning_about_a_long_text_is_filtered_and_other_messages_are_not(
    filtered, tokenizer_directory, library_log, monkeypatch
):
    logger = message_source("transformers.tokenization_utils_base", filtered, monkeypatch)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_directory)  # a tokenizer warns once, so make a new one
    text = "高血压怎么办？" * 500
    assert len(encode_prompt(tokenizer, [{"role": "user", "content": text}])) > tokenizer.model_max_length
    logger.warning("another message")
    assert library_log[-1] == "another message"
    assert any(message.startswith(LENGTH_WARNING) for message in library_log) is not filtered


@pytest.mark.parametrize("filtered", [True, False])
def test_the_advice_to_pass_an_attention_mask_is_filtered_and_other_messages_are_not(
    filtered, library_log, monkeypatch
):
    logger = message_source("transformers.modeling_utils", filtered, monkeypatch)
    config = GPT2Config(vocab_size=8, n_positions=4, n_embd=4, n_layer=1, n_head=1, pad_token_id=0)
    GPT2LMHeadModel(config)(torch.tensor([[1, 2, 0]]))
    logger.warning("another message")
    assert library_log[-1] == "another message"
    assert any(message.startswith(PADDING_ADVICE) for message in library_log) is not filtered
