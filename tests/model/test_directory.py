import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from med_model import paths
from med_model.data.prompt import END_OF_TEXT, IM_END
from med_model.errors import UserError
from med_model.model.directory import check_replaceable, load_model, load_tokenizer, publish, sampling_defaults

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
    """Return a function that writes the model and the tokenizer into a directory with `publish`."""

    def publish_model(directory, metrics=None):
        metrics = {"heldout_loss": 4.5} if metrics is None else metrics
        options = {
            "title": "A small model",
            "chat": True,
            "metrics": metrics,
            "log_history": LOG_HISTORY,
        }
        publish(model, tokenizer, directory, **options)

    return publish_model


def contents(directory):
    """Return {relative path: bytes} of all files in a directory and its subfolders."""
    return {str(file.relative_to(directory)): file.read_bytes() for file in directory.rglob("*") if file.is_file()}


def test_publish_writes_model_tokenizer_card_metrics_history_and_curve_and_no_pickle(publish_to, tmp_path):
    publish_to(tmp_path / "model")
    files = contents(tmp_path / "model")
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= set(files)
    assert {"generation_config.json", "metrics.json", "history.json", "README.md", "loss_curve.png"} <= set(files)
    assert not [name for name in files if any(name.endswith(ending) for ending in PICKLES)]
    assert files["loss_curve.png"].startswith(b"\x89PNG\r\n")
    assert [path.name for path in tmp_path.iterdir()] == ["model"], "no partial directory is left beside it"


def test_generation_config_of_a_published_model_has_its_stops_and_sampling_settings(publish_to, tokenizer, tmp_path):
    publish_to(tmp_path / "model")
    settings = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    assert settings["eos_token_id"] == tokenizer.convert_tokens_to_ids([IM_END, END_OF_TEXT])
    assert settings["pad_token_id"] == tokenizer.pad_token_id
    assert settings["pad_token_id"] not in settings["eos_token_id"]
    assert settings["do_sample"] is True
    assert 0 < settings["temperature"] < 1
    assert 0 < settings["top_p"] < 1
    assert settings["top_k"] > 0
    assert settings["repetition_penalty"] == 1
    assert settings["max_new_tokens"] > 0


def test_only_a_base_model_gets_a_repetition_penalty(tokenizer):
    chat, base = sampling_defaults(tokenizer, chat=True), sampling_defaults(tokenizer, chat=False)
    assert chat.repetition_penalty == 1 < base.repetition_penalty
    assert chat.temperature < base.temperature


def test_config_of_a_published_model_has_the_cache_that_the_trainer_turns_off(publish_to, model, tmp_path):
    Trainer(model, TrainingArguments(str(tmp_path / "checkpoints"), use_cpu=True))
    assert model.config.use_cache is False
    publish_to(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["use_cache"] is True


def test_history_of_a_published_model_is_the_log_of_its_training(publish_to, tmp_path):
    publish_to(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "history.json").read_text(encoding="utf-8")) == LOG_HISTORY


def test_metrics_and_card_hold_the_figures_and_the_library_versions(publish_to, model, tmp_path):
    publish_to(tmp_path / "model", {"heldout_loss": 4.25, "settings": {"seed": 42}})
    metrics = json.loads((tmp_path / "model" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["heldout_loss"] == 4.25
    assert metrics["settings"] == {"seed": 42}
    assert metrics["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert metrics["versions"]["torch"] == torch.__version__
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\n"), "model hubs read the metadata at the start"
    for words in ("# A small model", "heldout_loss | 4.25", "不是医生", "not a doctor"):
        assert words in card


def test_a_published_model_loads_without_this_project_and_gives_the_same_logits(
    publish_to, model, tokenizer, tmp_path
):
    publish_to(tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    loaded_tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    text = "高血压患者服用aspirin片，怎么办？😷"
    ids = loaded_tokenizer(text, return_tensors="pt")["input_ids"]
    assert ids.tolist() == tokenizer(text, return_tensors="pt")["input_ids"].tolist()
    assert loaded_tokenizer.decode(ids[0]) == text
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert loaded_tokenizer.chat_template == tokenizer.chat_template


def test_publish_replaces_an_old_directory_as_a_whole(publish_to, tmp_path):
    publish_to(tmp_path / "model", {"heldout_loss": 9.0})
    (tmp_path / "model" / "leftover.txt").write_text("old")
    publish_to(tmp_path / "model", {"heldout_loss": 1.0})
    assert json.loads((tmp_path / "model" / "metrics.json").read_text())["heldout_loss"] == 1.0
    assert not (tmp_path / "model" / "leftover.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_publish_keeps_the_old_directory_if_it_is_interrupted(publish_to, tmp_path):
    publish_to(tmp_path / "model")
    before = contents(tmp_path / "model")
    with pytest.raises(TypeError, match="not JSON serializable"):
        publish_to(tmp_path / "model", {"a measure that cannot be written": object()})
    assert contents(tmp_path / "model") == before
    publish_to(tmp_path / "model", {"heldout_loss": 1.0})
    assert json.loads((tmp_path / "model" / "metrics.json").read_text())["heldout_loss"] == 1.0


def test_publish_leaves_no_directory_if_it_is_interrupted_the_first_time(publish_to, tmp_path):
    with pytest.raises(TypeError, match="not JSON serializable"):
        publish_to(tmp_path / "model", {"a measure that cannot be written": object()})
    assert not (tmp_path / "model").exists()


def test_load_model_returns_a_float32_model_in_evaluation_mode_and_its_tokenizer(publish_to, model, tmp_path):
    publish_to(tmp_path / "model")
    loaded, tokenizer = load_model(tmp_path / "model")
    assert not loaded.training
    assert loaded.dtype == torch.float32
    assert len(tokenizer) == loaded.config.vocab_size
    assert torch.equal(loaded.transformer.wte.weight, model.transformer.wte.weight)


def test_load_model_sets_the_dropout_everywhere_but_in_the_attention(publish_to, tmp_path):
    publish_to(tmp_path / "model")
    config = load_model(tmp_path / "model", dropout=0.3)[0].config
    assert (config.resid_pdrop, config.embd_pdrop, config.attn_pdrop) == (0.3, 0.3, 0.0)


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
@pytest.mark.parametrize("directory", list(paths.MADE_BY), ids=lambda path: path.name)
def test_load_names_a_missing_directory_and_the_command_that_makes_it(load, directory, tmp_path, monkeypatch):
    missing = tmp_path / directory.name
    monkeypatch.setattr(paths, "MADE_BY", {missing: paths.MADE_BY[directory]})
    with pytest.raises(UserError) as error:
        load(missing)
    command = str(error.value).partition("Run first: ")[2]
    assert f"{missing}/" in str(error.value)
    assert command.startswith("python ")
    assert (paths.ROOT / command.removeprefix("python ")).is_file(), "the command can be run"


def test_load_model_names_the_directory_of_a_model_without_a_tokenizer(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match=f"no model or tokenizer in {tmp_path / 'model'}/"):
        load_model(tmp_path / "model")


def test_load_tokenizer_refuses_a_tokenizer_without_chat_template_and_names_the_next_command(
    tokenizer_directory, tmp_path
):
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_directory)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "plain")
    with pytest.raises(UserError, match=r"plain/ .* lacks a chat template.*python pre_training/py/train_tokenizer.py"):
        load_tokenizer(tmp_path / "plain")


def test_load_model_refuses_a_vocabulary_that_differs_from_the_tokenizers(tokenizer, tmp_path):
    config = GPT2Config(vocab_size=len(tokenizer) + 1, n_positions=16, n_embd=8, n_layer=1, n_head=1)
    for part in (GPT2LMHeadModel(config), tokenizer):
        part.save_pretrained(tmp_path / "model")
    sizes = f"the tokenizer has {len(tokenizer)} tokens, the model has {len(tokenizer) + 1}"
    with pytest.raises(UserError, match=f"model/ differ: {sizes}"):
        load_model(tmp_path / "model")


def test_check_replaceable_wants_overwrite_and_an_output_of_this_project(tmp_path):
    check_replaceable(tmp_path / "new", overwrite=False, marker="config.json")
    with pytest.raises(UserError, match="--overwrite .*--output_model"):
        check_replaceable(tmp_path, overwrite=False, marker="config.json")
    with pytest.raises(UserError, match=r"has no config.json, .*--output_model"):
        check_replaceable(tmp_path, overwrite=True, marker="config.json")
    (tmp_path / "config.json").write_text("{}")
    check_replaceable(tmp_path, overwrite=True, marker="config.json")
