"""`CLIPClassifier`: a dual encoder that knows its classes, and the four places where adapters plug in."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple

from ..dual_encoders.backbones import family_of, unit_norm
from ..dual_encoders.offloading import offloading_hooks, offloads_buffers
from ..dual_encoders.prompts import prompt_counts, resolve_class_names, resolve_templates
from ..dual_encoders.tracing import is_traced
from ..loading_and_saving.optional_modules import checkpoint_mixins, optional_checks
from .adapter_places import (
    ClassPrompts,
    EmbeddedPrompts,
    FeatureAdapter,
    LogitHead,
    PromptEmbedder,
    adapters_on,
    ensemble_prompts,
)
from .class_features import ClassFeatureCache, HeldFeatures, in_eval_mode, text_state
from .classification_loss import MULTI_LABEL, classification_loss, label_calibration
from .configuration_clip_classifier import CLIPClassifierConfig
from .named_classes import NamedClasses, tokenize_classes


_checks = optional_checks("..dual_encoders.forward_checks", __package__)


# B images, C classes, T templates, N = C*T prompts, L tokens, S tail tokens, W text width, D joint width


@dataclass
class CLIPClassifierOutput(ModelOutput):
    """What `CLIPClassifier` returns: embeddings of unit norm; `hidden_states`, `attentions` of the image encoder."""

    loss: torch.FloatTensor | None = None  # (), with `labels`; see `classification_loss.py`
    # (B, C) scaled cosine of each image and each class; adapters may add to it. With several labels an image:
    # calibrated, see `label_calibration.py`
    logits: torch.FloatTensor | None = None
    logits_per_image: torch.FloatTensor | None = None  # the same under CLIP's name, never calibrated
    logits_per_text: torch.FloatTensor | None = None  # (C, B), its transpose
    image_embeds: torch.FloatTensor | None = None  # (B, D)
    text_embeds: torch.FloatTensor | None = None  # (C, D); (B, C, D) where prompts are made from each image (CoCoOp)
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


class CLIPClassifierPreTrainedModel(*checkpoint_mixins(), PreTrainedModel):
    config: CLIPClassifierConfig
    base_model_prefix = "clip"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    # other families bring their own
    _no_split_modules = ["CLIPEncoderLayer", "CLIPTextEmbeddings", "CLIPVisionEmbeddings"]
    # a plain CLIP checkpoint knows no classes
    _keys_to_ignore_on_load_missing = ["prompt_ids", "tail_ids", "tail_name_lengths", "class_features"]
    _keys_to_ignore_on_load_missing += ["class_features_ready", "label_calibration"]

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, CLIPClassifier):
            buffers = (module.prompt_ids, module.tail_ids, module.tail_name_lengths)
            for buffer, placeholder in zip(buffers, module._placeholder_prompts(), strict=True):
                init.copy_(buffer, placeholder)
            init.zeros_(module.class_features)
            init.zeros_(module.class_features_ready)
        elif hasattr(module, "initial_tensors"):  # a LabelCalibration
            for name, value in module.initial_tensors().items():
                init.constant_(getattr(module, name), value)


class CLIPClassifier(CLIPClassifierPreTrainedModel):
    r"""
    Image classifier whose weights are the text embeddings of the class names (Radford et al. 2021, section 3.1).

    Holds a dual encoder (`clip`), the classes, the templates and the classes' cached features, which are saved with
    it: a reloaded classifier never runs the text encoder, and it runs it once for any number of images. Trains with
    `Trainer`, whole or through adapters, which replace one of four parameter-free modules: `prompt_embedder`,
    `image_feature_adapter`, `text_feature_adapter`, `logit_head`.

    Prefer plain `CLIPModel` for retrieval and contrastive training; `CLIPForImageClassification` has a randomly
    initialised linear head and no use for class names.

    Example:

    ```python
    >>> from hf_clip_variants import CLIPClassifier, CLIPClassifierProcessor, embedded_model

    >>> names, processor = ["cat", "dog", "pizza"], CLIPClassifierProcessor.from_pretrained(embedded_model())
    >>> model = CLIPClassifier.from_pretrained(embedded_model(), class_names=names, templates="icons")
    >>> model.class_names
    ['cat', 'dog', 'pizza']
    ```
    """

    def __init__(self, config: CLIPClassifierConfig):
        super().__init__(config)
        self.family = family_of(config.backbone_model_type)
        self.clip = self.family.model_class()._from_config(self.family.model_config(config))
        self.prompt_embedder = PromptEmbedder()
        self.image_feature_adapter = FeatureAdapter()
        self.text_feature_adapter = FeatureAdapter()
        self.logit_head = LogitHead()
        self.label_calibration = self.new_label_calibration() if config.problem_type == MULTI_LABEL else None
        self._register_prompts(*self._placeholder_prompts())
        # Whether `forward` may use `pooled_image_features`, whose last bits differ: the commands set it.
        self.faster_images = False
        self._tokenizer = None
        self._kept = ClassFeatureCache()  # class_features.py says when what is valid
        self.post_init()

    def _placeholder_prompts(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Prompts "SOS <class index> EOS": a model made from a configuration alone can run."""
        config, eos = self.config, self.padding_id
        last = config.text_config.vocab_size - 1
        prompts = torch.full(
            (config.num_labels, max([*config.prompt_counts, 1]), config.prompt_length), min(eos, last)
        )
        prompts[..., 0] = min(config.text_config.bos_token_id or 0, last)
        if config.prompt_length > 2:
            prompts[..., 1] = (torch.arange(config.num_labels) % max(min(last, eos), 1))[:, None]
        tails = torch.full((config.num_labels, config.tail_length), eos)
        return prompts.int(), tails.int(), torch.zeros(config.num_labels, dtype=torch.int32)

    def _register_prompts(self, prompt_ids: torch.Tensor, tail_ids: torch.Tensor, tail_name_lengths: torch.Tensor):
        scale, ids = self.clip.logit_scale, {"prompt_ids": prompt_ids, "tail_ids": tail_ids}
        for name, value in (ids | {"tail_name_lengths": tail_name_lengths}).items():
            self.register_buffer(name, value.to(scale.device))
        self.register_buffer("class_features", scale.new_zeros(len(prompt_ids), self.config.projection_dim))
        # Travels in the state dict: whether class_features belong to the text encoder saved beside them.
        self.register_buffer("class_features_ready", torch.zeros((), dtype=torch.bool, device=scale.device))

    def new_label_calibration(self) -> nn.Module:
        """A `LabelCalibration` with its initial values, of the right number of classes."""
        has_bias = self.family.logit_bias(self.clip) is not None
        return label_calibration().LabelCalibration(self.config.num_labels, has_bias).to(self.clip.logit_scale)

    # ---- what happens to kept class features; the table is in class_features.py

    def __getstate__(self):
        return self.__dict__ | {"_kept": self._stored_features_are_valid()}

    def __setstate__(self, state):
        super().__setstate__(state)
        valid, self._kept = self._kept, ClassFeatureCache()
        if valid:
            self._kept.set_stored(self._text_side())

    def _apply(self, fn, *args, **kwargs):
        """`.to`, `.half`, `.cuda`, ...: stored features move along; in another dtype they are computed anew."""
        valid, dtype = self._stored_features_are_valid(), self.class_features.dtype
        super()._apply(fn, *args, **kwargs)
        self._kept.forget()
        if valid and self.class_features.dtype == dtype:
            self._kept.set_stored(self._text_side())
        return self

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        if name == "peft_config" and adapters_on(self._text_side()):
            # PEFT sets it when its layers are in place. Merging them writes to the weights past the version counters.
            self._kept.forget()
            if self.config.fixed_class_features:
                warnings.warn("adapters on the text encoder change nothing: class features are fixed", stacklevel=2)

    def forget_class_features(self) -> None:
        """Computes class features anew at the next forward: for weights that were changed in place through `.data`.
        Fixed ones stay."""
        self.class_features_ready.fill_(self.config.fixed_class_features)
        self._kept.forget()

    def fix_class_features(self, features: torch.Tensor) -> None:
        """Classes by features (C, D) instead of prompts, for good: before the text adapter, not normalised. They do
        not follow the text encoder's weights, and the classes cannot be changed. Adapters merge this way."""
        if features.shape != self.class_features.shape:
            raise ValueError(
                f"features: expected {list(self.class_features.shape)}, got {list(features.shape)} (classes, width)"
            )
        with torch.no_grad():
            self.class_features.copy_(features)
        self.config.fixed_class_features = True
        self.forget_class_features()

    def _stored_features_are_valid(self) -> bool:
        return self._kept.stored_state is not None and self._kept.stored_state == text_state(self._text_side())

    # ---- classes

    @property
    def class_names(self) -> list[str]:
        """Class names in label order."""
        return self.config.class_names

    @property
    def padding_id(self) -> int:
        """What prompts are filled up with: CLIP's end token, other families' padding token."""
        return self.family.padding_id(self.config)

    @property
    def tokenizer(self):
        """The tokenizer beside the checkpoint (read when first needed), or the one that was assigned."""
        if self._tokenizer is None:
            source = self.config._name_or_path
            try:
                if not source:
                    raise OSError("the model was not loaded from a checkpoint")
                self._tokenizer = AutoTokenizer.from_pretrained(source)
            except (OSError, ValueError, KeyError) as error:
                raise ValueError(
                    f"tokenizer: none given, and none found beside the checkpoint {source!r} ({error}); "
                    "pass set_classes(..., tokenizer=AutoTokenizer.from_pretrained(...))"
                ) from error
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer):
        self._tokenizer = tokenizer

    def set_classes(
        self,
        class_names: str | Sequence[str] | Mapping[int, str],
        templates: str | Path | Sequence[str] | Mapping[str, Sequence[str]] | None = None,
        tokenizer=None,
    ) -> "CLIPClassifier":
        """Names the classes, in label order, and the templates (default: those already set, else the family's,
        `"a photo of a {}."`).

        Templates may be one string, a list, a file or a named set (`modeling/dual_encoders/prompts.py`), or prompts of
        each class, `{class: [sentences]}`, any number a class. Class features are computed at the next forward.
        Raises ValueError for empty, blank or repeated names, names whose prompts are the same token ids,
        and bad templates, and while an adapter is on the model that depends on the old classes. Returns the model.
        """
        names = resolve_class_names(class_names)
        templates = self._templates_of(names, templates)
        if self.config.fixed_class_features and (names, templates) == (self.class_names, self.config.templates):
            return self
        self._refuse_if_classes_are_fixed()
        if tokenizer is not None:
            self._tokenizer = tokenizer
        ids = self._tokenized(names, templates)
        return self.set_prompt_ids(ids.template_ids, ids.tail_ids, ids.tail_name_lengths, names, templates)

    def _templates_of(self, names: list[str], templates=None) -> list[str] | dict[str, list[str]]:
        if templates is None:
            templates = self.config.templates or self.family.default_template
            if isinstance(templates, Mapping) and templates.keys() >= set(names):
                templates = {name: templates[name] for name in names}
        return resolve_templates(templates, names)

    def _tokenized(self, names: list[str], templates: list[str] | dict[str, list[str]]) -> NamedClasses:
        return tokenize_classes(
            names,
            templates,
            self.tokenizer,
            max_length=self.family.context_length(self.config),
            num_start_tokens=self.family.num_start_tokens,
            padding_id=self.padding_id,
            full_stop=self.family.full_stop,
        )

    def set_prompt_ids(
        self,
        template_ids: torch.Tensor,
        tail_ids: torch.Tensor,
        tail_name_lengths: torch.Tensor,
        class_names: Sequence[str],
        templates: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    ) -> "CLIPClassifier":
        """`set_classes` for those who tokenised themselves.

        `template_ids` (C, T, L): every class in every template, from SOS to EOS, padded with anything after EOS; of
        prompts of each class, T is the largest number of them, and rows behind a class's own are not read.
        `tail_ids` (C, S): `"name."` without SOS, with EOS; `tail_name_lengths` (C,): how many of them are the name.
        `templates`: T of them, or the prompts of each class, for the record.
        """
        names = resolve_class_names(class_names)
        if template_ids.dim() != 3 or tail_ids.dim() != 2 or tail_name_lengths.dim() != 1:
            raise ValueError(
                "template_ids, tail_ids, tail_name_lengths: expected shapes (C, T, L), (C, S), (C,), got "
                f"{tuple(template_ids.shape)}, {tuple(tail_ids.shape)}, {tuple(tail_name_lengths.shape)}"
            )
        counts = {len(template_ids), len(tail_ids), len(tail_name_lengths), len(names)}
        if len(counts) != 1:
            raise ValueError(f"class_names: {len(names)} names for ids of {sorted(counts - {len(names)})} classes")
        templates = templates or [f"{{}} [{index}]" for index in range(template_ids.shape[1])]
        templates = resolve_templates(templates, names)
        if (most := max(prompt_counts(names, templates))) != template_ids.shape[1]:
            raise ValueError(f"templates: {most} templates, template_ids has {template_ids.shape[1]}")
        self._refuse_if_classes_are_fixed()
        self._refuse_while_adapters_depend_on(names)
        config = self.config
        changed = (names, templates) != (config.class_names, config.templates)
        if changed:
            config.temperature = config.rejection_threshold = None  # measured for the old ones
        config.id2label = dict(enumerate(names))
        config.label2id = {name: index for index, name in enumerate(names)}
        config.templates = templates
        config.prompt_length = template_ids.shape[-1]
        config.tail_length = tail_ids.shape[-1]
        self._register_prompts(template_ids.int(), tail_ids.int(), tail_name_lengths.int())
        self._kept.forget()
        if changed and hasattr(type(self.label_calibration), "initial_tensors"):  # an adapter's is tied to its classes
            self.label_calibration = self.new_label_calibration()
        return self

    def _refuse_if_classes_are_fixed(self):
        if self.config.fixed_class_features:
            raise ValueError(
                "class_names: an adapter was merged into the class features of this model, so its classes and "
                "templates are fixed; change those of the base model, and load the adapter onto it"
            )

    def _refuse_while_adapters_depend_on(self, class_names: list[str]):
        for name, module in self.named_modules():
            check = getattr(module, "check_class_names", None)  # offered by our tuner layers
            if check is not None and name:
                check(class_names)

    @property
    def class_prompts(self) -> ClassPrompts:
        """The classes as token ids."""
        family = self.family
        ids = (self.prompt_ids, self.tail_ids, self.tail_name_lengths)
        counts = self.config.prompt_counts if isinstance(self.config.templates, Mapping) else ()
        own_counts = tuple(counts) if len(set(counts)) > 1 else None
        about = (self.padding_id, family.num_start_tokens, family.context_length(self.config), own_counts)
        return ClassPrompts(*ids, *about)

    # ---- classes of one call: named_classes.py

    def _classes_of_call(self, class_names) -> tuple[NamedClasses, tuple]:
        """The classes as token ids, and what tells them from others."""
        names = resolve_class_names(class_names)
        if self.config.fixed_class_features:
            self._refuse_if_classes_are_fixed()
        self._refuse_while_adapters_depend_on(names)
        templates, tokenizer = self._templates_of(names), self.tokenizer
        key = (tuple(names), repr(templates), id(tokenizer))
        return self._kept.named(key, lambda: (self._tokenized(names, templates), tokenizer))[0], key

    def _features_of_call(self, classes: NamedClasses, key: tuple, image_embeds: torch.Tensor) -> torch.Tensor:
        """As `get_class_features`, of the classes of a call: (C, D), or (B, C, D) where the images take part."""
        text_side, device = self._text_side(), self.prompt_ids.device
        limits = (self.padding_id, self.family.num_start_tokens, self.family.context_length(self.config))

        def encode():
            table = self.family.token_embedding_of(self.clip)
            return self._encode(self.prompt_embedder(classes.prompts(device, *limits), table, image_embeds))

        def encode_to_keep():
            with torch.no_grad(), self._no_autocast(), in_eval_mode(text_side):
                return encode()

        if self.prompt_embedder.depends_on_images:
            return encode()
        if torch.is_grad_enabled() and self._text_side_is_trained():
            return encode()
        state = self._kept.state_number(text_side)
        kept = state is not None
        return self._kept.recent((state, key, device), text_side, encode_to_keep) if kept else encode_to_keep()

    # ---- class features: (C, D), before the text adapter

    def _encode(self, prompts: EmbeddedPrompts) -> torch.Tensor:
        """(C, D), or (B, C, D) where prompts differ from image to image."""
        options = {"checkpoint": self.training and self.is_activation_checkpointing}
        if prompts.max_tokens_per_chunk is not None:
            options = {"checkpoint": True, "max_tokens_per_chunk": prompts.max_tokens_per_chunk}
        features = self.family.encode_text(self.clip, prompts.input_ids, **options, **prompts.learned())
        per_class = prompts.prompts_per_class
        if isinstance(per_class, int):
            return ensemble_prompts(features.unflatten(-2, (-1, per_class)))
        return ensemble_prompts(features, per_class)

    def _encode_classes(self, image_embeds: torch.Tensor | None = None) -> torch.Tensor:
        if not self.config.templates:
            raise ValueError("class_names: no classes are set; call set_classes([...]) or pass input_ids")
        return self._encode(
            self.prompt_embedder(self.class_prompts, self.family.token_embedding_of(self.clip), image_embeds)
        )

    def _text_side(self) -> tuple[nn.Module, ...]:
        return (*self.family.text_modules(self.clip), self.prompt_embedder)

    def get_class_features(self, input_ids: torch.Tensor | None = None) -> torch.Tensor:
        """(C, D) class features before the text adapter and normalisation; of the stored classes, or of prompts (C, L)
        given as ids.

        Computed once and kept while nothing that they depend on changes (a label set each, so threads with different
        labels do not disturb each other); recomputed with gradient in training when something that they depend on is
        trained. ValueError for stored classes whose prompts depend on the images (CoCoOp): `forward` computes those,
        as (B, C, D). Fixed class features (`fix_class_features`) are returned as they are.
        """
        if input_ids is None and self.config.fixed_class_features:
            return self.class_features
        if input_ids is None and self.prompt_embedder.depends_on_images:
            raise ValueError(
                "class features: the adapter makes prompts from each image; call the model with pixel_values or "
                "image_features"
            )
        if input_ids is None and self._kept.held is not None:
            return self._kept.held.features
        if torch.is_grad_enabled() and self._text_side_is_trained():
            text_modules = self.family.text_modules(self.clip)
            trained = self.training and any(p.requires_grad for m in text_modules for p in m.parameters())
            if trained and not is_traced():
                self.forget_class_features()
            return self._encode_classes() if input_ids is None else self._encode(EmbeddedPrompts(input_ids))
        if is_traced():
            if input_ids is not None:
                return self._encode(EmbeddedPrompts(input_ids))
            knows = not torch.compiler.is_dynamo_compiling() and not adapters_on(self._text_side())
            return self.class_features if knows and self._kept.stored_is_untouched() else self._encode_classes()
        if not torch.compiler.is_compiling():
            return self._kept_class_features(input_ids)
        if input_ids is not None:
            return self._encode(EmbeddedPrompts(input_ids))
        if self._kept.stored_state is not None and not adapters_on(self._text_side()):
            return self.class_features
        return torch.compiler.disable(self._kept_class_features)(None)  # what a graph cannot know: adapters' features

    @contextmanager
    def class_features_held(self) -> Iterator[None]:
        """Within the block class features are constants: computed once, and no forward looks whether something that
        they depend on has changed. For training loops in which nothing on the text side is trained; where something
        is, or where prompts are made from each image, the block changes nothing.

        `set_classes`, moving the model and adding adapters end the hold. Weights that are written to, and adapters
        that are switched, within the block are not seen.
        """
        follows_images = self.prompt_embedder.depends_on_images and not self.config.fixed_class_features
        if self._kept.held is not None or follows_images or not self.config.templates or self._text_side_is_trained():
            yield
            return
        with torch.no_grad():
            features = self.get_class_features()
            embeds = unit_norm(features) if type(self.text_feature_adapter) is FeatureAdapter else None
        self._kept.held = HeldFeatures(features, embeds)
        try:
            yield
        finally:
            self._kept.held = None

    def _text_side_is_trained(self) -> bool:
        return self._kept.is_trained(self._text_side())

    def _kept_class_features(self, input_ids: torch.Tensor | None) -> torch.Tensor:
        text_side = self._text_side()
        state = self._kept.state_number(text_side)

        def compute():
            with self._no_autocast(), in_eval_mode(text_side):
                if input_ids is None:
                    return self._stored_features(text_side)
                return self._encode(EmbeddedPrompts(input_ids))

        if state is None:
            with torch.no_grad():
                return compute()
        labels = None if input_ids is None else self._kept.key_of_labels(input_ids)
        return self._kept.recent((state, labels, self.prompt_ids.device), text_side, compute)

    def _stored_features(self, text_side: tuple[nn.Module, ...]) -> torch.Tensor:
        """The saved features if they belong to the weights as they are, else computed (and stored, unless an adapter
        had a part in them)."""
        if adapters_on(text_side):
            return self._encode_classes()
        if offloads_buffers(self) and not self._stored_features_are_valid():
            return self._encode_classes()  # what is written into the buffer would be lost
        if not self._stored_features_are_valid():
            self.class_features.copy_(self._encode_classes())
            self.class_features_ready.fill_(True)
            self._kept.set_stored(text_side)
        return self.class_features.clone()

    def _has_weights(self) -> bool:
        """Whether class features can be computed and kept here: weights may be offloaded, the buffers may not."""
        return not self.prompt_ids.is_meta and offloading_hooks(self._text_side()) is not None

    def _no_autocast(self):
        """What is kept or saved must not depend on who asked first: it has the weights' precision."""
        device = self.prompt_ids.device.type
        return nullcontext() if device == "meta" else torch.autocast(device, enabled=False)

    # ---- inference and training

    def get_image_features(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, **kwargs):
        """`CLIPModel.get_image_features`: its `pooler_output` (B, D), un-normalised, is what
        `forward(image_features=...)` takes.

        For SigLIP 2 also `pixel_attention_mask` and `spatial_shapes`, with (B, P, 3 p²) patches from its processor.
        """
        patches_allowed = self.family.masks_patches and kwargs.get("spatial_shapes") is not None
        self._check_pixels(pixel_values, interpolate_pos_encoding, dimensions=3 if patches_allowed else 4)
        return self.family.image_features(
            self.clip, pixel_values.to(self.dtype), interpolate_pos_encoding=interpolate_pos_encoding, **kwargs
        )

    def pooled_image_features(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False):
        """`get_image_features(...).pooler_output` (B, D) alone: up to rounding the same, and on a CPU without gradient
        by a faster way (`image_encoding.py`)."""
        self._check_pixels(pixel_values, interpolate_pos_encoding)
        return self.family.pooled_image_features(self.clip, pixel_values.to(self.dtype), interpolate_pos_encoding)

    def _check_pixels(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool, dimensions: int = 4):
        fixed = self.family.has_fixed_image_size and not interpolate_pos_encoding
        size, channels = self.family.image_size(self.config), getattr(self.config.vision_config, "num_channels", 3)
        _checks.check_pixels(pixel_values, channels, dimensions=dimensions, size=size if fixed else None)

    def get_text_features(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs):
        """`CLIPModel.get_text_features`."""
        return self.clip.get_text_features(input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_features: torch.FloatTensor | None = None,
        interpolate_pos_encoding: bool = False,
        class_names: str | Sequence[str] | Mapping[int, str] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CLIPClassifierOutput:
        r"""
        Args:
            pixel_values: (B, 3, H, W), normalised.
            labels: (B,) class indices (-100: left out), or (B, C) soft labels whose rows sum to 1, or what
                `config.problem_type` says; gives `loss`. See `classification_loss`.
            input_ids: (C, L) prompts to classify among instead of the stored classes (transformers' zero-shot pipeline
                sends them). They are encoded as they are: learned contexts apply to the stored classes only.
            attention_mask: ignored; after EOS nothing counts in a causal encoder.
            image_features: (B, D) un-normalised features from `get_image_features(...).pooler_output`, instead of
                pixels: the image encoder is not run.
            interpolate_pos_encoding: accept image sizes other than the trained one.
            class_names: C names to classify among in this call alone, in the model's templates, as after
                `set_classes(class_names)`; the model's classes stay. Safe while other threads use the model. Their
                features are kept as those of `input_ids` are. An adapter for fixed classes refuses others.
        """
        if class_names is not None and input_ids is not None:
            raise ValueError("class_names, input_ids: give one of them, both name the classes of this call")
        of_call = None if class_names is None else self._classes_of_call(class_names)
        if (pixel_values is None) == (image_features is None):
            raise ValueError("pixel_values, image_features: give exactly one of them")
        if "adapter_names" in kwargs:
            raise ValueError("adapter_names: pass it to the PeftModel around this model, which mixes its adapters")
        hidden_states = attentions = None
        recorded = kwargs or self.config.output_hidden_states or self.config.output_attentions
        if image_features is None and self.faster_images and not recorded:
            image_features = self.pooled_image_features(pixel_values, interpolate_pos_encoding)
        elif image_features is None:
            vision = self.get_image_features(pixel_values, interpolate_pos_encoding, **kwargs)
            image_features, hidden_states, attentions = vision.pooler_output, vision.hidden_states, vision.attentions
        else:
            _checks.check_features(image_features, self.config.projection_dim)
        if input_ids is not None:
            text = self.config.text_config
            longest = text.max_position_embeddings if self.family.text_is_causal else None
            _checks.check_token_ids(input_ids, text.vocab_size, longest)
        image_embeds, class_embeds, scores = self._scores(image_features, input_ids, of_call)
        given = {"image_features": image_features} if pixel_values is None else {"pixel_values": pixel_values}
        _checks.check_output(self, scores, **given)
        own_classes = of_call is None or list(of_call[0].names) == self.class_names
        logits = self._label_logits(scores, own_classes) if input_ids is None else scores
        loss = None
        if labels is not None:
            loss = classification_loss(logits, labels, self.config.problem_type)
        embeds = {"image_embeds": image_embeds, "text_embeds": class_embeds}
        inner = {"hidden_states": hidden_states, "attentions": attentions}
        return CLIPClassifierOutput(
            loss, logits, logits_per_image=scores, logits_per_text=scores.t(), **embeds, **inner
        )

    def logits_of(self, image_features: torch.Tensor) -> torch.Tensor:
        """`forward(image_features=...).logits` of (B, D) features and the stored classes, and nothing else: for loops
        in which the arithmetic takes no longer than making the whole output does."""
        _checks.check_features(image_features, self.config.projection_dim)
        return self._label_logits(self._scores(image_features)[-1])

    def _scores(
        self,
        image_features: torch.Tensor,
        input_ids: torch.Tensor | None = None,
        of_call: tuple[NamedClasses, tuple] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(B, D) features -> (B, D) image embeddings, (C, D) or (B, C, D) class embeddings, (B, C) scores."""
        image_embeds = unit_norm(self.image_feature_adapter(image_features.to(self.dtype)))
        if of_call is not None:
            class_features = self._features_of_call(*of_call, image_embeds)
        elif input_ids is None and self.prompt_embedder.depends_on_images:
            class_features = self._encode_classes(image_embeds)
        else:
            class_features = self.get_class_features(input_ids)
        held = self._kept.held
        if held is not None and held.embeds is not None and class_features is held.features:
            class_embeds = held.embeds
        else:
            class_embeds = unit_norm(self.text_feature_adapter(class_features))
        class_embeds = class_embeds.to(image_embeds.device)
        scale = self.family.logit_scale(self.clip).to(image_embeds.device)
        scores = self.logit_head(image_embeds, class_embeds, scale)
        bias = self.family.logit_bias(self.clip)
        return image_embeds, class_embeds, scores if bias is None else scores + bias.to(scores)

    def _label_logits(self, scores: torch.Tensor, own_classes: bool = True) -> torch.Tensor:
        if self.config.problem_type != MULTI_LABEL:
            return scores
        if self.label_calibration is not None and own_classes:
            return self.label_calibration(scores)
        has_bias = self.family.logit_bias(self.clip) is not None  # other classes, or `problem_type` was set later
        initial = label_calibration().initial_calibration(scores.shape[1], has_bias)
        return label_calibration().label_logits(scores, *initial)

    @property
    def is_gradient_checkpointing(self) -> bool:
        """transformers' deprecated name, which PEFT still reads at each `get_peft_model`, without the warning."""
        return self.is_activation_checkpointing

    def train(self, mode: bool = True):
        """As in torch, but a frozen encoder with dropout or batch normalisation stays in eval mode: noise in what is
        not trained helps nobody."""
        super().train(mode)
        if mode:
            for encoder in map(self.clip.get_submodule, self.family.eval_when_frozen):
                if not any(p.requires_grad for p in encoder.parameters()):
                    encoder.eval()
        return self

    def get_input_embeddings(self) -> nn.Module:
        return self.family.token_embedding_of(self.clip)

    def set_input_embeddings(self, value: nn.Module):
        parent, _, name = self.family.token_embedding.rpartition(".")
        setattr(self.clip.get_submodule(parent), name, value)

    # ---- loading and saving

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path,
        *model_args,
        class_names: str | Sequence[str] | Mapping[int, str] | None = None,
        templates: str | Path | Sequence[str] | Mapping[str, Sequence[str]] | None = None,
        tokenizer=None,
        output_loading_info: bool = False,
        **kwargs,
    ):
        """`PreTrainedModel.from_pretrained` for a classifier or a plain CLIP checkpoint, plus
        `set_classes(class_names, templates, tokenizer)`.

        A checkpoint that lacks weights or has a damaged file is an error, and `check_finite=True` is taken: see
        `CheckedLoading`.
        """
        loaded = super().from_pretrained(
            pretrained_model_name_or_path, *model_args, output_loading_info=output_loading_info, **kwargs
        )
        model, info = loaded if output_loading_info else (loaded, None)
        if tokenizer is not None:
            model.tokenizer = tokenizer
        if class_names is not None or templates is not None:
            if class_names is None and not model.config.templates:
                raise ValueError("templates: given without class_names, and the checkpoint has no classes")
            model.set_classes(class_names if class_names is not None else model.class_names, templates)
        elif model._has_weights() and model.class_features_ready:
            model._kept.set_stored(model._text_side())
        elif model._has_weights() and model.config.fixed_class_features:
            source = pretrained_model_name_or_path
            raise ValueError(f"{source}: the configuration says that class features are fixed, the weights lack them")
        return (model, info) if output_loading_info else model

    def save_pretrained(self, save_directory, *args, **kwargs):
        """`PreTrainedModel.save_pretrained`, with class features that belong to the weights saved beside them."""
        own_prompts = self.config.templates and not self.prompt_embedder.depends_on_images
        if own_prompts and not kwargs.get("state_dict") and self._has_weights():
            with torch.no_grad():
                self.get_class_features()
        super().save_pretrained(save_directory, *args, **kwargs)


__all__ = ["CLIPClassifier", "CLIPClassifierOutput", "CLIPClassifierPreTrainedModel"]
