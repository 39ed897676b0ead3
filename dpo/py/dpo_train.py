"""Direct preference optimization: tune the SFT model on pairs of a good and a bad answer.

Reads  post_model__after_sft/ and preference pairs (default: the bundled dpo/dataset/)
Writes final_model__after_dpo/ (checkpoints and reference log-probabilities in dpo/py/med_dpo_checkpoints/)

    python dpo/py/dpo_train.py
    python dpo/py/dpo_train.py --data my_pairs.jsonl --beta 0.2
    python dpo/py/dpo_train.py --resume
"""

import hashlib
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from trl import DPOConfig, DPOTrainer

from med_model import paths
from med_model.command import UserError, parse, run
from med_model.data import preference_of, read_all
from med_model.evaluate import Pair, preference_measures, preference_scores
from med_model.loss import use_chunked_head
from med_model.model import load_model, load_tokenizer, use_bf16
from med_model.prompt import END_OF_TEXT, IM_END, MIN_ANSWER_TOKENS, fit_answer, fit_prompt
from med_model.training import StageArguments, check_output, finish, train

HELDOUT_SHARE, MAX_HELDOUT_PAIRS = 0.1, 400  # of the user's own questions, where no --eval_data is given
PROMPT_SHARE = 0.5  # of max_length at most; the rest is the answers'


@dataclass
class DataArguments(StageArguments):
    input_model: str = field(default=str(paths.SFT_MODEL), metadata={"help": "Directory of the SFT model: the start and the reference."})
    output_model: str = field(default=str(paths.FINAL_MODEL), metadata={"help": "Directory to publish the model in."})


@dataclass
class DPOArguments(DPOConfig):
    """TRL's DPO arguments with the defaults of this stage."""

    output_dir: str | None = field(default=str(paths.DPO_CHECKPOINTS), metadata={"help": "Where checkpoints are written."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the data."})
    per_device_train_batch_size: int = field(default=8, metadata={"help": "Pairs per step and device."})
    per_device_eval_batch_size: int = field(default=16, metadata={"help": "Pairs per evaluation step."})
    learning_rate: float = field(default=5e-5, metadata={"help": "Peak learning rate."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule after the warm-up."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Steps of warm-up; below 1: share of all steps."})
    max_length: int | None = field(default=512, metadata={"help": "Longest prompt and answer in tokens; the model has 512 positions."})
    logging_steps: float = field(default=10, metadata={"help": "Log every so many steps."})
    eval_strategy: str = field(default="steps", metadata={"help": "When the held-out pairs are measured."})
    eval_steps: float | None = field(default=0.2, metadata={"help": "Steps between evaluations; below 1: share of all steps."})
    save_strategy: str = field(default="steps", metadata={"help": "When checkpoints are saved."})
    save_steps: float = field(default=0.2, metadata={"help": "Steps between checkpoints; below 1: share of all steps."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept."})
    report_to: str = field(default="none", metadata={"help": "`tensorboard` writes logs to --output_dir too."})
    include_num_input_tokens_seen: str = field(default="non_padding", metadata={"help": "Count tokens for the speed shown."})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Saves memory a model this small does not need."})
    precompute_ref_log_probs: bool = field(default=True, metadata={"help": "The reference is run once, before training."})
    bf16: bool | None = field(default=None, metadata={"help": "bfloat16; default: where the GPU has it."})
    dataloader_pin_memory: bool = field(default=torch.cuda.is_available(), metadata={"help": "Pinned memory; for CUDA only."})

    def __post_init__(self):
        self.bf16 = use_bf16() if self.bf16 is None else self.bf16
        super().__post_init__()


class ReadyDPOTrainer(DPOTrainer):
    """TRL's trainer on pairs that are rendered already, with the reference's log-probabilities in their columns."""

    def _prepare_dataset(self, dataset, *args, **kwargs):
        return dataset

    def _precompute_ref_logps(self, dataset, *args, **kwargs):
        return dataset


def read_pairs(stage: StageArguments, seed: int) -> tuple[list, list]:
    """(training pairs, held-out ones); without --eval_data a part of the user's questions is split off, whole."""
    rows = read_all(stage.data or [paths.DPO_DATA], preference_of)
    if stage.eval_data or not stage.data:
        return rows, read_all(stage.eval_data or [paths.HELDOUT_PAIRS], preference_of)
    questions = sorted({str(prompt) for prompt, _, _ in rows})
    if len(questions) < 2:
        raise UserError("只有一个问题/pairs on one question cannot be split: give more --data, or a held-out file with --eval_data")
    count = min(MAX_HELDOUT_PAIRS, max(1, round(len(questions) * HELDOUT_SHARE)))
    heldout = set(random.Random(seed).sample(questions, count))
    return [row for row in rows if str(row[0]) not in heldout], [row for row in rows if str(row[0]) in heldout]


def encode(tokenizer: PreTrainedTokenizerBase, rows: list, max_length: int, name: str) -> list[Pair]:
    """The pairs as ids; says how many prompts and answers had to be shortened."""
    pairs, prompts_cut, answers_cut = [], 0, 0
    for prompt, chosen, rejected in rows:
        prompt_ids, prompt_cut = fit_prompt(tokenizer, prompt, int(max_length * PROMPT_SHARE))
        (chosen_ids, chosen_cut), (rejected_ids, rejected_cut) = (
            fit_answer(tokenizer, answer, max_length - len(prompt_ids)) for answer in (chosen, rejected)
        )
        prompts_cut += prompt_cut
        answers_cut += chosen_cut + rejected_cut
        if chosen_ids != rejected_ids:
            pairs.append(Pair(prompt_ids, chosen_ids, rejected_ids))
    print(f"{name}: {len(pairs):,} 对/pairs, {sum(len(p) + len(c) + len(r) for p, c, r in pairs):,} 词元/tokens")
    if prompts_cut or answers_cut:
        print(f"  太长而截断/too long and cut: {prompts_cut:,} 问题/prompts from the front, {answers_cut:,} 答案/answers at a sentence end")
    if same := len(rows) - len(pairs):
        print(f"  {same:,} 对截断后相同，已舍去/left out: the same once cut")
    return pairs


def reference_scores(model: PreTrainedModel, pairs: list[Pair], folder: Path) -> list[tuple[float, float]]:
    """(chosen, rejected) summed log-probabilities under the reference, from the cache of an earlier run where there is one.

    The file's name is a hash of the weights and of the ids, so that it can never belong to something else.
    """
    digest = hashlib.sha256(repr(pairs).encode())
    for name, weights in sorted(model.state_dict().items()):
        digest.update(name.encode() + weights.cpu().numpy().tobytes())
    file = folder / f"reference_{digest.hexdigest()[:16]}.safetensors"
    if file.is_file():
        print(f"参考模型的对数概率取自缓存/reference log-probabilities from the cache: {paths.shown(file)}")
        return list(map(tuple, load_file(file)["log_probs"].tolist()))
    start = time.time()
    scores = [(chosen, rejected) for chosen, rejected, _, _ in preference_scores(model, pairs)]
    folder.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    save_file({"log_probs": torch.tensor(scores, dtype=torch.float64)}, partial)
    partial.replace(file)
    print(f"参考模型的对数概率已算好/reference log-probabilities computed once: {len(pairs):,} pairs in {time.time() - start:.1f} s")
    return scores


def dataset_of(pairs: list[Pair], reference: list[tuple[float, float]]) -> Dataset:
    columns = {key: [getattr(pair, key) for pair in pairs] for key in Pair._fields}
    columns["ref_chosen_logps"], columns["ref_rejected_logps"] = map(list, zip(*reference, strict=True))
    return Dataset.from_dict(columns)


def main() -> None:
    stage, training = parse(DataArguments, DPOArguments, description=__doc__)
    checkpoint = check_output(stage, training)
    rows, heldout_rows = read_pairs(stage, training.seed)
    tokenizer = load_tokenizer(stage.input_model)
    pairs = encode(tokenizer, rows, training.max_length, "训练/training")
    heldout = encode(tokenizer, heldout_rows, training.max_length, "验证/held-out")

    set_seed(training.seed)
    model, _ = load_model(stage.input_model)
    if training.max_length > model.config.n_positions:
        raise UserError(f"--max_length {training.max_length}: the model has {model.config.n_positions} positions")
    reference = reference_scores(model, pairs + heldout, Path(training.output_dir))
    before = preference_measures(model, heldout)
    trainer = ReadyDPOTrainer(
        model=model,
        args=training,
        train_dataset=dataset_of(pairs, reference[: len(pairs)]),
        eval_dataset=dataset_of(heldout, reference[len(pairs) :]),
        processing_class=tokenizer,
    )
    use_chunked_head(model)
    seconds = train(trainer, stage, checkpoint)

    model.eval()
    after = trainer.evaluate()
    finish(
        trainer,
        tokenizer,
        stage,
        title="Med_model: final model after DPO",
        stops=[IM_END, END_OF_TEXT],
        metrics={
            "heldout_loss": after["eval_loss"],
            "heldout_reward_accuracy": after["eval_rewards/accuracies"],
            "heldout_reward_margin": after["eval_rewards/margins"],
            **{f"heldout_{name}": value for name, value in preference_measures(model, heldout).items()},
            **{f"before_{name}": value for name, value in before.items()},
            "training_seconds": round(seconds, 1),
            "training_pairs": len(pairs),
        },
    )


if __name__ == "__main__":
    run(main)
