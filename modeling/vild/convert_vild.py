"""Weights of the official ViLD (TensorFlow 1) and of DetPro's ViLD* (mmdetection) ↔ `ViLDForZeroShotObjectDetection`.

TensorFlow's checkpoints are not read here: export the variables by name first, for instance with

    reader = tf.train.load_checkpoint("model.ckpt-180000")
    numpy.savez("vild.npz", **{name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()})

and save them as safetensors, or with `torch.save`; `hf_clip_variants.conversion.checkpoint_reader` reads both.

Names of the head of regions are those of a fixture of the official code, and tested against it. The other names follow
the official source (ResNet, pyramid, RPN and mask head are written in the order in which TensorFlow creates them); no
published file could be read here, so nothing but their shapes has been checked.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModel, CLIPConfig

from ..clip.convert_clip import count_layers, fail_if_any
from ..loading_and_saving.checkpoint_format import BuiltModel, ModelFormat, OfficialFile, Signature
from ..loading_and_saving.example_outputs import class_embedding_outputs
from .configuration_vild import STRIDES, ViLDConfig
from .heads_vild import ROI_RESOLUTION
from .modeling_vild import ViLDForZeroShotObjectDetection
from .processing_vild import vild_processor


_OF = "ViLD"
HEAD = "frcnn_layer_0/fast_rcnn_head/"
_BATCH_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
# What optimisers and training leave in a checkpoint.
_STRAYS = re.compile(r"(.*/)?(Momentum|ExponentialMovingAverage|Adam(_1)?|global_step)$|.*num_batches_tracked$")
_CODES = [1, 0, 3, 2]  # dy, dx, dh, dw -> dx, dy, dw, dh


# ---- what happens to a tensor on the way; each is (to ours, to the official)


@dataclass(frozen=True)
class Rule:
    ours: str
    read: Callable[[torch.Tensor], torch.Tensor]
    write: Callable[[torch.Tensor], torch.Tensor]


def _same(name: str) -> Rule:
    return Rule(name, lambda t: t, lambda t: t)


def _convolution(name: str) -> Rule:
    return Rule(name, lambda t: t.permute(3, 2, 0, 1), lambda t: t.permute(2, 3, 1, 0))


def _transposed_convolution(name: str) -> Rule:
    """TensorFlow's (h, w, out, in) is read as PyTorch's (in, out, h, w)."""
    return Rule(name, lambda t: t.permute(3, 2, 0, 1), lambda t: t.permute(2, 3, 1, 0))


def _linear(name: str) -> Rule:
    return Rule(name, torch.t, torch.t)


def _flattened(name: str) -> Rule:
    """The layer behind flattened maps: (h w c, out) -> (out, c h w)."""
    side = ROI_RESOLUTION

    def read(t):
        return t.view(side, side, -1, t.shape[-1]).permute(3, 2, 0, 1).flatten(1)

    def write(t):
        return t.view(len(t), -1, side, side).permute(2, 3, 1, 0).flatten(0, 2)

    return Rule(name, read, write)


def _codes(name: str, rule: Callable[[str], Rule]) -> Rule:
    """Box codes, of one anchor or several: their order changes from y, x to x, y."""
    order = rule(name)

    def swap(t):  # along the outputs, which are first here
        return t.view(-1, 4, *t.shape[1:])[:, _CODES].reshape(t.shape)

    return Rule(name, lambda t: swap(order.read(t)), lambda t: order.write(swap(t)))


def _vector(name: str) -> Rule:
    return Rule(name, lambda t: t.flatten(), lambda t: t[:, None])


def _batch_norm(official: str, ours: str) -> Iterator[tuple[str, Rule]]:
    for theirs, name in _BATCH_NORM.items():
        yield f"{official}/{theirs}", _same(f"{ours}.{name}")


def _numbered(stem: str, number: int) -> str:
    """TensorFlow's names of the first, second, … layer of a kind in a scope."""
    return stem if not number else f"{stem}_{number}"


def _kernel(official: str, ours: str, rule: Callable[[str], Rule], bias: bool = True) -> Iterator[tuple[str, Rule]]:
    yield f"{official}/kernel", rule(f"{ours}.weight")
    if bias:
        yield f"{official}/bias", _same(f"{ours}.bias")


# ---- the official layout


def head_rules(config: ViLDConfig, prefix: str = "region_head.") -> dict[str, Rule]:
    """Official names of the head of regions, without the classes; batch norms are counted in the order of creation."""
    rules, norms = {}, 0
    branches = [("", "branch")] + ([("distill_", "image_branch")] if config.variant == "ensemble" else [])
    for official, ours in branches:
        for i in range(config.head_num_convs):
            name = f"{prefix}{ours}.convolutions.{i}"
            rules |= _kernel(f"{HEAD}{official}conv_{i}", f"{name}.convolution", _convolution)
            rules |= _batch_norm(HEAD + _numbered("batch_normalization", norms), f"{name}.normalization")
            norms += 1
        for i in range(config.head_num_layers):
            name = f"{prefix}{ours}.layers.{i}"
            rules |= _kernel(f"{HEAD}{official}fc{i + 6}", name, _linear if i else _flattened)
            rules |= _batch_norm(HEAD + _numbered("batch_normalization", norms), f"{prefix}{ours}.normalizations.{i}")
            norms += 1
    rules |= _kernel(f"{HEAD}project-to-clip", f"{prefix}projection", _linear)
    if config.variant == "ensemble":
        rules |= _kernel(f"{HEAD}distill-project-to-clip", f"{prefix}image_projection", _linear)
    rules[f"{HEAD}background-class-predict/kernel"] = _vector(f"{prefix}background")
    rules[f"{HEAD}box-predict/kernel"] = _codes(f"{prefix}box_codes.weight", _linear)
    rules[f"{HEAD}box-predict/bias"] = _codes(f"{prefix}box_codes.bias", _same)
    return rules


CLASSES = f"{HEAD}class-predict/kernel"  # (D, N)


def _resnet_rules(config: ViLDConfig, scope: str) -> dict[str, Rule]:
    """Convolutions and batch norms in the order of creation: in a stage's first block, the shortcut comes first."""
    resnet, count = config.backbone_config, 0
    rules: dict[str, Rule] = {}

    def layer(ours: str) -> None:
        nonlocal count
        rules.update(_kernel(f"{scope}/{_numbered('conv2d', count)}", f"{ours}.convolution", _convolution, bias=False))
        rules.update(_batch_norm(f"{scope}/{_numbered('batch_normalization', count)}", f"{ours}.normalization"))
        count += 1

    layer("backbone.embedder.embedder")
    for stage, depth in enumerate(resnet.depths):
        for block in range(depth):
            name = f"backbone.encoder.stages.{stage}.layers.{block}"
            if block == 0:
                layer(f"{name}.shortcut")
            for part in range(3 if resnet.layer_type == "bottleneck" else 2):
                layer(f"{name}.layer.{part}")
    return rules


def _pyramid_rules() -> dict[str, Rule]:
    rules: dict[str, Rule] = {}
    for i in range(4):
        rules |= _kernel(f"fpn/l{i + 2}", f"pyramid.pyramid.inner_blocks.{i}.0", _convolution)
        rules |= _kernel(f"fpn/post_hoc_d{i + 2}", f"pyramid.pyramid.layer_blocks.{i}.0", _convolution)
    rules |= _kernel("fpn/p6", "pyramid.coarsest", _convolution)
    for i in range(len(STRIDES)):
        rules |= _batch_norm(f"fpn/p{i + 2}-bn", f"pyramid.normalizations.{i}")
    return rules


def _proposal_rules(config: ViLDConfig, names: list[str]) -> dict[str, Rule]:
    """The two convolutions' names are taken as they come, in their natural order: the sources differ."""
    rules: dict[str, Rule] = {}
    for i, official in enumerate(names):
        rules |= _kernel(official, f"proposal_head.convolutions.{i}", _convolution)
        for level in range(len(STRIDES)):
            rules |= _batch_norm(f"{official}-l{level + 2}-bn", f"proposal_head.normalizations.{i}.{level}")
    rules |= _kernel("rpn_head/rpn-class", "proposal_head.objectness", _convolution)
    rules["rpn_head/rpn-box/kernel"] = _codes("proposal_head.codes.weight", _convolution)
    rules["rpn_head/rpn-box/bias"] = _codes("proposal_head.codes.bias", _same)
    return rules


def _mask_rules(config: ViLDConfig) -> dict[str, Rule]:
    rules: dict[str, Rule] = {}
    for i in range(config.mask_num_convs):
        rules |= _kernel(f"mask_head/mask-conv-l{i}", f"mask_head.convolutions.{i}.convolution", _convolution)
        norm = f"mask_head.convolutions.{i}.normalization"
        rules |= _batch_norm(f"mask_head/{_numbered('batch_normalization', i)}", norm)
    rules |= _kernel("mask_head/conv5-mask", "mask_head.upsampling", _transposed_convolution)
    norm = _numbered("batch_normalization", config.mask_num_convs)
    rules |= _batch_norm(f"mask_head/{norm}", "mask_head.normalization")
    return rules | dict(_kernel("mask_head/mask_fcn_logits", "mask_head.logits", _convolution))


def _proposal_names(names, count: int) -> list[str]:
    found = sorted({m[1] for name in names if (m := re.match(r"(rpn_head/rpn[^/]*)/kernel$", name))} - _RPN_OUTPUTS)
    return found or ["rpn_head/rpn", *(f"rpn_head/rpn_{i}" for i in range(1, count))]


_RPN_OUTPUTS = {"rpn_head/rpn-class", "rpn_head/rpn-box"}


def _tensorflow_rules(config: ViLDConfig, names=()) -> dict[str, Rule]:
    scope = next((m[1] for name in names if (m := re.match(r"(resnet\d+)/", name))), None)
    if scope is None:
        layers = sum(config.backbone_config.depths) * (3 if config.backbone_config.layer_type == "bottleneck" else 2)
        scope = f"resnet{layers + 2}"
    rules = _resnet_rules(config, scope) | _pyramid_rules()
    rules |= _proposal_rules(config, _proposal_names(names, config.rpn_num_convs)) | head_rules(config)
    return rules | (_mask_rules(config) if config.use_masks else {})


# ---- DetPro's layout (mmdetection 2)


def _mmdet_norm(official: str, ours: str) -> Iterator[tuple[str, Rule]]:
    for name in ("weight", "bias", "running_mean", "running_var"):
        yield f"{official}.{name}", _same(f"{ours}.{name}")


def _mmdet_layer(official: str, ours: str, bias: bool = True) -> Iterator[tuple[str, Rule]]:
    yield f"{official}.weight", _same(f"{ours}.weight")
    if bias:
        yield f"{official}.bias", _same(f"{ours}.bias")


def _mmdet_rules(config: ViLDConfig, names=()) -> dict[str, Rule]:
    """DetPro's names: torchvision's ResNet, mmdetection's FPN, RPN and heads, and the projections of its RoI head."""
    rules: dict[str, Rule] = {}
    stem = "backbone.embedder.embedder"
    rules |= _mmdet_layer("backbone.conv1", f"{stem}.convolution", bias=False)
    rules |= _mmdet_norm("backbone.bn1", f"{stem}.normalization")
    for stage, depth in enumerate(config.backbone_config.depths):
        for block in range(depth):
            official = f"backbone.layer{stage + 1}.{block}"
            ours = f"backbone.encoder.stages.{stage}.layers.{block}"
            for part in range(3 if config.backbone_config.layer_type == "bottleneck" else 2):
                rules |= _mmdet_layer(f"{official}.conv{part + 1}", f"{ours}.layer.{part}.convolution", bias=False)
                rules |= _mmdet_norm(f"{official}.bn{part + 1}", f"{ours}.layer.{part}.normalization")
            if block == 0:
                rules |= _mmdet_layer(f"{official}.downsample.0", f"{ours}.shortcut.convolution", bias=False)
                rules |= _mmdet_norm(f"{official}.downsample.1", f"{ours}.shortcut.normalization")
    for i in range(4):
        rules |= _mmdet_layer(f"neck.lateral_convs.{i}.conv", f"pyramid.pyramid.inner_blocks.{i}.0")
        rules |= _mmdet_layer(f"neck.fpn_convs.{i}.conv", f"pyramid.pyramid.layer_blocks.{i}.0")
    rules |= _mmdet_layer("rpn_head.rpn_conv", "proposal_head.convolutions.0")
    rules |= _mmdet_layer("rpn_head.rpn_cls", "proposal_head.objectness")
    rules |= _mmdet_layer("rpn_head.rpn_reg", "proposal_head.codes")
    head, ensemble = "roi_head.bbox_head", config.variant == "ensemble"
    branches = [("", "branch")] + ([("_for_image", "image_branch")] if ensemble else [])
    for official, ours in branches:
        for i in range(config.head_num_convs):
            name = f"region_head.{ours}.convolutions.{i}"
            rules |= _mmdet_layer(f"{head}.shared_convs{official}.{i}.conv", f"{name}.convolution", bias=False)
            rules |= _mmdet_norm(f"{head}.shared_convs{official}.{i}.bn", f"{name}.normalization")
        for i in range(config.head_num_layers):
            rules |= _mmdet_layer(f"{head}.shared_fcs{official}.{i}", f"region_head.{ours}.layers.{i}")
    rules |= _mmdet_layer(f"{head}.fc_reg", "region_head.box_codes")
    rules |= _mmdet_layer("roi_head.projection", "region_head.projection")
    if ensemble:
        rules |= _mmdet_layer("roi_head.projection_for_image", "region_head.image_projection")
    for i in range(config.mask_num_convs if config.use_masks else 0):
        rules |= _mmdet_layer(f"roi_head.mask_head.convs.{i}.conv", f"mask_head.convolutions.{i}.convolution")
    if config.use_masks:
        rules |= _mmdet_layer("roi_head.mask_head.upsample", "mask_head.upsampling")
        rules |= _mmdet_layer("roi_head.mask_head.conv_logits", "mask_head.logits")
    return rules


_BACKGROUND = ("roi_head.bg_embedding.weight", "roi_head.bg_embedding.bias")  # a linear layer of the constant 1


# ---- both


def is_mmdet(weights: Mapping[str, torch.Tensor]) -> bool:
    return any(name.startswith(("roi_head.", "rpn_head.rpn_")) for name in weights)


def infer_vild_config(weights: Mapping[str, torch.Tensor], *, variant: str | None = None) -> dict[str, Any]:
    """The fields of `ViLDConfig` that fit an official state dict, without its labels. Only shapes are read.

    Args:
        weights: official names.
        variant: `"text"` or `"vild"` (default) for a file with one branch; their weights look alike.

    Raises:
        ValueError: names that the sizes are read from are missing, or `variant` does not fit the file.
    """
    mmdet = is_mmdet(weights)
    second = "roi_head.projection_for_image.weight" if mmdet else f"{HEAD}distill-project-to-clip/kernel"
    if variant is not None and (variant == "ensemble") != (second in weights):
        has = "two branches" if second in weights else "one branch"
        raise ValueError(f"variant: {variant!r}, but the file has {has}")
    fields: dict[str, Any] = {"variant": "ensemble" if second in weights else variant or "vild"}
    if mmdet:
        needed = ["roi_head.projection.weight", "roi_head.bbox_head.fc_reg.weight", "neck.lateral_convs.0.conv.weight"]
        needed += ["backbone.conv1.weight", *_BACKGROUND]
        fail_if_any("missing", [name for name in needed if name not in weights], _OF)
        width, inner = weights[needed[0]].shape
        fields |= {
            "convention": "mmdet",
            "temperature": 0.01,
            "novel_in_loss": "exclude",
            "hidden_size": weights[needed[2]].shape[0],
            "head_num_convs": count_layers(weights, "roi_head.bbox_head.shared_convs."),
            "head_num_layers": count_layers(weights, "roi_head.bbox_head.shared_fcs."),
            "rpn_num_convs": 1,
            "mask_num_convs": count_layers(weights, "roi_head.mask_head.convs."),
            "use_masks": any(name.startswith("roi_head.mask_head.") for name in weights),
            "batch_norm_eps": 1e-5,
            "anchor_ratios": [2.0, 1.0, 0.5],
        }
        stages = [count_layers(weights, f"backbone.layer{i}.") for i in range(1, 5)]
        basic = "backbone.layer1.0.conv3.weight" not in weights
        last = "conv2" if basic else "conv3"
        widths = [weights[f"backbone.layer{i}.0.{last}.weight"].shape[0] for i in range(1, 5)]
        stem = weights["backbone.conv1.weight"].shape[0]
    else:
        needed = [f"{HEAD}project-to-clip/kernel", "fpn/l2/kernel", CLASSES]
        fail_if_any("missing", [name for name in needed if name not in weights], _OF)
        inner, width = weights[needed[0]].shape
        fields |= {
            "hidden_size": weights["fpn/l2/kernel"].shape[-1],
            "head_num_convs": count_names(weights, rf"{HEAD}conv_\d+/kernel"),
            "head_num_layers": count_names(weights, rf"{HEAD}fc\d+/kernel"),
            "rpn_num_convs": len(_proposal_names(weights, 2)),
            "mask_num_convs": count_names(weights, r"mask_head/mask-conv-l\d+/kernel"),
            "use_masks": any(name.startswith("mask_head/") for name in weights),
        }
        stem, widths, stages, basic = _tensorflow_resnet(weights)
    fields["head_hidden_size"] = inner
    fields["backbone_config"] = {
        "embedding_size": stem,
        "hidden_sizes": widths,
        "depths": stages,
        "layer_type": "basic" if basic else "bottleneck",
    }
    fields["dual_encoder_config"] = CLIPConfig(projection_dim=int(width)).to_dict()
    return fields


def count_names(weights: Mapping[str, torch.Tensor], pattern: str) -> int:
    return sum(bool(re.fullmatch(pattern, name)) for name in weights)


def _tensorflow_resnet(weights) -> tuple[int, list[int], list[int], bool]:
    """(channels of the stem, of the stages, blocks of the stages, whether blocks are basic), by the convolutions'
    shapes: a stage begins with a shortcut, the only 1 x 1 convolution that widens to what `fpn/l…` takes."""
    kernels = {}
    for name, tensor in weights.items():
        if m := re.fullmatch(r"resnet\d+/conv2d(?:_(\d+))?/kernel", name):
            kernels[int(m[1] or 0)] = tuple(tensor.shape)
    lateral = [f"fpn/l{i}/kernel" for i in range(2, 6)]
    fail_if_any("missing", [n for n in lateral if n not in weights] or ([] if kernels else ["resnet…/conv2d"]), _OF)
    widths = [weights[name].shape[2] for name in lateral]
    order = [kernels[i] for i in sorted(kernels)]
    basic = not any(shape[0] == 1 and shape[2] * 4 == shape[3] for shape in order[2:])
    each = 2 if basic else 3
    stages, place = [], 1
    for i, width in enumerate(widths):
        end = next(
            (k for k in range(place + 1, len(order)) if i < 3 and order[k][0] == 1 and order[k][3] == widths[i + 1]),
            len(order),
        )
        stages.append((end - place - 1) // each)
        place = end
        del width
    return order[0][-1], widths, stages, basic


def convert_vild_state_dict(weights: Mapping[str, torch.Tensor], config: ViLDConfig) -> dict[str, torch.Tensor]:
    """An official state dict under our names, in float32: everything but the text encoder and the classes. Strict.

    Raises:
        ValueError: missing or unexpected names, other shapes than `config`'s, NaN or infinite weights: the first five
            and how many.
    """
    mmdet = is_mmdet(weights)
    weights = {name: tensor for name, tensor in weights.items() if not _STRAYS.match(name)}
    rules = _mmdet_rules(config, weights) if mmdet else _tensorflow_rules(config, weights)
    extra = _BACKGROUND if mmdet else (CLASSES,)
    fail_if_any("missing", [n for n in (*rules, *(_BACKGROUND if mmdet else ())) if n not in weights], _OF)
    fail_if_any("unexpected", [n for n in weights if n not in rules and n not in extra], _OF)
    fail_if_any("not finite", [n for n, t in weights.items() if not t.is_meta and not t.isfinite().all()], _OF)
    with torch.device("meta"):
        expected = ViLDForZeroShotObjectDetection(_without_texts(config)).state_dict()
    shapes = {official: rule.write(expected[rule.ours]).shape for official, rule in rules.items()}
    shapes |= {name: expected["region_head.background"].shape for name in _BACKGROUND if mmdet}
    shapes |= {_BACKGROUND[0]: (*shapes[_BACKGROUND[0]], 1)} if mmdet else {}
    wrong = [
        f"{n} {tuple(weights[n].shape)}" for n, shape in shapes.items() if tuple(weights[n].shape) != tuple(shape)
    ]
    fail_if_any("of the wrong shape", wrong, _OF)
    found = {
        rule.ours: rule.read(weights[official].float()).clone(memory_format=torch.contiguous_format)
        for official, rule in rules.items()
    }
    if mmdet:
        background = sum(weights[name].float().flatten() for name in _BACKGROUND)
        found["region_head.background"] = background
    for name, tensor in expected.items():
        if name.endswith("num_batches_tracked"):
            found[name] = torch.zeros(tensor.shape, dtype=tensor.dtype)
    fail_if_any("missing", [name for name in expected if name not in found], _OF)
    return found


def to_official(state_dict: Mapping[str, torch.Tensor], config: ViLDConfig) -> dict[str, torch.Tensor]:
    """The inverse of `convert_vild_state_dict` for the TensorFlow layout, with the classes if there are any; for
    DetPro's with `config.convention = "mmdet"`. ValueError for missing or unexpected names."""
    mmdet = config.convention == "mmdet"
    rules = _mmdet_rules(config) if mmdet else _tensorflow_rules(config)
    own = {rule.ours for rule in rules.values()} | {"class_embeddings", "region_head.background"}
    rest = [n for n in state_dict if n not in own and not n.startswith("text_encoder.") and not _STRAYS.match(n)]
    fail_if_any("unexpected", rest, _OF)
    fail_if_any("missing", [rule.ours for rule in rules.values() if rule.ours not in state_dict], _OF)
    found = {official: rule.write(state_dict[rule.ours]).contiguous() for official, rule in rules.items()}
    if mmdet:
        background = state_dict["region_head.background"]
        found |= {_BACKGROUND[0]: background[:, None], _BACKGROUND[1]: torch.zeros_like(background)}
    elif "class_embeddings" in state_dict:
        found[CLASSES] = state_dict["class_embeddings"].t().contiguous()
    return found


def _without_texts(config: ViLDConfig) -> ViLDConfig:
    values = config.to_dict() | {"text_encoder_dropped": True, "label_texts": None, "id2label": {}, "label2id": {}}
    values.pop("num_labels", None)
    return ViLDConfig.from_dict(values)


def vild_from_official(
    weights: Mapping[str, torch.Tensor],
    *,
    variant: str | None = None,
    class_names: list[str] | None = None,
    base_labels: list[str] | None = None,
    dual_encoder=None,
) -> ViLDForZeroShotObjectDetection:
    """A `ViLDForZeroShotObjectDetection` with official weights: float32, on the CPU, in eval mode.

    Args:
        weights: official names, see the head of this file.
        variant: see `infer_vild_config`.
        class_names: names of the classes in the file, in its order. Default: "class 0", "class 1", …
        base_labels: those of them that were trained on.
        dual_encoder: a `CLIPModel` (or another dual encoder) whose text encoder becomes part of the model. Without it
            the model has the classes in the file only, as after `drop_text_encoder`.

    Raises:
        ValueError: as `infer_vild_config` and `convert_vild_state_dict`; another number of `class_names` than the file
            has; a dual encoder of another width; neither classes nor a dual encoder.
    """
    fields = infer_vild_config(weights, variant=variant)
    classes = weights.get(CLASSES)
    if classes is not None:
        names = list(class_names) if class_names else [f"class {i}" for i in range(classes.shape[1])]
        if len(names) != classes.shape[1]:
            raise ValueError(f"class_names: {len(names)} names, the file has {classes.shape[1]} classes")
        fields |= {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
        fields |= {"label_texts": [[name] for name in names], "base_labels": base_labels}
    elif dual_encoder is None:
        raise ValueError(
            "dual_encoder: missing, and the file holds no classes; give the CLIP whose texts it was trained with"
        )
    if dual_encoder is not None:
        fields["dual_encoder_config"] = dual_encoder.config.to_dict()
    config = ViLDConfig(text_encoder_dropped=dual_encoder is None, **fields)
    width = weights["roi_head.projection.weight"].shape[0] if is_mmdet(weights) else classes.shape[0]
    if config.projection_dim != width:
        raise ValueError(f"dual_encoder: joint width {config.projection_dim}, the file has {width}")
    found = convert_vild_state_dict(weights, config)
    model = ViLDForZeroShotObjectDetection(config)
    if classes is not None:
        found["class_embeddings"] = classes.float().t().contiguous()
    if dual_encoder is not None:
        given = dual_encoder.state_dict()
        found |= {f"text_encoder.{name}": given[name].float() for name in model.text_encoder.state_dict()}
    model.load_state_dict(found)
    return model.eval()


def _build(official: OfficialFile) -> BuiltModel:
    options = official.options
    dual = options.get("dual_encoder")
    names = None
    if options.get("classes"):
        from ..dual_encoders.prompts import resolve_class_names

        names = resolve_class_names(options["classes"])
    model = vild_from_official(
        official.weights,
        variant=options.get("variant"),
        class_names=names,
        dual_encoder=None if dual is None else AutoModel.from_pretrained(dual),
    )
    if dual is None:
        official.notes.append("no text encoder: the labels are those of the file; --dual-encoder adds it")
    unused = [name for name in official.weights if _STRAYS.match(name)]
    return BuiltModel(model, unused)


def _make_processor(image_size: int, tokenizer, settings: Mapping[str, Any]):
    return vild_processor(tokenizer, **settings)


CHECKPOINTS = ModelFormat(
    signature=Signature(every=(rf"{HEAD}project-to-clip/kernel|roi_head\.projection\.weight",)),
    build=_build,
    make_processor=_make_processor,
    outputs=("text_features", "logits"),
    outputs_of=class_embedding_outputs,
)


__all__ = [
    "CHECKPOINTS",
    "convert_vild_state_dict",
    "head_rules",
    "infer_vild_config",
    "is_mmdet",
    "to_official",
    "vild_from_official",
]
