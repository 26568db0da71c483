"""transformers' own model tests over every model of the registry. Run by test_transformers_suite.py, in a process where `tests` is theirs.

Each row of the registry needs a tester here: a tiny configuration and its inputs.
"""

import unittest
from unittest.mock import patch

import torch
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin, floats_tensor
from transformers.models.auto import modeling_auto
from transformers.testing_utils import require_torch

from hf_clip_variants.registry import methods


# What cannot hold for our models, each with its reason. "Class.test" or "test" -> reason.
DESELECTED: dict[str, str] = {}

TEXT = {
    "vocab_size": 99, "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 16, "bos_token_id": 97, "eos_token_id": 98, "pad_token_id": 98, "projection_dim": 24,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 30,
    "patch_size": 5, "projection_dim": 24,
}  # fmt: skip


class CLIPClassifierTester:
    """The image tower's sizes are what is recorded: its are the hidden states and attentions that come out."""

    batch_size, num_labels, is_training = 3, 5, True
    seq_length = encoder_seq_length = key_length = (30 // 5) ** 2 + 1
    hidden_size, num_hidden_layers, num_attention_heads = 32, 2, 4

    def __init__(self, parent, row):
        self.parent, self.row = parent, row

    def get_config(self):
        return self.row.load("config")(
            text_config=TEXT, vision_config=VISION, projection_dim=24, num_labels=self.num_labels,
            templates=["a photo of a {}.", "the {}."], prompt_length=6, tail_length=3,
        )  # fmt: skip

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


class ClassifierSuite(ModelTesterMixin):
    _is_composite = True
    has_attentions = True
    test_resize_embeddings = False  # the vocabulary belongs to the tokenizer that the prompts were made with

    def _text_features_prepare_config_and_inputs(self):
        return self.model_tester.get_config(), self.model_tester.text_inputs()


TESTERS = {"clip_classifier": (CLIPClassifierTester, ClassifierSuite)}


def make_test_class(row):
    tester_class, suite = TESTERS[row.name]

    class Test(suite, unittest.TestCase):
        all_model_classes = tuple({row.load(part) for part in ("model", *row.auto_classes)})
        pipeline_model_mapping: dict = {}

        @classmethod
        def setUpClass(cls):
            super().setUpClass()
            # The mixin reads from these tables which models take labels; ours are registered elsewhere.
            names = {row.model_type: row.load("model").__name__}
            for auto_class in row.auto_classes:
                mapping = getattr(modeling_auto, auto_class)._model_mapping._model_mapping
                table = patch.dict(mapping, names)
                table.start()
                cls.addClassCleanup(table.stop)

        def setUp(self):
            self.model_tester = tester_class(self, row)
            self.config_tester = ConfigTester(
                self, config_class=row.load("config"), has_text_modality=False, **tester_class.config_fields
            )

        def test_config(self):
            self.config_tester.run_common_tests()

    Test.__name__ = Test.__qualname__ = f"{row.load('model').__name__}Suite"
    Test.__module__ = __name__
    return require_torch(Test)


for _row in methods("model"):
    _test_class = make_test_class(_row)
    for _name in DESELECTED:
        _owner, _, _test = _name.rpartition(".")
        if _owner in ("", _test_class.__name__) and hasattr(_test_class, _test):
            setattr(_test_class, _test, unittest.skip(DESELECTED[_name])(getattr(_test_class, _test)))
    globals()[_test_class.__name__] = _test_class
del _test_class
torch.manual_seed(0)
