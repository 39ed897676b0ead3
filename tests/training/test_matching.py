"""Check training/matching.py: a model learns to tell from a question which answer it asks for."""

import copy

import pytest
import torch
from conftest import ADVICE, DISEASES

import sft_train
from med_model.data.blocks import PackedBlocks
from med_model.data.prompt import IGNORE, training_example
from med_model.errors import UserError
from med_model.training.matching import AnswerClassifier, MatchingArguments, QuestionViews, collate, match
from med_model.training.retention import Retention
from med_model.training.views import RowViews, ViewArguments

ENDINGS = ("怎么办？", "要注意什么？", "能治好吗？")
ANSWERS = {disease: f"{disease}：{ADVICE[i % len(ADVICE)]}" for i, disease in enumerate(DISEASES)}


def conversation(question: str, answer: str) -> list[dict]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


@pytest.fixture
def views(tokenizer):
    """Return the views of three wordings per disease, and of one conversation of two turns."""
    rows = [conversation(disease + ending, answer) for disease, answer in ANSWERS.items() for ending in ENDINGS]
    rows.append(rows[0] + rows[-1])
    examples = [training_example(tokenizer, messages, 512) for messages in rows]
    return RowViews(tokenizer, examples, ViewArguments(question_noise=0.0, later_turns=0.0), 512, 1)


@pytest.fixture
def training(tmp_path):
    return sft_train.SFTArguments(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, learning_rate=3e-3, disable_tqdm=True, logging_steps=1000
    )


def test_a_view_ends_where_its_last_answer_begins_and_numbers_all_answers(views, tokenizer):
    questions = QuestionViews(views)
    assert questions.distinct == len(ANSWERS)
    for i in range(len(questions)):
        view = questions.view(i, 0)
        assert tokenizer.decode(view["input_ids"]).endswith("<|im_end|>\n<|im_start|>assistant\n")
        assert len(view["input_ids"]) == questions.length(i, 0)
        row = views.rows[i]
        assert [start for _, start, _ in view["labels"]] == [answer.start for answer in row.answers]
        assert {start for start, _, _ in view["labels"]} == {0}, "a view of one row"
    numbers = [[number for _, _, number in questions.view(i, 0)["labels"]] for i in range(len(questions))]
    assert numbers == [*([i // 3] for i in range(3 * len(DISEASES))), [0, len(DISEASES) - 1]]


def test_joined_rows_have_their_own_starts(tokenizer):
    examples = [training_example(tokenizer, conversation(d + ENDINGS[0], ANSWERS[d]), 512) for d in DISEASES]
    questions = QuestionViews(
        RowViews(tokenizer, examples, ViewArguments(question_noise=0.0, later_turns=0.6), 512, 1)
    )
    joined = [view for view in (questions.view(i, 0) for i in range(len(questions))) if len(view["labels"]) > 1]
    assert joined
    for view in joined:
        for start, end, number in view["labels"]:
            question = DISEASES[number] + ENDINGS[0]
            prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
            assert tokenizer.decode(view["input_ids"][start:end]) == prompt


def test_questions_change_from_pass_to_pass_and_not_as_in_sft(tokenizer, views):
    examples = [training_example(tokenizer, conversation(d + ENDINGS[0], ANSWERS[d]), 512) for d in DISEASES]
    noisy = RowViews(tokenizer, examples, ViewArguments(question_noise=0.3, later_turns=0.0), 512, 1)
    questions = QuestionViews(noisy)
    shown = [[tuple(questions.view(i, number)["input_ids"]) for i in range(len(questions))] for number in (0, 1)]
    in_sft = []
    for i in range(len(questions)):
        ids, labels = noisy.view(i, 0).values()
        in_sft.append(tuple(id_ for id_, label in zip(ids, labels, strict=True) if label == IGNORE))
    assert shown[0] != shown[1] and in_sft not in shown


def test_matching_brings_wordings_of_one_answer_together(views, random_gpt2, training):
    model = random_gpt2(positions=512, initializer_range=0.02)
    keys, questions = set(model.state_dict()), QuestionViews(views)
    batch = collate([questions.view(i, 0) for i in range(3 * len(DISEASES))])  # without the conversation
    _, end, number = batch["labels"][:, 0].unbind(-1)

    @torch.no_grad()
    def nearest_is_the_same_answer() -> float:
        """Return the share of the questions whose nearest other question has the same answer."""
        hidden = model.base_model(batch["input_ids"]).last_hidden_state
        last = hidden[torch.arange(len(hidden)), end - 1]
        distances = torch.cdist(last, last).fill_diagonal_(torch.inf)
        return (number[distances.argmin(1)] == number).float().mean().item()

    before = nearest_is_the_same_answer()
    match(model, views, training, 100)
    assert nearest_is_the_same_answer() > max(0.9, before)
    assert set(model.state_dict()) == keys, "nothing is left of the layer"


def test_the_kl_term_holds_the_predictions_on_text(views, tokenizer, random_gpt2, training):
    start = random_gpt2(positions=512, initializer_range=0.02)
    text = PackedBlocks(tokenizer, ["高血压患者要少盐少油，多吃蔬菜。" * 20], block_tokens=64)
    held = Retention(copy.deepcopy(start), text, weight=0.1)
    moved = []
    for retention in (None, held):
        model = copy.deepcopy(start)
        match(model, views, training, 20, retention)
        moved.append(held.loss(model).item())
    assert 0 < moved[1] < moved[0] / 2


def test_padding_changes_no_prediction(views, random_gpt2):
    questions = QuestionViews(views)
    rows = [questions.view(i, 0) for i in range(len(questions))]
    classifier = AnswerClassifier(random_gpt2(positions=512), questions.distinct).eval()
    with torch.no_grad():
        together = classifier(**collate(rows))["logits"]
        alone = torch.cat([classifier(**collate([row]))["logits"] for row in rows])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_the_second_layer_sees_the_words_of_its_row_in_any_order_and_no_others(random_gpt2):
    classifier = AnswerClassifier(random_gpt2(positions=512), 3).eval()
    classifier.from_hidden.data.zero_()

    @torch.no_grad()
    def loss(*ids: int) -> float:
        return classifier(torch.tensor([ids]), torch.tensor([[[2, 5, 1]]]))["loss"].item()

    assert loss(5, 6, 7, 8, 9) == pytest.approx(loss(11, 12, 8, 9, 7), abs=1e-5)
    assert loss(5, 6, 7, 8, 9) != pytest.approx(loss(5, 6, 7, 8, 10), abs=1e-3)


def test_no_passes_and_no_choice_leave_the_model_as_it_is(views, tokenizer, random_gpt2, training):
    model = random_gpt2(positions=512)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    example = training_example(tokenizer, conversation("头痛怎么办？", "多休息。"), 512)
    match(model, views, training, 0)
    match(model, RowViews(tokenizer, [example], ViewArguments(), 512, 1), training, 3)
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())


def test_a_dry_run_prints_the_time_and_stops(views, random_gpt2, training, capsys):
    match(random_gpt2(positions=512), views, training, 100, dry_run=True)
    printed = capsys.readouterr().out
    assert "Time left: about" in printed and "loss" not in printed


def test_matching_arguments_refuse_a_number_below_zero():
    with pytest.raises(UserError, match="--matching_passes -1"):
        MatchingArguments(-1)


@pytest.mark.parametrize(
    "option", [{"later_turns": 0.9}, {"matching_passes": -1.0}, {"retention_temperature": 0.0}], ids=lambda o: [*o][0]
)
def test_sft_checks_the_options_of_all_its_parts(option):
    with pytest.raises(UserError, match=f"--{[*option][0]}"):
        sft_train.DataArguments(**option)
