"""Processors of saved folders that are not whole."""

import json

import pytest
from clip_vil_runs import clip_vil_processor
from fnd_clip_runs import news_processor
from glip_runs import glip_processor
from glipv2_runs import glipv2_processor
from pointclip_runs import point_processor
from tiny import tiny_tokenizer
from transformers import ProcessorMixin
from vild_runs import vild_processor

from hf_clip_variants import (
    AudioCLIPProcessor,
    CLIPClassifierImageProcessor,
    CLIPClassifierProcessor,
    CLIPVideoProcessor,
    VideoTextProcessor,
)
from hf_clip_variants.modeling.dense.image_processing_dense import DenseImageProcessor
from hf_clip_variants.modeling.dense.processing_dense import DenseProcessor
from hf_clip_variants.modeling.loading_and_saving.processors import CheckedParts


PROCESSORS = {
    "classifier": lambda: CLIPClassifierProcessor(CLIPClassifierImageProcessor(), tiny_tokenizer()),
    "audio": lambda: AudioCLIPProcessor(CLIPClassifierImageProcessor(), tiny_tokenizer()),
    "dense": lambda: DenseProcessor(DenseImageProcessor(), tiny_tokenizer()),
    "detection": vild_processor,
    "grounding": glip_processor,
    "grounding with captions": glipv2_processor,
    "points": point_processor,
    "posts": news_processor,
    "questions": clip_vil_processor,
    "video": lambda: VideoTextProcessor(CLIPVideoProcessor(), tiny_tokenizer()),
}


def _subclasses(kind: type) -> set[type]:
    return {kind}.union(*map(_subclasses, kind.__subclasses__()))


def test_all_processors_of_the_package_are_here():
    ours = {kind for kind in _subclasses(ProcessorMixin) if kind.__module__.startswith("hf_clip_variants.")}
    assert ours == {CheckedParts, *(type(make()) for make in PROCESSORS.values())}


@pytest.mark.parametrize("kind", PROCESSORS)
def test_a_part_that_a_folder_lacks_is_named(kind, tmp_path):
    processor = PROCESSORS[kind]()
    processor.save_pretrained(tmp_path)
    path = tmp_path / "processor_config.json"
    part = {"video": "video_processor", "points": "feature_extractor"}.get(kind, "image_processor")
    path.write_text(json.dumps(json.loads(path.read_text()) | {part: None}))
    with pytest.raises(OSError, match=f"its processor cannot be loaded, {part} or tokenizer.*: {part}"):
        type(processor).from_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert type(type(processor).from_pretrained(tmp_path)) is type(processor)
