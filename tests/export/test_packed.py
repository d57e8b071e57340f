import contextlib
import hashlib
import json
import pickle
import random
import resource
import shutil
from typing import ClassVar

import numpy as np
import pytest
import torch
import transformers
from mutated import mutated
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
    distilbert,
    gpt2,
    logits,
    roberta,
    same_bits,
    seeded,
    tied,
)
from torch import nn

from nxmiformer.applied.convert import convert
from nxmiformer.export import PackedError, load_packed, save_packed
from nxmiformer.layers.found import compressed_layers
from nxmiformer.layers.inputs import RANGES, Activations
from nxmiformer.layers.projection import project
from nxmiformer.layers.targets import find_targets
from nxmiformer.models import embedded
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.sets import NM, Block, Grid, Then, Unstructured


def check_round_trip(model, plan, tmp_path):
    """Save and load; every law of a whole packed model. Gives the loaded model."""
    size = save_packed(model, plan, tmp_path / "packed")
    loaded = load_packed(tmp_path / "packed")
    assert type(loaded) is type(model)
    assert not any(module.training for module in loaded.modules())
    assert same_bits(logits(loaded), logits(model))
    state, again = model.state_dict(), loaded.state_dict()
    assert state.keys() == again.keys()
    assert all(same_bits(again[key], state[key]) for key in state)
    ids = [{k: id(t) for k, t in m.state_dict(keep_vars=True).items()} for m in (model, loaded)]
    partners = [{(a, b) for a in named for b in named if named[a] == named[b]} for named in ids]
    assert partners[0] == partners[1]
    save_packed(loaded, plan, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "packed")
    storages = [spec.weight.storage(spec.shape, model.dtype) for spec in plan.layers.values()]
    assert size.weights == sum(storage.nbytes for storage in storages)
    assert size.weights * 8 == pytest.approx(sum(storage.total for storage in storages), rel=0.01)
    files = contents(tmp_path / "packed")
    assert size.total == sum(len(content) for name, content in files.items() if name != CARD)
    return loaded


@pytest.mark.parametrize("make", MODELS)
def test_every_architecture_comes_back_bit_for_bit(make, tmp_path):
    model, plan = compressed(make, activations=Activations(8))
    loaded = check_round_trip(model, plan, tmp_path)
    assert plan.storage().total / 8 == save_packed(model, plan, tmp_path / "packed").weights
    assert compressed_layers(loaded).keys() == compressed_layers(model).keys()


def bits_by_layer(layers):
    return {target.name: Grid(1 + i % 8) for i, target in enumerate(layers)}


def sparse_bits_by_layer(layers):
    return {target.name: Then(NM(1 + i % 4, 4), Grid(8 - i % 8)) for i, target in enumerate(layers)}


def all_kinds(layers):
    """A different set for each layer, and some layers dense."""
    kinds = [NM(1, 4), Grid(2, 8), JOINT, Unstructured(0.3), Block(4, 4, 0.5), Then(Block(2, 4, 0.25), Grid(3)), None]
    return {target.name: kinds[i % len(kinds)] for i, target in enumerate(layers)}


SETS = {
    "nm": NM(2, 4),
    "nm keeps all": NM(4, 4),
    "nm 1:16": NM(1, 16),
    "grid by row": Grid(4),
    "grid by group": Grid(4, 8),
    "absmax": Grid(8, scale="absmax"),
    "joint by group": Then(NM(2, 8), Grid(3, 8)),
    "ternary": Then(NM(2, 4), Grid(2)),
    "sparse sign": Then(NM(1, 4), Grid(1)),
    "block": Block(4, 4, 0.3),
    "block and grid": Then(Block(4, 8, 0.5), Grid(4)),
    "unstructured": Unstructured(0.1),
    "unstructured and grid": Then(Unstructured(0.37), Grid(5)),
    "all bits": bits_by_layer,
    "all bits, sparse": sparse_bits_by_layer,
    "all kinds": all_kinds,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("weight", SETS.values(), ids=SETS)
def test_every_set_comes_back_bit_for_bit(weight, dtype, tmp_path):
    check_round_trip(*compressed(weight=weight, dtype=dtype), tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("ranges", RANGES)
def test_activations_are_quantized_as_they_were(ranges, dtype, tmp_path):
    model, plan = compressed(activations=Activations(4, ranges), dtype=dtype)
    model.train()
    logits(model)  # moves the averages of ema
    model.eval()
    loaded = check_round_trip(model, plan, tmp_path)
    layers = compressed_layers(loaded)
    assert {layer.inputs.spec for layer in layers.values()} == {Activations(4, ranges)}
    if ranges == "ema":
        assert all(layer.inputs.peak > 0 for layer in layers.values())
    if ranges == "static":
        assert all(layer.inputs.ends.seen for layer in layers.values())


def test_ema_peaks_that_were_cast_with_their_model_come_back(tmp_path):
    model, plan = compressed(activations=Activations(8, "ema"))
    model.train()
    logits(model)
    model.to(torch.bfloat16).eval()
    project(model)
    save_packed(model, plan, tmp_path / "packed")
    assert same_bits(logits(load_packed(tmp_path / "packed")), logits(model))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_attention_is_the_one_that_gave_the_logits(attention, tmp_path):
    model = seeded(bert, attn_implementation=attention)
    plan = CompressionPlan.uniform(model, find_targets(model), NM(4, 4))
    convert(model, plan).eval()
    save_packed(model, plan, tmp_path / "packed")
    assert load_packed(tmp_path / "packed").config._attn_implementation == attention


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_half_and_double_models_come_back_too(dtype, tmp_path):
    check_round_trip(*compressed(weight=all_kinds, dtype=dtype), tmp_path)


def test_a_plain_model_and_a_converted_one_are_packed_alike(tmp_path):
    model, plan = compressed()
    plain = seeded(bert)
    plain.load_state_dict(model.state_dict())
    save_packed(model, plan, tmp_path / "converted")
    save_packed(plain, plan, tmp_path / "plain")
    assert contents(tmp_path / "converted") == contents(tmp_path / "plain")


def test_the_file_is_much_smaller_than_the_dense_one(tmp_path):
    config = transformers.BertConfig(vocab_size=8, max_position_embeddings=8, **{**NARROW, "hidden_size": 64})
    model, plan = compressed(lambda: transformers.BertForSequenceClassification(config), Then(NM(1, 4), Grid(4)))
    size = save_packed(model, plan, tmp_path / "packed")
    model.save_pretrained(tmp_path / "dense")
    dense = (tmp_path / "dense" / "model.safetensors").stat().st_size
    assert size.weights < plan.storage().dense / 8 / 10
    assert (tmp_path / "packed" / WEIGHTS).stat().st_size < 0.4 * dense


def test_the_tokenizer_comes_back_through_autotokenizer(tmp_path):
    model, plan = compressed()
    tokenizer = embedded.tokenizer(["a", "dog", "sleeps"])
    save_packed(model, plan, tmp_path / "packed", tokenizer)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "packed")
    text = ("A dog sleeps", "a cat")
    assert dict(again(*text)) == dict(tokenizer(*text))
    (tmp_path / "packed" / "tokenizer.json").write_text("{}")
    with pytest.raises(PackedError, match=r"tokenizer\.json is damaged"):
        load_packed(tmp_path / "packed")


def test_loading_takes_no_global_random_numbers_and_leaves_the_default_dtype(saved):
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tobytes()  # noqa: NPY002
    load_packed(saved)
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tobytes()  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert torch.get_default_dtype() == torch.float32


def test_a_weight_off_its_set_is_refused_and_named_and_nothing_is_written(tmp_path):
    model, plan = compressed()
    model.bert.encoder.layer[1].attention.self.key.weight.data[0, 0] += 0.01
    with pytest.raises(ValueError, match=r"bert\.encoder\.layer\.1\.attention\.self\.key: not in 2:4\+int4"):
        save_packed(model, plan, tmp_path / "packed")
    assert list(tmp_path.iterdir()) == []


class Homemade(transformers.BertForSequenceClassification):
    _keys_to_ignore_on_save: ClassVar = None


def half_embeddings():
    model = seeded(bert)
    model.bert.embeddings.half()
    return model


def untied():
    model = tied()
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    return model


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Homemade(transformers.BertConfig(**WORDS, **NARROW)), "transformers has no model 'Homemade'"),
        (half_embeddings, r"one dtype: .* bert\.encoder\.layer\.0"),
        (untied, "the tied weights should be"),
    ],
    ids=["class of one's own", "two dtypes", "untied against its config"],
)
def test_what_could_not_be_loaded_is_refused_when_it_is_saved(make, match, tmp_path):
    model = seeded(make)
    plan = CompressionPlan.uniform(model, find_targets(model), NM(4, 4))
    with pytest.raises(ValueError, match=match):
        save_packed(model, plan, tmp_path / "packed")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("foreign", ["thesis.txt", "deep/thesis.txt", MANIFEST])
def test_a_foreign_directory_is_not_overwritten(foreign, tmp_path):
    model, plan = compressed()
    file = tmp_path / "mine" / foreign
    file.parent.mkdir(parents=True)
    file.write_text("years of work")
    with pytest.raises(FileExistsError, match="it is left as it is"):
        save_packed(model, plan, tmp_path / "mine")
    assert file.read_text() == "years of work"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_packed_model_with_something_of_the_users_in_it_is_not_overwritten(saved):
    (saved / "notes.txt").write_text("years of work")
    before = contents(saved)
    with pytest.raises(FileExistsError, match="and nothing else"):
        save_packed(*compressed(), saved)
    assert contents(saved) == before


def test_a_packed_model_is_replaced_as_a_whole(tmp_path):
    save_packed(*compressed(), tmp_path / "packed", embedded.tokenizer(["a"]))
    model, plan = compressed(distilbert, NM(2, 4))
    save_packed(model, plan, tmp_path / "packed")
    assert same_bits(logits(load_packed(tmp_path / "packed")), logits(model))
    assert not (tmp_path / "packed" / "tokenizer.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["packed"]


@pytest.mark.parametrize("step", ["save_file", "digest_of", "check"])
@pytest.mark.parametrize("there", [True, False])
def test_an_interrupted_save_leaves_what_was_there(step, there, tmp_path, monkeypatch):
    if there:
        save_packed(*compressed(distilbert), tmp_path / "packed")
    before = contents(tmp_path / "packed") if there else {}

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    model, plan = compressed()
    with monkeypatch.context() as patch:
        patch.setattr(f"nxmiformer.export.packed.{step}", interrupt)
        with pytest.raises(KeyboardInterrupt):
            save_packed(model, plan, tmp_path / "packed")
    assert [path.name for path in tmp_path.iterdir()] == (["packed"] if there else [])
    assert not there or contents(tmp_path / "packed") == before
    save_packed(model, plan, tmp_path / "packed")
    assert same_bits(logits(load_packed(tmp_path / "packed")), logits(model))


def test_a_save_that_was_killed_is_cleared_away_by_the_next(tmp_path):
    (tmp_path / ".packed.nx-new").mkdir()
    (tmp_path / ".packed.nx-new" / WEIGHTS).write_bytes(b"half")
    save_packed(*compressed(), tmp_path / "packed")
    assert [path.name for path in tmp_path.iterdir()] == ["packed"]


# Damage. `damaged` is a fresh copy to spoil; `reseal` makes the manifest agree with the files again, as anyone can.


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A packed model, not to be touched."""
    options = {**NARROW, "num_hidden_layers": 1}
    config = transformers.BertConfig(**WORDS, **options)
    model, plan = compressed(lambda: transformers.BertForSequenceClassification(config), JOINT, Activations(8, "ema"))
    directory = tmp_path_factory.mktemp("whole") / "packed"
    save_packed(model, plan, directory)
    return directory


@pytest.fixture
def saved(whole, tmp_path):
    """A packed model of one's own."""
    return shutil.copytree(whole, tmp_path / "packed")


def reseal(directory, **changes):
    manifest = json.loads((directory / MANIFEST).read_text())
    manifest["files"] = {n: hashlib.sha256((directory / n).read_bytes()).hexdigest() for n in manifest["files"]}
    (directory / MANIFEST).write_text(json.dumps({**manifest, **changes}))


def edit_json(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def edit_weights(directory, change):
    tensors = load_file(directory / WEIGHTS)
    change(tensors)
    save_file(tensors, directory / WEIGHTS)


def header_size(directory):
    return 8 + int.from_bytes((directory / WEIGHTS).read_bytes()[:8], "little")


def most_memory():
    """Bytes that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def attempt(directory):
    """The model and None, or None and the error's text, which says where it is."""
    try:
        return load_packed(directory), None
    except PackedError as error:
        text = str(error)
    assert str(directory) in text
    return None, text


def outcome(directory, whole):
    """What loading gives: the error's text, or None for a model that is the whole one."""
    model, error = attempt(directory)
    if model is None:
        return error
    original = load_packed(whole)
    assert same_bits(logits(model), logits(original))
    state, expected = model.state_dict(), original.state_dict()
    assert all(same_bits(state[key], expected[key]) for key in expected)
    return None


def flipped(content, place, rng):
    spoilt = bytearray(content)
    spoilt[place] ^= rng.randrange(1, 256)
    return bytes(spoilt)


def flips(directory, name, places, seed=0):
    """Write the file with one byte changed, for each place, and put it right again."""
    rng, content = random.Random(seed), (directory / name).read_bytes()
    for place in places(len(content)) if callable(places) else places:
        (directory / name).write_bytes(flipped(content, place, rng))
        yield place
    (directory / name).write_bytes(content)


def some(count, first=0):
    return lambda size: sorted(random.Random(1).sample(range(first, size), min(count, size - first)))


@pytest.mark.parametrize("name", [PLAN, CONFIG, WEIGHTS])
def test_a_changed_byte_anywhere_is_found_and_its_file_is_named(name, saved, whole):
    size = (saved / name).stat().st_size
    ends = {*range(10), *range(size - 2, size)}  # the length of the header among them
    places = sorted(ends.union(some(150)(header_size(saved) if name == WEIGHTS else size), some(60)(size)))
    tried = [outcome(saved, whole) for _ in flips(saved, name, places)]
    assert len(tried) == len(places)
    assert all(f"{name} is damaged" in error for error in tried)


def test_a_changed_byte_of_the_manifest_is_found_or_means_nothing_but_to_the_card(saved, whole):
    content = (saved / MANIFEST).read_bytes()
    card = content.index(b' "card"')  # the last entry: the card may be edited
    places = [i for i in flips(saved, MANIFEST, range) if outcome(saved, whole) is None]
    assert {content[i : i + 1] for i in places if i < card} <= {b" ", b"\n"}


@pytest.mark.parametrize(("name", "count"), [(PLAN, 150), (CONFIG, 150), (WEIGHTS, 400)])
def test_a_changed_byte_under_a_new_digest_gives_an_error_or_a_model_and_nothing_else(name, count, saved):
    size = header_size(saved) if name == WEIGHTS else (saved / name).stat().st_size
    outcomes = []
    with pytest.MonkeyPatch.context() as patch:  # what transformers says of odd configs is not the matter here
        patch.setattr("transformers.configuration_utils.logger.warning", lambda *_: None)
        for _ in flips(saved, name, some(count)(size)):
            reseal(saved)
            outcomes.append(attempt(saved)[1])
    assert len(outcomes) == count
    assert sum(error is not None for error in outcomes) > count / 5


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("name", [PLAN, CONFIG, WEIGHTS, MANIFEST])
def test_a_file_that_was_cut_short_is_refused(name, sealed, saved):
    content = (saved / name).read_bytes()
    for length in [0, *some(8)(len(content) - 2), len(content) - 2]:
        (saved / name).write_bytes(content[:length])
        if sealed and name != MANIFEST:
            reseal(saved)
        with pytest.raises(PackedError, match=name):
            load_packed(saved)


@pytest.mark.parametrize("name", [PLAN, CONFIG, WEIGHTS, MANIFEST])
def test_a_missing_file_is_named(name, saved):
    (saved / name).unlink()
    with pytest.raises(PackedError, match=rf"{name}$|{name} is missing"):
        load_packed(saved)


def test_what_is_no_packed_model_is_said_to_be_none(tmp_path):
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(PackedError, match="is not a packed model"):
            load_packed(path)


def swap(tensors, a, b):
    tensors[a], tensors[b] = tensors[b], tensors[a]


LAYER = "bert.encoder.layer.0"
QUERY = f"{LAYER}.attention.self.query"
SPOILED = {
    "names swapped, shapes differ": lambda t: swap(t, "classifier.weight", "classifier.bias"),
    "packed names swapped": lambda t: swap(t, f"{QUERY}.weight", f"{LAYER}.output.dense.weight"),
    "parts swapped": lambda t: swap(t, f"{QUERY}.weight", f"{QUERY}.weight_indices"),
    "a tensor is missing": lambda t: t.pop("classifier.bias"),
    "a part is missing": lambda t: t.pop(f"{QUERY}.weight_scales"),
    "a tensor too many": lambda t: t.update(extra=torch.zeros(3)),
    "a part too many": lambda t: t.update({f"{QUERY}.weight_extra": torch.zeros(3)}),
    "a dense weight besides": lambda t: t.update({f"{QUERY}.weight": torch.zeros(16, 16)}),
    "another dtype": lambda t: t.update({"classifier.bias": t["classifier.bias"].half()}),
    "scales of another dtype": lambda t: t.update({f"{QUERY}.weight_scales": torch.zeros(16, dtype=torch.int32)}),
    "values of another dtype": lambda t: t.update({f"{QUERY}.weight": torch.zeros(64, dtype=torch.int8)}),
    "another rank": lambda t: t.update({"classifier.bias": t["classifier.bias"][None]}),
    "a scale that is no number": lambda t: t[f"{QUERY}.weight_scales"].fill_(float("nan")),
    "a scale below zero": lambda t: t[f"{QUERY}.weight_scales"].neg_(),
    "a code that the grid lacks": lambda t: t[f"{QUERY}.weight"].fill_(255),
    "indices that do not ascend": lambda t: t[f"{QUERY}.weight_indices"].fill_(0),
    "nothing": lambda t: t.clear(),
}


@pytest.mark.parametrize("change", SPOILED.values(), ids=SPOILED)
def test_tensors_that_do_not_fit_are_refused_even_under_a_new_digest(change, saved):
    edit_weights(saved, change)
    with pytest.raises(PackedError, match=rf"{WEIGHTS} is damaged"):
        load_packed(saved)
    reseal(saved)
    with pytest.raises(PackedError, match=rf"{WEIGHTS}|asks for more than"):
        load_packed(saved)


def test_equal_shapes_with_their_names_swapped_are_found_by_the_digest(saved):
    edit_weights(saved, lambda t: swap(t, f"{QUERY}.weight", f"{QUERY.replace('query', 'key')}.weight"))
    with pytest.raises(PackedError, match=rf"{WEIGHTS} is damaged"):
        load_packed(saved)


HUGE = 2**40
LIES = {
    "a row of terabytes": (PLAN, lambda p: p["layers"][QUERY].update(shape=[HUGE, HUGE])),
    "a smaller shape": (PLAN, lambda p: p["layers"][QUERY].update(shape=[8, 16])),
    "a negative shape": (PLAN, lambda p: p["layers"][QUERY].update(shape=[-16, -16])),
    "an endless shape": (PLAN, lambda p: p["layers"][QUERY].update(shape=[float("inf"), 16])),
    "a shape of words": (PLAN, lambda p: p["layers"][QUERY].update(shape="many")),
    "more bits": (PLAN, lambda p: p["layers"][QUERY]["weight"]["second"].update(bits=5)),
    "bits that are no integer": (PLAN, lambda p: p["layers"][QUERY]["weight"]["second"].update(bits=4.5)),
    "another group": (PLAN, lambda p: p["layers"][QUERY]["weight"]["first"].update(group=8)),
    "a set of no name": (PLAN, lambda p: p["layers"][QUERY]["weight"].update(set="Path")),
    "a module that is no linear": (PLAN, lambda p: p["layers"].update({LAYER: p["layers"].pop(QUERY)})),
    "an alias that is not there": (PLAN, lambda p: p["layers"][QUERY].update(aliases=["bert.pooler.missing"])),
    "a layer less": (PLAN, lambda p: p["layers"].pop(QUERY)),
    "a transposed layer": (PLAN, lambda p: p["layers"][f"{LAYER}.output.dense"].update(transposed=True)),
    "a list": (PLAN, lambda p: p.update(layers=[1, 2])),
    "a hidden size of terabytes": (CONFIG, lambda c: c.update(hidden_size=HUGE)),
    "a vocabulary of terabytes": (CONFIG, lambda c: c.update(vocab_size=HUGE)),
    "a billion layers": (CONFIG, lambda c: c.update(num_hidden_layers=10**9)),
    "more layers than tensors": (CONFIG, lambda c: c.update(num_hidden_layers=5000)),
    "a billion labels": (CONFIG, lambda c: (c.pop("id2label"), c.update(num_labels=10**9))),
    "one word more": (CONFIG, lambda c: c.update(vocab_size=25)),
    "heads below zero": (CONFIG, lambda c: c.update(num_attention_heads=-1)),
    "no heads": (CONFIG, lambda c: c.update(num_attention_heads=0)),
    "a size of words": (CONFIG, lambda c: c.update(hidden_size="wide")),
    "another model's type": (CONFIG, lambda c: c.update(model_type="roberta")),
    "no model's type": (CONFIG, lambda c: c.update(model_type="homemade")),
    "code to run": (CONFIG, lambda c: c.update(model_type="homemade", auto_map={"AutoConfig": "evil.Config"})),
    "an activation function that is none": (CONFIG, lambda c: c.update(hidden_act="os.system")),
}


@pytest.mark.parametrize(("name", "change"), LIES.values(), ids=LIES)
def test_lies_about_sizes_and_sets_are_refused_under_a_new_digest(name, change, saved):
    edit_json(saved / name, change)
    reseal(saved)
    before = most_memory()
    with pytest.raises(PackedError, match=r"plan\.json|config\.json|model\.safetensors"):
        load_packed(saved)
    assert most_memory() - before < 2**28


def test_a_plan_with_anything_changed_in_it_is_refused_or_gives_the_weights_that_were_packed(saved):
    content, chance, refused, read = json.loads((saved / PLAN).read_text()), random.Random(0), 0, 0
    expected = {k: t for k, t in load_packed(saved).state_dict().items() if not k.endswith("inputs.peak")}
    for _ in range(400):
        (saved / PLAN).write_text(json.dumps({**content, "layers": (changed := mutated(content["layers"], chance))}))
        with contextlib.suppress(ValueError):
            if CompressionPlan.load(saved / PLAN).layers and changed != content["layers"]:
                reseal(saved)
                refused += 1
                state = load_packed(saved).state_dict()
                read += 1
                assert all(same_bits(state[key], expected[key]) for key in expected), changed
    assert refused > read > 2
    (saved / PLAN).write_text(json.dumps({**content, "rest": 0.5}))
    reseal(saved)
    with pytest.raises(PackedError, match=r"plan\.json: .*needs rest to be an integer, not 0\.5"):
        load_packed(saved)


def test_two_lies_that_agree_take_no_memory(saved):
    """A block set says next to nothing of a weight without blocks: a few bytes could stand for terabytes."""
    wide = 2**24

    def widen(plan):
        for name in (f"{LAYER}.intermediate.dense", f"{LAYER}.output.dense"):
            nothing = {"set": "Block", "rows": 16, "cols": 16, "density": 1e-12}
            shape = [wide, 16] if "intermediate" in name else [16, wide]
            plan["layers"][name].update(weight=nothing, shape=shape, activations=None)

    edit_json(saved / PLAN, widen)
    edit_json(saved / CONFIG, lambda c: c.update(intermediate_size=wide))
    reseal(saved)
    before = most_memory()
    with pytest.raises(PackedError, match=r"asks for .* bytes"):
        load_packed(saved)
    assert most_memory() - before < 2**28


def test_another_models_plan_is_refused(saved, tmp_path):
    _, other = compressed(gpt2)
    other.save(saved / PLAN)
    reseal(saved)
    with pytest.raises(PackedError, match="the plan does not fit the model"):
        load_packed(saved)


def test_another_models_file_is_refused(saved, tmp_path):
    save_packed(*compressed(roberta), tmp_path / "other")
    for name in (WEIGHTS, CONFIG):
        shutil.copy(saved / name, tmp_path / "kept")
        shutil.copy(tmp_path / "other" / name, saved / name)
        with pytest.raises(PackedError, match=f"{name} is damaged"):
            load_packed(saved)
        reseal(saved)
        with pytest.raises(PackedError, match=name):
            load_packed(saved)
        shutil.copy(tmp_path / "kept", saved / name)


@pytest.mark.parametrize("escape", ["../secret", "/etc/hostname", "a/../../secret", "nul\0l", "x" * 5000])
def test_a_manifest_that_names_a_file_elsewhere_is_refused(escape, saved):
    (saved.parent / "secret").write_text("secret")
    edit_json(saved / MANIFEST, lambda m: m["files"].update({escape: hashlib.sha256(b"secret").hexdigest()}))
    with pytest.raises(PackedError, match=rf"{MANIFEST}|is missing"):
        load_packed(saved)


@pytest.mark.parametrize("architecture", ["Trainer", "pipeline", "models", "__name__", "AutoModel", "os", "", None, {}])
def test_an_architecture_that_is_no_model_is_refused(architecture, saved):
    reseal(saved, architecture=architecture)
    with pytest.raises(PackedError, match="transformers has no model"):
        load_packed(saved)


@pytest.mark.parametrize(
    "architecture", ["PreTrainedModel", "BertPreTrainedModel", "BertForMaskedLM", "LlamaForCausalLM", "BertModel"]
)
def test_an_architecture_that_is_another_model_is_refused(architecture, saved):
    reseal(saved, architecture=architecture)
    with pytest.raises(PackedError):
        load_packed(saved)


MANIFESTS = {
    "no dictionary": "[1, 2]",
    "a word": "packed",
    "empty": "{}",
    "deep": "[" * 100_000,
    "another format": json.dumps({"format": "nxmiformer-packed-9", "files": {}}),
    "no files": json.dumps({"format": "nxmiformer-packed-2", "files": {}}),
    "files of no kind": json.dumps({"format": "nxmiformer-packed-2", "files": 3}),
}


@pytest.mark.parametrize("text", MANIFESTS.values(), ids=MANIFESTS)
def test_a_manifest_that_is_none_is_refused(text, saved):
    (saved / MANIFEST).write_text(text)
    with pytest.raises(PackedError, match=MANIFEST):
        load_packed(saved)


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "float16"},
        {"dtype": "int8"},
        {"dtype": "load"},
        {"attention": "somebody/kernel"},
        {"shared": {"classifier.bias": "classifier.weight"}},
        {"shared": {"classifier.bias": "bert.pooler.dense.bias"}},
        {"shared": {"bert.pooler.dense.bias": f"{LAYER}.output.dense.bias"}},
        {"shared": {"nothing": "classifier.weight"}},
        {"shared": {"forward": "classifier.bias"}},
        {"shared": [1]},
    ],
    ids=str,
)
def test_a_manifest_that_lies_about_the_model_is_refused(change, saved):
    reseal(saved, **change)
    with pytest.raises(PackedError, match=rf"{MANIFEST}|{WEIGHTS}|{CONFIG}"):
        load_packed(saved)


class Payload:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


@pytest.mark.parametrize("name", [PLAN, CONFIG, WEIGHTS])
def test_a_pickle_is_never_executed(name, saved):
    (saved / name).write_bytes(pickle.dumps(Payload()))
    reseal(saved)
    with pytest.raises(PackedError, match=name):
        load_packed(saved)
    (saved / MANIFEST).write_bytes(pickle.dumps(Payload()))
    with pytest.raises(PackedError, match=MANIFEST):
        load_packed(saved)


def test_files_that_are_links_are_read(saved, tmp_path):
    """The hub's cache keeps files elsewhere and links to them."""
    for name in (PLAN, CONFIG, WEIGHTS):
        (saved / name).rename(tmp_path / name)
        (saved / name).symlink_to(tmp_path / name)
    assert load_packed(saved).config.num_labels == 3


def test_a_model_of_words_that_is_saved_without_its_tokenizer_warns(tmp_path):
    with pytest.warns(UserWarning, match=r"no tokenizer .*tokenizer=\.\.\."):
        save_packed(*compressed(), tmp_path / "packed")


def test_whoever_reads_the_config_or_the_card_is_told_what_to_install(tmp_path):
    save_packed(*compressed(), tmp_path / "packed")
    assert "pip install nxmiformer" in (tmp_path / "packed" / "config.json").read_text()
    assert "pip install nxmiformer" in (tmp_path / "packed" / "README.md").read_text()
