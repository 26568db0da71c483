"""The official ↔ CLIP4Clip mapping: heads, patches, files, and what is refused."""

import pytest
import torch
from clip4clip_runs import clip4clip_batch, clip4clip_model
from converter_contract import ConverterContract
from official_files import from_a_training, letters_tokenizer
from parity_fixtures import fixtures_like, load_fixture
from safetensors.torch import save_file
from transformers import AutoModel, AutoProcessor, AutoVideoProcessor

from hf_clip_variants import CLIP4ClipConfig, CLIP4ClipModel, VideoTextProcessor, convert_checkpoint
from hf_clip_variants.modeling.clip4clip.convert_clip4clip import (
    clip4clip_from_official,
    convert_clip4clip_state_dict,
    infer_clip4clip_config,
    to_official,
    unused_names,
)


HEADS = {"vision_heads": 4, "text_heads": 4}


def tiny(**options) -> CLIP4ClipModel:
    """With the default of frozen layers and of the logit scale, which no file holds."""
    return clip4clip_model(frozen_layers=0, logit_scale_init_value=2.6592, **options)


class TestSequential(ConverterContract):
    """seqTransf, with 3-D patches."""

    title = "CLIP4Clip"
    config_class = CLIP4ClipConfig
    from_official, convert = staticmethod(clip4clip_from_official), staticmethod(convert_clip4clip_state_dict)
    infer, to_official = staticmethod(infer_clip4clip_config), staticmethod(to_official)
    options = HEADS | {"head_heads": 3}
    output, one_name, prefix = "logits_per_video", "clip.logit_scale", "clip."
    strays = {
        "cross.embeddings.position_embeddings.weight": torch.ones(32, 24),
        "cross.pooler.dense.bias": torch.ones(24),
        "similarity_dense.weight": torch.ones(1, 24),
    }
    indirect = ("clip.visual.conv2.weight", "clip.token_embedding.weight")
    hole = ("transformerClip.resblocks.0.", "transformerClip.resblocks.7.")
    wrong_shapes = (
        ("clip.visual.conv2.weight", (40, 3, 8, 8), r"conv2.weight \(40, 3, 8, 8\), expected \(width, 3, 3, p, p\)"),
        ("clip.visual.proj", (20, 24), r"visual.proj \(20, 24\), expected \(40, 24\)"),
        ("frame_position_embeddings.weight", (32, 20), r"frame_position_embeddings.weight \(32, 20\), expected"),
        ("transformerClip.resblocks.0.attn.in_proj_weight", (48, 24), r"\(48, 24\), expected \(72, 24\)"),
        ("clip.logit_scale", (2,), r"logit_scale \(2,\), expected \(\)"),
    )
    wrong_heads = (
        ({}, "text_heads: the width 32 is not a multiple of 64"),
        ({**HEADS, "head_heads": 5}, "num_attention_heads: 5 does not divide hidden_size"),
    )
    other_models = (
        ("clip.visual.layer1.0.conv1.weight", "it needs the model clip_resnet"),
        ("logit_scale", "1 unexpected: logit_scale"),
    )
    nothing_found = "no names that start with `clip.`"
    head = {"similarity_head": "seqTransf", "patch_embedding": "3d"}

    def make(self):
        return tiny(**self.head, num_frames=12)

    def inputs(self):
        return clip4clip_batch()


class TestTight(TestSequential):
    head = {"similarity_head": "tightTransf"}
    strays = {"frame_position_embeddings.weight": torch.ones(32, 24)}
    indirect = ("clip.token_embedding.weight",)
    hole = ("cross.transformer.resblocks.0.", "cross.transformer.resblocks.7.")
    wrong_shapes = (
        ("cross.embeddings.position_embeddings.weight", (32, 20), "position_embeddings.weight .*expected"),
        ("cross.pooler.dense.weight", (24, 20), r"cross.pooler.dense.weight \(24, 20\), expected \(24, 24\)"),
        ("similarity_dense.weight", (2, 24), r"similarity_dense.weight \(2, 24\), expected \(1, 24\)"),
    )


def test_flat_patches_of_a_model_with_deep_ones_are_left_out():
    model = tiny(patch_embedding="3d")
    official = to_official(model.state_dict(), model.config)
    flat = {"clip.visual.conv1.weight": torch.ones(40, 3, 8, 8)}
    assert unused_names(official | flat) == list(flat)
    found = clip4clip_from_official(official | flat, **HEADS, head_heads=3)
    assert all(torch.equal(tensor, found.state_dict()[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("head", ["meanP", "seqLSTM"])
def test_the_other_heads_are_told_by_their_names(head):
    model = tiny(similarity_head=head)
    official = to_official(model.state_dict(), model.config)
    found = clip4clip_from_official(official, **HEADS)
    assert found.config.similarity_head == head and not unused_names(official)
    assert all(torch.equal(tensor, found.state_dict()[name]) for name, tensor in model.state_dict().items())


class TestFiles:
    @pytest.fixture(params=[name for name in fixtures_like("clip4clip_*") if name != "clip4clip_init"])
    def fixture(self, request):
        return load_fixture(request.param)

    def test_a_file_becomes_a_folder_that_meets_the_official_outputs(self, fixture, tmp_path):
        said, given, outputs = fixture.meta["hyper_parameters"], fixture.inputs, fixture.outputs
        file = tmp_path / "pytorch_model.bin.4"
        torch.save(dict(fixture.state_dict), file)
        inputs = {
            "input_ids": given["input_ids"][:, 0].contiguous(),
            "pixel_values_videos": given["video"][:, 0, :, 0].contiguous(),
            "video_mask": given["video_mask"][:, 0].contiguous(),
        }
        expected = {"text_features": outputs["text_features"], "logits_per_text": outputs["similarity"]}
        save_file(inputs | expected, tmp_path / "expected.safetensors")
        heads = {"vision_heads": said["vision_width"] // 16, "text_heads": said["cross_heads"]}
        tokenizer = letters_tokenizer(said["vocab_size"], tmp_path / "letters") if said["vocab_size"] > 60 else "none"
        result = convert_checkpoint(
            file, tmp_path / "out", expected=tmp_path / "expected.safetensors", tokenizer=tokenizer, **heads
        )
        assert result.method == "clip4clip" and result.kind == "CLIP4ClipModel"
        assert result.expected_differences["logits_per_text"] < 1e-4 and result.difference < 1e-5
        assert result.dropped == unused_names(fixture.state_dict)
        loaded = AutoModel.from_pretrained(tmp_path / "out")
        assert type(loaded) is CLIP4ClipModel and loaded.config.similarity_head == said["sim_header"]
        if tokenizer != "none":
            assert type(AutoProcessor.from_pretrained(tmp_path / "out")) is VideoTextProcessor

    def test_outputs_are_compared_with_and_without_a_tokenizer(self, tmp_path):
        model = tiny(similarity_head="seqLSTM")
        file = from_a_training(to_official(model.state_dict(), model.config), tmp_path / "model.bin")
        options = HEADS | {"compare": True}
        letters = letters_tokenizer(model.config.text_config.vocab_size, tmp_path / "letters")
        assert convert_checkpoint(file, tmp_path / "both", tokenizer=letters, **options).difference < 1e-5
        result = convert_checkpoint(file, tmp_path / "out", tokenizer="none", **options)
        assert result.difference < 1e-5 and any("AutoVideoProcessor" in note for note in result.notes)
        videos = AutoVideoProcessor.from_pretrained(tmp_path / "out")
        pixels = videos(torch.zeros(3, 40, 30, 3, dtype=torch.uint8).numpy(), return_tensors="pt")
        assert pixels["pixel_values_videos"].shape == (1, 3, 3, 24, 24)
