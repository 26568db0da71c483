"""Testers of models that paint, for modeling_suite.py. Where transformers' tests look at one encoder, it is the text
encoder."""

import torch
from suite_drawing import CLIPDrawTester
from suite_testers import TEXT, VISION


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


__all__ = ["VQGANCLIPTester"]
