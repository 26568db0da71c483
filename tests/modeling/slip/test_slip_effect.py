"""The claim of SLIP at small scale: after the same number of steps on the same images and captions, its image features
contain more than the captions say, unlike those of CLIP."""

from functools import partial

import pytest
import torch
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as tv

from hf_clip_variants import PretrainingCallback, SLIPConfig, SLIPForPreTraining
from hf_clip_variants.data import TwoViews, load_emoji
from hf_clip_variants.data.augmentation.two_views import IMAGENET_MEAN, IMAGENET_STD, VIEWS
from hf_clip_variants.modeling.decoding.image_decoding import decode_image
from hf_clip_variants.training.lr_schedules import warmup_cosine
from hf_clip_variants.training.parameter_groups import weight_decay_groups


pytestmark = pytest.mark.slow

SIZE, STEPS, BATCH, VIEWS_PER_IMAGE = 32, 110, 48, 4
CROPS = (0.3, 1.0)  # a crop of 8 % of a drawing of 64 pixels would show nothing
STYLES = ("notov1", "fluent3d", "fluentflat", "emojione")  # the first two are not trained on
CAPTIONS = torch.tensor([[98, 5, 6, 99], [98, 7, 8, 99]])  # "an animal or a plant", "a food or a drink"


@pytest.fixture(scope="module")
def pairs():
    """Views by name, (V, N, 3, 32, 32), and the captions (N, 4), which only say to which of two groups an image
    belongs.
    """
    images, views = load_emoji(["fluentflat", "emojione"]), TwoViews(SIZE, view_scale=CROPS, seed=0)
    made = {name: [] for name in VIEWS}
    for epoch in range(VIEWS_PER_IMAGE):
        views.set_epoch(epoch)
        rows = [views.views(images.image(i)) for i in range(len(images))]
        for name in VIEWS:
            made[name].append(torch.stack([row[name] for row in rows]))
    animals = set(load_emoji("fluentflat", groups="animals-nature").class_names)
    is_animal = [images.class_names[label] in animals for label in images.dataset["label"]]
    return {name: torch.stack(found) for name, found in made.items()}, CAPTIONS[torch.tensor(is_animal).long()]


def train(pairs, ssl_scale) -> tuple[SLIPForPreTraining, list[dict[str, float]]]:
    views, captions = pairs
    text = {
        "vocab_size": 100,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    text |= {"max_position_embeddings": 4, "bos_token_id": 98, "eos_token_id": 99, "pad_token_id": 99}
    vision = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes = {"projection_dim": 32, "ssl_mlp_dim": 128, "ssl_emb_dim": 64, "ssl_scale": ssl_scale}
    torch.manual_seed(0)
    vision |= {"image_size": SIZE, "patch_size": 8}
    model = SLIPForPreTraining(SLIPConfig(text_config=text, vision_config=vision, **sizes)).train()
    optimizer = torch.optim.AdamW(weight_decay_groups(model, 0.1), lr=3e-3, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, partial(warmup_cosine, peak=3e-3, num_steps=STEPS, warmup_steps=10)
    )
    callback, draw, outputs = PretrainingCallback(), torch.Generator().manual_seed(0), []
    for step in range(STEPS):
        rows = torch.randperm(len(captions), generator=draw)[:BATCH]
        versions = torch.randint(VIEWS_PER_IMAGE, (BATCH,), generator=draw)
        used = VIEWS if ssl_scale else VIEWS[:1]
        output = model(captions[rows], **{name: views[name][versions, rows] for name in used})
        output.loss.backward()
        outputs.append({name: output[name].item() for name in ("clip_loss", "ssl_loss") if name in output})
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        callback.after_step(model, (step + 1) / STEPS)
    return model.eval(), outputs


@torch.no_grad()
def matched_views(model, style: str) -> float:
    """Share of a style's 190 images whose augmented view is more similar to the image itself than to any other, by the
    features of the image encoder."""
    images, views = load_emoji(style), TwoViews(SIZE, view_scale=CROPS, seed=99)
    originals = [images.image(i) for i in range(len(images))]
    small = [tv.pil_to_tensor(decode_image(one).resize((SIZE, SIZE))).float() / 255 for one in originals]
    features = []
    for pixels in (
        torch.stack([views.views(one)["pixel_values_aug1"] for one in originals]),
        torch.stack([tv.normalize(one, IMAGENET_MEAN, IMAGENET_STD) for one in small]),
    ):
        tokens = model.vision_model(pixels).last_hidden_state[:, 0]
        features.append(F.normalize(tokens - tokens.mean(0), dim=-1))
    return (features[0] @ features[1].T).argmax(1).eq(torch.arange(len(images))).float().mean().item()


def test_slip_matches_augmented_views_to_images_better_than_clip(pairs):
    (slip, losses), (clip, plain) = train(pairs, 1.0), train(pairs, 0.0)
    scores = {
        name: [matched_views(model, style) for style in STYLES] for name, model in (("slip", slip), ("clip", clip))
    }
    for styles in (slice(0, 2), slice(2, 4)):
        assert sum(scores["slip"][styles]) > 1.5 * sum(scores["clip"][styles]), scores
    last = [{name: sum(one[name] for one in found[-10:]) / 10 for name in found[0]} for found in (losses, plain)]
    assert last[0]["ssl_loss"] < losses[0]["ssl_loss"] - 0.5
    assert last[0]["clip_loss"] < last[1]["clip_loss"] + 0.2, "captions are learned as well as by CLIP"
