"""Pseudo-labels: what a teacher finds in image-text pairs, going on after a kill, and a student that trains on it."""

import json
import sys

import datasets
import pytest
import torch
from glip_runs import glip_model, glip_processor, noise
from killing import run_and_kill
from paths import SCRIPTS
from torchvision.ops import box_iou

from hf_clip_variants.data.detection_sets import load_grounding_set
from hf_clip_variants.data.pairs.sources import open_pairs
from hf_clip_variants.evaluation.pseudo_labels import label_pairs


CAPTIONS = [
    "a red car on the pizza",
    "a small dog",
    "on and of",
    "a cat " * 12,
    "the bird and a dog",
    "a man holding a cat",
]
OPTIONS = {"threshold": 0.3, "batch_size": 2, "part_size": 2}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A csv of images and captions; the last image but one is broken."""
    folder = tmp_path_factory.mktemp("pairs")
    lines = ["image,caption"]
    for i, caption in enumerate(CAPTIONS):
        noise(64, 48 + 8 * i, i).save(folder / f"{i}.png")
        lines.append(f"{i}.png,{caption}")
    (folder / "4.png").write_bytes(b"no image")
    (folder / "captions.csv").write_text("\n".join(lines) + "\n")
    return folder / "captions.csv"


def labelled(table, folder, **changes):
    return label_pairs(glip_model(), glip_processor(), open_pairs(table), folder, **OPTIONS | changes)


def files_of(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_labels_are_what_the_teacher_finds_for_the_phrases(table, tmp_path):
    told = []
    found = labelled(table, tmp_path / "out", progress=told.append)
    assert told == [2, 4, 6] and found.pairs == 6
    assert found.left_out == {"no phrase": 1, "too long": 1, "unreadable image": 1} and found.images == 3
    data = load_grounding_set(found.file)
    assert data.captions == [CAPTIONS[i] for i in (0, 1, 5)] and data.images[1].size == (64, 56)
    assert sum(map(len, data.annotations)) == found.boxes > 10
    # The first image by hand, with the one that it was padded with.
    processor, model = glip_processor(), glip_model()
    images = [data.images[0], data.images[1]]
    with torch.no_grad():
        outputs = model(**processor(images, captions=CAPTIONS[:2]))
    one = processor.post_process_grounded_object_detection(
        outputs, threshold=0.3, target_sizes=[(image.height, image.width) for image in images]
    )[0]
    spans = [[0, 9], [13, 22]]
    assert [CAPTIONS[0][a:b] for a, b in spans] == ["a red car", "the pizza"]
    marks = data.annotations[0]
    assert [mark["tokens_positive"] for mark in marks] == [[spans[label]] for label in one["labels"].tolist()]
    corners = torch.tensor([mark["bbox"] for mark in marks])
    corners[:, 2:] += corners[:, :2]
    torch.testing.assert_close(corners, one["boxes"], rtol=0, atol=0.02)
    scores = [mark["score"] for mark in json.loads(found.file.read_text())["annotations"] if mark["image_id"] == 0]
    assert scores == pytest.approx(one["scores"].tolist(), abs=1e-4) and min(scores) > 0.3


def test_a_thing_has_one_name_and_every_phrase_a_box(table, tmp_path):
    """With phrase_nms, of overlapping boxes the best is kept, whatever its phrase; each phrase for itself without."""
    plain = load_grounding_set(labelled(table, tmp_path / "plain").file)
    single = labelled(table, tmp_path / "single", phrase_nms=0.5)
    names = {}
    for kind, data in (("plain", plain), ("single", load_grounding_set(single.file))):
        for caption, marks in zip(data.captions, data.annotations, strict=True):
            corners = torch.tensor([mark["bbox"] for mark in marks])
            corners[:, 2:] += corners[:, :2]
            close = box_iou(corners, corners) > 0.5
            spans = [mark["tokens_positive"] for mark in marks]
            shared = any(close[i, j] and spans[i] != spans[j] for i in range(len(marks)) for j in range(i))
            names.setdefault(kind, {})[caption] = len({str(span) for span in spans}), shared
    assert any(shared for _, shared in names["plain"].values())
    assert not any(shared for _, shared in names["single"].values())
    # Captions of which a phrase lost all its boxes.
    wanted = {caption: len(glip_processor().phrases_of(caption)) for caption in names["single"]}
    whole = [caption for caption, (count, _) in names["single"].items() if count == wanted[caption]]
    found = labelled(table, tmp_path / "whole", phrase_nms=0.9, every_phrase=True, threshold=0.5)
    some = labelled(table, tmp_path / "some", phrase_nms=0.9, threshold=0.5)
    assert found.left_out.get("a phrase without box", 0) == some.images - found.images
    assert (
        load_grounding_set(labelled(table, tmp_path / "c", phrase_nms=0.5, every_phrase=True).file).captions == whole
    )
    with pytest.raises(ValueError, match="phrase_nms: .* another phrase_nms \\(0.5, now None\\)"):
        labelled(table, tmp_path / "single")


def test_a_kill_at_any_write_loses_at_most_a_part(table, tmp_path):
    labelled(table, tmp_path / "whole")
    expected = files_of(tmp_path / "whole")
    parts = 0
    for nth in range(1, 30, 7):
        folder = tmp_path / f"killed-{nth}"
        folder.mkdir()
        killed = run_and_kill(lambda folder=folder: labelled(table, folder), folder, nth)
        before = {name: content for name, content in files_of(folder).items() if "tmp" not in name}
        parts += sum(name.startswith("parts/") for name in before)
        assert all(expected[name] == content for name, content in before.items())
        labelled(table, folder)
        after = {name: content for name, content in files_of(folder).items() if ".tmp-" not in name}
        assert after == expected
        if killed != -9:
            break
    else:
        pytest.fail("never ran to its end")
    assert parts > 2


def test_images_that_are_no_files_are_written_and_other_settings_refused(table, tmp_path):
    rows = [{"image": noise(64, 48, i), "text": text} for i, text in enumerate(CAPTIONS[:2])]
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "pairs.parquet")
    found = labelled(tmp_path / "pairs.parquet", tmp_path / "out", most_pairs=1)
    assert found.images == 1 and (tmp_path / "out" / "images" / "00000000.png").is_file()
    assert load_grounding_set(found.file).images[0].size == (64, 48)
    with pytest.raises(ValueError, match="threshold: .* were made with another threshold \\(0.3, now 0.6\\)"):
        labelled(tmp_path / "pairs.parquet", tmp_path / "out", threshold=0.6)
    with pytest.raises(ValueError, match="out: .* were made with another teacher"):
        label_pairs(
            glip_model(1), glip_processor(), open_pairs(tmp_path / "pairs.parquet"), tmp_path / "out", **OPTIONS
        )
    for changes, message in (
        ({"threshold": 2.0}, "threshold: 2.0"),
        ({"batch_size": 0}, "batch_size: 0"),
        ({"phrase_nms": -1}, "phrase_nms: -1"),
    ):
        with pytest.raises(ValueError, match=message):
            labelled(table, tmp_path / "none", **changes)
    nothing = labelled(table, tmp_path / "nothing", threshold=1.0)
    assert (nothing.images, nothing.boxes) == (0, 0) and nothing.left_out["no box"] == 3


def test_a_student_trains_on_a_teachers_labels(table, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    threads = torch.get_num_threads()
    import finetune_detection
    import pseudo_label_detection

    for seed, name in enumerate(("teacher", "student")):
        for part in (glip_model(seed), glip_processor()):
            part.save_pretrained(tmp_path / name)
    out = tmp_path / "labels"
    command = ["--teacher", tmp_path / "teacher", "--pairs", table, "--out", out, "--threshold", "0.3"]
    try:
        assert pseudo_label_detection.main([str(one) for one in command]) == 0
        assert (
            "boxes in 3 of 6 images; left out: no phrase 1, too long 1, unreadable image 1" in capsys.readouterr().out
        )
        assert pseudo_label_detection.main([*(str(one) for one in command), "--batch-size", "3"]) == 2
        assert "--batch-size: " in capsys.readouterr().err
        command = ["--model", tmp_path / "student", "--grounding", out / "grounding.json", "--out", tmp_path / "run"]
        command += ["--steps", "4", "--batch-size", "3", "--lr", "3e-3", "--log-every", "1"]
        assert finetune_detection.main([str(one) for one in command]) == 0
    finally:
        torch.set_num_threads(threads)
        for name in ("finetune_detection", "pseudo_label_detection"):
            sys.modules.pop(name, None)
    losses = [row["loss"] for row in json.loads((tmp_path / "run" / "run.json").read_text())["log"] if "loss" in row]
    assert len(losses) == 4 and losses[-1] < losses[0]
