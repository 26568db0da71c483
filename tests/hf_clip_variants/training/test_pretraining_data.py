"""Held-out rows, sources, and the number of steps."""

import pytest

from hf_clip_variants.data.images.emoji import FOLDER
from hf_clip_variants.data.pairs.batches import PairReader
from hf_clip_variants.data.pairs.sources import open_pairs
from hf_clip_variants.training import pretraining_data as data
from hf_clip_variants.training.pretraining_methods import pretraining_of
from hf_clip_variants.training.smoke_data import TONES


def pairs(**options):
    return open_pairs(FOLDER / "notov1.parquet", text_columns=["name"], **options)


def reader(seed):
    return PairReader(seed, 32, transform=lambda image, generator: {})


@pytest.mark.parametrize("seed", [0, 1])
def test_held_out_rows_are_never_trained_on_and_the_same_for_every_seed(seed):
    whole = pairs()
    (left,), (unseen, seen) = data.hold_out([whole], 0.2, reader(seed), None, None)
    names = [set(part.dataset["name"]) for part in (left, unseen.pairs, seen.pairs)]
    assert len(names[1]) == len(names[2]) == 38 and len(names[0]) == 152
    assert not names[0] & names[1] and names[2] <= names[0] and names[0] | names[1] == set(whole.dataset["name"])
    assert unseen.reader is None and seen.reader.seed != seed
    (again,), _ = data.hold_out([whole], 0.2, reader(7), None, None)
    assert again.dataset["name"][:] == left.dataset["name"][:]


def test_invalid_combinations_of_sources_are_refused():
    with pytest.raises(ValueError, match="hold_out: rows can be held out of one source"):
        data.hold_out([pairs(streaming=True)], 0.5, reader(0), None, None)
    with pytest.raises(ValueError, match="hold_out: got 1; want a share"):
        data.hold_out([pairs()], 1, reader(0), None, None)
    with pytest.raises(ValueError, match="stream: a stream is one source"):
        data.training_pairs([pairs(streaming=True)] * 2, reader(0), 4)
    with pytest.raises(ValueError, match="text_columns: no source has a column 'titel'"):
        data.open_sources(pretraining_of("clip"), [str(FOLDER / "notov1.parquet")], text_columns=["name", "titel"])


def test_epochs_count_the_longest_source():
    indexed = data.training_pairs([pairs()], reader(0), 5, world_size=2)
    assert data.steps_of_epochs(indexed, 2) == 38 and data.steps_of_epochs(indexed, 2, accumulate=4) == 10
    stream = data.training_pairs([pairs(streaming=True)], reader(0), 5)
    with pytest.raises(ValueError, match="epochs: a stream does not tell its length"):
        data.steps_of_epochs(stream, 1)


def test_tones_are_a_source_with_audio():
    (tones,) = data.open_sources(pretraining_of("audioclip"), [TONES])
    row = tones.dataset[3]
    assert tones.audio(row).startswith(b"RIFF") and tones.texts(row) and tones.image(row).mode == "RGBA"
