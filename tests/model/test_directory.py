import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from med_model import paths
from med_model.data.prompt import END_OF_TEXT, IM_END
from med_model.errors import UserError
from med_model.model.device import multiplies_bf16
from med_model.model.directory import load_model, load_tokenizer, publish

LOG_HISTORY = [
    {"step": 1, "loss": 5.0},
    {"step": 2, "eval_loss": 4.5},
    {"step": 2, "loss": 4.0},
    {"step": 2, "train_runtime": 1.0},
]
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}


@pytest.fixture
def model(model_directory):
    return GPT2LMHeadModel.from_pretrained(model_directory).eval()


@pytest.fixture
def publish_to(model, tokenizer):
    def to(directory, metrics=None):
        metrics = {"heldout_loss": 4.5} if metrics is None else metrics
        options = {
            "title": "A small model",
            "stops": [IM_END, END_OF_TEXT],
            "metrics": metrics,
            "log_history": LOG_HISTORY,
        }
        publish(model, tokenizer, directory, **options)

    return to


def contents(directory):
    return {str(file.relative_to(directory)): file.read_bytes() for file in directory.rglob("*") if file.is_file()}


def test_a_published_directory_holds_model_tokenizer_card_metrics_and_curve_and_no_pickle(publish_to, tmp_path):
    publish_to(tmp_path / "model")
    files = contents(tmp_path / "model")
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= set(files)
    assert {"generation_config.json", "metrics.json", "README.md", "loss_curve.png"} <= set(files)
    assert not [name for name in files if any(name.endswith(ending) for ending in PICKLES)]
    assert files["loss_curve.png"].startswith(b"\x89PNG\r\n")
    assert [path.name for path in tmp_path.iterdir()] == ["model"], "nothing is left beside it"


def test_the_generation_settings_of_a_published_model_have_its_stops_and_sampling(publish_to, tokenizer, tmp_path):
    publish_to(tmp_path / "model")
    settings = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    assert settings["eos_token_id"] == tokenizer.convert_tokens_to_ids([IM_END, END_OF_TEXT])
    assert settings["pad_token_id"] == tokenizer.pad_token_id
    assert settings["pad_token_id"] not in settings["eos_token_id"]
    assert settings["do_sample"] is True
    assert 0 < settings["temperature"] < 1
    assert 0 < settings["top_p"] < 1
    assert settings["top_k"] > 0
    assert 1 < settings["repetition_penalty"] < 1.5
    assert settings["max_new_tokens"] > 0


def test_metrics_and_card_say_what_was_measured_and_with_which_libraries(publish_to, model, tmp_path):
    publish_to(tmp_path / "model", {"heldout_loss": 4.25, "settings": {"seed": 42}})
    metrics = json.loads((tmp_path / "model" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["heldout_loss"] == 4.25
    assert metrics["settings"] == {"seed": 42}
    assert metrics["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert metrics["versions"]["torch"] == torch.__version__
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\n"), "the metadata that model hubs read stands first"
    for words in ("# A small model", "heldout_loss | 4.25", "不是医生", "not a doctor"):
        assert words in card


def test_a_published_model_loads_with_no_code_of_ours_and_computes_the_same(publish_to, model, tokenizer, tmp_path):
    publish_to(tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    loaded_tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    text = "高血压患者服用aspirin片，怎么办？😷"
    ids = loaded_tokenizer(text, return_tensors="pt")["input_ids"]
    assert ids.tolist() == tokenizer(text, return_tensors="pt")["input_ids"].tolist()
    assert loaded_tokenizer.decode(ids[0]) == text
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert loaded_tokenizer.chat_template == tokenizer.chat_template


def test_a_new_publication_replaces_the_old_one_with_nothing_of_it_left(publish_to, tmp_path):
    publish_to(tmp_path / "model", {"heldout_loss": 9.0})
    (tmp_path / "model" / "leftover.txt").write_text("old")
    publish_to(tmp_path / "model", {"heldout_loss": 1.0})
    assert json.loads((tmp_path / "model" / "metrics.json").read_text())["heldout_loss"] == 1.0
    assert not (tmp_path / "model" / "leftover.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_interrupted_publication_leaves_the_old_directory_whole(publish_to, tmp_path):
    publish_to(tmp_path / "model")
    before = contents(tmp_path / "model")
    with pytest.raises(TypeError, match="not JSON serializable"):
        publish_to(tmp_path / "model", {"a measure that cannot be written": object()})
    assert contents(tmp_path / "model") == before
    publish_to(tmp_path / "model", {"heldout_loss": 1.0})
    assert json.loads((tmp_path / "model" / "metrics.json").read_text())["heldout_loss"] == 1.0


def test_an_interrupted_first_publication_leaves_nothing_under_its_name(publish_to, tmp_path):
    with pytest.raises(TypeError, match="not JSON serializable"):
        publish_to(tmp_path / "model", {"a measure that cannot be written": object()})
    assert not (tmp_path / "model").exists()


def test_a_published_model_and_its_tokenizer_load_ready_for_use(publish_to, model, tmp_path):
    publish_to(tmp_path / "model")
    loaded, tokenizer = load_model(tmp_path / "model")
    assert not loaded.training
    assert loaded.dtype == torch.float32
    assert len(tokenizer) == loaded.config.vocab_size
    assert torch.equal(loaded.transformer.wte.weight, model.transformer.wte.weight)


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
@pytest.mark.parametrize("directory", list(paths.MADE_BY), ids=lambda path: path.name)
def test_the_error_for_a_missing_directory_names_it_and_the_command_that_makes_it(
    load, directory, tmp_path, monkeypatch
):
    missing = tmp_path / directory.name
    monkeypatch.setattr(paths, "MADE_BY", {missing: paths.MADE_BY[directory]})
    with pytest.raises(UserError) as error:
        load(missing)
    command = str(error.value).partition("run ")[2].removesuffix(" first")
    assert f"{missing}/" in str(error.value)
    assert command.startswith("python ")
    assert (paths.ROOT / command.removeprefix("python ")).is_file(), "the command can be run"


def test_a_model_without_a_tokenizer_is_an_error_that_names_the_directory(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match=f"no model or tokenizer in {tmp_path / 'model'}/"):
        load_model(tmp_path / "model")


def test_a_tokenizer_that_lacks_the_chat_template_is_an_error_with_the_next_command(tokenizer_directory, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_directory)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "plain")
    with pytest.raises(UserError, match=r"(?s)plain/ lacks .*python pre_training/py/train_tokenizer.py"):
        load_tokenizer(tmp_path / "plain")


def test_a_model_whose_vocabulary_is_not_the_tokenizers_is_an_error(tokenizer, tmp_path):
    config = GPT2Config(vocab_size=len(tokenizer) + 1, n_positions=16, n_embd=8, n_layer=1, n_head=1)
    for part in (GPT2LMHeadModel(config), tokenizer):
        part.save_pretrained(tmp_path / "model")
    with pytest.raises(
        UserError, match=f"model/: the tokenizer has {len(tokenizer)} tokens, the model {len(tokenizer) + 1}"
    ):
        load_model(tmp_path / "model")


@pytest.mark.parametrize(
    "units, multiplies",
    [({"amx_bf16": True}, True), ({"avx512_bf16": True}, True), ({"avx512_f": True, "amx_int8": True}, False)],
    ids=["AMX", "AVX512_BF16", "neither"],
)
def test_a_cpu_computes_in_bfloat16_where_it_has_units_for_it(units, multiplies, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units)
    assert multiplies_bf16.__wrapped__("cpu") is multiplies
