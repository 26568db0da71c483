"""A tiny VideoCLIP, batches for it, and synthetic videos whose seconds say their class."""

import torch
from tiny import copy_of

from hf_clip_variants import VideoCLIPConfig, VideoCLIPModel
from hf_clip_variants.modeling.videoclip.processing_videoclip import videoclip_processor


WORDS = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *"a the cat dog taco pizza owl crab moves turns grows".split(),
]
WORDS += [*"to left right up down . , ##s ##ing and then thing step".split(), *(f"w{i}" for i in range(12))]
CLS, SEP = WORDS.index("[CLS]"), WORDS.index("[SEP]")
RATE, SIZE, SECONDS = 4, 24, 3  # frames a second, pixels, and seconds of a batch's videos
TEXT = {
    "vocab_size": 48,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 20,
    "type_vocab_size": 2,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
VISION = {
    "image_size": SIZE,
    "frames_per_second": RATE,
    "stem_width": 6,
    "conv_width": 8,
    "block_widths": [[3, 4, 5, 2, 3, 2 + number % 2] for number in range(9)],
    "projection_dim": 10,
}
# Arguments of a configuration that are wrong, and what the error says.
VIDEOCLIP_BAD_VALUES = (
    ({"feature_size": 0}, "feature_size: 0"),
    ({"feature_size": 11}, "vision_config.projection_dim: 10, expected 11"),
    ({"max_video_length": 30}, "video_config.max_position_embeddings: 20, expected at least 32"),
    ({"max_text_length": 30}, "text_config.max_position_embeddings: 20, expected at least 30"),
    ({"max_text_length": 2}, "max_text_length: 2, expected at least 3"),
    ({"window_stride": 0}, "window_stride: 0"),
    ({"window_stride": 9}, "window_stride: 9, expected at most max_video_length"),
    ({"sep_token_id": 48}, "sep_token_id: 48, expected 0..47"),
    ({"loss_direction": "all"}, "loss_direction: 'all', expected one of both, text_to_video, video_to_text"),
    ({"normalize_features": "yes"}, "normalize_features"),
    ({"vision_config": {"frames_per_second": 5}}, "frames_per_second: 5, expected an even number"),
    ({"vision_config": {"block_widths": [[3, 4, 5, 2, 3, 2]]}}, "block_widths: .*expected 6 numbers > 0 of each of 9"),
    ({"vision_config": {"stem_width": 10**9}}, "stem_width: 1000000000"),
    ({"vision_config": {"batch_norm_eps": 0.0}}, "batch_norm_eps: 0.0"),
    ({"vision_config": {"model_type": "clip_vision_model"}}, "vision_config.model_type: 'clip_vision_model'"),
    ({"video_config": {"hidden_size": 48}}, "video_config.hidden_size: 48, expected 24"),
    ({"text_config": {"model_type": "gpt2"}}, "text_config.model_type: 'gpt2', expected 'bert'"),
    ({"text_config": {"num_hidden_layers": -1}}, "text_config.num_hidden_layers: -1"),
    ({"text_config": {"is_decoder": True}}, "got a decoder, expected encoders"),
)


def videoclip_config(**fields) -> VideoCLIPConfig:
    """A configuration in which no size is the default, with S3D-G."""
    sizes = {"feature_size": 10, "max_video_length": 8, "max_text_length": 12, "window_stride": 4}
    tokens = {"cls_token_id": CLS, "sep_token_id": SEP}
    parts = {"text_config": TEXT, "video_config": TEXT | {"num_hidden_layers": 2}, "vision_config": VISION}
    return VideoCLIPConfig(**parts | sizes | tokens | fields)


def coarse_frames(count: int, seed: int) -> torch.Tensor:
    """(count, RATE, 3, SIZE, SIZE) of few colours: seconds of fine noise are all alike to S3D-G."""
    colours = torch.rand(count, 3, 2, 3, 3, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(colours, (RATE, SIZE, SIZE)).transpose(1, 2)


@torch.no_grad()
def with_statistics(model) -> None:
    """S3D-G's statistics become those of coarse noise: with those of a new one, nothing reaches its last layer."""
    if not model.config.use_s3d:
        return
    norms = [module for module in model.s3d.modules() if isinstance(module, torch.nn.BatchNorm3d)]
    for norm in norms:
        norm.momentum = 1.0
    model.s3d.train()(coarse_frames(16, 5).transpose(1, 2))
    model.s3d.eval()
    for norm in norms:
        norm.momentum = 0.1


def videoclip_model(seed: int = 0, **fields) -> VideoCLIPModel:
    def build():
        torch.manual_seed(seed)
        model = VideoCLIPModel(videoclip_config(**fields)).eval()
        with_statistics(model)
        return model

    return copy_of(f"videoclip {seed} {sorted(fields.items())}", build)


def videoclip_texts(batch: int, seed: int = 0) -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 30, (batch, 7), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    ids[:, 0], ids[:, 6] = CLS, SEP
    ids[1::2, 4], ids[1::2, 5:], mask[1::2, 5:] = SEP, 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def seconds_mask(batch: int) -> torch.Tensor:
    mask = torch.ones(batch, SECONDS, dtype=torch.long)
    mask[1::3, SECONDS - 1 :] = 0
    mask[2::3, 1:] = 0
    return mask


def videoclip_features(batch: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    """Features of seconds, and texts."""
    features = torch.randn(batch, SECONDS, 10, generator=torch.Generator().manual_seed(seed + 1))
    return videoclip_texts(batch, seed) | {"video_features": features, "video_mask": seconds_mask(batch)}


def videoclip_frames(batch: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    """Frames, with the mask of frames that the processor gives, and texts."""
    pixels = coarse_frames(batch * SECONDS, seed + 2).reshape(batch, SECONDS * RATE, 3, SIZE, SIZE)
    mask = seconds_mask(batch).repeat_interleave(RATE, 1)
    return videoclip_texts(batch, seed) | {"pixel_values_videos": pixels, "video_mask": mask}


def videoclip_tokenizer():
    from transformers import BertTokenizerFast

    tokenizer = BertTokenizerFast(vocab={word: i for i, word in enumerate(WORDS)}, do_lower_case=True)
    tokenizer.model_max_length = 12
    return tokenizer


def tiny_processor(**settings):
    """As the released one, at the tiny model's size and rate."""
    return videoclip_processor(videoclip_tokenizer(), SIZE, 8, fps=RATE, **settings)


# The case of tests/support/model_contract.py. Of features: a random S3D-G enlarges every rounding.
VIDEOCLIP = {
    "name": "videoclip",
    "config": videoclip_config,
    "inputs": videoclip_features,
    "processor": lambda: tiny_processor(do_sample_frames=False),  # its videos have no rate
    "output": "logits_per_video",
    "by_row": ("video_embeds", "text_embeds"),
    "loss_options": {"return_loss": True},
    "loss_is_of_the_batch": True,
    "prepare": with_statistics,
    "untrained": ("s3d.",),
    "bad_values": VIDEOCLIP_BAD_VALUES,
}


# ---- synthetic videos: features of a class and noise, captions that name the class

TOY_CLASSES = ("cat", "dog", "taco", "pizza", "owl", "crab", "step", "thing")


def toy_videos(
    count: int = 64, seconds: int = 14, noise: float = 0.5, seed: int = 0, prototypes: int = 9
) -> list[dict]:
    """Videos of one class each; `classes` of `toy_classes`. Others of the same `prototypes` have the same classes."""
    kinds = torch.randn(len(TOY_CLASSES), 10, generator=torch.Generator().manual_seed(prototypes))
    generator, videos = torch.Generator().manual_seed(seed), []
    for number in range(count):
        kind = number % len(TOY_CLASSES)
        features = kinds[kind] + noise * torch.randn(seconds, 10, generator=generator)
        said = ("the {} moves", "a {} turns to the left", "a {} grows")
        captions = [
            {"start": 4.0 * place, "end": 4.0 * place + 3, "text": text.format(TOY_CLASSES[kind])}
            for place, text in enumerate(said)
        ]
        videos.append({"features": features, "captions": captions, "kind": kind})
    return videos


def toy_pairs(videos=None, pairs: int = 2, **options):
    from hf_clip_variants.modeling.videoclip.pretraining_videoclip import PairSampling, VideoCLIPPairs

    sampling = options.pop("sampling", None) or PairSampling(text_length=(2, 8), video_length=(2, 8))
    return VideoCLIPPairs(
        toy_videos() if videos is None else videos,
        videoclip_tokenizer(),
        pairs,
        max_text_length=12,
        sampling=sampling,
        **options,
    )
