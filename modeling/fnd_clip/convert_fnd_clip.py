"""Weights that the official FND-CLIP code saves ↔ `FNDCLIPForSequenceClassification`.

The state dict comes from `hf_clip_variants.conversion.checkpoint_reader.read_state_dict`; this file reads no files.
An official file has the ResNet in torchvision's names (`resnet101.`) and everything behind the encoders. BERT and
CLIP, which do not train, are not in it: they come from folders or the Hub. The authors published no weights.
"""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer, BertModel, PreTrainedModel, ResNetConfig

from ..clip.convert_clip import (
    NameTable,
    count_layers,
    rename_from_official,
    rename_to_official,
    shapes_of,
)
from ..loading_and_saving.checkpoint_format import BuiltModel, ModelFormat, OfficialFile, Signature
from ..loading_and_saving.example_outputs import Tensors, random_images
from .configuration_fnd_clip import FNDCLIPConfig
from .fusion_fnd_clip import FNDCLIPFusion
from .modeling_fnd_clip import FNDCLIPForSequenceClassification, FNDCLIPResNet
from .processing_fnd_clip import fnd_clip_processor


_OF, _OF_RESNET = "FND-CLIP", "ResNet"
_RESNET, _OURS = "resnet101.", "image_model."
_ENCODERS = ("text_model.", "dual_encoder.")
_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_BERT, _CLIP = "bert-base-chinese", "openai/clip-vit-base-patch32"
_LAYER_WEIGHTS = "weights"  # (L, 1)


# ---- names


def _layer(official: str, ours: str) -> NameTable:
    return {f"{official}.{part}": f"{ours}.{part}" for part in ("weight", "bias")}


def _norm(official: str, ours: str) -> NameTable:
    return {f"{official}.{part}": f"{ours}.{part}" for part in _NORM}


def fusion_names() -> NameTable:
    """Of everything behind the encoders."""
    table: NameTable = {_LAYER_WEIGHTS: "fusion.layer_weights"}
    table |= {"w": "fusion.similarity_factor", "b": "fusion.similarity_summand"}
    for number, layer in ((0, "input_layer"), (2, "output_layer")):
        table |= _layer(f"senet.{number}", f"fusion.modality_attention.{layer}")
    branches = {"uni_repre.text_uni": "text", "uni_repre.image_uni": "image", "cross_module.c_specific": "cross"}
    for official, ours in branches.items():
        for number, side in ((0, "input"), (4, "output")):
            table |= _layer(f"{official}.{number}", f"fusion.{ours}_branch.{side}_layer")
            table |= _norm(f"{official}.{number + 1}", f"fusion.{ours}_branch.{side}_norm")
    for number, layer in ((0, "input"), (3, "hidden")):
        table |= _layer(f"classifier_corre.{number}", f"fusion.classifier.{layer}_layer")
        table |= _norm(f"classifier_corre.{number + 1}", f"fusion.classifier.{layer}_norm")
    return table | _layer("classifier_corre.6", "fusion.classifier.output_layer")


def resnet_names(config: ResNetConfig, official: str = "", ours: str = "") -> NameTable:
    """torchvision's names of a ResNet -> those of transformers' `ResNetForImageClassification`."""

    def convolution(name: str, number: int | str, own: str, norm: str) -> NameTable:
        table: NameTable = {f"{official}{name}{number}.weight": f"{ours}resnet.{own}.convolution.weight"}
        return table | _norm(f"{official}{norm}", f"{ours}resnet.{own}.normalization")

    table = convolution("conv", 1, "embedder.embedder", "bn1")
    count = 3 if config.layer_type == "bottleneck" else 2
    width = config.embedding_size
    for stage, depth in enumerate(config.depths):
        for block in range(depth):
            theirs, own = f"layer{stage + 1}.{block}.", f"encoder.stages.{stage}.layers.{block}."
            for number in range(count):
                table |= convolution(f"{theirs}conv", number + 1, f"{own}layer.{number}", f"{theirs}bn{number + 1}")
            stride = 2 if block == 0 and (stage > 0 or config.downsample_in_first_stage) else 1
            if width != config.hidden_sizes[stage] or stride != 1:
                table |= convolution(f"{theirs}downsample.", 0, f"{own}shortcut", f"{theirs}downsample.1")
            width = config.hidden_sizes[stage]
    return table | _layer(f"{official}fc", f"{ours}classifier.1")


# ---- both ways


def fnd_clip_from_official(
    state_dict: Mapping[str, torch.Tensor],
    *,
    text_model: PreTrainedModel,
    dual_encoder: PreTrainedModel,
    image_model: PreTrainedModel | None = None,
    **fields: Any,
) -> FNDCLIPForSequenceClassification:
    """A model with official weights: float32, on the CPU, in eval mode. It weighs BERT's layers over the batch, as the
    weights were trained to (`batch_layer_attention`); set it to `False` for answers that depend on nothing else.

    Args:
        state_dict: of the official code.
        text_model, dual_encoder: the `BertModel` and the `CLIPModel` that it was trained with.
        image_model: a `ResNetForImageClassification`, for a file without a ResNet.
        fields: of `FNDCLIPConfig`, which no weights tell, such as `id2label`.

    Raises:
        ValueError: names or shapes are not those of FND-CLIP or do not fit the encoders, or a weight is not finite.

    Example:

        >>> from transformers import BertModel, CLIPModel
        >>> from hf_clip_variants.conversion.checkpoint_reader import read_state_dict
        >>> bert = BertModel.from_pretrained("bert-base-chinese")  # doctest: +SKIP
        >>> clip = CLIPModel.from_pretrained("openai/clip-vit-base-patch32")  # doctest: +SKIP
        >>> weights = read_state_dict("fnd_clip.pt")  # doctest: +SKIP
        >>> model = fnd_clip_from_official(weights, text_model=bert, dual_encoder=clip)  # doctest: +SKIP
    """
    values = infer_fnd_clip_config(
        state_dict, text_model=text_model, dual_encoder=dual_encoder, image_model=image_model
    )
    config = FNDCLIPConfig(**values | {"batch_layer_attention": True} | fields)
    found = convert_fnd_clip_state_dict(state_dict, config)
    if image_model is not None:
        found |= {f"{_OURS}{name}": tensor.detach().clone() for name, tensor in image_model.state_dict().items()}
    model = FNDCLIPForSequenceClassification(config)
    for prefix, encoder in zip(_ENCODERS, (text_model, dual_encoder), strict=True):
        weights = encoder.state_dict()
        names = model.get_submodule(prefix.rstrip(".")).state_dict()
        found |= {f"{prefix}{name}": weights[name].detach().float().clone() for name in names}
    model.load_state_dict(found)
    return model.eval()


def convert_fnd_clip_state_dict(
    state_dict: Mapping[str, torch.Tensor], config: FNDCLIPConfig
) -> dict[str, torch.Tensor]:
    """An official state dict under our names, in float32: without BERT and the dual encoder, and without the ResNet if
    the file has none. Strict: every weight once, and no other.

    Raises:
        ValueError: missing or unexpected names, shapes other than `config`'s, NaN or infinite weights: the first five
            and how many.
    """
    with torch.device("meta"):
        parts = {"fusion.": FNDCLIPFusion(config), _OURS: FNDCLIPResNet(config.backbone_config)}
    expected = {f"{prefix}{name}": t for prefix, part in parts.items() for name, t in part.state_dict().items()}
    table = fusion_names()
    if _has_resnet(state_dict):
        table |= resnet_names(config.backbone_config, _RESNET, _OURS)
    else:
        expected = {name: tensor for name, tensor in expected.items() if not name.startswith(_OURS)}
    weights = dict(state_dict)
    if _LAYER_WEIGHTS in weights and weights[_LAYER_WEIGHTS].dim() == 2 and weights[_LAYER_WEIGHTS].shape[1] == 1:
        weights[_LAYER_WEIGHTS] = weights[_LAYER_WEIGHTS][:, 0].clone()
    return rename_from_official(weights, table, expected, of=_OF)


def infer_fnd_clip_config(
    state_dict: Mapping[str, torch.Tensor],
    *,
    text_model: PreTrainedModel,
    dual_encoder: PreTrainedModel,
    image_model: PreTrainedModel | None = None,
) -> dict[str, Any]:
    """The keyword arguments of `FNDCLIPConfig` that fit an official state dict and its encoders.

    Arguments and errors as for `fnd_clip_from_official`.
    """
    inner, outer, last = "uni_repre.text_uni.0.weight", "uni_repre.text_uni.4.weight", "classifier_corre.6.weight"
    shapes = shapes_of(state_dict, [_LAYER_WEIGHTS, inner, outer, "classifier_corre.0.weight", last], of=_OF)
    layers = text_model.config.num_hidden_layers
    if shapes[_LAYER_WEIGHTS] != (layers + 1, 1):
        raise ValueError(
            f"text_model: {layers} layers, the file weighs {shapes[_LAYER_WEIGHTS][0] - 1} and the embeddings"
        )
    if _has_resnet(state_dict):
        backbone = infer_resnet_config(state_dict, _RESNET, _OF)
    elif image_model is not None:
        backbone = image_model.config.to_dict()
    else:
        raise ValueError(f"{_OF} state dict: no {_RESNET}… in it, and no image_model; want one of them")
    unsaved = ("architectures", "dtype")
    parts = {"text_config": text_model.config.to_dict(), "dual_encoder_config": dual_encoder.config.to_dict()}
    parts |= {"backbone_config": backbone}
    labels = shapes[last][0]
    names = {} if labels == 2 else {"id2label": {label: f"class {label}" for label in range(labels)}}
    return {
        **{part: {k: v for k, v in values.items() if k not in unsaved} for part, values in parts.items()},
        **names,
        "shared_dim": shapes[inner][0],
        "feature_dim": shapes[outer][0],
        "hidden_dim": shapes["classifier_corre.0.weight"][0],
        "max_text_length": min(300, text_model.config.max_position_embeddings),
    }


def infer_resnet_config(
    state_dict: Mapping[str, torch.Tensor], prefix: str = "", of: str = _OF_RESNET
) -> dict[str, Any]:
    """The keyword arguments of `ResNetConfig` that fit a torchvision ResNet (18 to 152 layers; no Wide ResNet and no
    ResNeXt)."""
    first, last = f"{prefix}conv1.weight", f"{prefix}fc.weight"
    convolutions = [f"{prefix}layer{stage}.0.conv1.weight" for stage in range(1, 5)]
    shapes = shapes_of(state_dict, [first, last, *convolutions], of=of)
    is_bottleneck = f"{prefix}layer1.0.conv3.weight" in state_dict
    wider = 4 if is_bottleneck else 1
    return {
        "model_type": "resnet",
        "num_channels": shapes[first][1],
        "embedding_size": shapes[first][0],
        "hidden_sizes": [wider * shapes[name][0] for name in convolutions],
        "depths": [count_layers(state_dict, f"{prefix}layer{stage}.") for stage in range(1, 5)],
        "layer_type": "bottleneck" if is_bottleneck else "basic",
        "num_labels": shapes[last][0],
    }


def resnet_from_torchvision(state_dict: Mapping[str, torch.Tensor]) -> FNDCLIPResNet:
    """A `ResNetForImageClassification` with the weights of a torchvision ResNet, such as the ImageNet ones that the
    official code starts from, for `from_encoders`. In eval mode; strict."""
    model = FNDCLIPResNet(ResNetConfig(**infer_resnet_config(state_dict)))
    table = resnet_names(model.config)
    model.load_state_dict(rename_from_official(state_dict, table, model.state_dict(), of=_OF_RESNET))
    return model.eval()


def to_official(state_dict: Mapping[str, torch.Tensor], config: FNDCLIPConfig) -> dict[str, torch.Tensor]:
    """The inverse of the conversion, without BERT and the dual encoder; dtypes as they are."""
    table = fusion_names() | resnet_names(config.backbone_config, _RESNET, _OURS)
    found = rename_to_official(_without_encoders(state_dict), table, of=_OF)
    found[_LAYER_WEIGHTS] = found[_LAYER_WEIGHTS][:, None]
    return found


def _has_resnet(state_dict: Mapping[str, torch.Tensor]) -> bool:
    return any(name.startswith(_RESNET) for name in state_dict)


def _without_encoders(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in state_dict.items() if not name.startswith(_ENCODERS)}


# ---- for `convert`


def _build(official: OfficialFile) -> BuiltModel:
    options = official.options
    bert, clip = options.get("bert", _BERT), options.get("dual_encoder", _CLIP)
    text_model = BertModel.from_pretrained(bert, add_pooling_layer=False, dtype=torch.float32)
    dual_encoder = AutoModel.from_pretrained(clip, dtype=torch.float32)
    names = {}
    if options.get("classes"):
        from ..dual_encoders.prompts import resolve_class_names

        names = {"id2label": dict(enumerate(resolve_class_names(options["classes"])))}
    model = fnd_clip_from_official(official.weights, text_model=text_model, dual_encoder=dual_encoder, **names)
    official.notes.append(
        "layers of BERT are weighed over the batch, as in training: batch_layer_attention=False makes answers "
        "independent of the batch, and a little different"
    )
    return BuiltModel(model, [], {"bert": bert, "dual_encoder": clip})


def _load_tokenizer(source):
    return AutoTokenizer.from_pretrained(_BERT if source is None else source)


def _make_processor(image_size: int, tokenizer, settings: Mapping[str, Any]):
    return fnd_clip_processor(tokenizer, settings["dual_encoder"], resample_backend="pil")


def _example_inputs(model, prompts: tuple[str, ...], processor, tokenizer) -> Tensors:
    """Two posts of random tokens and noise: two texts, one of them for the dual encoder, and an image each."""
    generator, dual = torch.Generator().manual_seed(0), model.config.dual_encoder_config
    end = model.family.padding_id(dual)
    ids = torch.randint(1, model.config.text_config.vocab_size, (2, 3), generator=generator)
    clip_ids = torch.randint(1, min(end, dual.text_config.vocab_size) or 2, (2, 5), generator=generator)
    clip_ids[:, -1] = end
    images = random_images(model.family.image_size(dual))
    return {"input_ids": ids, "clip_input_ids": clip_ids, "pixel_values": images}


def _outputs_of(model, inputs: Mapping[str, torch.Tensor]) -> Tensors:
    output = model(**inputs)
    return {name: output[name] for name in CHECKPOINTS.outputs}


CHECKPOINTS = ModelFormat(
    signature=Signature(every=(r"uni_repre\.text_uni\.", r"cross_module\.c_specific\.", r"classifier_corre\.")),
    build=_build,
    outputs=("logits", "similarity", "modality_weights", "layer_attention"),
    load_tokenizer=_load_tokenizer,
    special_tokens=("pad_token_id",),
    max_text_length=300,
    make_processor=_make_processor,
    example_inputs=_example_inputs,
    outputs_of=_outputs_of,
)


__all__ = [
    "CHECKPOINTS",
    "convert_fnd_clip_state_dict",
    "fnd_clip_from_official",
    "fusion_names",
    "infer_fnd_clip_config",
    "infer_resnet_config",
    "resnet_from_torchvision",
    "resnet_names",
    "to_official",
]
