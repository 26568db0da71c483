"""Fields of configurations with which attacks once got no clear error: each is refused with its name, or right."""

import json
import math

import pytest
from attack_cases import GOOD, Case, attempt
from attack_configurations import KIND, changed, targets, write_attacked


FOUND = [
    ("vqgan_clip", "vqgan_config.num_res_blocks", 2),
    ("vqgan_clip", "vqgan_config.channel_multiplier", [1, 2, 2]),
    ("clip_vil-AutoModelForImageTextToText", "decoder_config.encoder_layers", 3),
    ("clip_vil-AutoModelForImageTextToText", "decoder_config.max_position_embeddings", 41),
    ("clip_vil-AutoModelForPreTraining", "vision_config.stage_names", None),
    ("clipasso", "vision_config.image_size", 25),
    ("clipasso", "vision_config.num_hidden_layers", 4),
    ("fnd_clip", "text_config.num_hidden_layers", 4),
    ("depthclip", "encoded_texts", None),
    ("depthclip", "encoded_texts", [["This object is very near"], ["This object is near"]]),
    ("processor videoclip", "video_processor.do_sample_frames", 3),
    ("processor videoclip", "video_processor.do_sample_frames", True),
    ("videoclip", "video_config.vocab_size", 1),
    ("actionclip", "vision_config.image_size", 25),
    ("actionclip", "text_config.max_position_embeddings", 2),
    ("pointclip", "num_class_features", 0),
    ("processor pointclip", "feature_extractor.feature_extractor_type", None),
    ("video_anomaly_clip", "concat_features", False),
    ("video_anomaly_clip", "num_context_tokens", 10**9),
    ("video_anomaly_clip", "prompt_length", 0),
    ("video_anomaly_clip", "temporal_head_dim", 1),
    ("video_anomaly_clip", "text_config.eos_token_id", 3),
    ("video_anomaly_clip", "text_config.max_position_embeddings", 2),
    ("video_anomaly_clip", "vision_config.image_size", 25),
    ("adapter coop", "class_names", None),
    ("clip4clip", "head_config", None),
    ("clip_vil-AutoModelForImageTextToText", "decoder_config.encoder_layers", 1),
    ("clip_vil-AutoModelForVisualQuestionAnswering", "decoder_config.d_model", 10**9),
    ("clip4clip", "projection_dim", 3),
    ("actionclip-AutoModelForVideoClassification", "projection_dim", 2),
    ("altclip", "text_config.vocab_size", 1),
    ("clip4clip", "head_config.intermediate_size", 2),
    ("clip4clip", "head_config.num_hidden_layers", 1),
    ("clip_classifier", "templates", []),
    ("glip", "backbone_config.use_absolute_embeddings", True),
    ("glip", "text_config.add_cross_attention", True),
    ("glipv2", "backbone_config.window_size", 2),
    ("glipv2", "dynamic_relu_reduction", 3),
    ("lseg", "vision_config.num_hidden_layers", 3),
    ("lseg", "vision_config.num_hidden_layers", None),
    ("processor audioclip", "feature_extractor", {"a": 1}),
    ("lseg", "text_encoder_dropped", True),
    ("lseg", "vision_config.backbone_config", {}),
    ("vild", "background", 2.5),
    ("vild", "head_num_convs", 500_000),
    ("glip", "head_num_layers", 99_999),
    ("vild", "backbone_config.out_indices", ["a"]),
    ("videoclip", "text_config", None),
    ("vild", "anchor_ratios", [1.0, 2.0, 0.5, 0.5]),
    ("vild", "dual_encoder_config.projection_dim", 2),
    ("glip", "box_loss_weight", 1e39),
    ("glipv2", "backbone_config.return_dict", False),
    ("glipv2", "max_text_length", 3),
    ("glipv2", "text_config.vocab_size", 3),
    ("glipv2-AutoModelForVisualQuestionAnswering", "max_text_length", 3),
    ("lseg", "neck_hidden_sizes", None),
    ("groupvit-AutoModelForSemanticSegmentation", "background", None),
    ("processor actionclip", "video_processor.num_crops", 10**7),
    ("processor audioclip", "feature_extractor", None),
    ("processor audioclip", "feature_extractor", {}),
    ("siglip2", "vision_config.num_channels", 1),
    ("depthclip", "object_word", "gelu"),
]


@pytest.mark.parametrize("name, field, value", FOUND)
def test_a_field_that_attacks_found_is_named_or_right(name, field, value, tmp_path):
    make, file, load = targets()[name]
    good, place = make(name, tmp_path), tuple(field.split("."))
    values = changed(json.loads((good / file).read_text()), place, value)
    path = write_attacked(good, tmp_path / "attacked", file, values)
    outcome, detail = attempt(Case(KIND, field, lambda: load(path), place[-1:]), tmp_path)
    assert outcome in GOOD, detail


def test_a_number_that_overflows_in_float32_is_refused_and_a_large_one_is_not():
    from hf_clip_variants import GLIPConfig

    assert GLIPConfig(box_loss_weight=1e20).box_loss_weight == 1e20
    for value in (1e39, -1e39, math.inf):
        with pytest.raises(ValueError, match="box_loss_weight"):
            GLIPConfig(box_loss_weight=value)
