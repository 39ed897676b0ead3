import copy

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel
from trl.trainer.utils import add_fused_lm_head

from med_model.data.prompt import IGNORE
from med_model.model.head import (
    CHUNK_TOKENS,
    SOFTMAX_ROWS,
    label_log_probs,
    linear_cross_entropy,
    token_log_probs,
    use_chunked_head,
)

TOKENS, WIDTH, VOCABULARY = 23, 16, 50


@pytest.fixture(autouse=True)
def chunks_smaller_than_the_data(monkeypatch):
    monkeypatch.setitem(CHUNK_TOKENS, "cpu", 7)  # 23 rows: three whole chunks and a rest
    monkeypatch.setitem(SOFTMAX_ROWS, "cpu", 3)


@pytest.fixture
def head():
    """(hidden, weight, labels), the first two with gradients."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(TOKENS, WIDTH), torch.randn(VOCABULARY, WIDTH)
    return hidden.requires_grad_(), weight.requires_grad_(), torch.randint(VOCABULARY, (TOKENS,))


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=32, n_embd=32, n_layer=2, n_head=2, initializer_range=0.2)
    return GPT2LMHeadModel(config).eval()


@pytest.fixture
def batch():
    """A padded batch in which some positions have no loss."""
    torch.manual_seed(1)
    input_ids = torch.randint(VOCABULARY, (3, 12))
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, 8:] = 0
    labels = input_ids.masked_fill(attention_mask == 0, IGNORE)
    labels[0, :5] = IGNORE
    labels[2, 3] = IGNORE
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def gradients(value, *tensors):
    return torch.autograd.grad(value, tensors)


def assert_same_gradients(model, other):
    for (name, parameter), expected in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(
            parameter.grad, expected.grad, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("divisor", [None, 40, torch.tensor(40)])
def test_cross_entropy_and_its_gradients_are_torchs(head, divisor):
    hidden, weight, labels = head
    expected = cross_entropy(hidden @ weight.T, labels, reduction="sum") / (TOKENS if divisor is None else 40)
    loss = linear_cross_entropy(hidden, weight, labels, divisor)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)
    # Times 3, so that the gradient from above counts.
    for gradient, wanted in zip(
        gradients(3 * loss, hidden, weight), gradients(3 * expected, hidden, weight), strict=True
    ):
        torch.testing.assert_close(gradient, wanted, atol=1e-5, rtol=0)


def test_cross_entropy_without_gradients_has_the_same_value(head):
    loss = linear_cross_entropy(*head)
    with torch.no_grad():
        torch.testing.assert_close(linear_cross_entropy(*head), loss.detach(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kept_bytes", [0, 2**20])
def test_token_log_probs_and_their_gradients_are_torchs(head, monkeypatch, kept_bytes):
    monkeypatch.setattr("med_model.model.head.KEPT_PROBABILITY_BYTES", kept_bytes)
    hidden, weight, labels = head
    labels[:5] = (hidden @ weight.T).argmax(1)[:5]
    all_log_probs = torch.log_softmax(hidden @ weight.T, dim=1)
    expected = all_log_probs[torch.arange(TOKENS), labels]
    log_probs, entropy, is_top = token_log_probs(hidden, weight, labels)
    torch.testing.assert_close(log_probs, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(label_log_probs(hidden, weight, labels), expected.detach(), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        entropy, torch.distributions.Categorical(logits=all_log_probs).entropy(), atol=1e-5, rtol=0
    )
    assert is_top.tolist() == (all_log_probs.argmax(1) == labels).tolist()
    upstream = torch.randn(TOKENS)
    actual = gradients((log_probs * upstream).sum(), hidden, weight)
    for gradient, wanted in zip(actual, gradients((expected * upstream).sum(), hidden, weight), strict=True):
        torch.testing.assert_close(gradient, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("num_items_in_batch", [None, torch.tensor(50)])
def test_a_model_with_the_chunked_head_has_the_stock_loss_and_gradients(model, batch, num_items_in_batch):
    stock = copy.deepcopy(model)
    use_chunked_head(model)
    options = {} if num_items_in_batch is None else {"num_items_in_batch": num_items_in_batch}
    expected, loss = stock(**batch, **options).loss, model(**batch, **options).loss
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)
    expected.backward()
    loss.backward()
    assert_same_gradients(model, stock)


def test_a_batch_without_any_label_gives_a_loss_of_zero_and_no_nan(model, batch):
    use_chunked_head(model)
    loss = model(**batch | {"labels": torch.full_like(batch["labels"], IGNORE)}).loss
    loss.backward()
    assert loss.item() == 0
    assert all(torch.all(parameter.grad == 0) for parameter in model.parameters())


def test_the_chunked_head_changes_neither_the_logits_nor_what_is_saved(model, batch, tmp_path):
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


def test_the_token_scores_and_their_gradients_are_those_of_trls_own_head(model, batch):
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
def test_in_bfloat16_loss_and_gradients_are_near_those_in_float32(model, batch, fused_lm_head):
    reference = copy.deepcopy(model)
    for of_model, bf16 in ((reference, False), (model, True)):
        use_chunked_head(of_model)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            output = of_model(**batch, fused_lm_head=fused_lm_head)
        of_model.value = -output.log_probs.sum() / 20 if fused_lm_head else output.loss
        of_model.value.backward()
    assert model.value.dtype == torch.float32
    assert model.value.item() == pytest.approx(reference.value.item(), rel=0.02)
    for (name, parameter), expected in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert parameter.grad.dtype == torch.float32
        assert (parameter.grad - expected.grad).norm() < 0.05 * expected.grad.norm(), name


def test_rows_padded_anywhere_but_on_the_right_are_refused(model, batch):
    use_chunked_head(model)
    for places in ([0], [4]):
        attention_mask = torch.ones_like(batch["input_ids"])
        attention_mask[0, places] = 0
        with pytest.raises(AssertionError, match="padded on the right"):
            model(**batch | {"attention_mask": attention_mask})
