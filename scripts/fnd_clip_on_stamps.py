"""
FND-CLIP on stamps with captions: true captions against swapped ones, altered ones, and images of the same kind.

    python scripts/fnd_clip_on_stamps.py --data data --out scripts/results/fnd_clip

`data` has `stamps.parquet` (make_debian_data.py; letters and signs are left out), `clipart.parquet` and
`emoji-<style>.parquet`. The dual encoder is the embedded CLIP, which was trained on emoji. No pretrained BERT or
ResNet is needed: a small BERT learns to fill in masked words of clip art's titles and emoji's names, a small ResNet to
sort emoji into their subgroups. Neither sees a stamp. Then all encoders are frozen and asked once; what is behind them
trains on posts that are put together anew in each epoch.

A seed decides which stamps are learned from and which are tested on (by a hash of their captions), the posts and the
first weights. Half of the posts are true, a sixth each has the caption of another stamp, a caption in which one word
is another, and an image of the same kind (mammals, fruit, hats). Clip art with its titles is learned from, too, and
never tested on. Widths and epochs are chosen on seed 0 (`SETTINGS`, by FND-CLIP's area under the curve) for all
methods; seeds 1, 2 and 3 are reported. Their test stamps are other draws of the same stamps.

Of the method "fitted", two matrices on the dual encoder's features are fitted on the true posts of stamps, by contrast
(`fit_feature_maps`), and then left as they are; it learns from one forgery of each kind for each stamp, and
a fifth of the stamps is kept for its threshold.

The method "residual" (`similarity_residual`) divides the stamps that are learned from into five parts. The similarity
of each part's posts is of matrices fitted on the other four (`cross_fit_similarity`); the answer begins as a logistic
regression on it (`start_from_similarity`), and the rest learns a correction, with `Trainer`, for as long as the loss
of the fifth part falls. That part gives the threshold, too. Tested with matrices fitted on all stamps of the training.

With `--style`, half of the forged posts end with "!" and half of them are grey, independently; one in ten of the true
ones. That is planted, as a stand-in for the style of real rumours, which one modality alone shows.
"""

import argparse
import copy
import io
import json
import random
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoProcessor,
    BertConfig,
    BertForMaskedLM,
    BertTokenizerFast,
    CLIPModel,
    EarlyStoppingCallback,
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainingArguments,
)

from hf_clip_variants import FNDCLIPForSequenceClassification, embedded_model
from hf_clip_variants.annotations.post_pictures import Bar, draw_post
from hf_clip_variants.data.posts import Post, split_posts
from hf_clip_variants.modeling.fnd_clip.processing_fnd_clip import fnd_clip_processor


CLIPART = "clipart"
STYLE = (0.5, 0.1)  # share of forged and of true posts whose text, and whose image, has the planted style
FORGERIES = ("caption swapped", "one word altered", "image of the same kind")
STYLES = ("noto", "openmoji", "twemoji", "emojione")
SMALL_WORDS = set("a an the of in on at and or is are it its for to with from by that this he she they".split())
TEST_SHARE, BATCH, RATE = 0.3, 64, 1e-3
# Of the method "residual", chosen on seeds 0 to 3: parts of the stamps, sets of posts of each, and of training.
RESIDUAL = {
    "folds": 5,
    "draws": 10,
    "dropout": 0.8,
    "rate": 5e-4,
    "decay": 1.0,
    "steps": 600,
    "every": 50,
    "patience": 4,
}
FITTED = {"dropout": 0.8, "feature_dim": 256, "epochs": 2, "held_out": 0.2}  # chosen on seed 0
SMALL = {"shared_dim": 64, "feature_dim": 16, "hidden_dim": 16}
SETTINGS = [{"epochs": epochs, **widths} for widths in ({}, SMALL) for epochs in (2, 5, 10)]
METHODS = {  # what of a post the model sees, and whether the similarity weighs
    "FND-CLIP": "all",
    "FND-CLIP, the similarity standardised at the start": "standardised",
    "FND-CLIP, the similarity left out": "unweighted",
    "text alone": "text",
    "image alone": "image",
    "text and image, without the branch of both": "apart",
    "FND-CLIP, features fitted on true posts": "fitted",
    "FND-CLIP that begins at the fitted similarity": "residual",
    "FND-CLIP, layers weighed over the batch (published)": "published",
}


def method_of(what: str) -> str:
    return next(name for name, seen in METHODS.items() if seen == what)


# ---- encoders that never saw a stamp


def pixels_of(rows, processor, grey: bool = False) -> torch.Tensor:
    """(N, 3, S, S) of rows with an image, on white."""
    found = []
    for start in range(0, len(rows), 256):
        images = [opened(row["image"]) for row in rows[start : start + 256]]
        images = [image.convert("L").convert("RGB") for image in images] if grey else images
        found.append(processor.image_processor(images, return_tensors="pt")["pixel_values"])
    return torch.cat(found)


def opened(image) -> Image.Image:
    image = Image.open(io.BytesIO(image["bytes"])) if isinstance(image, dict) else image
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image)
    return white.convert("RGB")


def table(data: Path, name: str) -> list[dict]:
    rows = datasets.Dataset.from_parquet(str(data / f"{name}.parquet"))
    return list(rows)


def train_bert(texts: list[str], folder: Path, steps: int) -> None:
    """A BERT of 3 layers that fills in masked words; saved with its tokenizer."""
    words: dict[str, int] = {}
    for text in texts:
        for word in re.findall(r"[a-z0-9]+", text.lower()):
            words[word] = words.get(word, 0) + 1
    common = [word for word, count in sorted(words.items(), key=lambda one: (-one[1], one[0])) if count > 1][:4000]
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789.,'-&()!"]
    letters += [f"##{letter}" for letter in letters if letter.isalnum()]
    vocabulary = list(dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *common]))
    tokenizer = BertTokenizerFast(vocab={word: number for number, word in enumerate(vocabulary)}, do_lower_case=True)
    tokenizer.model_max_length = 32
    sizes = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 192}
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(vocab_size=len(vocabulary), max_position_embeddings=32, **sizes)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    encoded = tokenizer(texts, padding="max_length", truncation=True, max_length=20, return_tensors="pt")
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1, (step + 1) / 50) * (1 - step / steps)
        rows = torch.randint(len(texts), (64,))
        ids, mask = encoded["input_ids"][rows], encoded["attention_mask"][rows]
        hidden = (torch.rand(ids.shape) < 0.2) & (ids > 4)
        labels = ids.masked_fill(~hidden, -100)
        loss = model(ids.masked_fill(hidden, 4), attention_mask=mask, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"BERT: loss of masked words {loss.item():.2f}", flush=True)
    model.bert.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train_resnet(pixels: torch.Tensor, labels: torch.Tensor, folder: Path, steps: int) -> None:
    torch.manual_seed(0)
    sizes = {"embedding_size": 24, "hidden_sizes": [24, 48, 96, 160], "depths": [1, 1, 1, 1], "layer_type": "basic"}
    model = ResNetForImageClassification(ResNetConfig(**sizes, num_labels=int(labels.max()) + 1)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.02)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - step / steps)
        rows = torch.randint(len(pixels), (96,))
        output = model(pixels[rows], labels=labels[rows])
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    right = (output.logits.argmax(1) == labels[rows]).float().mean()
    print(f"ResNet: accuracy on its last batch {float(right):.2f}", flush=True)
    model.save_pretrained(folder)


def make_encoders(data: Path, folder: Path, scale: float) -> None:
    """Trains BERT and ResNet, unless they are there."""
    emoji = [row for style in STYLES for row in table(data, f"emoji-{style}")]
    if not (folder / "bert" / "config.json").is_file():
        texts = [row["title"] for row in table(data, "clipart")] + [row["name"] for row in emoji[:2000]]
        texts += [f"a {row['name']}." for row in emoji[:2000]] + [f"an image of {row['name']}" for row in emoji[:2000]]
        train_bert([text for text in texts if text], folder / "bert", max(2, int(450 * scale)))
    if not (folder / "resnet" / "config.json").is_file():
        names = sorted({row["subgroup"] for row in emoji})
        labels = torch.tensor([names.index(row["subgroup"]) for row in emoji])
        pixels = pixels_of(emoji, AutoProcessor.from_pretrained(embedded_model()))
        train_resnet(pixels, labels, folder / "resnet", max(2, int(120 * scale)))


def make_model(folder: Path, seed: int = 0, published: bool = False, **fields):
    from transformers import BertModel

    torch.manual_seed(seed)
    model = FNDCLIPForSequenceClassification.from_encoders(
        BertModel.from_pretrained(folder / "bert"),
        CLIPModel.from_pretrained(embedded_model(), dtype=torch.float32),
        ResNetForImageClassification.from_pretrained(folder / "resnet"),
        freeze_backbone=True,
        batch_layer_attention=published,
        **fields,
    )
    tokenizer = BertTokenizerFast.from_pretrained(folder / "bert")
    return model, fnd_clip_processor(tokenizer, embedded_model(), model.config.max_text_length)


# ---- posts


@dataclass
class Stamps:
    """Captions, kinds, and what the encoders say of images and of texts; a text is encoded when it is new."""

    captions: list[str]
    kinds: list[str]
    images: dict[str, torch.Tensor]
    model: torch.nn.Module
    processor: object
    texts: dict[str, int]
    found: list[dict[str, torch.Tensor]]

    @torch.no_grad()
    def encode(self, texts: list[str]) -> None:
        new = [text for text in dict.fromkeys(texts) if text not in self.texts]
        for start in range(0, len(new), 256):
            some = new[start : start + 256]
            batch = self.processor(text=some, return_tensors="pt")
            encoded = self.model.get_features(**batch)
            for place, text in enumerate(some):
                self.texts[text] = len(self.found)
                names = ("text_states", "clip_text_features")
                self.found.append({name: encoded[name][place].clone() for name in names})

    def batch(self, posts: list[tuple[str, int, int, str]]) -> dict[str, torch.Tensor]:
        rows = torch.tensor([image for _, image, _, _ in posts])
        texts = [self.found[self.texts[text]] for text, *_ in posts]
        batch = {name: torch.stack([text[name] for text in texts]) for name in texts[0]}
        return batch | {name: tensor[rows] for name, tensor in self.images.items()}


def read_stamps(data: Path, model, processor, clipart: int = 0, style: bool = False) -> Stamps:
    """Stamps, and behind them so many clip arts with their titles, which are only learned from. With `style`, all
    images stand a second time behind these, in grey."""
    rows = [row for row in table(data, "stamps") if row["caption"] and not row["path"].startswith("symbols")]
    kinds = ["/".join(row["path"].split("/")[:2]) for row in rows]
    if clipart:
        more = [row for row in table(data, "clipart") if content_words(row["title"] or "")]
        more = random.Random(0).sample(more, min(clipart, len(more)))
        kinds += [f"{CLIPART}/{row['folder']}" for row in more]
        rows += [{"image": row["image"], "caption": f"{row['title']}."} for row in more]
    with torch.no_grad():
        pixels = pixels_of(rows, processor)
        pixels = torch.cat([pixels, pixels_of(rows, processor, grey=True)]) if style else pixels
        parts = [model.get_features(pixel_values=some) for some in pixels.split(128)]
    images = {name: torch.cat([part[name] for part in parts]) for name in ("clip_image_features", "image_logits")}
    captions = [row["caption"].strip() for row in rows]
    return Stamps(captions, kinds, images, model, processor, {}, [])


def forge(stamps: Stamps, row: int, kind: str, among: list[int], draw: random.Random) -> tuple[str, int] | None:
    """The text and image of a forged post; None where a stamp allows none of this kind."""
    caption = stamps.captions[row]
    others = [other for other in among if stamps.captions[other] != caption]
    if kind == FORGERIES[0]:
        return stamps.captions[draw.choice(others)], row
    if kind == FORGERIES[2]:
        same = [other for other in others if stamps.kinds[other] == stamps.kinds[row]]
        return (caption, draw.choice(same)) if same else None
    words = content_words(caption)
    if not words:
        return None
    draw = random.Random(f"{row}/{draw.randrange(2)}")  # two of each caption, which are encoded once
    old = draw.choice(words)
    for _ in range(20):
        new = content_words(stamps.captions[draw.choice(others)])
        if new and (word := draw.choice(new)).lower() not in caption.lower():
            return re.sub(rf"\b{re.escape(old)}\b", word, caption, count=1), row
    return None


def content_words(text: str) -> list[str]:
    return [word for word in re.findall(r"[A-Za-z]{3,}", text) if word.lower() not in SMALL_WORDS]


def make_posts(stamps: Stamps, rows: list[int], draw: random.Random, each: bool) -> list[tuple[str, int, int, str]]:
    """(text, image, 1 for true, what was forged): of each stamp the true post and one forged one, or with `each` one
    of each kind."""
    posts = []
    for row in rows:
        posts.append((stamps.captions[row], row, 1, "true"))
        kinds = FORGERIES if each else (draw.choice(FORGERIES),)
        for kind in kinds:
            forged = forge(stamps, row, kind, rows, draw)
            if forged is not None:
                posts.append((*forged, 0, kind))
    if len(stamps.images["image_logits"]) > len(stamps.captions):
        posts = [with_style(post, len(stamps.captions), draw) for post in posts]
    stamps.encode([text for text, *_ in posts])
    return posts


def with_style(post: tuple, grey: int, draw: random.Random) -> tuple:
    """Forged posts end with "!" and are grey more often than true ones, each independently."""
    text, image, label, kind = post
    share = STYLE[label]
    text = f"{text.rstrip('.!')}!" if draw.random() < share else text
    return text, image + grey if draw.random() < share else image, label, kind


# ---- training


def seen(batch: dict[str, torch.Tensor], what: str) -> dict[str, torch.Tensor]:
    """The part of a batch that a method sees."""
    if what == "text":
        return batch | {"image_mask": torch.zeros(len(batch["text_states"]))}
    if what == "image":
        blank = {name: torch.zeros_like(batch[name]) for name in ("text_states", "clip_text_features")}
        return batch | blank
    return batch


def prepare(model, what: str) -> None:
    """Switches parts of the model off."""
    fusion = model.fusion
    fusion.requires_grad_(True)
    if what == "fitted":  # what told posts apart would change them to remember these
        fusion.text_map.requires_grad_(False)
        fusion.image_map.requires_grad_(False)
    with torch.no_grad():
        if what in ("unweighted", "apart", "image"):
            fusion.similarity_factor.fill_(0).requires_grad_(False)
            fusion.similarity_summand.fill_(1 if what == "unweighted" else 0).requires_grad_(False)


def train(stamps: Stamps, model, rows: list[int], what: str, seed: int, epochs: int, each: bool = False) -> None:
    draw = random.Random(seed)
    prepare(model, what)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=RATE)
    torch.manual_seed(seed)
    model.train()
    for _ in range(epochs):
        posts = make_posts(stamps, rows, draw, each)
        draw.shuffle(posts)
        for start in range(0, len(posts) - BATCH + 1, BATCH):
            some = posts[start : start + BATCH]
            labels = torch.tensor([label for _, _, label, _ in some])
            loss = model(**seen(stamps.batch(some), what), labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()


@torch.no_grad()
def scores_of(stamps: Stamps, model, posts, what: str, batch: int = 64) -> np.ndarray:
    """How much rather true than forged, of each post."""
    found = []
    for start in range(0, len(posts), batch):
        logits = model(**seen(stamps.batch(posts[start : start + batch]), what)).logits
        found.append(logits[:, 1] - logits[:, 0])
    return torch.cat(found).numpy()


def pairs_of(stamps: Stamps, posts) -> tuple[torch.Tensor, torch.Tensor]:
    """The dual encoder's features of the posts' texts and of their images."""
    batch = stamps.batch(posts)
    return batch["clip_text_features"], batch["clip_image_features"]


def similarities(stamps: Stamps, posts) -> np.ndarray:
    return torch.cosine_similarity(*pairs_of(stamps, posts)).numpy()


def measure(scores: np.ndarray, posts, threshold: float) -> dict[str, float]:
    """Accuracy where half of the posts are true, and the area under the curve of true against each kind of forgery."""
    kinds = np.array([kind for *_, kind in posts])
    true = scores[kinds == "true"]
    found = {}
    for kind in FORGERIES:
        other = scores[kinds == kind]
        greater = (true[:, None] > other[None]).mean() + 0.5 * (true[:, None] == other[None]).mean()
        found[f"AUC, {kind}"] = 100 * float(greater)
    wrong = np.mean([(scores[kinds == kind] <= threshold).mean() for kind in FORGERIES])
    found["accuracy"] = 100 * float((true > threshold).mean() + wrong) / 2
    found["AUC"] = float(np.mean([found[f"AUC, {kind}"] for kind in FORGERIES]))
    return found


def best_threshold(scores: np.ndarray, posts) -> float:
    """Of 200 quantiles of the scores, the one with the best accuracy where half of the posts are true."""
    true = np.array([label for _, _, label, _ in posts], dtype=bool)
    candidates = np.quantile(scores, np.linspace(0, 1, 200))
    return float(max(candidates, key=lambda one: (scores[true] > one).mean() + (scores[~true] <= one).mean()))


def divided(stamps: Stamps, seed: int) -> tuple[list[int], list[int]]:
    """Rows to learn from, clip art among them, and stamps to test on; equal captions stay together."""
    posts = [Post(str(row), caption) for row, caption in enumerate(stamps.captions)]
    split = split_posts(posts, {"train": 1 - TEST_SHARE, "test": TEST_SHARE}, seed=seed)
    learn, test = ([int(post.id) for post in split[name]] for name in ("train", "test"))
    return learn, [row for row in test if not stamps.kinds[row].startswith(CLIPART)]


def choose(stamps: Stamps, folder: Path) -> dict:
    """The settings with which FND-CLIP is best on seed 0."""
    learn, test = divided(stamps, 0)
    posts, found = make_posts(stamps, test, random.Random(1000), each=True), []
    for settings in SETTINGS:
        widths = {name: value for name, value in settings.items() if name != "epochs"}
        model, _ = make_model(folder, 0, **widths)
        train(stamps, model, learn, "all", 0, settings["epochs"])
        found.append(measure(scores_of(stamps, model, posts, "all"), posts, 0.0)["AUC"])
        print("seed 0", settings, round(found[-1], 1), flush=True)
    threshold = measure(similarities(stamps, posts), posts, 0.0)["AUC"]
    print("seed 0, CLIP's similarity", round(threshold, 1), flush=True)
    return SETTINGS[int(np.argmax(found))] | {"chosen_on_seed_0": [round(auc, 1) for auc in found]}


def run_seed(stamps: Stamps, folder: Path, seed: int, settings: dict, methods: list[str]) -> list[dict]:
    learn, test = divided(stamps, seed)
    tested = make_posts(stamps, test, random.Random(1000 + seed), each=True)
    known = [row for row in learn if not stamps.kinds[row].startswith(CLIPART)]
    learned = make_posts(stamps, known, random.Random(2000 + seed), each=True)
    found = []

    def add(method: str, values: dict) -> None:
        found.append({"seed": seed, "method": method, **values, "test_stamps": len(test), "posts": len(tested)})
        print(seed, method, {name: round(value, 1) for name, value in values.items()}, flush=True)

    threshold = best_threshold(similarities(stamps, learned), learned)
    add("CLIP's similarity and a threshold", measure(similarities(stamps, tested), tested, threshold))
    if "fitted" in methods:
        for method, values in run_fitted(stamps, folder, seed, known, tested).items():
            add(method, values)
    if "residual" in methods:
        for method, values in run_residual(stamps, folder, seed, known, tested).items():
            add(method, values)
    apart = ("fitted", "residual")
    for method, what in ((method, what) for method, what in METHODS.items() if what in methods and what not in apart):
        widths = {name: settings[name] for name in SMALL if name in settings}
        model, _ = make_model(folder, seed, published=what == "published", **widths)
        if what == "standardised":  # as in the paper; the published code learns both from random numbers below 1
            model.standardise_similarity(*pairs_of(stamps, learned))
        train(stamps, model, learn, what, seed, settings["epochs"])
        scores = scores_of(stamps, model, tested, what)
        values = measure(scores, tested, 0.0)
        if what in ("standardised", "published"):
            alone = scores_of(stamps, model, tested[:300], what, batch=1)
            changed = (scores[:300] > 0) != (alone > 0)
            values["answers that change when a post is alone"] = 100 * float(changed.mean())
        add(method, values)
        if what == "standardised":
            with torch.no_grad():
                weights = model(**stamps.batch(tested)).modality_weights.mean(0)
            found[-1]["mean_weights"] = [round(float(weight), 3) for weight in weights]
            model.save_pretrained(folder / f"model-{seed}")
    return found


def run_fitted(stamps: Stamps, folder: Path, seed: int, known: list[int], tested: list) -> dict[str, dict]:
    """FND-CLIP whose dual encoder's features are fitted on the true posts of stamps first, and the similarity of these
    features alone. A fifth of the stamps is kept from both, and gives both their thresholds."""
    draw, shuffled = random.Random(3000 + seed), random.Random(seed).sample(known, len(known))
    kept = int(FITTED["held_out"] * len(known))
    held_out, rows = shuffled[:kept], shuffled[kept:]
    model, _ = make_model(
        folder, seed, adapt_features=True, **{name: FITTED[name] for name in ("dropout", "feature_dim")}
    )
    true = [(stamps.captions[row], row, 1, "true") for row in rows]
    stamps.encode([text for text, *_ in true])
    model.fit_feature_maps(*pairs_of(stamps, true), seed=seed)
    model.standardise_similarity(*pairs_of(stamps, make_posts(stamps, rows, draw, each=True)))
    unseen = make_posts(stamps, held_out, draw, each=True)

    def measured(scores_in) -> dict:
        return measure(scores_in(tested), tested, best_threshold(scores_in(unseen), unseen))

    found = {
        "similarity of these features and a threshold": measured(lambda posts: fitted_similarity(stamps, model, posts))
    }
    train(stamps, model, rows, "fitted", seed, FITTED["epochs"], each=True)
    return found | {method_of("fitted"): measured(lambda posts: scores_of(stamps, model, posts, "fitted"))}


@torch.no_grad()
def fitted_similarity(stamps: Stamps, model, posts) -> np.ndarray:
    parts = (posts[start : start + BATCH] for start in range(0, len(posts), BATCH))
    return torch.cat([model(**stamps.batch(part)).similarity for part in parts]).numpy()


class Encoded(torch.utils.data.Dataset):
    """Some of many posts: what the encoders say of them, their similarity and label."""

    def __init__(self, stamps: Stamps, posts: list, similarity: torch.Tensor, rows: torch.Tensor):
        self.stamps, self.posts, self.similarity, self.rows = stamps, posts, similarity, rows.tolist()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> dict:
        row = self.rows[place]
        found = {name: tensor[0] for name, tensor in self.stamps.batch([self.posts[row]]).items()}
        return found | {"similarity": self.similarity[row], "labels": self.posts[row][2]}


def run_residual(stamps: Stamps, folder: Path, seed: int, known: list[int], tested: list) -> dict[str, dict]:
    """FND-CLIP that begins at the similarity of fitted features, and this similarity alone."""
    said, draw = RESIDUAL, random.Random(3000 + seed)
    shuffled = random.Random(seed).sample(known, len(known))
    parts = [shuffled[number :: said["folds"]] for number in range(said["folds"])]
    posts, part_of, first = [], [], []
    for number in range(said["draws"]):
        for place, part in enumerate(parts):  # a forged post's text and image are of the same part
            made = make_posts(stamps, part, draw, each=True)
            posts, part_of = posts + made, part_of + [place] * len(made)
            first += [number == 0 and label == 1 for _, _, label, _ in made]
    options = {"adapt_features": True, "similarity_residual": True, "dropout": said["dropout"]}
    model, _ = make_model(folder, seed, **options)
    labels = torch.tensor([label for _, _, label, _ in posts])
    part_of, first = torch.tensor(part_of), torch.tensor(first)
    pairs = pairs_of(stamps, posts)
    similarity = model.cross_fit_similarity(*pairs, first, groups=part_of, folds=said["folds"], seed=seed)
    model.fit_feature_maps(*(one[first] for one in pairs), seed=seed)
    held_out = part_of == said["folds"] - 1
    model.start_from_similarity(similarity[~held_out], labels[~held_out])
    model.fusion.text_map.requires_grad_(False)
    model.fusion.image_map.requires_grad_(False)
    train_set, unseen = (Encoded(stamps, posts, similarity, rows.nonzero()[:, 0]) for rows in (~held_out, held_out))
    steps = train_correction(model, train_set, unseen, seed)

    def threshold_of(scores: np.ndarray) -> float:
        return best_threshold(scores, [posts[row] for row in unseen.rows])

    with torch.no_grad():
        batches = torch.utils.data.DataLoader(unseen, batch_size=256)
        logits = torch.cat([model(**batch).logits for batch in batches])
    threshold = threshold_of((logits[:, 1] - logits[:, 0]).numpy())
    similarity_threshold = threshold_of(similarity[held_out].numpy())
    return {
        "fitted similarity and a threshold": measure(
            fitted_similarity(stamps, model, tested), tested, similarity_threshold
        ),
        method_of("residual"): measure(scores_of(stamps, model, tested, "all"), tested, threshold) | {"steps": steps},
    }


def train_correction(model, train_set: Encoded, unseen: Encoded, seed: int) -> int:
    """Trains what is added to the similarity's answer, and goes back to where the loss of unseen posts was lowest;
    the number of steps to there."""
    said = RESIDUAL
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            learning_rate=said["rate"],
            weight_decay=said["decay"],
            lr_scheduler_type="constant",
            max_steps=said["steps"],
            per_device_train_batch_size=BATCH,
            per_device_eval_batch_size=256,
            dataloader_drop_last=True,
            eval_strategy="steps",
            eval_steps=said["every"],
            eval_on_start=True,
            save_steps=said["every"],
            save_total_limit=1,
            save_only_model=True,
            load_best_model_at_end=True,
            metric_for_best_model="eval_loss",
            remove_unused_columns=False,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            seed=seed,
        )
        stop = EarlyStoppingCallback(said["patience"])
        trainer = Trainer(model, arguments, train_dataset=train_set, eval_dataset=unseen, callbacks=[stop])
        before = copy.deepcopy(model.fusion.state_dict())
        trainer.train()
        losses = {row["step"]: row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row}
    best = min(losses, key=losses.get)
    if best == 0:
        model.fusion.load_state_dict(before)  # no step was better than none
    model.eval()
    return best


# ---- results


def summary(rows: list[dict]) -> str:
    names = ["accuracy", "AUC", *(f"AUC, {kind}" for kind in FORGERIES), "answers that change when a post is alone"]
    lines = [f"| method | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for method in dict.fromkeys(row["method"] for row in rows):
        cells = []
        for name in names:
            values = [row[name] for row in rows if row["method"] == method and name in row]
            spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.1f}{spread}" if values else "–")
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def differences(rows: list[dict], method: str) -> str:
    """AUC of a method minus that of each other one, seed by seed."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        found.setdefault(row["method"], {})[row["seed"]] = row["AUC"]
    seeds = list(found[method])
    lines = [f"| AUC of *{method}* minus | {' | '.join(f'seed {seed}' for seed in seeds)} | mean | above in |"]
    lines.append("|---" * (len(seeds) + 3) + "|")
    for other in (name for name in found if name != method):
        above = [found[method][seed] - found[other][seed] for seed in seeds]
        cells = [*(f"{one:+.1f}" for one in above), f"{np.mean(above):+.1f}"]
        lines.append(f"| {other} | {' | '.join(cells)} | {sum(one > 0 for one in above)} of {len(seeds)} |")
    return "\n".join(lines) + "\n"


def draw(data: Path, folder: Path, out: Path, seed: int) -> None:
    """Answers to two clip arts of the public domain, each with its own title and with the other's."""
    from hf_clip_variants.modeling.posts.text_and_image_classification import TextAndImageClassificationPipeline

    model, processor = make_model(folder)
    model = type(model).from_pretrained(folder / f"model-{seed}").eval()
    model.config.id2label = {0: "forged", 1: "true"}
    classify = TextAndImageClassificationPipeline(model=model, processor=processor)
    by_title = {row["title"]: row for row in table(data, "clipart") if row["folder"].startswith("food/fruit")}
    rows = [by_title["apple"], by_title["pear"]]
    for number, row in enumerate(rows):
        for name, other in (("own", row), ("other", rows[1 - number])):
            image, text = opened(row["image"]), f"A {other['title'].lower()}."
            answer = classify(text, image)
            bars = [Bar(name, f"{value:.2f}", value) for name, value in answer["weights"].items()]
            bars.insert(0, Bar("similarity", f"{answer['similarity']:.2f}", (1 + answer["similarity"]) / 2))
            title = f"{answer['label']}  {100 * answer['score']:.1f} %"
            picture = draw_post(image, text, title, bars, answer["layers"])
            picture.quantize(64).save(out / f"{row['title'].lower()}_{name}.png", optimize=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--encoders", type=Path, help="where BERT and ResNet are kept; default: OUT/encoders")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--methods", nargs="+", choices=METHODS.values(), default=[*METHODS.values()])
    parser.add_argument("--epochs", type=int, help="not chosen on seed 0, but these, with the published widths")
    parser.add_argument("--clipart", type=int, default=1200, help="clip arts that are learned from, too")
    parser.add_argument("--style", action="store_true", help="forged posts have a style more often: !, grey images")
    parser.add_argument("--scale", type=float, default=1.0, help="of the encoders' steps; small for a trial")
    options = parser.parse_args(arguments)
    folder = options.encoders or options.out / "encoders"
    options.out.mkdir(parents=True, exist_ok=True)
    make_encoders(options.data, folder, options.scale)
    model, processor = make_model(folder)
    stamps = read_stamps(options.data, model, processor, options.clipart, options.style)
    settings = choose(stamps, folder) if options.epochs is None else {"epochs": options.epochs}
    rows: list[dict] = []
    for seed in options.seeds:
        rows += run_seed(stamps, folder, seed, settings, options.methods)
        found = {"settings": settings, "clipart": options.clipart, "style": options.style, "runs": rows}
        (options.out / "results.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        tables = summary(rows)
        if "residual" in options.methods:
            tables += "\n" + differences(rows, method_of("residual"))
        (options.out / "table.md").write_text(tables, encoding="utf-8")
        print(tables)
    if options.scale == 1 and not options.style and "standardised" in options.methods:
        draw(options.data, folder, options.out, options.seeds[0])


if __name__ == "__main__":
    main()
