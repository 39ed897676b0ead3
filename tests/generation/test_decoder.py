import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from med_model.generation import decoder as decoder_module
from med_model.generation.decoder import ROWS_FOR_OWN_HEAD, Decoder

VOCABULARY, CAPACITY = 97, 40
LENGTHS = (3, 11, 1, 7, 11, 5)  # more rows than ROWS_FOR_OWN_HEAD


def make_model(**options) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = {"n_positions": 64, "n_embd": 32, "n_layer": 3, "n_head": 4, "initializer_range": 0.3} | options
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=0, **config))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "ln_" in name or "bias" in name:  # biases of 0 and norms of 1 would hide that they are left out
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def make_prompts(lengths=LENGTHS) -> list[list[int]]:
    torch.manual_seed(1)
    return [torch.randint(VOCABULARY, (length,)).tolist() for length in lengths]


def expected_logits(model, prompts):
    """What the transformers model gives for what follows on each prompt, alone and without a cache."""
    with torch.inference_mode():
        return torch.cat([model(torch.tensor([prompt])).logits[:, -1] for prompt in prompts])


def follow(decoder, model, prompts, steps):
    """Decodes random tokens and holds each step to the transformers model; gives the prompts with those tokens."""
    for step in range(steps):
        ids = torch.randint(VOCABULARY, (len(prompts),), generator=torch.Generator().manual_seed(step))
        prompts = [prompt + [token] for prompt, token in zip(prompts, ids.tolist(), strict=True)]
        torch.testing.assert_close(decoder.step(ids), expected_logits(model, prompts), rtol=0, atol=1e-4)
    return prompts


@torch.inference_mode()
@pytest.mark.parametrize("lengths", [(6,), (1,), (5, 5, 5), (9, 2), LENGTHS], ids=str)
def test_logits_are_those_of_transformers_after_a_prompt_and_after_each_step(lengths):
    model, prompts = make_model(), make_prompts(lengths)
    decoder = Decoder(model, len(prompts), CAPACITY)
    torch.testing.assert_close(decoder.prefill(prompts), expected_logits(model, prompts), rtol=0, atol=1e-4)
    follow(decoder, model, prompts, steps=12)


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
def test_it_follows_the_configuration(options):
    model, prompts = make_model(**options), make_prompts()
    decoder = Decoder(model, len(prompts), CAPACITY)
    torch.testing.assert_close(decoder.prefill(prompts), expected_logits(model, prompts), rtol=0, atol=1e-4)
    follow(decoder, model, prompts, steps=3)


@torch.inference_mode()
def test_prompts_read_in_pieces_give_what_they_give_at_once(monkeypatch):
    model, prompts = make_model(), make_prompts()
    for tokens in (1, 2 * max(LENGTHS)):  # one row a piece, two rows a piece
        monkeypatch.setattr(decoder_module, "PREFILL_TOKENS", tokens)
        decoder = Decoder(model, len(prompts), CAPACITY)
        torch.testing.assert_close(decoder.prefill(prompts), expected_logits(model, prompts), rtol=0, atol=1e-4)
        follow(decoder, model, prompts, steps=3)


@torch.inference_mode()
def test_what_was_in_its_memory_before_is_never_seen(monkeypatch):
    monkeypatch.setattr(decoder_module, "PREFILL_TOKENS", 1)
    model, prompts = make_model(), make_prompts()
    decoder = Decoder(model, len(prompts), CAPACITY)
    for cache in decoder.caches:
        cache.fill_(torch.nan)
    assert decoder.prefill(prompts).isfinite().all()
    follow(decoder, model, prompts, steps=3)


@torch.inference_mode()
def test_rows_that_are_kept_go_on_as_if_the_others_had_never_been():
    assert len(LENGTHS) > ROWS_FOR_OWN_HEAD
    model, prompts = make_model(), make_prompts()
    decoder = Decoder(model, len(prompts), CAPACITY)
    decoder.prefill(prompts)
    for kept in ([0, 2, 3, 4, 5], [1, 3, 4], [0, 1], [1]):
        prompts = follow(decoder, model, prompts, steps=2)
        order = decoder.keep(kept)
        assert sorted(order) == kept
        prompts = [prompts[row] for row in order]
    follow(decoder, model, prompts, steps=2)


@torch.inference_mode()
@pytest.mark.parametrize("batch", [1, ROWS_FOR_OWN_HEAD])
def test_a_decoder_made_after_further_training_knows_of_it(batch):
    model, prompts = make_model(), make_prompts([4] * batch)
    before = Decoder(model, batch, CAPACITY).prefill(prompts)
    for parameter in model.parameters():
        parameter.mul_(1.1)
    after = Decoder(model, batch, CAPACITY).prefill(prompts)
    assert (after - before).abs().max() > 0.1
    torch.testing.assert_close(after, expected_logits(model, prompts), rtol=0, atol=1e-4)
