"""Targets: which tokens are predicted, how many there are, and the part of a micro-batch in the whole batch."""

import pytest
import torch
from tiny import make_model, random_ids
from torch import nn

from hf_gpt import GPTForMultipleChoice, GPTForSequenceClassification, GPTForTokenClassification
from hf_gpt.model.targets import IGNORED, Targets, next_token_targets

LABELS = torch.tensor([[3, 7, 7, 2], [5, 1, 4, 6]])
STATES = torch.zeros(2, 4, 8)
NUMBERS = [None, 9, torch.tensor(9)]


def some_labels(ignore_index):
    labels = LABELS.clone()
    labels[0, 2] = labels[1, 0] = labels[1, 3] = ignore_index
    return labels


@pytest.mark.parametrize("ignore_index", [IGNORED, -1, 0, 7])
def test_the_next_label_is_the_target(ignore_index):
    labels = some_labels(ignore_index)
    targets = next_token_targets(labels, STATES, ignore_index=ignore_index)
    expected = [[*row[1:], ignore_index] for row in labels.tolist()]
    expected = [IGNORED if label == ignore_index else label for row in expected for label in row]
    assert targets.ids.tolist() == expected
    assert targets.is_target.tolist() == [label != IGNORED for label in expected]
    assert targets.count == sum(label != IGNORED for label in expected)


def test_other_labels_are_not_ignored():
    assert next_token_targets(LABELS, STATES, ignore_index=-1).count == 6
    assert next_token_targets(some_labels(IGNORED), STATES).count == 4


@pytest.mark.parametrize("ignore_index", [IGNORED, -1])
def test_shifted_labels_are_the_targets(ignore_index):
    shifted = some_labels(ignore_index)
    targets = next_token_targets(None, STATES, shift_labels=shifted, ignore_index=ignore_index, other=1)
    assert targets.ids.tolist() == some_labels(IGNORED).flatten().tolist()
    assert targets.count == 5


def test_labels_are_not_changed():
    labels = some_labels(-1)
    next_token_targets(labels, STATES, ignore_index=-1)
    next_token_targets(None, STATES, shift_labels=labels, ignore_index=-1)
    assert torch.equal(labels, some_labels(-1))


@pytest.mark.parametrize("number", NUMBERS, ids=str)
def test_a_mean_becomes_its_part_of_the_whole_batch(number):
    targets = next_token_targets(some_labels(IGNORED), STATES, num_items_in_batch=number)
    losses = torch.rand(8, generator=torch.Generator().manual_seed(0)) * targets.is_target
    divisor = 4 if number is None else 9
    assert targets.divisor == divisor
    assert torch.allclose(targets.per_item(losses.sum() / 4), losses.sum() / divisor)


@pytest.mark.parametrize("labels", [torch.tensor([0, 2]), torch.tensor([0.5, -1.0]), torch.eye(2)], ids=str)
def test_targets_of_a_task_head(labels):
    """Classes, numbers, or zeros and ones: each is a target."""
    assert Targets(labels).count == labels.numel()


@pytest.mark.parametrize(("number", "part"), [(None, 1.0), (5, 1.0), (20, 0.25)])
@pytest.mark.parametrize("shifts", [False, True])
def test_loss_and_balance_agree_on_the_targets(shifts, number, part):
    """Any `ignore_index` gives the same loss, and the same part of the balancing loss."""
    model, ids = make_model("mixtral", router_aux_loss_coef=1.0).train(), random_ids(1, 12, high=98)
    outputs = []
    for ignore_index in (IGNORED, -1, 98):
        labels = ids.clone()
        labels[:, 6:] = ignore_index
        options = {"shift_labels": nn.functional.pad(labels[:, 1:], (0, 1), value=ignore_index)} if shifts else {}
        outputs.append(model(ids, labels=labels, ignore_index=ignore_index, num_items_in_batch=number, **options))
    for output in outputs:
        assert torch.allclose(output.lm_loss, outputs[0].lm_loss, rtol=1e-6)
        assert torch.allclose(output.loss - output.lm_loss, part * output.aux_loss, rtol=1e-5)


@pytest.mark.parametrize("shape", [(2, 9), (1, 11), (2, 13), (3, 11), (22,), (11, 2), (2, 11, 1)], ids=str)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("variant", ["default", "llama", "mixtral", "strided"])
def test_labels_of_another_shape_raise(variant, training, shape):
    model, ids = make_model(variant).train(training), random_ids(2, 11)
    labels = random_ids(*shape)
    with pytest.raises(ValueError, match=rf"^labels of shape .*{shape[0]}.*: expected \(2, 11\)"):
        model(ids, labels=labels)
    with pytest.raises(ValueError, match=r"^shift_labels of shape .*: expected \(2, 11\)"):
        model(ids, labels=ids, shift_labels=labels)


def test_a_soft_prompt_needs_labels():
    model, ids = make_model().train(), random_ids(2, 11)
    embeds = torch.cat((torch.randn(2, 4, 32), model.get_input_embeddings()(ids)), dim=1)
    with pytest.raises(ValueError, match=r"labels of shape \(2, 11\): expected \(2, 15\)"):
        model(inputs_embeds=embeds, labels=ids)
    labels = nn.functional.pad(ids, (4, 0), value=IGNORED)
    expected = model(inputs_embeds=embeds, labels=labels, skip_logits=False)
    logits = expected.logits[:, 3:-1].flatten(0, 1)
    assert torch.allclose(expected.loss, nn.functional.cross_entropy(logits, ids.flatten()))
    assert torch.allclose(model(inputs_embeds=embeds, labels=labels).loss, expected.loss)


@pytest.mark.parametrize("shape", [(1, 22), (22,), (2, 9), (11, 2)], ids=str)
def test_labels_of_token_classification_raise(shape):
    model = make_model(model_class=GPTForTokenClassification, num_labels=3)
    with pytest.raises(ValueError, match=r"labels of shape .*: expected \(2, 11\)"):
        model(random_ids(2, 11), labels=random_ids(*shape, low=0, high=3))


@pytest.mark.parametrize("problem_type", ["regression", "multi_label_classification", "single_label_classification"])
@pytest.mark.parametrize("rows", [1, 3])
def test_labels_of_sequence_classification_raise(problem_type, rows):
    """One row of labels would be broadcast."""
    model = make_model(
        model_class=GPTForSequenceClassification, num_labels=3, problem_type=problem_type, pad_token_id=0
    )
    labels = torch.zeros(rows, dtype=torch.long) if problem_type.startswith("single") else torch.rand(rows, 3)
    with pytest.raises(ValueError, match=rf"labels of shape .*{rows}.*: expected 2 rows"):
        model(random_ids(2, 11), labels=labels)


@pytest.mark.parametrize("problem_type", ["regression", "multi_label_classification"])
@pytest.mark.parametrize("shape", [(2,), (2, 1), (2, 2)], ids=str)
def test_numbers_of_another_shape_raise(problem_type, shape):
    """One number for each row would be broadcast."""
    model = make_model(
        model_class=GPTForSequenceClassification, num_labels=3, problem_type=problem_type, pad_token_id=0
    )
    with pytest.raises(ValueError, match=r"labels of shape \(2.*: expected \(2, 3\)"):
        model(random_ids(2, 11), labels=torch.rand(*shape))


@pytest.mark.parametrize("rows", [1, 4])
def test_labels_of_multiple_choice_raise(rows):
    """The choices of two rows would be those of one."""
    model = make_model(model_class=GPTForMultipleChoice, pad_token_id=0)
    with pytest.raises(ValueError, match=rf"labels of shape \({rows},\): expected 2 rows"):
        model(random_ids(2, 2, 11), labels=torch.ones(rows, dtype=torch.long))


@pytest.mark.parametrize("name", ["labels", "shift_labels"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("variant", ["default", "llama", "mixtral", "strided"])
def test_labels_of_other_dtypes(variant, training, name):
    model, ids = make_model(variant).train(training), random_ids(2, 11)
    expected = model(ids, **{"labels": ids, name: ids}).loss
    for dtype in (torch.int32, torch.int16, torch.int8, torch.uint8):
        assert torch.equal(model(ids, **{"labels": ids, name: ids.to(dtype)}).loss, expected)
    for dtype in (torch.float32, torch.bool):
        with pytest.raises(ValueError, match=f"^{name} of {dtype}: expected integers"):
            model(ids, **{"labels": ids, name: ids.to(dtype)})


def test_another_ignore_index_does_not_ignore_the_default():
    labels = some_labels(IGNORED)
    with pytest.raises(ValueError, match="labels contain -100: expected token ids, or ignore_index=-1"):
        next_token_targets(labels, STATES, ignore_index=-1)


@pytest.mark.parametrize("ignore_index", [IGNORED, -1])
def test_micro_batches_add_up_to_one_batch(ignore_index):
    """They have different numbers of targets."""
    model, ids = make_model("mixtral", router_aux_loss_coef=0.0).train(), random_ids(3, 8)
    labels = ids.clone()
    labels[0, 5:] = labels[1, :3] = ignore_index
    count = (labels[:, 1:] != ignore_index).sum()
    whole = model(ids, labels=labels, ignore_index=ignore_index).loss
    parts = [
        model(row[None], labels=target[None], ignore_index=ignore_index, num_items_in_batch=count).loss
        for row, target in zip(ids, labels, strict=True)
    ]
    assert torch.allclose(sum(parts), whole, rtol=1e-5)


def test_a_micro_batch_without_targets_adds_nothing_to_the_batch():
    mean = torch.tensor(float("nan"), requires_grad=True)
    part = Targets(torch.full((5,), IGNORED), num_items_in_batch=7).per_item(mean)
    part.backward()
    assert part == 0
    assert mean.grad == 0
