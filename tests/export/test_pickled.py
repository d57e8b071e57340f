"""A packed model that was read can be sent anywhere, and is there what it was."""

import copy
import io
import pickle
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
import transformers
from tiny import JOINT, bert, compressed, contents, gpt2, logits, same_bits

from nxmiformer import load_packed, save_packed
from nxmiformer.layers.inputs import Activations


def read(path, lazy):
    config = transformers.AutoConfig.from_pretrained(path)
    config.quantization_config["lazy"] = lazy
    return transformers.AutoModelForSequenceClassification.from_pretrained(path, config=config)


def saved_by_torch(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


READERS = {
    "load_packed": load_packed,
    "load_packed, lazily": lambda path: load_packed(path, lazy=True),
    "from_pretrained": lambda path: read(path, False),
    "from_pretrained, lazily": lambda path: read(path, True),
}
COPIES = {
    "pickled": lambda model: pickle.loads(pickle.dumps(model)),
    "copied": copy.deepcopy,
    "saved by torch": saved_by_torch,
    "sent to a process": lambda model: pickle.loads(ForkingPickler.dumps(model)),
}


@pytest.fixture(scope="module", params=[bert, gpt2])
def packed(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("packed") / "model"
    save_packed(*compressed(request.param, JOINT, Activations(8, "ema")), path)
    return path


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_a_model_that_was_read_is_copied_whole(packed, reader, copied):
    model = reader(packed)
    twin = copied(model)
    assert same_bits(logits(twin), logits(model))
    assert not twin.training
    ours, theirs = ({id(p) for p in each.parameters()} for each in (model, twin))
    assert not ours & theirs


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_a_copy_is_saved_as_the_packed_files_and_is_itself_what_is_saved(packed, copied, tmp_path):
    twin = copied(read(packed, True))
    twin.save_pretrained(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(packed)
    with torch.no_grad():
        next(twin.parameters()).zero_()
    twin.save_pretrained(tmp_path / "changed")
    assert contents(tmp_path / "changed")["model.safetensors"] != contents(packed)["model.safetensors"]
