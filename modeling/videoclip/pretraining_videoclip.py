"""How VideoCLIP is trained: pairs that overlap without the same borders, and batches of similar videos.

`Trainer` runs it: an item of `VideoCLIPBatches` is a whole batch of videos, `collate_batches` makes the model's inputs
of it, and `RebuildClusters` looks for similar videos before each epoch.
"""

import importlib
import importlib.util
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import distributed as dist
from torch.utils.data import Dataset
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR


# N videos, T seconds, F width of features, D width of the encoders, P pairs of a video

_CLUSTERS = "videoclip_clusters.safetensors"  # in a checkpoint's folder
_ROWS = 1024  # videos whose distances to all others are there at once


# ---- pairs


@dataclass(frozen=True)
class Pair:
    """A part of a video and a part of what is said in it.

    Attributes:
        start, end: seconds; `end` is not in it.
        first, last: numbers of the captions, both in it.
        centre: the second that the video part was grown around.
    """

    start: int
    end: int
    first: int
    last: int
    centre: int


@dataclass(frozen=True)
class PairSampling:
    """
    Draws pairs of a captioned video ("Overlapped video-text clips", section 3.3 of the paper).

    Args:
        overlapped: a random caption grows to a text by neighbouring captions; a random second of it grows to a video
            clip of another random length, whatever the text's borders are. `False`, the baseline: the video clip is
            what the text's captions span, cut at the longest.
        text_length: tokens of a text, fewest and most; it ends with the caption that passes the number drawn, and the
            collator cuts it.
        video_length: seconds of a clip, fewest and most; less only where the whole video is shorter.

    Raises:
        ValueError: lengths that are no fewest and most.
    """

    overlapped: bool = True
    text_length: tuple[int, int] = (8, 64)
    video_length: tuple[int, int] = (3, 32)

    def __post_init__(self):
        for name in ("text_length", "video_length"):
            fewest, most = getattr(self, name)
            if not 1 <= fewest <= most:
                raise ValueError(f"{name}: {getattr(self, name)}, expected fewest and most, from 1")

    def draw(
        self, spans: Sequence[tuple[float, float]], tokens: Sequence[int], length: int, random: np.random.Generator
    ) -> Pair:
        """A pair of a video of `length` seconds, whose captions have these (start, end) seconds and numbers of tokens.

        Raises:
            ValueError: no captions, or no seconds.
        """
        if not len(spans) or length < 1:
            raise ValueError(f"captions: {len(spans)} captions and {length} seconds, expected at least one of each")
        first = last = int(random.integers(len(spans)))
        wanted, count = int(random.integers(self.text_length[0], self.text_length[1] + 1)), tokens[first]
        while count < wanted and (first > 0 or last < len(spans) - 1):
            before = random.random() < 0.5 if first > 0 and last < len(spans) - 1 else first > 0
            first, last = (first - 1, last) if before else (first, last + 1)
            count += tokens[first if before else last]
        begin = min(max(int(np.floor(spans[first][0])), 0), length - 1)
        end = min(max(int(np.ceil(spans[last][1])), begin + 1), length)
        centre = int(random.integers(begin, end))
        if not self.overlapped:
            return Pair(begin, min(end, begin + self.video_length[1]), first, last, begin)
        wanted = min(int(random.integers(self.video_length[0], self.video_length[1] + 1)), length)
        start, stop = centre, centre + 1
        while stop - start < wanted:
            before = random.random() < 0.5 if start > 0 and stop < length else start > 0
            start, stop = (start - 1, stop) if before else (start, stop + 1)
        return Pair(start, stop, first, last, centre)


class VideoCLIPPairs(Dataset):
    """
    Pairs of captioned videos: item i is a list of `pairs_per_video` pairs of video i, each a dictionary with
    `video_features` (T, F) and `input_ids`. The same seed, epoch and video give the same pairs.

    Args:
        videos: a sequence of dictionaries: `features` (T, F), one row a second, a tensor or an array (also a memory
            map); `captions`, a list of dictionaries with `start`, `end` (seconds) and `text`, in their order.
        tokenizer: BERT's.
        pairs_per_video: 16 in the paper; they are each other's hard negatives.
        max_text_length: tokens at most, with [CLS] and [SEP].
        sampling: how pairs are drawn.
        seed: any number from 0.

    Raises:
        ValueError: no videos; a video without captions, without features, or with other features than [T, F].
    """

    def __init__(
        self,
        videos: Sequence[Mapping[str, Any]],
        tokenizer,
        pairs_per_video: int = 16,
        max_text_length: int = 63,
        sampling: PairSampling | None = None,
        seed: int = 0,
    ):
        if not len(videos):
            raise ValueError("videos: got none, expected at least one")
        if pairs_per_video < 1 or max_text_length < 3:
            raise ValueError(
                f"pairs_per_video, max_text_length: {pairs_per_video}, {max_text_length}, expected at least 1 and 3"
            )
        self.videos, self.pairs_per_video, self.seed, self.epoch = videos, pairs_per_video, seed, 0
        self.sampling, self.max_text_length = sampling or PairSampling(), max_text_length
        self.ends = tokenizer.cls_token_id, tokenizer.sep_token_id
        self.spans: list[list[tuple[float, float]]] = []
        self.tokens: list[list[list[int]]] = []
        for number, video in enumerate(videos):
            captions = video["captions"]
            if not captions:
                raise ValueError(f"videos[{number}]: no captions, expected at least one")
            for caption in captions:
                if not 0 <= caption["start"] <= caption["end"]:
                    raise ValueError(
                        f"videos[{number}]: a caption from {caption['start']} to {caption['end']} s, expected "
                        "0 <= start <= end"
                    )
            self.spans.append([(float(one["start"]), float(one["end"])) for one in captions])
            texts = [one["text"] for one in captions]
            self.tokens.append(tokenizer(texts, add_special_tokens=False)["input_ids"])

    def set_epoch(self, epoch: int) -> None:
        """Other pairs in each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> list[dict[str, torch.Tensor]]:
        features = torch.as_tensor(self.videos[index]["features"])
        if features.dim() != 2 or not len(features):
            raise ValueError(f"videos[{index}]: features of {list(features.shape)}, expected [seconds, width]")
        tokens, random = self.tokens[index], np.random.default_rng([self.seed, self.epoch, index])
        found = []
        for _ in range(self.pairs_per_video):
            pair = self.sampling.draw(self.spans[index], list(map(len, tokens)), len(features), random)
            words = [word for caption in tokens[pair.first : pair.last + 1] for word in caption]
            ids = [self.ends[0], *words[: self.max_text_length - 2], self.ends[1]]
            found.append({"video_features": features[pair.start : pair.end].float(), "input_ids": torch.tensor(ids)})
        return found


def collate_pairs(pairs: Sequence[Mapping[str, torch.Tensor]], pad_token_id: int = 0) -> dict[str, Any]:
    """Pairs -> a `VideoCLIPModel`'s inputs, filled up to the longest, with `return_loss=True`."""
    pad = torch.nn.utils.rnn.pad_sequence
    ids, features = [pair["input_ids"] for pair in pairs], [pair["video_features"] for pair in pairs]
    masks = [[torch.ones(len(one), dtype=torch.long) for one in some] for some in (ids, features)]
    return {
        "input_ids": pad(ids, batch_first=True, padding_value=pad_token_id),
        "attention_mask": pad(masks[0], batch_first=True),
        "video_features": pad(features, batch_first=True),
        "video_mask": pad(masks[1], batch_first=True),
        "return_loss": True,
    }


def collate_batches(batches: Sequence[Sequence[Mapping[str, torch.Tensor]]]) -> dict[str, Any]:
    """Items of `VideoCLIPBatches` -> a model's inputs, for `Trainer(data_collator=...)`."""
    return collate_pairs([pair for batch in batches for pair in batch])


# ---- batches of similar videos


def nearest_videos(embeddings: torch.Tensor, count: int) -> torch.Tensor:
    """(N, D) -> (N, count) numbers of the nearest videos by Euclidean distance, the video itself first; exact. With
    FAISS installed its flat index is used, else tiles of distances.

    The official code divides the space in 512 cells and looks into some of them; this looks into all.
    """
    if embeddings.dim() != 2 or not len(embeddings):
        raise ValueError(f"embeddings: got {list(embeddings.shape)}, expected [videos, width]")
    if not embeddings.isfinite().all():
        raise ValueError("embeddings: NaN or infinite numbers, expected finite ones")
    count, embeddings = min(count, len(embeddings)), embeddings.float()
    if count < 1:
        raise ValueError(f"count: {count}, expected a number > 0")
    found = _by_faiss(embeddings, count + 1) if importlib.util.find_spec("faiss") else None
    if found is None:
        found = torch.cat([_nearest(rows, embeddings, count + 1) for rows in embeddings.split(_ROWS)])
    # Two equal videos may stand before each other: the video itself is put first.
    own = torch.arange(len(found))[:, None]
    others = (found != own).int().argsort(dim=1, descending=True, stable=True)
    return torch.cat([own, found.gather(1, others)], 1)[:, :count]


def _nearest(rows: torch.Tensor, embeddings: torch.Tensor, count: int) -> torch.Tensor:
    distances = torch.cdist(rows, embeddings, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.topk(min(count, len(embeddings)), dim=1, largest=False).indices.cpu()


def _by_faiss(embeddings: torch.Tensor, count: int) -> torch.Tensor:
    # Not an import statement: transformers asks for every package that travelling code imports, when it loads it.
    index = importlib.import_module("faiss").IndexFlatL2(embeddings.shape[1])
    vectors = np.ascontiguousarray(embeddings.cpu().numpy())
    index.add(vectors)
    return torch.from_numpy(index.search(vectors, min(count, len(vectors)))[1]).long()


class VideoCLIPBatches(Dataset):
    """
    Batches of videos: item i is the list of all pairs of the i-th batch of the epoch. For `Trainer` with
    `per_device_train_batch_size=1` and `collate_batches`.

    Without clusters an epoch is a random division of the videos. With clusters (`set_neighbours`), each batch is drawn
    from the `neighbours` nearest videos of a random one, itself among them; which may be left out, as officially.

    Args:
        pairs: the videos.
        videos_per_batch: 32 in the paper.
        neighbours: 64 in the paper, of which `videos_per_batch` are drawn.
        seed: any number from 0.
    """

    def __init__(self, pairs: VideoCLIPPairs, videos_per_batch: int = 32, neighbours: int = 64, seed: int = 0):
        if not 1 <= videos_per_batch <= neighbours:
            raise ValueError(
                f"videos_per_batch, neighbours: {videos_per_batch}, {neighbours}, expected 1 <= videos_per_batch <= "
                "neighbours"
            )
        self.pairs, self.videos_per_batch, self.neighbours, self.seed = pairs, videos_per_batch, neighbours, seed
        self._nearest: torch.Tensor | None = None
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Other batches and other pairs in each epoch."""
        self.pairs.set_epoch(epoch)
        count, size = len(self.pairs), self.videos_per_batch
        random = np.random.default_rng([self.seed, epoch, 1])
        order = random.permutation(count)
        if self._nearest is None:
            self._videos = [order[start : start + size].tolist() for start in range(0, count, size)]
            return
        self._videos = []
        for centre in order[: -(-count // size)].tolist():
            near = self._nearest[centre].numpy()
            self._videos.append(random.choice(near, min(size, len(near)), replace=False).tolist())

    def set_neighbours(self, nearest: torch.Tensor | None) -> None:
        """(N, neighbours) of `nearest_videos`; None: random batches again. From the next `set_epoch` on."""
        if nearest is not None and (nearest.dim() != 2 or len(nearest) != len(self.pairs)):
            raise ValueError(
                f"nearest: got {list(nearest.shape)}, expected a row for each of {len(self.pairs)} videos"
            )
        self._nearest = nearest

    def videos_of(self, batch: int) -> list[int]:
        """Numbers of the batch's videos."""
        return self._videos[batch]

    def __len__(self) -> int:
        return -(-len(self.pairs) // self.videos_per_batch)

    def __getitem__(self, index: int) -> list[dict[str, torch.Tensor]]:
        return [pair for video in self._videos[index] for pair in self.pairs[video]]


@torch.no_grad()
def embed_videos(model, pairs: VideoCLIPPairs, videos_at_once: int = 8) -> torch.Tensor:
    """(N, D), each video the mean over its pairs of (video + text) / 2 (section 3.4). On several processes each embeds
    a share, and all get all."""
    size, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    embeddings = torch.zeros(len(pairs), model.config.hidden_size, device=model.device)
    was_training, own = model.training, list(range(rank, len(pairs), size))
    model.eval()
    try:
        for first in range(0, len(own), videos_at_once):
            some = own[first : first + videos_at_once]
            inputs = collate_pairs([pair for video in some for pair in pairs[video]])
            inputs = {name: value.to(model.device) for name, value in inputs.items() if torch.is_tensor(value)}
            outputs = model(**inputs)
            means = (outputs.video_embeds + outputs.text_embeds).float() / 2
            embeddings[some] = means.unflatten(0, (len(some), -1)).mean(1)
    finally:
        model.train(was_training)
    if size > 1:
        dist.all_reduce(embeddings)
    return embeddings.cpu()


class RebuildClusters(TrainerCallback):
    """
    Before each epoch: other pairs, and from `first_epoch` on batches of videos that the model finds similar now.

    Checkpoints hold who is near whom, so that a training that is resumed within an epoch sees the same batches.

    Args:
        batches: the training's data set.
        first_epoch: before it, batches are random; 1 in the official code.
        videos_at_once: that are embedded together.
    """

    def __init__(self, batches: VideoCLIPBatches, first_epoch: int = 1, videos_at_once: int = 8):
        self.batches, self.first_epoch, self.videos_at_once = batches, first_epoch, videos_at_once
        self._nearest: torch.Tensor | None = None
        self._resumed_from: Path | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        self._resumed_from = None
        if state.global_step:
            self._resumed_from = Path(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")

    def on_epoch_begin(self, args, state, control, model=None, **kwargs):
        epoch = int((state.epoch or 0) + 1e-6)
        if epoch >= self.first_epoch:
            self._nearest = self._read(state.epoch - epoch > 1e-6)
            if self._nearest is None:
                self.batches.pairs.set_epoch(epoch)
                model = getattr(model, "module", model)
                embeddings = embed_videos(model, self.batches.pairs, self.videos_at_once)
                self._nearest = nearest_videos(embeddings, self.batches.neighbours)
            self.batches.set_neighbours(self._nearest)
        self.batches.set_epoch(epoch)
        self._resumed_from = None

    def _read(self, within_epoch: bool) -> torch.Tensor | None:
        """What the checkpoint that is resumed from has; None at the start of an epoch."""
        if self._resumed_from is None or not within_epoch:
            return None
        file = self._resumed_from / _CLUSTERS
        if not file.is_file():
            warnings.warn(f"{file} is missing: batches of this epoch are made with the weights of now", stacklevel=2)
            return None
        return load_file(file)["nearest"]

    def on_save(self, args, state, control, **kwargs):
        folder = Path(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
        if state.is_world_process_zero and self._nearest is not None and folder.is_dir():
            save_file({"nearest": self._nearest.contiguous()}, folder / _CLUSTERS)


__all__ = [
    "Pair",
    "PairSampling",
    "RebuildClusters",
    "VideoCLIPBatches",
    "VideoCLIPPairs",
    "collate_batches",
    "collate_pairs",
    "embed_videos",
    "nearest_videos",
]
