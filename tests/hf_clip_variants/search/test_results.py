"""CSV and pages: formulas and markup in names are text, times are readable, the page needs no network."""

import csv
import io
import os
import re
import shutil
from html.parser import HTMLParser

import datasets
import pytest
from few_shot_runs import save_tiny_clip
from media_folders import NAMES, save_media
from model_contract import CASES

from hf_clip_variants import build_index, load_images
from hf_clip_variants.search.encoder import load_encoder
from hf_clip_variants.search.index import Hit
from hf_clip_variants.search.results import as_csv, as_page, moment, rows


HOSTILE = ("=1+1.png", "<script>alert(1)<b>.png", '" onerror="alert(1).png', "a\x1b[31m\u202e.png", "{{ 1 }}&lt;.png")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return load_encoder(save_tiny_clip(tmp_path_factory.mktemp("clip")), "cpu")


@pytest.fixture(scope="module")
def index(tmp_path_factory, encoder):
    folder = save_media(tmp_path_factory.mktemp("files"))
    for name in HOSTILE:
        shutil.copy(folder / NAMES[0], folder / name)
    return build_index(folder, encoder, tmp_path_factory.mktemp("place") / "index")


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, tuple(name for name, _ in attributes)))
        self.addresses += [value for name, value in attributes if name in ("src", "href", "srcset", "action")]

    def handle_data(self, data):
        self.text += data


def test_a_page_has_everything_in_it_and_names_are_text(index):
    hits = index.search("a cat", top=100)
    assert len(hits) == len(NAMES) + len(HOSTILE) + 3
    text = as_page(index, hits, '<script>alert("q")</script> \x1b[31m', image=index.source.location(NAMES[0]))
    page = Page(text)
    assert {tag for tag, _ in page.tags} <= set(
        "html head meta title style body div h1 p img ol li b span i a".split()
    )
    assert not any(name.startswith("on") for _, names in page.tags for name in names)
    assert all(address.startswith(("data:image/png;base64,", "file:///")) for address in page.addresses)
    assert sum(address.startswith("data:") for address in page.addresses) == len(hits) + 1, "and the query's"
    assert "default-src 'none'" in text and "://" not in re.sub(r"file:///[^\"]*", "", text)
    assert '<script>alert("q")</script>' in page.text and "<script>alert(1)<b>.png" in page.text
    assert "\x1b" not in text and "\u202e" not in text and "{{ 1 }}&lt;.png" in page.text
    assert re.search(r"0:0[012]\.5", page.text)


def test_files_that_are_gone_since_have_no_preview(index, encoder, tmp_path):
    folder = save_media(tmp_path / "files")
    own = build_index(folder, encoder, tmp_path / "index")
    shutil.rmtree(folder)
    page = Page(as_page(own, own.search("a cat", top=100), "a cat"))
    assert page.text.count("no preview: no such file") == len(NAMES) + 3
    assert "Nothing of these kinds" in as_page(own, [], "a cat")


def test_formulas_in_csv_are_escaped(encoder, tmp_path):
    icons = load_images("emoji:notov1")
    names = ["=HYPERLINK(1)", "@x", "+1", 'a "quoted", name', "-2"]
    cells = [{"image": {"bytes": icons.encoded_bytes(i), "path": name}} for i, name in enumerate(names)]
    rows_of_table = datasets.Dataset.from_list(cells).cast_column("image", datasets.Image())
    index = build_index(rows_of_table, encoder, tmp_path / "index")
    text = as_csv(index, index.search("a cat", top=10))
    cells = [row["path"] for row in csv.DictReader(io.StringIO(text))]
    assert sorted(cells) == sorted(["'=HYPERLINK(1)", "'@x", "'+1", 'a "quoted", name', "'-2"])
    assert text.startswith("path,kind,score,start,end\n")
    page = Page(as_page(index, index.search("a cat", top=10), "a cat"))
    assert sum(address.startswith("data:") for address in page.addresses) == 5
    assert not any(address.startswith("file:") for address in page.addresses)


def test_rows_say_where_the_file_is_and_when(index):
    found = {os.path.basename(row["path"]): row for row in rows(index, index.search("a cat", top=100))}
    assert os.path.isfile(found["long.mp4"]["path"]) and found["long.mp4"]["start"] in (0.5, 1.5, 2.5)
    assert found["=1+1.png"]["start"] is None and found["=1+1.png"]["kind"] == "image"


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (None, None, ""),
        (0.5, 0.5, "0:00.5"),
        (62.04, 62.04, "1:02"),
        (3599.98, 3600, "1:00:00"),
        (10, 20, "0:10 – 0:20"),
        (7325.25, 7330, "2:02:05.2 – 2:02:10"),
    ],
)
def test_moments_are_written_for_people(start, end, expected):
    assert moment(Hit("a", "video", 0.1, start, end, 0)) == expected


def test_sounds_are_shown_as_waves(tmp_path):
    case = CASES["audioclip"]
    case.make().save_pretrained(tmp_path / "model")
    case.processor().save_pretrained(tmp_path / "model")
    index = build_index(save_media(tmp_path / "files"), tmp_path / "model", tmp_path / "index", device="cpu")
    sound = index.source.location("sounds/long.wav")
    page = Page(as_page(index, index.search(sound=sound, kinds="audio"), sound=sound))
    assert sum(address.startswith("data:") for address in page.addresses) == 2 and "Sounds like this" in page.text
