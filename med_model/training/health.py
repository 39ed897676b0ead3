"""Warn early if a training goes wrong, so that the user can stop it. Each warning is one line and gives advice.

The functions `check_...` check the data before the training. `TrainingHealth` reads `state.log_history` during the
training. A checkpoint contains the log history, so a resumed run is checked with the logs of all its steps.
"""

import math
import os
import statistics
import sys
from collections.abc import Collection, Hashable, Iterable

from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerState, TrainingArguments

from med_model.errors import UserError
from med_model.language import tr

# Limits of the warnings. A number in brackets was measured in healthy runs and is far from its limit.
SHORTENED_SHARE = 0.05  # largest share of rows shortened to --max_length: a few long rows are normal
UNSTOPPED_SHARE = 0.01  # largest share of rows without a stop token: the other rows suffice to teach the model to stop
SMOOTHED = 3  # number of logs to average: one log covers few batches, so its values are noisy
LEAST_LOGS = 5  # smallest number of logs for a warning about the training loss or the gradient norm
FALL_AFTER = 0.2  # the fall of the training loss is checked after this share of all steps: the warm-up is then over
# Largest ratio: mean of the last losses / mean of the first losses (0.77 to 0.84 in pre-training, 0.34 to 0.51 in SFT)
FALL = 0.99
# Largest value of (held-out loss - its lowest value) / its lowest value. Noise causes smaller rises.
RISE = 0.01
# Largest value of (held-out loss - its lowest value) / (first held-out loss - its lowest value). A warning needs a
# rise above both limits: near a loss of 0, RISE alone would be too strict.
RISE_OF_DROP = 0.05
SPIKE = 10  # largest ratio: gradient norm / median of the gradient norms before it (3.6)
# Largest number of logs in this median: older logs are left out, because the gradient norm changes during a run.
SPIKE_LOGS = 50


class HealthLines:
    """Collect the warnings of a run, one line per kind.

    The first process prints each line once. At the end, `finish` in stage.py writes all `lines` to metrics.json.
    """

    def __init__(self):
        self._lines: dict[str, str] = {}

    @property
    def lines(self) -> list[str]:
        return list(self._lines.values())

    def warn(self, kind: str, line: str) -> None:
        """Keep the line, and print it on the first process. Do nothing if there is already a line of this kind."""
        assert "\n" not in line, "a warning is one line"
        if kind in self._lines:
            return
        self._lines[kind] = line
        if os.environ.get("RANK", "0") == "0":  # the number of the process, set by torchrun
            tqdm.write(tr("Warning: {line}", line=line), file=sys.stderr)  # a plain print would break the progress bar


def check_truncation(health: HealthLines, shortened: int, rows: int) -> None:
    """Warn if more than SHORTENED_SHARE of the rows were shortened. `shortened` and `rows` are numbers of rows.

    In DPO each answer counts as one row.
    """
    if shortened > SHORTENED_SHARE * rows:
        health.warn(
            "truncation",
            tr(
                "Too long: {shortened:,} of {rows:,} rows ({share:.0%}) were shortened. Raise --max_length (up to the "
                "model's positions) or split the long rows.",
                shortened=shortened,
                rows=rows,
                share=shortened / rows,
            ),
        )


def check_stops(health: HealthLines, labels: Iterable[list[int]], stop_ids: Collection[int]) -> None:
    """Warn if more than UNSTOPPED_SHARE of the rows have no stop token. `labels` has one list of token ids per row."""
    stops = set(stop_ids)
    unstopped = [stops.isdisjoint(row) for row in labels]
    if sum(unstopped) > UNSTOPPED_SHARE * len(unstopped):
        health.warn(
            "stops",
            tr(
                "No stop token: {unstopped:,} of {rows:,} rows ({share:.0%}) have none, and the model will not learn "
                "to stop. End each answer with the stop token; raise --max_length if it is cut off.",
                unstopped=sum(unstopped),
                rows=len(unstopped),
                share=sum(unstopped) / len(unstopped),
            ),
        )


def _squeezed(record: Hashable) -> Hashable:
    """Return a record without white space. Copies of a text often differ only in white space.

    A record is a text or a tuple of texts.
    """
    if isinstance(record, str):
        return "".join(record.split())
    return tuple(map(_squeezed, record)) if isinstance(record, tuple) else record


def check_overlap(health: HealthLines, training: Iterable[Hashable], heldout: Iterable[Hashable]) -> None:
    """Warn if held-out records are also in the training data. White space is ignored.

    A record is a text or a tuple of texts.
    """
    wanted = [_squeezed(record) for record in heldout]
    seen = set(wanted).intersection(map(_squeezed, training))
    if found := sum(record in seen for record in wanted):
        health.warn(
            "overlap",
            tr(
                "Overlap: {found:,} of {heldout:,} held-out records also stand in the training data, so the held-out "
                "figures are too good. Remove them from --data, or give another --eval_data.",
                found=found,
                heldout=len(wanted),
            ),
        )


def logged(state: TrainerState, key: str) -> list[tuple[int, float]]:
    """Return (step, value) of each log that has `key`, the oldest log first."""
    return [(entry["step"], entry[key]) for entry in state.log_history if key in entry]


def recent_mean(series: list[tuple[int, float]]) -> float:
    """Return the mean of the last SMOOTHED values of a series of (step, value)."""
    return statistics.fmean(value for _, value in series[-SMOOTHED:])


class TrainingHealth(TrainerCallback):
    """Warn if the loss or the gradient norm of a training is not as in a healthy run.

    falls: whether to check that the losses fall. It is False for DPO: in a healthy DPO run the training loss changes
    little, and the held-out loss rises.
    Raise UserError if a loss is not finite. Without fp16, also raise UserError if a gradient norm is not finite.
    """

    def __init__(self, health: HealthLines, falls: bool = True):
        self.health, self.falls = health, falls

    def on_train_begin(self, args, state, control, **kwargs):
        assert not args.logging_nan_inf_filter, "logging_nan_inf_filter would hide the losses looked for here"

    def on_log(self, args, state, control, logs, **kwargs):
        self._check_finite(args, state, logs)
        if "loss" in logs and self.falls:
            self._check_fall(state)
        if "grad_norm" in logs:
            self._check_spike(state)
        if "eval_loss" in logs:
            self._check_overfitting(args, state)

    def _check_finite(self, args: TrainingArguments, state: TrainerState, logs: dict[str, float]) -> None:
        # With fp16 the gradient norm is not checked. The first gradients may overflow, and this is no fault: the
        # Trainer skips these steps, and then multiplies the loss by a smaller factor.
        keys = ("loss", "eval_loss", "train_loss", *(() if args.fp16 else ("grad_norm",)))
        for key in keys:
            if key in logs and not math.isfinite(logs[key]):
                raise UserError(
                    tr(
                        "The training diverged: {key} is {value} at step {step}. Nothing is published. Halve "
                        "--learning_rate (now {rate:g}), give more --warmup_steps, or --bf16 False; --overwrite "
                        "starts anew.",
                        key=key,
                        value=logs[key],
                        step=state.global_step,
                        rate=args.learning_rate,
                    )
                )

    def _check_fall(self, state: TrainerState) -> None:
        losses = logged(state, "loss")
        if len(losses) < LEAST_LOGS or state.global_step < FALL_AFTER * state.max_steps:
            return
        # Each mean covers a fifth of the logs, or SMOOTHED logs if a fifth is fewer. A single log is too noisy.
        count = max(SMOOTHED, len(losses) // 5)
        first, last = (statistics.fmean(loss for _, loss in part) for part in (losses[:count], losses[-count:]))
        if last >= FALL * first:
            self.health.warn(
                "no_fall",
                tr(
                    "The loss does not fall: {last:.3f} at step {step}, {first:.3f} at the start. Raise "
                    "--learning_rate, and look at the data.",
                    last=last,
                    step=state.global_step,
                    first=first,
                ),
            )

    def _check_spike(self, state: TrainerState) -> None:
        *before, (step, norm) = logged(state, "grad_norm")[-SPIKE_LOGS - 1 :]
        if len(before) < LEAST_LOGS:
            return
        median = statistics.median(value for _, value in before)
        if norm > SPIKE * median:
            self.health.warn(
                "gradient_spike",
                tr(
                    "Gradient spike: the gradient norm is {norm:.3g} at step {step}; the median of the last {logs} "
                    "logs is {median:.3g}. Lower --learning_rate, or give more --warmup_steps.",
                    norm=norm,
                    step=step,
                    logs=len(before),
                    median=median,
                ),
            )

    def _check_overfitting(self, args: TrainingArguments, state: TrainerState) -> None:
        heldout, losses = logged(state, "eval_loss"), logged(state, "loss")
        (best_step, best), (step, now) = min(heldout, key=lambda point: point[1]), heldout[-1]
        until_best = [point for point in losses if point[0] <= best_step]
        limit = best + max(RISE * best, RISE_OF_DROP * (heldout[0][1] - best))
        # There is no warning in DPO (`falls` is False): in a healthy DPO run too, held-out answers become less likely,
        # so the held-out loss rises.
        if not self.falls or now <= limit or not until_best or recent_mean(losses) >= recent_mean(until_best):
            return
        if args.load_best_model_at_end:
            published = tr("The checkpoint that is best by {metric} is published.", metric=args.metric_for_best_model)
        else:
            published = tr("--load_best_model_at_end True publishes the best checkpoint.")
        self.health.warn(
            "overfitting",
            tr(
                "Overfitting: held-out loss {now:.3f} at step {step} after its best, {best:.3f}, at step {best_step}, "
                "while the training loss falls ({before:.3f} to {after:.3f}). {published} Give fewer "
                "--num_train_epochs, more --data, or a higher --dropout.",
                now=now,
                step=step,
                best=best,
                best_step=best_step,
                before=recent_mean(until_best),
                after=recent_mean(losses),
                published=published,
            ),
        )
