"""Says in one line, while there is still time, what goes wrong in a training and which knob to turn; each kind once.

Checks of the data run before training, the callbacks during it. What they look at is read from `state.log_history`,
which a checkpoint keeps: a run that --resume goes on with is judged from its first step on.
"""

import math
import os
import statistics
import sys
from collections.abc import Collection, Hashable, Iterable

from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainerState, TrainingArguments
from trl import DPOConfig

from med_model.data.prompt import CHAT_STOPS
from med_model.errors import UserError
from med_model.generation.sampling import BATCH_SIZE, generate_ids, greedy
from med_model.measures.likelihood import score

# Each limit lies well beyond what whole runs of the three stages have shown, which stands in brackets.
SHORTENED_SHARE = 0.05  # of the rows; fewer are the odd long one
UNSTOPPED_SHARE = 0.01  # of the rows; every other row teaches the stop, a few without do no harm
SMOOTHED = 3  # logs; one alone is of few batches, which differ more than training changes them
LEAST_LOGS = 5  # before anything is said about a trend
FALL_AFTER = 0.2  # of all steps: the warm-up is over
FALL = 0.99  # of the first losses (0.77 to 0.84 in pre-training, 0.34 to 0.51 in SFT)
RISE = 0.01  # of the best held-out loss: two evaluations of a level model differ by less
RISE_OF_FALL = 0.05  # of what it had fallen until then: an answer learnt by heart has a loss near 0, and 1% is nothing
SPIKE = 10  # times the median (3.6 at most)
SPIKE_LOGS = 50  # that the median is of: over a whole run the norm drifts
FLAT_AFTER = 1 / 3  # of all steps: the learning rate has passed its peak
FLAT_MARGIN = 0.02  # the sigmoid loss is then within 0.01 of ln 2, a coin's (0.10 at least)
CHOSEN_FALL = -25  # nats an answer, which is the reward over beta: a beta of any size means the same (-8)
ANSWER_TOKENS = 200  # as the stages measure answers
LENGTH_DRIFT = 0.25  # of the length at the start (0.02)
MAX_KL = 0.5  # nats a token: each is 1.6 times likelier than under the reference (0.04)


class Warnings:
    """What went wrong, a line for each kind: printed once, by the first process, and kept for metrics.json."""

    def __init__(self):
        self._told: dict[str, str] = {}

    @property
    def lines(self) -> list[str]:
        return list(self._told.values())

    def tell(self, kind: str, line: str) -> None:
        assert "\n" not in line, "a warning is one line"
        if kind in self._told:
            return
        self._told[kind] = line
        if os.environ.get("RANK", "0") == "0":  # set by torchrun
            tqdm.write(f"注意/warning: {line}", file=sys.stderr)  # above the bar of a running training


def check_truncation(warnings: Warnings, shortened: int, rows: int) -> None:
    if shortened > SHORTENED_SHARE * rows:
        warnings.tell(
            "truncation",
            f"太长被截/{shortened:,} of {rows:,} rows ({shortened / rows:.0%}) were shortened: raise --max_length (up "
            "to the model's positions) or split the long rows",
        )


def check_stops(warnings: Warnings, labels: Iterable[list[int]], stop_ids: Collection[int]) -> None:
    """A row counts where none of its labels is a stop."""
    stops = set(stop_ids)
    unstopped = [stops.isdisjoint(row) for row in labels]
    if sum(unstopped) > UNSTOPPED_SHARE * len(unstopped):
        warnings.tell(
            "stops",
            f"没有停止符/{sum(unstopped):,} of {len(unstopped):,} rows ({sum(unstopped) / len(unstopped):.0%}) hold "
            "none, the model will not learn to stop: end each answer with the stop; raise --max_length if it is cut",
        )


def _squeezed(record: Hashable) -> Hashable:
    """The record without white space, also where it is a tuple of texts: two copies often differ in line ends only."""
    if isinstance(record, str):
        return "".join(record.split())
    return tuple(map(_squeezed, record)) if isinstance(record, tuple) else record


def check_overlap(warnings: Warnings, training: Iterable[Hashable], heldout: Iterable[Hashable]) -> None:
    """Records are texts or tuples of texts (a question with its answer)."""
    wanted = [_squeezed(record) for record in heldout]
    seen = set(wanted).intersection(map(_squeezed, training))
    if found := sum(record in seen for record in wanted):
        warnings.tell(
            "overlap",
            f"验证数据见于训练数据/{found:,} of {len(wanted):,} held-out records also stand in the training data, the "
            "held-out figures are too good: remove them from --data, or give another --eval_data",
        )


def _logged(state: TrainerState, key: str) -> list[tuple[int, float]]:
    """(step, value) of every log so far that has `key`."""
    return [(entry["step"], entry[key]) for entry in state.log_history if key in entry]


def _recent(series: list[tuple[int, float]]) -> float:
    return statistics.fmean(value for _, value in series[-SMOOTHED:])


class TrainingHealth(TrainerCallback):
    """Loss and gradient norm of any stage; `falls=False` for DPO: its healthy loss moves little, held-out up.

    A value that is not finite raises UserError: training ends there, and nothing is published.
    """

    def __init__(self, warnings: Warnings, falls: bool = True):
        self.warnings, self.falls = warnings, falls

    def on_train_begin(self, args, state, control, **kwargs):
        assert not args.logging_nan_inf_filter, "logging_nan_inf_filter would hide the very losses looked for here"

    def on_log(self, args, state, control, logs, **kwargs):
        self._check_finite(args, state, logs)
        if "loss" in logs and self.falls:
            self._check_fall(state)
        if "grad_norm" in logs:
            self._check_spike(state)
        if "eval_loss" in logs:
            self._check_overfitting(args, state)

    def _check_finite(self, args: TrainingArguments, state: TrainerState, logs: dict[str, float]) -> None:
        # With fp16 the first gradients overflow until the loss scale is found; those steps are left out by themselves.
        keys = ("loss", "eval_loss", "train_loss", *(() if args.fp16 else ("grad_norm",)))
        for key in keys:
            if key in logs and not math.isfinite(logs[key]):
                raise UserError(
                    f"训练发散/step {state.global_step}: {key} is {logs[key]}, nothing is published: halve "
                    f"--learning_rate (now {args.learning_rate:g}), give more --warmup_steps, or --bf16 False; "
                    "--overwrite starts anew"
                )

    def _check_fall(self, state: TrainerState) -> None:
        losses = _logged(state, "loss")
        if len(losses) < LEAST_LOGS or state.global_step < FALL_AFTER * state.max_steps:
            return
        # A fifth of the logs at each end: rows grouped by length give losses that swing from log to log.
        count = max(SMOOTHED, len(losses) // 5)
        first, last = (statistics.fmean(loss for _, loss in part) for part in (losses[:count], losses[-count:]))
        if last >= FALL * first:
            self.warnings.tell(
                "no fall",
                f"损失不降/step {state.global_step}: the loss is {last:.3f} after {first:.3f} at the start: raise "
                "--learning_rate, and look at the data",
            )

    def _check_spike(self, state: TrainerState) -> None:
        *before, (step, norm) = _logged(state, "grad_norm")[-SPIKE_LOGS - 1 :]
        if len(before) < LEAST_LOGS:
            return
        median = statistics.median(value for _, value in before)
        if norm > SPIKE * median:
            self.warnings.tell(
                "gradient spike",
                f"梯度突增/step {step}: the gradient norm is {norm:.3g} after {median:.3g} (median of the last "
                f"{len(before)} logs): lower --learning_rate, longer --warmup_steps",
            )

    def _check_overfitting(self, args: TrainingArguments, state: TrainerState) -> None:
        heldout, losses = _logged(state, "eval_loss"), _logged(state, "loss")
        (best_step, best), (step, now) = min(heldout, key=lambda point: point[1]), heldout[-1]
        until_best = [point for point in losses if point[0] <= best_step]
        # In DPO the loss on pairs that were never answered rises in a healthy run: their answers grow less likely.
        limit = best + max(RISE * best, RISE_OF_FALL * (heldout[0][1] - best))
        if not self.falls or now <= limit or not until_best or _recent(losses) >= _recent(until_best):
            return
        self.warnings.tell(
            "overfitting",
            f"过拟合/step {step}: held-out loss {now:.3f} after its best {best:.3f} at step {best_step}, while the "
            f"training loss falls ({_recent(until_best):.3f} to {_recent(losses):.3f}): "
            + (
                f"the checkpoint best by {args.metric_for_best_model} is kept and published; "
                if args.load_best_model_at_end
                else "--load_best_model_at_end True publishes it; "
            )
            + "fewer --num_train_epochs, more --data, or a higher --dropout (pre-training and SFT)",
        )


class PreferenceHealth(TrainerCallback):
    """Rewards of DPO, which are beta times the log-ratio of policy and reference.

    A flat margin is looked for on the held-out pairs too. A chosen answer that falls is not: held-out answers are new
    text, less likely after DPO also where all is well (rewards/chosen -1.0 held out, 0.0 in training).
    """

    # A log of the training is of few pairs, one of an evaluation of all the held-out ones.
    SOURCES = (("", "训练/training", SMOOTHED), ("eval_", "验证/held-out", 1))

    def __init__(self, warnings: Warnings):
        self.warnings = warnings

    def on_log(self, args, state, control, logs, **kwargs):
        late = 0 < FLAT_AFTER * state.max_steps <= state.global_step
        for prefix, name, count in self.SOURCES:
            margins = _logged(state, f"{prefix}rewards/margins")
            if f"{prefix}rewards/margins" in logs and late and len(margins) >= count:
                self._check_margin(f"{name} step {state.global_step}", _recent(margins[-count:]))
        if "rewards/chosen" in logs:
            self._check_chosen(args, state)

    def _check_margin(self, where: str, margin: float) -> None:
        if abs(margin) < FLAT_MARGIN:
            self.warnings.tell(
                "flat margin",
                f"偏好没有学到/{where}: the reward margin is {margin:.4f}, the sigmoid loss stays at ln 2 = 0.693: "
                "raise --learning_rate or --num_train_epochs; check that chosen and rejected are not swapped or equal",
            )

    def _check_chosen(self, args: DPOConfig, state: TrainerState) -> None:
        chosen, rejected = (_logged(state, f"rewards/{kind}") for kind in ("chosen", "rejected"))
        if len(chosen) >= SMOOTHED and _recent(chosen) < CHOSEN_FALL * args.beta and _recent(rejected) < 0:
            weights = zip(args.loss_type, args.loss_weights or [1] * len(args.loss_type), strict=True)
            self.warnings.tell(
                "chosen falls",
                f"好答案也在变差/step {state.global_step}: rewards/chosen {_recent(chosen):.2f} "
                f"({_recent(chosen) / args.beta:.0f} nats an answer) falls with rewards/rejected "
                f"{_recent(rejected):.2f}: keep sft in --loss_type, raise its part of --loss_weights "
                f"(now {', '.join(f'{name} {weight:g}' for name, weight in weights)}), lower --learning_rate",
            )


class AnswerDrift(TrainerCallback):
    """How far the answers move from the reference's while DPO trains: their length, and KL(policy, reference).

    The KL is Schulman's k1 ("Approximating KL Divergence", 2020): log p(answer) - log p_reference(answer), in nats a
    token of each answer, averaged over the answers. They are greedy, not sampled: no unbiased estimate, but the same
    in every run. The reference's own answers are the start, so that a resumed run starts where the whole run did.
    """

    def __init__(
        self,
        warnings: Warnings,
        tokenizer: PreTrainedTokenizerBase,
        prompts: list[list[int]],
        reference: PreTrainedModel,
    ):
        assert max(map(len, prompts)) < reference.config.n_positions, "a prompt must leave room for an answer"
        self.warnings, self.prompts, self.reference = warnings, prompts, reference.eval()
        self.settings = greedy(tokenizer, CHAT_STOPS, ANSWER_TOKENS)
        self.kl, self.length, self.start_length = 0.0, 0.0, 0.0

    def _answers(self, model: PreTrainedModel) -> list[tuple[list[int], list[int]]]:
        """(prompt, answer up to its stop) for each prompt, longest prompts first."""
        stops = set(self.settings.eos_token_id)
        prompts, rows = sorted(self.prompts, key=len, reverse=True), []
        for start in range(0, len(prompts), BATCH_SIZE):
            batch = prompts[start : start + BATCH_SIZE]
            columns = [column.tolist() for column in generate_ids(model, batch, self.settings)]
            for prompt, *ids in zip(batch, *columns, strict=True):
                end = next((place for place, token in enumerate(ids) if token in stops), len(ids))
                rows.append((prompt, ids[: end + 1]))
        return rows

    def on_train_begin(self, args, state, control, model, **kwargs):
        self.reference.to(model.device)
        self.start_length = self.length = statistics.fmean(len(ids) for _, ids in self._answers(self.reference))

    def on_evaluate(self, args, state, control, model, **kwargs):
        was_training = model.training
        model.eval()
        rows = self._answers(model)
        scored = zip(score(model, rows), score(self.reference, rows), strict=True)
        self.kl = statistics.fmean((policy - reference) / count for (policy, count), (reference, _) in scored)
        self.length = statistics.fmean(len(ids) for _, ids in rows)
        model.train(was_training)
        if abs(self.length - self.start_length) > LENGTH_DRIFT * self.start_length:
            self.warnings.tell(
                "length drift",
                f"答案长度变了/step {state.global_step}: {self.length:.0f} tokens an answer, at the start "
                f"{self.start_length:.0f}: lower --learning_rate or --num_train_epochs; check that chosen answers are "
                "not systematically longer, or shorter",
            )
        if self.kl > MAX_KL:
            self.warnings.tell(
                "kl",
                f"离参考模型太远/step {state.global_step}: KL to the reference is {self.kl:.2f} nats a token: raise "
                f"--beta (now {args.beta:g}), lower --learning_rate",
            )
