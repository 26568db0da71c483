"""A saved classifier shares the bytes of the checkpoint that it was read from, where that is safe."""

import copy
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import CLASS_NAMES, tiny_clip, tiny_pixels, tiny_tokenizer

from hf_clip_variants import CLIPClassifier
from hf_clip_variants.files import shared_weights
from hf_clip_variants.files.shared_weights import save_sharing_weights


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A snapshot in the Hub's cache, as a folder and as what the cache answers."""
    model = tmp_path / "hub" / "models--a--b"
    snapshot, blob = model / "snapshots" / "main", model / "blobs" / "0123"
    tiny_clip().save_pretrained(snapshot)
    tiny_tokenizer().save_pretrained(snapshot)
    blob.parent.mkdir()
    os.rename(snapshot / "model.safetensors", blob)
    os.symlink(os.path.relpath(blob, snapshot), snapshot / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: str(snapshot / "model.safetensors"))
    return snapshot


def load(folder, **options) -> CLIPClassifier:
    return CLIPClassifier.from_pretrained(folder, class_names=CLASS_NAMES, **options).eval()


def saved(classifier, source, folder) -> bool:
    folder.mkdir()
    with torch.no_grad():
        classifier.get_class_features()
    return save_sharing_weights(classifier, source, folder)


def assert_same(folder, classifier):
    found, info = CLIPClassifier.from_pretrained(folder, output_loading_info=True, dtype=classifier.dtype)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    ours, theirs = classifier.state_dict(), found.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert found.class_names == list(CLASS_NAMES) and found.class_features_ready
    with torch.no_grad():
        assert torch.equal(found.eval()(tiny_pixels()).logits, classifier(tiny_pixels()).logits)


@pytest.mark.parametrize("by_id", [False, True])
def test_a_file_of_the_hubs_cache_is_linked_and_stays_when_the_cache_is_emptied(hub, tmp_path, by_id):
    classifier, base = load(hub), tmp_path / "base"
    assert saved(classifier, "a/b" if by_id else hub, base)
    (linked,) = [file for file in base.glob("*.safetensors") if os.path.samefile(file, hub / "model.safetensors")]
    others = [file for file in base.glob("*.safetensors") if file != linked]
    assert sum(file.stat().st_size for file in others) < linked.stat().st_size / 10
    assert not any(file.is_symlink() for file in base.iterdir())
    shutil.rmtree(tmp_path / "hub")
    assert_same(base, classifier)
    moved = tmp_path / "moved"
    shutil.move(base, moved)
    assert_same(moved, classifier)
    again = tmp_path / "again"  # and what is loaded from it is saved as ever
    CLIPClassifier.from_pretrained(moved).save_pretrained(again)
    assert_same(again, classifier)


def test_saving_over_the_folder_leaves_the_cache_as_it_was(hub, tmp_path):
    classifier, base = load(hub), tmp_path / "base"
    assert saved(classifier, hub, base)
    before = (hub / "model.safetensors").read_bytes()
    other = CLIPClassifier.from_pretrained(base)
    with torch.no_grad():
        other.clip.logit_scale.add_(1)
    other.save_pretrained(base)
    assert (hub / "model.safetensors").read_bytes() == before
    assert [file.name for file in base.glob("*.safetensors*")] == ["model.safetensors"]
    assert_same(base, other.eval())


def change_one_number(classifier):
    with torch.no_grad():
        classifier.clip.visual_projection.weight.view(-1)[3] += 1e-6
    return classifier


@pytest.mark.parametrize("change", [change_one_number, lambda c: c.half(), lambda c: c.double()])
def test_other_weights_than_the_checkpoints_are_written(hub, tmp_path, change):
    classifier, base = change(load(hub)), tmp_path / "base"
    assert not saved(classifier, hub, base)
    assert not any(os.path.samefile(file, hub / "model.safetensors") for file in base.glob("*.safetensors"))
    if classifier.dtype != torch.float16:
        classifier.float()
    found = CLIPClassifier.from_pretrained(base, dtype=classifier.dtype).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in classifier.state_dict().items() if "clip." in name)


@pytest.mark.parametrize("damage", ["more", "torn", "gone", "sharded"])
def test_a_checkpoint_that_is_not_the_models_is_written(hub, tmp_path, damage):
    classifier, base, blob = load(hub), tmp_path / "base", (hub / "model.safetensors").resolve()
    if damage == "more":
        save_file(load_file(blob) | {"unknown": torch.zeros(1)}, blob)
    elif damage == "torn":
        content = blob.read_bytes()
        blob.unlink()  # the model's memory is that file
        blob.write_bytes(content[:1000])
    else:
        (hub / "model.safetensors").unlink()
    assert not saved(classifier, hub, base)
    assert_same(base, classifier)


def test_a_folder_that_may_be_written_to_is_not_linked(tmp_path):
    source, base = tmp_path / "clip", tmp_path / "base"
    tiny_clip().save_pretrained(source)
    tiny_tokenizer().save_pretrained(source)
    classifier = copy.deepcopy(load(source))  # which has that file as its memory
    saved(classifier, source, base)  # shared where the file system copies on write
    with open(source / "model.safetensors", "r+b") as file:  # as `cp` does
        file.write(bytes(5000))
    assert_same(base, classifier)


def test_where_links_are_impossible_everything_is_written(hub, tmp_path, monkeypatch):
    def refused(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(shared_weights.os, "link", refused)
    classifier, base = load(hub), tmp_path / "base"
    saved(classifier, hub, base)
    assert_same(base, classifier)
    assert sorted(file.name for file in base.iterdir() if "shared" in file.name) == []
