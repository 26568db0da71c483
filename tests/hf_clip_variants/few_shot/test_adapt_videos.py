"""Videos among the data of `adapt` and `predict`: the mean of frames, folders of videos, what cannot be read."""

import csv
import io
import re

import numpy as np
import pytest
import torch
from few_shot_runs import results_of
from peft import get_peft_model
from PIL import Image
from tiny import tiny_pixels
from videos import write_video

from hf_clip_variants import CLIPClassifier, CLIPClassifierProcessor, MaPLeConfig
from hf_clip_variants.commands.adapt_results import print_results
from hf_clip_variants.data import AugmentedViews, load_images
from hf_clip_variants.data.images.video_frames import NUM_FRAMES, frames_of, stacked
from hf_clip_variants.evaluation.prediction import find_images
from hf_clip_variants.evaluation.video_features import with_mean_of_frames
from hf_clip_variants.modeling.dual_encoders.backbones import unit_norm


COLOURS = {"red thing": (220, 30, 30), "blue thing": (30, 30, 220)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Clips of two colours, one of them with a still image and a broken file."""
    root, random = tmp_path_factory.mktemp("videos") / "clips", np.random.default_rng(0)
    for split, count in (("train", 3), ("test", 2)):
        for name, colour in COLOURS.items():
            place = root / split / name.replace(" ", "_")
            place.mkdir(parents=True)
            for number in range(count):
                shades = random.uniform(0.5, 1, 6)
                frames = [np.full((32, 48, 3), np.multiply(colour, shade), np.uint8) for shade in shades]
                write_video(place / f"{number}.mp4", frames, fps=6)
    Image.new("RGB", (40, 40), COLOURS["red thing"]).save(root / "train" / "red_thing" / "still.png")
    (root / "test" / "blue_thing" / "broken.mp4").write_bytes(b"no video")
    return root


def classifier(clip, adapter=None):
    model = CLIPClassifier.from_pretrained(clip, class_names=list(COLOURS), dtype=torch.float32).eval()
    torch.manual_seed(0)
    return model if adapter is None else get_peft_model(model, adapter).eval()


@pytest.mark.parametrize("adapter", [None, MaPLeConfig(prompt_depth=2)])
def test_a_video_is_the_mean_of_its_frames_unit_features(clip, adapter):
    model = classifier(clip, adapter)
    size = CLIPClassifier.from_pretrained(clip).config.vision_config.image_size
    frames = tiny_pixels(6, size=size)
    videos = torch.stack([stacked(frames[:3]), stacked(frames[3:])])
    assert videos.shape == (2, 3, 3 * size, size)
    with torch.no_grad():
        with pytest.raises(ValueError, match="pixel_values"):
            model(pixel_values=videos)
        features = model.get_image_features(frames).pooler_output
        expected = model(image_features=unit_norm(features).unflatten(0, (2, 3)).mean(1)).logits
        images = model(pixel_values=frames).logits
        assert with_mean_of_frames(with_mean_of_frames(model)) is model
        torch.testing.assert_close(model(pixel_values=videos).logits, expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(model(pixel_values=frames).logits, images, rtol=0, atol=1e-4)
        with pytest.raises(ValueError, match="expected frames of"):
            model(pixel_values=videos[:, :, :-1])


def test_folders_of_videos_are_read_where_they_are_asked_for(folder, clip):
    images = load_images(folder, videos=True)
    assert len(images) == 7 and images.videos and images.class_names == ("blue thing", "red thing")
    assert all(len(frames_of(images.image(row))) == NUM_FRAMES for row in range(7))
    test = load_images(folder, "test", videos=True, on_error="skip")
    assert len(test) == 4 and test.skipped[0][0].endswith("broken.mp4")
    with pytest.raises(ValueError, match="no images for 1 of 2 classes: 'blue thing'; left out of them 3 .mp4"):
        load_images(folder)
    found = list(find_images([str(folder / "test")], videos=True))
    assert len(found) == 5 and not list(find_images([str(folder / "test")]))

    processor = CLIPClassifierProcessor.from_clip(clip)
    plain, size = AugmentedViews(images, processor)[0], AugmentedViews(images, processor).size[0]
    assert plain.shape == (1, 3, NUM_FRAMES * size, size)
    still = next(row for row in range(7) if images.ids[row].endswith("still.png"))
    views = AugmentedViews(images, processor, 3, "coop")[still].unflatten(2, (NUM_FRAMES, size))
    assert torch.equal(views, views[:, :, :1].expand_as(views))  # all frames of a video are cut alike


def test_the_command_fits_an_adapter_to_videos_and_predict_uses_it(folder, clip, run, tmp_path, capsys):
    out = tmp_path / "run"
    options = ["--model", clip, "--data", folder, "--out", out, "--shots", 1, "--seeds", 1]
    settings = ["--set", "maple.epochs=1", "--set", "maple.prompt_depth=2"]  # of two layers
    code, _, error = run("adapt", *options, "--methods", "tip_adapter,maple", *settings, "--json")
    assert code == 0, error
    results = results_of(out)
    assert results["data"]["train_images"] == 7 and results["data"]["class_names"] == ["blue thing", "red thing"]
    page = (out / "report.html").read_text()
    assert "of 4 test videos" in page or "on 4 test videos" in page
    assert "labelled videos to draw from" in page
    assert not re.search(r"\b(test|training|labelled) images?\b", page)
    print_results(results, str(out))
    said = capsys.readouterr().out
    assert (
        "4 test videos" in said
        and "predict" in said
        and "clips/" in said
        and "No test video was used to decide" in " ".join(said.split())
    )
    accuracy = {one["method"]: one["accuracy"]["test"] for one in results["runs"]}
    assert accuracy.keys() == {"tip_adapter", "maple"} and not any(one["error"] for one in results["runs"])
    adapter = out / "adapters" / "tip_adapter" / "1-shot" / "seed-1"
    code, answer, error = run("predict", folder / "test", "--adapter", adapter)
    assert code == 1 and "broken.mp4" in error
    rows = list(csv.DictReader(io.StringIO(answer)))
    right = [row["label"].replace(" ", "_") in row["path"] for row in rows if not row["error"]]
    assert len(rows) == 5 and len(right) == 4
    assert sum(right) / 4 == pytest.approx(accuracy["tip_adapter"])
