"""Distillation of attention scores before the softmax."""

import pytest
import torch
import transformers
from torch.optim import AdamW

from nxmiformer.layers.mode import evaluating
from nxmiformer.methods.dense import Dense
from nxmiformer.train.attention import keeping_scores
from nxmiformer.train.objective import Objective
from nxmiformer.train.recipe import Phase, check_distillation

SIZES = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def bert(attention="sdpa"):
    config = transformers.BertConfig(**SIZES, **DROPOUT, attn_implementation=attention)
    return transformers.BertForSequenceClassification(config)


def gpt2():
    sizes = {"n_embd": 8, "n_layer": 2, "n_head": 2, "vocab_size": 20, "pad_token_id": 0, "n_positions": 16}
    return transformers.GPT2ForSequenceClassification(transformers.GPT2Config(**sizes))


def mpnet():
    return transformers.MPNetForSequenceClassification(transformers.MPNetConfig(**SIZES))


def bart():
    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = transformers.BartConfig(vocab_size=20, d_model=8, **layers, **heads, eos_token_id=2)
    return transformers.BartForSequenceClassification(config)


def checkpointed():
    model = bert()
    model.activation_checkpointing_enable()
    return model


def seeded(make, seed, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make(**options).train()


def batch():
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
    ids = torch.arange(15).view(3, 5) + 3
    ids[mask == 0] = 0
    ids[:, -1] = torch.where(mask[:, -1] == 1, 2, ids[:, -1])
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 1, 1])}


def products(model, given):
    """The scores of a BERT's layers, (batch, heads, queries, keys), of what its linear layers give."""
    found, hooks = [], []
    for layer in model.bert.encoder.layer:
        for linear in (layer.attention.self.query, layer.attention.self.key):
            hooks.append(linear.register_forward_hook(lambda *args: found.append(args[2].unflatten(-1, (2, 4)))))
    model(**given)
    for hook in hooks:
        hook.remove()
    return [torch.einsum("bqhd,bkhd->bhqk", q, k) / 2 for q, k in zip(found[::2], found[1::2], strict=True)]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_error_is_the_mean_over_layers_of_that_of_products_of_real_queries_and_keys(attention):
    student, teacher = (seeded(bert, seed, attention=attention) for seed in range(2))
    given = batch()
    expected = []
    for s, t in zip(products(student, given), products(teacher, given), strict=True):
        pairs = [
            (s[text, head, query, key] - t[text, head, query, key]).square()
            for text, length in enumerate(given["attention_mask"].sum(1).tolist())
            for head in range(2)
            for query in range(length)
            for key in range(length)
        ]
        expected.append(torch.stack(pairs).mean())
    found = Objective(task=0.0, attention=3.0)(student, teacher, given)
    torch.testing.assert_close(found, 3 * torch.stack(expected).mean())
    found.backward()
    last = student.bert.encoder.layer[1].attention.self
    assert last.query.weight.grad.any()
    assert last.key.weight.grad.any()
    assert not any(p.grad is not None and p.grad.any() for p in last.value.parameters())
    assert not any(p.grad is not None for p in teacher.parameters())


@pytest.mark.parametrize("make", [bert, gpt2])
def test_a_model_computes_the_same_while_its_scores_are_kept_and_is_left_as_it_was(make):
    model, given = seeded(make, 0), batch()
    with evaluating(model), torch.no_grad():
        before = model.config._attn_implementation
        own = model(**given).logits
        with keeping_scores(model) as scores:
            assert torch.equal(model(**given).logits, own)
        assert len(scores) == 2
        assert model.config._attn_implementation == before
        assert torch.equal(model(**given).logits, own)
        assert len(scores) == 2
        assert Objective(task=0.0, attention=1.0)(model, model, given).item() == 0.0


def test_of_a_causal_model_what_a_query_does_not_see_does_not_count():
    model = seeded(gpt2, 0)
    with torch.no_grad(), keeping_scores(model) as scores:
        model(**batch())
    assert all(not each.triu(1).any() and each.tril(-1).any() for each in scores)


def mistral():
    sizes = {**SIZES, "num_key_value_heads": 1, "head_dim": 4, "sliding_window": 2, "pad_token_id": 0}
    return transformers.MistralForSequenceClassification(transformers.MistralConfig(**sizes))


def t5():
    sizes = {"vocab_size": 20, "d_model": 8, "d_kv": 4, "num_heads": 2, "num_layers": 2, "d_ff": 16}
    return transformers.T5EncoderModel(transformers.T5Config(**sizes))


def attention(scores, tokens):
    """The softmax of scores over the keys that a query sees, by their being 0 where it does not; of real tokens."""
    return torch.where(scores == 0, -torch.inf, scores).softmax(-1)[tokens.bool()[:, None, :].expand(scores.shape[:3])]


@pytest.mark.parametrize("make", [bert, gpt2, mistral, t5])
def test_the_softmax_of_the_scores_is_the_attention_that_the_model_has(make):
    model, given = seeded(make, 0).eval(), {name: each for name, each in batch().items() if name != "labels"}
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model(**given, output_attentions=True).attentions
        model.set_attn_implementation("sdpa")
        with keeping_scores(model) as scores:
            model(**given)
    real = given["attention_mask"]
    for ours, theirs in zip(scores, expected, strict=True):
        found = attention(ours, real)
        torch.testing.assert_close(found, theirs[real.bool()[:, None, :].expand(theirs.shape[:3])], rtol=0, atol=1e-5)


def test_a_model_of_several_gets_back_the_attention_of_each():
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text, image = {**sizes, "vocab_size": 20}, {**sizes, "image_size": 8, "patch_size": 4}
    model = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=image))
    configs = model.config, model.config.text_config, model.config.vision_config
    model.config.text_config._attn_implementation = "eager"
    before = [each._attn_implementation for each in configs]
    assert len(set(before)) > 1
    with pytest.raises(KeyError), keeping_scores(model):
        raise KeyError
    assert [each._attn_implementation for each in configs] == before


def test_the_error_is_added_to_the_other_parts():
    models, given = [seeded(bert, seed) for seed in range(2)], batch()
    parts = [Objective(1.0), Objective(0.0, logits=1.0), Objective(0.0, hidden=1.0), Objective(0.0, attention=1.0)]
    task, logits, hidden, attention = (part(*models, given).item() for part in parts)
    whole = Objective(0.5, logits=2.0, hidden=3.0, attention=4.0)(*models, given)
    assert whole.item() == pytest.approx(0.5 * task + 2 * logits + 3 * hidden + 4 * attention, rel=1e-5)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (mpnet, "2 of the 2 layers of a MPNetForSequenceClassification compute their attention by code of their own"),
        (bart, "a BartForSequenceClassification has an encoder and a decoder"),
        (checkpointed, "gradient checkpointing computes attentions again"),
    ],
)
def test_a_model_whose_scores_cannot_be_had_is_refused_by_name_with_what_to_do(make, told):
    phases = {"kronecker": Phase(Dense(), AdamW, Objective(attention=1.0))}
    with pytest.raises(ValueError, match=rf"phase kronecker is to distil attention scores, but {told}.*attention=0 "):
        check_distillation(phases, seeded(make, 0), batch())


@pytest.mark.parametrize("make", [bert, gpt2])
def test_a_model_whose_scores_can_be_had_is_taken(make):
    check_distillation({"a": Phase(Dense(), AdamW, Objective(attention=1.0))}, seeded(make, 0), batch())


def test_scores_of_another_shape_than_the_teachers_are_told():
    with pytest.raises(ValueError, match=r"scores are \[\(3, 2, 5, 5\), \(3, 2, 5, 5\)\], and the teacher's \[\]"):
        Objective(attention=1.0)(seeded(bert, 0), seeded(mpnet, 1), batch())
