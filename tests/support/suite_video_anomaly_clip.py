"""VideoAnomalyClip in transformers' own tests: sizes of a tiny model, inputs, and what differs.

For a process in which `tests` is transformers' package.
"""

import torch
from suite_testers import TEXT, VISION, CLIPClassifierTester
from tests.test_modeling_common import ModelTesterMixin, floats_tensor


class VideoAnomalyClipTester(CLIPClassifierTester):
    """Training grids of two segments of two frames. Where transformers' tests look at one encoder, it is that of
    images, which runs frame by frame."""

    num_labels = 3
    config_fields = {"projection_dim": 24, "num_segments": 4, "temporal_hidden_size": 16}

    def get_config(self):
        return self.config_class(
            text_config=TEXT,
            vision_config=VISION,
            projection_dim=24,
            num_labels=self.num_labels,
            prompt_length=6,
            num_context_tokens=2,
            num_segments=2,
            segment_length=2,
            num_topk=1,
            num_bottomk=1,
            temporal_hidden_size=16,
            temporal_num_heads=2,
            temporal_mlp_ratio=2,
            freeze_clip=False,
            allow_zero_centroid=True,  # tests take models as they are built
        )

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), {"pixel_values_videos": floats_tensor([self.batch_size, 4, 3, 30, 30])}


class VideoAnomalyClipSuite(ModelTesterMixin):
    _is_composite = True
    has_attentions = True
    test_resize_embeddings = False  # the vocabulary belongs to the tokenizer that the prompts were made with
    test_mismatched_shapes = False  # classes are set by set_anomalies
    test_all_params_have_gradient = False  # CLIP's logit scale is not read

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=False)
        return inputs | ({"labels": torch.tensor([0, 1, 2])} if return_labels else {})

    def _image_features_prepare_config_and_inputs(self):
        return self.model_tester.get_config(), {
            "pixel_values": floats_tensor([self.model_tester.batch_size, 3, 30, 30])
        }
