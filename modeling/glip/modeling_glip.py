"""GLIP: a detector that compares regions with the words of a prompt, after both have looked at each other."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from transformers import BertModel, PreTrainedModel, SwinBackbone
from transformers import initialization as init
from transformers.image_transforms import corners_to_center_format
from transformers.masking_utils import create_bidirectional_mask
from transformers.utils import can_return_tuple

from ..detection.box_coding import decode_boxes
from ..detection.inputs_detection import check_prompt_rows, check_tensor, content_sizes, read_labels
from ..dual_encoders.forward_checks import check_output, check_pixels, check_token_ids
from ..loading_and_saving.checkpoints import CheckedLoading, StagedSaving
from .boxes_glip import make_anchors
from .configuration_glip import STRIDES, GLIPConfig
from .graph_glip import GLIPGraph
from .head_glip import GLIPDeformableConvolution, GLIPFusion, GLIPHeadLayer, GLIPPredictions, GLIPPyramid
from .losses_glip import (
    NO_OBJECT,
    assign_anchors,
    box_losses,
    centerness_loss,
    centerness_targets,
    mean_over_ranks,
    token_loss,
    token_targets,
)
from .outputs_glip import GLIPObjectDetectionOutput


_IMAGE_MULTIPLE = 32  # officially images are padded to a multiple of this


class PromptWords(NamedTuple):
    """A prompt's words (B, T, D) before and behind the head's layers (without fusion the same), and mask (B, T)."""

    plain: torch.Tensor
    fused: torch.Tensor
    mask: torch.Tensor


class GLIPPreTrainedModel(CheckedLoading, StagedSaving, PreTrainedModel):
    config: GLIPConfig
    base_model_prefix = "glip"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_sdpa = _supports_attention_backend = True
    _no_split_modules = ["SwinStage", "BertLayer", "BertEmbeddings", "GLIPHeadLayer", "GLIPPyramid"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, GLIPPyramid):
            for convolution in (*module.lateral, *module.smooth, *module.further):
                init.kaiming_uniform_(convolution.weight, a=1)
                init.zeros_(convolution.bias)
        elif isinstance(module, GLIPFusion):
            for layer in module.children():
                if isinstance(layer, nn.Linear):
                    init.xavier_uniform_(layer.weight)
                    init.zeros_(layer.bias)
            for scale in (module.image_scale, module.text_scale):
                init.constant_(scale, 1 / self.config.head_num_layers)
        elif isinstance(module, GLIPDeformableConvolution):
            init.normal_(module.weight, std=std)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            init.normal_(module.weight, std=std)
            init.zeros_(module.bias)
        elif isinstance(module, GLIPPredictions):
            prior = self.config.prior_prob
            init.ones_(module.level_scales)
            init.zeros_(module.log_scale)
            init.zeros_(module.text_bias)
            init.constant_(module.bias, -math.log((1 - prior) / prior))

    def save_pretrained(self, *args, **kwargs):
        """As in transformers, but with the model's own parameter names in the file. By default, transformers writes a
        Swin transformer under older names, which `Trainer` does not find when it resumes."""
        kwargs.setdefault("save_original_format", False)
        return super().save_pretrained(*args, **kwargs)


class GLIPForZeroShotObjectDetection(GLIPPreTrainedModel):
    r"""
    GLIP (Li et al. 2022): finds what a text names. The text is a list of class names ("cat. dog"), or a sentence whose
    phrases are found.

    A Swin transformer with a feature pyramid reads the image, BERT the text; in each layer of the head regions and
    words attend to each other (deep fusion). Each region is then compared with each word; the score of a label is the
    mean over its words. [`GLIPProcessor`] makes the prompt and says which words each label has (`phrase_map`).

    Prefer it where sentences and new words are to be found, and where detection and grounding data are trained on
    together. Prefer ViLD where masks are wanted or there are thousands of classes: its time does not depend on them.

    Example:

    ```python
    >>> import torch
    >>> from hf_clip_variants.modeling.glip.configuration_glip import GLIPConfig
    >>> from hf_clip_variants.modeling.glip.modeling_glip import GLIPForZeroShotObjectDetection

    >>> model = GLIPForZeroShotObjectDetection(GLIPConfig.tiny()).eval()
    >>> with torch.no_grad():
    ...     outputs = model(torch.randn(1, 3, 64, 96), input_ids=torch.tensor([[101, 4937, 1012, 3899, 102]]))
    >>> outputs.logits.shape, outputs.pred_boxes.shape, outputs.spatial_shapes.tolist()
    (torch.Size([1, 129, 5]), torch.Size([1, 129, 4]), [[8, 12], [4, 6], [2, 3], [1, 2], [1, 1]])
    ```
    """

    takes_all_labels = True  # in the pipeline
    prompt_encoder = "text_encoder"  # module whose last hidden states learned prompts are added to

    def __init__(self, config: GLIPConfig):
        super().__init__(config)
        self.backbone = SwinBackbone._from_config(config.backbone_config)
        self.backbone.swin.layernorm = nn.Identity()  # of an output that a backbone does not use
        self.text_encoder = BertModel._from_config(config.text_config, add_pooling_layer=False)
        self.pyramid = GLIPPyramid(config)
        self.layers = nn.ModuleList(GLIPHeadLayer(config) for _ in range(config.head_num_layers))
        self.predictions = GLIPPredictions(config)
        self._still: tuple[str, ...] = ()  # parts that stay in eval mode in training
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.text_encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_encoder.set_input_embeddings(value)

    def enable_input_require_grads(self) -> None:
        """As in transformers, which fails at Swin's patch embeddings: they return a tuple. Their convolution is taken
        instead."""

        def require(module, inputs, output):
            output.requires_grad_(True)

        layers = (self.get_input_embeddings(), self.backbone.swin.embeddings.patch_embeddings.projection)
        self._require_grads_hooks = [layer.register_forward_hook(require) for layer in layers]

    def as_graph(self, processor: Any, labels: Sequence[str], size: tuple[int, int]) -> GLIPGraph:
        """The model as a function of pixels (B, 3, height, width) alone, see [`GLIPGraph`]: for export."""
        return GLIPGraph(self, processor, labels, size)

    # ---- what is trained

    def set_tuning(self, mode: Literal["full", "linear_probe"] = "full") -> None:
        """What is trained from now on: everything (`"full"`), or what compares regions with words and predicts boxes
        (`"linear_probe"`). It is not saved: call it after loading.

        The linear probe trains the layers of boxes and centerness, the words' projection, temperature and biases; the
        levels' scales stay. Swin, pyramid and BERT also stay in eval mode; the head's layers, which are frozen, too,
        keep their dropout, as officially.

        Raises:
            ValueError: another `mode`.
        """
        if mode not in ("full", "linear_probe"):
            raise ValueError(f"mode: {mode!r}, expected 'full' or 'linear_probe'")
        for parameter in self.parameters():
            parameter.requires_grad_(mode == "full")
        self._still = ()
        if mode == "linear_probe":
            for parameter in self.predictions.parameters():
                parameter.requires_grad_(True)
            self.predictions.level_scales.requires_grad_(False)
            self._still = ("backbone", "pyramid", "text_encoder")
        self.train(self.training)

    def train(self, mode: bool = True) -> "GLIPForZeroShotObjectDetection":
        super().train(mode)
        for name in self._still:
            getattr(self, name).eval()
        return self

    # ---- parts of the forward pass

    def encode_prompts(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        phrase_map: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Token ids (B, T) -> BERT's last hidden states (B, T, D). They do not depend on the image: `text_embeds` of
        `forward`, for many images with the same prompt.

        With `separate_names`, `phrase_map` (B, K, T) says which tokens are a name's.
        """
        positions = None
        if self.config.separate_names:
            if phrase_map is None:
                raise ValueError("phrase_map: missing, which a model with separate_names needs, expected (B, K, T)")
            attention_mask, positions = _separate(phrase_map, attention_mask, self.text_encoder.dtype)
        outputs = self.text_encoder(input_ids, attention_mask, position_ids=positions, return_dict=True)
        return outputs.last_hidden_state

    def feature_maps(
        self, pixel_values: torch.Tensor, output_hidden_states: Any = True
    ) -> tuple[list[torch.Tensor], tuple[torch.Tensor, ...] | None]:
        """Images (B, 3, H, W) -> the pyramid's five maps, and Swin's hidden states. Images are padded at the right
        and the bottom to multiples of 32."""
        height, width = pixel_values.shape[-2:]
        pixel_values = pixel_values.to(self.pyramid.lateral[0].weight.dtype)
        pixel_values = nn.functional.pad(pixel_values, (0, -width % _IMAGE_MULTIPLE, 0, -height % _IMAGE_MULTIPLE))
        outputs = self.backbone(pixel_values, output_hidden_states=output_hidden_states, return_dict=True)
        return self.pyramid(outputs.feature_maps), outputs.hidden_states

    def run_head(
        self, features: list[torch.Tensor], words: torch.Tensor, mask: torch.Tensor
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Maps (B, C, h, w) and words (B, T, D), with mask (B, T) -> both behind the head's layers."""
        attention_mask = create_bidirectional_mask(self.config.text_config, words, mask)
        for layer in self.layers:
            words, *features = layer(words, mask, attention_mask, *features)
        return features, words

    def anchors_of(self, shapes: Sequence[Sequence[int]], device=None) -> list[torch.Tensor]:
        """(height, width) of each level -> its anchors (A_l, 4)."""
        sizes = self.config.anchor_sizes
        return [make_anchors(*one, device=device) for one in zip(shapes, STRIDES, sizes, strict=True)]

    # ---- forward

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        phrase_map: torch.FloatTensor | None = None,
        pixel_mask: torch.LongTensor | None = None,
        text_embeds: torch.FloatTensor | None = None,
        labels: Sequence[Mapping[str, torch.Tensor]] | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> GLIPObjectDetectionOutput:
        r"""
        Args:
            pixel_values: (B, 3, H, W), RGB, normalised.
            input_ids, attention_mask: the prompt of each image, (B, T); of all images, (1, T); or P prompts for each,
                (B, P, T) or (1, P, T): the image is then encoded once.
            phrase_map: (B, K, T), or (B, P, K, T) with P prompts: not 0 where a token belongs to a label. Needed for
                `labels`; handed on to the post-processing. One for all images is (1, …).
            pixel_mask: (B, H, W), 1 where an image is and 0 in its padding, at the right and the bottom.
            text_embeds: (B, T, D) or (1, T, D) of `encode_prompts`, instead of `input_ids`.
            labels: of each image a dictionary of `class_labels` (N,), rows of its `phrase_map`, and `boxes` (N, 4) as
                `pred_boxes`. Then there is a loss, in eval mode, too.

        Raises:
            ValueError: names the argument, what came and what is wanted.
        """
        check_pixels(pixel_values, self.config.backbone_config.num_channels)
        batch = len(pixel_values)
        sizes = content_sizes(pixel_values, pixel_mask)
        prompts, several = self._prompts(input_ids, attention_mask, text_embeds, phrase_map, batch)
        phrase_map = None if phrase_map is None else phrase_map.expand(batch, *phrase_map.shape[1:])
        targets = None
        if labels is not None:
            if several or phrase_map is None:
                wrong = "several prompts for each image" if several else "no phrase_map"
                raise ValueError(f"labels: {wrong}, expected one prompt, and a phrase_map with a row for each label")
            targets = _targets(labels, sizes, phrase_map)

        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        features, hidden_states = self.feature_maps(pixel_values, output_hidden_states)
        shapes = [tuple(one.shape[-2:]) for one in features]
        anchors = torch.cat(self.anchors_of(shapes, pixel_values.device))
        found, read, behind = [], [], None
        for words, mask in prompts:
            words, mask = words.expand(batch, -1, -1), mask.expand(batch, -1)
            if behind is None or self.config.use_fusion:  # without fusion the head does not see the words
                behind, fused = self.run_head(features, words, mask)
            read.append(PromptWords(words, fused if self.config.use_fusion else words, mask))
            found.append(self.predictions(behind, read[-1].fused))
        logits, codes, centerness = (
            torch.stack(parts, dim=1) if several else parts[0] for parts in zip(*found, strict=True)
        )
        given = {"pixel_values": pixel_values, "text_embeds": text_embeds}
        for name, values in (("logits", logits), ("pred_boxes", codes), ("centerness", centerness)):
            check_output(self, values, name, **given)
        boxes = decode_boxes(codes.float(), anchors)
        check_output(self, boxes, "pred_boxes", **given)
        image_sizes = torch.tensor(sizes, device=boxes.device)
        scale = image_sizes.flip(1).repeat(1, 2).view(batch, *(1,) * (boxes.dim() - 2), 4)
        fields: dict[str, Any] = {}
        if targets is not None:
            owners = [
                assign_anchors(objects, anchors, [h * w for h, w in shapes], self.config.num_candidates)
                for objects, _ in targets
            ]
            losses = self._losses(logits, boxes, centerness, anchors, owners, targets, prompts[0][1])
            given = {"phrase_map": phrase_map, "labels": labels} | kwargs
            losses |= self.further_losses(features, read[0], boxes, owners, targets, **given)
            weights = self.loss_weights
            fields["loss"] = sum(weights.get(name, 1.0) * value for name, value in losses.items())
            fields["loss_dict"] = {name: value.detach() for name, value in losses.items()}
            check_output(self, fields["loss"], "loss", **given)
        if output_hidden_states is not None and output_hidden_states is not False:
            fields["hidden_states"] = hidden_states
        outputs = GLIPObjectDetectionOutput(
            logits=logits,
            pred_boxes=corners_to_center_format(boxes / scale),  # float32: bfloat16 is too coarse for places
            centerness=centerness,
            spatial_shapes=torch.tensor(shapes, device=boxes.device),
            image_sizes=image_sizes,
            phrase_map=phrase_map,
            input_ids=input_ids,
            **fields,
        )
        return self.with_further_outputs(outputs, features, read, **kwargs)

    # ---- what models add that are built on this one

    @property
    def loss_weights(self) -> dict[str, float]:
        """Of the losses whose weight is not 1."""
        return {"loss_box": self.config.box_loss_weight}

    def further_losses(
        self, features, words: PromptWords, boxes, owners, targets, **kwargs: Any
    ) -> dict[str, torch.Tensor]:
        """Losses by name, of the pyramid's maps, the prompt's words, the predicted boxes (B, A, 4) in pixels, the
        object of each anchor of each image, the objects and their tokens (`read_labels`), and what else `forward` was
        given."""
        return {}

    def with_further_outputs(self, outputs, features, words: Sequence[PromptWords], **kwargs: Any):
        """`outputs`, with what is not in GLIP's, of the pyramid's maps and the words of each prompt."""
        return outputs

    def _prompts(self, input_ids, attention_mask, text_embeds, phrase_map, batch: int):
        """Words (B or 1, T, D) and mask (B or 1, T) of each prompt, and whether an image has several."""
        if (input_ids is None) == (text_embeds is None):
            got = "neither" if input_ids is None else "both"
            raise ValueError(f"input_ids, text_embeds: got {got}, expected one of them")
        given, name = (input_ids, "input_ids") if text_embeds is None else (text_embeds, "text_embeds")
        if text_embeds is None:
            several = isinstance(input_ids, torch.Tensor) and input_ids.dim() == 3
            check_token_ids(input_ids.flatten(0, 1) if several else input_ids, self.config.text_config.vocab_size)
        elif not isinstance(given, torch.Tensor) or not given.is_floating_point():
            got = given.dtype if isinstance(given, torch.Tensor) else type(given).__name__
            raise ValueError(f"text_embeds: got {got}, expected floats, from encode_prompts")
        dimensions = (2, 3) if text_embeds is None else (3,)
        check_prompt_rows(name, given, dimensions, batch)
        shape = given.shape if text_embeds is None else given.shape[:2]
        if attention_mask is None:
            attention_mask = torch.ones(shape, dtype=torch.long, device=given.device)
        check_tensor("attention_mask", attention_mask)
        if attention_mask.shape != shape:
            raise ValueError(f"attention_mask: got {list(attention_mask.shape)}, expected {list(shape)} as {name}")
        if shape[-1] > self.config.max_text_length:
            raise ValueError(
                f"{name}: {shape[-1]} tokens, expected at most {self.config.max_text_length} (max_text_length); "
                "GLIPProcessor splits long class lists into several prompts"
            )
        several = text_embeds is None and input_ids.dim() == 3
        _check_map(phrase_map, shape, several, batch)
        if text_embeds is not None:
            return [(text_embeds.to(self.dtype), attention_mask)], False
        own_map = None
        if phrase_map is not None and self.config.separate_names:
            rows = max(len(input_ids), len(phrase_map))  # one prompt may have names of each image
            input_ids, attention_mask, own_map = (
                one.expand(rows, *one.shape[1:]) for one in (input_ids, attention_mask, phrase_map)
            )
            own_map = own_map.flatten(0, -3)
        masks = attention_mask.unbind(1) if several else [attention_mask]
        flat = self.encode_prompts(input_ids.flatten(0, -2), attention_mask.flatten(0, -2), own_map)
        words = flat.unflatten(0, input_ids.shape[:-1]).unbind(1) if several else [flat]
        return list(zip(words, masks, strict=True)), several

    def _losses(self, logits, boxes, centerness, anchors, owners, targets, mask) -> dict[str, torch.Tensor]:
        config = self.config
        wanted_tokens, predicted, wanted, centres, places = [], [], [], [], []
        for i, ((objects, positive_map), own) in enumerate(zip(targets, owners, strict=True)):
            wanted_tokens.append(token_targets(own, positive_map))
            (present,) = torch.where(own != NO_OBJECT)
            predicted.append(boxes[i, present])
            wanted.append(objects[own[present]])
            centres.append(centerness[i, present])
            places.append(anchors[present])
        predicted, wanted, centres, places = (torch.cat(one) for one in (predicted, wanted, centres, places))
        weights = centerness_targets(wanted, places)
        divisors = mean_over_ranks(torch.stack([weights.new_tensor(float(len(weights))), weights.sum()]))
        objects, weight = divisors[0].clamp_min(1), divisors[1].clamp_min(torch.finfo(torch.float32).eps)
        mask = mask.expand(len(logits), -1)
        of_words = token_loss(logits, torch.stack(wanted_tokens), mask, config.focal_alpha, config.focal_gamma)
        # Without objects the sums are empty: zeros, with a gradient of 0 for every weight.
        return {
            "loss_words": of_words / objects,
            "loss_box": (weights * box_losses(predicted, wanted)).sum() / weight,
            "loss_centerness": centerness_loss(centres, weights) / objects,
        }


def _check_map(phrase_map: torch.Tensor | None, shape: Sequence[int], several: bool, batch: int) -> None:
    """`shape` is that of the token ids."""
    if phrase_map is None:
        return
    check_tensor("phrase_map", phrase_map)
    fits = phrase_map.dim() == (4 if several else 3) and len(phrase_map) in (1, batch)
    if not fits or phrase_map.shape[-1] != shape[-1] or (several and phrase_map.shape[1] != shape[1]):
        expected = [batch, *([shape[1]] if several else []), "labels", shape[-1]]
        raise ValueError(f"phrase_map: got {list(phrase_map.shape)}, expected {expected}")


def _separate(
    phrase_map: torch.Tensor, attention_mask: torch.Tensor | None, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, K, T) and (B, T) -> what is added to BERT's attention (B, 1, T, T), and positions (B, T).

    A name's tokens see themselves and [CLS], which stands at the front, and follow it as if there was nothing else. A
    token of several phrases is the first one's.
    """
    members = phrase_map != 0
    rows = torch.cat([~members.any(dim=1, keepdim=True), members], dim=1)  # row 0: of no name
    owner = rows.int().argmax(dim=1)  # (B, T)
    numbers = torch.arange(rows.shape[1], device=rows.device)
    start = (owner[:, None] == numbers[:, None]).int().argmax(dim=2).gather(1, owner)
    places = torch.arange(rows.shape[2], device=rows.device)
    positions = torch.where(owner > 0, places - start + 1, 0)
    alike = (owner[:, :, None] == owner[:, None]) & (owner > 0)[:, None]
    itself = places[:, None] == places
    seen = alike | (places == 0)
    if attention_mask is not None:
        seen = seen & (attention_mask > 0)[:, None]
    seen = seen & (places > 0)[:, None] | itself
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)[:, None], positions


def _targets(labels, sizes, phrase_map: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Boxes in pixels (N, 4) and their tokens (N, T), of each image."""
    found, count = [], phrase_map.shape[1]
    if not count:
        raise ValueError("phrase_map: no label, expected a row for each label that 'labels' has")
    read = read_labels(labels, sizes, count, phrase_map.device, "rows of phrase_map, ")
    for i, objects in enumerate(read):
        rows = phrase_map[i, objects.classes]
        if bool((empty := (rows == 0).all(dim=1)).any()):
            name = int(objects.classes[empty][0])
            raise ValueError(f"labels[{i}]['class_labels']: {name} has no token in phrase_map")
        found.append((objects.boxes, rows))
    return found


__all__ = ["GLIPForZeroShotObjectDetection", "GLIPPreTrainedModel"]
