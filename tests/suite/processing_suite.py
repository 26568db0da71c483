"""transformers' own processor and image processor tests on every model of the registry that has one.

See modeling_suite.py.
"""

import shutil
import tempfile
import unittest

import torch
from tests.test_image_processing_common import (  # noqa: E402
    ImageProcessingTester,
    ImageProcessingTestMixin,
    PostProcessSemanticSegmentationTestMixin,
)
from tests.test_processing_common import ProcessorTesterMixin  # noqa: E402
from tests.test_video_processing_common import VideoProcessingTestMixin, prepare_video_inputs  # noqa: E402
from tiny import tiny_tokenizer  # noqa: E402
from transformers.modeling_outputs import SemanticSegmenterOutput  # noqa: E402

# The package comes before tests/ on the path, see tests/conftest.py.
from hf_clip_variants.modeling.dense.processing_dense import DenseProcessor
from hf_clip_variants.modeling.glip.processing_glip import GLIPProcessor
from hf_clip_variants.registry import load_reference, method, methods


# "Class.test" or "test" -> why it cannot hold for our processors.
_POINTS = "its feature extractor reads clouds of points, not audio; tests/modeling/points has tests of the same"
DESELECTED: dict[str, str] = {
    "ViLDForZeroShotObjectDetectionImageProcessorSuite.test_post_process_test_mixin_inheritance": (
        "DETR's methods for segmentation are inherited and of no use here"
    ),
    "GLIPForZeroShotObjectDetectionImageProcessorSuite.test_post_process_test_mixin_inheritance": (
        "DETR's methods for segmentation are inherited and of no use here"
    ),
    "test_call_sample_frames": (
        "a video with fewer frames than num_frames is no error: all are taken, and the mask says how many"
    ),
    "VideoAnomalyClipModelVideoProcessorSuite.test_call_sample_frames": "as for CLIP4Clip, whose processor it is",
    "GLIPv2ForZeroShotObjectDetectionImageProcessorSuite.test_post_process_test_mixin_inheritance": (
        "DETR's methods for segmentation are inherited and of no use here"
    ),
    "PointCLIPModelProcessorSuite.test_model_input_names": _POINTS,
    "PointCLIPModelProcessorSuite.test_processor_with_multiple_inputs": _POINTS,
    "PointCLIPModelProcessorSuite.test_subprocessor_defaults_3_audio": _POINTS,
    "test_call_numpy_4_channels": "with do_convert_rgb=False, images that are not RGB are an error",
}


class Tester(ImageProcessingTester):
    def __init__(self, parent, **kwargs):
        classes = [load_reference(reference) for reference in parent.row.image_processors.values()]
        crops = all(getattr(one, "do_center_crop", False) for one in classes)
        if all(hasattr(one, "return_pixel_mask") for one in classes):  # images get one of two sizes, if not this one
            kwargs.setdefault("size", {"height": 18, "width": 18})
        kwargs.setdefault("size", {"shortest_edge": 20} if crops else {"shortest_edge": 18, "longest_edge": 333})
        if crops:
            kwargs.setdefault("crop_size", {"height": 18, "width": 18})
        super().__init__(parent, **kwargs)

    def _get_image_processing_classes(self):
        return {backend: load_reference(reference) for backend, reference in self.parent.row.image_processors.items()}


class DenseTester(Tester):
    """Images keep their shape: nothing is cropped."""

    num_labels = 3

    def __init__(self, parent, **kwargs):
        super().__init__(parent, size={"shortest_edge": 20, "longest_edge": 100}, **kwargs)
        vars(self).pop("crop_size", None)

    def prepare_image_processor_dict(self):
        return {name: value for name, value in super().prepare_image_processor_dict().items() if name != "crop_size"}

    def prepare_post_process_semantic_segmentation_inputs(self):
        logits = torch.randn(self.batch_size, self.num_labels, 20, 25)
        expected = {"height": 20, "width": 25, "num_labels": self.num_labels}
        return {"outputs": SemanticSegmenterOutput(logits=logits)}, expected


class VideoTester:
    """Small videos, of which all frames are taken."""

    batch_size, num_frames, num_channels, min_resolution, max_resolution = 5, 4, 3, 16, 30

    def prepare_video_inputs(self, equal_resolution=False, return_tensors="pil"):
        return prepare_video_inputs(
            batch_size=self.batch_size,
            num_frames=self.num_frames,
            num_channels=self.num_channels,
            min_resolution=self.min_resolution,
            max_resolution=self.max_resolution,
            equal_resolution=equal_resolution,
            return_tensors=return_tensors,
        )

    def expected_output_video_shape(self, videos):
        return self.num_frames, 3, 18, 18


def make_video_test_class(row):
    class VideoProcessorTest(VideoProcessingTestMixin, unittest.TestCase):
        fast_video_processing_class = row.load("video_processor")
        test_cast_dtype = True
        video_processor_dict = {"size": {"shortest_edge": 20}, "crop_size": {"height": 18, "width": 18}}

        def setUp(self):
            super().setUp()
            self.video_processor_tester = VideoTester()

    return VideoProcessorTest


def is_dense(row) -> bool:
    """Whether the row's processor is the shared one of models that label pixels."""
    return ".dense." in row.processor


def make_test_classes(row):
    dense = (PostProcessSemanticSegmentationTestMixin,) if is_dense(row) else ()

    class ImageProcessorTest(*dense, ImageProcessingTestMixin, unittest.TestCase):
        image_processor_tester_class = DenseTester if dense else Tester

    ImageProcessorTest.row = row

    class ProcessorTest(ProcessorTesterMixin, unittest.TestCase):
        processor_class = row.load("processor")

        @classmethod
        def _setup_image_processor(cls):
            # Some methods use the processor of another one.
            images = row.image_processors or method("clip_classifier").image_processors
            return load_reference(next(iter(images.values())))()

        @classmethod
        def _setup_video_processor(cls):
            return row.load("video_processor")()

        @classmethod
        def _setup_feature_extractor(cls):
            return row.load("point_processor" if row.point_processor else "feature_extractor")()

        @classmethod
        def _setup_tokenizer(cls):
            folder = tempfile.mkdtemp()
            cls.addClassCleanup(shutil.rmtree, folder)
            tiny_tokenizer().save_pretrained(folder)
            return type(tiny_tokenizer()).from_pretrained(folder)  # a copy: tests change it

        @classmethod
        def _setup_clip_tokenizer(cls):
            return cls._setup_tokenizer()

        def prepare_text_inputs(self, batch_size=None, modalities=None):
            """Labels are always a list where each image is compared with all of them."""
            found = super().prepare_text_inputs(batch_size, modalities)
            if issubclass(self.processor_class, GLIPProcessor) and not isinstance(found, str):
                return [[one] for one in found]  # one label for each image
            return (
                [found]
                if isinstance(found, str) and issubclass(self.processor_class, DenseProcessor | GLIPProcessor)
                else found
            )

        def prepare_audio_inputs(self, batch_size=None):
            """In the format of `datasets`: audio without sampling rate is an error."""
            return [{"array": audio, "sampling_rate": 44_100} for audio in super().prepare_audio_inputs(batch_size)]

    return ImageProcessorTest, ProcessorTest


for _row in (row for row in methods("model") if row.processor):  # others use another method's
    _images, _both = make_test_classes(_row)
    _classes = {"Processor": _both}
    if _row.image_processors:
        _classes["ImageProcessor"] = _images
    if _row.video_processor:
        _classes["VideoProcessor"] = make_video_test_class(_row)
    for _part, _made in _classes.items():
        _made.__name__ = _made.__qualname__ = f"{_row.load('model').__name__}{_part}Suite"
        _made.__module__ = __name__
        for _name, _reason in DESELECTED.items():
            _owner, _, _test = _name.rpartition(".")
            if _owner in ("", _made.__name__) and hasattr(_made, _test):
                setattr(_made, _test, unittest.skip(_reason)(getattr(_made, _test)))
        globals()[_made.__name__] = _made
del _images, _both, _made, _classes
