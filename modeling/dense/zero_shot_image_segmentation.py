"""transformers' missing pipeline: an image and free-text labels to one mask for each label that is there."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import Pipeline
from transformers.image_utils import load_image

from ..dual_encoders.images_with_labels import images_with_labels
from ..dual_encoders.prompts import resolve_templates
from .background import add_background, background_thresholds
from .promptable_segmentation import ClassTexts, parse_labels
from .segments import find_segments


TASK = "zero-shot-image-segmentation"


class ZeroShotImageSegmentationPipeline(Pipeline):
    """
    Divides an image among labels that are named when it is called.

    For any model of this package that segments by texts. Every pixel belongs to one label, or to none where the model
    or `background_threshold` says so. The counterpart with fixed labels is transformers' `image-segmentation`, after
    `model.set_labels(...)`.

    Each list of labels is encoded once a call, whatever the number of images. Images are not padded: with
    `batch_size`, those of one size and the same labels go through the model together, so results do not depend on it.

    Example, after `import hf_clip_variants`, which makes the pipeline known:

    ```python
    from transformers import pipeline

    segmenter = pipeline("zero-shot-image-segmentation", model="folder-or-hub-id")
    segmenter("photo.jpg", candidate_labels=["cat", "sky", "building;edifice"])
    # [{'label': 'sky', 'score': 0.93, 'mask': <PIL.Image L 640x480>}, {'label': 'cat', …}]
    ```
    """

    _load_processor = None
    _load_image_processor = None  # it may come with the processor
    _load_feature_extractor = False
    _load_tokenizer = None

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        for needed in ("get_class_embeddings", "embed_texts", "resolve_class_embeddings"):
            if not hasattr(self.model, needed):
                raise ValueError(
                    f"model: {type(self.model).__name__} does not segment by texts; want a model of hf_clip_variants "
                    "for this task"
                )
        if self.image_processor is None:
            raise ValueError("image_processor: none; pass one, or a processor, to pipeline(...)")
        self._encoded: dict[tuple, torch.Tensor] = {}

    def __call__(self, image=None, candidate_labels=None, **kwargs: Any):
        """
        Args:
            image: a path, URL or PIL image; `{"image": …, "candidate_labels": […]}`; or a list, generator or data set
                of these.
            candidate_labels (`str` or `list[str]`, *optional*):
                A list; a string is divided at commas. "building;edifice" is one label with two texts. For a list of
                images also a list for each image. Default: the labels of the model (`set_labels`).
            hypothesis_template (`str` or `list[str]`, *optional*):
                Such as `"a photo of a {}."`; several are averaged. Default: the processor's, else the model's, else
                the label alone.
            background_threshold (`float` or `dict[str, float]`, *optional*):
                Pixels whose best label has a lower score belong to none; a number, or one for each label. Compared
                with logits or probabilities, as `config.background_of` says. Default: the model's own background.
            sliding_window (`int` or `(height, width)`, *optional*):
                Windows of the resized image go through the model, instead of the whole.
            stride (`int` or `(height, width)`, *optional*): of the windows; default two thirds of them.
            threshold (`float`, defaults to 0): segments with a lower score are left out.
            timeout (`float`, *optional*): seconds to wait for an image from the web.
            batch_size (`int`, defaults to 1).

        Returns:
            For each image a list of dicts, best first: **label**, **score** (the mean probability of the label over
            its pixels; probabilities are the softmax over the labels) and **mask** (PIL image of mode L at the image's
            size, 255 inside).

        Raises:
            ValueError: no labels, a blank or repeated one, a template without {}; an image that cannot be read.
        """
        if image is None:
            image = kwargs.pop("images", None)
        items = images_with_labels(image, candidate_labels)
        self._encoded = {}  # weights may have changed since
        return items if items == [] else super().__call__(items, **kwargs)

    def _sanitize_parameters(self, **kwargs):
        places = {
            "candidate_labels": 0,
            "hypothesis_template": 0,
            "timeout": 0,
            "background_threshold": 1,
            "sliding_window": 1,
            "stride": 1,
            "threshold": 2,
        }
        parameters: tuple[dict, dict, dict] = ({}, {}, {})
        for name, value in kwargs.items():
            if name not in places:
                raise TypeError(f"{name}: unknown, expected {', '.join(places)} or batch_size")
            parameters[places[name]][name] = value
        return parameters

    # ---- the three steps

    def preprocess(self, inputs, candidate_labels=None, hypothesis_template=None, timeout=None):
        if not isinstance(inputs, Mapping):
            inputs = {"image": inputs}
        image, given = inputs["image"], inputs.get("candidate_labels")
        texts = self.texts_of(candidate_labels if given is None else given)
        if timeout is not None and isinstance(image, str) and image.startswith(("http://", "https://")):
            image = load_image(image, timeout=timeout)
        pixels = self.image_processor([image], return_original_sizes=True, return_tensors="pt")
        return {
            "item": {
                "pixel_values": pixels["pixel_values"].to(self.dtype),
                "size": tuple(pixels["original_sizes"][0].tolist()),
                "texts": texts,
                "templates": self._templates(hypothesis_template),
            }
        }

    def _forward(self, model_inputs, background_threshold=None, sliding_window=None, stride=None):
        items = model_inputs["item"]
        single = isinstance(items, dict)
        items = [items] if single else items
        together: dict[tuple, list[int]] = {}
        for place, item in enumerate(items):
            key = tuple(item["pixel_values"].shape), str(item["texts"]), str(item["templates"])
            together.setdefault(key, []).append(place)
        found: list[dict | None] = [None] * len(items)
        in_0_1 = getattr(self.model, "logits_are_probabilities", False)
        for places in together.values():
            first = items[places[0]]
            pixels = torch.cat([items[place]["pixel_values"] for place in places])
            names, scores, background = self._scores(
                pixels, first["texts"], first["templates"], background_threshold, sliding_window, stride
            )
            for row, place in enumerate(places):
                channel = None if background is None else background[row]
                segments = find_segments(scores[row], items[place]["size"], channel, are_probabilities=in_0_1)
                found[place] = {"names": names, "segments": segments.cpu()}
        return {"found": found[0] if single else found}

    def postprocess(self, model_outputs, threshold: float = 0.0) -> list[dict[str, Any]]:
        from PIL import Image

        names, segments = model_outputs["found"]["names"], model_outputs["found"]["segments"]
        results = []
        for label in segments.scores.argsort(descending=True, stable=True).tolist():
            score = float(segments.scores[label])
            if int(segments.areas[label]) and score >= threshold:
                mask = (segments.label_map == label).to(torch.uint8).mul_(255)
                results.append({"label": names[label], "score": score, "mask": Image.fromarray(mask.numpy())})
        return results

    # ---- texts

    def texts_of(self, labels) -> list[list[str]] | None:
        """The texts of each label in `labels`, as `candidate_labels`; None: the model's own. ValueError if there are
        none, or they cannot be used."""
        if labels is None:
            if getattr(self.model, "class_embeddings", None) is None:
                raise ValueError(
                    "candidate_labels: missing, and the model has no labels of its own; want what to look for, "
                    "such as 'cat, sky'"
                )
            return None
        if isinstance(labels, str):
            labels = [label.strip() for label in labels.split(",") if label.strip()]
        texts = parse_labels(labels, "candidate_labels")
        if not self.model.has_text_encoder:
            known = ", ".join(self.model.labels_with_texts())
            raise ValueError(
                f"candidate_labels: the model's text encoder was dropped, it knows its own labels only ({known}); "
                "leave them out, or load the checkpoint that still has it"
            )
        return texts

    def _templates(self, given) -> list[str]:
        if given is not None:
            return resolve_templates(given)
        return getattr(self.processor, "templates", None) or self.model.config.templates or ["{}"]

    def _embeddings(self, texts: list[list[str]], templates: list[str]) -> torch.Tensor:
        key = str(texts), str(templates)
        if key not in self._encoded:
            if self.tokenizer is None:
                raise ValueError("tokenizer: none; pass one, or a processor, to pipeline(...)")
            flat = [text for synonyms in texts for text in synonyms]
            self._encoded[key] = self.model.embed_texts(flat, self.tokenizer, templates)
        return self._encoded[key]

    def _scores(
        self, pixels, texts, templates, background_threshold, sliding_window, stride
    ) -> tuple[list[str], torch.Tensor, torch.Tensor | None]:
        """Names of N labels, their logits (B, N, h, w), and the background's channel (B, h, w) if there is one."""
        config, model = self.model.config, self.model
        given = {}
        if texts is not None:
            counts = tuple(map(len, texts))
            given["class_embeddings"] = ClassTexts(self._embeddings(texts, templates), counts, config.synonym_rule)
        if sliding_window is None:
            logits = model(pixel_values=pixels, **given).logits
        else:
            logits = model.sliding_window_logits(pixels, sliding_window, stride, **given)
        background = None
        if config.background_has_own_channel:
            index = config.background_index
            background = logits[:, index]
            logits = torch.cat([logits[:, :index], logits[:, index + 1 :]], dim=1)
        names = model.labels_with_texts() if texts is None else [synonyms[0] for synonyms in texts]
        if background_threshold is not None:
            thresholds = background_thresholds(background_threshold, names)
            _, background = add_background(logits, thresholds, 0, config.background_of)
        return names, logits, background


__all__ = ["TASK", "ZeroShotImageSegmentationPipeline"]
