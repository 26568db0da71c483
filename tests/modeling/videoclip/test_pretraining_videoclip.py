"""Pairs that overlap, batches of similar videos, and what training on them brings."""

import importlib
import sys
import types

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainingArguments
from videoclip_runs import TOY_CLASSES, toy_pairs, toy_videos, videoclip_model, videoclip_tokenizer

from hf_clip_variants.modeling.videoclip.pretraining_videoclip import (
    PairSampling,
    RebuildClusters,
    VideoCLIPBatches,
    VideoCLIPPairs,
    collate_batches,
    collate_pairs,
    embed_videos,
    nearest_videos,
)


# ---- pairs


def drawn(sampling, count=400, seed=0):
    """Pairs of random videos: of 1 to 60 seconds, with captions that may end behind the video."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        length, number = int(random.integers(1, 61)), int(random.integers(1, 12))
        starts = np.sort(random.uniform(0, length + 2, number))
        spans = [(start, start + float(random.uniform(0, 5))) for start in starts]
        tokens = random.integers(1, 20, number).tolist()
        yield length, spans, tokens, sampling.draw(spans, tokens, length, random)


def test_overlapped_clips_are_within_the_video_and_have_the_second_that_they_grew_from():
    sampling, clips, longer = PairSampling(), [], 0
    for length, spans, tokens, pair in drawn(sampling):
        assert 0 <= pair.start <= pair.centre < pair.end <= length
        assert min(3, length) <= pair.end - pair.start <= 32
        said = spans[pair.first][0], spans[pair.last][1]
        inside = np.floor(said[0]) <= pair.centre <= np.ceil(said[1])
        assert inside or pair.centre == length - 1  # captions behind the video
        # Without its last caption on either side, the text has fewer tokens than were asked for.
        count = sum(tokens[pair.first : pair.last + 1])
        if pair.first < pair.last:
            assert count - max(tokens[pair.first], tokens[pair.last]) < 64
        if count < 8:
            assert (pair.first, pair.last) == (0, len(spans) - 1)
        clips.append(pair.end - pair.start)
        longer += pair.start < said[0] - 1 or pair.end > said[1] + 1
    assert len(set(clips)) > 20 and longer > 100  # all lengths, and other borders than the text's


def test_exact_clips_are_what_the_captions_span():
    for length, spans, _, pair in drawn(PairSampling(overlapped=False)):
        start = min(int(np.floor(spans[pair.first][0])), length - 1)
        end = max(min(int(np.ceil(spans[pair.last][1])), length), start + 1)
        assert (pair.start, pair.end) == (start, min(end, start + 32))


def test_pairs_are_those_of_the_seed_and_the_epoch():
    pairs, again = toy_pairs(toy_videos(8)), toy_pairs(toy_videos(8))
    first = pairs[3]
    assert len(first) == 2 and all(
        torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(first, again[3], strict=True)
    )
    pairs.set_epoch(1)
    assert any(
        a["video_features"].shape != b["video_features"].shape for a, b in zip(first, pairs[3], strict=True)
    ) or any(a["input_ids"].shape != b["input_ids"].shape for a, b in zip(first, pairs[3], strict=True))
    inputs = collate_pairs(first + again[0])
    ends = inputs["attention_mask"].sum(1) - 1
    assert (inputs["input_ids"][:, 0] == 2).all() and (inputs["input_ids"].gather(1, ends[:, None]) == 3).all()
    assert inputs["video_features"].shape[:2] == inputs["video_mask"].shape and inputs["return_loss"] is True


@pytest.mark.parametrize(
    "videos, message",
    [
        ([], "videos: got none"),
        ([{"features": torch.zeros(3, 10), "captions": []}], r"videos\[0\]: no captions"),
        (
            [{"features": torch.zeros(3, 10), "captions": [{"start": 4, "end": 2, "text": "a"}]}],
            r"videos\[0\]: a caption from 4 to 2 s, expected 0 <= start <= end",
        ),
        (
            [{"features": torch.zeros(0, 10), "captions": [{"start": 0, "end": 2, "text": "a"}]}],
            r"videos\[0\]: features of \[0, 10\], expected \[seconds, width\]",
        ),
    ],
)
def test_wrong_videos_are_said(videos, message):
    with pytest.raises(ValueError, match=message):
        VideoCLIPPairs(videos, videoclip_tokenizer())[0]
    for options in ({"text_length": (3, 2)}, {"video_length": (0, 2)}):
        with pytest.raises(ValueError, match="expected fewest and most, from 1"):
            PairSampling(**options)
    with pytest.raises(ValueError, match="0 captions and 4 seconds"):
        PairSampling().draw([], [], 4, np.random.default_rng(0))


# ---- clusters


def clusters(count=8, each=12, noise=0.05) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(count, 16, generator=generator)
    return (centres[:, None] + noise * torch.randn(count, each, 16, generator=generator)).flatten(0, 1)


def test_nearest_videos_are_exact_and_begin_with_the_video_itself(monkeypatch):
    embeddings = torch.cat([clusters(), clusters()[:5]])  # five are there twice
    found = nearest_videos(embeddings, 10)
    distances = torch.cdist(embeddings.double(), embeddings.double())
    expected = distances.sort(dim=1).values[:, :10]
    assert torch.equal(found[:, 0], torch.arange(len(embeddings)))
    torch.testing.assert_close(distances.gather(1, found).sort(dim=1).values, expected, rtol=0, atol=1e-4)
    assert all(len(set(row)) == 10 for row in found.tolist())
    assert nearest_videos(embeddings[:3], 64).shape == (3, 3)

    class IndexFlatL2:
        """What FAISS's does."""

        def __init__(self, width):
            self.width, self.vectors = width, np.zeros((0, width), np.float32)

        def add(self, vectors):
            assert vectors.dtype == np.float32 and vectors.shape[1] == self.width
            self.vectors = np.concatenate([self.vectors, vectors])

        def search(self, vectors, count):
            squares = ((vectors[:, None] - self.vectors) ** 2).sum(-1)
            places = squares.argsort(axis=1)[:, :count]
            return np.take_along_axis(squares, places, 1), places

    faiss = types.ModuleType("faiss", "")
    faiss.IndexFlatL2, faiss.__spec__ = IndexFlatL2, importlib.machinery.ModuleSpec("faiss", None)
    monkeypatch.setitem(sys.modules, "faiss", faiss)
    by_faiss = nearest_videos(embeddings, 10)
    torch.testing.assert_close(distances.gather(1, by_faiss).sort(dim=1).values, expected, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="embeddings: NaN"):
        nearest_videos(embeddings * torch.nan, 3)


def test_batches_are_of_one_cluster():
    videos = toy_videos(96)
    batches = VideoCLIPBatches(toy_pairs(videos), videos_per_batch=6, neighbours=12)
    assert sorted(video for batch in range(len(batches)) for video in batches.videos_of(batch)) == list(range(96))
    batches.set_neighbours(nearest_videos(clusters(), 12))
    shares, seen = [], set()
    for epoch in range(4):
        batches.set_epoch(epoch)
        for number in range(len(batches)):
            own = batches.videos_of(number)
            assert len(own) == len(set(own)) == 6
            of_cluster = np.bincount([video // 12 for video in own])
            shares.append(of_cluster.max() / 6)
            seen.add(tuple(own))
    assert np.mean(shares) > 0.9 and len(seen) == 4 * len(batches)
    with pytest.raises(ValueError, match="a row for each of 96 videos"):
        batches.set_neighbours(torch.zeros(3, 4, dtype=torch.long))
    with pytest.raises(ValueError, match="expected 1 <= videos_per_batch <= neighbours"):
        VideoCLIPBatches(toy_pairs(videos), 8, 4)


# ---- training


def trained(folder, steps, resume=None, batches=None, lr=3e-3, save=1000, **arguments):
    torch.manual_seed(0)
    model = videoclip_model(use_s3d=False)
    batches = batches or VideoCLIPBatches(toy_pairs(toy_videos(64)), videos_per_batch=16, neighbours=24)
    arguments = TrainingArguments(
        str(folder),
        max_steps=steps,
        per_device_train_batch_size=1,
        learning_rate=lr,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        save_steps=save,
        logging_steps=1,
        lr_scheduler_type="constant",
        **arguments,
    )
    callback = RebuildClusters(batches, first_epoch=1)
    trainer = Trainer(model, arguments, collate_batches, batches, callbacks=[callback])
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.fixture(scope="module")
def toy_model(tmp_path_factory):
    """200 steps on 64 videos."""
    return trained(tmp_path_factory.mktemp("toy"), 200, save_strategy="no").model.eval()


def test_videos_of_others_are_found_by_the_names_of_their_classes(toy_model):
    videos = toy_videos(64, seed=1)  # not those of the training
    features = torch.stack([video["features"][:8] for video in videos])
    texts = videoclip_tokenizer()([f"a {name} moves" for name in TOY_CLASSES], padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = toy_model(texts["input_ids"], video_features=features, attention_mask=texts["attention_mask"])
    kinds = torch.tensor([video["kind"] for video in videos])
    by_text = kinds[logits.logits_per_text.argmax(1)] == torch.arange(len(TOY_CLASSES))
    by_video = logits.logits_per_video.argmax(1) == kinds
    assert by_text.float().mean() > 0.95 and by_video.float().mean() > 0.9  # chance: 1 / 8


def test_batches_of_similar_videos_are_harder(toy_model):
    batches = VideoCLIPBatches(toy_pairs(toy_videos(64, seed=2)), videos_per_batch=16, neighbours=24)
    nearest = nearest_videos(embed_videos(toy_model, batches.pairs), 24)
    kinds = torch.arange(64) % len(TOY_CLASSES)
    assert (kinds[nearest[:, :8]] == kinds[:, None]).float().mean() > 0.9

    def loss():
        batches.set_epoch(3)
        with torch.no_grad():
            return np.mean([float(toy_model(**collate_batches([batches[i]])).loss) for i in range(4)])

    random = loss()
    batches.set_neighbours(nearest)
    assert loss() > random + 0.2


def test_a_training_that_is_resumed_within_an_epoch_sees_the_same_batches(tmp_path):
    def batches():
        return VideoCLIPBatches(toy_pairs(toy_videos(12)), videos_per_batch=3, neighbours=5)

    whole = trained(tmp_path, 10, batches=batches(), save=6)  # epochs of 4 steps
    again = trained(tmp_path, 10, resume=str(tmp_path / "checkpoint-6"), batches=batches(), save=6)
    losses = [[entry["loss"] for entry in trainer.state.log_history if "loss" in entry] for trainer in (whole, again)]
    assert losses[0] == losses[1]
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor), name
    (tmp_path / "checkpoint-6" / "videoclip_clusters.safetensors").unlink()
    with pytest.warns(UserWarning, match="is missing: batches of this epoch are made with the weights of now"):
        trained(tmp_path, 10, resume=str(tmp_path / "checkpoint-6"), batches=batches(), save=100)
