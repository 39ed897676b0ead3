"""Check training/reference.py: the log-probabilities under DPO's reference model, and the file that keeps them."""

import copy
from types import SimpleNamespace

import pytest
import torch
from small_runs import random_ids

from med_model.data.prompt import EncodedPair
from med_model.measures.likelihood import preference_scores
from med_model.training import reference
from med_model.training.reference import reference_scores

pytestmark = pytest.mark.usefixtures("wide_screen")


@pytest.fixture
def pairs(tokenizer) -> list[EncodedPair]:
    columns = [random_ids(count, 5, 20, len(tokenizer))[:6] for count in (6, 7, 8)]
    return [EncodedPair(*ids) for ids in zip(*columns, strict=True)]


def training_of(folder, bf16: bool = False) -> SimpleNamespace:
    return SimpleNamespace(output_dir=str(folder), bf16=bf16, device=torch.device("cpu"))


def test_reference_scores_are_the_summed_log_probabilities_and_are_read_again(
    random_gpt2, pairs, tmp_path, monkeypatch, capsys
):
    model = random_gpt2(128)
    expected = [(chosen, rejected) for chosen, rejected, _, _ in preference_scores(model, pairs)]
    scores = reference_scores(model, pairs, training_of(tmp_path / "new"))
    assert scores == expected
    assert capsys.readouterr().out.startswith("The reference log-probabilities of 6 pairs are computed once: ")
    (file,) = (tmp_path / "new").iterdir()
    monkeypatch.setattr(reference, "preference_scores", None)
    assert reference_scores(copy.deepcopy(model), pairs, training_of(tmp_path / "new")) == scores
    printed = capsys.readouterr().out
    assert printed.startswith("The reference log-probabilities are read from ") and file.name in printed


def test_reference_scores_of_other_weights_pairs_or_precision_get_a_file_of_their_own(random_gpt2, pairs, tmp_path):
    model = random_gpt2(128)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.transformer.ln_f.bias[0] += 1
    runs = [(model, pairs, False), (other, pairs, False), (model, pairs[1:], False), (model, pairs, True)]
    scores = [reference_scores(one, rows, training_of(tmp_path, bf16)) for one, rows, bf16 in runs]
    assert len(list(tmp_path.iterdir())) == len(runs)
    assert scores[0] != scores[1] and scores[0] != scores[3] and len(scores[2]) == 5
    assert scores[3][0] == pytest.approx(scores[0][0], rel=0.02), "bfloat16 is near float32"
