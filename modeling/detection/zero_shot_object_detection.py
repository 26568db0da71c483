"""transformers' pipeline "zero-shot-object-detection" with all labels in one forward pass."""

from typing import Any

import torch
from transformers import Pipeline, ZeroShotObjectDetectionPipeline
from transformers.image_utils import load_image

from ..dense.promptable_segmentation import parse_labels
from ..dual_encoders.images_with_labels import images_with_labels
from ..dual_encoders.pipeline_checks import check_top_k
from .instance_masks import whole_masks


TASK = "zero-shot-object-detection"


class AllLabelsObjectDetectionPipeline(ZeroShotObjectDetectionPipeline):
    """
    Finds objects of labels that are named when it is called.

    As transformers' own, and exactly that for models of others. A model of this package (its class says
    `takes_all_labels = True`) gets all labels in one forward pass, so that they compete for each object; transformers'
    sends one after the other, as if there was nothing else to find, and runs the image encoder for each.

    Images are not padded: with `batch_size`, those of one size and the same labels go through the model together, so
    results do not depend on it.

    Example, after `import hf_clip_variants`, which makes the pipeline known:

    ```python
    from transformers import pipeline

    detector = pipeline("zero-shot-object-detection", model="folder-or-hub-id")
    detector("photo.jpg", candidate_labels=["cat", "sofa"], threshold=0.3)
    # [{'score': 0.93, 'label': 'cat', 'box': {'xmin': 12, 'ymin': 40, 'xmax': 311, 'ymax': 260}}, …]
    ```
    """

    _load_processor = None
    _load_image_processor = None  # it may come with the processor
    _load_tokenizer = None  # none is needed for labels of the model's own

    @property
    def takes_all_labels(self) -> bool:
        return getattr(self.model, "takes_all_labels", False)

    def __call__(self, image=None, candidate_labels=None, **kwargs: Any):
        """
        Args:
            image: a path, URL or PIL image; `{"image": …, "candidate_labels": […]}`; or a list, generator or data set
                of these.
            candidate_labels (`str` or `list[str]`, *optional*):
                A list; a string is divided at commas. For a list of images also a list for each image. Default: the
                labels of the model (`set_labels`).
            threshold (`float`, defaults to 0.1): the smallest score.
            top_k (`int`, *optional*): the best objects only.
            masks (`bool`, defaults to `False`): objects have a **mask**, too, where the model predicts masks.
            timeout (`float`, *optional*): seconds to wait for an image from the web.
            batch_size (`int`, defaults to 1).

        Returns:
            For each image a list of dicts, best first: **score**, **label**, **box** (`xmin`, `ymin`, `xmax`, `ymax`
            in whole pixels) and maybe **mask** (PIL image of mode L at the image's size, 255 inside).

        Raises:
            ValueError: no labels, a blank or repeated one; an image that cannot be read; masks of a model without any.
        """
        candidate_labels = kwargs.pop("text_queries", candidate_labels)  # transformers' older name
        if not self.takes_all_labels:
            return super().__call__(image, candidate_labels, **kwargs)
        image = kwargs.pop("images", None) if image is None else image
        items = images_with_labels(image, candidate_labels)
        return items if items == [] else Pipeline.__call__(self, items, **kwargs)

    def _sanitize_parameters(self, **kwargs):
        if not self.takes_all_labels:
            return super()._sanitize_parameters(**kwargs)
        places = {"timeout": 0, "masks": 1, "threshold": 2, "top_k": 2}
        parameters: tuple[dict, dict, dict] = ({}, {}, {})
        for name, value in kwargs.items():
            if name not in places:
                raise TypeError(f"{name}: unknown, expected candidate_labels, {', '.join(places)} or batch_size")
            parameters[places[name]][name] = value
        check_top_k(kwargs.get("top_k"))
        return parameters

    # transformers' own makes several items of one image.

    def get_iterator(self, *args, **kwargs):
        kind = Pipeline if self.takes_all_labels else ZeroShotObjectDetectionPipeline
        return kind.get_iterator(self, *args, **kwargs)

    def run_single(self, *args, **kwargs):
        kind = Pipeline if self.takes_all_labels else ZeroShotObjectDetectionPipeline
        return kind.run_single(self, *args, **kwargs)

    # ---- the three steps

    def preprocess(self, inputs, timeout=None):
        if not self.takes_all_labels:
            return super().preprocess(inputs, timeout=timeout)
        image = load_image(inputs["image"], timeout=timeout).convert("RGB")
        return {"item": {"image": image, "labels": self.labels_of(inputs.get("candidate_labels"))}}

    def labels_of(self, labels) -> list[str] | None:
        """The labels that are looked for; None: the model's own. ValueError if there are none, or they cannot be
        used."""
        if labels is None:
            if getattr(self.model, "class_embeddings", None) is None:
                raise ValueError(
                    "candidate_labels: missing, and the model has no labels of its own; want what to look for, "
                    "such as 'cat, dog'"
                )
            return None
        if isinstance(labels, str):
            labels = [label.strip() for label in labels.split(",") if label.strip()]
        labels = [texts[0] for texts in parse_labels(labels, "candidate_labels")]
        if not getattr(self.model, "has_text_encoder", True):
            known = ", ".join(self.model.labels_with_texts())
            raise ValueError(
                f"candidate_labels: the model's text encoder was dropped, it knows its own labels only ({known}); "
                "leave them out, or load the checkpoint that still has it"
            )
        if self.processor is None:
            raise ValueError(
                "processor: none, which labels need; pass one to pipeline(...), or save it with the model"
            )
        return labels

    def _forward(self, model_inputs, masks=False):
        if not self.takes_all_labels:
            return super()._forward(model_inputs)
        if masks and not getattr(self.model, "predicts_masks", False):
            raise ValueError("masks: True, but the model predicts none")
        items = model_inputs["item"]
        single = isinstance(items, dict)
        items = [items] if single else items
        together: dict[tuple, list[int]] = {}
        for place, item in enumerate(items):
            together.setdefault((item["image"].size, str(item["labels"])), []).append(place)
        found: list[dict | None] = [None] * len(items)
        for places in together.values():
            results = self._detect([items[place]["image"] for place in places], items[places[0]]["labels"], masks)
            for place, result in zip(places, results, strict=True):
                found[place] = result
        return {"found": found[0] if single else found}

    def _detect(self, images: list, labels: list[str] | None, masks: bool) -> list[dict[str, Any]]:
        processor = self.image_processor if self.processor is None else self.processor
        inputs = processor(images=images, **({} if labels is None else {"text": labels}), return_tensors="pt")
        inputs = inputs.to(self.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self.dtype)
        # With the number of detections and the thresholds of the model's configuration, if it has any.
        outputs = self.model(**inputs, **getattr(self.model, "detection_options", lambda masks: {})(masks))
        sizes = [(image.height, image.width) for image in images]
        names = self.model.labels_with_texts() if labels is None else labels
        options = {"threshold": 0.0, "target_sizes": sizes}
        if hasattr(processor, "post_process_grounded_object_detection"):
            found = processor.post_process_grounded_object_detection(outputs, text_labels=names, **options)
        else:
            found = processor.post_process_object_detection(outputs, **options)
            found = [one | {"text_labels": [names[label] for label in one["labels"].tolist()]} for one in found]
        return [
            {name: value.cpu() if isinstance(value, torch.Tensor) else value for name, value in one.items()}
            | {"size": size}
            for one, size in zip(found, sizes, strict=True)
        ]

    def postprocess(self, model_outputs, threshold: float = 0.1, top_k: int | None = None):
        if not self.takes_all_labels:
            return super().postprocess(model_outputs, threshold=threshold, top_k=top_k)
        from PIL import Image

        one = model_outputs["found"]
        scores = one["scores"].float()
        rows = scores.argsort(descending=True, stable=True)
        rows = rows[scores[rows] >= threshold][:top_k]
        results = [
            {
                "score": float(scores[row]),
                "label": one["text_labels"][row],
                "box": self._get_bounding_box(one["boxes"][row]),
            }
            for row in rows.tolist()
        ]
        if "masks" in one:
            masks = whole_masks(one["masks"][rows], one["boxes"][rows], one["size"])
            for result, mask in zip(results, masks, strict=True):
                result["mask"] = Image.fromarray(mask.to(torch.uint8).mul_(255).numpy())
        return results


__all__ = ["TASK", "AllLabelsObjectDetectionPipeline"]
