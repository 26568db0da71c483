"""VideoAnomalyClip learns from labels of videos which frames are abnormal; with Trainer, too, also in bfloat16."""

import pytest
import torch
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments
from video_anomaly_clip_runs import NORMAL, ready, video_anomaly_config

from hf_clip_variants import VideoAnomalyClipModel
from hf_clip_variants.metrics.video_anomaly import FrameAnomalyMetrics


SEGMENTS, LENGTH, SHIFT = 8, 2, 3.0


def shifted_videos(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features (V, 16, 24), class of each video, class of each frame. Of abnormal videos, two or three of eight
    segments are shifted in the direction of their class, which is not that of its text."""
    ways = F.normalize(torch.randn(4, 24, generator=torch.Generator().manual_seed(99)), dim=-1)
    generator = torch.Generator().manual_seed(seed)
    features = 4 * ways[NORMAL] + torch.randn(count, SEGMENTS, LENGTH, 24, generator=generator)
    labels = torch.tensor([0, NORMAL, 2, NORMAL]).repeat(count)[:count]
    frames = torch.full((count, SEGMENTS, LENGTH), NORMAL)
    for row in (labels != NORMAL).nonzero()[:, 0].tolist():
        chosen = torch.randperm(SEGMENTS, generator=generator)[: 2 + row % 2]
        features[row, chosen] += 2 * SHIFT * ways[labels[row]]
        frames[row, chosen] = labels[row]
    return features.flatten(1, 2), labels, frames.flatten(1)


def new_model(features: torch.Tensor, labels: torch.Tensor, **options) -> VideoAnomalyClipModel:
    torch.manual_seed(0)
    grid = {"num_segments": SEGMENTS, "segment_length": LENGTH, "selection_dropout_topk": 0.3, "freeze_clip": True}
    model = VideoAnomalyClipModel(video_anomaly_config(**grid, selection_dropout_bottomk=0.3, **options))
    ready(model)
    return model.compute_normal_centroid([{"video_features": features, "labels": labels}])


def measured(model: VideoAnomalyClipModel, features: torch.Tensor, frames: torch.Tensor) -> dict:
    metrics = FrameAnomalyMetrics(4, NORMAL)
    with torch.no_grad():
        output = model.eval()(video_features=features)
    metrics.update(output.scores.flatten(), frames.flatten(), output.class_probs.flatten(0, 1))
    return metrics.compute()


def test_abnormal_frames_are_found_with_labels_of_videos_alone():
    features, labels, _ = shifted_videos(32, seed=1)
    unseen, video_labels, frames = shifted_videos(32, seed=2)
    model = new_model(features, labels)
    # CLIP alone: how similar a frame is to the anomalies' texts, and to the normal one.
    with torch.no_grad():
        similar = F.normalize(unseen, dim=-1) @ F.normalize(model.get_class_features(), dim=-1).T
    clip = FrameAnomalyMetrics(4, NORMAL)
    probs = (20 * similar).softmax(-1).flatten(0, 1)
    clip.update(1 - probs[:, NORMAL], frames.flatten(), probs)
    before, baseline = measured(model, unseen, frames), clip.compute()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    model.train()
    for _ in range(120):
        model(video_features=features, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = measured(model, unseen, frames)
    # What who knows each video's label, and no moment, would reach.
    whole = FrameAnomalyMetrics(4, NORMAL)
    whole.update((video_labels != NORMAL).float().repeat_interleave(frames.shape[1]), frames.flatten())
    assert after["auc"] > 0.9 > whole.compute()["auc"], (after, whole.compute())
    assert after["auc"] > max(baseline["auc"], before["auc"]) + 0.1, (after, baseline, before)
    assert after["mauc"] > baseline["mauc"] + 0.05 and after["ap"] > baseline["ap"] + 0.2, (after, baseline)


@pytest.mark.parametrize("bf16", [False, True])
def test_trainer_trains_it(tmp_path, bf16):
    features, labels, _ = shifted_videos(16, seed=1)
    model = new_model(features, labels)
    rows = [{"video_features": frames, "labels": label} for frames, label in zip(features, labels, strict=True)]
    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=8,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        learning_rate=3e-3,
        bf16=bf16,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=8,
    )
    trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 8 and losses[-1] < losses[0]
    assert torch.isfinite(torch.tensor(trainer.state.log_history[-2].get("eval_loss", losses[-1])))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.selector_norm.num_batches_tracked == 16
