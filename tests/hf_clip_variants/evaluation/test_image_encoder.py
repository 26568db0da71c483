"""Features that are kept belong to the weights, settings and processor that made them, whatever differs."""

import json
import shutil

import pytest
import torch
from few_shot_runs import save_tiny_clip
from safetensors.torch import load_file, save_file

from hf_clip_variants import load_images
from hf_clip_variants.evaluation.image_encoder import load_image_encoder


IMAGES = load_images("emoji:notov1").select(range(6))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


def weights(folder, name="vision_model.encoder.layers.1.mlp.fc1.weight"):
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = tensors[name] + 0.05 * torch.randn_like(tensors[name])
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def settings(file, *path, value):
    def change(folder):
        where = folder / file if (folder / file).exists() else folder / "preprocessor_config.json"
        content = json.loads(where.read_text())
        inner = content
        for key in path[:-1]:
            inner = inner.get(key, inner)
        inner[path[-1]] = value
        where.write_text(json.dumps(content))

    return change


CHANGES = {
    "weights": (weights, {}),
    "normalisation": (settings("config.json", "vision_config", "layer_norm_eps", value=0.05), {}),
    "activation": (settings("config.json", "vision_config", "hidden_act", value="relu"), {}),
    "heads": (settings("config.json", "vision_config", "num_attention_heads", value=2), {}),
    "processor": (settings("processor_config.json", "image_processor", "image_mean", value=[0.1, 0.2, 0.3]), {}),
    "features": (lambda folder: None, {"features": "projected"}),
    "dtype": (lambda folder: None, {"dtype": torch.bfloat16}),
}


@pytest.mark.parametrize("what", CHANGES)
def test_kept_features_are_never_those_of_another_model(what, clip, tmp_path):
    change, options = CHANGES[what]
    model = shutil.copytree(clip, tmp_path / "model")
    first = load_image_encoder(model, device="cpu").features_of(IMAGES, cache_dir=tmp_path / "kept", progress=False)
    again = load_image_encoder(model, device="cpu")
    called, encode = [], again.encode
    object.__setattr__(again, "encode", lambda pixels: called.append(1) or encode(pixels))
    same = again.features_of(IMAGES, cache_dir=tmp_path / "kept", progress=False)
    assert torch.equal(same.features, first.features) and not called, "the same model's are read"
    change(model)
    other = load_image_encoder(model, device="cpu", **options)
    plain = other.features_of(IMAGES, progress=False).features
    assert torch.equal(other.features_of(IMAGES, cache_dir=tmp_path / "kept", progress=False).features, plain)
    assert plain.shape != first.features.shape or not torch.equal(plain, first.features)
