"""The contract of models: what every row of kind "model" in the registry must do.

`tests/modeling/test_common.py` runs it over `CASES`.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from actionclip_runs import ACTIONCLIP, ACTIONCLIP_CLASSIFIER
from clip4clip_runs import CLIP4CLIP_BAD_VALUES, CLIP4CLIP_CLASSIFIER, clip4clip_batch, clip4clip_config
from clip_vil_runs import CLIP_VIL_CASES
from depthclip_runs import DEPTHCLIP
from drawing_runs import CLIPASSO, CLIPDRAW
from fake_hub import hub_in_this_process
from fnd_clip_runs import FND_CLIP
from glip_runs import GLIP_BAD_VALUES, glip_collate, glip_config, glip_inputs, glip_processor
from glip_runs import with_open_weights as glip_open_weights
from glipv2_runs import GLIPV2, GLIPV2_ANSWERING, GLIPV2_CAPTIONING
from groupvit_runs import groupvit_batch, groupvit_config, segmentation_processor, with_statistics
from huggingface_hub.errors import StrictDataclassError
from lseg_runs import LSEG_BAD_VALUES, lseg_config, lseg_inputs, open_statistics
from painting_runs import VQGAN_CLIP
from pointclip_runs import POINTCLIP
from safetensors.torch import save_file
from slip_runs import slip_batch, slip_config
from tiny import CLASS_NAMES, copy_of, tiny_clip, tiny_clip_config, tiny_pixels, tiny_tokenizer
from video_anomaly_clip_runs import VIDEO_ANOMALY_CASE
from videoclip_runs import VIDEOCLIP
from vild_runs import VILD_BAD_VALUES, vild_collate, vild_config, vild_inputs, vild_processor, with_open_weights

from hf_clip_variants.registry import Method, method


@dataclass(frozen=True)
class ModelCase:
    """A tiny instance of a method. Functions build its parts when they are needed."""

    name: str  # name of the row in the registry
    config: Callable[[], Any]  # a configuration in which no size is the default
    inputs: Callable[[int], dict[str, torch.Tensor]]  # batch size -> inputs with labels
    part: str = "model"  # the row's main class, or the Auto class of another one
    backbone: Callable[[], Any] | None = None  # the transformers model whose checkpoints load into it
    encoders: dict[str, str] = field(default_factory=dict)  # attribute -> public class that loads this model's files
    processor: Callable[[], Any] | None = None
    bad_values: tuple[tuple[dict, str], ...] = ()  # configuration arguments -> what the error says
    output: str = "logits"
    auto_class: str = "AutoModel"  # used by the tests to load the model
    untrained: tuple[str, ...] = ()  # parameters without gradient: names, or their beginnings
    by_row: tuple[str, ...] = ()  # outputs with one row per input; default: `output`
    loss_options: dict[str, Any] = field(default_factory=dict)  # further arguments of forward that return a loss
    loss_is_of_the_batch: bool = False  # contrastive: half batches have other losses
    prepare: Callable[[Any], None] | None = None  # changes initial weights that would hide errors
    in_float32: tuple[str, ...] = ()  # parameters that stay in float32 in a half-precision model
    float32_output: bool = False  # scores of a half-precision model are in float32
    # Relative, between two loadings: sums in convolutions of 1 x 1 maps depend on the weights' place in memory.
    rounding: float = 0.0
    only_in_training: tuple[str, ...] = ()  # inputs that are nothing without labels
    collate: Callable[[list[dict]], dict] | None = None  # of rows for `Trainer`; default: transformers'

    @property
    def row(self) -> Method:
        return method(self.name)

    @property
    def id(self) -> str:
        return self.name if self.part == "model" else f"{self.name}-{self.part}"

    def make(self, seed: int = 0):
        def build():
            torch.manual_seed(seed)
            model = self.row.load(self.part)(self.config()).eval()
            if self.prepare:
                self.prepare(model)
            return model

        return copy_of(f"{self.id} {seed}", build)

    def loss(self, model, inputs) -> torch.Tensor:
        return model(**inputs, **self.loss_options).loss

    def check_same(self, actual: torch.Tensor, expected: torch.Tensor):
        torch.testing.assert_close(actual, expected, rtol=0, atol=self.rounding * expected.abs().max().item())

    def run(self, model, **inputs) -> torch.Tensor:
        with torch.no_grad():
            return model.eval()(**(inputs or self.inputs(4)))[self.output]


def _classifier_config():
    clip = tiny_clip_config().to_dict()
    config = method("clip_classifier").load("config")
    return config(
        **{name: clip[name] for name in ("text_config", "vision_config", "projection_dim")},
        id2label=dict(enumerate(CLASS_NAMES)),
        label2id={name: i for i, name in enumerate(CLASS_NAMES)},
        templates=["a photo of a {}.", "{}!"],
        prompt_length=7,
        tail_length=3,
    )


def _resnet_config():
    config = method("clip_resnet").load("config")
    text = tiny_clip_config(text_config={"projection_dim": 20}).text_config.to_dict()
    vision = {"hidden_size": 256, "depths": [1, 2, 1, 1], "num_attention_heads": 8, "image_size": 64}
    return config(text_config=text, vision_config=vision, projection_dim=20, logit_scale_init_value=2.0)


def _resnet_inputs(batch: int):
    ids = torch.randint(0, 4036, (batch, 7), generator=torch.Generator().manual_seed(1))
    ids[:, 0], ids[:, 6] = 4036, 4037
    ids[1::2, 5] = 4037
    return {"pixel_values": tiny_pixels(batch, size=64), "input_ids": ids}


def _with_open_branches(model):
    """A new ResNet's residual branches are zero (scale 0 in the last normalisation), and its statistics trivial."""
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var") or (tensor.dim() == 1 and name.endswith("weight")):
            tensor.uniform_(0.5, 1.5)
        elif name.endswith("running_mean"):
            tensor.normal_(std=0.1)


def _audioclip_config():
    config, resnet = method("audioclip").load("config"), _resnet_config().to_dict()
    audio = {
        "n_fft": 64,
        "hop_length": 20,
        "win_length": 50,
        "hidden_size": 128,
        "depths": [1, 2, 1, 1],
        "groups": 2,
        "width_per_group": 48,
    }
    return config(
        text_config=resnet["text_config"],
        vision_config=resnet["vision_config"],
        audio_config=audio,
        projection_dim=20,
        logit_scale_init_value=2.0,
        audio_logit_scale_init_value=1.5,
    )


def _audioclip_inputs(batch: int):
    audio = 5000 * torch.randn(batch, 1, 1300, generator=torch.Generator().manual_seed(2))
    return _resnet_inputs(batch) | {"input_features": audio}


def _with_fixed_filters(model):
    """Changes the filters as training would, and freezes them.

    Their gradients are normalised, and so do not scale with the loss, which the contract's test of accumulation
    requires. They are trained in test_audioclip.py.
    """
    _with_open_branches(model)
    filters = model.audio_model.fbsp.requires_grad_(False)
    with torch.no_grad():
        filters.m.uniform_(0.5, 2.0)


def _audioclip_processor():
    from hf_clip_variants import AudioCLIPFeatureExtractor, AudioCLIPProcessor

    processor = _classifier_processor(64)
    return AudioCLIPProcessor(
        processor.image_processor, processor.tokenizer, AudioCLIPFeatureExtractor(sampling_rate=8000, max_length=1300)
    )


def _classifier_processor(size: int = 24):
    from hf_clip_variants import CLIPClassifierImageProcessor, CLIPClassifierProcessor

    images = CLIPClassifierImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    return CLIPClassifierProcessor(images, tiny_tokenizer())


def clip_video_processor():
    from hf_clip_variants import VideoTextProcessor

    return VideoTextProcessor.from_clip(_classifier_processor())


def _dense_processor():
    from hf_clip_variants import DenseImageProcessor, DenseProcessor

    return DenseProcessor(DenseImageProcessor(size={"shortest_edge": 32, "longest_edge": 64}), tiny_tokenizer())


_SLIP = {
    "name": "slip",
    "config": slip_config,
    "encoders": {"text_model": "transformers.CLIPTextModel"},
    "processor": _classifier_processor,
    "output": "logits_per_image",
    "loss_options": {"return_loss": True},
    "loss_is_of_the_batch": True,
    "bad_values": (
        ({"projection_dim": 0}, "projection_dim: 0"),
        ({"logit_scale_init_value": float("nan")}, "logit_scale_init_value: nan"),
        ({"ssl_objective": "beit"}, "ssl_objective: 'beit', expected one of simclr, moco_v3, byol, simsiam"),
        ({"clip_gather": "none"}, "clip_gather: 'none', expected one of exact, slip"),
        ({"ssl_mlp_dim": 10**9}, "ssl_mlp_dim: 1000000000"),
        ({"ssl_emb_dim": -1}, "ssl_emb_dim: -1"),
        ({"ssl_emb_dim": "256"}, "ssl_emb_dim"),
        ({"ssl_temperature": 0.0}, "ssl_temperature: 0.0, expected a number > 0"),
        ({"ssl_scale": -0.5}, "ssl_scale: -0.5, expected a number >= 0"),
        ({"ssl_momentum": 1.5}, "ssl_momentum: 1.5, expected a number in 0..1"),
        ({"vision_config": {"hidden_size": 10**9}}, "vision_config.hidden_size: 1000000000"),
        ({"vision_config": {"num_attention_heads": 5}}, "vision_config.num_attention_heads: 5 does not divide"),
        ({"vision_config": {"patch_size": 32}}, "vision_config.patch_size: 32 is larger than image_size"),
        ({"vision_config": {"model_type": "evil"}}, "vision_config.model_type: 'evil'"),
        ({"vision_config": {"model_type": "bert"}}, "vision_config.model_type: 'bert', expected an image encoder"),
        ({"text_config": {"model_type": "bert"}}, "text_config.model_type: 'bert', expected 'clip_text_model'"),
        ({"text_config": {"num_hidden_layers": -1}}, "text_config.num_hidden_layers: -1"),
    ),
}

_GROUPVIT = {
    "name": "groupvit",
    "processor": segmentation_processor,
    "prepare": with_statistics,
    "bad_values": (
        ({"projection_dim": 0}, "projection_dim: 0"),
        ({"projection_intermediate_dim": 10**9}, "projection_intermediate_dim: 1000000000"),
        ({"logit_scale_init_value": float("nan")}, "logit_scale_init_value: nan"),
        ({"num_noun_prompts": -1}, "num_noun_prompts: -1, expected a number >= 0"),
        ({"multi_label_weight": -0.5}, "multi_label_weight: -0.5, expected a number >= 0"),
        ({"multi_label_form": "sum"}, "multi_label_form: 'sum', expected one of mean_of_logs, log_of_sum"),
        ({"num_gated_classes": 0}, "num_gated_classes: 0"),
        ({"pixel_assignment": "softly"}, "pixel_assignment: 'softly', expected one of hard, soft"),
        ({"trained_part": "text"}, "trained_part: 'text', expected one of all, group_tokens"),
        ({"background": float("inf")}, "background: inf, expected a finite number"),
        ({"vision_config": {"hidden_size": 10**9}}, "vision_config.hidden_size: 1000000000"),
        ({"vision_config": {"num_attention_heads": 5}}, "num_attention_heads: 5 does not divide hidden_size"),
        ({"vision_config": {"patch_size": 32}}, "patch_size: 32 is larger than image_size"),
        ({"vision_config": {"depths": [1, 1]}}, "num_group_tokens: \\[7, 5, 0\\], expected 2 numbers"),
        ({"vision_config": {"depths": [10**9, 1, 1]}}, "depths: \\[1000000000, 1, 1\\]"),
        ({"vision_config": {"num_group_tokens": [0, 0, 0]}}, "num_group_tokens: \\[0, 0, 0\\]"),
        ({"vision_config": {"num_output_groups": [6]}}, "num_output_groups: \\[6\\], expected numbers of groups > 0"),
        ({"vision_config": {"num_output_groups": [6, 0]}}, "num_output_groups: \\[6, 0\\], expected numbers"),
        ({"vision_config": {"assignment": "sharp"}}, "assignment: 'sharp', expected one of hard, soft"),
        ({"vision_config": {"gumbel_temperature": 0.0}}, "gumbel_temperature: 0.0, expected a number > 0"),
        ({"vision_config": {"assign_mlp_ratio": [0.5]}}, "assign_mlp_ratio: \\[0.5\\], expected two multiples"),
        ({"vision_config": {"drop_path_rate": 2.0}}, "drop_path_rate: 2.0"),
        (
            {"vision_config": {"model_type": "vit"}},
            "vision_config.model_type: 'vit', expected 'clipv-groupvit_vision'",
        ),
        ({"text_config": {"model_type": "bert"}}, "text_config.model_type: 'bert', expected 'clip_text_model'"),
        ({"text_config": {"num_hidden_layers": -1}}, "text_config.num_hidden_layers: -1"),
    ),
}


def _groupvit_config(**options):
    # Without noise, so that two runs of one batch have the same loss; soft, so that rounding moves no token to another
    # group.
    return groupvit_config(vision={"gumbel_noise": False, "assignment": "soft"}, pixel_assignment="soft", **options)


def _groupvit_images(batch: int):
    """Images with label maps and the texts of three labels each."""
    ids = groupvit_batch(3 * batch, prompts=0)["input_ids"].view(batch, 3, 1, -1)
    # None is the background, 0, whose pixels do not count: as many pixels count in each image.
    labels = torch.randint(1, 4, (batch, 24, 24), generator=torch.Generator().manual_seed(3))
    labels[:, :3] = 255
    return {"pixel_values": tiny_pixels(batch), "input_ids": ids, "labels": labels}


_GLIP = {
    "by_row": ("logits", "pred_boxes", "centerness"),
    "loss_is_of_the_batch": True,
    "prepare": glip_open_weights,
    "collate": glip_collate,
}

CASES = {
    case.id: case
    for case in (
        ModelCase(
            name="clip_classifier",
            config=_classifier_config,
            inputs=lambda batch: {
                "pixel_values": tiny_pixels(batch),
                "labels": torch.arange(batch) % len(CLASS_NAMES),
            },
            backbone=tiny_clip,
            processor=_classifier_processor,
            auto_class="AutoModelForImageClassification",
            bad_values=(
                ({"templates": ["no place for the name"]}, "templates: template 'no place for the name'"),
                ({"prompt_length": 0}, "prompt_length: 0"),
                ({"tail_length": "3"}, "tail_length"),
                ({"projection_dim": 0}, "projection_dim: 0"),
                ({"vision_config": {"patch_size": 32, "image_size": 24}}, "patch_size: 32"),
                ({"text_config": {"hidden_size": 10**9, "num_attention_heads": 4}}, "hidden_size: 1000000000"),
                ({"text_config": {"num_hidden_layers": -1}}, "num_hidden_layers: -1"),
                (
                    {"vision_config": {"hidden_size": 40, "num_attention_heads": 3}},
                    "num_attention_heads|divisible|multiple",
                ),
            ),
        ),
        ModelCase(
            name="clip_resnet",
            config=_resnet_config,
            inputs=_resnet_inputs,
            encoders={
                "vision_model": "hf_clip_variants.CLIPResNetVisionModel",
                "text_model": "transformers.CLIPTextModel",
            },
            processor=lambda: _classifier_processor(64),
            output="logits_per_image",
            by_row=("image_embeds", "text_embeds"),
            loss_options={"return_loss": True},
            loss_is_of_the_batch=True,
            prepare=_with_open_branches,
            bad_values=(
                ({"projection_dim": 0}, "projection_dim: 0"),
                ({"projection_dim": 24}, "vision_config.projection_dim: 20, expected projection_dim \\(24\\)"),
                ({"logit_scale_init_value": float("nan")}, "logit_scale_init_value: nan"),
                ({"vision_config": {"hidden_size": 10**9}}, "hidden_size: 1000000000"),
                ({"vision_config": {"hidden_size": 100}}, "hidden_size: 100 is not a multiple of 32"),
                ({"vision_config": {"num_attention_heads": 3}}, "num_attention_heads: 3 does not divide"),
                ({"vision_config": {"depths": [1, 1, 1]}}, "depths: \\[1, 1, 1\\], expected four"),
                ({"vision_config": {"depths": [1, -1, 1, 1]}}, "depths: \\[1, -1, 1, 1\\]"),
                ({"vision_config": {"image_size": 50}}, "image_size: 50 is not a multiple of 32"),
                ({"vision_config": {"freeze_batch_norm": "no"}}, "freeze_batch_norm"),
                (
                    {"vision_config": {"model_type": "clip_vision_model"}},
                    "vision_config.model_type: 'clip_vision_model'",
                ),
                (
                    {"text_config": {"model_type": "bert"}},
                    "text_config.model_type: 'bert', expected 'clip_text_model'",
                ),
                ({"text_config": {"num_hidden_layers": -1}}, "text_config.num_hidden_layers: -1"),
            ),
        ),
        ModelCase(
            name="clip4clip",
            config=clip4clip_config,
            inputs=clip4clip_batch,
            backbone=tiny_clip,
            processor=clip_video_processor,
            output="logits_per_video",
            by_row=("video_embeds", "text_embeds"),
            loss_options={"return_loss": True},
            loss_is_of_the_batch=True,
            bad_values=CLIP4CLIP_BAD_VALUES,
        ),
        ModelCase(processor=clip_video_processor, **CLIP4CLIP_CLASSIFIER),
        ModelCase(processor=clip_video_processor, **ACTIONCLIP),
        ModelCase(processor=clip_video_processor, **ACTIONCLIP_CLASSIFIER),
        ModelCase(**VIDEO_ANOMALY_CASE, backbone=tiny_clip, processor=clip_video_processor),
        ModelCase(**POINTCLIP, backbone=tiny_clip),
        ModelCase(**DEPTHCLIP),
        *(ModelCase(**one, processor=_classifier_processor) for one in (CLIPDRAW, CLIPASSO, VQGAN_CLIP)),
        ModelCase(
            **_SLIP,
            inputs=lambda batch: {name: slip_batch(batch)[name] for name in ("input_ids", "pixel_values")},
            by_row=("image_embeds", "text_embeds"),
        ),
        ModelCase(
            **_SLIP,
            part="AutoModelForPreTraining",
            auto_class="AutoModelForPreTraining",
            inputs=slip_batch,
            by_row=("image_embeds", "text_embeds", "aug1_embeds", "aug2_embeds"),
        ),
        ModelCase(
            name="lseg",
            # With all of its parts, and a text encoder that is trained.
            config=lambda: lseg_config(
                head_block="bottleneck", use_auxiliary_head=True, presence_loss_weight=0.3, freeze_text_encoder=False
            ),
            inputs=lseg_inputs,
            auto_class="AutoModelForSemanticSegmentation",
            processor=_dense_processor,
            loss_is_of_the_batch=True,  # batch normalisation
            prepare=open_statistics,
            untrained=(
                "lseg.vision_model.layernorm.weight",
                "lseg.vision_model.layernorm.bias",
                *(
                    f"lseg.neck.fusion_stage.layers.0.residual_layer1.{name}"
                    for name in ("convolution1.weight", "convolution2.weight")
                    + tuple(f"batch_norm{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias"))
                ),
            ),
            bad_values=LSEG_BAD_VALUES,
        ),
        ModelCase(
            name="audioclip",
            config=_audioclip_config,
            inputs=_audioclip_inputs,
            encoders={
                "vision_model": "hf_clip_variants.CLIPResNetVisionModel",
                "text_model": "transformers.CLIPTextModel",
                "audio_model": "hf_clip_variants.AudioCLIPAudioModel",
            },
            processor=_audioclip_processor,
            output="logits_per_audio",
            by_row=("audio_embeds", "image_embeds", "text_embeds"),
            loss_options={"return_loss": True},
            loss_is_of_the_batch=True,
            prepare=_with_fixed_filters,
            untrained=tuple(f"audio_model.fbsp.{name}" for name in ("m", "fb", "fc")),
            rounding=1e-5,
            in_float32=tuple(f"audio_model.fbsp.{name}" for name in ("m", "fb", "fc")),
            bad_values=(
                ({"projection_dim": 24}, "vision_config.projection_dim: 20, expected projection_dim \\(24\\)"),
                ({"frozen_modalities": ["sound"]}, "frozen_modalities: \\['sound'\\], expected some of audio"),
                ({"audio_logit_scale_init_value": float("inf")}, "audio_logit_scale_init_value: inf"),
                ({"audio_config": {"projection_dim": 8}}, "audio_config.projection_dim: 8, expected projection_dim"),
                ({"audio_config": {"hidden_size": 10**9}}, "hidden_size: 1000000000"),
                ({"audio_config": {"hidden_size": 100}}, "hidden_size: 100 is not a multiple of 32"),
                ({"audio_config": {"win_length": 65}}, "win_length: 65 is longer than n_fft"),
                ({"audio_config": {"hop_length": 0}}, "hop_length: 0"),
                ({"audio_config": {"n_fft": 2, "win_length": 2}}, "n_fft: 2 gives 2 filters"),
                ({"audio_config": {"depths": [1, 1, 1]}}, "depths: \\[1, 1, 1\\], expected four"),
                ({"audio_config": {"width_per_group": 4}}, "width_per_group: 4 gives 0 channels"),
                ({"audio_config": {"window": "evil"}}, "window"),
                ({"audio_config": {"spec_height": 0}}, "spec_height: 0, expected -1"),
                ({"audio_config": {"normalized": "no"}}, "normalized"),
                ({"audio_config": {"model_type": "clap"}}, "audio_config.model_type: 'clap'"),
                ({"text_config": {"num_hidden_layers": -1}}, "text_config.num_hidden_layers: -1"),
            ),
        ),
        ModelCase(
            **_GROUPVIT,
            config=_groupvit_config,
            inputs=groupvit_batch,
            encoders={
                "vision_model": "hf_clip_variants.GroupViTVisionModel",
                "text_model": "transformers.CLIPTextModel",
            },
            output="logits_per_image",
            by_row=("image_embeds", "text_embeds", "prompt_embeds"),
            loss_options={"return_loss": True},
            loss_is_of_the_batch=True,
        ),
        ModelCase(
            **_GROUPVIT,
            part="AutoModelForSemanticSegmentation",
            auto_class="AutoModelForSemanticSegmentation",
            config=lambda: _groupvit_config(background=0.3, num_noun_prompts=0),
            inputs=_groupvit_images,
            by_row=("logits", "group_maps", "group_scores"),
            float32_output=True,
        ),
        ModelCase(
            name="vild",
            only_in_training=("distill_boxes", "distill_embeddings"),
            config=vild_config,
            inputs=vild_inputs,
            processor=vild_processor,
            by_row=("logits", "pred_boxes"),
            loss_is_of_the_batch=True,
            prepare=with_open_weights,
            untrained=("text_encoder.",),
            collate=vild_collate,
            bad_values=VILD_BAD_VALUES,
        ),
        ModelCase("glip", glip_config, glip_inputs, processor=glip_processor, bad_values=GLIP_BAD_VALUES, **_GLIP),
        ModelCase(**VIDEOCLIP),
        ModelCase(**FND_CLIP),
        *(ModelCase(**one) for one in CLIP_VIL_CASES),
        ModelCase(**_GLIP | GLIPV2),
        ModelCase(**_GLIP | GLIPV2_ANSWERING),
        ModelCase(**_GLIP | GLIPV2_CAPTIONING),
    )
}


class ModelContract:
    """Each test takes `case`, a `ModelCase`.

    What transformers' own tests check (tests/suite) is not repeated here: round trips of files and configurations,
    equal tuple and dictionary outputs.
    """

    # ---- configuration

    def test_bad_configuration_values_are_named(self, case):
        good = case.config().to_dict()
        for values, said in case.bad_values:
            merged = good | {
                name: good[name] | value if isinstance(value, dict) and isinstance(good.get(name), dict) else value
                for name, value in values.items()
            }
            with pytest.raises((StrictDataclassError, ValueError), match=said):
                type(case.config()).from_dict(merged)

    # ---- initialisation and files

    def test_from_pretrained_leaves_nothing_uninitialised(self, case, tmp_path):
        load = case.row.load(case.part).from_pretrained
        if case.backbone:
            case.backbone().save_pretrained(tmp_path)
            model = load(tmp_path)
        else:  # a file with a single tensor
            case.make().save_pretrained(tmp_path)
            name, tensor = next(iter(case.make().state_dict().items()))
            save_file({name: tensor}, tmp_path / "model.safetensors", metadata={"format": "pt"})
            model, info = load(tmp_path, output_loading_info=True)
            assert len(info["missing_keys"]) == len(model.state_dict()) - 1
            with pytest.raises(ValueError, match="weights are missing"):
                load(tmp_path)
        state = model.state_dict()
        assert state and not any(tensor.is_meta for tensor in state.values())
        for name, tensor in model.named_buffers():
            assert not tensor.is_meta, name
        for name, tensor in state.items():
            assert torch.isfinite(tensor.float()).all() and tensor.float().abs().max() < 1e4, name
        with torch.device("meta"):
            empty = case.row.load(case.part)(case.config())
        assert all(tensor.is_meta for tensor in empty.state_dict().values())
        again, _ = load(tmp_path, dtype=torch.bfloat16, device_map="cpu", output_loading_info=True)
        assert {t.dtype for n, t in again.named_parameters() if n not in case.in_float32} == {torch.bfloat16}
        assert all(again.get_parameter(name).dtype == torch.float32 for name in case.in_float32)

    def test_initialisation_fills_every_tensor(self, case):
        with torch.device("meta"):
            model = case.row.load(case.part)(case.config())
        model.to_empty(device="cpu")
        state = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
        for tensor in state.values():
            tensor.fill_(torch.nan)
        model.init_weights()
        assert [name for name, tensor in state.items() if not tensor.isfinite().all()] == []

    def test_device_maps_load_and_meta_device_is_refused(self, case, tmp_path):
        model = case.make()
        expected = case.run(model)
        model.save_pretrained(tmp_path)
        for options in ({"device_map": "auto"}, {"device_map": {"": "cpu"}}, {"low_cpu_mem_usage": True}):
            loaded = type(model).from_pretrained(tmp_path, **options)
            assert not any(tensor.is_meta for tensor in loaded.state_dict().values()), options
            torch.testing.assert_close(case.run(loaded), expected, rtol=0, atol=1e-5)
        with torch.device("meta"), pytest.raises(RuntimeError, match="meta device"):
            type(model).from_pretrained(tmp_path)

    def test_backbone_and_model_load_each_others_files(self, case, tmp_path):
        if case.encoders:
            model = case.make()
            model.save_pretrained(tmp_path / "whole")
            for attribute, reference in case.encoders.items():
                module, _, name = reference.rpartition(".")
                encoder = getattr(importlib.import_module(module), name).from_pretrained(tmp_path / "whole")
                weights = model.get_submodule(attribute).state_dict()
                assert weights.keys() == encoder.state_dict().keys()
                for key, tensor in encoder.state_dict().items():
                    assert torch.equal(tensor, weights[key]), f"{attribute}.{key}"
        if not case.backbone:
            return
        backbone = case.backbone()
        backbone.save_pretrained(tmp_path / "backbone")
        model = case.row.load(case.part).from_pretrained(tmp_path / "backbone")
        weights = backbone.state_dict()
        for name, tensor in getattr(model, model.base_model_prefix).state_dict().items():
            assert torch.equal(tensor, weights[name]), name
        model.save_pretrained(tmp_path / "model")
        back, info = type(backbone).from_pretrained(tmp_path / "model", output_loading_info=True)
        assert not info["missing_keys"]
        assert all(torch.equal(tensor, weights[name]) for name, tensor in back.state_dict().items())

    # ---- forward

    def test_eager_and_sdpa_agree(self, case):
        model = case.make()
        outputs = []
        for implementation in ("eager", "sdpa"):
            model.set_attn_implementation(implementation)
            outputs.append(case.run(model))
        torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)

    def test_rows_of_a_batch_are_independent(self, case):
        model, inputs = case.make(), case.inputs(5)
        with torch.no_grad():
            together = model(**inputs)
            for row in range(5):
                alone = model(**{name: value[row : row + 1] for name, value in inputs.items()})
                for name in case.by_row or (case.output,):
                    torch.testing.assert_close(alone[name], together[name][row : row + 1], rtol=1e-5, atol=1e-5)

    def test_bfloat16_is_near_float32(self, case):
        model = case.make()
        exact = case.run(model)
        model = model.to(torch.bfloat16)
        rough = case.run(model)
        assert rough.dtype == (torch.float32 if case.float32_output else torch.bfloat16)
        near = torch.isclose(rough.float(), exact, rtol=0.1, atol=0.05 * exact.abs().max().item())
        assert near.float().mean() > 0.99, (rough, exact)  # of maps, a few pixels may lie on the other side of an edge
        loss = case.loss(model.train(), case.inputs(4))
        loss.backward()
        assert torch.isfinite(loss) and all(
            torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None
        )

    # ---- training

    def test_gradients_reach_every_parameter(self, case):
        model = case.make().train()
        loss = model(**case.inputs(4), **case.loss_options, return_dict=False)[
            0
        ]  # Trainer reads the loss from the first position
        loss.backward()
        without = {name for name, p in model.named_parameters() if p.grad is None}
        assert without == {name for name, _ in model.named_parameters() if name.startswith(case.untrained)}
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
        trained = [p for p in model.parameters() if p.grad is not None]
        assert sum(p.grad.abs().sum() > 0 for p in trained) > 0.9 * len(trained)

    def test_activation_checkpointing_changes_no_gradient(self, case):
        gradients, statistics = [], []
        for checkpointing in (False, True):
            model = case.make().train()
            if checkpointing:
                model.activation_checkpointing_enable()
                assert model.is_gradient_checkpointing
            case.loss(model, case.inputs(4)).backward()
            gradients.append({name: p.grad for name, p in model.named_parameters()})
            statistics.append({name: b for name, b in model.named_buffers() if b.is_floating_point()})
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-6, msg=name)
        for name, buffer in statistics[0].items():
            torch.testing.assert_close(statistics[1][name], buffer, rtol=1e-5, atol=1e-6, msg=name)

    def test_trainer_accumulates_and_resumes_to_the_same_weights(self, case, tmp_path):
        from transformers import Trainer, TrainingArguments, default_data_collator

        # If half batches have other losses, all batches hold the same four pairs.
        different, whole = (4, 4) if case.loss_is_of_the_batch else (16, 8)
        inputs = case.inputs(different)
        data = [{name: value[i % different] for name, value in inputs.items()} for i in range(16)]

        def train(folder, batch, accumulation, resume=None, steps=4):
            arguments = TrainingArguments(
                str(tmp_path / folder),
                max_steps=steps,
                per_device_train_batch_size=batch,
                save_steps=2,
                use_cpu=True,
                gradient_accumulation_steps=accumulation,
                learning_rate=0.05,
                optim="sgd",
                lr_scheduler_type="constant",
                train_sampling_strategy="sequential",
                report_to="none",
                disable_tqdm=True,
                max_grad_norm=1e9,
                logging_steps=1,
            )
            collate = case.collate or default_data_collator
            collator = lambda rows: collate(rows) | case.loss_options  # noqa: E731
            trainer = Trainer(case.make(), arguments, train_dataset=data, data_collator=collator)
            trainer.train(resume_from_checkpoint=resume)
            losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
            return trainer.model.state_dict(), losses

        assert case.make().accepts_loss_kwargs is False, "otherwise the loss is scaled if the batch has labels"
        once, losses = train("once", whole, 1)
        twice, losses_twice = train("twice", 4, 2)
        assert losses == pytest.approx(losses_twice, rel=1e-4), "the loss is not scaled by the accumulation"
        start = case.make().state_dict()
        moved = max((once[name] - start[name]).abs().max().item() for name in once if once[name].is_floating_point())
        assert moved > 1e-4
        names = [name for name, _ in case.make().named_parameters()]
        for name in names:
            torch.testing.assert_close(twice[name], once[name], rtol=1e-3, atol=1e-3 * moved, msg=name)
        resumed, losses_resumed = train("once", whole, 1, resume=str(tmp_path / "once" / "checkpoint-2"))
        assert losses_resumed == losses and all(torch.equal(resumed[name], once[name]) for name in names)

    # ---- sharing

    @pytest.mark.hub
    def test_push_and_pull_keep_the_model(self, case, tmp_path):
        import transformers

        auto = getattr(transformers, case.auto_class)
        model = case.make()
        expected = case.run(model)
        with hub_in_this_process(tmp_path / "home") as hub:
            model.push_to_hub("alice/model")
            loaded = auto.from_pretrained("alice/model")
            assert type(loaded) is type(model)
            case.check_same(case.run(loaded), expected)
            if case.processor:
                case.processor().push_to_hub("alice/model")
                processor = transformers.AutoProcessor.from_pretrained("alice/model")
                assert processor.to_dict() == case.processor().to_dict()
            assert {"config.json", "model.safetensors", "README.md"} <= set(hub.repos["alice/model"].files)
