"""A packed model, with its card and results, is there whole or not at all, whatever stops its writing."""

import shutil

from kills import full_disk, moments
from tiny import bert, compressed, distilbert

from nxmiformer.errors import FileError
from nxmiformer.export import add_results, load_packed, save_packed
from nxmiformer.export.manifest import CARD
from nxmiformer.export.packed import packing
from nxmiformer.plan.compression import CompressionPlan


def pack(pair, path):
    with packing(*pair, path) as (directory, _):
        add_results(directory, {"score": "1"})


def start(tmp_path):
    """A packed model, another that is to replace it, and a copy of the first."""
    old, new = compressed(distilbert), compressed(bert)
    save_packed(*old, tmp_path / "old")
    return new, tmp_path / "old", tmp_path / "place" / "packed"


def test_a_kill_at_any_operation_of_a_save_leaves_the_old_model_or_the_new_one_with_its_results(tmp_path):
    new, old, path = start(tmp_path)
    found = []
    for moment in moments(path.parent):
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(old, path)
        with moment:
            pack(new, path)
        found.append(type(load_packed(path)).__name__[:4])  # which puts it back, where the kill came between
        assert ("| score | 1 |" in (path / CARD).read_text()) == (found[-1] == "Bert")
    assert found == sorted(found, reverse=True)
    assert found.count("Bert") > 1
    assert moment.number > 25
    pack(new, path)
    assert [each.name for each in path.parent.iterdir()] == ["packed"]


def test_a_disk_that_is_full_at_any_operation_of_a_save_leaves_the_old_model_and_is_told(tmp_path):
    new, old, path = start(tmp_path)
    refused = 0
    for moment in moments(path.parent, full_disk):
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(old, path)
        told = None
        with moment:
            try:
                pack(new, path)
            except FileError as error:
                told, refused = str(error), refused + 1
        assert told is None or (str(path) in told and "No space left on device; free some space" in told)
        found = CompressionPlan.load(path / "plan.json")  # where nothing is told, what was refused did not matter
        assert found == CompressionPlan.load(old / "plan.json") if told else found == new[1]
    assert refused > 15
    load_packed(path)
    assert [each.name for each in path.parent.iterdir()] == ["packed"]
