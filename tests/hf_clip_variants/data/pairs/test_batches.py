"""Batches of pairs follow from the seed and the place in the run, not from workers, processes or interruptions."""

import io
import itertools
import logging
import tarfile

import datasets
import pytest
import torch
from tiny import tiny_tokenizer

from hf_clip_variants.data.augmentation.batches import AUGMENTATIONS_OF_BATCHES
from hf_clip_variants.data.images.emoji import FOLDER
from hf_clip_variants.data.pairs.batches import (
    CropView,
    PairCollator,
    PairDataset,
    PairLoader,
    PairReader,
    PairStream,
    PairViews,
    PositionSampler,
    shares,
    square,
)
from hf_clip_variants.data.pairs.sources import open_pairs


SIZE = 24
STYLES = ["notov1", "fluent3d", "fluentflat", "emojione"]


def emoji(*styles, **options):
    return open_pairs(
        ",".join(str(FOLDER / f"{s}.parquet") for s in styles), text_columns=["name", "group"], **options
    )


def reader(**options):
    return PairReader(seed=5, source_size=SIZE, templates=("{}", "an icon of {}"), **options)


def views(name="icons"):
    return PairViews({"pixel_values": AUGMENTATIONS_OF_BATCHES[name]}, SIZE, [0.5] * 3, [0.5] * 3, seed=5)


def collator(**options):
    return PairCollator(tiny_tokenizer(), 32, **{"views": views()} | options)


def batches(data, count, batch_size=8, rank=0, world_size=1, first=0, workers=0, collate=None):
    options = {"collate_fn": collate or collator(), "num_workers": workers}
    if isinstance(data, PairStream):
        data.first_batch = first
        loader = PairLoader(data, batch_size=batch_size, first_batch=first, **options)
    else:
        loader = PairLoader(data, batch_sampler=PositionSampler(batch_size, rank, world_size, first), **options)
    return list(itertools.islice(loader, count))


def assert_equal(some, others):
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            if isinstance(one[name], torch.Tensor):
                assert torch.equal(one[name], other[name]), name
            else:
                assert one[name] == other[name]


# ---- indexed data


def test_workers_change_nothing():
    data = PairDataset([emoji("notov1", "fluent3d")], reader(), 8)
    assert_equal(batches(data, 4), batches(data, 4, workers=2))


def test_a_run_that_goes_on_gets_the_batches_it_would_have_got():
    data = PairDataset([emoji("notov1")], reader(), 8)
    whole = batches(data, 30)  # more than once through
    assert_equal(whole[22:], batches(PairDataset([emoji("notov1")], reader(), 8), 8, first=22))


def test_processes_divide_the_batches_of_one():
    data = PairDataset([emoji("notov1")], reader(), 8)
    collate = collator(views=None, pad_to_max_length=True)
    whole = batches(data, 3, collate=collate)
    parts = [batches(data, 3, 4, rank, 2, collate=collate) for rank in range(2)]
    for one, halves in zip(whole, zip(*parts, strict=True), strict=True):
        assert one["keys"] == halves[0]["keys"] + halves[1]["keys"]
        for name in ("images", "input_ids"):
            assert torch.equal(one[name], torch.cat([half[name] for half in halves]))


def test_every_row_once_an_epoch_in_another_order_each_time():
    data = PairDataset([emoji("notov1")], reader(), 10)
    assert data.epoch_steps == 19
    epochs = [[data._row(0, number, number) for number in range(190 * e, 190 * (e + 1))] for e in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(190)) and epochs[0] != epochs[1]


def test_a_batch_has_its_share_of_each_source_and_no_concept_twice():
    data = PairDataset(
        [emoji("notov1", "fluent3d", "fluentflat"), emoji("emojione")], reader(), 16, mix=[3, 1], distinct="hexcode"
    )
    assert data.counts == [12, 4] and data.sizes == [190, 190]
    shown = set()
    for start in range(0, 16 * 10, 16):
        places = [data._place(position) for position in range(start, start + 16)]
        assert [part for part, _ in places] == [0] * 12 + [1] * 4
        rows = [data._row(part, number, start) for part, number in places[:12]]
        assert len({row % 190 for row in rows}) == 12, "a concept is in the same row of every style"
        shown |= {row // 190 for row in rows}
    assert shown == {0, 1, 2}, "each time in a random style"


def test_texts_and_templates_vary():
    data = PairDataset([emoji("notov1")], reader(), 8)
    texts = {data[position]["text"] for position in range(190)}
    assert {"food-drink", "an icon of food-drink", "an icon of hot dog"} & texts
    assert sum(text.startswith("an icon of") for text in texts) > 30


@pytest.fixture
def holed():
    """Twelve rows; two images cannot be read and one has no text."""
    rows = emoji("notov1").dataset.select(range(12)).to_list()
    rows[3]["image"] = {"bytes": b"no image", "path": None}
    rows[4]["name"] = None
    rows[9]["image"] = None
    features = datasets.Features({"image": datasets.Image(), "name": datasets.Value("string")})
    table = {name: [row[name] for row in rows] for name in features}
    return datasets.Dataset.from_dict(table, features=features), [
        r["name"] for i, r in enumerate(rows) if i not in (3, 4, 9)
    ]


@pytest.mark.parametrize("stream", [False, True])
def test_rows_that_cannot_be_read_are_named_and_replaced(stream, holed, caplog):
    dataset, good = holed
    plain = PairReader(seed=5, source_size=SIZE)

    def make(on_error):
        if stream:
            return PairStream(open_pairs(dataset.to_iterable_dataset()), plain, 4, shuffle_buffer=0, on_error=on_error)
        return PairDataset([open_pairs(dataset)], plain, 4, on_error=on_error)

    with caplog.at_level(logging.WARNING):
        texts = [t for b in batches(make("skip"), 6, 4, collate=lambda rows: [row["text"] for row in rows]) for t in b]
    assert len(texts) == 24 and set(texts) == set(good)
    said = [record.message for record in caplog.records if "skipped" in record.message]
    assert any("not an image" in text for text in said) and any("no text in name" in text for text in said)
    assert any("null" in text for text in said)
    if not stream:
        assert len(said) == 3 and any("row 3" in text for text in said)
    with pytest.raises(ValueError, match=r"row .*(not an image|no text|null)"):
        batches(make("raise"), 6, 4)


def test_data_of_broken_rows_alone_ends_with_an_error():
    rows = {"image": [{"bytes": b"x", "path": None}] * 3, "name": ["a", "b", "c"]}
    dataset = datasets.Dataset.from_dict(
        rows, datasets.Features({"image": datasets.Image(), "name": datasets.Value("string")})
    )
    with pytest.raises(ValueError, match="cannot be read"):
        batches(PairDataset([open_pairs(dataset)], reader(), 2, on_error="skip"), 1, 2)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"mix": [1, 0.001]}, "want at least 1 each"),
        ({"mix": [1, -1]}, "positive"),
        ({"mix": [1.0]}, "2 sources"),
        ({"distinct": "code"}, "no source has a column 'code'"),
        ({"on_error": "ignore"}, "on_error: got 'ignore'"),
    ],
)
def test_wrong_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PairDataset([emoji("notov1"), emoji("fluent3d")], reader(), 8, **options)
    with pytest.raises(ValueError, match="is a stream"):
        PairDataset([emoji("notov1", streaming=True)], reader(), 8)


def test_shares_use_up_the_batch():
    assert shares([704, 320], 1024) == [704, 320] and shares([1, 1, 1], 8) == [3, 3, 2]
    assert all(sum(shares([0.3, 0.3, 0.4], n)) == n for n in range(1, 50))


# ---- streams


def stream(styles=STYLES, rank=0, world=1, batch_size=8, buffer=20):
    return PairStream(
        emoji(*styles, streaming=True), reader(), batch_size, rank=rank, world_size=world, shuffle_buffer=buffer
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_goes_on_where_it_was(workers):
    whole = batches(stream(), 14, workers=workers)
    assert_equal(whole[9:], batches(stream(), 5, first=9, workers=workers))


@pytest.fixture
def shards(tmp_path):
    """Two tar files of 30 samples each; every seventh lacks its text."""
    rows = emoji("notov1").dataset.select(range(60))
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for number in range(30 * shard, 30 * shard + 30):
                members = {"png": rows[number]["image"]["bytes"], "txt": rows[number]["name"].encode()}
                for extension, content in list(members.items())[: 1 if number % 7 == 3 else 2]:
                    member = tarfile.TarInfo(f"{number:03}.{extension}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return tmp_path


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_of_shards_with_missing_members_goes_on_where_it_was(workers, shards):
    data = PairStream(open_pairs(shards), reader(), 4, shuffle_buffer=10, on_error="raise")
    assert data.max_workers == 2
    whole = batches(data, 20, batch_size=4, workers=workers)
    assert_equal(whole[13:], batches(data, 7, batch_size=4, first=13, workers=workers))


def test_two_processes_read_a_shard_each(shards):
    keys = []
    for rank in range(2):
        data = PairStream(open_pairs(shards), reader(), 4, rank=rank, world_size=2, shuffle_buffer=0)
        keys.append({row["__key__"] for row in itertools.islice(data._rows(), 26)})
    assert [len(each) for each in keys] == [26, 25] and not keys[0] & keys[1]


@pytest.mark.parametrize("source", ["captions.csv", "beside"])
def test_a_stream_of_a_table_or_of_text_files_goes_on_where_it_was(source, tmp_path):
    rows = emoji("notov1").dataset.select(range(40))
    (tmp_path / "beside").mkdir()
    lines = ["path,caption"]
    for number, row in enumerate(rows):
        (tmp_path / "beside" / f"{number}.png").write_bytes(row["image"]["bytes"])
        (tmp_path / "beside" / f"{number}.txt").write_text(row["name"])
        lines.append(f"beside/{number}.png,{number}")  # digits
    (tmp_path / "captions.csv").write_text("\n".join(lines))
    data = PairStream(open_pairs(tmp_path / source, streaming=True), reader(), 4, shuffle_buffer=10, on_error="raise")
    assert data.max_workers == 40
    whole = batches(data, 14, batch_size=4, workers=2)
    assert_equal(whole[11:], batches(data, 3, batch_size=4, first=11, workers=2))
    indexed = PairDataset([open_pairs(tmp_path / source)], reader(), 4)
    assert_equal(batches(indexed, 12, 4)[9:], batches(indexed, 3, 4, first=9, workers=2))


def test_what_was_read_before_is_not_decoded_again(monkeypatch):
    data = stream()
    calls = []
    read = PairReader.__call__
    monkeypatch.setattr(PairReader, "__call__", lambda self, *args: calls.append(1) or read(self, *args))
    batches(data, 2, first=50)
    assert len(calls) == 16


@pytest.mark.parametrize("styles, shards", [(STYLES, "divided"), (STYLES[:3], "not divided")])
def test_two_processes_read_different_rows_and_never_run_dry(styles, shards):
    """Three shards on two processes: each takes every second row of all."""
    steps = 190 * len(styles) // 16 + 5  # beyond the end of the data
    seen = []
    for rank in range(2):
        data = PairStream(
            emoji(*styles, streaming=True),
            PairReader(seed=5, source_size=8),
            8,
            rank=rank,
            world_size=2,
            shuffle_buffer=0,
        )
        rows = batches(data, steps, collate=lambda samples: [(s["text"], s["image"].sum().item()) for s in samples])
        assert len(rows) == steps
        seen.append({pair for batch in rows[: 190 * len(styles) // 16] for pair in batch})
    assert len(seen[0] & seen[1]) < 10, "but for images that look the same"


def test_a_stream_is_shuffled_anew_each_time_round():
    data = stream(["notov1"], buffer=500)
    texts = [s["image"].sum().item() for s in itertools.islice(iter(data), 380)]
    assert sorted(texts[:190]) == sorted(texts[190:]) and texts[:190] != texts[190:]


def test_a_stream_has_no_more_workers_than_shards():
    assert stream(STYLES).max_workers == 4 and stream(STYLES, 0, 2).max_workers == 2


def test_an_empty_stream_is_an_error():
    features = datasets.Features({"image": datasets.Image(), "name": datasets.Value("string")})
    empty = datasets.IterableDataset.from_generator(lambda: iter(()), features=features)
    with pytest.raises(ValueError, match="no rows for process 0"):
        next(iter(PairStream(open_pairs(empty), reader(), 2)))


# ---- views


def test_augmentation_on_the_device_is_that_of_the_workers():
    data = PairDataset([emoji("notov1")], reader(), 8)
    (in_worker,), (left,) = batches(data, 1), batches(data, 1, collate=collator(views=None))
    made = views()(left["images"], left["keys"])
    assert torch.equal(in_worker["pixel_values"], made["pixel_values"])
    assert in_worker["return_loss"] is True and "images" not in in_worker


def test_a_transform_gets_whole_images_and_its_own_generator():
    crop = CropView(SIZE, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    data = PairDataset([emoji("notov1")], reader(transform=crop), 8)
    some, again = batches(data, 1), batches(data, 1)
    assert_equal(some, again)
    assert some[0]["pixel_values"].shape == (8, 3, SIZE, SIZE)
    assert some[0]["pixel_values"].min() >= -1.0001 and some[0]["pixel_values"].max() <= 1.0001


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_wide_images_are_cut_and_wide_drawings_are_padded(mode):
    from PIL import Image

    wide = Image.new(mode, (80, 40), (10, 20, 30, 255)[: len(mode)])
    image = square(wide, 16)
    assert image.shape == (4, 16, 16) and image.dtype == torch.uint8
    assert image[3].min() == (255 if mode == "RGB" else 0)
    assert image[3, 8].min() == 255 and image[:3, 8, 8].tolist() == [10, 20, 30]
