"""Rows of `benchmark_speed.py` for models that segment by text: `SEGMENTATION_ROWS`, merged into `speed_rows.ROWS`.

The peers are the same weights in the order of the official code (isl-org/lang-seg, whose GPU code does not run here):
all labels go through the text encoder, at 77 tokens, with every image or window, and pixels are normalised before they
are compared.
"""

from functools import cache

import torch


@cache
def lseg(small: bool, variant: str, labels: int):
    """(model with stored labels, the labels' ids padded to 77 tokens), random weights."""
    from hf_clip_variants import LSegConfig, LSegForSemanticSegmentation

    torch.manual_seed(0)
    text = {"vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407}
    if small:
        sizes = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 1, "num_hidden_layers": 4}
        config = LSegConfig(
            text_config=text | sizes,
            vision_config=sizes | {"patch_size": 16, "image_size": 64},
            neck_hidden_sizes=[8, 8, 8, 8],
            fusion_hidden_size=16,
        )
    else:
        config = LSegConfig.of_variant(variant, text_config=text)
    model = LSegForSemanticSegmentation(config).eval().requires_grad_(False)
    ids = torch.full((labels, 77), 49407)
    ids[:, 0] = 49406
    ids[:, 1:3] = torch.randint(0, 49000, (labels, 2), generator=torch.Generator().manual_seed(0))
    # What `set_labels` stores; names of one or two words have few tokens.
    model.class_embeddings = model.get_class_embeddings(ids[:, :5].contiguous())
    model.config.id2label = {label: str(label) for label in range(labels)}
    return model, ids


@torch.inference_mode()
def official_order(model, pixel_values: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Scores (B, N, H, W), with texts encoded and pixels normalised as in `LSegNet.forward`."""
    from torch.nn import functional as F

    from hf_clip_variants.modeling.lseg.spatial_blocks_lseg import pixel_text_scores_reference

    features, _ = model.lseg.encode_image(pixel_values)
    pixels = model.lseg.pixel_projection(model.lseg.decode(features, *pixel_values.shape[-2:])[-1])
    texts = model.get_class_embeddings(ids)
    scores = pixel_text_scores_reference(pixels, texts, model.config.temperature)
    return F.interpolate(scores, scale_factor=2, mode="bilinear", align_corners=True)


def lseg_forward(small: bool):
    """One image after the first one."""
    from speed_rows import OURS, Row, relative_error

    labels, side = (5, 64) if small else (150, 480)
    model, ids = lseg(small, "vitl16", labels)
    image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))

    @torch.inference_mode()
    def ours():
        return model(image).logits

    return Row(
        f"LSeg ViT-L/16, one image {side} x {side}, {labels} stored labels, fp32",
        {OURS: ours, "official order": lambda: official_order(model, image, ids)},
        {"official order": 1.6},
        error=relative_error,
        tolerance=1e-4,
    )


def lseg_windows(small: bool):
    """Evaluation of one image in windows, mirrored ones too, at two scales, as `LSeg_MultiEvalModule` does."""
    from speed_rows import OURS, Row, relative_error

    labels, side, window = (5, 80, 64) if small else (150, 480, 320)
    model, ids = lseg(small, "vitb32", labels)
    image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    options = {"mode": "pad", "scales": (1.0, 1.25), "flip": True, "reduce": "sum", "align_corners": True}

    @torch.inference_mode()
    def ours():
        return model.sliding_window_logits(image, window, batch_size=8, **options)

    @torch.inference_mode()
    def official():
        from hf_clip_variants.modeling.dense.sliding_window import sliding_window_scores

        return sliding_window_scores(
            lambda windows: official_order(model, windows, ids), image, window, batch_size=1, **options
        )

    return Row(
        f"LSeg ViT-B/32, {side} x {side} in windows of {window}, mirrored, 2 scales, {labels} stored labels, fp32",
        {OURS: ours, "official order": official},
        {"official order": 1.6},
        error=relative_error,
        tolerance=1e-4,
    )


def groupvit_forward(small: bool):
    """One image after the first one; the same weights in transformers, whose rule gives other labels."""
    from speed_rows import OURS, Row, relative_error
    from transformers import GroupViTConfig as TheirConfig
    from transformers import GroupViTModel as TheirModel

    from hf_clip_variants import GroupViTConfig, GroupViTForSemanticSegmentation

    torch.manual_seed(0)
    labels = 5 if small else 21
    text = {"vocab_size": 99, "bos_token_id": 97, "eos_token_id": 98} if small else {}
    text |= {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1} if small else {}
    vision = {"hidden_size": 32, "num_attention_heads": 1, "depths": [1, 1, 1]} if small else {}
    theirs = TheirModel(TheirConfig(text_config=text, vision_config=vision)).eval().requires_grad_(False)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name.endswith(("group_token", "position_embeddings")):
                parameter.normal_(std=0.02)  # they start at zero there
    config = {"text_config": text, "vision_config": vision, "num_noun_prompts": 0}
    model = GroupViTForSemanticSegmentation(GroupViTConfig(**config)).eval().requires_grad_(False)
    model.load_state_dict(theirs.state_dict())
    ids = torch.randint(0, 90, (labels, 8), generator=torch.Generator().manual_seed(0))
    ids[:, -1] = theirs.config.text_config.eos_token_id
    model.class_embeddings = model.get_class_embeddings(ids)
    model.config.id2label = {label: str(label) for label in range(labels)}
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))

    @torch.inference_mode()
    def ours():
        return model(image).image_embeds

    @torch.inference_mode()
    def transformers():
        return theirs(pixel_values=image, input_ids=ids, output_segmentation=True).image_embeds

    return Row(
        f"GroupViT, one image 224 x 224, {labels} stored labels, fp32",
        {OURS: ours, "transformers GroupViTModel": transformers},
        {"transformers GroupViTModel": 1.2},
        error=relative_error,
        tolerance=1e-4,
    )


SEGMENTATION_ROWS = {
    "groupvit_forward": groupvit_forward,
    "lseg_forward": lseg_forward,
    "lseg_windows": lseg_windows,
}
