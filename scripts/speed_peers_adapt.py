"""The peers of the rows `adapt_500` and `adapt_5000`: three adapters fitted and tested without this package.

    python scripts/speed_peers_adapt.py careful FOLDER --model MODEL --epochs 5

FOLDER holds train/CLASS/*.jpg, validation/ and test/ alike. Prints JSON: accuracies, passes of the image encoder, and
the CPU seconds of each part. Both peers train with the published optimisers, schedules, batch sizes and augmentations:

- "official": as the official trainers, each method by itself. Every step decodes and augments its images with Pillow
  and runs the image encoder; the text encoder runs over full-length prompts at every step (Tip-Adapter-F: once).
- "careful": as a careful script with transformers. Features of each augmented view once, with `CLIPImageProcessor`'s
  operations on tensors; prompts as long as the longest; class embeddings once where they are constant; a search in
  which what does not change is computed once.

What the official trainers do besides is left out: tests after every epoch, checkpoints, logs.
"""

import argparse
import json
import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F


METHODS = "tip_adapter_f", "clip_adapter", "coop"
CACHE_VIEWS, CONTEXT, ALPHA, BETA, RATIO = 10, 16, 1.17, 1.0, 0.2
SEARCH_SCALE, SEARCH_STEPS = (7, 3), (200, 20)
# Batch size, whether a smaller last batch is left out, augmentation: least area of the crop.
TRAININGS = {"tip_adapter_f": (256, False, 0.5), "clip_adapter": (32, True, 0.08), "coop": (32, True, 0.08)}

READING, ENCODER = "reading images", "image encoder"  # parts whose time is taken
STEPS, SEARCH = "steps of the trainings", "search for alpha and beta"


def learning_rate(method: str, epoch: int, step: int, steps: int, epochs: int) -> float:
    """Of step `step` of `steps` in `epoch` of `epochs`, all from 0: Tip-Adapter's cosine over steps, or Dassl's over
    epochs, which starts after one epoch of warm-up."""
    if method == "tip_adapter_f":
        return 1e-3 / 2 * (1 + math.cos(math.pi * (epoch * steps + step) / (epochs * steps)))
    return 1e-5 if epoch == 0 else 2e-3 / 2 * (1 + math.cos(math.pi * (epoch - 1) / epochs))


def files_and_labels(root: Path, split: str) -> tuple[list[Path], torch.Tensor]:
    folders = sorted(path for path in (root / split).iterdir())
    files = [(path, label) for label, folder in enumerate(folders) for path in sorted(folder.iterdir())]
    return [path for path, _ in files], torch.tensor([label for _, label in files])


class Peer:
    """Both peers: the same three trainings, with encoders at every step or not."""

    def __init__(self, root: Path, model: str, epochs: int, careful: bool, seed: int = 1):
        from transformers import AutoModel, AutoTokenizer

        self.epochs, self.careful = epochs, careful
        self.seconds, self.passes = Counter(), 0  # CPU seconds of each part
        self.clip = AutoModel.from_pretrained(model, dtype=torch.float32).eval().requires_grad_(False)
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.names = sorted(path.name for path in (root / "train").iterdir())
        self.files, self.labels = files_and_labels(root, "train")
        self.validation, self.test = files_and_labels(root, "validation"), files_and_labels(root, "test")
        self.size, self.scale = self.clip.config.vision_config.image_size, self.clip.logit_scale.exp()
        self._views: dict[float, list[torch.Tensor]] = {}
        torch.manual_seed(seed)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        start = time.process_time()
        yield
        self.seconds[part] += time.process_time() - start

    # ---- images

    def pixels(self, files, least_area: float | None = None) -> torch.Tensor:
        """(B, 3, H, W) of files: augmented, or with `least_area` None as in a test."""
        from torchvision.transforms import v2

        if least_area is None:
            spatial = [v2.Resize(self.size, v2.InterpolationMode.BICUBIC, antialias=True), v2.CenterCrop(self.size)]
        else:
            crop = v2.RandomResizedCrop(self.size, (least_area, 1.0), interpolation=v2.InterpolationMode.BICUBIC)
            spatial = [crop, v2.RandomHorizontalFlip()]
        mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
        finish = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
        # The official trainers transform Pillow's images, torchvision's and transformers' fast processors tensors.
        start = [v2.PILToTensor()]
        transform = v2.Compose([*start, *spatial, *finish] if self.careful else [*spatial, *start, *finish])
        return torch.stack([transform(Image.open(file).convert("RGB")) for file in files])

    @torch.inference_mode()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.clip.get_image_features(pixels).pooler_output

    def encode_files(self, files, least_area: float | None = None) -> torch.Tensor:
        found = []
        for start in range(0, len(files), 32):
            with self.timed(READING):
                pixels = self.pixels(files[start : start + 32], least_area)
            with self.timed(ENCODER):
                found.append(self.encode(pixels))
        self.passes += len(files)
        return torch.cat(found).clone()

    def training_features(self, rows: torch.Tensor, epoch: int, least_area: float) -> torch.Tensor:
        """Features of `rows` in the view of `epoch`."""
        if not self.careful:
            return self.encode_files([self.files[row] for row in rows.tolist()], least_area)
        views = self._views.setdefault(least_area, [])
        while len(views) <= epoch:
            views.append(self.encode_files(self.files, least_area))
        return views[epoch][rows]

    @cache  # noqa: B019 (one object a measurement)
    def _plain(self, split: str) -> torch.Tensor:
        return F.normalize(self.encode_files(getattr(self, split)[0]), dim=-1)

    def plain(self, split: str) -> torch.Tensor:
        """Unit-norm embeddings of a split, as in a test; the official trainers share nothing between methods."""
        return self._plain(split) if self.careful else Peer._plain.__wrapped__(self, split)

    # ---- texts

    def tokens(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        padding = "longest" if self.careful else "max_length"
        length = self.clip.config.text_config.max_position_embeddings
        read = self.tokenizer(texts, padding=padding, max_length=length, truncation=True, return_tensors="pt")
        return read.input_ids, (read.input_ids == self.clip.config.text_config.eos_token_id).int().argmax(1)

    def run_text(self, embeds: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        model, length = self.clip.text_model, embeds.shape[1]
        mask = torch.full((length, length), float("-inf")).triu(1)[None, None]
        hidden = embeds + model.embeddings.position_embedding.weight[:length]
        for layer in model.encoder.layers:
            hidden = layer(hidden, mask)
        pooled = model.final_layer_norm(hidden)[torch.arange(len(ends)), ends]
        return F.normalize(self.clip.text_projection(pooled), dim=-1)

    @torch.no_grad()
    def class_embeds(self) -> torch.Tensor:
        ids, ends = self.tokens([f"a photo of a {name}." for name in self.names])
        return self.run_text(self.clip.text_model.embeddings.token_embedding(ids), ends)

    # ---- trainings

    def train(self, method: str, optimizer, logits_of) -> None:
        batch_size, drop_last, least_area = TRAININGS[method]
        for epoch in range(self.epochs):
            batches = torch.randperm(len(self.files)).split(batch_size)
            if drop_last and len(batches) > 1 and len(batches[-1]) < batch_size:
                batches = batches[:-1]
            for step, rows in enumerate(batches):
                features = self.training_features(rows, epoch, least_area)
                with self.timed(STEPS):
                    for group in optimizer.param_groups:
                        group["lr"] = learning_rate(method, epoch, step, len(batches), self.epochs)
                    loss = F.cross_entropy(logits_of(features), self.labels[rows])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()

    def accuracy(self, logits: torch.Tensor) -> float:
        return (logits.argmax(1) == self.test[1]).double().mean().item()

    def sgd(self, parameters) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=2e-3, momentum=0.9, weight_decay=5e-4)

    def tip_adapter_f(self) -> float:
        classes, every = self.class_embeds(), torch.arange(len(self.files))
        keys = sum(self.training_features(every, view, 0.5) for view in range(CACHE_VIEWS)) / CACHE_VIEWS
        keys = F.normalize(keys, dim=-1).requires_grad_()
        values = F.one_hot(self.labels, len(self.names)).float()

        def logits(embeds, alpha=ALPHA, beta=BETA):
            votes = (beta * (embeds @ keys.T) - beta).exp() @ values
            return 100.0 * embeds @ classes.T + votes * alpha

        optimizer = torch.optim.AdamW([keys], lr=1e-3, eps=1e-4)
        self.train("tip_adapter_f", optimizer, lambda features: logits(F.normalize(features, dim=-1)))
        validation = self.plain("validation")
        with torch.no_grad():
            with self.timed(SEARCH):
                alpha, beta = self.search(validation, classes, keys, values, logits)
            return self.accuracy(logits(self.plain("test"), alpha, beta))

    def search(self, embeds, classes, keys, values, logits) -> tuple[float, float]:
        labels, best = self.validation[1], (-1.0, 0.0, 0.0)
        zero_shot, affinity = 100.0 * embeds @ classes.T, embeds @ keys.T
        for i in range(SEARCH_STEPS[0]):
            beta = i * (SEARCH_SCALE[0] - 0.1) / SEARCH_STEPS[0] + 0.1
            votes = (beta * affinity - beta).exp() @ values if self.careful else None
            for j in range(SEARCH_STEPS[1]):
                alpha = j * (SEARCH_SCALE[1] - 0.1) / SEARCH_STEPS[1] + 0.1
                found = zero_shot + votes * alpha if self.careful else logits(embeds, alpha, beta)
                accuracy = (found.argmax(1) == labels).float().mean().item()
                best = (accuracy, alpha, beta) if accuracy > best[0] else best
        return best[1:]

    def clip_adapter(self) -> float:
        width = self.clip.config.projection_dim
        adapter = nn.Sequential(
            nn.Linear(width, width // 4, bias=False), nn.ReLU(), nn.Linear(width // 4, width, bias=False), nn.ReLU()
        )
        constant = self.class_embeds()

        def logits(features):
            classes = constant if self.careful else self.class_embeds()
            blended = RATIO * adapter(features) + (1 - RATIO) * features
            return self.scale * F.normalize(blended, dim=-1) @ classes.T

        self.train("clip_adapter", self.sgd(adapter.parameters()), logits)
        with torch.no_grad():
            return self.accuracy(logits(self.plain("test")))

    def coop(self) -> float:
        ids, ends = self.tokens([" ".join(["X"] * CONTEXT) + f" {name}." for name in self.names])
        embeds = self.clip.text_model.embeddings.token_embedding(ids)
        context = (0.02 * torch.randn(CONTEXT, embeds.shape[-1])).requires_grad_()

        def classes():
            spliced = [embeds[:, :1], context.expand(len(ids), -1, -1), embeds[:, 1 + CONTEXT :]]
            return self.run_text(torch.cat(spliced, dim=1), ends)

        def logits(features):
            return self.scale * F.normalize(features, dim=-1) @ classes().T

        self.train("coop", self.sgd([context]), logits)
        with torch.no_grad():
            return self.accuracy(logits(self.plain("test")))

    def __call__(self) -> dict[str, float]:
        return {method: getattr(self, method)() for method in METHODS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("how", choices=("official", "careful"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    peer = Peer(options.folder, options.model, options.epochs, options.how == "careful", options.seed)
    peer.seconds["start"] = time.process_time()
    accuracies = peer()
    peer.seconds["all"] = time.process_time()
    print(json.dumps({"accuracy": accuracies, "passes": peer.passes, "seconds": dict(peer.seconds)}))


if __name__ == "__main__":
    main()
