"""What all models share that segment an image by texts: labels, their embeddings, synonyms, the background.

A model's `forward` in four steps:

    texts = self.resolve_class_embeddings(class_embeddings, input_ids, attention_mask)
    scores = texts.merge(...)  # of the scores of the M texts `texts.embeddings`, (B, M, h, w): those of N labels
    logits, background_scores = self.finish_logits(..., texts)  # of the labels' scores at the size of the image
    loss = None if labels is None else segmentation_loss(logits, labels, self.config.semantic_loss_ignore_index)
"""

import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import initialization as init

from ..dual_encoders.forward_checks import check_label_texts
from ..dual_encoders.prompts import check_names_differ, check_texts, encode_texts, listed, resolve_templates
from .background import LEARNED, add_background, background_thresholds, check_background, check_background_index
from .sliding_window import sliding_window_scores


_TEXTS_AT_ONCE = 256  # prompts that `set_labels` encodes in one batch
# model -> what its last texts depended on, the texts, the version of their tensor
_RECENT: weakref.WeakKeyDictionary[nn.Module, tuple] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class ClassTexts:
    """M texts of N labels, for one call."""

    embeddings: torch.Tensor  # (M, D), or (B, M, D) with texts of each image
    counts: tuple[int, ...] | None = None  # texts of each label, M in all; None: one
    rule: str = "max"  # of synonyms
    valid: torch.Tensor | None = None  # (B, N) bool, where images have different numbers of labels

    def merge(self, scores: torch.Tensor) -> torch.Tensor:
        """Scores (B, M, ...) of texts -> (B, N, ...) of labels: the best text's, or the texts' mean."""
        if self.counts is None or max(self.counts) == 1:
            return scores
        parts = scores.split(self.counts, dim=1)
        merged = [part.amax(dim=1) if self.rule == "max" else part.mean(dim=1) for part in parts]
        return torch.stack(merged, dim=1)

    def mask(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits (B, N, H, W), where labels that an image does not have never win."""
        if self.valid is None or bool(self.valid.all()):
            return logits
        # Half of the lowest number: -inf times 0 would be NaN where logits are resized later.
        lowest = torch.finfo(logits.dtype).min / 2
        return logits.masked_fill(~self.valid[:, :, None, None], lowest)


class PromptableSegmentationMixin:
    """
    Mixin before `PreTrainedModel`, for models whose configuration has `PromptableSegmentationFields`.

    The model defines `get_class_embeddings`, names its text encoder's modules in `text_modules`, makes them only
    `if self.has_text_encoder`, and calls `self.make_class_embeddings(D)` in `__init__` before `post_init`.
    """

    accepts_loss_kwargs = False  # the loss is a mean over pixels already
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    text_modules: tuple[str, ...] = ()  # dotted names of the modules that only texts need
    text_per_image = False  # whether (A, B, L) ids are B labels of each of A images, and not B templates of A labels

    # ---- for the model

    def get_class_embeddings(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Token ids (N, L) of N texts, or (N, T, L) of N texts in T templates -> unit-norm embeddings (N, D)."""
        raise NotImplementedError(f"{type(self).__name__} has no get_class_embeddings")

    def learned_background(self, logits: torch.Tensor, **features) -> torch.Tensor:
        """The background's channel (B, H, W) for logits (B, N, H, W), with `config.background = "learned"`."""
        raise ValueError(f"background: {type(self).__name__} has learned no background; want a threshold")

    @property
    def has_text_encoder(self) -> bool:
        return not self.config.text_encoder_dropped

    def make_class_embeddings(self, width: int) -> None:
        """Makes the buffer (M, width) for the configuration's labels, or none."""
        self.config.validate_label_texts()
        count = self.config.num_class_embeddings
        self.register_buffer("class_embeddings", torch.zeros(count, width) if count else None)
        self._text_width = width

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if module is self and getattr(self, "class_embeddings", None) is not None:
            init.zeros_(self.class_embeddings)

    def resolve_class_embeddings(
        self,
        class_embeddings: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        images: torch.Tensor | None = None,
    ) -> ClassTexts:
        """The texts of a call: `class_embeddings` if given, else of `input_ids`, else those of `set_labels`.

        Args:
            class_embeddings: (N, D), or (B, N, D) for each image; or `ClassTexts`, with synonyms.
            input_ids, attention_mask: (N, L); (N, T, L) in T templates; (B, N, T, L) for each image, where a label
                without any attention is padding. With `text_per_image`, (B, N, L) is for each image, too.
            images: the batch (B, ...) that texts of each image are for.

        Raises:
            ValueError: no texts at all, ids without a text encoder, or a wrong shape; says what to do.
        """
        if hasattr(class_embeddings, "merge"):  # exported code may hold this module twice: no isinstance
            return class_embeddings
        check_label_texts(input_ids, attention_mask, class_embeddings, self._text_width, images)
        if class_embeddings is not None:
            return ClassTexts(class_embeddings)
        if input_ids is not None:
            self._check_text_encoder("input_ids")
            return self._recent_or_encoded(input_ids, attention_mask)
        if getattr(self, "class_embeddings", None) is None:
            raise ValueError(
                "input_ids: missing, and the model has no labels; pass texts (the processor's text=[...]) or "
                "class_embeddings, or call model.set_labels([...], processor) once"
            )
        texts = self.config.label_texts
        counts = None if texts is None else tuple(map(len, texts))
        return ClassTexts(self.class_embeddings, counts, self.config.synonym_rule)

    def _recent_or_encoded(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> ClassTexts:
        """The last call's texts if they are these, and nothing that they depend on has changed."""
        key = self._key_of_texts(input_ids, attention_mask)
        if key is None:
            return self._encode(input_ids, attention_mask)
        recent = _RECENT.get(self)
        if recent is not None and recent[0] == key and recent[1].embeddings._version == recent[2]:
            return recent[1]
        with torch.inference_mode(False), torch.no_grad():  # else training could not read them later
            texts = self._encode(input_ids, attention_mask)
        _RECENT[self] = key, texts, texts.embeddings._version
        return texts

    def _key_of_texts(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> tuple | None:
        """What embeddings of texts depend on; None where they must not be kept: with gradients, in training, in a
        graph, or with weights that are not there (offloaded)."""
        graph = torch.compiler.is_compiling() or torch.jit.is_tracing() or type(input_ids) is not torch.Tensor
        if self.training or torch.is_grad_enabled() or graph:
            return None
        modules = [module for name in self.text_modules for module in self.get_submodule(name).modules()]
        weights = [t for m in modules for t in (*m.parameters(recurse=False), *m.buffers(recurse=False))]
        if any(p.is_meta or p.grad is not None for p in weights):
            return None
        # The weak reference keeps a storage's address from being given to another one.
        state = [
            (StorageWeakRef(p.untyped_storage()), p.storage_offset(), p.dtype, 0 if p.is_inference() else p._version)
            for p in weights
        ]
        # PEFT's layers; of a model of transformers, `active_adapters` is a method.
        tuned = [m for m in modules if not callable(getattr(m, "active_adapters", callable))]
        adapters = [(tuple(m.active_adapters), m.disable_adapters) for m in tuned]
        ids, mask = (
            None if tensor is None else (tuple(tensor.shape), tensor.cpu().numpy().tobytes())
            for tensor in (input_ids, attention_mask)
        )
        device = input_ids.device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        return tuple(state), tuple(adapters), ids, mask, input_ids.device, autocast

    def train(self, mode: bool = True):
        """As in torch. Training forgets the texts of the last call: optimizers may change weights unseen."""
        if mode:
            _RECENT.pop(self, None)
        return super().train(mode)

    def _encode(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> ClassTexts:
        shape = input_ids.shape
        if len(shape) == 3 and self.text_per_image:
            input_ids, shape = input_ids[:, :, None], (*shape[:2], 1, shape[2])
            attention_mask = None if attention_mask is None else attention_mask[:, :, None]
        if len(shape) in (2, 3):
            return ClassTexts(self.get_class_embeddings(input_ids, attention_mask))
        images, labels, templates, _ = shape
        flat = (0, 1) if templates > 1 else (0, 2)
        mask = None if attention_mask is None else attention_mask.flatten(*flat)
        embeddings = self.get_class_embeddings(input_ids.flatten(*flat), mask)
        valid = None if attention_mask is None else attention_mask.flatten(2).any(dim=2)
        return ClassTexts(embeddings.view(images, labels, -1), valid=valid)

    def finish_logits(
        self, scores: torch.Tensor, texts: ClassTexts, **features
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Scores of the labels (B, N, H, W) -> logits, with the background's channel if `config.background` has one,
        and that channel (B, H, W). `features` go to `learned_background`."""
        config, logits = self.config, texts.mask(scores)
        if not config.background_has_own_channel:
            return logits, None
        if config.background == LEARNED:
            channel = self.learned_background(logits, **features)
            index = config.background_index
            check_background_index(index, logits.shape[1])
            return torch.cat([logits[:, :index], channel[:, None], logits[:, index:]], dim=1), channel
        if isinstance(config.background, Mapping | list):
            thresholds = background_thresholds(config.background, self.labels_with_texts())
        else:
            thresholds = torch.tensor(float(config.background))
        return add_background(logits, thresholds, config.background_index, config.background_of)

    # ---- for users

    def labels_with_texts(self) -> list[str]:
        """The names of the labels that have texts, in the order of their embeddings."""
        names = [name for _, name in sorted(self.config.id2label.items())]
        if names and self.config.background_has_own_channel:
            del names[self.config.background_index]
        return names

    def set_labels(
        self,
        labels: Sequence[str | Sequence[str]],
        processor,
        templates: str | Sequence[str] | None = None,
        background=None,
    ) -> None:
        """Makes `labels` the model's own: from now on it needs no texts, and is saved with them.

        Their embeddings are computed once and stored as the buffer `class_embeddings`; `config.id2label` and
        `config.label2id` name the labels, so that the pipeline `image-segmentation` shows them. They are not computed
        anew when the text encoder changes: call this again then.

        Args:
            labels: a list; a label is a text, texts with semicolons between them ("building;edifice"), or a list of
                texts: synonyms, the first being the label's name. `config.synonym_rule` says how their scores merge.
            processor: a processor, or a tokenizer.
            templates: such as `"a photo of a {}."`; None: the processor's, else the configuration's, else the text
                alone.
            background: see `PromptableSegmentationFields`, or a tensor of thresholds; None: the configuration's;
                False: no background.

        Raises:
            ValueError: a single string, no label, a blank or repeated text, bad templates or background. The model is
                as it was then.
        """
        self._check_text_encoder("labels")
        texts = parse_labels(labels)
        names = [synonyms[0] for synonyms in texts]
        config, index = self.config, self.config.background_index
        background = config.background if background is None else None if background is False else background
        if isinstance(background, torch.Tensor | tuple):
            background = background.tolist() if isinstance(background, torch.Tensor) else list(background)
        check_background(background)
        if background is not None:
            if config.background_label in names:
                raise ValueError(
                    f"labels: {config.background_label!r} is the background's name; leave it out, or pass "
                    "background=False"
                )
            check_background_index(index, len(names))
        if isinstance(background, str) and background != LEARNED:
            texts.insert(index, parse_labels([background], "background")[0])
            parse_labels(texts)  # none is given twice
        elif isinstance(background, Mapping | list):
            background_thresholds(background, names)  # one for each
        all_names = list(names)
        if background is not None:
            all_names.insert(index, config.background_label)
        if templates is None:
            templates = getattr(processor, "templates", None) or config.templates or ["{}"]
        templates = resolve_templates(templates)
        flat = [text for synonyms in texts for text in synonyms]
        tokenizer = getattr(processor, "tokenizer", processor)
        ids = encode_texts(tokenizer, fill_templates(flat, templates[:1]), what="labels", truncation=True)["input_ids"]
        _check_labels_differ(texts, iter(map(tuple, ids)))
        embeddings = self.embed_texts(flat, processor, templates)

        self.register_buffer("class_embeddings", embeddings)
        config.background = background
        config.templates = templates
        config.label_texts = texts
        config.id2label = dict(enumerate(all_names))
        config.label2id = {name: label for label, name in enumerate(all_names)}

    def embed_texts(self, texts: Sequence[str], processor, templates: Sequence[str] = ("{}",)) -> torch.Tensor:
        """Embeddings (M, D) of M texts in T templates, in the weights' dtype, without gradients or autocast.

        `processor` is a processor or a tokenizer.
        """
        tokenizer = getattr(processor, "tokenizer", processor)
        prompts = fill_templates(check_texts(texts, "labels"), templates)
        modules = [self.get_submodule(name) for name in self.text_modules]
        training = [module for part in modules for module in part.modules() if module.training]
        device = next((p.device for part in modules for p in part.parameters()), self.device)
        step, found = max(_TEXTS_AT_ONCE // len(templates), 1) * len(templates), []
        for module in training:
            module.training = False
        try:
            with (
                torch.inference_mode(False),
                torch.no_grad(),
                torch.autocast(device.type, enabled=False),
            ):
                for first in range(0, len(prompts), step):
                    encoded = encode_texts(
                        tokenizer,
                        prompts[first : first + step],
                        what="labels",
                        padding=True,
                        truncation=True,
                        return_tensors="pt",
                    )
                    ids, mask = encoded["input_ids"].to(device), encoded.get("attention_mask")
                    mask = None if mask is None else mask.to(device)
                    if len(templates) > 1:
                        ids = ids.view(-1, len(templates), ids.shape[-1])
                        mask = None if mask is None else mask.view(ids.shape)
                    found.append(self.get_class_embeddings(ids, mask))
                return torch.cat(found)
        finally:
            for module in training:
                module.training = True

    def drop_text_encoder(self) -> None:
        """Removes the text encoder: what is saved has the stored labels only. ValueError before `set_labels`."""
        self._check_text_encoder("drop_text_encoder")
        if getattr(self, "class_embeddings", None) is None:
            raise ValueError("drop_text_encoder: the model has no labels; call set_labels first")
        for name in self.text_modules:
            parent, _, attribute = name.rpartition(".")
            setattr(self.get_submodule(parent), attribute, None)
        self.config.text_encoder_dropped = True

    def _check_text_encoder(self, argument: str) -> None:
        if not self.has_text_encoder:
            raise ValueError(
                f"{argument}: the text encoder was dropped (text_encoder_dropped), the model knows "
                f"{len(self.config.id2label)} labels only; load the checkpoint that still has it"
            )

    def sliding_window_logits(
        self,
        pixel_values: torch.Tensor,
        window: int | tuple[int, int],
        stride: int | tuple[int, int] | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        class_embeddings: torch.Tensor | None = None,
        **options,
    ) -> torch.Tensor:
        """Logits (B, N, H, W), float32, from windows: `sliding_window_scores` of `forward`, texts encoded once.

        `options` are those of `sliding_window_scores`.
        """
        texts = self.resolve_class_embeddings(class_embeddings, input_ids, attention_mask, pixel_values)
        if texts.embeddings.dim() == 2:
            return self._window_logits(pixel_values, texts, window, stride, options)
        valid = [None] * len(pixel_values) if texts.valid is None else texts.valid
        rows = [
            self._window_logits_of_one(image, embeddings, present, window, stride, options)
            for image, embeddings, present in zip(pixel_values[:, None], texts.embeddings, valid, strict=True)
        ]
        return torch.cat(rows)

    def _window_logits(self, pixel_values, texts: ClassTexts, window, stride, options) -> torch.Tensor:
        return sliding_window_scores(
            lambda windows: self(pixel_values=windows, class_embeddings=texts).logits,
            pixel_values,
            window,
            stride,
            **options,
        )

    def _window_logits_of_one(self, image, embeddings, present, window, stride, options) -> torch.Tensor:
        """(1, N, H, W) of one image (1, C, H, W) with labels of its own (N, D), `present` (N,) or padding."""
        if present is None or present.all():
            return self._window_logits(image, ClassTexts(embeddings), window, stride, options)
        found = self._window_logits(image, ClassTexts(embeddings[present]), window, stride, options)
        if self.config.background_has_own_channel:
            index = self.config.background_index
            present = torch.cat([present[:index], present.new_ones(1), present[index:]])
        logits = found.new_full((1, len(present), *found.shape[-2:]), torch.finfo(found.dtype).min / 2)
        logits[:, present.to(found.device)] = found
        return logits


def parse_labels(labels: Sequence[str | Sequence[str]], argument: str = "labels") -> list[list[str]]:
    """The texts of each label: `"a;b"` and `["a", "b"]` are two.

    Raises ValueError for a single string, no labels, a blank text, and a text that is given twice.

    >>> parse_labels(["sky", "building;edifice", ["car", "auto"]])
    [['sky'], ['building', 'edifice'], ['car', 'auto']]
    """
    if isinstance(labels, str | bytes):
        raise ValueError(f"{argument}: got the single string {labels!r}, expected a list of labels")
    wanted = "a list, whose order the labels have"
    if isinstance(labels, set | frozenset | Mapping):
        raise ValueError(f"{argument}: got {type(labels).__name__}, expected {wanted}")
    texts = []
    for number, label in enumerate(listed(labels, argument, wanted)):
        if isinstance(label, str):
            label = [text.strip() for text in label.split(";")]
        if not isinstance(label, list | tuple) or not label:
            raise ValueError(f"{argument}[{number}]: {label!r}, expected a text or a list of synonyms")
        texts.append(check_texts(label, f"{argument}[{number}]"))
    seen: dict[str, int] = {}
    for number, synonyms in enumerate(texts):
        for text in synonyms:
            if text in seen:
                raise ValueError(f"{argument}: {text!r} is given twice, at {seen[text]} and {number}")
            seen[text] = number
    return texts


def _check_labels_differ(texts: list[list[str]], ids: Iterator[tuple[int, ...]]) -> None:
    """ValueError for two labels with the same token ids; synonyms of one label may have the same."""
    names, distinct = [], []
    for synonyms in texts:
        of_label = {next(ids): text for text in synonyms}
        names += of_label.values()
        distinct += of_label
    check_names_differ(names, distinct, "labels")


def fill_templates(texts: Sequence[str], templates: Sequence[str]) -> list[str]:
    """M x T prompts, text by text. Texts stay as they are, with their underscores.

    >>> fill_templates(["cat", "dog"], ["a {}.", "{}"])
    ['a cat.', 'cat', 'a dog.', 'dog']
    """
    return [template.replace("{}", text) for text in texts for template in templates]


__all__ = ["ClassTexts", "PromptableSegmentationMixin", "fill_templates", "parse_labels"]
