"""Check training/trainer.py: the logits are computed in chunks, with the same results as in transformers and TRL."""

import copy
from types import SimpleNamespace

import pytest
import torch
from small_runs import STAGES, random_blocks, random_ids
from transformers import GPT2Config, GPT2LMHeadModel
from trl.trainer.utils import add_fused_lm_head

from med_model.data.prompt import IGNORE
from med_model.model.head import CHUNK_TOKENS, SOFTMAX_ROWS
from med_model.training import trainer as trainer_module
from med_model.training.retention import RETENTION_STEPS, Retention
from med_model.training.trainer import OurTrainer, use_chunked_head

VOCABULARY = 50


@pytest.fixture(autouse=True)
def chunks_smaller_than_the_data(monkeypatch):
    monkeypatch.setitem(CHUNK_TOKENS, "cpu", 7)  # the 24 labels of `batch` make three full chunks and one chunk of 3
    monkeypatch.setitem(SOFTMAX_ROWS, "cpu", 3)


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=32, n_embd=32, n_layer=2, n_head=2, initializer_range=0.2)
    return GPT2LMHeadModel(config).eval()


@pytest.fixture
def batch():
    """Return a padded batch. Some positions have the label IGNORE, so they are not part of the loss."""
    torch.manual_seed(1)
    input_ids = torch.randint(VOCABULARY, (3, 12))
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, 8:] = 0
    labels = input_ids.masked_fill(attention_mask == 0, IGNORE)
    labels[0, :5] = IGNORE
    labels[2, 3] = IGNORE
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def assert_same_gradients(model, other):
    for (name, parameter), expected in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(
            parameter.grad, expected.grad, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_use_chunked_head_computes_with_the_weights_of_a_copy_in_the_copy(model, batch):
    use_chunked_head(model)
    before = model(**batch).loss
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.transformer.ln_f.bias += 1
    assert other(**batch).loss != before and model(**batch).loss == before


@pytest.mark.parametrize("num_items_in_batch", [None, torch.tensor(50)])
def test_use_chunked_head_keeps_the_stock_loss_and_gradients(model, batch, num_items_in_batch):
    stock = copy.deepcopy(model)
    use_chunked_head(model)
    options = {} if num_items_in_batch is None else {"num_items_in_batch": num_items_in_batch}
    expected, loss = stock(**batch, **options).loss, model(**batch, **options).loss
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)
    expected.backward()
    loss.backward()
    assert_same_gradients(model, stock)


def test_use_chunked_head_keeps_the_loss_and_gradients_with_activation_checkpointing(model, batch):
    stock = copy.deepcopy(model)
    use_chunked_head(model)
    model.activation_checkpointing_enable({"use_reentrant": False})
    for each in (model, stock):
        for module in each.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0
        each.train()  # layers are computed again only in training
        each(**batch).loss.backward()
    assert_same_gradients(model, stock)


def test_the_last_feed_forward_network_computes_only_tokens_before_a_label(model, batch):
    use_chunked_head(model)
    computed = []
    for layer in model.transformer.h:
        layer.mlp.c_fc.register_forward_hook(lambda _, inputs, output: computed.append(inputs[0][..., 0].numel()))
    model(**batch)
    labelled = (batch["labels"][:, 1:] != IGNORE).sum().item()
    assert computed == [batch["labels"].numel(), labelled]


def test_use_chunked_head_gives_a_loss_of_zero_and_no_nan_without_any_label(model, batch):
    use_chunked_head(model)
    loss = model(**batch | {"labels": torch.full_like(batch["labels"], IGNORE)}).loss
    loss.backward()
    assert loss.item() == 0
    assert all(torch.all(parameter.grad == 0) for parameter in model.parameters())


def test_use_chunked_head_changes_neither_the_logits_nor_the_saved_files(model, batch, tmp_path):
    before = model(batch["input_ids"]).logits
    model.save_pretrained(tmp_path / "before")
    use_chunked_head(model)
    assert torch.equal(model(batch["input_ids"]).logits, before)
    model.save_pretrained(tmp_path / "after")
    files = {
        name: {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("before", "after")
    }
    assert "model.safetensors" in files["before"]
    assert files["after"] == files["before"]


def test_token_scores_and_their_gradients_are_those_of_trls_own_head(model, batch):
    stock = copy.deepcopy(model)
    add_fused_lm_head(stock, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    use_chunked_head(model)
    expected, scores = stock(**batch, fused_lm_head=True), model(**batch, fused_lm_head=True)
    for name in ("log_probs", "entropy", "mean_logits"):
        torch.testing.assert_close(scores[name], expected[name], atol=1e-4, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
    for name in ("label_mask", "is_top1"):
        assert torch.equal(scores[name], expected[name]), name
    upstream = torch.randn(expected.log_probs.shape)
    (expected.log_probs * upstream).sum().backward()
    (scores.log_probs * upstream).sum().backward()
    assert_same_gradients(model, stock)


@pytest.mark.parametrize("fused_lm_head", [False, True])
def test_use_chunked_head_in_bfloat16_is_near_float32_in_loss_and_gradients(model, batch, fused_lm_head):
    reference = copy.deepcopy(model)
    losses = []
    for one, bf16 in ((reference, False), (model, True)):
        use_chunked_head(one)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            output = one(**batch, fused_lm_head=fused_lm_head)
        losses.append(-output.log_probs.sum() / 20 if fused_lm_head else output.loss)
        losses[-1].backward()
    expected_loss, loss = losses
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected_loss.item(), rel=0.02)
    for (name, parameter), expected in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert parameter.grad.dtype == torch.float32
        assert (parameter.grad - expected.grad).norm() < 0.05 * expected.grad.norm(), name


def test_use_chunked_head_refuses_rows_padded_anywhere_but_on_the_right(model, batch):
    use_chunked_head(model)
    for position in (0, 4):
        attention_mask = torch.ones_like(batch["input_ids"])
        attention_mask[0, position] = 0
        with pytest.raises(AssertionError, match="padded on the right"):
            model(**batch | {"attention_mask": attention_mask})


@pytest.mark.parametrize("stage", STAGES)
def test_each_trainer_installs_the_chunked_head_after_the_library(stage, new_trainer, tokenizer):
    trainer = new_trainer(stage)
    assert isinstance(trainer, OurTrainer)
    stock = GPT2LMHeadModel(trainer.model.config).eval()
    stock.load_state_dict(trainer.model.state_dict())
    input_ids = torch.tensor(random_ids(3, 24, 24, len(tokenizer)))
    labels = input_ids.clone()
    labels[0, :9] = IGNORE
    copied = copy.deepcopy(trainer.model)
    with torch.no_grad():
        copied.transformer.ln_f.bias += 1
    changed = GPT2LMHeadModel(trainer.model.config).eval()
    changed.load_state_dict(copied.state_dict())
    for model, expected in ((trainer.model, stock), (copied, changed)):
        model.eval()
        assert "forward" in vars(model) and model.forward.__func__ is not GPT2LMHeadModel.forward
        assert model.forward.__self__ is model, "a copy computes with its own weights"
        output = model(input_ids=input_ids, labels=labels)
        assert "logits" not in output, "the full logits were computed"
        wanted = expected(input_ids=input_ids, labels=labels)
        torch.testing.assert_close(output.loss, wanted.loss, atol=1e-5, rtol=0)
        scores = model(input_ids=input_ids, labels=labels, fused_lm_head=True)
        log_probs = wanted.logits[:, :-1].log_softmax(-1).gather(2, input_ids[:, 1:, None])[:, :, 0]
        log_probs = log_probs.masked_fill(labels[:, 1:] == IGNORE, 0)  # (batch, seq - 1)
        torch.testing.assert_close(scores.log_probs, log_probs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("stage", STAGES)
def test_each_trainer_calls_the_chunked_head_in_training_and_evaluation(stage, new_trainer, monkeypatch):
    trainer = new_trainer(stage, max_steps=1, eval_strategy="steps", eval_steps=1)
    calls = []
    for name in ("linear_cross_entropy", "token_log_probs"):
        function = getattr(trainer_module, name)
        monkeypatch.setattr(
            trainer_module,
            name,
            lambda *args, function=function: calls.append(trainer.model.training) or function(*args),
        )
    monkeypatch.setattr(GPT2LMHeadModel, "forward", None)  # the stock forward must not run: it computes all logits
    trainer.train()
    assert True in calls and False in calls


@pytest.mark.parametrize("items, share", [(None, 1), (torch.tensor(50), 4)], ids=["mean of a batch", "counted labels"])
def test_compute_loss_adds_the_retention_once_per_step_however_the_trainer_divides(
    items, share, random_gpt2, tokenizer
):
    class Plain:
        args = SimpleNamespace(gradient_accumulation_steps=4)
        state = SimpleNamespace(global_step=2 * RETENTION_STEPS)
        model = random_gpt2(128)

        def compute_loss(self, model, inputs, return_outputs, num_items_in_batch):
            return torch.tensor(2.0)

    class Trainer(OurTrainer, Plain):
        pass

    retention = Retention(random_gpt2(128), random_blocks(len(tokenizer)), weight=0.5)
    model = Plain.model
    with torch.no_grad():
        model.transformer.ln_f.bias += 0.5
    assert Trainer().compute_loss(model.train(), {}, num_items_in_batch=items) == 2
    trainer = Trainer(retention=retention)
    torch.manual_seed(0)
    joined = trainer.compute_loss(model.train(), {}, num_items_in_batch=items)
    torch.manual_seed(0)
    expected = retention.loss(model).item()
    assert expected > 0.01
    assert joined.item() == pytest.approx(2 + RETENTION_STEPS * expected / share, rel=1e-5)
    Plain.state.global_step += 1
    assert trainer.compute_loss(model.train(), {}, num_items_in_batch=items) == 2, "the other steps have no KL term"
    assert trainer.compute_loss(model.eval(), {}, num_items_in_batch=items) == 2
