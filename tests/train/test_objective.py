from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from torch.optim import AdamW
from transformers.modeling_outputs import SequenceClassifierOutput

from nxmiformer.methods.dense import Dense
from nxmiformer.train.hidden import hidden_error
from nxmiformer.train.objective import Objective
from nxmiformer.train.recipe import Phase, check_distillation


class Fixed(torch.nn.Module):
    """Gives what it was told, whatever it is asked, and keeps what it was asked."""

    def __init__(self, logits, hidden=(), loss=0.0):
        super().__init__()
        self.outputs = SequenceClassifierOutput(logits=logits, hidden_states=hidden, loss=torch.tensor(loss))

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


SMALL = {"vocab_size": 20, "num_labels": 3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
DEEP = {"d_model": 8, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
HEADS = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_start_token_id": 2}


def bart(**options):
    config = transformers.BartConfig(**SMALL, **DEEP, **HEADS, max_position_embeddings=20, dropout=0.0, **options)
    return transformers.BartForSequenceClassification(config)


def t5():
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}
    return transformers.T5ForSequenceClassification(transformers.T5Config(**SMALL, **sizes, dropout_rate=0.0))


def funnel():
    sizes = {"block_sizes": [1, 1], "d_model": 8, "n_head": 2, "d_head": 4, "d_inner": 16, "hidden_dropout": 0.0}
    return transformers.FunnelForSequenceClassification(transformers.FunnelConfig(**SMALL, **sizes))


def swin():
    sizes = {"image_size": 16, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2}
    return transformers.SwinForImageClassification(transformers.SwinConfig(**sizes, num_labels=3))


def words():
    ids = torch.tensor([[5, 6, 7, 8, 9, 2, 0, 0], [9, 8, 7, 6, 5, 4, 3, 2]])
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": torch.tensor([0, 1])}


def pictures():
    return {"pixel_values": draw(2, 3, 16, 16), "labels": torch.tensor([0, 1])}


def seeded(make, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make().eval()


def states(model, batch):
    outputs = model(**batch, output_hidden_states=True)
    names = ("hidden_states", "encoder_hidden_states", "decoder_hidden_states")
    return [state.detach() for name in names for state in getattr(outputs, name, None) or ()]


@pytest.mark.parametrize(
    ("make", "batch", "count"),
    [(bart, words, 6), (t5, words, 6), (funnel, words, 3), (swin, pictures, 3)],
)
def test_states_of_encoders_decoders_and_poolers_are_compared_one_by_one(make, batch, count):
    student, teacher, given = seeded(make, 0), seeded(make, 1), batch()
    errors = []
    for s, t in zip(states(student, given), states(teacher, given), strict=True):
        square = (s - t).square()
        tokens = given.get("attention_mask")
        of_tokens = tokens is not None and tokens.shape == s.shape[:2]
        errors.append((square[tokens.bool()] if of_tokens else square).mean())
    assert len(errors) == count
    found = Objective(task=0.0, hidden=1.0)(student, teacher, given)
    torch.testing.assert_close(found, torch.stack(errors).mean())
    found.backward()


@pytest.mark.parametrize("mask", [False, True])
def test_of_a_decoder_that_is_given_a_text_of_its_own_the_padding_of_that_text_is_left_out(mask):
    """It is as long as the text that the encoder reads, which is padded elsewhere."""
    given, first, second = words(), draw(2, 8, 5), draw(2, 8, 5, seed=1)
    outputs = [transformers.utils.ModelOutput(decoder_hidden_states=(states,)) for states in (first, second)]
    real = torch.tensor([[1, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0, 0]])
    given |= {"decoder_input_ids": given["input_ids"]}
    given |= {"decoder_attention_mask": real} if mask else {"labels": torch.where(real == 1, 7, -100)}
    expected = (first - second).square()[real.bool()].mean()
    torch.testing.assert_close(hidden_error(*outputs, given), expected)


def test_states_that_differ_in_number_or_shape_are_told_not_paired():
    with pytest.raises(ValueError, match=r"hidden states are \[\(3, 4, 5\)\], and the teacher's \[\(3, 4, 6\)\]"):
        Objective(hidden=1.0)(Fixed(draw(3, 2), (draw(3, 4, 5),)), Fixed(draw(3, 2), (draw(3, 4, 6),)), batch())
    with pytest.raises(ValueError, match="the model gives no hidden states"):
        Objective(hidden=1.0)(Fixed(draw(3, 2), None), Fixed(draw(3, 2), None), batch())


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


@pytest.mark.parametrize("weights", [{"task": 0.0}, {"task": -1.0}, {"logits": -0.1}])
def test_weights_that_minimise_nothing_are_refused(weights):
    with pytest.raises(ValueError, match="the weights of an objective are >= 0 and not all zero"):
        Objective(**weights)


def test_a_weight_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="Objective needs task to be a finite number, not nan"):
        Objective(task=float("nan"))


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature must be positive"):
        Objective(logits=1.0, temperature=temperature)


def phase(dropout=False, **objective):
    return Phase(Dense(), AdamW, Objective(**objective), dropout=dropout)


@pytest.mark.parametrize("chance", range(3))
def test_a_model_that_skips_layers_at_random_is_refused_with_the_remedy_whatever_chance_says(chance):
    model, given = seeded(lambda: bart(encoder_layerdrop=0.5), 0).train(), words()
    torch.manual_seed(chance)
    with pytest.raises(ValueError, match=r"encoder_layerdrop=0\.5\) unless recipe\.phases\.finish\.dropout=false"):
        check_distillation({"dense": phase(True), "finish": phase(True, hidden=1.0)}, model, given)
    check_distillation({"finish": phase(False, hidden=1.0)}, model, given)
    check_distillation({"finish": phase(True, logits=1.0)}, model, given)
    assert model.training


def test_a_model_without_hidden_states_is_refused_with_the_override():
    model = seeded(bart, 0)
    model.forward = lambda **batch: SimpleNamespace(logits=draw(2, 3), loss=torch.tensor(0.0))
    with pytest.raises(ValueError, match=r"no hidden states .* recipe\.phases\.admm\.objective\.hidden=0"):
        check_distillation({"admm": phase(hidden=1.0)}, model, words())
