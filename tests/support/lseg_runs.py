"""Small LSeg models for tests."""

import copy
from collections.abc import Callable

import torch
from tiny import copy_of


# Arguments of a configuration that are wrong, and what the error says.
LSEG_BAD_VALUES = (
    ({"projection_dim": 0}, "projection_dim: 0"),
    ({"temperature": 0.0}, "temperature: 0.0"),
    ({"head_block": "conv"}, "head_block"),
    ({"block_depth": -1}, "block_depth: -1, expected a number in 0..100"),
    ({"block_activation": "gelu"}, "block_activation"),
    ({"readout_type": "mean"}, "readout_type"),
    ({"backbone_out_indices": [0, 1, 2]}, r"backbone_out_indices: \[0, 1, 2\], expected four layers"),
    ({"backbone_out_indices": [0, 1, 2, 5]}, r"backbone_out_indices: .*expected four layers in 0..4"),
    ({"neck_hidden_sizes": [1, 2, 3]}, r"neck_hidden_sizes: \[1, 2, 3\], expected four"),
    ({"auxiliary_loss_weight": -1.0}, "auxiliary_loss_weight: -1.0, expected a number >= 0"),
    ({"freeze_batch_norm": "no"}, "freeze_batch_norm"),
    ({"background": "  "}, "background: '  ' is blank"),
    ({"vision_config": {"hidden_size": 10**9}}, "vision_config.hidden_size: 1000000000"),
    (
        {"vision_config": {"num_attention_heads": 5}},
        "vision_config.num_attention_heads: 5 does not divide",
    ),
    ({"vision_config": {"patch_size": 14}}, "vision_config.patch_size: 14, expected one of 4, 8, 16, 32"),
    ({"vision_config": {"image_size": 8}}, "vision_config.patch_size: 16 is larger than image_size"),
    ({"vision_config": {"model_type": "bert"}}, "vision_config.model_type: 'bert', expected one of dpt"),
    ({"vision_config": {"is_hybrid": True}}, "vision_config.is_hybrid: given, expected a plain Vision"),
    ({"vision_config": {"backbone": "evil/repo"}}, "vision_config.backbone: given"),
    (
        {"text_config": {"model_type": "bert"}},
        "text_config.model_type: 'bert', expected 'clip_text_model'",
    ),
    ({"text_config": {"num_hidden_layers": -1}}, "text_config.num_hidden_layers: -1"),
)


_BLOCKS = {0: None, 1: "bottleneck", 2: "depthwise"}  # the official arch_option

TEXT = {
    "vocab_size": 4038,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "bos_token_id": 4036,
    "eos_token_id": 4037,
    "pad_token_id": 4037,
}
VISION = {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 5,
    "num_attention_heads": 3,
    "image_size": 48,
    "patch_size": 16,
}
RESNET = {"model_type": "resnet", "embedding_size": 6, "hidden_sizes": [8, 12, 16, 20], "depths": [1, 2, 1, 1]}
DECODER = {"neck_hidden_sizes": [6, 10, 14, 18], "fusion_hidden_size": 12, "backbone_out_indices": [0, 1, 3, 4]}


def lseg_config(encoder: str = "dpt", **fields):
    """A configuration in which no size is the default; `encoder` is a kind of image encoder."""
    from hf_clip_variants import LSegConfig

    values = {"text_config": TEXT, "projection_dim": 20, "temperature": 0.1}
    if encoder == "resnet":
        values |= {"vision_config": RESNET | {"image_size": 64}, "fusion_hidden_size": 12}
    else:
        values |= DECODER | {"vision_config": {"model_type": encoder} | VISION}
    return LSegConfig(**copy.deepcopy(values | fields))


def lseg_model(encoder: str = "dpt", seed: int = 0, **fields):
    """An `LSegForSemanticSegmentation` in eval mode, whose batch normalisation is not trivial."""
    from hf_clip_variants import LSegForSemanticSegmentation

    def build():
        torch.manual_seed(seed)
        model = LSegForSemanticSegmentation(lseg_config(encoder, **fields)).eval()
        open_statistics(model)
        return model

    return copy_of(f"lseg {encoder} {seed} {fields}", build)


def open_statistics(model) -> None:
    """New position embeddings are zero, and the statistics of batch normalisation trivial."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif name.endswith("running_mean"):
                tensor.normal_(std=0.1)
            elif name.endswith(("position_embeddings", "cls_token", "class_embeddings")):
                tensor.normal_(std=0.5)


def lseg_ids(labels: int = 3, length: int = 6, seed: int = 1, images: int | None = None) -> torch.Tensor:
    """(labels, length) ids of texts, or (images, labels, length)."""
    shape = (labels, length) if images is None else (images, labels, length)
    ids = torch.randint(0, 4036, shape, generator=torch.Generator().manual_seed(seed))
    ids[..., 0], ids[..., -1] = TEXT["bos_token_id"], TEXT["eos_token_id"]
    return ids


def lseg_inputs(batch: int, size: tuple[int, int] = (40, 64)) -> dict[str, torch.Tensor]:
    """Images whose height is no multiple of 32, three texts of each, and label maps with ignored pixels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (batch, *size), generator=generator)
    labels[:, :5] = 255
    return {
        "pixel_values": torch.randn(batch, 3, *size, generator=generator),
        "input_ids": lseg_ids(labels=3, images=batch)[:, :, None],
        "labels": labels,
    }


# ---- official weights


def official_lseg_options(meta: dict) -> dict:
    """The converter's options for a fixture: what its weights do not show."""
    options = {"text_heads": meta["clip_text"]["transformer_heads"], "vision_heads": meta["vit"]["num_heads"]}
    if "resnet" not in meta.get("backbone", ""):
        options["hooks"] = meta["hooks"]
    if _BLOCKS[meta.get("arch_option", 0)]:
        options |= {"head_block": _BLOCKS[meta["arch_option"]], "block_depth": meta["block_depth"]}
        options["block_activation"] = meta["activation"]
    return options


def with_a_new_encoder(fixture) -> Callable:
    """A function that builds a model with the fixture's decoder and text encoder and another block. Its image encoder
    is a new ResNet with the right channels."""
    from hf_clip_variants.modeling.lseg.convert_lseg import lseg_from_official, to_official
    from hf_clip_variants.modeling.lseg.spatial_blocks_lseg import LSegSpatialBlock

    resnet = RESNET | {"hidden_sizes": fixture.meta["reassemble_channels"]}
    donor = lseg_model("resnet", vision_config=resnet)
    encoder = to_official(donor.state_dict(), donor.config)
    encoder = {name: tensor for name, tensor in encoder.items() if name.startswith("pretrained.")}
    heads = fixture.meta["clip_text"]["transformer_heads"]
    whole = lseg_from_official(fixture.state_dict | encoder, text_heads=heads, head_block="bottleneck")
    weights = whole.head_block.state_dict()

    def build(head_block: str, block_depth: int = 0, block_activation: str = "relu"):
        model = copy.copy(whole)
        model._modules = dict(whole._modules, head_block=None)
        if head_block != "none":
            model.head_block = LSegSpatialBlock(head_block, block_depth, block_activation)
            model.head_block.load_state_dict(weights)
        return model

    return build
