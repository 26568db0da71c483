"""Values of configurations: real ones pass, others are refused by name before memory is asked for."""

import math
import resource
import time

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import CLASS_NAMES, tiny_clip, tiny_clip_config
from transformers import AutoConfig
from transformers.image_utils import SizeDict

from hf_clip_variants import (
    AudioCLIPConfig,
    CLIPClassifier,
    CLIPClassifierConfig,
    CLIPClassifierImageProcessor,
    CLIPResNetConfig,
    GLIPConfig,
    SLIPConfig,
)
from hf_clip_variants.modeling.loading_and_saving.configuration_checks import check_image_settings, check_values


# What generation of 2022 left in openai/clip-vit-base-patch32's text_config.
OF_2022 = {
    "architectures": None,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
    "dropout": 0.0,
    "hidden_act": "quick_gelu",
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "initializer_factor": 1.0,
    "layer_norm_eps": 1e-05,
    "model_type": "clip_text_model",
    "num_beams": 1,
    "temperature": 1.0,
    "torch_dtype": None,
    "pruned_heads": {},
    "problem_type": None,
    "transformers_version": "4.16.0.dev0",
    "vocab_size": 49408,
}
PUBLISHED = {
    "ViT-B/32 of 2022": {"text_config": OF_2022, "text_config_dict": None, "projection_dim": 512},
    "bigG": {
        "text_config": {
            "hidden_size": 1280,
            "intermediate_size": 5120,
            "num_hidden_layers": 32,
            "num_attention_heads": 20,
        },
        "vision_config": {
            "hidden_size": 1664,
            "intermediate_size": 8192,
            "num_hidden_layers": 48,
            "num_attention_heads": 16,
            "patch_size": 14,
        },
        "projection_dim": 1280,
    },
    "siglip so400m": {
        "backbone_model_type": "siglip",
        "text_config": {
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
        },
        "vision_config": {
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "image_size": 384,
            "patch_size": 14,
            "layer_norm_eps": 1e-6,
        },
    },
}


@pytest.mark.parametrize("values", PUBLISHED.values(), ids=PUBLISHED)
def test_published_configurations_pass(values):
    assert CLIPClassifierConfig.from_dict(values | {"model_type": "clipv-clip_classifier"}).projection_dim > 0


@pytest.mark.parametrize("config_class", [CLIPClassifierConfig, CLIPResNetConfig, AudioCLIPConfig, SLIPConfig])
@pytest.mark.parametrize("place", [(), ("text_config",), ("vision_config",)])
@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"num_labels": 10**9}, "num_labels: 1000000000, expected a whole number of classes in 1..1000000"),
        ({"num_labels": 3, "id2label": {0: "a"}}, "num_labels: 3, but id2label has 1 names"),
        ({"id2label": {1: "a"}}, "id2label: got"),
        ({"dtype": "nn"}, "dtype: 'nn', expected a number type"),
        (
            {"to_dict": 5},
            r"to_dict: no field of a configuration with \S*model_type '.+' \(got 5\); remove it, or",
        ),
        ({"anything": math.nan}, "anything: nan, expected a finite number"),
        ({"problem_type": "evil"}, "problem_type: 'evil' is unknown"),
    ],
)
def test_what_every_configuration_has_is_checked_at_any_depth(config_class, place, values, said):
    for part in reversed(place):
        values = {part: values}
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="".join(rf"{part}\." for part in place) + said):
        config_class(**values)
    assert time.monotonic() - start < 5 and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000


@settings(max_examples=60, deadline=None)
@given(
    part=st.sampled_from(["text_config", "vision_config"]),
    name=st.sampled_from(["hidden_size", "num_attention_heads", "num_hidden_layers", "layer_norm_eps", "hidden_act"]),
    value=st.one_of(
        st.none(),
        st.booleans(),
        st.text(max_size=5),
        st.lists(st.integers(), max_size=2),
        st.integers(max_value=0),
        st.integers(min_value=10**7),
        st.floats(allow_nan=True).filter(lambda x: not 0 < x <= 1),
    ),
)
def test_a_wrong_value_of_an_encoder_is_a_value_error_with_its_name(part, name, value):
    with pytest.raises(ValueError, match=rf"{part}\.{name}: "):
        CLIPClassifierConfig(**{part: {name: value}})


def test_assignments_are_checked_too():
    config = CLIPClassifierConfig()
    for name, value in (("num_labels", 10**9), ("prompt_length", "3"), ("templates", 5)):
        with pytest.raises(ValueError, match=name):
            setattr(config, name, value)
    with pytest.raises(ValueError, match="num_labels"):
        CLIPClassifierConfig.from_dict({}, num_labels=10**9)
    config.tail_length = 5
    assert config.tail_length == 5


def test_a_classifier_of_huge_sizes_is_refused_while_loading(tmp_path):
    tiny_clip(0).save_pretrained(tmp_path)
    for values, said in (
        ({"text_config": {"hidden_size": 10**9}}, r"text_config.hidden_size: 1000000000 is outside"),
        ({"text_config": {"num_hidden_layers": 10**9}}, r"text_config.num_hidden_layers"),
        # in the range, and not what is in the file
        (
            {"text_config": {"hidden_size": 60_000}},
            r"has shape .*, the configuration asks for .*text_config.hidden_size",
        ),
        ({"vision_config": {"num_hidden_layers": 200}}, "vision_config.num_hidden_layers: 200, but .* have 3 layers"),
        ({"vision_config": {"num_hidden_layers": 2}}, "vision_config.num_hidden_layers: 2, but .* have 3 layers"),
        ({"vision_config": {"patch_size": 4}}, r"vision_config.patch_size \(4\)"),
        ({"projection_dim": 32_000}, r"projection_dim \(32000\)"),
    ):
        good = tiny_clip_config().to_dict()
        merged = {k: good[k] | v if isinstance(v, dict) else v for k, v in values.items()}
        with pytest.raises(ValueError, match=said):
            CLIPClassifier.from_pretrained(tmp_path, config=CLIPClassifierConfig.from_dict(good | merged))


def test_image_settings_of_processors():
    check_image_settings(
        {"image_mean": [0.5] * 3, "image_std": 0.5, "size": {"height": 384, "width": 384}, "do_pad": None}
    )
    for settings_, name in (
        ({"image_mean": [0.5, math.nan, 0.5]}, "image_mean"),
        ({"image_std": [0.5, 0, 0.5]}, "image_std"),
        ({"image_std": [0.5] * 2}, "image_std"),
        ({"rescale_factor": 1e30}, "rescale_factor"),
        ({"rescale_factor": "1"}, "rescale_factor"),
        ({"size": {"shortest_edge": 10**9}}, "size"),
        ({"crop_size": {"height": 24, "width": 2.5}}, "crop_size"),
        ({"resample": 77}, "resample"),
        ({"do_resize": "yes"}, "do_resize"),
        ({"background": 5}, "background"),
    ):
        with pytest.raises(ValueError, match=f"^{name}: "):
            CLIPClassifierImageProcessor(**settings_)


SIZES = {  # setting -> forms that some processor of transformers takes
    "size": [
        32,
        [32, 24],
        {"height": 32, "width": 24},
        {"shortest_edge": 32},
        {"shortest_edge": 32, "longest_edge": None},
        {"shortest_edge": 32, "longest_edge": 64},
        {"longest_edge": 32},
        {"max_height": 32, "max_width": 24},
        {"min_pixels": 4, "max_pixels": 10**6},
        SizeDict(height=32, width=24),
    ],
    "crop_size": [32, (32, 24), {"height": 32, "width": 24}, SizeDict(height=32, width=24)],
    "pad_size": [{"height": 32, "width": 24}, None],
}
NO_EDGES = [True, 0, -1, 32.0, math.nan, "32", "", b"32", 10**9, 10**30, [32], {}, torch.ones(2), 1j, np.int64(32)]


@pytest.mark.parametrize("name", SIZES)
def test_sizes_of_every_form_are_taken_and_all_others_are_named(name):
    for value in SIZES[name]:
        check_image_settings({name: value})
    wrong = [*NO_EDGES, [], [32, 24, 3], [32, None], {32}, range(2), {"evil": 32}, {None: 32}, {5: 32}]
    wrong += [SizeDict(), SizeDict(height=32), SizeDict(width=32, longest_edge=32), SizeDict(shortest_edge=True)]
    for key in ("height", "width", "shortest_edge", "longest_edge", "max_height", "max_width"):
        wrong += [{key: edge} for edge in (None, *NO_EDGES)]
    for pair in (("height", "width"), ("shortest_edge", "longest_edge"), ("max_height", "max_width")):
        wrong += [dict(zip(one, (32, edge), strict=True)) for one in (pair, pair[::-1]) for edge in NO_EDGES]
    wrong += [{"height": 32, "width": None}, {"width": 32, "height": None}, {"height": 32, "shortest_edge": 24}]
    wrong += [{"height": 32, "width": 24, "shortest_edge": 24}, {"max_width": 3, "max_height": None}]
    for value in wrong:
        with pytest.raises(ValueError, match=f"^{name}: ") as caught:
            check_image_settings({name: value})
        assert len(str(caught.value)) < 300


def test_nested_configurations_as_objects_are_checked():
    parts = {"text_config": tiny_clip_config().text_config, "vision_config": tiny_clip_config().vision_config}
    assert CLIPClassifierConfig(**parts, id2label=dict(enumerate(CLASS_NAMES))).num_labels == 5
    parts["vision_config"].layer_norm_eps = math.inf
    with pytest.raises(ValueError, match="vision_config.layer_norm_eps"):
        CLIPClassifierConfig(**parts)


def test_values_of_unknown_models_are_checked_by_their_names():
    check_values({"model_type": "vit", "hidden_size": 768, "vision_config": {"image_size": [384, 384]}})
    for values in ({"hidden_size": -1}, {"encoder_config": {"hidden_size": True}}, {"x": [{"y": [math.inf]}]}):
        with pytest.raises(ValueError, match="hidden_size|x: inf"):
            check_values(values)


@pytest.mark.parametrize("value", [None, [], [49407], "49407"])
@pytest.mark.parametrize("config_class", [SLIPConfig, AudioCLIPConfig, CLIPResNetConfig], ids=lambda c: c.__name__)
def test_texts_are_read_at_one_end_token(config_class, value):
    with pytest.raises((ValueError, StrictDataclassError), match="text_config.eos_token_id"):
        config_class(text_config={"eos_token_id": value})


@pytest.mark.parametrize("kind", ["clip", "metaclip_2"])
def test_texts_of_families_are_read_at_one_end_token(kind):
    values = {"model_type": kind, "text_config": {"model_type": f"{kind}_text_model", "eos_token_id": []}}
    with pytest.raises(ValueError, match="text_config.eos_token_id.*token"):
        check_values(values, type(AutoConfig.for_model(kind)))


@pytest.mark.parametrize(
    "field, value", [("mlp_ratio", -1e308), ("mlp_ratio", 1e308), ("embed_dim", 0), ("depths", [2, 10**9])]
)
def test_values_of_a_swin_transformer_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=rf"backbone_config\.{field}: .* is outside"):
        GLIPConfig(backbone_config={field: value})
