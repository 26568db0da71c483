"""transformers' own model tests on every model of the registry.

Run by test_transformers_suite.py in a process in which `tests` is transformers' package.

Each row of the registry needs a tester here: a tiny configuration and its inputs.
"""

import fnmatch
import unittest
from unittest.mock import patch

import torch
from suite_classes import (
    AudioCLIPSuite,
    AudioCLIPTester,
    AudioEncoderSuite,
    BackboneSuite,
    ClassifierSuite,
    CLIP4ClipClassificationSuite,
    CLIP4ClipSuite,
    DepthCLIPSuite,
    DrawingSuite,
    DualEncoderSuite,
    GLIPSuite,
    GLIPv2AnsweringSuite,
    GLIPv2CaptioningSuite,
    GroupViTSegmentationSuite,
    GroupViTSegmentationTester,
    GroupViTSuite,
    GroupViTTester,
    GroupViTVisionSuite,
    GroupViTVisionTester,
    ImageEncoderSuite,
    LSegSuite,
    LSegTester,
    PaintingSuite,
    SketchSuite,
    SLIPPreTrainingTester,
    SLIPSuite,
    SLIPTester,
    ViLDSuite,
)
from suite_clip_vil import CLIP_VIL_DESELECTED, CLIP_VIL_TESTERS
from suite_drawing import CLIPassoTester, CLIPDrawTester
from suite_fnd_clip import FNDCLIPSuite, FNDCLIPTester
from suite_painting import VQGAN_DESELECTED, VQGANCLIPTester, VQGANSuite, VQGANTester
from suite_testers import (
    ActionCLIPClassificationTester,
    ActionCLIPTester,
    AudioCLIPAudioTester,
    CLIP4ClipClassificationTester,
    CLIP4ClipTester,
    CLIPClassifierTester,
    CLIPResNetTester,
    CLIPResNetVisionTester,
    DepthCLIPTester,
    GLIPTester,
    GLIPv2AnsweringTester,
    GLIPv2CaptioningTester,
    GLIPv2Tester,
    PointCLIPTester,
    VideoCLIPTester,
    ViLDTester,
    videoclip_suite,
)
from suite_video_anomaly_clip import VideoAnomalyClipSuite, VideoAnomalyClipTester
from tests.test_configuration_common import ConfigTester
from transformers.models.auto import modeling_auto
from transformers.testing_utils import require_torch

from hf_clip_variants import (
    ActionCLIPForVideoClassification,
    ActionCLIPModel,
    AudioCLIPAudioModel,
    CLIP4ClipForVideoClassification,
    CLIP4ClipModel,
    CLIPResNetBackbone,
    CLIPResNetVisionModel,
    GLIPv2ForImageTextToText,
    GLIPv2ForVisualQuestionAnswering,
    GLIPv2ForZeroShotObjectDetection,
    GroupViTForSemanticSegmentation,
    GroupViTModel,
    GroupViTVisionModel,
    SLIPForPreTraining,
    SLIPModel,
    VQGANCLIPForImageSynthesis,
    VQGANModel,
)
from hf_clip_variants.registry import load_reference, methods


# Tests that cannot hold for our models, or that another class covers. "Class.test" -> reason; both may be patterns.
_OLD_DTYPE = "an old name of an argument that `from_pretrained` reads before our code; CLIPClassifierSuite runs it"
_OWN_NAMES = "saved with its own parameter names: a resumed Trainer does not find those of transformers 4"
_RESNET = "its attentions are CLIPResNetModelSuite's; the audio encoder has none"
DESELECTED: dict[str, str] = {
    **CLIP_VIL_DESELECTED,
    **VQGAN_DESELECTED,
    "AudioCLIPModelSuite.test_eager_matches_sdpa_inference_*": _RESNET,
    "SLIPForPreTrainingSuite.test_eager_matches_sdpa_inference_*": "its attentions are SLIPModelSuite's",
    "CLIPResNet*Suite.test_bc_torch_dtype": _OLD_DTYPE,
    "SLIP*Suite.test_bc_torch_dtype": _OLD_DTYPE,
    "AudioCLIP*Suite.test_bc_torch_dtype": _OLD_DTYPE,
    "GroupViT*Suite.test_bc_torch_dtype": _OLD_DTYPE,
    "FNDCLIPForSequenceClassificationSuite.test_load_with_mismatched_shapes": (
        "its end gives texts without images; test_modeling_fnd_clip.py loads with another number of classes"
    ),
    "GroupViTVisionModelSuite.test_num_layers_is_small": "three stages of one layer each",
    "SLIPModelSuite.test_reverse_loading_mapping": _OWN_NAMES,
    "GLIP*Suite.test_reverse_loading_mapping": _OWN_NAMES,
    "SLIPForPreTrainingSuite.test_reverse_loading_mapping": _OWN_NAMES,
    "AudioCLIPModelSuite.test_get_audio_features_attentions": "the audio encoder has no attention",
    "GLIPv2ForImageTextToTextSuite.test_can_capture_specific_layers_hidden_states": (
        "its hidden states are those of the words, from BERT and from the fusion, and no layer's output alone"
    ),
    "CLIPassoForImageSynthesisSuite.test_can_capture_specific_layers_hidden_states": "the loss reads all layers",
    "GLIPv2ForImageTextToTextSuite.test_causal_lm_loss_honors_shift_labels": (
        "there is no `shift_labels`: captions are not divided over processes"
    ),
    "GLIPv2ForImageTextToTextSuite.test_generation_tester_mixin_inheritance": (
        "transformers' source distribution lacks the mixin; test_captioning_glipv2.py runs greedy search, beams and "
        "sampling"
    ),
    "GLIPv2ForImageTextToTextSuite.test_model_base_model_prefix": "one model, without another one inside",
    "GLIPv2ForImageTextToTextSuite.test_model_main_input_name": (
        "generation goes on from input_ids; forward begins with pixel_values, as in the other models of GLIPv2"
    ),
    "*ForVideoClassificationSuite.test_training_gradient_checkpointing*": (
        "it looks at the first layer, the text encoder's, which does not run; those of the models run it"
    ),
}


# For each row: the tester, the tests, the tested classes and their configuration.
TESTERS = {
    "actionclip": [
        (ActionCLIPTester, CLIP4ClipSuite, ActionCLIPModel),
        (ActionCLIPClassificationTester, CLIP4ClipClassificationSuite, ActionCLIPForVideoClassification),
    ],
    "clip4clip": [
        (CLIP4ClipTester, CLIP4ClipSuite, CLIP4ClipModel),
        (CLIP4ClipClassificationTester, CLIP4ClipClassificationSuite, CLIP4ClipForVideoClassification),
    ],
    "clip_classifier": [(CLIPClassifierTester, ClassifierSuite)],
    "clip_vil": CLIP_VIL_TESTERS,
    "clip_resnet": [
        (CLIPResNetTester, DualEncoderSuite),
        (CLIPResNetVisionTester, ImageEncoderSuite, CLIPResNetVisionModel),
        (CLIPResNetVisionTester, BackboneSuite, CLIPResNetBackbone),
    ],
    "fnd_clip": [(FNDCLIPTester, FNDCLIPSuite)],
    "depthclip": [(DepthCLIPTester, DepthCLIPSuite)],
    "clipdraw": [(CLIPDrawTester, DrawingSuite)],
    "vqgan_clip": [
        (VQGANCLIPTester, PaintingSuite, VQGANCLIPForImageSynthesis),
        (VQGANTester, VQGANSuite, VQGANModel),
    ],
    "clipasso": [(CLIPassoTester, SketchSuite)],
    "pointclip": [(PointCLIPTester, CLIP4ClipClassificationSuite)],
    "slip": [(SLIPTester, SLIPSuite, SLIPModel), (SLIPPreTrainingTester, SLIPSuite, SLIPForPreTraining)],
    "video_anomaly_clip": [(VideoAnomalyClipTester, VideoAnomalyClipSuite)],
    "videoclip": [(VideoCLIPTester, videoclip_suite(DualEncoderSuite))],
    "vild": [(ViLDTester, ViLDSuite)],
    "glip": [(GLIPTester, GLIPSuite)],
    "glipv2": [
        (GLIPv2Tester, GLIPSuite, GLIPv2ForZeroShotObjectDetection),
        (GLIPv2AnsweringTester, GLIPv2AnsweringSuite, GLIPv2ForVisualQuestionAnswering),
        (GLIPv2CaptioningTester, GLIPv2CaptioningSuite, GLIPv2ForImageTextToText),
    ],
    "groupvit": [
        (GroupViTTester, GroupViTSuite, GroupViTModel),
        (GroupViTSegmentationTester, GroupViTSegmentationSuite, GroupViTForSemanticSegmentation),
        (GroupViTVisionTester, GroupViTVisionSuite, GroupViTVisionModel),
    ],
    "lseg": [(LSegTester, LSegSuite)],
    "audioclip": [(AudioCLIPTester, AudioCLIPSuite), (AudioCLIPAudioTester, AudioEncoderSuite, AudioCLIPAudioModel)],
}


def make_test_class(row, tester_class, suite, model_class=None):
    """`model_class`: an encoder of the row. Without it: the full model with all its Auto classes."""
    config_class = model_class.config_class if model_class else row.load("config")
    auto_classes = row.auto_classes
    for encoder in row.submodels:
        if model_class and load_reference(encoder.config) is config_class:
            auto_classes = encoder.auto_classes

    class Test(suite, unittest.TestCase):
        all_model_classes = (
            (model_class,) if model_class else tuple({row.load(part) for part in ("model", *row.auto_classes)})
        )
        pipeline_model_mapping: dict = {}
        config_class = model_class.config_class if model_class else row.load("config")

        @classmethod
        def setUpClass(cls):
            super().setUpClass()
            # The mixin reads from these tables which models take labels; ours are registered elsewhere.
            for auto_class, reference in auto_classes.items():
                names = {config_class.model_type: reference.split(":")[1]}
                mapping = getattr(modeling_auto, auto_class)._model_mapping._model_mapping
                table = patch.dict(mapping, names)
                table.start()
                cls.addClassCleanup(table.stop)

        def setUp(self):
            self.model_tester = tester_class(self, config_class)
            common_properties = getattr(tester_class, "common_properties", None)
            self.config_tester = ConfigTester(
                self,
                config_class,
                has_text_modality=False,
                common_properties=common_properties,
                **tester_class.config_fields,
            )

        def test_config(self):
            self.config_tester.run_common_tests()

    Test.__name__ = Test.__qualname__ = f"{(model_class or row.load('model')).__name__}Suite"
    Test.__module__ = __name__
    return require_torch(Test)


for _test_class in [make_test_class(row, *testers) for row in methods("model") for testers in TESTERS[row.name]]:
    for _name, _reason in DESELECTED.items():
        _owner, _, _pattern = _name.partition(".")
        if fnmatch.fnmatchcase(_test_class.__name__, _owner):
            for _test in fnmatch.filter(dir(_test_class), _pattern):
                setattr(_test_class, _test, unittest.skip(_reason)(getattr(_test_class, _test)))
    globals()[_test_class.__name__] = _test_class
del _test_class
torch.manual_seed(0)
