"""VideoCLIP: what is seen and what is not, means, frames and features, freezing, processes."""

import math

import pytest
import torch
from paths import PROGRAMS
from processes import run_on_ranks
from safetensors.torch import load_file
from transformers import BertConfig, BertModel
from videoclip_runs import (
    RATE,
    SIZE,
    TEXT,
    coarse_frames,
    videoclip_config,
    videoclip_features,
    videoclip_frames,
    videoclip_model,
)

from hf_clip_variants import VideoCLIPModel
from hf_clip_variants.modeling.videoclip.s3d_videoclip import same_max_pool


def outputs(model, batch, **changes):
    with torch.no_grad():
        return model(**batch | changes)


def test_what_is_filled_up_changes_nothing():
    model, batch = videoclip_model(use_s3d=False), videoclip_features()
    found, there = outputs(model, batch), batch["video_mask"].bool()
    other = torch.where(there[..., None], batch["video_features"], 100.0)
    assert torch.equal(outputs(model, batch, video_features=other).video_embeds, found.video_embeds)
    ids = torch.where(batch["attention_mask"].bool(), batch["input_ids"], 17)
    assert torch.equal(outputs(model, batch, input_ids=ids).text_embeds, found.text_embeds)
    # A video and a text alone; and filled up as officially, to the longest that there is.
    alone = {"video_features": batch["video_features"][2:3, :1], "video_mask": None}
    alone |= {"input_ids": batch["input_ids"][1:2, :5], "attention_mask": None}
    shorter = outputs(model, alone)
    torch.testing.assert_close(shorter.video_embeds, found.video_embeds[2:3], rtol=0, atol=1e-5)
    torch.testing.assert_close(shorter.text_embeds, found.text_embeds[1:2], rtol=0, atol=1e-5)
    filled = torch.nn.functional.pad(batch["video_features"], (0, 0, 0, 8 - 3))
    mask = torch.nn.functional.pad(batch["video_mask"], (0, 8 - 3))
    longer = outputs(model, batch, video_features=filled, video_mask=mask)
    torch.testing.assert_close(longer.video_embeds, found.video_embeds, rtol=0, atol=1e-5)
    left = {name: batch[name][1:2, :5] for name in ("input_ids", "attention_mask")}
    left = {name: torch.nn.functional.pad(value, (2, 0)) for name, value in left.items()}
    padded = model.get_text_features(**left).pooler_output
    torch.testing.assert_close(padded, found.text_embeds[1:2], rtol=0, atol=1e-5)


def test_means_have_the_end_and_not_the_start():
    model, batch = videoclip_model(use_s3d=False), videoclip_features()
    found = outputs(model, batch)
    hidden = found.video_model_output.last_hidden_state
    expected = torch.stack([hidden[2, 1], hidden[2, -1]]).mean(0)  # one second and [SEP]
    torch.testing.assert_close(found.video_embeds[2], expected)
    torch.testing.assert_close(found.text_embeds[1], found.text_model_output.last_hidden_state[1, 1:5].mean(0))
    torch.testing.assert_close(found.logits_per_text, found.text_embeds @ found.video_embeds.T)


def test_seconds_do_not_look_at_the_start_where_they_are_labelled():
    model, features = videoclip_model(use_s3d=False), videoclip_features()["video_features"]
    attended, not_attended = (
        model.get_video_features(video_features=features, attend_to_start=attends).last_hidden_state
        for attends in (True, False)
    )
    assert (attended - not_attended).abs().max() > 1e-4
    with torch.no_grad():
        model.config.cls_token_id = 9  # another start
        again = model.get_video_features(video_features=features, attend_to_start=False).last_hidden_state
    assert torch.equal(again, not_attended)


def test_features_have_unit_length_unless_they_are_taken_as_they_are():
    batch = videoclip_features()
    louder = {"video_features": 7 * batch["video_features"]}
    for normalize in (True, False):
        model = videoclip_model(use_s3d=False, normalize_features=normalize)
        same = torch.allclose(
            outputs(model, batch).video_embeds, outputs(model, batch, **louder).video_embeds, atol=1e-5
        )
        assert same == normalize


def test_frames_are_their_features(tmp_path):
    model, batch = videoclip_model(), videoclip_frames()
    found = outputs(model, batch)
    with torch.no_grad():
        features = model.get_second_features(batch["pixel_values_videos"], batch["video_mask"])
    mask = batch["video_mask"][:, ::RATE]
    assert not features[~mask.bool()].any()
    texts = {name: batch[name] for name in ("input_ids", "attention_mask")}
    same = outputs(model, texts | {"video_features": features, "video_mask": mask})
    assert torch.equal(found.logits_per_text, same.logits_per_text)
    by_second = batch["pixel_values_videos"].unflatten(1, (-1, RATE))
    again = outputs(model, batch, pixel_values_videos=by_second, video_mask=mask)
    assert torch.equal(found.logits_per_text, again.logits_per_text)
    with torch.no_grad():
        logits = model.video_text_logits(batch["pixel_values_videos"], found.text_embeds, batch["video_mask"])
    torch.testing.assert_close(logits, found.logits_per_video)
    model.save_pretrained(tmp_path)
    loaded = outputs(VideoCLIPModel.from_pretrained(tmp_path), batch)
    torch.testing.assert_close(loaded.logits_per_text, found.logits_per_text, rtol=1e-4, atol=1e-4)


def test_s3d_trains_only_where_it_is_asked_to(tmp_path):
    for trains in (False, True):
        model = videoclip_model(train_s3d=trains)
        model.save_pretrained(tmp_path)
        model = VideoCLIPModel.from_pretrained(tmp_path).train()
        before = model.s3d.stem.normalization.running_mean.clone()
        model(**videoclip_frames(), return_loss=True).loss.backward()
        assert (model.s3d.stem.convolution.weight.grad is not None) == trains == model.s3d.training
        assert torch.equal(model.s3d.stem.normalization.running_mean, before) != trains


def test_equal_vectors_have_the_loss_of_chance():
    model = videoclip_model(use_s3d=False)
    batch = {name: value[:1].expand(4, *value.shape[1:]) for name, value in videoclip_features().items()}
    assert float(outputs(model, batch, return_loss=True).loss) == pytest.approx(2 * math.log(4), abs=1e-4)


def test_pools_round_up():
    for size in range(2, 9):
        for kernel, stride in ((3, 2), (2, 2), (3, 1)):
            pooled = same_max_pool(torch.rand(1, 1, size, size, size), (kernel,) * 3, (stride,) * 3)
            assert pooled.shape[2:] == (math.ceil(size / stride),) * 3


def test_both_encoders_start_from_a_bert():
    bert = BertModel(BertConfig(**TEXT), add_pooling_layer=True)
    fields = {"use_s3d": False, "max_video_length": 8, "max_text_length": 12, "window_stride": 4}
    model = VideoCLIPModel.from_bert(bert, video_layers=2, cls_token_id=2, sep_token_id=3, **fields)
    assert (len(model.text_model.encoder.layer), len(model.video_model.encoder.layer)) == (3, 2)
    for part in (model.text_model, model.video_model):
        for name, tensor in part.state_dict().items():
            assert torch.equal(tensor, bert.state_dict()[name]), name
    assert not torch.is_tensor(model.text_model.pooler)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"video_features": torch.zeros(4, 3)}, r"video_features: got \[4, 3\] torch.float32, expected floats"),
        ({"video_features": torch.zeros(4, 3, 11)}, r"expected floats \[videos, seconds, 10\]"),
        ({"video_features": torch.zeros(4, 3, 10, dtype=torch.int64)}, r"got \[4, 3, 10\] torch.int64"),
        ({"video_features": torch.zeros(4, 0, 10), "video_mask": None}, "at least one video with seconds"),
        ({"video_features": torch.zeros(4, 9, 10), "video_mask": None}, "9 seconds, the video encoder takes 8; want"),
        ({"video_features": None}, "pixel_values_videos, video_features: got neither"),
        ({"pixel_values_videos": torch.zeros(4, 4, 3, 24, 24)}, "got both, expected one of them"),
        (
            {"video_mask": torch.ones(4, 2)},
            r"video_mask: got shape \[4, 2\], expected .* \[4, 3\] \(videos, seconds\)",
        ),
        ({"video_mask": torch.zeros(4, 3)}, "video_mask: video 0 has no seconds"),
        ({"video_mask": torch.ones(4, 3) + 0j}, "video_mask: got torch.complex64, expected 1 and 0"),
        ({"video_mask": torch.tensor([[1, 0, 1]] * 4)}, "a second that is not there comes before one that is"),
        ({"input_ids": torch.ones(3, 7, dtype=torch.long), "attention_mask": None}, "3 texts for 4 videos"),
        (
            {"input_ids": torch.ones(4, 13, dtype=torch.long), "attention_mask": None},
            "13 tokens, the text encoder takes",
        ),
        ({"input_ids": torch.ones(4, 1, dtype=torch.long), "attention_mask": None}, "1 token, expected .CLS. and"),
        ({"attention_mask": torch.ones(4, 3)}, r"attention_mask: got \[4, 3\], expected \[4, 7\]"),
        ({"attention_mask": torch.zeros(4, 7)}, "attention_mask: a text without tokens"),
        ({"video_features": torch.full((4, 3, 10), torch.nan)}, r"because video_features\[0\] has some"),
    ],
)
def test_wrong_inputs_are_said(changes, message):
    with pytest.raises(ValueError, match=message):
        videoclip_model(use_s3d=False)(**videoclip_features() | changes, return_loss=True)


@pytest.mark.parametrize(
    "pixels, message",
    [
        (torch.zeros(2, 4, 3, 24), "got \\[2, 4, 3, 24\\], expected \\[videos, frames, 3, H, W\\], 4 frames"),
        (torch.zeros(2, 4, 3, 24, 24, dtype=torch.uint8), "torch.uint8, expected floats in 0..1"),
        (torch.zeros(2, 5, 3, 24, 24), "5 frames, expected whole seconds of 4 frames; want the sampling rule"),
        (torch.zeros(2, 1, 5, 3, 24, 24), "5 frames a second, expected 4"),
        (torch.zeros(2, 4, 3, 23, 24), "frames of \\[23, 24\\], expected even sides"),
        (torch.zeros(0, 4, 3, 24, 24), "at least one video with frames"),
        ([[1]], "pixel_values_videos: got list"),
    ],
)
def test_wrong_frames_are_said(pixels, message):
    with pytest.raises(ValueError, match=message):
        videoclip_model().get_second_features(pixels)
    with pytest.raises(ValueError, match="this model has no S3D-G"):
        videoclip_model(use_s3d=False).get_second_features(coarse_frames(1, 0))


def test_a_batch_of_videos_without_texts_and_of_any_size():
    model = videoclip_model()
    for side in (SIZE, 16, 40):
        frames = torch.nn.functional.interpolate(coarse_frames(3, 0).flatten(0, 1), (side, side + 2))
        with torch.no_grad():
            found = model.get_video_features(frames.unflatten(0, (3, RATE)))
        assert found.pooler_output.shape == (3, 24) and found.last_hidden_state.shape == (3, 1, 24)


def test_two_processes_are_one(tmp_path):
    run_on_ranks(PROGRAMS / "videoclip_ranks.py", tmp_path, world_size=2, folder=tmp_path)
    run_on_ranks(PROGRAMS / "videoclip_ranks.py", tmp_path, world_size=1, folder=tmp_path)
    alone = load_file(tmp_path / "1of1.safetensors")
    assert {"loss", "embeddings", "frame_accuracy", "mean_iou"} <= alone.keys()
    for rank in range(2):
        found = load_file(tmp_path / f"{rank + 1}of2.safetensors")
        assert found.keys() == alone.keys()
        for name, tensor in alone.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6, msg=name)


def test_configuration_of_the_paper():
    config = videoclip_config(video_config=None)
    assert config.video_config.num_hidden_layers == 1 and config.video_config.hidden_size == 24
