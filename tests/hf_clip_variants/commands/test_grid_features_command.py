"""`grid-features`: the data set that is written, of a ResNet, of Vision Transformers, of sizes; broken images."""

import json

import datasets
import numpy as np
import pytest
import torch
from clip_vil_runs import clip_vil_model, clip_vil_processor, noise, vit_config
from model_contract import CASES
from tiny import EMOJI_CLIP, copy_of

from hf_clip_variants import ClipViLModel


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grids")
    for name, config in (("resnet", {}), ("vit", {"config": vit_config})):
        clip_vil_model("vqa", **config).save_pretrained(folder / name)
        clip_vil_processor().save_pretrained(folder / name)
    case = CASES["clip_resnet"]
    case.make().save_pretrained(folder / "clip")
    case.processor().save_pretrained(folder / "clip")
    (folder / "photos").mkdir()
    for number, size in enumerate([(90, 50), (40, 70), (64, 64)]):
        noise(*size, number).save(folder / "photos" / f"{number}.png")
    return folder


@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_rows_are_what_the_model_sees(run, folder, tmp_path, name):
    code, _, err = run(
        "grid-features", folder / name, folder / "photos", "--out", tmp_path / "out", "--numbers", "float32"
    )
    assert code == 0 and "holds the grids of 3 images" in err, err
    rows = datasets.load_from_disk(str(tmp_path / "out"))
    model = ClipViLModel.from_pretrained(folder / name).eval()
    assert [row["path"].rpartition("/")[2] for row in rows] == ["0.png", "1.png", "2.png"]
    for row in rows:
        pixels = clip_vil_processor()(images=[row["path"]], return_tensors="pt").pixel_values
        assert (row["height"], row["width"]) == tuple(pixels.shape[-2:])
        expected = model.get_grid_features(pixels)[0]
        found = torch.tensor(row["grid"])
        if name == "vit":
            torch.testing.assert_close(torch.tensor(row["class_token"]), expected[0], rtol=1e-4, atol=1e-4)
            expected = expected[1:]
        else:
            assert row["class_token"] is None and expected.shape[:2] == (row["rows"], row["columns"])
            expected = expected.flatten(0, 1)
        assert len(found) == row["rows"] * row["columns"]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    # What was stored is what the model takes.
    shape = (1, rows[0]["rows"], rows[0]["columns"], -1) if name == "resnet" else None
    if shape:
        ids = torch.tensor([[2, 7, 3]])
        grid = torch.tensor(rows[0]["grid"]).reshape(shape)
        pixels = clip_vil_processor()(images=[rows[0]["path"]], return_tensors="pt").pixel_values
        with torch.no_grad():
            both = [model(ids, grid_features=grid).pooler_output, model(ids, pixels).pooler_output]
        torch.testing.assert_close(*both, rtol=1e-4, atol=1e-4)


def test_dual_encoders_sizes_and_json(run, folder, tmp_path):
    for model, size, rows, columns, width in (
        (EMOJI_CLIP, "32x48", 4, 6, 192),
        (EMOJI_CLIP, "40-80", 5, 9, 192),
        (folder / "clip", "64x96", 2, 3, 256),
    ):
        options = ["--size", size, "--out", tmp_path / "out", "--json"]
        code, printed, err = run("grid-features", model, folder / "photos" / "0.png", *options)
        assert code == 0 and json.loads(printed)["images"] == 1, err
        (row,) = datasets.load_from_disk(str(tmp_path / "out"))
        assert (row["rows"], row["columns"]) == (rows, columns) and np.array(row["grid"]).shape == (
            rows * columns,
            width,
        )
        assert (row["class_token"] is None) == (model != EMOJI_CLIP)


def test_broken_images_are_told_and_wrong_arguments_are_sentences(run, folder, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    noise(64, 64).save(tmp_path / "good.png")
    code, _, err = run("grid-features", folder / "resnet", tmp_path, "--out", tmp_path / "out")
    assert code == 1 and "broken.png" in err and len(datasets.load_from_disk(str(tmp_path / "out"))) == 1
    before = sorted(path.name for path in (tmp_path / "out").iterdir())
    for arguments, message in (
        ([tmp_path / "broken.png"], "no image could be read; the first is"),
        ([folder / "photos", "--size", "0"], "--size: got '0'; want 448"),
        ([folder / "photos", "--size", "600-100"], "--size: got '600-100'"),
        ([tmp_path / "out"], "no image files in"),
    ):
        code, _, err = run("grid-features", folder / "resnet", *arguments, "--out", tmp_path / "out")
        assert code == 1 and message in err, err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == before, "a failure changes nothing"
    text = tmp_path / "bert"
    copy_of("bert for grids", _bert).save_pretrained(text)
    clip_vil_processor().save_pretrained(text)
    code, _, err = run("grid-features", text, folder / "photos", "--out", tmp_path / "other")
    assert code == 1 and "has no image encoder with a grid" in err, err


def _bert():
    from transformers import BertConfig, BertModel

    return BertModel(
        BertConfig(vocab_size=35, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    )
