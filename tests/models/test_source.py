"""The whole path from a checkpoint to a compressed model, for the encoders that `transformers` has."""

from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.optim import AdamW

from nxmiformer.applied.convert import convert, verify
from nxmiformer.layers.found import compressed_layers
from nxmiformer.layers.inputs import Activations
from nxmiformer.layers.targets import find_targets
from nxmiformer.methods.admm import Admm
from nxmiformer.methods.base import Length
from nxmiformer.models.source import Embedded, Pretrained
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.sets import NM, Grid, Then
from nxmiformer.tasks.grammar import Grammar
from nxmiformer.tasks.labelled import LabelledTexts

MINILM = Path(__file__).parents[2].parent / "shared" / "models" / "all-MiniLM-L6-v2"
JOINT = Then(NM(2, 4), Grid(4))


class Made(LabelledTexts):
    """As much of a task as a model depends on."""

    def __init__(self, *labels):
        self.name, self.columns, self.labels, self.metric = "made", ("text",), labels, "accuracy"

    def splits(self):
        raise NotImplementedError

    def score(self, answers, truths):
        raise NotImplementedError


THREE = Made("no", "maybe", "yes")


def bert():
    return transformers.BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )


def roberta():
    return transformers.RobertaConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )


def distilbert():
    return transformers.DistilBertConfig(vocab_size=20, dim=16, n_layers=2, n_heads=2, hidden_dim=32)


CONFIGS = {"bert": bert, "roberta": roberta, "distilbert": distilbert}


def save(name, directory, **options):
    """A checkpoint of a randomly drawn encoder without a head, and a tokenizer."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = transformers.AutoModel.from_config(CONFIGS[name](), **options)
    model.save_pretrained(directory)
    words = {f"w{i}": i for i in range(20)}
    core = Tokenizer(models.WordLevel(words, unk_token="w1"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=core, pad_token="w0").save_pretrained(directory)
    return model


def compress(source, task, vocabulary, blocks):
    """Find the targets, plan, convert, train two steps of ADMM, and finalize."""
    model = source.model(task, source.tokenizer(task), seed=0).train()
    assert model.dtype == torch.float32
    targets = find_targets(model)
    assert len(targets.layers) == 6 * blocks  # four of the attention, two of the feed-forward part
    plan = CompressionPlan.uniform(model, targets, JOINT, Activations())
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(2, vocabulary, (4, 8), generator=generator)
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    labels = torch.arange(4) % task.outputs if task.labels else torch.rand(4, generator=generator)
    convert(model, plan, batch)
    before = {name: layer.weight.detach().clone() for name, layer in compressed_layers(model).items()}
    method = Admm(interval=1)
    method.attach(model, Length(2, 2))
    optimizer = method.optimizer(AdamW([p for _, p in method.parameters()], lr=1e-3))
    for step in range(2):
        method.before_step(step)
        optimizer.zero_grad()
        outputs = model(**batch, labels=labels)
        outputs.loss.backward()
        assert outputs.logits.shape == (4, task.outputs)
        method.before_clip()
        optimizer.step()
    method.finalize()
    verify(model, plan)
    after = {name: layer.weight.detach() for name, layer in compressed_layers(model).items()}
    assert all(not torch.equal(after[name], before[name]) for name in before)
    assert all((w != 0).float().mean() <= 0.5 for w in after.values())
    return model


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("task", [THREE, Made()], ids=["classes", "regression"])
def test_a_checkpoint_is_loaded_compressed_and_ends_in_its_sets(name, task, tmp_path):
    save(name, tmp_path)
    compress(Pretrained(str(tmp_path)), task, vocabulary=20, blocks=2)


@pytest.mark.skipif(not MINILM.is_dir(), reason="the MiniLM checkpoint is not beside the repository")
def test_a_real_checkpoint_is_loaded_compressed_and_ends_in_its_sets():
    source = Pretrained(str(MINILM))
    assert source.name == "all-MiniLM-L6-v2"
    model = compress(source, THREE, vocabulary=30_000, blocks=6)
    encoded = source.tokenizer(THREE)(["a pair", "of texts"], ["and another", "one"], padding=True, return_tensors="pt")
    assert model.eval()(**encoded).logits.isfinite().all()


@pytest.mark.parametrize("name", CONFIGS)
def test_the_encoder_is_the_checkpoints_and_the_head_depends_on_the_seed_alone(name, tmp_path):
    saved = save(name, tmp_path)
    source = Pretrained(str(tmp_path))
    tokenizer = source.tokenizer(THREE)
    torch.manual_seed(8)
    one, same, other = (source.model(THREE, tokenizer, seed).state_dict() for seed in (0, 0, 1))
    prefix = f"{name}."
    heads = {key for key in one if not key.startswith(prefix)}
    assert heads
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in heads)
    for key, tensor in saved.state_dict().items():
        assert "pooler" in key or torch.equal(one[prefix + key], tensor)


def test_a_half_precision_checkpoint_is_loaded_as_float32(tmp_path):
    save("bert", tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in Pretrained(str(tmp_path)).model(THREE, None, 0).parameters()} == {torch.float32}


def test_a_head_of_another_number_of_outputs_is_drawn_anew_and_named_after_the_task(tmp_path):
    save("bert", tmp_path / "encoder")
    first = Pretrained(str(tmp_path / "encoder")).model(THREE, None, 0)
    first.save_pretrained(tmp_path / "three")
    again = Pretrained(str(tmp_path / "three")).model(THREE, None, 1)
    assert torch.equal(again.classifier.weight, first.classifier.weight)
    two = Pretrained(str(tmp_path / "three")).model(Made("no", "yes"), None, 0)
    assert two.classifier.weight.shape == (2, 16)
    assert two.config.id2label == {0: "no", 1: "yes"}
    assert two.config.label2id == {"no": 0, "yes": 1}
    assert two.config.problem_type == "single_label_classification"
    one = Pretrained(str(tmp_path / "three")).model(Made(), None, 0)
    assert one.classifier.weight.shape == (1, 16)
    assert one.config.problem_type == "regression"


def test_a_directory_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"model\.path=\./nowhere: there is no such directory"):
        Pretrained("./nowhere")


def test_the_embedded_model_is_compressed_too_and_knows_its_own_task_alone():
    source = Embedded(hidden=16, layers=2, heads=2, intermediate=32)
    task = Grammar(train=12, holdout=12, validation=12)
    model = compress(source, task, vocabulary=50, blocks=2)
    assert model.config.id2label == {0: "entailment", 1: "not_entailment"}
    with pytest.raises(ValueError, match="knows the words of task=grammar only, not those of 'made'"):
        source.tokenizer(THREE)


def test_a_tokenizer_that_needs_sentencepiece_names_the_extra_that_has_it(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.utils.import_utils.is_sentencepiece_available", lambda: False)
    for name, text in {
        "config.json": '{"model_type": "marian"}',
        "tokenizer_config.json": '{"tokenizer_class": "MarianTokenizer"}',
        "vocab.json": "{}",
        "source.spm": "",
        "target.spm": "",
    }.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=r"needs sentencepiece: pip install 'nxmiformer\[translation\]'"):
        Pretrained(str(tmp_path)).tokenizer(None)
