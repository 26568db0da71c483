"""Testers of models that draw, for modeling_suite.py: strokes, and texts or photographs.

Where transformers' tests look at one encoder, it is the text encoder of the first, the image encoder of the second.
"""

import torch
from suite_testers import TEXT, VISION, CLIPClassifierTester
from tests.test_modeling_common import floats_tensor


class CLIPDrawTester(CLIPClassifierTester):
    seq_length = encoder_seq_length = key_length = 8
    config_fields = {"projection_dim": 24, "num_strokes": 7, "max_segments": 2}

    def __init__(self, parent, config_class):
        super().__init__(parent, config_class)
        self.vision_model_tester = self  # the tests of get_image_features look at the image encoder

    def get_config(self):
        # Half precision is compared with an absolute tolerance.
        return self.config_class(
            text_config=TEXT, vision_config=VISION, projection_dim=24, logit_scale_init_value=0.5, num_strokes=4
        )

    def strokes(self):
        generator = torch.Generator().manual_seed(0)
        points = 30 * torch.rand(self.batch_size, 4, 7, 2, generator=generator)
        return {"points": points, "radii": torch.ones(self.batch_size, 4)}

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), self.strokes() | self.text_inputs() | {"return_loss": True}


class CLIPassoTester(CLIPDrawTester):
    seq_length = encoder_seq_length = key_length = 37
    config_fields = {"projection_dim": 24, "num_strokes": 7, "loss_type": "L1"}

    def prepare_config_and_inputs_for_common(self):
        photographs = floats_tensor([self.batch_size, 3, 30, 30])
        return self.get_config(), self.strokes() | {"pixel_values": photographs}


__all__ = ["CLIPDrawTester", "CLIPassoTester"]
