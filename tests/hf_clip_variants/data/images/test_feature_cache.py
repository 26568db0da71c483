"""Features computed once: exact, resumable, safe against torn files, read-only folders and a second process."""

import logging
import multiprocessing
import os
import random
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny import tiny_clip
from transformers import CLIPImageProcessor, Trainer, TrainingArguments

from hf_clip_variants.data import (
    AugmentedViews,
    FeatureCollator,
    FeatureDataset,
    Features,
    FeatureStore,
    compute_features,
    load_emoji,
)
from hf_clip_variants.data.images import feature_cache as features_module
from hf_clip_variants.training.callbacks import EpochCallback


class CountingEncoder:
    """A fixed linear map; counts calls and images."""

    def __init__(self, width=5, stop_after=None):
        self.weight = torch.randn(3 * 8 * 8, width, generator=torch.Generator().manual_seed(0))
        self.calls = self.images = 0
        self.stop_after = stop_after

    def __call__(self, pixel_values):
        if self.calls == self.stop_after:
            raise KeyboardInterrupt
        self.calls += 1
        self.images += len(pixel_values)
        return pixel_values.flatten(1) @ self.weight


@pytest.fixture(scope="module")
def processor():
    return CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})


@pytest.fixture(scope="module")
def images():
    return load_emoji(["notov1", "fluent3d"], concepts=["cat", "dog", "red apple", "lemon", "tomato", "fox"])  # 12


def compute(images, processor, encode=None, **options):
    encode = encode or CountingEncoder()
    options = {"progress": False, "batch_size": 4} | options
    return compute_features(encode, images, processor, **options)


def test_features_equal_the_encoders_output(images):
    model = tiny_clip()
    processor = CLIPImageProcessor(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})

    def encode(pixel_values):
        assert not torch.is_grad_enabled() and len(pixel_values) <= 9
        return model.get_image_features(pixel_values).pooler_output

    features = compute(images, processor, encode, views=3, augmentation="tip", seed=7, batch_size=9)
    assert features.features.shape == (3, 12, 24) and features.features.dtype == torch.float32
    assert not features.features.requires_grad and not features.features.is_inference()
    assert features.labels.tolist() == images.labels.tolist() and features.class_names == images.class_names
    views = AugmentedViews(images, processor, 3, "tip", seed=7)
    with torch.no_grad():
        for row in range(12):
            torch.testing.assert_close(features.features[:, row], encode(views[row]), atol=1e-5, rtol=1e-5)
    few = features.select([5, 0, 5])
    assert torch.equal(few.features, features.features[:, [5, 0, 5]]) and few.ids[1] == images.ids[0]
    assert few.labels.tolist() == [5, 0, 5] and len(few) == 3 and few.num_views == 3


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("workers", [0, 2])
def test_features_do_not_depend_on_batch_size_and_workers(images, processor, batch_size, workers):
    options = {"views": 4, "augmentation": "coop", "seed": 1}
    expected = compute(images, processor, **options).features
    state = torch.get_rng_state()
    got = compute(images, processor, **options, batch_size=batch_size, num_workers=workers).features
    assert torch.equal(state, torch.get_rng_state())  # training that follows is the same with and without a cache
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_the_cache_is_read_and_mapped(images, processor, tmp_path):
    first, second = CountingEncoder(), CountingEncoder()
    options = {"views": 2, "augmentation": "tip", "cache_dir": tmp_path / "new" / "cache", "key": "weights-1"}
    computed = compute(images, processor, first, **options)
    read = compute(images, processor, second, **options)
    assert (first.images, second.calls) == (24, 0)
    assert torch.equal(computed.features, read.features) and computed.key == read.key
    files = list((tmp_path / "new" / "cache").iterdir())
    assert (
        len(files) == 1
        and files[0].name.startswith("features-")
        and files[0].stat().st_mode & 0o777 == 0o666 & ~umask()
    )
    if sys.platform == "linux":
        assert str(files[0]) in Path("/proc/self/maps").read_text()
    # A selection is other data; the same data elsewhere is the same.
    third = CountingEncoder()
    compute(images.select(range(12)), processor, third, **options)
    assert third.calls == 0
    compute(images.select(range(11)), processor, third, **options)
    assert third.images == 22


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_the_key_depends_on_everything_that_changes_features(images, processor, tmp_path):
    base = {"views": 2, "augmentation": "tip", "seed": 0, "key": "a", "dtype": torch.float32}
    keys = {compute(images, processor, **base).key}
    for change in ({"views": 3}, {"augmentation": "coop"}, {"seed": 1}, {"key": "b"}, {"dtype": torch.float16}):
        keys.add(compute(images, processor, **base | change).key)
    keys.add(compute(images.select(range(11)), processor, **base).key)
    keys.add(compute(images, CLIPImageProcessor(**processor.to_dict() | {"image_mean": [0.5] * 3}), **base).key)
    assert len(keys) == 8
    assert compute(images, processor, **base, batch_size=1).key in keys
    # Without augmentation the seed decides nothing.
    assert compute(images, processor, key="a", seed=1).key == compute(images, processor, key="a", seed=2).key
    assert compute(images, processor).key is None


def only_file(folder):
    (file,) = folder.glob("features-*.safetensors")
    return file


def damaged(path, kind):
    content = path.read_bytes()
    if kind == "torn":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "garbage":
        path.write_bytes(b"\xff" * 300)
    elif kind == "foreign":
        save_file({"features": torch.zeros(1, 12, 5)}, path, {"description": '{"format": 1, "encoder": "other"}'})
    elif kind == "older":
        path.write_bytes(content.replace(b'\\"format\\": 1', b'\\"format\\": 0'))
        assert path.read_bytes() != content
    elif kind == "no header":
        save_file({"features": torch.zeros(1, 12, 5)}, path)
    elif kind == "other tensor":
        save_file({"pixels": torch.zeros(1)}, path)


@pytest.mark.parametrize("kind", ["torn", "empty", "garbage", "foreign", "older", "no header", "other tensor"])
def test_a_bad_file_is_ignored_and_rebuilt(images, processor, tmp_path, kind, caplog):
    expected = compute(images, processor, cache_dir=tmp_path, key="a").features
    damaged(only_file(tmp_path), kind)
    encode = CountingEncoder()
    assert torch.equal(compute(images, processor, encode, cache_dir=tmp_path, key="a").features, expected)
    assert encode.images == 12 and f"{only_file(tmp_path)}: ignored" in caplog.text
    compute(images, processor, encode, cache_dir=tmp_path, key="a")
    assert encode.images == 12  # rebuilt


def test_a_file_of_another_shape_is_ignored(tmp_path):
    store = FeatureStore(tmp_path)
    assert store.save({"a": 1}, torch.zeros(2, 3, 4))
    assert store.load({"a": 1}, shape=(2, 3, None)).shape == (2, 3, 4)
    assert store.load({"a": 1}, shape=(2, 4, None)) is None and store.load({"a": 2}) is None


@pytest.mark.parametrize("fault", ["read-only", "not a folder", "disk full"])
def test_a_folder_that_cannot_be_written_does_not_stop_the_work(
    images, processor, tmp_path, fault, monkeypatch, caplog
):
    monkeypatch.setattr(features_module, "SHARD_IMAGES", 5)
    expected = compute(images, processor).features
    folder = tmp_path / "cache"
    if fault == "not a folder":
        folder.write_text("a file")
    elif fault == "read-only":
        monkeypatch.setattr(features_module, "save_file", raiser(PermissionError(13, "Permission denied")))
    else:
        monkeypatch.setattr(os, "replace", raiser(OSError(28, "No space left on device")))
    encode = CountingEncoder()
    assert torch.equal(compute(images, processor, encode, cache_dir=folder, key="a").features, expected)
    assert [r.levelno for r in caplog.records] == [
        logging.WARNING
    ] and "features are not kept" in caplog.text  # said once
    assert folder.is_file() or not list(folder.iterdir())


def raiser(error):
    def fail(*arguments, **options):
        raise error

    return fail


def test_features_in_a_read_only_folder_are_used(images, processor, tmp_path, monkeypatch):
    compute(images, processor, cache_dir=tmp_path, key="a")
    monkeypatch.setattr(features_module, "save_file", raiser(PermissionError(13, "Permission denied")))
    encode = CountingEncoder()
    compute(images, processor, encode, cache_dir=tmp_path, key="a")
    assert encode.calls == 0


def test_an_interrupted_computation_goes_on_after_the_last_shard(images, processor, tmp_path, monkeypatch):
    monkeypatch.setattr(features_module, "SHARD_IMAGES", 5)
    options = {"views": 2, "augmentation": "coop", "cache_dir": tmp_path, "key": "a", "batch_size": 2}
    expected = compute(images, processor, views=2, augmentation="coop", batch_size=2).features
    with pytest.raises(KeyboardInterrupt):
        compute(images, processor, CountingEncoder(stop_after=8), **options)  # within the second shard of 5, 5, 2
    assert len(list(tmp_path.iterdir())) == 1
    encode, seen = CountingEncoder(), []
    features = compute(images, processor, encode, **options, progress=lambda done, total: seen.append((done, total)))
    assert encode.images == 2 * 7
    assert torch.equal(features.features, expected)  # batches are cut within shards: bit for bit
    assert [f.name.count("-") for f in tmp_path.iterdir()] == [1]  # the shards are gone, the file is there
    assert seen[0] == (5, 12) and seen[-1] == (12, 12) and seen == sorted(seen)


def test_a_torn_shard_is_computed_again(images, processor, tmp_path, monkeypatch):
    monkeypatch.setattr(features_module, "SHARD_IMAGES", 5)
    with pytest.raises(KeyboardInterrupt):
        compute(images, processor, CountingEncoder(stop_after=8), cache_dir=tmp_path, key="a", batch_size=1)
    damaged(next(tmp_path.iterdir()), "torn")
    encode = CountingEncoder()
    features = compute(images, processor, encode, cache_dir=tmp_path, key="a")
    assert encode.images == 12
    torch.testing.assert_close(features.features, compute(images, processor).features)


def work(images, processor, folder, barrier, results):
    torch.set_num_threads(1)
    plain = CountingEncoder()

    def encode(pixel_values):
        if plain.calls == 0:
            barrier.wait(60)  # both have found no file
        return plain(pixel_values)

    features = compute(images, processor, encode, cache_dir=folder, key="a")
    results.put((plain.images, features.features.double().sum().item()))


def test_two_processes_can_compute_the_same_features(images, processor, tmp_path, monkeypatch):
    monkeypatch.setattr(features_module, "SHARD_IMAGES", 5)
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(2), context.Queue()
    children = [context.Process(target=work, args=(images, processor, tmp_path, barrier, results)) for _ in range(2)]
    for child in children:
        child.start()
    outcomes = [results.get(timeout=60) for _ in children]
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    assert outcomes[0][1] == outcomes[1][1] and outcomes[0][0] > 0 and outcomes[1][0] > 0
    encode = CountingEncoder()
    read = compute(images, processor, encode, cache_dir=tmp_path, key="a")
    assert encode.calls == 0 and read.features.double().sum().item() == outcomes[0][1]
    assert len(list(tmp_path.iterdir())) == 1


def test_old_temporary_files_of_killed_runs_are_removed(tmp_path):
    old, young = tmp_path / ".tmp-features-1", tmp_path / ".tmp-features-2"
    for stray in (old, young):
        stray.write_bytes(b"x")
    os.utime(old, (time.time() - 100_000,) * 2)
    assert FeatureStore(tmp_path).save({"a": 1}, torch.zeros(1, 1, 1))
    assert not old.exists() and young.exists()


def test_dtype_is_kept_and_the_bar_goes_to_standard_error(images, processor, tmp_path, capsys):
    half = compute(images, processor, dtype=torch.float16, cache_dir=tmp_path, key="a", progress=True)
    again = compute(images, processor, dtype=torch.float16, cache_dir=tmp_path, key="a")
    assert half.features.dtype == again.features.dtype == torch.float16
    assert capsys.readouterr().out == ""  # bars are for stderr


def test_errors(images, processor, tmp_path):
    with pytest.raises(ValueError, match="key: got None with a cache_dir"):
        compute(images, processor, cache_dir=tmp_path)
    with pytest.raises(ValueError, match="image_set: no images"):
        compute(images.select([]), processor)
    with pytest.raises(ValueError, match="batch_size: got 0"):
        compute(images, processor, batch_size=0)
    with pytest.raises(ValueError, match=r"encode: gave \(4, 3, 8, 8\) for pixel_values \(4, 3, 8, 8\)"):
        compute(images, processor, lambda pixel_values: pixel_values)
    with pytest.raises(ValueError, match=r"encode: gave NoneType"):
        compute(images, processor, lambda pixel_values: None)

    calls = iter(range(100))

    def overflow(pixel_values):
        features = pixel_values.flatten(1)[:, :2].clone()
        if next(calls) == 1:
            features[3] = 1e6  # image 4 + 3 // 2 = 5
        return features

    with pytest.raises(ValueError, match=r"features of images\[3\] 'notov1/.*' are not finite in torch.float16"):
        compute(images, processor, overflow, views=2, augmentation="tip", dtype=torch.float16)
    with pytest.raises(ValueError, match=r"features: got \(2, 3\)"):
        Features(torch.zeros(2, 3), torch.zeros(3))


# --------------------------------------------------------------------------------------------------- FeatureDataset


def numbered(views=4, count=6):
    """The feature of view v of image i is (v, i)."""
    grid = torch.stack(torch.meshgrid(torch.arange(views), torch.arange(count), indexing="ij"), dim=-1).float()
    return Features(grid, torch.arange(count) % 2)


def views_of(dataset):
    rows = [dataset[i] for i in range(len(dataset))]
    assert [row["image_features"][1].item() for row in rows] == list(range(len(dataset)))
    assert [row["labels"] for row in rows] == dataset.features.labels.tolist()
    return [int(row["image_features"][0]) for row in rows]


def test_cycle_shows_every_view_once_in_v_epochs():
    dataset = FeatureDataset(numbered(), seed=3)
    seen = []
    for epoch in range(8):
        dataset.set_epoch(epoch)
        seen.append(views_of(dataset))
    for start in range(5):
        assert all(sorted(column) == [0, 1, 2, 3] for column in zip(*seen[start : start + 4], strict=True))
    assert seen[:4] == seen[4:] and len(set(seen[0])) > 1


@pytest.mark.parametrize("mode", ["cycle", "random"])
def test_the_view_is_a_function_of_seed_epoch_and_index(mode):
    dataset, other = FeatureDataset(numbered(), mode, seed=3), FeatureDataset(numbered(), mode, seed=3)
    by_epoch = []
    for epoch in range(6):
        dataset.set_epoch(epoch)
        by_epoch.append(views_of(dataset))
    assert len({tuple(v) for v in by_epoch[:4]}) == 4
    for epoch in (5, 2):
        other.set_epoch(epoch)
        assert [int(other[i]["image_features"][0]) for i in (4, 0, 4)] == [by_epoch[epoch][i] for i in (4, 0, 4)]
    other = FeatureDataset(numbered(count=30), mode, seed=4)
    assert views_of(other) != views_of(FeatureDataset(numbered(count=30), mode, seed=3))


def test_a_fixed_view_is_used_and_unknown_ones_are_refused():
    dataset = FeatureDataset(numbered(), views=2)
    dataset.set_epoch(9)
    assert views_of(dataset) == [2] * 6
    with pytest.raises(ValueError, match="views: got 4; these features have views 0..3"):
        FeatureDataset(numbered(), views=4)
    with pytest.raises(ValueError, match="views: got 'all'"):
        FeatureDataset(numbered(), views="all")


class Recorder(torch.nn.Module):
    """Takes what a classifier takes, and remembers which view of which image came."""

    accepts_loss_kwargs = False

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2, 2))
        self.seen = []

    def forward(self, image_features=None, labels=None):
        self.seen += [(int(i), int(v)) for v, i in image_features.tolist()]
        logits = image_features @ self.weight
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


@pytest.mark.parametrize("workers", [0, 1])
def test_trainer_tells_the_epoch(tmp_path, workers):
    dataset, model = FeatureDataset(numbered(), seed=1), Recorder()
    arguments = TrainingArguments(
        tmp_path,
        num_train_epochs=3,
        per_device_train_batch_size=4,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        dataloader_num_workers=workers,
        dataloader_persistent_workers=workers > 0,
    )
    Trainer(model, arguments, FeatureCollator(), dataset).train()
    for epoch in range(3):
        seen = sorted(model.seen[6 * epoch : 6 * epoch + 6])
        assert seen == list(enumerate(np.asarray(dataset.chosen_views(epoch)).tolist()))


def test_epoch_callback_counts_as_trainer_does():
    dataset = FeatureDataset(numbered())
    callback = EpochCallback(dataset)
    for epoch, expected in ((0, 0), (1.9999999999, 2), (2.5, 2), (3.0, 3)):
        callback.on_epoch_begin(None, type("State", (), {"epoch": epoch}), None)
        assert dataset.epoch == expected


@pytest.mark.parametrize("seed", range(6))
def test_chosen_views_are_those_of_all_views(images, processor, tmp_path, seed):
    draw = random.Random(seed)
    drawn = [sorted(draw.sample(range(7), draw.randint(0, 7))) for _ in range(len(images))]
    options = {"views": 7, "augmentation": "tip", "batch_size": draw.choice([1, 3, 8, 100])}
    everything = compute(images, processor, **options)
    encode, done = CountingEncoder(), []
    cache = {"cache_dir": tmp_path, "key": "k", "progress": lambda *count: done.append(count)}
    found = compute(images, processor, encode, drawn=drawn, num_workers=2 * (seed == 0), **options, **cache)
    samples = [(row, view) for row, views in enumerate(drawn) for view in views]
    assert encode.images == len(samples) == len(found) and done[-1] == (len(samples), len(samples))
    rows, views = zip(*samples, strict=True)
    torch.testing.assert_close(found.features[0], everything.features[list(views), list(rows)])
    assert found.labels.tolist() == [images.labels[row] for row in rows]
    assert found.ids == tuple(images.ids[row] for row in rows)

    again = compute(images, processor, encode, drawn=drawn, **options, **cache | {"progress": False})
    assert torch.equal(again.features, found.features) and encode.images == len(samples), "read from the cache"
    drawn[0] = [6] if drawn[0] != [6] else [5]
    other = compute(images, processor, encode, drawn=drawn, **options, **cache | {"progress": False})
    assert other.key != found.key and encode.images > len(samples), "other views are other features"


@pytest.mark.parametrize("drawn", [[[0]], [[]] * 12, [[2]] * 12, [[1, 0]] * 12, [[0, 0]] * 12, [[-1]] * 12])
def test_chosen_views_that_do_not_exist_are_refused(images, processor, drawn):
    with pytest.raises(ValueError, match="drawn: want a list of views for each of 12 images, numbers from 0 to 1"):
        compute(images, processor, views=2, augmentation="tip", drawn=drawn)


def test_a_broken_image_is_named_when_threads_read_ahead(images, processor, monkeypatch):
    views = AugmentedViews.views

    def broken(self, row, numbers):
        if row == 9:
            raise ValueError(f"images[{row}] {self.image_set.ids[row]!r}: broken")
        return views(self, row, numbers)

    monkeypatch.setattr(AugmentedViews, "views", broken)
    encode = CountingEncoder()
    with pytest.raises(ValueError, match=r"images\[9\] .*: broken"):
        compute(images, processor, encode)
    assert encode.images == 8, "the batches before it"
