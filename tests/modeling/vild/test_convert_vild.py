"""The official ↔ ViLD mapping: both layouts there and back, what is inferred, files, and what is refused.

Only the head's names are those of a fixture (tests/parity/test_vild.py); the others follow the official sources, of
which no weights could be had.
"""

import pytest
import torch
from converter_contract import all_refused, in_half, one_of_a_kind, with_nan
from official_files import from_a_training
from PIL import Image
from safetensors.torch import save_file
from tiny import tiny_clip, tiny_pixels, tiny_tokenizer
from transformers import pipeline
from vild_runs import NAMES, vild_boxes, vild_model

from hf_clip_variants import ViLDForZeroShotObjectDetection, convert_checkpoint
from hf_clip_variants.conversion.checkpoint_reader import read_state_dict
from hf_clip_variants.modeling.vild.convert_vild import (
    CLASSES,
    convert_vild_state_dict,
    infer_vild_config,
    is_mmdet,
    to_official,
    vild_from_official,
)


BOTTLENECKS = {
    "embedding_size": 8,
    "hidden_sizes": [16, 24, 32, 40],
    "depths": [1, 2, 1, 1],
    "layer_type": "bottleneck",
}
LAYOUTS = {
    "tensorflow": {"variant": "ensemble", "rpn_num_convs": 2, "mask_num_convs": 2, "temperature": 0.01},
    "mmdet": {
        "variant": "ensemble",
        "convention": "mmdet",
        "mask_num_convs": 2,
        "batch_norm_eps": 1e-5,
        "temperature": 0.01,
        "novel_in_loss": "exclude",
        "anchor_ratios": (2.0, 1.0, 0.5),
    },
}


@pytest.fixture(params=LAYOUTS)
def tiny(request):
    model = vild_model(backbone_config=dict(BOTTLENECKS), **LAYOUTS[request.param])
    for name, tensor in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            tensor.zero_()
    return model


@pytest.fixture
def official(tiny):
    return to_official(tiny.state_dict(), tiny.config)


def own(model) -> dict[str, torch.Tensor]:
    left_out = ("text_encoder.", "class_embeddings")
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(left_out)}


def convert(official, tiny):
    return vild_from_official(official, class_names=None if is_mmdet(official) else NAMES, dual_encoder=tiny_clip())


def test_round_trip_is_exact(tiny, official):
    converted = convert_vild_state_dict(official, tiny.config)
    expected = own(tiny)
    assert converted.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(converted[name], tensor), name
    classes = {} if is_mmdet(official) else {"class_embeddings": tiny.class_embeddings}
    again = to_official(converted | classes, tiny.config)
    assert again.keys() == official.keys() and all(torch.equal(again[n], t) for n, t in official.items())


def test_sizes_are_inferred_from_shapes(tiny, official):
    found = infer_vild_config({n: t.to("meta") for n, t in official.items()})
    for name, value in found.items():
        wanted = getattr(tiny.config, name)
        if name == "backbone_config":
            assert {part: getattr(wanted, part) for part in value} == value
        elif name != "dual_encoder_config":
            assert list(wanted) == list(value) if name == "anchor_ratios" else wanted == value, name
    with pytest.raises(ValueError, match="variant: 'text', but the file has two branches"):
        infer_vild_config(official, variant="text")


def test_converted_model_detects_as_before_and_is_saved(tiny, official, tmp_path):
    model = convert(official | {"global_step": torch.zeros(())}, tiny)
    given = {"pixel_values": tiny_pixels(2, size=64), "proposals": vild_boxes(2, 4)}
    given["class_embeddings"] = tiny.class_embeddings
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = tiny(**given)
        for found in (model, ViLDForZeroShotObjectDetection.from_pretrained(tmp_path)):
            torch.testing.assert_close(found(**given).class_logits, expected.class_logits, rtol=1e-4, atol=1e-3)
            torch.testing.assert_close(found(**given).pred_boxes, expected.pred_boxes, rtol=1e-4, atol=1e-4)


def test_missing_and_unexpected_names_shapes_and_numbers_are_reported(tiny, official):
    needed = [name for name in official if name != CLASSES]
    kinds = one_of_a_kind(needed)
    all_refused(
        lambda w: convert_vild_state_dict(w, tiny.config),
        [({n: t for n, t in official.items() if n != name}, "missing") for name in kinds[::3]],
    )
    all_refused(
        lambda w: convert_vild_state_dict(w, tiny.config),
        [(official | {name: with_nan(official[name])}, "1 not finite") for name in kinds[::4]],
    )
    all_refused(
        lambda w: convert_vild_state_dict(w, tiny.config),
        [(official | {name: official[name][None]}, "shape") for name in kinds[::4]],
    )
    with pytest.raises(ValueError, match="^ViLD state dict: 1 unexpected: surprise/kernel$"):
        convert_vild_state_dict(official | {"surprise/kernel": torch.ones(3)}, tiny.config)
    with pytest.raises(ValueError, match="missing: "):
        infer_vild_config({"fc.0.weight": torch.zeros(2, 2)})


def test_half_precision_training_file_becomes_float32(tiny, official, tmp_path):
    weights = read_state_dict(from_a_training(in_half(official), tmp_path / "epoch_20.pth"))
    found = own(convert(weights, tiny))
    for name, tensor in own(tiny).items():
        rounded = tensor.half().float() if tensor.is_floating_point() else tensor
        assert torch.equal(found[name], rounded), name


def test_exported_variables_become_a_folder(tmp_path):
    model = vild_model(backbone_config=dict(BOTTLENECKS), rpn_num_convs=2)
    weights = to_official(model.state_dict(), model.config)
    weights |= {f"{name}/Momentum": torch.zeros_like(t) for name, t in list(weights.items())[:3]}
    save_file(weights, tmp_path / "vild.safetensors")
    done = convert_checkpoint(
        tmp_path / "vild.safetensors", tmp_path / "out", tokenizer="none", classes=",".join(NAMES)
    )
    assert done.method == "vild" and len(done.dropped) == 3 and "no text encoder" in " ".join(done.notes)
    loaded = ViLDForZeroShotObjectDetection.from_pretrained(tmp_path / "out")
    assert loaded.config.id2label == dict(enumerate(NAMES)) and torch.equal(
        loaded.class_embeddings, model.class_embeddings
    )


@pytest.mark.parametrize("with_texts", [False, True])
def test_compare_runs_the_model_before_and_after_saving(with_texts, tmp_path):
    """What it compares are the scores of regions, by the labels of the file or by texts."""
    model = vild_model(backbone_config=dict(BOTTLENECKS), rpn_num_convs=2, max_detections=300)
    save_file(to_official(model.state_dict(), model.config), tmp_path / "vild.safetensors")
    options = {"tokenizer": "none"}
    if with_texts:
        tiny_clip().save_pretrained(tmp_path / "clip")
        tiny_tokenizer().save_pretrained(tmp_path / "clip")
        options = {"tokenizer": str(tmp_path / "clip"), "dual_encoder": str(tmp_path / "clip")}
    done = convert_checkpoint(
        tmp_path / "vild.safetensors", tmp_path / "out", classes=",".join(NAMES), compare=True, **options
    )
    assert done.difference < 1e-3
    detect = pipeline("zero-shot-object-detection", str(tmp_path / "out"))
    assert detect(Image.new("RGB", (40, 30)), threshold=0.0)


def test_classes_and_width_must_fit(official, tiny):
    if is_mmdet(official):
        with pytest.raises(ValueError, match="dual_encoder: missing"):
            vild_from_official(official)
        return
    with pytest.raises(ValueError, match="class_names: 2 names, the file has 5"):
        vild_from_official(official, class_names=["a", "b"])
    model = vild_from_official(official)
    assert model.config.id2label[4] == "class 4" and model.text_encoder is None
