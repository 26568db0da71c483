"""The rows of `benchmark_speed.py`: what is compared with what, at which size, and by how much ours should be faster.

A row is a function `(small: bool) -> Row`, listed in `ROWS`. Heavy libraries are imported where they are used.
"""

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


OURS = "ours"
_temporary = tempfile.TemporaryDirectory(prefix="speed-rows-")  # removed when the process ends


def children_time() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@dataclass
class Row:
    """Cases that give the same result in different ways."""

    what: str  # sizes included
    cases: dict[str, Callable[[], Any]]  # "ours" and the peers
    targets: dict[str, float]  # peer -> least peer time / our time
    error: Callable[[Any, Any], float] | None = None  # (ours, peer's) outputs -> largest relative error
    tolerance: float | dict[str, float] = 1e-5  # of `error`; or one for each peer
    clock: Callable[[], float] = time.process_time
    weights: tuple[nn.Module, ...] = ()  # given: measure the bytes kept for backward, these modules' not counted
    kept_target: float | None = None  # least peer bytes / our bytes
    peak: bool = False  # measure the peak memory of each case
    warm_up: bool = True  # False for long cases in fresh processes: the first round's outputs are compared


def vit_b_text(small: bool) -> dict:
    """Sizes of the text encoder of ViT-B/32 and B/16; tiny ones where `small`."""
    width, layers = (64, 2) if small else (512, 12)
    return {"width": width, "heads": width // 64, "layers": layers}


@cache
def imagenet_class_names() -> list[str]:
    from open_clip import IMAGENET_CLASSNAMES

    return list(dict.fromkeys(IMAGENET_CLASSNAMES))


def make_classifier(clip):
    """A `CLIPClassifier` on a `CLIPModel` in memory, frozen."""
    from hf_clip_variants import CLIPClassifier, CLIPClassifierConfig
    from hf_clip_variants.modeling.clip.text_clip import official_tokenizer

    values = clip.config.to_dict()
    config = CLIPClassifierConfig(**{k: values[k] for k in ("text_config", "vision_config", "projection_dim")})
    model = CLIPClassifier(config)
    model.clip = clip
    model.tokenizer = official_tokenizer()
    return model.eval().requires_grad_(False)


@cache
def make_clip(small: bool, vision: bool = False, patch_size: int = 32, vision_layers: int = 1):
    """A random `CLIPModel` with ViT-B's text encoder and, where `vision`, ViT-B's image encoder.

    Otherwise the image encoder is tiny, with `vision_layers` layers.
    """
    from transformers import CLIPConfig, CLIPModel

    sizes = vit_b_text(small)
    text = {
        "hidden_size": sizes["width"],
        "intermediate_size": 4 * sizes["width"],
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": sizes["heads"],
        "vocab_size": 49408,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "pad_token_id": 49407,
    }
    tiny = {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": vision_layers,
        "num_attention_heads": 1,
        "image_size": 64,
    }
    image = (tiny if small or not vision else {}) | {"patch_size": patch_size}
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config=image, projection_dim=512)
    return CLIPModel(config).eval().requires_grad_(False)


def relative_error(ours: torch.Tensor, peer: torch.Tensor) -> float:
    return ((ours.double() - peer.double()).norm() / peer.double().norm()).item()


def largest_relative_error(ours, peer) -> float:
    return max(relative_error(a, b) for a, b in zip(ours, peer, strict=True))


def class_embeddings(small: bool) -> Row:
    """Names and templates -> class embeddings, tokenisation included."""
    import open_clip
    from open_clip.model import CLIP as OpenCLIP

    from hf_clip_variants.modeling.clip.convert_clip import clip_from_official

    torch.manual_seed(0)
    names = imagenet_class_names()[: 5 if small else 50]
    templates = [
        "a photo of a {}.",
        "a bad photo of a {}.",
        "a photo of many {}.",
        "a sculpture of a {}.",
        "a photo of the hard to see {}.",
        "a low resolution photo of the {}.",
        "a rendering of a {}.",
        "graffiti of a {}.",
    ]
    templates = templates[: 2 if small else 8]
    vision = {"layers": 1, "width": 64, "head_width": 64, "patch_size": 32, "image_size": 64}
    peer = OpenCLIP(512, vision, {**vit_b_text(small), "context_length": 77, "vocab_size": 49408}, quick_gelu=True)
    peer.eval().requires_grad_(False)
    clip = clip_from_official(peer.state_dict()).requires_grad_(False)
    classifier = make_classifier(clip)
    tokenizer = classifier.tokenizer

    def ours():
        with torch.no_grad():
            return F.normalize(classifier.set_classes(names, templates).get_class_features(), dim=-1)

    def transformers_longest():
        """The fastest way with transformers: one batch per template, padded to its longest prompt."""
        with torch.no_grad():
            features = [
                clip.get_text_features(
                    **tokenizer([t.replace("{}", name) for name in names], padding=True, return_tensors="pt")
                ).pooler_output
                for t in templates
            ]
            return F.normalize(F.normalize(torch.stack(features), dim=-1).mean(0), dim=-1)

    def open_clip_77():
        return open_clip.build_zero_shot_classifier(peer, open_clip.tokenize, names, templates).T

    peer_77, peer_longest = "open_clip.build_zero_shot_classifier", "transformers, padding=longest"
    return Row(
        f"{len(names)} classes x {len(templates)} templates, ViT-B text encoder, fp32",
        {OURS: ours, peer_77: open_clip_77, peer_longest: transformers_longest},
        {peer_77: 10, peer_longest: 2},
        error=relative_error,
        peak=True,
    )


def coop_step(small: bool, classes: int = 100, context_tokens: int = 4) -> Row:
    """One training step from image features: prompts -> text features -> loss -> gradient of the context."""
    from peft import get_peft_model

    from hf_clip_variants import CoOpConfig
    from hf_clip_variants.modeling.clip.text_clip import official_tokenizer

    clip, names = make_clip(small), imagenet_class_names()[: 10 if small else classes]
    features, labels = torch.randn(32, 512), torch.randint(len(names), (32,))
    model = get_peft_model(
        make_classifier(clip).set_classes(names), CoOpConfig(num_context_tokens=context_tokens)
    ).train()
    (context,) = [p for p in model.parameters() if p.requires_grad]

    def ours():
        context.grad = None
        loss = model(image_features=features, labels=labels).loss
        loss.backward()
        return loss.detach(), context.grad

    # The official way: splice into 77 token embeddings, run the whole encoder over all of them, take the row at EOS.
    prompts = [" ".join(["X"] * context_tokens) + f" {name.replace('_', ' ')}." for name in names]
    ids = official_tokenizer()(prompts, padding="max_length", max_length=77, return_tensors="pt").input_ids
    text_model, own_context = clip.text_model, context.detach().clone().requires_grad_()
    embeds = text_model.embeddings.token_embedding(ids)
    mask = torch.full((77, 77), float("-inf")).triu(1)[None, None]
    eos = (ids == 49407).int().argmax(1)

    def official():
        own_context.grad = None
        spliced = [embeds[:, :1], own_context.expand(len(ids), -1, -1), embeds[:, 1 + context_tokens :]]
        hidden = torch.cat(spliced, dim=1) + text_model.embeddings.position_embedding.weight
        for layer in text_model.encoder.layers:
            hidden = layer(hidden, mask)
        pooled = text_model.final_layer_norm(hidden)[torch.arange(len(ids)), eos]
        text = F.normalize(clip.text_projection(pooled), dim=-1)
        logits = clip.logit_scale.exp() * F.normalize(features, dim=-1) @ text.T
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        return loss.detach(), own_context.grad

    return Row(
        f"{len(names)} classes, {context_tokens} context tokens, batch 32, image features given, ViT-B text encoder, "
        "fp32",
        {OURS: ours, "official, 77 tokens": official},
        {"official, 77 tokens": 10 if context_tokens == 4 else 9},
        error=largest_relative_error,
        weights=(clip,),
        kept_target=8,
        peak=True,
    )


def coop_step_long_context(small: bool) -> Row:
    return coop_step(small, classes=32, context_tokens=16)


def serving(small: bool, images: int = 1) -> Row:
    """transformers' zero-shot pipeline, from the second call on, with their model and with ours.

    In a batch, their model encodes the labels once for all its images, so less is saved.
    """
    from PIL import Image
    from transformers import CLIPImageProcessor, pipeline

    clip = make_clip(small, vision=True)
    classifier, names = make_classifier(clip), imagenet_class_names()[: 10 if small else 100]
    size = clip.config.vision_config.image_size
    parts = {
        "tokenizer": classifier.tokenizer,
        "image_processor": CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size}),
    }
    noise = torch.randint(256, (images, 375, 500, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pictures = [Image.fromarray(image.numpy()) for image in noise]
    pipelines = {
        case: pipeline("zero-shot-image-classification", model=model, device="cpu", **parts)
        for case, model in ((OURS, classifier), ("transformers CLIPModel", clip))
    }

    def scores(case):
        found = pipelines[case](pictures, candidate_labels=names, batch_size=images)
        by_label = [{entry["label"]: entry["score"] for entry in of_image} for of_image in found]
        return torch.tensor([[of_image[name] for name in names] for of_image in by_label])

    batch = "one 500 x 375 image" if images == 1 else f"a batch of {images} images of 500 x 375"
    return Row(
        f"zero-shot pipeline, {len(names)} labels, {batch}, ViT-B/32, fp32",
        {case: lambda case=case: scores(case) for case in pipelines},
        {"transformers CLIPModel": 8 if images == 1 else 2},
        error=relative_error,
    )


def serving_batch(small: bool) -> Row:
    return serving(small, images=2 if small else 8)


def tip_search(small: bool) -> Row:
    """Search for alpha and beta on a grid like the paper's."""
    from hf_clip_variants.adapters.tip_adapter.search import search_alpha_beta, search_grid

    classes, shots, images, width = (5, 2, 20, 16) if small else (100, 16, 1000, 512)
    scale, steps = (7, 3), ((4, 3) if small else (20, 10))
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(classes, width, generator=generator)
    key_labels, labels = torch.arange(classes).repeat_interleave(shots), torch.arange(images) % classes

    def near(which, noise):
        return F.normalize(centres[which] + noise * torch.randn(len(which), width, generator=generator), dim=-1)

    keys, embeds, class_embeds = near(key_labels, 5), near(labels, 5), near(torch.arange(classes), 5)
    values = F.one_hot(key_labels, classes).float()

    def ours():
        found = search_alpha_beta(embeds, labels, class_embeds, keys, key_labels, scale=scale, steps=steps)
        return found.accuracies, torch.tensor([found.alpha, found.beta])

    def official():
        """Affinity, votes and logits again at each point of the grid."""
        best, accuracies = (-1.0, 0.0, 0.0), []
        for beta in search_grid(scale[0], steps[0]):
            for alpha in search_grid(scale[1], steps[1]):
                affinity = embeds @ keys.T
                logits = 100.0 * embeds @ class_embeds.T + (beta * affinity - beta).exp() @ values * alpha
                accuracy = 100 * (logits.argmax(1) == labels).float().mean().item()
                accuracies.append(accuracy)
                best = (accuracy, alpha, beta) if accuracy > best[0] else best
        return torch.tensor(accuracies).view(steps), torch.tensor(best[1:])

    return Row(
        f"{steps[0]} x {steps[1]} grid, {images} images, {classes} classes x {shots} shots, width {width}",
        {OURS: ours, "official, everything at every point": official},
        {"official, everything at every point": 30},
        error=largest_relative_error,
    )


def tip_f_epoch(small: bool) -> Row:
    """One epoch of Tip-Adapter-F: image encoder and one-hot matrix at every step, against cached features."""
    from peft import get_peft_model

    from hf_clip_variants import TipAdapterConfig

    classes, shots, batch, alpha, beta = 4 if small else 10, 4, 32, 1.17, 1.0
    clip = make_clip(small, vision=True, patch_size=16)
    classifier = make_classifier(clip).set_classes(imagenet_class_names()[:classes])
    size = clip.config.vision_config.image_size
    pixels = torch.randn(classes * shots, 3, size, size, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(classes).repeat_interleave(shots)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        class_embeds = classifier(pixel_values=pixels[:1]).text_embeds
        features = torch.cat([classifier.get_image_features(part).pooler_output for part in pixels.split(batch)])
    model = get_peft_model(classifier, TipAdapterConfig(alpha=alpha, beta=beta, trainable_keys=True))
    settings = {"lr": 1e-3, "eps": 1e-4}

    def ours():
        model.build_cache(features, labels)
        (keys,) = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW([keys], **settings)
        for rows in order.split(batch):
            loss = F.cross_entropy(model(image_features=features[rows]).logits, labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return keys.detach()

    def official():
        keys = F.normalize(features, dim=-1).requires_grad_()
        values = F.one_hot(labels, classes).float()
        optimizer = torch.optim.AdamW([keys], **settings)
        for rows in order.split(batch):
            with torch.no_grad():
                embeds = F.normalize(clip.get_image_features(pixels[rows]).pooler_output, dim=-1)
            votes = (beta * (embeds @ keys.T) - beta).exp() @ values
            loss = F.cross_entropy(100.0 * embeds @ class_embeds.T + votes * alpha, labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return keys.detach()

    return Row(
        f"{classes} classes x {shots} shots, one plain view of each image, encoded before; ViT-B/16 image encoder, "
        f"batch {batch}, fp32",
        {OURS: ours, "official, encoders every step": official},
        {"official, encoders every step": 50},
        error=relative_error,
        tolerance=1e-4,  # AdamW divides gradients by their own size, rounding included
        peak=True,
    )


def features_cached(small: bool) -> Row:
    """A whole training, decoding and augmentation included: features of each view once, or pixels at every step."""
    from hf_clip_variants import CLIPClassifier, CLIPClassifierImageProcessor, embedded_model
    from hf_clip_variants.data import compute_features, load_emoji
    from hf_clip_variants.data.images.labelled_images import CachedImages, LiveImages
    from hf_clip_variants.few_shot.fitting import Shots, fit_adapter

    concepts, epochs, views = (4, 2, 1) if small else (32, 30, 4)
    images = load_emoji(["fluentflat", "emojione"], concepts=load_emoji("notov1").class_names[:concepts])
    classifier = CLIPClassifier.from_pretrained(embedded_model(), class_names=images.class_names, dtype=torch.float32)
    processor = CLIPClassifierImageProcessor.from_pretrained(embedded_model())
    settings = {"epochs": epochs, "ratio": 0.6}

    encode = classifier.pooled_image_features

    def cached(views, augmentation):
        return CachedImages(
            compute_features(encode, images, processor, views=views, augmentation=augmentation, progress=False)
        )

    def live(views, augmentation):
        return LiveImages(classifier, images, processor, augmentation, views)

    def train(kind):
        shots = Shots(kind(views, "coop"), kind(1, "none"))
        fitted = fit_adapter(classifier, "clip_adapter", shots, overrides=settings)
        weights = torch.cat([p.detach().flatten() for p in fitted.model.parameters() if p.requires_grad])
        fitted.unload()
        return weights

    return Row(
        f"CLIP-Adapter, {len(images)} images, {views} augmented views, {epochs} epochs, embedded model",
        {OURS: lambda: train(cached), "image encoder every step": lambda: train(live)},
        {
            "image encoder every step": 0.9 * epochs / (views + 1)
        },  # encoder passes: each view once, and the image without augmentation
        error=relative_error,
        tolerance=1e-4,  # rounding of 60 steps
    )


def _smooth_images(count: int, width: int, height: int) -> list:
    """Smooth like photographs."""
    from PIL import Image

    coarse = torch.rand(count, 3, height // 8, width // 8, generator=torch.Generator().manual_seed(0))
    smooth = F.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1).mul(255).byte()
    return [Image.fromarray(p.permute(1, 2, 0).contiguous().numpy()) for p in smooth]


def image_processor(small: bool, width: int = 500, height: int = 375) -> Row:
    """Decoded images -> pixel values."""
    from transformers import CLIPImageProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    from hf_clip_variants.modeling.clip_classifier.image_processing_clip_classifier import CLIPClassifierImageProcessor

    count = 2 if small else 16
    images = _smooth_images(count, width, height)
    peer, pil = "transformers CLIPImageProcessor", "transformers CLIPImageProcessorPil"
    processors = {OURS: CLIPClassifierImageProcessor(), peer: CLIPImageProcessor(), pil: CLIPImageProcessorPil()}

    large = width > 1000
    return Row(
        f"{count} images of {width} x {height}",
        {case: lambda p=p: p(images, return_tensors="pt").pixel_values for case, p in processors.items()},
        {peer: 3 if large else 1.7, pil: 4},
        error=lambda ours, theirs: (ours - theirs).abs().max().item(),
        tolerance={peer: 0, pil: 0.02},  # bit by bit; one grey level, normalised
        peak=large,
    )


def image_processor_large(small: bool) -> Row:
    return image_processor(small, width=1600, height=1200)


def image_files(small: bool, width: int = 500, height: int = 375) -> Row:
    """JPEG files -> pixel values: decoding is the same in both, and most of the work."""
    from PIL import Image
    from transformers import CLIPImageProcessor

    from hf_clip_variants.modeling.clip_classifier.image_processing_clip_classifier import CLIPClassifierImageProcessor

    files = [Path(_temporary.name) / f"{width}-{number}.jpg" for number in range(2 if small else 16)]
    for image, file in zip(_smooth_images(len(files), width, height), files, strict=True):
        image.save(file, quality=90)
    processor, peer, name = CLIPClassifierImageProcessor(), CLIPImageProcessor(), "Pillow and CLIPImageProcessor"

    def theirs():
        return peer([Image.open(file).convert("RGB") for file in files], return_tensors="pt").pixel_values

    return Row(
        f"{len(files)} JPEG files of {width} x {height}, decoded and processed",
        {OURS: lambda: processor([str(file) for file in files], return_tensors="pt").pixel_values, name: theirs},
        {name: 1.7 if width > 1000 else 1.3},
        error=lambda ours, theirs: (ours - theirs).abs().max().item(),
        tolerance=0,
        peak=width > 1000,
    )


def image_files_large(small: bool) -> Row:
    return image_files(small, width=1600, height=1200)


def run_python(code: str) -> Callable[[], None]:
    return lambda: subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def output_of(arguments: list[str]) -> str:
    """What a Python program prints. RuntimeError, with its errors, where it fails."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"python {arguments[0]} failed:\n{done.stderr}")
    return done.stdout


def import_row(ours: str, peer: str) -> Row:
    return Row(
        "fresh interpreter, CPU time",
        {OURS: run_python(ours), peer: run_python(peer)},
        {peer: 1 / 1.15},
        clock=children_time,
    )


def import_package(small: bool) -> Row:
    return import_row("import hf_clip_variants", "from transformers import AutoModel")


def import_and_use(small: bool) -> Row:
    """What the registration costs a program that loads models by their Auto class."""
    return import_row(
        "import hf_clip_variants; from transformers import AutoModel", "from transformers import AutoModel"
    )


def import_classifier(small: bool) -> Row:
    return import_row("from hf_clip_variants import CLIPClassifier", "from transformers import CLIPModel")


def cli_help(small: bool) -> Row:
    scripts = Path(sys.executable).parent

    def run(program):
        return lambda: subprocess.run([scripts / program, "--help"], check=True, capture_output=True)

    return Row(
        "fresh interpreter, CPU time",
        {OURS: run("hf-clip-variants"), "hf --help": run("hf")},
        {"hf --help": 1 / 1.3},
        clock=children_time,
    )


def _image_encoders(small: bool):
    """A frozen classifier and pixels for it, as `predict` and `adapt` have them."""
    clip = make_clip(small, vision=True)
    size, images = clip.config.vision_config.image_size, 4 if small else 32
    pixels = torch.randn(images, 3, size, size, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def official():
        return clip.get_image_features(pixels).pooler_output

    return make_classifier(clip), pixels, official


def image_encoder(small: bool) -> Row:
    """Frozen image encoder on a CPU: parts of 8 images, QuickGELU in place, the last layer for the class token."""
    classifier, pixels, official = _image_encoders(small)

    @torch.no_grad()
    def ours():
        return classifier.pooled_image_features(pixels)

    return Row(
        f"{len(pixels)} images in one batch, frozen ViT-B/32 image encoder, fp32",
        {OURS: ours, "transformers CLIPModel": official},
        {"transformers CLIPModel": 1.1},
        error=relative_error,
    )


def image_encoder_int8(small: bool) -> Row:
    """The same with `--precision int8`. Not exact: the error is that of int8."""
    from hf_clip_variants.evaluation.precision import reduce_precision

    classifier, pixels, official = _image_encoders(small)
    reduced = None if small else reduce_precision(classifier, "int8")  # tiny layers stay as they are

    @torch.no_grad()
    def ours():
        with reduced.used() if reduced else nullcontext():
            return classifier.pooled_image_features(pixels)

    return Row(
        f"{len(pixels)} images in one batch, frozen ViT-B/32 image encoder, linear layers in int8",
        {OURS: ours, "transformers CLIPModel": official},
        {"transformers CLIPModel": 2},
        error=relative_error,
        tolerance=0.05,
    )


ROWS: dict[str, Callable[[bool], Row]] = {
    "class_embeddings": class_embeddings,
    "coop_step": coop_step,
    "coop_step_16": coop_step_long_context,
    "serving": serving,
    "serving_batch": serving_batch,
    "tip_search": tip_search,
    "tip_f_epoch": tip_f_epoch,
    "features_cached": features_cached,
    "image_encoder": image_encoder,
    "image_encoder_int8": image_encoder_int8,
    "image_processor": image_processor,
    "image_processor_large": image_processor_large,
    "image_files": image_files,
    "image_files_large": image_files_large,
    "import": import_package,
    "import_auto_model": import_and_use,
    "import_classifier": import_classifier,
    "cli_help": cli_help,
}
