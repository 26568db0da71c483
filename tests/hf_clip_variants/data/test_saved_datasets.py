"""Folders of `datasets` whose files are damaged: a sentence, and no death of the process."""

import struct

import datasets
import pytest
from PIL import Image

from hf_clip_variants.data.detection_sets import load_detection_set
from hf_clip_variants.data.images.label_maps import load_label_maps
from hf_clip_variants.data.images.sources import load_images
from hf_clip_variants.data.saved_datasets import is_saved_dataset, load_saved_dataset
from hf_clip_variants.search.sources import open_source


TEXTS = ["apple", "banana", "kiwi fruit"]


@pytest.fixture(params=["one", "splits"])
def folder(request, tmp_path):
    """Texts that end before they begin."""
    rows = datasets.Dataset.from_dict(
        {"image": [Image.new("RGB", (8, 8))] * 3, "label": TEXTS, "objects": [{"bbox": [[0, 0, 1, 1]]}] * 3}
    )
    whole = rows if request.param == "one" else datasets.DatasetDict({"train": rows})
    whole.save_to_disk(tmp_path / "saved")
    (file,) = (tmp_path / "saved").rglob("*.arrow")
    content, offsets = file.read_bytes(), struct.pack("<4i", 0, 5, 11, 21)
    assert content.count(offsets) == 1 and is_saved_dataset(tmp_path / "saved")
    file.write_bytes(content.replace(offsets, struct.pack("<4i", 0, 2**30, 11, 21)))
    return tmp_path / "saved"


@pytest.mark.parametrize("load", [load_saved_dataset, load_images, load_label_maps, load_detection_set, open_source])
def test_every_reader_says_that_a_saved_data_set_is_damaged(load, folder):
    with pytest.raises(OSError, match=r"saved: a saved data set that cannot be read: it is damaged"):
        load(str(folder))


def test_a_folder_without_its_description_is_said(folder):
    for path in folder.rglob("dataset_info.json"):
        path.write_text("{")
    with pytest.raises(OSError, match="saved: a saved data set that cannot be read"):
        load_saved_dataset(folder)
