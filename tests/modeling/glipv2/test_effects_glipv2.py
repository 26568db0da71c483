"""What each of GLIPv2's losses is for, on drawn scenes, against the same model trained without it."""

import pytest
import torch
from glipv2_runs import MASK, glipv2_model, glipv2_processor

from hf_clip_variants.modeling.detection.instance_masks import whole_masks


NAMES = ["cat", "dog", "bird"]  # here the red, the green and the blue ellipse
WITHOUT = {"inter_image_weight": 0.0, "mlm_weight": 0.0, "mask_weight": 0.0}


def scenes(count: int, seed: int):
    """Images (N, 3, 64, 64) with an ellipse each, which names they show, and labels with masks."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(*2 * (torch.arange(64) + 0.5,), indexing="ij")
    pixels, labels = 0.1 * torch.randn(count, 3, 64, 64, generator=generator), []
    kinds = torch.arange(count) % len(NAMES)
    for i, kind in enumerate(kinds.tolist()):
        width, height = (torch.rand(2, generator=generator) * 16 + 20).tolist()
        left, top = (torch.rand(2, generator=generator) * torch.tensor([64 - width, 64 - height])).tolist()
        middle = left + width / 2, top + height / 2
        mask = ((x - middle[0]) / width) ** 2 + ((y - middle[1]) / height) ** 2 <= 0.25
        pixels[i, kind, mask] = 2
        box = torch.tensor([[*middle, width, height]]) / 64
        labels.append({"boxes": box, "masks": mask[None], "class_labels": torch.tensor([0])})
    return pixels, kinds, labels


def batch(count: int, seed: int) -> dict:
    """The first half with class names for prompts, the second with sentences, whose object's name is hidden."""
    pixels, kinds, labels = scenes(count, seed)
    captions, phrases, half = [], [], count // 2
    for i, kind in enumerate(kinds.tolist()):
        if i < half:
            caption, spans = glipv2_processor().caption_of(NAMES)
            labels[i]["class_labels"] = torch.tensor([kind])
        else:
            caption = f"a {NAMES[kind]} on the pizza"
            spans = [[(2, 2 + len(NAMES[kind]))]]
        captions.append(caption)
        phrases.append(spans)
    prompts = glipv2_processor()(captions=captions, phrases=phrases)
    is_caption = torch.arange(count) >= half
    hidden = torch.full_like(prompts.input_ids, -100)
    hidden[half:, 2] = prompts.input_ids[half:, 2]
    ids = torch.where(hidden >= 0, MASK, prompts.input_ids)
    inputs = dict(prompts) | {"input_ids": ids, "is_caption": is_caption, "mlm_labels": hidden}
    return inputs | {"pixel_values": pixels, "labels": labels}


def train(**fields):
    torch.manual_seed(0)
    model = glipv2_model(**fields).train()
    optimizer = torch.optim.AdamW(model.parameters(), 4e-3)
    for step in range(90):
        loss = model(**batch(6, step)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


@torch.no_grad()
def measure(model) -> dict[str, float]:
    """On scenes that were not trained on: the share of hidden words that are right, of regions whose nearest word in
    another image's prompt is their class, and the overlap of masks with what is there."""
    inputs = batch(24, 10_000)
    outputs = model(**inputs)
    asked = inputs["mlm_labels"] >= 0
    words = (outputs.mlm_logits[asked].argmax(dim=1) == inputs["mlm_labels"][asked]).float().mean()
    # Regions of the first half are compared with a prompt of a size of its own.
    pixels, kinds, labels = scenes(24, 20_000)
    prompt = glipv2_processor()(text=NAMES[::-1])
    features, _ = model.feature_maps(pixels)
    flat = torch.cat([one.flatten(2) for one in features], dim=2).transpose(1, 2)
    anchors = torch.cat(model.anchors_of([one.shape[-2:] for one in features]))
    middles = torch.cat([label["boxes"][:, :2] for label in labels]) * 64
    nearest = torch.cdist(middles, (anchors[:64, :2] + anchors[:64, 2:]) / 2).argmin(dim=1)
    of_words = model.encode_prompts(prompt.input_ids, prompt.attention_mask)[0]
    regions, of_words = model.contrast(flat[torch.arange(24), nearest], of_words)
    places = [int(row.nonzero()) for row in prompt.phrase_map[0]]
    right = (regions @ of_words[places].T).argmax(dim=1) == len(NAMES) - 1 - kinds
    found = glipv2_processor().post_process_grounded_object_detection(model(pixels, **prompt, output_masks=True))
    overlaps = []
    for one, label in zip(found, labels, strict=True):
        mask = next(whole_masks(one["masks"][:1], one["boxes"][:1], (64, 64)))
        overlaps.append(((mask & label["masks"][0]).sum() / (mask | label["masks"][0]).sum()).item())
    return {"words": float(words), "regions": float(right.float().mean()), "masks": sum(overlaps) / len(overlaps)}


@pytest.mark.slow
def test_each_loss_gives_what_the_model_without_it_has_not():
    found, without = measure(train()), measure(train(**WITHOUT))
    assert found["words"] > 0.9 and without["words"] < 0.5
    assert found["regions"] > 0.9 and without["regions"] < 0.7
    assert found["masks"] > without["masks"] + 0.2
