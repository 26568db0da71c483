"""CLIP4Clip: what the heads see and do not see, freezing, other encoders, tiles, processes, two learning rates."""

import pytest
import torch
from clip4clip_runs import clip4clip_batch, clip4clip_config, clip4clip_model
from paths import PROGRAMS
from processes import run_on_ranks
from safetensors.torch import load_file
from tiny import tiny_clip
from tiny_families import FAMILIES, family_image_size, tiny_dual_encoder, tiny_family_inputs

from hf_clip_variants import CLIP4ClipModel
from hf_clip_variants.training.parameter_groups import two_rate_groups


HEADS = ("meanP", "seqLSTM", "seqTransf", "tightTransf")


def logits(model, batch, **changes) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch | changes).logits_per_text


@pytest.mark.parametrize("head", HEADS)
def test_pixels_of_frames_that_are_not_there_change_nothing(head):
    model, batch = clip4clip_model(similarity_head=head), clip4clip_batch()
    pixels, there = batch["pixel_values_videos"], batch["video_mask"].bool()
    other = torch.where(there[..., None, None, None], pixels, 100.0)
    assert torch.equal(logits(model, batch), logits(model, batch, pixel_values_videos=other))
    whole = {name: value[:1] for name, value in batch.items()}
    without = {name: value for name, value in whole.items() if name != "video_mask"}
    torch.testing.assert_close(logits(model, whole), logits(model, without), rtol=0, atol=0)
    # A video alone, without what the longest one made it be filled up with.
    alone = {"pixel_values_videos": pixels[2:3, :2], "video_mask": torch.ones(1, 2)}
    torch.testing.assert_close(logits(model, batch | alone), logits(model, batch)[:, 2:3], rtol=0, atol=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_only_the_mean_does_not_know_the_order_of_frames(head):
    model, batch = clip4clip_model(similarity_head=head), clip4clip_batch() | {"video_mask": None}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and not name.startswith("clip."):
                parameter.mul_(10)  # those of a new head are small
    backwards = batch["pixel_values_videos"].flip(1)
    difference = (logits(model, batch) - logits(model, batch, pixel_values_videos=backwards)).abs().max()
    assert difference < 1e-5 if head == "meanP" else difference > 1e-4


def test_one_frame_and_mean_is_clip():
    clip, batch = tiny_clip(), clip4clip_batch(frames=1) | {"video_mask": None}
    model = CLIP4ClipModel.from_clip(clip, similarity_head="meanP")
    with torch.no_grad():
        expected = clip(input_ids=batch["input_ids"], pixel_values=batch["pixel_values_videos"][:, 0])
    torch.testing.assert_close(logits(model, batch), expected.logits_per_text, rtol=0, atol=1e-5)


def test_patches_over_time_start_as_patches():
    batch = clip4clip_batch()
    flat, deep = (
        CLIP4ClipModel.from_clip(tiny_clip(), similarity_head="meanP", patch_embedding=kind) for kind in ("2d", "3d")
    )
    torch.testing.assert_close(logits(flat, batch), logits(deep, batch), rtol=0, atol=1e-5)
    torch.nn.init.normal_(deep.clip.vision_model.embeddings.patch_embedding.weight, std=0.1)
    whole = batch | {"video_mask": None}
    backwards = batch["pixel_values_videos"].flip(1)
    assert (logits(deep, whole) - logits(deep, whole, pixel_values_videos=backwards)).abs().max() > 1e-4


def test_a_transformer_without_effect_is_the_mean():
    sequential, batch = clip4clip_model(similarity_head="seqTransf"), clip4clip_batch()
    mean = clip4clip_model(similarity_head="meanP")
    mean.clip.load_state_dict(sequential.clip.state_dict())
    sequential.temporal_layers.forward = lambda features, mask: torch.zeros_like(features)
    torch.testing.assert_close(logits(sequential, batch), logits(mean, batch), rtol=0, atol=1e-5)


def test_tiles_of_pairs_change_neither_scores_nor_gradients():
    batch, found = clip4clip_batch(), []
    for pairs in (1000, 3):
        model = clip4clip_model(similarity_head="tightTransf")
        model.config.pairs_per_tile = pairs
        outputs = model(**batch, return_loss=True)
        outputs.loss.backward()
        found.append([outputs.logits_per_text, *(p.grad for p in model.parameters() if p.grad is not None)])
    for whole, tiles in zip(*found, strict=True):
        torch.testing.assert_close(whole, tiles, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="similarity_head: tightTransf compares each video with each text"):
        model.get_video_features(batch["pixel_values_videos"])


def test_features_of_each_side_give_the_logits():
    model, batch = clip4clip_model(), clip4clip_batch()
    with torch.no_grad():
        texts = model.get_text_features(batch["input_ids"]).pooler_output
        videos = model.get_video_features(batch["pixel_values_videos"], batch["video_mask"]).pooler_output
        texts, videos = (torch.nn.functional.normalize(one, dim=-1) for one in (texts, videos))
        expected = model.logit_scale.exp() * texts @ videos.T
    torch.testing.assert_close(logits(model, batch), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("frozen, layers", [(-1, 0), (0, 0), (1, 1)])
def test_layers_are_frozen_also_after_loading(tmp_path, frozen, layers):
    clip4clip_model(frozen_layers=frozen, patch_embedding="3d").save_pretrained(tmp_path)
    model = CLIP4ClipModel.from_pretrained(tmp_path)
    still = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert bool(still) == (frozen >= 0)
    assert {name for name in still if ".layers." in name} == {
        name
        for name, _ in model.named_parameters()
        if name.startswith("clip.") and any(f".layers.{i}." in name for i in range(layers))
    }
    if frozen >= 0:
        assert {"clip.text_model.embeddings.token_embedding.weight", "clip.vision_model.pre_layrnorm.bias"} <= still
    assert "clip.vision_model.embeddings.patch_embedding.weight" not in still  # over time: it is new


def test_a_plain_clip_is_loaded_with_a_head_that_starts_from_its_text_encoder(tmp_path):
    clip = tiny_clip(text_config={"projection_dim": 32, "hidden_size": 32, "intermediate_size": 128})
    clip = type(clip)(type(clip.config)(**clip.config.to_dict() | {"projection_dim": 32}))
    clip.save_pretrained(tmp_path)
    model = CLIP4ClipModel.from_pretrained(tmp_path, head_config={"num_hidden_layers": 3})
    layers, text = model.temporal_layers.layers, clip.text_model.encoder.layers
    for ours, source in zip(layers, text, strict=False):
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), source.parameters(), strict=True))
    assert len(layers) == 3 > len(text) and layers[2].layer_norm1.weight.eq(1).all()
    again = CLIP4ClipModel.from_clip(clip, head_config={"num_hidden_layers": 3})
    assert torch.equal(
        again.temporal_layers.position_embedding.weight, model.temporal_layers.position_embedding.weight
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_any_dual_encoder_carries_a_loose_head(family, tmp_path):
    model = CLIP4ClipModel.from_clip(tiny_dual_encoder(family), similarity_head="seqLSTM", frozen_layers=1)
    size, texts = family_image_size(family), tiny_family_inputs(family)
    batch = {"input_ids": texts["input_ids"][:2], "pixel_values_videos": torch.randn(2, 4, 3, size, size)}
    if "attention_mask" in texts:
        batch["attention_mask"] = texts["attention_mask"][:2]
    assert logits(model, batch).isfinite().all()
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(
        logits(CLIP4ClipModel.from_pretrained(tmp_path), batch), logits(model, batch), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"pixel_values_videos": torch.zeros(4, 3, 24, 24)}, "pixel_values_videos: expected \\[videos, frames, 3"),
        ({"pixel_values_videos": torch.zeros(4, 4, 3, 24, 24, dtype=torch.uint8)}, "looks unnormalised"),
        ({"video_mask": torch.ones(4, 3)}, "video_mask: got shape \\[4, 3\\], expected a tensor of shape \\[4, 4\\]"),
        ({"video_mask": torch.zeros(4, 4)}, "video_mask: video 0 has no frames"),
        ({"video_mask": torch.ones(4, 4) + 0j}, "video_mask: got torch.complex64, expected 1 and 0"),
        ({"video_mask": torch.eye(4)}, "a frame that is not there comes before"),
        ({"video_mask": [[1] * 4] * 4}, "video_mask: got list, expected a tensor of shape \\[4, 4\\]"),
        ({"input_ids": torch.ones(3, 7, dtype=torch.long)}, "return_loss: 3 texts for 4 videos"),
        ({"input_ids": torch.ones(4, 33, dtype=torch.long)}, "input_ids: 33 tokens, the text encoder takes 32"),
        ({"pixel_values_videos": torch.zeros(4, 0, 3, 24, 24)}, "at least one video with frames, got \\[4, 0, 3"),
        (
            {"pixel_values_videos": torch.zeros(4, 33, 3, 24, 24), "video_mask": None},
            "pixel_values_videos: a sequence of 33, the head has 32 positions; want fewer frames",
        ),
        (
            {"pixel_values_videos": torch.full((4, 4, 3, 24, 24), torch.nan)},
            "logits_per_text: NaN or infinite numbers, because pixel_values_videos\\[0\\] has some",
        ),
    ],
)
def test_wrong_inputs_are_said(changes, message):
    with pytest.raises(ValueError, match=message):
        clip4clip_model()(**clip4clip_batch() | changes, return_loss=True)


@pytest.mark.parametrize("options", [{"similarity_head": "tightTransf"}, {"patch_embedding": "3d"}])
def test_what_needs_clip_is_said(options):
    with pytest.raises(ValueError, match="the others need CLIP"):
        clip4clip_config(backbone_model_type="siglip", text_config={}, vision_config={}, head_config={}, **options)


def test_two_processes_train_as_one(tmp_path):
    run_on_ranks(PROGRAMS / "clip4clip_ranks.py", tmp_path, world_size=2, folder=tmp_path)
    run_on_ranks(PROGRAMS / "clip4clip_ranks.py", tmp_path, world_size=1, folder=tmp_path)
    alone = load_file(tmp_path / "1of1.safetensors")
    for rank in range(2):
        found = load_file(tmp_path / f"{rank + 1}of2.safetensors")
        assert found.keys() == alone.keys()
        for name, tensor in alone.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6, msg=name)


def test_the_head_learns_faster_than_clip():
    model = clip4clip_model().train()
    groups = two_rate_groups(model, 1e-2, 1e-3)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(groups)
    model(**clip4clip_batch(), return_loss=True).loss.backward()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for group in optimizer.param_groups:
        group["weight_decay"] = 0
    optimizer.step()
    for name, parameter in model.named_parameters():
        moved = (before[name] - parameter).abs().mean().item()
        assert moved == pytest.approx(1e-5 if name.startswith("clip.") else 1e-2, rel=0.05), name
