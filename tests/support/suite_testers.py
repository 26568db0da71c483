"""The tester that those of modeling_suite.py extend: sizes of tiny models, and inputs.

For a process in which `tests` is transformers' package.
"""

import torch
from tests.test_modeling_common import floats_tensor


SIZES = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = SIZES | {"vocab_size": 99, "max_position_embeddings": 16, "projection_dim": 24}
TEXT |= {"bos_token_id": 97, "eos_token_id": 98, "pad_token_id": 98}
VISION = SIZES | {"image_size": 30, "patch_size": 5, "projection_dim": 24}


class CLIPClassifierTester:
    """The sizes are those of the image encoder, whose hidden states and attentions are in the output."""

    batch_size, num_labels, is_training = 3, 5, True
    seq_length = encoder_seq_length = key_length = (30 // 5) ** 2 + 1
    hidden_size, num_hidden_layers, num_attention_heads = 32, 2, 4

    def __init__(self, parent, config_class):
        self.parent, self.config_class = parent, config_class

    def get_config(self):
        prompts = {"templates": ["a photo of a {}.", "the {}."], "prompt_length": 6, "tail_length": 3}
        encoders = {"text_config": TEXT, "vision_config": VISION, "projection_dim": 24}
        return self.config_class(**encoders, num_labels=self.num_labels, **prompts)

    def text_inputs(self):
        input_ids = torch.full((self.batch_size, 8), TEXT["eos_token_id"])
        input_ids[:, 0], input_ids[:, 1:5] = TEXT["bos_token_id"], torch.randint(0, 90, (self.batch_size, 4))
        return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}

    def prepare_config_and_inputs(self):
        pixel_values = floats_tensor([self.batch_size, 3, 30, 30])
        return self.get_config(), pixel_values

    def prepare_config_and_inputs_for_common(self):
        config, pixel_values = self.prepare_config_and_inputs()
        return config, {"pixel_values": pixel_values}

    config_fields = {"projection_dim": 24, "templates": ["a {}."], "prompt_length": 6}


class GLIPTester(CLIPClassifierTester):
    """Where transformers' tests look for hidden states, they are the Swin transformer's maps."""

    common_properties = ["hidden_size"]
    config_fields = {"hidden_size": 16, "num_groups": 4, "use_fusion": False}
    maps = [(8, 16, 16), (8, 16, 16), (16, 8, 8), (32, 4, 4), (64, 2, 2)]
    additions: dict = {}

    def get_config(self):
        swin = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4], "window_size": 3}
        text = SIZES | {"vocab_size": 99, "max_position_embeddings": 16}
        return self.config_class(
            backbone_config=swin | {"drop_path_rate": 0.0},
            text_config=text | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
            hidden_size=16,
            head_num_layers=2,
            fusion_hidden_size=24,
            fusion_num_heads=2,
            fusion_dropout=0.0,
            num_groups=4,
            drop_block_prob=0.0,
            max_text_length=16,
            anchor_sizes=[16, 32, 64, 128, 256],
            **self.additions,
        )

    def prepare_config_and_inputs_for_common(self):
        phrase_map = torch.zeros(self.batch_size, self.num_labels, 8)
        for label in range(self.num_labels):
            phrase_map[:, label, label + 1] = 1
        inputs = {"pixel_values": floats_tensor([self.batch_size, 3, 64, 64]), "phrase_map": phrase_map}
        return self.get_config(), inputs | self.text_inputs()


class GLIPv2Tester(GLIPTester):
    config_fields = {"hidden_size": 16, "num_groups": 4, "contrastive_dim": 8}
    additions = {"contrastive_dim": 8, "mask_num_convs": 1, "mask_token_id": 4, "end_token_id": 3}


class GLIPv2AnsweringTester(GLIPv2Tester):
    """One phrase for each image: the place of the answer."""

    def prepare_config_and_inputs_for_common(self):
        config, inputs = super().prepare_config_and_inputs_for_common()
        return config, inputs | {"phrase_map": inputs["phrase_map"][:, :1]}
