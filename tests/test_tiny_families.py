"""Properties of the small models of all families that other tests rely on."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_clip
from tiny_families import (
    FAMILIES,
    RESNET,
    SIGLIP_FAMILIES,
    family_class_names,
    save_tiny_family,
    tiny_dual_encoder,
    tiny_family_config,
    tiny_family_inputs,
    tiny_family_pixels,
    tiny_family_processor,
    tiny_family_tokenizer,
)
from torch.nn import functional as F
from transformers import MODEL_MAPPING, AutoModel, AutoProcessor, AutoTokenizer


OF_TRANSFORMERS = tuple(name for name in FAMILIES if name != RESNET)  # CLIP-ResNet has its own tests
each_family = pytest.mark.parametrize("model_type", OF_TRANSFORMERS)
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 50, 3), dtype=np.uint8))


@torch.no_grad()
def features(model, inputs, pixels):
    text = model.get_text_features(**inputs).pooler_output
    return text.float(), model.get_image_features(**pixels).pooler_output.float()


@each_family
def test_ids_and_sizes_agree_with_the_tokenizer(model_type):
    config, tokenizer = tiny_family_config(model_type), tiny_family_tokenizer(model_type)
    text = config.text_config
    assert config.model_type == model_type
    assert text.vocab_size == len(tokenizer)
    for kind in ("pad", "bos", "eos"):
        assert getattr(text, f"{kind}_token_id") == getattr(tokenizer, f"{kind}_token_id"), kind
    assert tokenizer.model_max_length == (16 if model_type in SIGLIP_FAMILIES else 32)
    assert 0 <= tokenizer.unk_token_id < len(tokenizer)
    assert len(tokenizer) < 600 or model_type == "clip"


@each_family
def test_model_runs_and_features_differ(model_type):
    model = tiny_dual_encoder(model_type)
    assert type(model) is MODEL_MAPPING[type(model.config)]
    assert not model.training and {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(p.isfinite().all() for p in model.parameters())
    inputs, pixels = tiny_family_inputs(model_type), tiny_family_pixels(model_type)
    with torch.no_grad():
        output = model(**inputs, **pixels)
    assert output.logits_per_image.shape == (4, 5) and output.logits_per_image.isfinite().all()
    width = 40 if model_type in SIGLIP_FAMILIES else 24
    for found, count in zip(features(model, inputs, pixels), (5, 4), strict=True):
        assert found.shape == (count, width)
        unit = F.normalize(found, dim=-1)
        assert (unit @ unit.t()).fill_diagonal_(-1).max() < 0.99
    assert output.logits_per_image.std() > 0.2


@each_family
def test_names_are_spelled_without_unknown_tokens(model_type):
    tokenizer = tiny_family_tokenizer(model_type)
    names = family_class_names(model_type)
    assert len(set(names)) == 5
    prompts = [("一张{}的照片。" if model_type == "chinese_clip" else "A photo of a {}.").format(n) for n in names]
    for texts in (names, prompts):
        rows = tokenizer(texts)["input_ids"]
        assert len({tuple(row) for row in rows}) == 5
        # CLIP pads with its unknown token, which is its end-of-text token too.
        assert model_type == "clip" or all(tokenizer.unk_token_id not in row for row in rows)
        assert max(map(len, rows)) <= tokenizer.model_max_length


def test_special_tokens_are_at_the_positions_of_the_family():
    def ends(model_type, **kwargs):
        row = tiny_family_tokenizer(model_type)("猫" if model_type == "chinese_clip" else "cat", **kwargs)["input_ids"]
        return row[0], row[-1], len(row)

    assert ends("clip") == (4036, 4037, 3)
    assert ends("metaclip_2") == ends("altclip") == (0, 2, 3)
    bert = tiny_family_tokenizer("chinese_clip")
    assert ends("chinese_clip") == (bert.cls_token_id, bert.sep_token_id, 3)
    for model_type, padding in (("siglip", 1), ("siglip2", 0)):
        tokenizer = tiny_family_tokenizer(model_type)
        cat = tokenizer("cat")["input_ids"]
        assert cat[-1] == tokenizer.eos_token_id == 1 and tokenizer("CAT")["input_ids"] == cat
        assert ends(model_type, padding="max_length") == (cat[0], padding, 16)
        assert list(tokenizer(["cat"])) == ["input_ids"]


@each_family
def test_seed_determines_the_model(model_type):
    first, again, other = (tiny_dual_encoder(model_type, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_clip_equals_tiny_clip():
    expected = tiny_clip(3).state_dict()
    assert all(
        torch.equal(tensor, expected[name]) for name, tensor in tiny_dual_encoder("clip", 3).state_dict().items()
    )


@each_family
def test_bfloat16(model_type):
    inputs, pixels = tiny_family_inputs(model_type), tiny_family_pixels(model_type)
    half = {name: tensor.bfloat16() if tensor.is_floating_point() else tensor for name, tensor in pixels.items()}
    exact = features(tiny_dual_encoder(model_type), inputs, pixels)
    for ours, expected in zip(features(tiny_dual_encoder(model_type).bfloat16(), inputs, half), exact, strict=True):
        torch.testing.assert_close(F.normalize(ours), F.normalize(expected), atol=0.03, rtol=0)


@each_family
def test_saved_family_loads_through_auto_classes(model_type, tmp_path):
    folder = save_tiny_family(model_type, tmp_path / model_type)
    model, inputs = tiny_dual_encoder(model_type), tiny_family_inputs(model_type)
    tokenizer, processor = AutoTokenizer.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    loaded = AutoModel.from_pretrained(folder)
    assert type(loaded) is type(model)
    assert type(processor) is type(tiny_family_processor(model_type))
    padding = "max_length" if model_type in SIGLIP_FAMILIES else True
    for reader in (tokenizer, processor.tokenizer):
        assert type(reader) is type(tiny_family_tokenizer(model_type))
        assert reader.model_max_length == tiny_family_tokenizer(model_type).model_max_length
        again = reader(family_class_names(model_type), padding=padding, return_tensors="pt")
        assert again.keys() == inputs.keys()
        assert all(torch.equal(again[name], tensor) for name, tensor in inputs.items())
    pixels = processor.image_processor(images=[IMAGE], return_tensors="pt")
    for ours, expected in zip(features(loaded, inputs, pixels), features(model, inputs, pixels), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)


def test_saved_family_loads_in_a_fresh_process(tmp_path):
    folders = [str(save_tiny_family(model_type, tmp_path / model_type)) for model_type in OF_TRANSFORMERS]
    program = (
        "import sys, transformers as t\n"
        "for f in sys.argv[1:]: print(*(type(c.from_pretrained(f)).__name__ "
        "for c in (t.AutoModel, t.AutoTokenizer, t.AutoProcessor)))"
    )
    run = subprocess.run([sys.executable, "-c", program, *folders], capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in run.stdout.splitlines()] == [
        type(tiny_dual_encoder(model_type)).__name__ for model_type in OF_TRANSFORMERS
    ]


def test_chinese_clip_resizes_without_crop():
    """Equal to resizing to a square without a crop."""
    processor = tiny_family_processor("chinese_clip").image_processor
    pixels = processor(images=[IMAGE], return_tensors="pt").pixel_values
    squashed = processor(images=[IMAGE.resize((24, 24), Image.Resampling.BICUBIC)], return_tensors="pt").pixel_values
    assert pixels.shape == (1, 3, 24, 24)
    torch.testing.assert_close(pixels, squashed, atol=0.05, rtol=0)


def test_siglip2_keeps_the_aspect_ratio():
    batch = tiny_family_processor("siglip2").image_processor(images=[IMAGE], return_tensors="pt")
    assert batch.pixel_values.shape == (1, 9, 192)
    assert batch.spatial_shapes.tolist() == [[2, 4]] and batch.pixel_attention_mask.sum() == 8


@each_family
def test_processor_output_fits_the_model(model_type):
    sizes = {"max_length": 16, "patch_size": 8, "max_num_patches": 9} if model_type == "siglip2" else {}
    padding = "max_length" if model_type in SIGLIP_FAMILIES else True
    names = family_class_names(model_type)
    batch = tiny_family_processor(model_type)(
        text=names, images=[IMAGE], padding=padding, return_tensors="pt", **sizes
    )
    with torch.no_grad():
        assert tiny_dual_encoder(model_type)(**batch).logits_per_image.shape == (1, 5)


def test_unknown_family_is_refused():
    with pytest.raises(ValueError, match="model_type='flava': expected one of clip, clipv-clip_resnet, metaclip_2"):
        tiny_dual_encoder("flava")
