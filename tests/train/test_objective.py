from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers

from nxmiformer.train.objective import Objective


class Fixed(torch.nn.Module):
    """Gives what it was told, whatever it is asked, and keeps what it was asked."""

    def __init__(self, logits, hidden=(), loss=0.0):
        super().__init__()
        self.outputs = SimpleNamespace(logits=logits, hidden_states=hidden, loss=torch.tensor(loss))

    def forward(self, **asked):
        self.asked, self.gradients = asked, torch.is_grad_enabled()
        return self.outputs


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def batch(tokens=4):
    attention = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]])[:, :tokens]
    return {"input_ids": torch.ones_like(attention), "attention_mask": attention, "labels": torch.tensor([0, 1, 1])}


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_the_tasks_loss_is_the_models_own_times_its_weight():
    model = Fixed(draw(3, 2), loss=1.5)
    assert Objective(task=0.5)(model, None, batch()).item() == 0.75
    assert model.asked["labels"].tolist() == [0, 1, 1]
    assert not model.asked["output_hidden_states"]
    assert not Objective().distils


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_distillation_of_logits_is_t_squared_times_the_divergence_from_the_teacher_at_t(temperature):
    student, teacher = draw(3, 4), draw(3, 4, seed=1)
    p, q = (softmax(x.double().numpy() / temperature) for x in (teacher, student))
    expected = temperature**2 * (p * np.log(p / q)).sum() / 3
    objective = Objective(task=0.0, logits=0.7, temperature=temperature)
    assert objective.distils
    assert objective(Fixed(student), Fixed(teacher), batch()).item() == pytest.approx(0.7 * expected, rel=1e-5)


def test_distillation_of_a_regression_is_the_mean_squared_error():
    student, teacher = draw(3, 1), draw(3, 1, seed=1)
    expected = ((student - teacher).numpy() ** 2).mean()
    found = Objective(task=0.0, logits=2.0)(Fixed(student), Fixed(teacher), batch())
    assert found.item() == pytest.approx(2 * expected)


def test_distillation_of_hidden_states_is_the_mean_over_layers_and_real_tokens():
    student, teacher = ([draw(3, 4, 5, seed=10 * who + i) for i in range(3)] for who in (1, 2))
    real = batch()["attention_mask"].numpy().astype(bool)
    expected = np.mean([((s - t).numpy()[real] ** 2).mean() for s, t in zip(student, teacher, strict=True)])
    padding = torch.tensor(~real)
    for s in student:
        s[padding] = 1e6  # what stands at the padding does not count
    model = Fixed(draw(3, 2), tuple(student))
    found = Objective(task=0.0, hidden=3.0)(model, Fixed(draw(3, 2), tuple(teacher)), batch())
    assert found.item() == pytest.approx(3 * expected, rel=1e-5)
    assert model.asked["output_hidden_states"]


def test_the_parts_add_up_with_their_weights():
    student, teacher = Fixed(draw(3, 2), (draw(3, 4, 5),), 2.0), Fixed(draw(3, 2, seed=1), (draw(3, 4, 5, seed=1),))
    parts = [Objective(1.0), Objective(0.0, logits=1.0), Objective(0.0, hidden=1.0)]
    task, logits, hidden = (part(student, teacher, batch()).item() for part in parts)
    whole = Objective(0.5, logits=2.0, hidden=3.0)(student, teacher, batch())
    assert whole.item() == pytest.approx(0.5 * task + 2 * logits + 3 * hidden, rel=1e-6)


def test_the_teacher_sees_no_labels_and_keeps_no_graph():
    teacher = Fixed(draw(3, 2))
    Objective(logits=1.0)(Fixed(draw(3, 2)), teacher, batch())
    assert set(teacher.asked) == {"input_ids", "attention_mask", "output_hidden_states"}
    assert not teacher.gradients


def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it():
    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.BertForSequenceClassification(config)
    loss = Objective(task=0.0, logits=1.0, hidden=1.0)(model, model, batch())
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert all(p.grad.abs().max() < 1e-5 for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("weights", [{"task": 0.0}, {"task": -1.0}, {"logits": -0.1}, {"task": float("nan")}])
def test_weights_that_minimise_nothing_are_refused(weights):
    with pytest.raises(ValueError, match="the weights of an objective are >= 0 and not all zero"):
        Objective(**weights)


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature must be positive"):
        Objective(logits=1.0, temperature=temperature)
