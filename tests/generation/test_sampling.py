import copy

import pytest
import torch
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from med_model.data.prompt import END_OF_TEXT, IM_END, encode_text
from med_model.errors import UserError
from med_model.generation.sampling import generate_answers, generate_ids, prompt_room, stream_text

POSITIONS = 128
# The tiny tokenizer splits each rare character and the emoji of this text into several tokens.
RARE_TEXT = "生僻字：龘䶮𠮷，表情😷；请立即就医。"


@pytest.fixture(scope="module")
def model(random_gpt2):
    """Return an untrained GPT-2. The weights are so large that the next token depends on all earlier tokens."""
    return random_gpt2(POSITIONS)


@pytest.fixture
def recite(tokenizer):
    """Return a function that makes a GPT-2 from a list `ids`. After position p, this model generates ids[p].

    All weights of the token embeddings and of the layers are 0, and the position embeddings are one-hot. So only the
    position decides the next token.
    """

    def make(ids: list[int]) -> GPT2LMHeadModel:
        config = GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=POSITIONS,
            n_embd=POSITIONS,
            n_layer=1,
            n_head=1,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            tie_word_embeddings=False,
        )
        model = GPT2LMHeadModel(config).eval()
        with torch.no_grad():
            for weights in (model.transformer.wte, model.transformer.h, model.lm_head):
                for parameter in weights.parameters():
                    parameter.zero_()
            model.transformer.wpe.weight.copy_(torch.eye(POSITIONS))
            model.lm_head.weight[ids, range(len(ids))] = 1.0
        return model

    return make


def settings_for(tokenizer, stops=(END_OF_TEXT,), **options):
    return GenerationConfig(
        **{"max_new_tokens": 30} | options,
        eos_token_id=tokenizer.convert_tokens_to_ids(list(stops)),
        pad_token_id=tokenizer.pad_token_id,
    )


def generate_rows(model, prompts, settings, generator=None):
    """Return one row of generated ids per prompt. If a row stops early, pad tokens fill the rest of the row."""
    return torch.stack(list(generate_ids(model, prompts, settings, generator)), dim=1).tolist()


def generate_with_transformers(model, prompt, settings):
    """Return the ids that `model.generate` appends to one prompt."""
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        output = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=copy.deepcopy(settings))
    return output[0, len(prompt) :].tolist()


@pytest.mark.parametrize("repetition_penalty", [1.0, 1.3])
def test_generate_ids_equals_transformers_in_greedy_decoding(model, tokenizer, repetition_penalty):
    settings = settings_for(tokenizer, repetition_penalty=repetition_penalty)
    for text in ("高血压", "糖尿病怎么办？", "a"):
        prompt = encode_text(tokenizer, text)
        ids = generate_rows(model, [prompt], settings)[0]
        assert ids == generate_with_transformers(model, prompt, settings)
        assert len(set(ids)) > 5, "a model that repeats one token would hide a mistake"


def test_repetition_penalty_changes_the_generated_ids(model, tokenizer):
    prompt = encode_text(tokenizer, "高血压")
    plain, penalized = (
        generate_rows(model, [prompt], settings_for(tokenizer, repetition_penalty=penalty))[0]
        for penalty in (1.0, 1.3)
    )
    assert plain != penalized


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7},
        {"top_k": 1},
        {"top_k": 5},
        {"top_k": 0},
        {"top_k": 10_000},
        {"top_p": 0.01},
        {"top_p": 0.6},
        {"top_p": 1.0},
        {"top_k": 0, "top_p": 1.0},
        {"repetition_penalty": 1.3},
        {"repetition_penalty": 0.8},
        {},
    ],
    ids=str,
)
def test_generate_ids_samples_as_transformers_does_at_the_same_seed(model, tokenizer, options):
    all_options = {"temperature": 1.5, "top_k": 40, "top_p": 0.95, "repetition_penalty": 1.1}
    settings = settings_for(tokenizer, do_sample=True, **all_options | options)
    prompt = encode_text(tokenizer, "高血压")
    torch.manual_seed(5)
    ids = generate_rows(model, [prompt], settings)[0]
    torch.manual_seed(5)
    assert ids == generate_with_transformers(model, prompt, settings)


@pytest.mark.parametrize("repetition_penalty", [1.0, 1.3])
def test_a_batch_of_different_lengths_gives_the_ids_of_each_prompt_alone(model, tokenizer, repetition_penalty):
    prompts = [
        encode_text(tokenizer, text) for text in ("高", "糖尿病怎么办？多吃蔬菜，每天快走30分钟。", "冠心病患者")
    ]
    assert len(set(map(len, prompts))) == 3
    settings = settings_for(tokenizer, repetition_penalty=repetition_penalty)
    assert generate_rows(model, prompts, settings) == [generate_rows(model, [p], settings)[0] for p in prompts]


def test_a_stopped_row_continues_as_pad_and_does_not_change_the_others(model, tokenizer):
    prompts = [encode_text(tokenizer, text) for text in ("高血压", "糖尿病怎么办？", "肺炎患者要少盐少油")]
    settings = settings_for(tokenizer)
    alone = [generate_rows(model, [prompt], settings)[0] for prompt in prompts]
    stop = next(token for token in alone[0] if token not in alone[1])
    settings.eos_token_id = [stop]
    length = alone[0].index(stop) + 1
    rows = generate_rows(model, prompts[:2], settings)
    assert rows[0] == alone[0][:length] + [tokenizer.pad_token_id] * (30 - length)
    assert rows[1] == alone[1]


@pytest.mark.parametrize("repetition_penalty", [1.0, 1.3])
def test_rows_that_stop_at_different_steps_have_the_ids_of_each_prompt_alone(model, tokenizer, repetition_penalty):
    prompts = [encode_text(tokenizer, text) for text in "高血压，糖尿病怎么办？多吃蔬菜少盐"]
    prompts = [prompt + prompts[0] * (i % 3) for i, prompt in enumerate(prompts)]
    settings = settings_for(tokenizer, repetition_penalty=repetition_penalty)
    # Every 20th id is a stop token, so the rows stop at different steps.
    settings.eos_token_id = list(range(0, len(tokenizer), 20))
    alone = [generate_rows(model, [prompt], settings)[0] for prompt in prompts]
    assert len(set(map(len, alone))) > 5
    length = max(map(len, alone))
    padded = [row + [tokenizer.pad_token_id] * (length - len(row)) for row in alone]
    assert generate_rows(model, prompts, settings) == padded


def test_generate_ids_ends_when_every_row_has_stopped(model, tokenizer):
    prompts = [encode_text(tokenizer, text) for text in ("高血压", "糖尿病怎么办？")]
    settings = settings_for(tokenizer)
    alone = [generate_rows(model, [prompt], settings)[0] for prompt in prompts]
    settings.eos_token_id = [alone[0][3], alone[1][5]]
    lengths = [next(i for i, token in enumerate(row) if token in settings.eos_token_id) + 1 for row in alone]
    assert len(generate_rows(model, prompts, settings)[0]) == max(lengths) < 30


def test_generate_ids_ends_at_the_last_position_of_the_model(model, tokenizer):
    settings = settings_for(tokenizer, max_new_tokens=1000)
    prompt = encode_text(tokenizer, "高血压患者要少盐少油，" * 100)
    assert len(prompt) > POSITIONS
    settings.eos_token_id = [len(tokenizer)]  # no such token exists, so no row stops
    for room in (28, 1):
        assert len(generate_rows(model, [prompt[: POSITIONS - room]], settings)[0]) == room
    assert list(generate_ids(model, [prompt[:POSITIONS]], settings)) == []


def test_answers_keep_the_order_of_their_prompts_at_every_batch_size(model, tokenizer):
    texts = ("糖尿病怎么办？多吃蔬菜", "高", "冠心病患者要少盐少油", "肺炎", "湿疹，每天")
    prompts = [encode_text(tokenizer, text) for text in texts]
    settings = settings_for(tokenizer)
    expected = [
        (
            tokenizer.decode(generate_rows(model, [p], settings)[0], skip_special_tokens=True).replace("\ufffd", ""),
            False,
        )
        for p in prompts
    ]
    for batch_size in (1, 2, 32):
        assert generate_answers(model, tokenizer, prompts, settings, batch_size=batch_size) == expected


def test_an_answer_ends_before_its_stop_and_reports_the_stop(recite, tokenizer):
    stop = tokenizer.convert_tokens_to_ids(IM_END)
    answer = encode_text(tokenizer, "请立即拨打120。")
    prompt = encode_text(tokenizer, "胸痛")
    model = recite([0] * (len(prompt) - 1) + answer + [stop] + encode_text(tokenizer, "再见"))
    settings = settings_for(tokenizer, stops=(IM_END, END_OF_TEXT))
    assert generate_answers(model, tokenizer, [prompt], settings) == [("请立即拨打120。", True)]
    settings.max_new_tokens = len(answer)
    assert generate_answers(model, tokenizer, [prompt], settings) == [("请立即拨打120。", False)]
    assert "".join(stream_text(model, tokenizer, prompt, settings)) == "请立即拨打120。"


def test_stream_text_yields_the_whole_text_in_whole_characters(recite, tokenizer):
    answer = encode_text(tokenizer, RARE_TEXT)
    assert sum("\ufffd" in tokenizer.decode([token]) for token in answer) > 10
    model = recite([*answer, tokenizer.convert_tokens_to_ids(END_OF_TEXT)])
    settings = settings_for(tokenizer, max_new_tokens=90)
    pieces = list(stream_text(model, tokenizer, encode_text(tokenizer, "a"), settings))
    assert "".join(pieces) == RARE_TEXT
    assert not any("\ufffd" in piece for piece in pieces)
    assert len(pieces) > 10, "streamed as it is generated, not at the end"


def test_stream_text_leaves_out_an_incomplete_last_character(recite, tokenizer):
    answer = encode_text(tokenizer, "好😷")
    assert tokenizer.decode(answer[:-1]).endswith("\ufffd")
    model = recite(answer)
    settings = settings_for(tokenizer, max_new_tokens=len(answer) - 1)
    assert "".join(stream_text(model, tokenizer, encode_text(tokenizer, "a"), settings)) == "好"


def test_invalid_bytes_are_left_out_of_the_text(recite, tokenizer):
    invalid, valid = encode_text(tokenizer, "😷")[:1], encode_text(tokenizer, "好")
    assert "\ufffd" in tokenizer.decode(invalid + valid)
    model = recite([*invalid, *valid, tokenizer.convert_tokens_to_ids(END_OF_TEXT)])
    settings, prompt = settings_for(tokenizer, max_new_tokens=20), encode_text(tokenizer, "a")
    assert "".join(stream_text(model, tokenizer, prompt, settings)) == "好"
    assert generate_answers(model, tokenizer, [prompt], settings) == [("好", True)]


def test_the_same_seed_gives_the_same_ids_and_another_seed_does_not(model, tokenizer):
    settings = settings_for(tokenizer, do_sample=True, temperature=1.0)
    prompt = encode_text(tokenizer, "高血压")
    first, second, other = (
        generate_rows(model, [prompt], settings, torch.Generator().manual_seed(s)) for s in (7, 7, 8)
    )
    assert first == second != other


def test_generate_ids_uses_the_weights_after_more_training(random_gpt2, tokenizer):
    model, settings, prompt = random_gpt2(POSITIONS), settings_for(tokenizer), encode_text(tokenizer, "高血压")
    before = generate_rows(model, [prompt], settings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    after = generate_rows(model, [prompt], settings)
    assert before[0] != after[0] == generate_with_transformers(model, prompt, settings)


def test_a_llama_model_is_refused_with_its_model_type(tokenizer):
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        bos_token_id=0,
        eos_token_id=0,
    )
    llama, settings = LlamaForCausalLM(config), settings_for(tokenizer)
    with pytest.raises(UserError, match="llama"):
        next(generate_ids(llama, [[1, 2]], settings))
    with pytest.raises(UserError, match="llama"):
        prompt_room(llama, settings)
