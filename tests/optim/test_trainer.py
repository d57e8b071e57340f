import pytest
import torch
import transformers
from accelerate.state import AcceleratorState
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from nxmiformer.optim import ADMM, Ramp
from nxmiformer.sets import NM, Grid, Then


@pytest.fixture(autouse=True)
def _fresh_accelerate_state():
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


class Parity(torch.utils.data.Dataset):
    """Eight random tokens; the label is the parity of the first."""

    def __len__(self):
        return 48

    def __getitem__(self, index):
        tokens = torch.randint(30, (8,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": tokens, "attention_mask": torch.ones(8, dtype=torch.long), "labels": tokens[0] % 2}


def bert():
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=8,
    )
    return transformers.BertForSequenceClassification(config)  # with its dropout of 0.1


def trainer(folder, **options):
    model = bert()
    names = [name for name, w in model.named_parameters() if "encoder" in name and w.ndim == 2]
    base = AdamW(model.parameters(), lr=0.005)
    sets = dict.fromkeys(names, Then(NM(2, 4), Grid(4)))
    optimizer = ADMM(base, model.named_parameters(), sets, rho=Ramp(0.01, 0.5, 10), interval=3)
    scheduler = LambdaLR(optimizer, lambda step: 1 - step / 20)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=12,
        save_steps=5,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=3,
        **options,
    )
    found = transformers.Trainer(model, arguments, train_dataset=Parity(), optimizers=(optimizer, scheduler))
    return found, optimizer


def test_a_run_resumed_from_a_trainer_checkpoint_is_bit_equal_to_an_uninterrupted_one(tmp_path):
    whole, optimizer = trainer(tmp_path / "whole")
    whole.train()
    assert optimizer.steps == whole.state.global_step == 12
    resumed, again = trainer(tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5"))
    assert again.steps == 12
    assert again.metrics(layers=True) == optimizer.metrics(layers=True)
    ours, theirs = resumed.model.state_dict(), whole.model.state_dict()
    assert [name for name, w in theirs.items() if not torch.equal(w, ours[name])] == []
    assert [name for name, u in optimizer.u.items() if not torch.equal(u, again.u[name])] == []
    assert [name for name, z in optimizer.z.items() if not torch.equal(z, again.z[name])] == []


def test_a_trainer_trains_towards_the_sets(tmp_path):
    run, optimizer = trainer(tmp_path, save_strategy="no")
    before = bert().state_dict()
    run.train()
    after = run.model.state_dict()
    assert all(not torch.equal(after[name], before[name]) for name in optimizer.sets)
    optimizer.finalize()
    assert all(s.contains(run.model.get_parameter(name).detach()) for name, s in optimizer.sets.items())
    assert 0 < optimizer.metrics()["gap"] < 0.5
