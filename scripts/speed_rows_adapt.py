"""Rows of `benchmark_speed.py` for a whole `adapt`: files in, accuracies out, with everything in between.

Three methods are fitted to the same images for the same number of epochs and tested on the same images, with the
published batch sizes, augmentations and optimisers. The peers are written out here:

- "official trainers": each method by itself. Every step decodes and augments its images with Pillow and runs the image
  encoder; the text encoder runs over full-length prompts at every step (Tip-Adapter-F: once).
- "careful transformers script": features of each augmented view once, with `CLIPImageProcessor`'s operations on
  tensors; prompts as long as the longest; class embeddings once where they are constant; a search in which what does
  not change is computed once.

Ours does more than both: it writes and calibrates adapters, validates CLIP-Adapter and CoOp, and makes the report.
"""

import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from speed_rows import OURS, Row, imagenet_class_names
from torch import nn
from torch.nn import functional as F


OFFICIAL, CAREFUL = "official trainers", "careful transformers script"
METHODS = "tip_adapter_f", "clip_adapter", "coop"
CACHE_VIEWS, CONTEXT, ALPHA, BETA, RATIO = 10, 16, 1.17, 1.0, 0.2
SEARCH_SCALE, SEARCH_STEPS = (7, 3), (200, 20)
_temporary = tempfile.TemporaryDirectory(prefix="speed-rows-")  # removed when the process ends


@dataclass(frozen=True)
class Sizes:
    classes: int
    train: int  # images of each class; one more for validation, one for the test
    epochs: int

    @property
    def images(self) -> int:
        return self.classes * (self.train + 2)


@cache
def photographs(sizes: Sizes) -> Path:
    """A folder of JPEG files of 500 x 375: SPLIT/CLASS/NUMBER.jpg. A class is two colours that change slowly."""
    root = Path(_temporary.name) / f"{sizes.classes}-{sizes.train}"
    generator = np.random.default_rng(0)
    for name in imagenet_class_names()[: sizes.classes]:
        colours = generator.integers(0, 256, (2, 2, 3))
        for split, count in (("train", sizes.train), ("validation", 1), ("test", 1)):
            folder = root / split / name.replace("/", " ")
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                small = np.clip(colours + generator.normal(0, 25, colours.shape), 0, 255).astype(np.uint8)
                picture = np.asarray(Image.fromarray(small).resize((500, 375), Image.Resampling.BICUBIC), np.int16)
                grain = generator.normal(0, 8, picture.shape).astype(np.int16)  # as a camera's: JPEG has work to do
                Image.fromarray(np.clip(picture + grain, 0, 255).astype(np.uint8)).save(
                    folder / f"{number}.jpg", quality=90
                )
    return root


def files_and_labels(root: Path, split: str) -> tuple[list[Path], torch.Tensor]:
    folders = sorted(path for path in (root / split).iterdir())
    files = [(path, label) for label, folder in enumerate(folders) for path in sorted(folder.iterdir())]
    return [path for path, _ in files], torch.tensor([label for _, label in files])


def ours(sizes: Sizes) -> dict[str, float]:
    from hf_clip_variants import embedded_model
    from hf_clip_variants.few_shot.adapt import adapt

    with tempfile.TemporaryDirectory(dir=_temporary.name) as out:
        results = adapt(
            embedded_model(),
            str(photographs(sizes)),
            Path(out) / "run",
            methods=METHODS,
            shots=[sizes.train],
            seeds=[1],
            profile="published",
            overrides={
                "epochs": sizes.epochs,
                "views": sizes.epochs,
                "clip_adapter.ratio": RATIO,
                "tip_adapter_f.search_scale": SEARCH_SCALE,
                "tip_adapter_f.search_step": SEARCH_STEPS,
            },
            progress=False,
        )
    return {run["method"]: next(iter(run["accuracy"].values())) for run in results["runs"] if run["shots"]}


class Peer:
    """Both peers: the same three trainings, with encoders at every step or not."""

    def __init__(self, sizes: Sizes, careful: bool):
        from transformers import AutoModel, AutoTokenizer

        from hf_clip_variants import embedded_model

        root, self.sizes, self.careful = photographs(sizes), sizes, careful
        self.clip = AutoModel.from_pretrained(embedded_model(), dtype=torch.float32).eval().requires_grad_(False)
        self.tokenizer = AutoTokenizer.from_pretrained(embedded_model())
        self.names = sorted(path.name for path in (root / "train").iterdir())
        self.files, self.labels = files_and_labels(root, "train")
        self.validation, self.test = files_and_labels(root, "validation"), files_and_labels(root, "test")
        self.size, self.scale = self.clip.config.vision_config.image_size, self.clip.logit_scale.exp()
        self._views: dict[float, list[torch.Tensor]] = {}
        torch.manual_seed(1)

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
        batches = [files[start : start + 32] for start in range(0, len(files), 32)]
        return torch.cat([self.encode(self.pixels(batch, least_area)) for batch in batches]).clone()

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

    def train(self, parameters, optimizer, logits_of, batch_size: int, least_area: float) -> None:
        for epoch in range(self.sizes.epochs):
            for rows in torch.randperm(len(self.files)).split(batch_size):
                loss = F.cross_entropy(logits_of(self.training_features(rows, epoch, least_area)), self.labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    def accuracy(self, logits: torch.Tensor) -> float:
        return (logits.argmax(1) == self.test[1]).float().mean().item()

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
        self.train([keys], optimizer, lambda features: logits(F.normalize(features, dim=-1)), 256, 0.5)
        with torch.no_grad():
            alpha, beta = self.search(self.plain("validation"), classes, keys, values, logits)
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

        parameters = list(adapter.parameters())
        self.train(parameters, self.sgd(parameters), logits, 32, 0.08)
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

        self.train([context], self.sgd([context]), logits, 32, 0.08)
        with torch.no_grad():
            return self.accuracy(logits(self.plain("test")))

    def __call__(self) -> dict[str, float]:
        return {method: getattr(self, method)() for method in METHODS}


def _adapt(sizes: Sizes) -> Row:
    photographs(sizes)
    cases = {OURS: lambda: ours(sizes)}
    cases |= {name: lambda careful=careful: Peer(sizes, careful)() for name, careful in _PEERS.items()}
    return Row(
        f"{', '.join(METHODS)}; {sizes.images} JPEG files of 500 x 375 in {sizes.classes} classes, {sizes.train} "
        f"shots, {sizes.epochs} epochs, embedded model, decoding, search, test and report included",
        cases,
        {OFFICIAL: 3.0, CAREFUL: 1.5},
    )


_PEERS = {OFFICIAL: False, CAREFUL: True}


def adapt_500(small: bool) -> Row:
    """500 images in 50 classes."""
    return _adapt(Sizes(3, 2, 1) if small else Sizes(50, 8, 5))


def adapt_5000(small: bool) -> Row:
    """5,000 images in 1,000 classes."""
    return _adapt(Sizes(4, 1, 1) if small else Sizes(998, 3, 2))


ADAPT_ROWS = {"adapt_500": adapt_500, "adapt_5000": adapt_5000}
