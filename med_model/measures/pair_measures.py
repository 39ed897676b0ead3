"""Compute the measures of preference pairs."""

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from med_model.data.prompt import encode_pairs
from med_model.data.records import Pair
from med_model.measures.interval import Measure, measure
from med_model.measures.likelihood import preference_scores
from med_model.measures.scales import FLAW


def accuracies(pairs: Sequence[Pair], right: Sequence[bool]) -> dict[str, Measure]:
    """Return the share of pairs for which `right` is True: of all pairs, of `unread` pairs, and for each flaw.

    No training file has the topic of an `unread` pair. A flaw is the kind of mistake in the rejected answer.
    Pairs with the same chosen answer are not independent. So they form one group, and the bootstrap draws the group
    as a whole.
    """
    parts = {"preference_accuracy": range(len(pairs))}
    parts["preference_accuracy_unread"] = [i for i, pair in enumerate(pairs) if pair.unread]
    for flaw in sorted({pair.flaw for pair in pairs} - {""}):
        parts[FLAW + flaw] = [i for i, pair in enumerate(pairs) if pair.flaw == flaw]
    return {
        key: measure([right[i] for i in indices], groups=[pairs[i].chosen for i in indices])
        for key, indices in parts.items()
        if indices
    }


def pair_measures(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], chat: bool
) -> dict[str, Measure]:
    """Return the preference measures as {key: measure}.

    An accuracy is the share of pairs with log p(chosen) > log p(rejected). A margin is the mean of
    log p(chosen) - log p(rejected), in nats. log p is the sum of the log-probabilities of an answer's tokens and of
    its stop token. In keys that end with `_per_token`, log p is the mean of these log-probabilities.
    A pair is left out if its answers are equal after they are cut to fit into the model's positions. If all pairs are
    left out, return an empty dict. Raise UserError if not even an empty question fits into a chat prompt.
    """
    encoded, kept = [], []
    for pair in pairs:
        ids, _ = encode_pairs(tokenizer, [pair], model.config.n_positions, chat)
        encoded += ids
        kept += [pair] * len(ids)
    if not kept:
        return {}
    scores = preference_scores(model, encoded)
    groups = [pair.chosen for pair in kept]
    return accuracies(kept, [good > bad for good, bad, _, _ in scores]) | {
        "preference_accuracy_per_token": measure([good > bad for _, _, good, bad in scores], groups=groups),
        "preference_margin": measure([good - bad for good, bad, _, _ in scores], groups=groups),
        "preference_margin_per_token": measure([good - bad for _, _, good, bad in scores], groups=groups),
    }
