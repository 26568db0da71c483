"""What transformers' own model tests need to know of our models: one class of tests for each kind of model.

For a process in which `tests` is transformers' package; `tests/suite/modeling_suite.py` makes test classes of them.
"""

import torch
from suite_testers import (
    SIZES,
    TEXT,
    VISION,
    AudioCLIPAudioTester,
    CLIPClassifierTester,
    CLIPResNetTester,
    CLIPResNetVisionTester,
)
from tests.test_backbone_common import BackboneTesterMixin
from tests.test_modeling_common import ModelTesterMixin, floats_tensor

from hf_clip_variants import (
    AudioCLIPAudioConfig,
    GroupViTVisionConfig,
    LSegForSemanticSegmentation,
)


class ClassifierSuite(ModelTesterMixin):
    _is_composite = True
    has_attentions = True
    test_resize_embeddings = False  # the vocabulary belongs to the tokenizer that the prompts were made with

    def _text_features_prepare_config_and_inputs(self):
        return self.model_tester.get_config(), self.model_tester.text_inputs()


class ImageEncoderSuite(ModelTesterMixin):
    has_attentions = True
    test_resize_embeddings = False  # there is no vocabulary

    def test_model_get_set_embeddings(self):
        config, _ = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            model = model_class(config)
            self.assertIs(model.get_input_embeddings(), model.conv1)

    def test_hidden_states_output(self):
        for by_config in (False, True):
            config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
            config.output_hidden_states = by_config
            for model_class in self.all_model_classes:
                with torch.no_grad():
                    outputs = model_class(config).eval()(
                        **inputs, **({} if by_config else {"output_hidden_states": True})
                    )
                maps = [tuple(one.shape[1:]) for one in outputs.hidden_states]
                self.assertEqual(maps, self.model_tester.maps)

    def test_attention_outputs(self):
        for by_config in (False, True):
            config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
            config.output_attentions = by_config
            for model_class in self.all_model_classes:
                model = model_class._from_config(config, attn_implementation="eager").eval()
                with torch.no_grad():
                    outputs = model(**inputs, **({} if by_config else {"output_attentions": True}))
                self.assertEqual([tuple(one.shape) for one in outputs.attentions], [(3, 4, 1, 5)])
                torch.testing.assert_close(outputs.attentions[0].sum(-1), torch.ones(3, 4, 1))

    def test_retain_grad_hidden_states_attentions(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = self.all_model_classes[0]._from_config(config, attn_implementation="eager")
        outputs = model(**inputs, output_hidden_states=True, output_attentions=True)
        kept = [*outputs.hidden_states, *(outputs.attentions or ())]
        for tensor in kept:
            tensor.retain_grad()
        result = outputs.pooler_output if "pooler_output" in outputs else outputs.feature_maps[-1]
        result.flatten()[0].backward()
        for tensor in kept:
            self.assertIsNotNone(tensor.grad)


class BackboneSuite(BackboneTesterMixin, ImageEncoderSuite):
    has_attentions = False
    test_stages_by_configuration = BackboneTesterMixin.test_config
    test_attention_outputs = ModelTesterMixin.test_attention_outputs  # asserts that there are none


class DualEncoderSuite(ModelTesterMixin):
    _is_composite = True
    has_attentions = True
    test_resize_embeddings = False  # as for CLIPModel: the vocabulary belongs to the text encoder
    additional_model_inputs = ["pixel_values"]

    def _run(self, by_config, **options):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        for part in (config.text_config, config.vision_config) if by_config else ():
            for name, value in options.items():
                setattr(part, name, value)
        model = self.all_model_classes[0]._from_config(config, attn_implementation="eager")
        return model(**inputs, **({} if by_config else options))

    def test_hidden_states_output(self):
        for by_config in (False, True):
            outputs = self._run(by_config, output_hidden_states=True)
            maps = [tuple(one.shape[1:]) for one in outputs.vision_model_output.hidden_states]
            self.assertEqual(maps, CLIPResNetVisionTester.maps)
            self.assertEqual([one.shape for one in outputs.text_model_output.hidden_states], 3 * [(3, 8, 32)])

    def test_attention_outputs(self):
        for by_config in (False, True):
            outputs = self._run(by_config, output_attentions=True)
            self.assertEqual([tuple(one.shape) for one in outputs.vision_model_output.attentions], [(3, 4, 1, 5)])
            self.assertEqual([one.shape for one in outputs.text_model_output.attentions], 2 * [(3, 4, 8, 8)])

    def test_retain_grad_hidden_states_attentions(self):
        outputs = self._run(False, output_hidden_states=True, output_attentions=True)
        encoders = (outputs.vision_model_output, outputs.text_model_output)
        kept = [tensor for encoder in encoders for tensor in (*encoder.hidden_states, *encoder.attentions)]
        for tensor in kept:
            tensor.retain_grad()
        outputs.loss.backward()
        for tensor in kept:
            self.assertIsNotNone(tensor.grad)

    def _image_features_get_expected_num_attentions(self, model_tester=None):
        return 1

    def _image_features_get_expected_num_hidden_states(self, model_tester=None):
        return 5


class AudioEncoderSuite(ImageEncoderSuite):
    has_attentions = False
    test_attention_outputs = ModelTesterMixin.test_attention_outputs  # asserts that there are none


class AudioCLIPTester(CLIPResNetTester):
    """Three encoders. Where transformers' tests look at one, it is the text encoder."""

    config_fields = {"logit_scale_init_value": 2.0, "projection_dim": 24, "frozen_modalities": ["text"]}

    def __init__(self, parent, config_class):
        super().__init__(parent, config_class)
        self.audio_model_tester = AudioCLIPAudioTester(parent, AudioCLIPAudioConfig)

    def get_config(self):
        vision, audio = self.vision_model_tester.get_config(), self.audio_model_tester.get_config()
        return self.config_class(text_config=TEXT, vision_config=vision, audio_config=audio, projection_dim=24)

    def prepare_config_and_inputs_for_common(self):
        config, inputs = super().prepare_config_and_inputs_for_common()
        return config, inputs | self.audio_model_tester.prepare_config_and_inputs_for_common()[1]


class AudioCLIPSuite(DualEncoderSuite):
    additional_model_inputs = ["pixel_values", "input_ids", "attention_mask"]
    skip_test_audio_features_output_shape = True  # the last feature map is not as wide as the joint space

    def _audio_features_get_expected_num_hidden_states(self, model_tester=None):
        return 5


class SLIPTester(CLIPClassifierTester):
    """Two encoders. Where transformers' tests look at one, it is the text encoder."""

    seq_length = encoder_seq_length = key_length = 8
    config_fields = {"logit_scale_init_value": 2.0, "projection_dim": 24, "ssl_objective": "moco_v3"}
    views: tuple[str, ...] = ("pixel_values",)

    def __init__(self, parent, config_class):
        super().__init__(parent, config_class)
        self.vision_model_tester = self  # the tests of get_image_features look at the image encoder

    def get_config(self):
        vision = {name: value for name, value in VISION.items() if name != "projection_dim"}
        return self.config_class(
            text_config=TEXT,
            vision_config=vision,
            projection_dim=24,
            ssl_mlp_dim=40,
            ssl_emb_dim=16,
            logit_scale_init_value=0.5,  # half precision is compared with an absolute tolerance
        )

    def prepare_config_and_inputs_for_common(self):
        images = {name: floats_tensor([self.batch_size, 3, 30, 30]) for name in self.views}
        return self.get_config(), images | self.text_inputs() | {"return_loss": True}


class SLIPPreTrainingTester(SLIPTester):
    views = ("pixel_values", "pixel_values_aug1", "pixel_values_aug2")


class SLIPSuite(DualEncoderSuite):
    additional_model_inputs = ["pixel_values", "pixel_values_aug1", "pixel_values_aug2"]

    def test_hidden_states_output(self):
        for by_config in (False, True):
            outputs = self._run(by_config, output_hidden_states=True)
            self.assertEqual([one.shape for one in outputs.vision_model_output.hidden_states], 3 * [(3, 37, 32)])
            self.assertEqual([one.shape for one in outputs.text_model_output.hidden_states], 3 * [(3, 8, 32)])

    def test_attention_outputs(self):
        for by_config in (False, True):
            outputs = self._run(by_config, output_attentions=True)
            self.assertEqual([one.shape for one in outputs.vision_model_output.attentions], 2 * [(3, 4, 37, 37)])
            self.assertEqual([one.shape for one in outputs.text_model_output.attentions], 2 * [(3, 4, 8, 8)])

    def _image_features_get_expected_num_attentions(self, model_tester=None):
        return 2

    def _image_features_get_expected_num_hidden_states(self, model_tester=None):
        return 3


class GroupViTVisionTester:
    """Hidden states hold tokens and group tokens: of two stages with 36 and 6 tokens, and of one with 4."""

    batch_size, is_training, num_attention_heads, hidden_size, num_hidden_layers = 3, True, 4, 32, 3
    common_properties = ["hidden_size", "num_attention_heads"]
    config_fields = {"hidden_size": 64, "num_attention_heads": 2}
    lengths = [36 + 7, 36 + 7, 6 + 5, 4]  # the first is what enters the first layer
    heads = [(4, 36 + 7, 36 + 7), (4, 6 + 5, 6 + 5), (4, 4, 4)]

    def __init__(self, parent, config_class):
        self.parent, self.config_class = parent, config_class

    def get_config(self):
        stages = {"depths": [1, 1, 1], "num_group_tokens": [7, 5, 0], "num_output_groups": [6, 4]}
        sizes = {"hidden_size": 32, "intermediate_size": 37, "num_attention_heads": 4}
        # Soft and without noise, so that rounding moves no token to another group, and two runs are equal.
        calm = {"assignment": "soft", "gumbel_noise": False, "drop_path_rate": 0.0}
        return self.config_class(image_size=30, patch_size=5, **stages, **sizes, **calm)

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), {"pixel_values": floats_tensor([self.batch_size, 3, 30, 30])}


class GroupViTVisionSuite(ModelTesterMixin):
    has_attentions = True
    test_resize_embeddings = False  # there is no vocabulary

    def _run(self, by_config, **options):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        for name, value in options.items() if by_config else ():
            setattr(config, name, value)
        model = self.all_model_classes[0]._from_config(config, attn_implementation="eager")
        return model(**inputs, **({} if by_config else options))

    def test_model_get_set_embeddings(self):
        config, _ = self.model_tester.prepare_config_and_inputs_for_common()
        model = self.all_model_classes[0](config)
        self.assertIs(model.get_input_embeddings(), model.embeddings.patch_embeddings)

    def test_hidden_states_output(self):
        for by_config in (False, True):
            lengths = [one.shape[1] for one in self._run(by_config, output_hidden_states=True).hidden_states]
            self.assertEqual(lengths, GroupViTVisionTester.lengths)

    def test_attention_outputs(self):
        for by_config in (False, True):
            attentions = self._run(by_config, output_attentions=True).attentions
            self.assertEqual([tuple(one.shape[1:]) for one in attentions], GroupViTVisionTester.heads)

    def test_retain_grad_hidden_states_attentions(self):
        outputs = self._run(False, output_hidden_states=True, output_attentions=True)
        kept = [*outputs.hidden_states[1:], *outputs.attentions]
        for tensor in kept:
            tensor.retain_grad()
        outputs.pooler_output.flatten()[0].backward()
        for tensor in kept:
            self.assertIsNotNone(tensor.grad)


class GroupViTTester(CLIPClassifierTester):
    """Two encoders. Where transformers' tests look at one, it is the text encoder."""

    seq_length = encoder_seq_length = key_length = 8
    config_fields = {"logit_scale_init_value": 2.0, "projection_dim": 24, "trained_part": "group_tokens"}
    options: dict = {"return_loss": True}
    config_options: dict = {}

    def __init__(self, parent, config_class):
        super().__init__(parent, config_class)
        self.vision_model_tester = GroupViTVisionTester(parent, GroupViTVisionConfig)

    def get_config(self):
        sizes = {"projection_dim": 24, "projection_intermediate_dim": 40, "logit_scale_init_value": 0.5}
        vision = self.vision_model_tester.get_config()
        return self.config_class(
            text_config=TEXT, vision_config=vision, num_noun_prompts=0, **sizes, **self.config_options
        )

    def prepare_config_and_inputs_for_common(self):
        _, images = self.vision_model_tester.prepare_config_and_inputs_for_common()
        return self.get_config(), images | self.text_inputs() | self.options


class GroupViTSuite(DualEncoderSuite):
    def test_hidden_states_output(self):
        for by_config in (False, True):
            outputs = self._run(by_config, output_hidden_states=True)
            lengths = [one.shape[1] for one in outputs.vision_model_output.hidden_states]
            self.assertEqual(lengths, GroupViTVisionTester.lengths)
            self.assertEqual([one.shape for one in outputs.text_model_output.hidden_states], 3 * [(3, 8, 32)])

    def test_attention_outputs(self):
        for by_config in (False, True):
            outputs = self._run(by_config, output_attentions=True)
            shapes = [tuple(one.shape[1:]) for one in outputs.vision_model_output.attentions]
            self.assertEqual(shapes, GroupViTVisionTester.heads)
            self.assertEqual([one.shape for one in outputs.text_model_output.attentions], 2 * [(3, 4, 8, 8)])

    def _image_features_get_expected_num_attentions(self, model_tester=None):
        return 3

    def _image_features_get_expected_num_hidden_states(self, model_tester=None):
        return 4


class GroupViTSegmentationTester(GroupViTTester):
    """The labels are stored ones: without texts."""

    num_labels = 3
    config_options: dict = {"num_labels": 3}

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), self.vision_model_tester.prepare_config_and_inputs_for_common()[1]


class GroupViTSegmentationSuite(GroupViTVisionSuite):
    _is_composite = True
    test_all_params_have_gradient = False  # those of the text encoder have none

    def _text_features_prepare_config_and_inputs(self):
        return self.model_tester.get_config(), self.model_tester.text_inputs()

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=False)
        if return_labels:
            inputs["labels"] = torch.zeros(self.model_tester.batch_size, 30, 30, dtype=torch.long)
        return inputs

    def test_model_get_set_embeddings(self):
        config, _ = self.model_tester.prepare_config_and_inputs_for_common()
        model = self.all_model_classes[0](config)
        self.assertIs(model.get_input_embeddings(), model.text_model.embeddings.token_embedding)

    def _run(self, by_config, **options):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        for name, value in options.items() if by_config else ():
            setattr(config.vision_config, name, value)
        model = self.all_model_classes[0]._from_config(config, attn_implementation="eager")
        return model(**inputs, **({} if by_config else options))

    def test_retain_grad_hidden_states_attentions(self):
        outputs = self._run(False, output_hidden_states=True, output_attentions=True)
        kept = [*outputs.hidden_states[1:], *outputs.attentions]
        for tensor in kept:
            tensor.retain_grad()
        outputs.group_embeds.flatten()[0].backward()
        for tensor in kept:
            self.assertIsNotNone(tensor.grad)

    def _image_features_get_expected_num_attentions(self, model_tester=None):
        return 3

    def _image_features_get_expected_num_hidden_states(self, model_tester=None):
        return 4


class LSegTester(CLIPClassifierTester):
    """The sizes are those of the image encoder. The labels are stored ones: without texts."""

    seq_length = encoder_seq_length = key_length = 2 * 4 + 1
    num_labels = 3
    config_fields = {"fusion_hidden_size": 24, "head_block": "depthwise", "temperature": 0.05}

    def get_config(self):
        vision = SIZES | {"image_size": 32, "patch_size": 16}
        sizes = {"neck_hidden_sizes": [6, 10, 14, 18], "fusion_hidden_size": 12, "temperature": 0.5}
        return self.config_class(
            text_config=TEXT, vision_config=vision, projection_dim=24, num_labels=self.num_labels, **sizes
        )

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), {"pixel_values": floats_tensor([self.batch_size, 3, 32, 64])}


class LSegSuite(ModelTesterMixin):
    _is_composite = True
    has_attentions = True
    test_resize_embeddings = False  # the vocabulary belongs to the text encoder
    test_all_params_have_gradient = False  # the text encoder is frozen, and some parts of DPT are not read

    def _text_features_prepare_config_and_inputs(self):
        return self.model_tester.get_config(), self.model_tester.text_inputs()

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=False)
        if return_labels and model_class is LSegForSemanticSegmentation:
            inputs["labels"] = torch.zeros(self.model_tester.batch_size, 32, 64, dtype=torch.long)
        return inputs


class ViLDSuite(ImageEncoderSuite):
    _is_composite = True
    has_attentions = False

    def test_attention_outputs(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        self.assertIsNone(self.all_model_classes[0](config).eval()(**inputs, output_attentions=True).attentions)

    def test_model_get_set_embeddings(self):
        config, _ = self.model_tester.prepare_config_and_inputs_for_common()
        model = self.all_model_classes[0](config)
        self.assertIs(model.get_input_embeddings(), model.backbone.embedder.embedder.convolution)

    def test_retain_grad_hidden_states_attentions(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        outputs = self.all_model_classes[0](config)(**inputs, output_hidden_states=True)
        for tensor in outputs.hidden_states:
            tensor.retain_grad()
        outputs.class_logits.sum().backward()
        for tensor in outputs.hidden_states:
            self.assertIsNotNone(tensor.grad)


class CLIP4ClipSuite(DualEncoderSuite):
    additional_model_inputs = ["pixel_values_videos"]
    skip_test_video_features_output_shape = True  # frames after the head are as wide as the joint space

    def test_hidden_states_output(self):
        for by_config in (False, True):
            outputs = self._run(by_config, output_hidden_states=True)
            self.assertEqual([one.shape for one in outputs.vision_model_output.hidden_states], 3 * [(6, 37, 32)])
            self.assertEqual([one.shape for one in outputs.text_model_output.hidden_states], 3 * [(3, 8, 32)])

    def test_attention_outputs(self):
        for by_config in (False, True):
            outputs = self._run(by_config, output_attentions=True)
            self.assertEqual([one.shape for one in outputs.vision_model_output.attentions], 2 * [(6, 4, 37, 37)])
            self.assertEqual([one.shape for one in outputs.text_model_output.attentions], 2 * [(3, 4, 8, 8)])


class CLIP4ClipClassificationSuite(ClassifierSuite):
    skip_test_video_features_output_shape = True  # as above
    test_mismatched_shapes = False  # a class is its text's features, which set_classes replaces
    test_all_params_have_gradient = False  # the text encoder is not read


class GLIPSuite(ImageEncoderSuite):
    first_used = 2  # a Swin transformer gives copies of its maps, of which the pyramid reads three
    _is_composite = True
    has_attentions = False
    test_resize_embeddings = False  # prompts are made with the tokenizer of the text encoder

    def test_attention_outputs(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        self.assertIsNone(self.all_model_classes[0](config).eval()(**inputs, output_attentions=True).attentions)

    def test_model_get_set_embeddings(self):
        config, _ = self.model_tester.prepare_config_and_inputs_for_common()
        model = self.all_model_classes[0](config)
        new = torch.nn.Embedding(10, 32)
        model.set_input_embeddings(new)
        self.assertIs(model.get_input_embeddings(), new)
        self.assertIs(model.text_encoder.embeddings.word_embeddings, new)

    def test_retain_grad_hidden_states_attentions(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        outputs = self.all_model_classes[0](config)(**inputs, output_hidden_states=True)
        used = outputs.hidden_states[self.first_used :]
        for tensor in used:
            tensor.retain_grad()
        outputs.logits.sum().backward()
        for tensor in used:
            self.assertIsNotNone(tensor.grad)


class DepthCLIPSuite(ImageEncoderSuite):
    _is_composite = True
    has_attentions = False
    test_all_params_have_gradient = False  # the text encoder and the attention pooling's queries are not read
    test_attention_outputs = GLIPSuite.test_attention_outputs
    _text_features_prepare_config_and_inputs = ClassifierSuite._text_features_prepare_config_and_inputs
    test_model_get_set_embeddings = ModelTesterMixin.test_model_get_set_embeddings

    def test_retain_grad_hidden_states_attentions(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        outputs = self.all_model_classes[0](config)(**inputs, output_hidden_states=True)
        for tensor in outputs.hidden_states:
            tensor.retain_grad()
        outputs.predicted_depth.sum().backward()
        for tensor in outputs.hidden_states:
            self.assertIsNotNone(tensor.grad)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=False)
        if return_labels:
            inputs["labels"] = torch.ones(self.model_tester.batch_size, 64, 64)
        return inputs


class GLIPv2AnsweringSuite(GLIPSuite):
    test_all_params_have_gradient = False  # answers without boxes do not train what finds them

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=False)
        return inputs | (
            {"labels": torch.zeros(self.model_tester.batch_size, dtype=torch.long)} if return_labels else {}
        )


class GLIPv2CaptioningSuite(GLIPv2AnsweringSuite):
    first_used = 0
    test_hidden_states_output = ModelTesterMixin.test_hidden_states_output

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = ModelTesterMixin._prepare_for_class(self, inputs_dict, model_class, return_labels=False)
        return inputs | ({"labels": inputs["input_ids"]} if return_labels else {})


class DrawingSuite(SLIPSuite):
    additional_model_inputs = ["radii", "input_ids", "attention_mask"]
    test_mismatched_shapes = False  # there is no head


class PaintingSuite(DrawingSuite):
    additional_model_inputs = ["input_ids", "attention_mask"]
    test_mismatched_shapes = False  # there is no head
    test_all_params_have_gradient = False  # the encoder of the VQGAN and its codebook are there, and do nothing


class SketchSuite(ClassifierSuite):
    additional_model_inputs = ["radii", "pixel_values"]
    test_mismatched_shapes = False  # there is no head
    test_all_params_have_gradient = False  # the text encoder is there, and does nothing
