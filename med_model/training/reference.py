"""Compute the log-probabilities of DPO's reference model once, before the training, and keep them in a file."""

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from trl import DPOConfig

from med_model import paths
from med_model.data.prompt import EncodedPair
from med_model.files import write_beside
from med_model.language import tr
from med_model.measures.likelihood import preference_scores
from med_model.screen import say


def reference_scores(
    model: PreTrainedModel, pairs: Sequence[EncodedPair], training: DPOConfig
) -> list[tuple[float, float]]:
    """Return the log-probabilities of (chosen, rejected) per pair under the reference model, in nats per answer.

    If a file in `output_dir` has the log-probabilities, read that file. Else compute the log-probabilities, and write
    the file. The file name contains a hash of weights, input_ids and precision. So no file of other data is read.
    This function uses bfloat16 if the training does. So the log-probabilities of the trained model and of the
    reference model are equal at the start.
    """
    folder = Path(training.output_dir)
    digest = hashlib.sha256(repr((pairs, training.bf16)).encode())
    for name, weights in sorted(model.state_dict().items()):
        digest.update(name.encode() + weights.cpu().numpy().tobytes())
    file = folder / f"reference_{digest.hexdigest()[:16]}.safetensors"
    if file.is_file():
        say(tr("The reference log-probabilities are read from {file}.", file=paths.shown(file)))
        return list(map(tuple, load_file(file)["log_probs"].tolist()))
    start = time.time()
    with torch.autocast(training.device.type, torch.bfloat16, enabled=training.bf16):
        scores = [(chosen, rejected) for chosen, rejected, _, _ in preference_scores(model, pairs)]
    folder.mkdir(parents=True, exist_ok=True)
    with write_beside(file) as partial:
        save_file({"log_probs": torch.tensor(scores, dtype=torch.float64)}, partial)
    say(
        tr(
            "The reference log-probabilities of {pairs:,} pairs are computed once: {seconds:.1f} s.",
            pairs=len(pairs),
            seconds=time.time() - start,
        )
    )
    return scores
