"""Other dual encoders than CLIP on the command line: Chinese class names, and each family's pixels and tokens."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_families import (
    FAMILIES,
    RESNET,
    family_class_names,
    family_image_size,
    save_tiny_family,
    tiny_dual_encoder,
    tiny_family_processor,
)
from transformers import AutoProcessor

from hf_clip_variants import CLIPClassifierProcessor
from hf_clip_variants.registry import few_shot_entries


def make_image(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((40, 30), Image.Resampling.BICUBIC)


def save_classes(folder, names, count: int = 3):
    for index, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            make_image(10 * index + number).save(folder / name / f"{number}.png")
    return folder


def adapt_once(clip, data, out) -> list:
    return ["adapt", "--model", clip, "--data", data, "--out", out, "--shots", "1", "--seeds", "1", "--json"]


@pytest.mark.parametrize("model_type", FAMILIES)
def test_images_are_preprocessed_as_by_the_family(model_type):
    theirs, images = tiny_family_processor(model_type), [make_image(0), make_image(1)]
    ours = CLIPClassifierProcessor.from_clip(theirs)
    pixels = ours(images=images, return_tensors="pt").pixel_values
    size = family_image_size(model_type)
    assert pixels.shape == (2, 3, size, size)
    if model_type != "siglip2":
        expected = theirs.image_processor(images, return_tensors="pt").pixel_values
        assert torch.equal(pixels, expected)
    else:  # a square of as many patches, normalised alike
        square = [p.resize((24, 24), Image.Resampling.BILINEAR) for p in images]
        expected = theirs.image_processor(square, return_tensors="pt")
        model = tiny_dual_encoder("siglip2")
        with torch.no_grad():
            a = model.get_image_features(**expected).pooler_output
            from hf_clip_variants.modeling.dual_encoders.backbones import family_of

            b = family_of("siglip2").image_features(model, pixels).pooler_output
        assert torch.nn.functional.cosine_similarity(a, b).min() > 0.99


def test_chinese_class_names_work_on_the_command_line(run, tmp_path):
    names = family_class_names("chinese_clip")
    clip = save_tiny_family("chinese_clip", tmp_path / "clip")
    data = save_classes(tmp_path / "图片", names)
    arguments = adapt_once(clip, data, tmp_path / "run")
    code, out, err = run(*arguments, "--methods", "all", "--set", "epochs=2", "--set", "maple.prompt_depth=2")
    assert code == 0, err
    results = json.loads(out)
    assert sorted(results["data"]["class_names"]) == sorted(names)
    assert results["settings"]["templates"] == ["一张{}的照片。"]
    assert [record["error"] for record in results["runs"]] == [None] * len(few_shot_entries())
    processor = AutoProcessor.from_pretrained(tmp_path / "run" / "base")
    assert not processor.image_processor.do_center_crop, "Chinese-CLIP squashes"
    report = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "金毛犬" in report
    for method in ("coop", "cocoop", "maple", "tip_adapter"):
        adapter = tmp_path / "run" / "adapters" / method / "1-shot" / "seed-1"
        code, out, err = run("predict", data / "猫" / "0.png", "--adapter", adapter, "--top", "5", "--json")
        assert code == 0, err
        assert all(name in out or json.dumps(name)[1:-1] in out for name in names)
    code, out, err = run(
        "predict", data / "猫" / "0.png", "--model", clip, "--classes", "猫, 跑车", "--top", "2", "--json"
    )
    assert code == 0 and {"猫", "跑车"} == {guess["label"] for guess in json.loads(out)["top"]}


@pytest.mark.parametrize("model_type", [name for name in FAMILIES if name not in ("clip", "chinese_clip")])
def test_adapt_works_with_other_families(model_type, run, tmp_path):
    clip = save_tiny_family(model_type, tmp_path / "clip")
    data = save_classes(tmp_path / "images", family_class_names(model_type))
    arguments = adapt_once(clip, data, tmp_path / "run")
    methods = "coop,tip_adapter,cocoop" if model_type == RESNET else "coop,maple,tip_adapter"
    arguments += ["--methods", methods, "--set", "epochs=2"]
    arguments += ["--set", "maple.prompt_depth=2"] if "maple" in methods else []
    code, out, err = run(*arguments)
    assert code == 0, err
    assert [record["error"] for record in json.loads(out)["runs"]] == [None] * 3
