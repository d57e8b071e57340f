import copy
import json
import shutil
import subprocess
import sys
import types
from pathlib import Path

import huggingface_hub
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny import (
    CARD,
    CONFIG,
    JOINT,
    MANIFEST,
    MODELS,
    NARROW,
    PLAN,
    WEIGHTS,
    WORDS,
    bert,
    compressed,
    contents,
    gpt2,
    logits,
    same_bits,
    seeded,
    tied,
)
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
)

from nxmiformer.applied.convert import convert
from nxmiformer.export import PackedConfig, PackedError, load_packed, save_packed
from nxmiformer.layers.found import compressed_layers
from nxmiformer.layers.inputs import Activations
from nxmiformer.layers.projection import project
from nxmiformer.plan.origin import Planning
from nxmiformer.sets import NM, Block, Grid, Then

PLANS = {
    "2:4+int4": JOINT,
    "densely coded": Then(NM(2, 4, "dense"), Grid(4)),
    "by group": Grid(4, 8),
    "not quantized": NM(2, 4),
    "blocks": Block(4, 4, 0.5),
}


def masked_lm():
    """Its decoder is its embedding, and has a bias that is one with its head's."""
    return transformers.BertForMaskedLM(transformers.BertConfig(**WORDS, **NARROW))


def whole(make, embeddings="int8"):
    """A model with its embeddings and head compressed too, and its plan."""
    model = seeded(make)
    plan = Planning("whole", JOINT, Activations(8), embeddings=embeddings, head="int4")(model)
    convert(model, plan)
    project(model)
    return model.eval(), plan


def ties(model):
    """The pairs of names that one tensor has."""
    state = model.state_dict(keep_vars=True)
    return {(a, b) for a in state for b in state if state[a] is state[b]}


def check_same(model, expected):
    """Every law of a model that is the expected one."""
    assert type(model) is type(expected)
    assert not any(module.training for module in model.modules())
    assert same_bits(logits(model), logits(expected))
    state, other = model.state_dict(), expected.state_dict()
    assert state.keys() == other.keys()
    assert all(same_bits(state[key], other[key]) for key in state)
    assert ties(model) == ties(expected)
    assert compressed_layers(model).keys() == compressed_layers(expected).keys()
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.is_contiguous() for parameter in model.parameters())


def check_read(model, plan, tmp_path):
    save_packed(model, plan, tmp_path / "packed")
    loaded = type(model).from_pretrained(tmp_path / "packed")
    check_same(loaded, model)
    check_same(loaded, load_packed(tmp_path / "packed"))
    save_packed(loaded, loaded.hf_quantizer.plan, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "packed")


@pytest.mark.parametrize("weight", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("make", MODELS)
def test_from_pretrained_gives_what_was_saved_bit_for_bit_and_saves_it_as_it_was(make, weight, tmp_path):
    check_read(*compressed(make, weight, Activations(8)), tmp_path)


@pytest.mark.parametrize("make", [*MODELS, masked_lm])
def test_embeddings_and_heads_that_are_packed_come_back_with_their_ties(make, tmp_path):
    check_read(*whole(make), tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_of_any_dtype_comes_back_in_it(dtype, tmp_path):
    check_read(*compressed(gpt2, activations=Activations(8, "ema"), dtype=dtype), tmp_path)


def test_ranges_of_activations_that_were_learned_come_back(tmp_path):
    model, plan = compressed(activations=Activations(4, "ema"))
    logits(model.train())
    check_read(model.eval(), plan, tmp_path)


@pytest.fixture
def saved(tmp_path):
    """A packed classifier."""
    save_packed(*compressed(bert, activations=Activations(8)), tmp_path / "packed")
    return tmp_path / "packed"


@pytest.mark.parametrize(("make", "auto"), [(bert, AutoModelForSequenceClassification), (tied, AutoModelForCausalLM)])
def test_the_auto_class_of_the_model_reads_it(make, auto, tmp_path):
    save_packed(*compressed(make), tmp_path / "packed")
    check_same(auto.from_pretrained(tmp_path / "packed"), load_packed(tmp_path / "packed"))


def test_an_auto_class_of_another_model_is_refused_and_the_right_one_named(saved):
    told = "is a packed BertForSequenceClassification, and was read as a BertForMaskedLM: .* as its backbone, BertModel"
    with pytest.raises(PackedError, match=told):
        AutoModelForMaskedLM.from_pretrained(saved)


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("make", [bert, gpt2])
def test_a_packed_classifier_is_read_as_its_backbone(make, lazy, tmp_path):
    model, plan = whole(make)
    save_packed(model, plan, tmp_path / "packed")
    config = AutoConfig.from_pretrained(tmp_path / "packed")
    config.quantization_config["lazy"] = lazy
    backbone = AutoModel.from_pretrained(tmp_path / "packed", config=config)
    expected = model.base_model
    ids = torch.arange(3, 9)[None]
    assert type(backbone) is type(expected)
    with torch.no_grad():
        states = [each.eval()(input_ids=ids).last_hidden_state for each in (backbone, expected)]
    assert same_bits(*states)
    backbone.save_pretrained(tmp_path / "again")
    with torch.no_grad():
        assert same_bits(load_packed(tmp_path / "again")(input_ids=ids).last_hidden_state, states[1])


@pytest.mark.parametrize("asked", [torch.float32, "float32", "auto", None])
def test_the_dtype_is_the_packed_models_unless_another_is_asked_for(asked, saved):
    check_same(AutoModelForSequenceClassification.from_pretrained(saved, dtype=asked), load_packed(saved))


@pytest.mark.parametrize("asked", [torch.bfloat16, torch.float16, "float64"])
def test_a_dtype_that_is_asked_for_is_that_of_the_packed_model_cast(asked, saved):
    dtype = getattr(torch, asked) if isinstance(asked, str) else asked
    loaded = AutoModelForSequenceClassification.from_pretrained(saved, dtype=asked)
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    check_same(loaded, load_packed(saved).to(dtype))


@pytest.mark.parametrize("device_map", ["cpu", {"": "cpu"}, torch.device("cpu")], ids=str)
def test_a_device_map_of_one_device_is_followed(device_map, saved):
    check_same(AutoModelForSequenceClassification.from_pretrained(saved, device_map=device_map), load_packed(saved))


@pytest.mark.parametrize("device_map", ["auto", {"bert": "cpu", "classifier": "cpu"}], ids=str)
def test_a_device_map_of_several_devices_is_refused(device_map, saved):
    with pytest.raises(ValueError, match="onto one device"):
        AutoModelForSequenceClassification.from_pretrained(saved, device_map=device_map)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_attention_is_the_packed_models_unless_another_is_asked_for(attention, tmp_path):
    model, plan = compressed(lambda: bert(attn_implementation=attention))
    save_packed(model, plan, tmp_path / "packed")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "packed")
    assert loaded.config._attn_implementation == attention
    for asked in ("eager", "sdpa"):
        other = AutoModelForSequenceClassification.from_pretrained(tmp_path / "packed", attn_implementation=asked)
        assert other.config._attn_implementation == asked


def test_reading_draws_no_random_numbers_and_reports_nothing_missing(saved, caplog):
    before = torch.get_rng_state()
    _, told = AutoModelForSequenceClassification.from_pretrained(saved, output_loading_info=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(told.values())


def test_without_the_package_transformers_fails_and_names_the_method(saved):
    code = (
        "import sys, transformers\n"
        f"transformers.AutoModelForSequenceClassification.from_pretrained({str(saved)!r})\n"
        "print('read it')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "read it" not in done.stdout
    assert "Unknown quantization type, got nxmiformer" in done.stderr


@pytest.mark.parametrize("there", [True, False], ids=["empty directory", "no directory"])
def test_save_pretrained_writes_the_packed_files_again(there, saved, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(saved)
    if there:
        (tmp_path / "again").mkdir()
    for _ in range(2):
        model.save_pretrained(tmp_path / "again")
        assert contents(tmp_path / "again") == contents(saved)
    again = copy.deepcopy(AutoModelForSequenceClassification.from_pretrained(tmp_path / "again"))
    again.save_pretrained(tmp_path / "third")
    assert contents(tmp_path / "third") == contents(saved)


def test_push_to_hub_uploads_the_packed_files_and_the_hubs_card(saved, monkeypatch):
    given = {}

    class Hub:
        def create_repo(self, repo_id, **_):
            return types.SimpleNamespace(repo_id=repo_id)

        def create_commit(self, repo_id, operations, **_):
            given.update({each.path_in_repo: Path(each.path_or_fileobj).read_bytes() for each in operations})

    card = huggingface_hub.ModelCard("---\nlibrary_name: transformers\n---\n")
    monkeypatch.setattr("transformers.utils.hub.hf_api", Hub)
    monkeypatch.setattr("transformers.utils.hub.create_and_tag_model_card", lambda *_, **__: card)
    AutoModelForSequenceClassification.from_pretrained(saved).push_to_hub("somebody/tiny")
    assert given.pop(CARD).decode() == str(card)
    assert given == {name: content for name, content in contents(saved).items() if name != CARD}


def test_a_weight_that_was_changed_since_is_not_saved(saved, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(saved)
    model.bert.encoder.layer[1].attention.self.key.weight.data[0, 0] += 0.01
    with pytest.raises(ValueError, match=r"bert\.encoder\.layer\.1\.attention\.self\.key: not in 2:4\+int4"):
        model.save_pretrained(tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("options", [{"push_to_hub": True}, {"variant": "fp16"}, {"state_dict": {"a": torch.ones(1)}}])
def test_options_that_would_save_something_else_are_refused(options, saved, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(saved)
    with pytest.raises(ValueError, match=f"a packed model is saved whole: .* without {next(iter(options))}"):
        model.save_pretrained(tmp_path / "again", **options)
    assert not (tmp_path / "again").exists()


def test_a_directory_with_something_else_is_not_saved_over(saved, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(saved)
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="it is left as it is"):
        model.save_pretrained(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_what_load_packed_gives_is_saved_as_a_dense_model(saved, tmp_path):
    model = load_packed(saved)
    model.save_pretrained(tmp_path / "dense")
    dense = AutoModelForSequenceClassification.from_pretrained(tmp_path / "dense")
    assert compressed_layers(dense) == {}
    assert all(same_bits(tensor, model.state_dict()[key]) for key, tensor in dense.state_dict().items())


def test_a_dense_model_is_not_compressed_while_it_is_read(tmp_path):
    seeded(bert).save_pretrained(tmp_path / "dense")
    with pytest.raises(ValueError, match="does require the model to be pre-quantized"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "dense", quantization_config=PackedConfig())


def add_space(file):
    file.write_bytes(file.read_bytes() + b" ")


def old_format(file):
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": "nxmiformer-packed-1"}))


def change_code(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def negate_scales(file):
    tensors = load_file(file)
    save_file({key: -t if key.endswith("scales") else t for key, t in tensors.items()}, file)


def share(file):
    file.write_text(json.dumps({**json.loads(file.read_text()), "shared": {"nothing": "classifier.weight"}}))


DAMAGE = {
    "config": (CONFIG, add_space),
    "plan": (PLAN, add_space),
    "weights": (WEIGHTS, change_code),
    "cut weights": (WEIGHTS, lambda file: file.write_bytes(file.read_bytes()[:-1])),
    "weights outside their sets": (WEIGHTS, negate_scales),
    "shared weights that are not there": (MANIFEST, share),
    "no plan": (PLAN, lambda file: file.unlink()),
    "no manifest": (MANIFEST, lambda file: file.unlink()),
    "old format": (MANIFEST, old_format),
    "no JSON": (MANIFEST, lambda file: file.write_text("{")),
}


@pytest.mark.parametrize(("name", "spoil"), DAMAGE.values(), ids=DAMAGE)
def test_what_load_packed_refuses_from_pretrained_refuses_with_the_same_words(name, spoil, saved):
    spoil(saved / name)
    with pytest.raises(PackedError, match=name) as one:
        load_packed(saved)
    with pytest.raises(PackedError) as other:
        AutoModelForSequenceClassification.from_pretrained(saved)
    assert str(one.value) == str(other.value)


def test_from_the_hub_the_files_that_transformers_does_not_fetch_are_fetched(saved, tmp_path, monkeypatch):
    """As much of the hub's cache as `transformers` fills by itself."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "cache" / "models--somebody--tiny"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    for name in (CONFIG, WEIGHTS):
        shutil.copy(saved / name, snapshot / name)
    asked = []

    def download(name, revision, cache_dir):
        asked.append((name, revision, cache_dir))
        for other in (PLAN, MANIFEST, CARD):
            shutil.copy(saved / other, snapshot / other)

    monkeypatch.setattr("nxmiformer.export.quantizer.snapshot_download", download)
    for _ in range(2):
        loaded = AutoModelForSequenceClassification.from_pretrained(
            "somebody/tiny", cache_dir=tmp_path / "cache", local_files_only=True
        )
        check_same(loaded, load_packed(saved))
    assert asked == [("somebody/tiny", commit, tmp_path / "cache")]
