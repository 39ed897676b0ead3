import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from med_model.generation import decoder as decoder_module
from med_model.generation.decoder import ROWS_FOR_OWN_HEAD, Decoder

VOCABULARY, CAPACITY = 97, 40
# Tokens per prompt. For so many prompts, the decoder copies the output matrix (see ROWS_FOR_OWN_HEAD).
LENGTHS = (3, 11, 1, 7, 11, 5)


def make_model(**options) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = {"n_positions": 64, "n_embd": 32, "n_layer": 3, "n_head": 4, "initializer_range": 0.3} | options
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=0, **config))
    # Change the norm weights, which are 1 in a new model, and the biases, which are 0. With the old values, a decoder
    # that ignores these parameters would pass the tests.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "ln_" in name or "bias" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def make_prompts(lengths=LENGTHS) -> list[list[int]]:
    torch.manual_seed(1)
    return [torch.randint(VOCABULARY, (length,)).tolist() for length in lengths]


def expected_logits(model, prompts):
    """Return the logits after each prompt: (prompts, vocab).

    The transformers model computes each prompt alone, from its first token on.
    """
    with torch.inference_mode():
        return torch.cat([model(torch.tensor([prompt])).logits[:, -1] for prompt in prompts])


def compare_steps(decoder, model, prompts, steps):
    """Append `steps` random tokens to each prompt. Return the longer prompts.

    After each token, the decoder must give the same logits as the transformers model.
    """
    for step in range(steps):
        ids = torch.randint(VOCABULARY, (len(prompts),), generator=torch.Generator().manual_seed(step))
        prompts = [prompt + [token] for prompt, token in zip(prompts, ids.tolist(), strict=True)]
        torch.testing.assert_close(decoder.step(ids), expected_logits(model, prompts), rtol=0, atol=1e-4)
    return prompts


@torch.inference_mode()
@pytest.mark.parametrize("lengths", [(6,), (1,), (5, 5, 5), (9, 2), LENGTHS], ids=str)
def test_decoder_gives_the_logits_of_transformers_after_a_prompt_and_after_each_step(lengths):
    model, prompts = make_model(), make_prompts(lengths)
    decoder = Decoder(model, len(prompts), CAPACITY)
    torch.testing.assert_close(decoder.prefill(prompts), expected_logits(model, prompts), rtol=0, atol=1e-4)
    compare_steps(decoder, model, prompts, steps=12)


@torch.inference_mode()
@pytest.mark.parametrize(
    "options",
    [
        {"activation_function": "gelu"},
        {"activation_function": "gelu_pytorch_tanh"},
        {"activation_function": "relu"},
        {"activation_function": "silu"},
        {"scale_attn_by_inverse_layer_idx": True},
        {"scale_attn_weights": False},
        {"tie_word_embeddings": False},
        {"n_inner": 48},
        {"layer_norm_epsilon": 0.1},
        {"attn_implementation": "eager"},
    ],
    ids=str,
)
def test_decoder_follows_the_configuration(options):
    model, prompts = make_model(**options), make_prompts()
    decoder = Decoder(model, len(prompts), CAPACITY)
    torch.testing.assert_close(decoder.prefill(prompts), expected_logits(model, prompts), rtol=0, atol=1e-4)
    compare_steps(decoder, model, prompts, steps=3)


@torch.inference_mode()
def test_prefill_in_parts_gives_the_same_logits(monkeypatch):
    model, prompts = make_model(), make_prompts()
    for tokens in (1, 2 * max(LENGTHS)):  # one prompt per part, then two prompts per part
        monkeypatch.setattr(decoder_module, "PREFILL_TOKENS", tokens)
        decoder = Decoder(model, len(prompts), CAPACITY)
        torch.testing.assert_close(decoder.prefill(prompts), expected_logits(model, prompts), rtol=0, atol=1e-4)
        compare_steps(decoder, model, prompts, steps=3)


@torch.inference_mode()
def test_prefill_ignores_the_old_content_of_its_cache(monkeypatch):
    monkeypatch.setattr(decoder_module, "PREFILL_TOKENS", 1)
    model, prompts = make_model(), make_prompts()
    decoder = Decoder(model, len(prompts), CAPACITY)
    for cache in decoder.caches:
        cache.fill_(torch.nan)
    assert decoder.prefill(prompts).isfinite().all()
    compare_steps(decoder, model, prompts, steps=3)


@torch.inference_mode()
def test_kept_rows_continue_as_if_the_dropped_rows_had_never_existed():
    assert len(LENGTHS) > ROWS_FOR_OWN_HEAD
    model, prompts = make_model(), make_prompts()
    decoder = Decoder(model, len(prompts), CAPACITY)
    decoder.prefill(prompts)
    for kept in ([0, 2, 3, 4, 5], [1, 3, 4], [0, 1], [1]):
        prompts = compare_steps(decoder, model, prompts, steps=2)
        old_rows = decoder.keep(kept)
        assert sorted(old_rows) == kept
        prompts = [prompts[row] for row in old_rows]
    compare_steps(decoder, model, prompts, steps=2)


@torch.inference_mode()
@pytest.mark.parametrize("batch", [1, ROWS_FOR_OWN_HEAD])
def test_a_new_decoder_has_the_weights_after_more_training(batch):
    model, prompts = make_model(), make_prompts([4] * batch)
    before = Decoder(model, batch, CAPACITY).prefill(prompts)
    for parameter in model.parameters():
        parameter.mul_(1.1)
    after = Decoder(model, batch, CAPACITY).prefill(prompts)
    assert (after - before).abs().max() > 0.1
    torch.testing.assert_close(after, expected_logits(model, prompts), rtol=0, atol=1e-4)
