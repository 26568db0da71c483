"""Testers of modeling_suite.py: sizes of tiny models, and inputs.

For a process in which `tests` is transformers' package.
"""

import torch
from tests.test_modeling_common import floats_tensor

from hf_clip_variants import CLIPResNetVisionConfig


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


class CLIPResNetVisionTester:
    """Outputs are the feature maps of four stages and one attention with a single query."""

    batch_size, is_training, num_attention_heads, hidden_size = (
        3,
        True,
        4,
        256,
    )  # no num_hidden_layers: four stages are too many for the test
    config_fields = {"hidden_size": 64, "num_attention_heads": 1}
    maps = [(8, 16, 16), (32, 16, 16), (64, 8, 8), (128, 4, 4), (256, 2, 2)]

    def __init__(self, parent, config_class):
        self.parent, self.config_class = parent, config_class

    def get_config(self):
        sizes = {"hidden_size": 256, "depths": [1, 2, 1, 1], "num_attention_heads": 4, "projection_dim": 24}
        return self.config_class(**sizes, image_size=64, out_features=["stage2", "stage4"])

    def prepare_config_and_inputs(self):
        return self.get_config(), floats_tensor([self.batch_size, 3, 64, 64])

    def prepare_config_and_inputs_for_common(self):
        config, pixel_values = self.prepare_config_and_inputs()
        return config, {"pixel_values": pixel_values}


class CLIPResNetTester(CLIPClassifierTester):
    """Two encoders. Where transformers' tests look at one, it is the text encoder."""

    seq_length = encoder_seq_length = key_length = 8
    config_fields = {"logit_scale_init_value": 2.0, "projection_dim": 24}

    def __init__(self, parent, config_class):
        super().__init__(parent, config_class)
        self.vision_model_tester = CLIPResNetVisionTester(parent, CLIPResNetVisionConfig)

    def get_config(self):
        return self.config_class(
            text_config=TEXT, vision_config=self.vision_model_tester.get_config(), projection_dim=24
        )

    def prepare_config_and_inputs_for_common(self):
        _, pixel_values = self.vision_model_tester.prepare_config_and_inputs()
        return self.get_config(), {"pixel_values": pixel_values} | self.text_inputs() | {"return_loss": True}


class AudioCLIPAudioTester:
    """Hidden states are feature maps of the stem and four stages, for each of two channels."""

    batch_size, is_training, hidden_size = 3, True, 96
    common_properties = ["hidden_size", "num_hidden_layers"]
    config_fields = {"hidden_size": 192, "n_fft": 512, "win_length": 400, "width_per_group": 64}
    maps = [(2, 3, 3, 11), (2, 12, 3, 11), (2, 24, 2, 6), (2, 48, 1, 3), (2, 96, 1, 2)]

    def __init__(self, parent, config_class):
        self.parent, self.config_class = parent, config_class

    def get_config(self):
        spectrogram = {"n_fft": 64, "win_length": 50, "hop_length": 20}
        sizes = {"hidden_size": 96, "depths": [1, 2, 1, 1], "groups": 2, "width_per_group": 48, "projection_dim": 24}
        return self.config_class(**spectrogram, **sizes)

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), {"input_features": 5000 * floats_tensor([self.batch_size, 2, 900])}


class CLIP4ClipTester(CLIPClassifierTester):
    """Videos of two frames, and texts. Where transformers' tests look at one encoder, it is the text encoder."""

    seq_length = encoder_seq_length = key_length = 8
    config_fields = {"projection_dim": 24, "similarity_head": "meanP", "num_frames": 3}

    def get_config(self):
        return self.config_class(
            text_config=TEXT,
            vision_config=VISION,
            projection_dim=24,
            head_config={"num_hidden_layers": 2, "num_attention_heads": 4},
            num_frames=3,
            frozen_layers=-1,
            logit_scale_init_value=0.5,  # half precision is compared with an absolute tolerance
        )

    def prepare_config_and_inputs_for_common(self):
        videos = floats_tensor([self.batch_size, 2, 3, 30, 30])
        return self.get_config(), {"pixel_values_videos": videos} | self.text_inputs() | {"return_loss": True}


class CLIP4ClipClassificationTester(CLIP4ClipTester):
    """Classes are stored: no texts."""

    num_labels, seq_length, encoder_seq_length, key_length = 5, 37, 37, 37

    def get_config(self):
        names = {label: f"class {label}" for label in range(self.num_labels)}
        return self.config_class(**super().get_config().to_dict() | {"id2label": names, "num_class_features": 5})

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), {"pixel_values_videos": floats_tensor([self.batch_size, 2, 3, 30, 30])}


class ActionCLIPTester(CLIP4ClipTester):
    config_fields = {"projection_dim": 24, "fusion_head": "LSTM", "num_frames": 3}
    sizes = {"num_fusion_layers": 2, "num_fusion_heads": 4, "num_frames": 3, "score_scale": 1.0}

    def get_config(self):
        encoders = {"text_config": TEXT, "vision_config": VISION, "projection_dim": 24}
        # Half precision is compared with an absolute tolerance.
        return self.config_class(**encoders, **self.sizes, logit_scale_init_value=0.5)


class ActionCLIPClassificationTester(ActionCLIPTester):
    """Classes are stored: no texts."""

    num_labels, seq_length, encoder_seq_length, key_length = 5, 37, 37, 37
    sizes = ActionCLIPTester.sizes | {"num_class_features": 5, "num_class_templates": 2}
    sizes |= {"id2label": {label: f"class {label}" for label in range(5)}}

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), {"pixel_values_videos": floats_tensor([self.batch_size, 2, 3, 30, 30])}


class PointCLIPTester(CLIP4ClipClassificationTester):
    """Clouds of points seen from two sides, by classes whose texts are stored."""

    config_fields = {"projection_dim": 24, "resolution": 20, "views_at_once": 7}

    def get_config(self):
        return self.config_class(
            text_config=TEXT,
            vision_config=VISION,
            projection_dim=24,
            view_angles=[[0, 0, 0.5], [0.5, 0, 0.5]],
            resolution=30,
            logit_scale_init_value=0.5,
            id2label={label: f"class {label}" for label in range(self.num_labels)},
            num_class_features=5,
        )

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), {"points": floats_tensor([self.batch_size, 50, 3])}


class DepthCLIPTester(CLIPClassifierTester):
    """Where transformers' tests look for hidden states, they are the ResNet's maps."""

    common_properties = ["projection_dim"]
    config_fields = {"projection_dim": 24, "temperature": 0.5, "panorama": True}
    maps = [(8, 16, 16), (32, 16, 16), (64, 8, 8), (128, 4, 4), (256, 2, 2)]

    def get_config(self):
        vision = {"hidden_size": 256, "depths": [1, 2, 1, 1], "num_attention_heads": 4, "image_size": 64}
        return self.config_class(
            text_config=TEXT,
            vision_config=vision,
            projection_dim=24,
            depth_words=["near", "far"],
            bin_centers=[1.0, 3.0],
            temperature=5.0,
            encoded_texts=[["This object is near"], ["This object is far"]],
            learnable_parts=["bins", "words", "temperature"],
            freeze_image_encoder=False,
            flip_average=False,
        )

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), {"pixel_values": floats_tensor([self.batch_size, 3, 64, 64])}


class VideoCLIPTester(CLIPClassifierTester):
    """Features of four seconds, and texts. Where transformers' tests look at one encoder, it is the text encoder."""

    seq_length = encoder_seq_length = key_length = 8
    config_fields = {"feature_size": 9, "use_s3d": False, "max_video_length": 20}
    common_properties = ["hidden_size"]

    def get_config(self):
        bert = SIZES | {"vocab_size": 120, "max_position_embeddings": 64, "type_vocab_size": 2}
        bert |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        sizes = {"feature_size": 10, "max_video_length": 6, "max_text_length": 12, "window_stride": 3}
        ends = {"cls_token_id": TEXT["bos_token_id"], "sep_token_id": TEXT["eos_token_id"]}
        return self.config_class(text_config=bert, video_config=bert, use_s3d=False, **sizes, **ends)

    def prepare_config_and_inputs_for_common(self):
        videos = {"video_features": floats_tensor([self.batch_size, 4, 10])}
        return self.get_config(), videos | self.text_inputs() | {"return_loss": True}


def videoclip_suite(dual_encoder_suite: type) -> type:
    class VideoCLIPSuite(dual_encoder_suite):
        additional_model_inputs = ["video_features"]
        skip_test_video_features_output_shape = True  # of seconds; its hidden states also have both ends

        def _run(self, by_config, **options):
            config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
            for part in (config.text_config, config.video_config) if by_config else ():
                for name, value in options.items():
                    setattr(part, name, value)
            model = self.all_model_classes[0]._from_config(config, attn_implementation="eager")
            return model(**inputs, **({} if by_config else options))

        def test_hidden_states_output(self):
            for by_config in (False, True):
                outputs = self._run(by_config, output_hidden_states=True)
                self.assertEqual([one.shape for one in outputs.video_model_output.hidden_states], 3 * [(3, 6, 32)])
                self.assertEqual([one.shape for one in outputs.text_model_output.hidden_states], 3 * [(3, 8, 32)])

        def test_attention_outputs(self):
            for by_config in (False, True):
                outputs = self._run(by_config, output_attentions=True)
                self.assertEqual([one.shape for one in outputs.video_model_output.attentions], 2 * [(3, 4, 6, 6)])
                self.assertEqual([one.shape for one in outputs.text_model_output.attentions], 2 * [(3, 4, 8, 8)])

        def test_retain_grad_hidden_states_attentions(self):
            outputs = self._run(False, output_hidden_states=True, output_attentions=True)
            encoders = (outputs.video_model_output, outputs.text_model_output)
            kept = [tensor for encoder in encoders for tensor in (*encoder.hidden_states, *encoder.attentions)]
            for tensor in kept:
                tensor.retain_grad()
            outputs.loss.backward()
            for tensor in kept:
                self.assertIsNotNone(tensor.grad)

    return VideoCLIPSuite


class ViLDTester(CLIPClassifierTester):
    """Where transformers' tests look for hidden states, they are the ResNet's maps; there is no attention in them."""

    common_properties = ["hidden_size"]
    config_fields = {"hidden_size": 16, "temperature": 0.1, "variant": "text"}
    maps = [(8, 16, 16), (8, 16, 16), (12, 8, 8), (16, 4, 4), (20, 2, 2)]

    def get_config(self):
        backbone = {"embedding_size": 8, "hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1]}
        sizes = {"hidden_size": 12, "head_num_convs": 1, "head_num_layers": 1, "head_hidden_size": 20}
        sizes |= {"rpn_num_convs": 1, "mask_num_convs": 1, "rpn_post_nms": 6, "max_detections": 5, "temperature": 1.0}
        return self.config_class(
            dual_encoder_config={"text_config": TEXT, "vision_config": VISION, "projection_dim": 24},
            backbone_config=backbone | {"layer_type": "basic"},
            **sizes,
        )

    def prepare_config_and_inputs_for_common(self):
        boxes = torch.tensor([[2.0, 3.0, 30.0, 40.0], [10.0, 8.0, 50.0, 60.0], [20.0, 1.0, 40.0, 30.0]])
        inputs = {"pixel_values": floats_tensor([self.batch_size, 3, 64, 64])}
        return self.get_config(), inputs | {"proposals": boxes.expand(self.batch_size, -1, -1)} | self.texts()

    def texts(self):
        return {"class_embeddings": floats_tensor([self.num_labels, 24])}


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


class GLIPv2CaptioningTester(GLIPv2Tester):
    """Images and the beginnings of captions. Hidden states are the words'."""

    seq_length = encoder_seq_length = key_length = 8

    def prepare_config_and_inputs_for_common(self):
        config, inputs = super().prepare_config_and_inputs_for_common()
        del inputs["phrase_map"]
        return config, inputs
