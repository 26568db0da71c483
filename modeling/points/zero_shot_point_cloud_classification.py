"""transformers' missing pipeline: a cloud of points or a mesh, and free-text labels, to one score for each label."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import Pipeline

from ..dual_encoders.prompts import resolve_class_names, resolve_templates
from ..video.class_texts import class_features


TASK = "zero-shot-point-cloud-classification"
_TEMPLATE = "point cloud depth map of a {}."


class ZeroShotPointCloudClassificationPipeline(Pipeline):
    """
    Scores labels that are named when it is called.

    For any model of this package that compares clouds of points with texts. Labels are encoded once a call, all in one
    batch, whatever the number of clouds.

    Example, after `import hf_clip_variants`, which makes the pipeline known:

    ```python
    from transformers import pipeline

    classify = pipeline("zero-shot-point-cloud-classification", model="folder-or-hub-id")
    classify("chair.glb", candidate_labels=["chair", "table", "lamp"])
    # [{'label': 'chair', 'score': 0.81}, {'label': 'table', 'score': 0.12}, {'label': 'lamp', 'score': 0.07}]
    ```
    """

    _load_processor = None
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = None
    _load_tokenizer = None

    def __init__(self, **kwargs):
        for part in ("feature_extractor", "tokenizer"):  # before transformers looks at the options of a call
            if kwargs.get(part) is None:
                kwargs[part] = getattr(kwargs.get("processor"), part, None)
            if kwargs[part] is None:
                raise ValueError(f"{part}: none; pass one, or a processor, to pipeline(...)")
        super().__init__(**kwargs)
        if not hasattr(self.model, "point_text_logits"):
            raise ValueError(
                f"model: {type(self.model).__name__} does not compare clouds of points with texts; want a model of "
                "hf_clip_variants for this task"
            )
        self._encoded: dict[tuple, torch.Tensor] = {}

    def __call__(self, points=None, candidate_labels=None, **kwargs: Any):
        """
        Args:
            points: what the processor takes for one cloud: an array (N, 3) or a path; or a list of them. An .h5 file,
                or an array of three dimensions, is all of its clouds.
            candidate_labels (`str` or `list[str]`): a list; a string is divided at commas.
            hypothesis_template (*optional*, defaults to `"point cloud depth map of a {}."`): several are averaged; a
                mapping, or a JSON file of one, has each label's own sentences, as language models write them.
            num_points, point_rule, up_axis, ... (*optional*): of the processor of points.
            top_k (`int`, *optional*): only the best labels.
            batch_size (`int`, defaults to 1).

        Returns:
            For each cloud a list of dictionaries, best first: **label** and **score**, a probability over the labels.

        Raises:
            ValueError: no labels, a blank or repeated one, a template without {}; a cloud that cannot be read.
        """
        from .point_decoding import read_shapes
        from .point_processing import list_clouds

        if candidate_labels is None:
            raise ValueError("candidate_labels: missing, expected a list of labels, or a string with commas")
        self._encoded = {}  # weights may have changed since
        found = list_clouds(points)
        shapes = [shape for index, one in enumerate(found) for shape in read_shapes(one, f"points[{index}]")]
        if not shapes:
            raise ValueError("points: no objects, expected at least one")
        is_one = not isinstance(points, list | tuple) and len(shapes) == 1
        inputs = [{"shape": shape} for shape in shapes]
        kwargs["candidate_labels"] = candidate_labels
        return super().__call__(inputs[0] if is_one else inputs, **kwargs)

    def _sanitize_parameters(self, candidate_labels=None, hypothesis_template=None, top_k=None, **point_options):
        unknown = sorted(set(point_options) - set(self.feature_extractor.settings))
        if unknown:
            raise TypeError(f"{', '.join(unknown)}: unknown, expected a setting of the processor or batch_size")
        text = {"candidate_labels": candidate_labels, "hypothesis_template": hypothesis_template}
        text = {name: value for name, value in text.items() if value is not None}
        return {"point_options": point_options} if point_options else {}, text, text | {"top_k": top_k}

    def preprocess(self, inputs, point_options: Mapping | None = None):
        found = self.feature_extractor([inputs["shape"]], return_tensors="pt", **(point_options or {}))
        return {"item": {name: found[name] for name in ("points", "points_mask")}}

    def _forward(self, model_inputs, candidate_labels=None, hypothesis_template=None):
        items = model_inputs["item"]
        single = isinstance(items, dict)
        items = [items] if single else items
        texts = self._texts(_names(candidate_labels), hypothesis_template)
        found = []
        together: dict[tuple, list[int]] = {}
        for place, item in enumerate(items):
            together.setdefault(tuple(item["points"].shape), []).append(place)
        found = [None] * len(items)
        for places in together.values():
            points, mask = (torch.cat([items[place][name] for place in places]) for name in ("points", "points_mask"))
            logits = self.model.point_text_logits(points.to(self.device), texts, mask.to(self.device))
            for place, row in zip(places, logits.float().softmax(-1).cpu(), strict=True):
                found[place] = row
        return {"scores": found[0] if single else found}

    def postprocess(self, model_outputs, candidate_labels=None, hypothesis_template=None, top_k=None):
        names, scores = _names(candidate_labels), model_outputs["scores"].flatten()  # (1, C) of a batch
        order = scores.argsort(descending=True, stable=True).tolist()[:top_k]
        return [{"label": names[index], "score": float(scores[index])} for index in order]

    def _texts(self, names: list[str], template) -> torch.Tensor:
        """(C, D) text features of the labels; of several templates the mean of unit vectors."""
        templates = resolve_templates(template or _TEMPLATE, names)
        key = tuple(names), repr(templates)
        if key not in self._encoded:
            self._encoded[key] = class_features(self.model, self.tokenizer, names, templates, "candidate_labels")
        return self._encoded[key]


def _names(labels) -> list[str]:
    if isinstance(labels, str):
        labels = [label.strip() for label in labels.split(",") if label.strip()]
    return resolve_class_names(labels, "candidate_labels")


__all__ = ["TASK", "ZeroShotPointCloudClassificationPipeline"]
