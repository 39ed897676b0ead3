"""Warn if a DPO training goes wrong. The rewards, the KL and the length of the answers are checked."""

import statistics

from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainerState
from trl import DPOConfig

from med_model.generation.sampling import BATCH_SIZE, generate_ids, greedy
from med_model.language import tr
from med_model.measures.likelihood import score
from med_model.training.health import SMOOTHED, HealthLines, logged, recent_mean

# Rewards are checked after this share of all steps. Before it, the chosen answers fall in healthy runs too: SFT has
# learned them by heart, and the first steps make them less likely (-109 nats in a full run).
CHECKED_AFTER = 2 / 3
# Limits of the warnings. A value in brackets was measured in healthy runs and is far from its limit.
FLAT_MARGIN = 0.02  # smallest absolute reward margin: at 0 the sigmoid loss is ln 2, the loss of a guess (0.10)
CHOSEN_FALL = -150  # lowest ratio: mean reward of the chosen answers / beta, in nats per answer (-70)
ANSWER_TOKENS = 200  # largest length of a generated answer in tokens, as in measures/evaluate.py
LENGTH_DRIFT = 0.25  # largest change of the mean answer length, as a share of the length at the start (0.02)
MAX_KL = 0.5  # largest KL in nats per token: a token is then 1.6 times as likely as under the reference model (0.04)


class PreferenceHealth(TrainerCallback):
    """Warn about the rewards of DPO. A reward is beta * (log p(answer) - log p_reference(answer)).

    A pair is a chosen and a rejected answer to one question. Its reward margin is reward(chosen) - reward(rejected).
    The margin is checked on training and held-out pairs. The reward of the chosen answers is checked on training pairs
    only. On held-out pairs this reward falls in healthy runs too: it was -1.0 there, and 0.0 on training pairs.
    """

    def __init__(self, health: HealthLines):
        self.health = health

    def on_log(self, args, state, control, logs, **kwargs):
        if not 0 < CHECKED_AFTER * state.max_steps <= state.global_step:
            return
        # A training log covers few pairs, so SMOOTHED logs are averaged. An evaluation covers all held-out pairs, so
        # one log is enough.
        for prefix, data, count in (("", tr("training"), SMOOTHED), ("eval_", tr("held-out"), 1)):
            margins = logged(state, f"{prefix}rewards/margins")
            if f"{prefix}rewards/margins" in logs and len(margins) >= count:
                self._check_margin(data, state.global_step, recent_mean(margins[-count:]))
        if "rewards/chosen" in logs:
            self._check_chosen(args, state)

    def _check_margin(self, data: str, step: int, margin: float) -> None:
        if abs(margin) < FLAT_MARGIN:
            self.health.warn(
                "flat_margin",
                tr(
                    "No preference is learned: the reward margin on {data} pairs is {margin:.4f} at step {step}, so "
                    "the sigmoid loss stays at ln 2 = 0.693. Raise --learning_rate or --num_train_epochs; check that "
                    "chosen and rejected are neither swapped nor equal.",
                    data=data,
                    margin=margin,
                    step=step,
                ),
            )

    def _check_chosen(self, args: DPOConfig, state: TrainerState) -> None:
        chosen, rejected = (logged(state, f"rewards/{kind}") for kind in ("chosen", "rejected"))
        if len(chosen) < SMOOTHED or recent_mean(chosen) >= CHOSEN_FALL * args.beta or recent_mean(rejected) >= 0:
            return
        weights = zip(args.loss_type, args.loss_weights or [1] * len(args.loss_type), strict=True)
        self.health.warn(
            "chosen_falls",
            tr(
                "The chosen answers grow less likely too: rewards/chosen is {chosen:.2f} at step {step} ({nats:.0f} "
                "nats per answer), rewards/rejected {rejected:.2f}. Keep sft in --loss_type, raise its part of "
                "--loss_weights (now {weights}), or lower --learning_rate.",
                chosen=recent_mean(chosen),
                step=state.global_step,
                nats=recent_mean(chosen) / args.beta,
                rejected=recent_mean(rejected),
                weights=", ".join(f"{name} {weight:g}" for name, weight in weights),
            ),
        )


class AnswerDrift(TrainerCallback):
    """Generate answers at each evaluation of DPO. Warn if they differ too much from the reference model's answers.

    Two figures are measured: the mean length of the answers in tokens, and the KL in nats per token. The KL of an
    answer is (log p(answer) - log p_reference(answer)) / number of tokens. This is the estimate k1 of Schulman 2020,
    "Approximating KL Divergence". The KL is averaged over the answers.
    The answers are decoded greedily, not sampled. So the KL is biased, but the same model always has the same KL.
    The mean length is compared with that of the reference model's answers. DPO does not change the reference model, so
    a resumed run compares with the same length.
    Only the first process generates answers.

    prompts: one list of input_ids per question. Each prompt must have fewer tokens than the model has positions.
    """

    def __init__(
        self,
        health: HealthLines,
        tokenizer: PreTrainedTokenizerBase,
        prompts: list[list[int]],
        reference: PreTrainedModel,
    ):
        assert max(map(len, prompts)) < reference.config.n_positions, "a prompt must leave room for an answer"
        self.health, self.prompts, self.reference = health, prompts, reference.eval()
        self.settings = greedy(tokenizer, chat=True, max_new_tokens=ANSWER_TOKENS)
        self.kl, self.length, self.start_length = 0.0, 0.0, 0.0

    def _answers(self, model: PreTrainedModel) -> list[tuple[list[int], list[int]]]:
        """Return a list of (prompt, answer) as input_ids, longest prompt first. An answer includes its stop token."""
        stops = set(self.settings.eos_token_id)
        prompts, rows = sorted(self.prompts, key=len, reverse=True), []
        for start in range(0, len(prompts), BATCH_SIZE):
            batch = prompts[start : start + BATCH_SIZE]
            columns = [column.tolist() for column in generate_ids(model, batch, self.settings)]
            for prompt, *ids in zip(batch, *columns, strict=True):
                end = next((index for index, token in enumerate(ids) if token in stops), len(ids))
                rows.append((prompt, ids[: end + 1]))
        return rows

    def measure(self, model: PreTrainedModel) -> None:
        """Set `kl` (nats per token) and `length` (tokens per answer) to the values of `model`."""
        training = model.training
        rows = self._answers(model.eval())
        scores = zip(score(model, rows), score(self.reference, rows), strict=True)
        self.kl = statistics.fmean((policy - reference) / count for (policy, count), (reference, _) in scores)
        self.length = statistics.fmean(len(ids) for _, ids in rows)
        model.train(training)

    def metrics(self) -> dict[str, float]:
        """Return the values for metrics.json: the KL in nats per token, and two mean answer lengths in tokens.

        The KL and the first length are from the last call of `measure`. The second length is the reference model's.
        """
        return {
            "kl_to_sft_model": self.kl,
            "answer_tokens": self.length,
            "answer_tokens_of_sft_model": self.start_length,
        }

    def on_train_begin(self, args, state, control, model, **kwargs):
        if state.is_world_process_zero:
            self.reference.to(model.device)
            self.start_length = self.length = statistics.fmean(len(ids) for _, ids in self._answers(self.reference))

    def on_evaluate(self, args, state, control, model, **kwargs):
        if not state.is_world_process_zero:
            return
        self.measure(model)
        if abs(self.length - self.start_length) > LENGTH_DRIFT * self.start_length:
            self.health.warn(
                "length_drift",
                tr(
                    "The length of the answers changes: {length:.0f} tokens per answer at step {step}, {start:.0f} at "
                    "the start. Lower --learning_rate or --num_train_epochs; check that chosen answers are not "
                    "systematically longer or shorter.",
                    length=self.length,
                    step=state.global_step,
                    start=self.start_length,
                ),
            )
        if self.kl > MAX_KL:
            self.health.warn(
                "kl",
                tr(
                    "Too far from the reference model: KL is {kl:.2f} nats per token at step {step}. Raise --beta "
                    "(now {beta:g}), or lower --learning_rate.",
                    kl=self.kl,
                    step=state.global_step,
                    beta=args.beta,
                ),
            )
