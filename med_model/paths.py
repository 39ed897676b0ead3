"""List the paths of the project. Other modules import them from here."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

PRETRAINING_DATA = ROOT / "pre_training" / "dataset" / "train"
HELDOUT_TEXT = ROOT / "pre_training" / "dataset" / "heldout.jsonl"
SFT_DATA = ROOT / "sft" / "dataset" / "train"
HELDOUT_QUESTIONS = ROOT / "sft" / "dataset" / "heldout"
HELDOUT_REGISTERS = ROOT / "sft" / "dataset" / "heldout_registers"
HELDOUT_TURNS = ROOT / "sft" / "dataset" / "heldout_turns"
HELDOUT_OUT_OF_SCOPE = ROOT / "sft" / "dataset" / "heldout_out_of_scope.jsonl"
EXAM = ROOT / "sft" / "dataset" / "exam.jsonl"
CHOICES = ROOT / "sft" / "dataset" / "choices.jsonl"
DPO_DATA = ROOT / "dpo" / "dataset" / "train"
HELDOUT_PAIRS = ROOT / "dpo" / "dataset" / "heldout"
UNREAD_PAIRS = HELDOUT_PAIRS / "unread_topics.jsonl"

KNOWLEDGE = ROOT / "corpus" / "knowledge"
VAGUE_SENTENCES = ROOT / "corpus" / "vague.yaml"
TURN_PHRASES = ROOT / "corpus" / "turns.yaml"
OUT_OF_SCOPE = ROOT / "corpus" / "out_of_scope.yaml"

TOKENIZER = ROOT / "pre_training" / "py" / "med_tokenizer"
BASE_MODEL = ROOT / "base_model__after_pretraining"
SFT_MODEL = ROOT / "post_model__after_sft"
FINAL_MODEL = ROOT / "final_model__after_dpo"

PRETRAINING_CHECKPOINTS = ROOT / "pre_training" / "py" / "med_model_checkpoints"
SFT_CHECKPOINTS = ROOT / "sft" / "py" / "med_sft_checkpoints"
DPO_CHECKPOINTS = ROOT / "dpo" / "py" / "med_dpo_checkpoints"

# The command that makes each directory. An error about a missing directory names this command as the next step.
MADE_BY = {
    TOKENIZER: "python pre_training/py/train_tokenizer.py",
    BASE_MODEL: "python pre_training/py/run_pretraining.py",
    SFT_MODEL: "python sft/py/sft_train.py",
    FINAL_MODEL: "python dpo/py/dpo_train.py",
}


def shown(path: str | Path) -> str:
    """Return the path for a message: relative to the project if it lies inside the project, else absolute."""
    path = Path(path).resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
