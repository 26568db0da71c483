"""Testers of models that paint, for modeling_suite.py. Where transformers' tests look at one encoder, it is the text
encoder."""

import torch
from suite_drawing import CLIPDrawTester
from suite_testers import TEXT, VISION
from tests.test_modeling_common import ModelTesterMixin, floats_tensor


VQGAN = {
    "base_channels": 32, "channel_multiplier": [1, 2], "num_res_blocks": 1, "latent_channels": 12, "embed_dim": 4,
    "num_embeddings": 16,
}  # fmt: skip


class VQGANCLIPTester(CLIPDrawTester):
    config_fields = {"projection_dim": 24, "num_cuts": 7, "cut_method": "updated"}

    def get_config(self):
        return self.config_class(
            text_config=TEXT, vision_config=VISION, projection_dim=24, logit_scale_init_value=0.5, vqgan_config=VQGAN
        )

    def prepare_config_and_inputs_for_common(self):
        latents = torch.randn(self.batch_size, 4, 15, 15, generator=torch.Generator().manual_seed(0))
        return self.get_config(), {"latents": latents} | self.text_inputs() | {"return_loss": True}


class VQGANTester:
    """The autoencoder. It has no hidden states and no attention to return."""

    batch_size, is_training = 3, True
    config_fields = {"base_channels": 64, "num_embeddings": 20, "quantizer": "gumbel"}
    common_properties = ["base_channels", "num_res_blocks", "embed_dim", "num_embeddings"]

    def __init__(self, parent, config_class):
        self.parent, self.config_class = parent, config_class

    def get_config(self):
        return self.config_class(**VQGAN, norm_groups=16)

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), {"pixel_values": floats_tensor([self.batch_size, 3, 12, 8])}


class VQGANSuite(ModelTesterMixin):
    has_attentions = False
    test_mismatched_shapes = False  # there is no head
    test_resize_embeddings = False  # codes are no words

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=False)
        return inputs | ({"return_loss": True} if return_labels else {})


_NO_HIDDEN_STATES = "an autoencoder returns no hidden states; transformers leaves it out for JanusVQVAE, too"
VQGAN_DESELECTED = {
    "VQGANModelSuite.test_hidden_states_output": _NO_HIDDEN_STATES,
    "VQGANModelSuite.test_retain_grad_hidden_states_attentions": _NO_HIDDEN_STATES,
    "VQGANModelSuite.test_model_get_set_embeddings": "its embeddings are codes of pictures, not of the input",
}


__all__ = ["VQGAN_DESELECTED", "VQGANCLIPTester", "VQGANSuite", "VQGANTester"]
