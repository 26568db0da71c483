"""FND-CLIP in transformers' own tests: sizes of a tiny model, inputs, and what differs.

For a process in which `tests` is transformers' package.
"""

from suite_testers import SIZES, TEXT, VISION, CLIPClassifierTester
from tests.test_modeling_common import ModelTesterMixin, floats_tensor


class FNDCLIPTester(CLIPClassifierTester):
    """Where transformers' tests look at one encoder, it is BERT."""

    batch_size = 7  # as many as transformers' tests want: they would fill up with texts without an end
    num_labels, seq_length, encoder_seq_length, key_length = 3, 8, 8, 8
    common_properties = ["hidden_size"]
    config_fields = {"shared_dim": 20, "feature_dim": 9, "batch_layer_attention": True}

    def get_config(self):
        bert = SIZES | {"vocab_size": 120, "max_position_embeddings": 16}
        return self.config_class(
            text_config=bert | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
            dual_encoder_config={"text_config": TEXT, "vision_config": VISION, "projection_dim": 24},
            backbone_config={"embedding_size": 8, "hidden_sizes": [8] * 4, "depths": [1] * 4, "num_labels": 7},
            num_labels=self.num_labels,
            shared_dim=16,
            feature_dim=8,
            hidden_dim=12,
            dropout=0.0,
            max_text_length=16,
            freeze_text=False,
            freeze_dual_encoder=False,
        )

    def prepare_config_and_inputs_for_common(self):
        texts = self.text_inputs()
        own = {"input_ids": texts["input_ids"].clamp(max=98), "attention_mask": texts["attention_mask"]}
        clip = {f"clip_{name}": value for name, value in texts.items()}
        return self.get_config(), own | clip | {"pixel_values": floats_tensor([self.batch_size, 3, 30, 30])}


class FNDCLIPSuite(ModelTesterMixin):
    _is_composite = True
    additional_model_inputs = ["clip_input_ids", "clip_attention_mask", "pixel_values"]
    has_attentions = True
    test_resize_embeddings = False  # the vocabulary belongs to BERT
    test_all_params_have_gradient = False  # the dual encoder's logit scale is not read
