import pytest
import torch
from torch.nn.functional import cross_entropy

from med_model.model.head import (
    CHUNK_TOKENS,
    SOFTMAX_ROWS,
    label_log_probs,
    linear_cross_entropy,
    linear_kl,
    token_log_probs,
)

TOKENS, WIDTH, VOCABULARY = 23, 16, 50


@pytest.fixture(autouse=True)
def chunks_smaller_than_the_data(monkeypatch):
    monkeypatch.setitem(CHUNK_TOKENS, "cpu", 7)  # 23 tokens make three full chunks and one chunk of 2 tokens
    monkeypatch.setitem(SOFTMAX_ROWS, "cpu", 3)


@pytest.fixture
def head():
    """Return random tensors: `hidden` (tokens, width), `weight` (vocab, width) and `labels` (tokens,).

    `hidden` and `weight` require gradients.
    """
    torch.manual_seed(0)
    hidden, weight = torch.randn(TOKENS, WIDTH), torch.randn(VOCABULARY, WIDTH)
    return hidden.requires_grad_(), weight.requires_grad_(), torch.randint(VOCABULARY, (TOKENS,))


def gradients(value, *tensors):
    return torch.autograd.grad(value, tensors)


@pytest.mark.parametrize("divisor", [None, 40, torch.tensor(40)])
def test_linear_cross_entropy_and_its_gradients_equal_those_of_torch(head, divisor):
    hidden, weight, labels = head
    expected = cross_entropy(hidden @ weight.T, labels, reduction="sum") / (TOKENS if divisor is None else 40)
    loss = linear_cross_entropy(hidden, weight, labels, divisor)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)
    # With the factor 3, the backward pass receives the gradient 3, not 1. If it ignores this gradient, the test fails.
    for gradient, wanted in zip(
        gradients(3 * loss, hidden, weight), gradients(3 * expected, hidden, weight), strict=True
    ):
        torch.testing.assert_close(gradient, wanted, atol=1e-5, rtol=0)


def test_linear_cross_entropy_is_the_same_without_gradients(head):
    loss = linear_cross_entropy(*head)
    with torch.no_grad():
        torch.testing.assert_close(linear_cross_entropy(*head), loss.detach(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kept_bytes", [0, 2**20])
def test_token_log_probs_and_their_gradients_equal_those_of_torch(head, monkeypatch, kept_bytes):
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


def test_linear_kl_and_its_gradient_equal_a_direct_computation():
    generator = torch.Generator().manual_seed(0)
    hidden, weight, teacher_hidden, teacher_weight = (
        torch.randn(*shape, generator=generator) for shape in ((600, 16), (50, 16)) * 2
    )
    hidden.requires_grad_()
    weight.requires_grad_()
    divergence = linear_kl(hidden, weight, teacher_hidden, teacher_weight)
    gradients = torch.autograd.grad(3 * divergence, (hidden, weight))
    direct = torch.nn.functional.kl_div(
        (hidden @ weight.T).log_softmax(-1),
        (teacher_hidden @ teacher_weight.T).log_softmax(-1),
        reduction="batchmean",
        log_target=True,
    )
    expected = torch.autograd.grad(3 * direct, (hidden, weight))
    assert divergence.item() == pytest.approx(direct.item(), rel=1e-5)
    for gradient, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-6)
