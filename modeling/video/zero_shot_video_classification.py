"""transformers' missing pipeline: a video and free-text labels to one score for each label."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import Pipeline

from ..dual_encoders.prompts import resolve_class_names, resolve_templates
from .class_texts import class_features


TASK = "zero-shot-video-classification"


class ZeroShotVideoClassificationPipeline(Pipeline):
    """
    Scores labels that are named when it is called.

    For any model of this package that compares videos with texts. Labels are encoded once a call, all in one batch,
    whatever the number of videos. With `batch_size`, videos of as many frames go through the model together.

    Example, after `import hf_clip_variants`, which makes the pipeline known:

    ```python
    from transformers import pipeline

    classify = pipeline("zero-shot-video-classification", model="folder-or-hub-id")
    classify("clip.mp4", candidate_labels=["a cat runs", "a dog sleeps"])
    # [{'label': 'a cat runs', 'score': 0.93}, {'label': 'a dog sleeps', 'score': 0.07}]
    ```
    """

    _load_processor = None
    _load_image_processor = False
    _load_video_processor = None
    _load_feature_extractor = False
    _load_tokenizer = None

    def __init__(self, **kwargs):
        for part in ("video_processor", "tokenizer"):  # before transformers looks at the options of a call
            if kwargs.get(part) is None:
                kwargs[part] = getattr(kwargs.get("processor"), part, None)
            if kwargs[part] is None:
                raise ValueError(f"{part}: none; pass one, or a processor, to pipeline(...)")
        super().__init__(**kwargs)
        if not hasattr(self.model, "video_text_logits"):
            raise ValueError(
                f"model: {type(self.model).__name__} does not compare videos with texts; want a model of "
                "hf_clip_variants for this task"
            )
        self._encoded: dict[tuple, torch.Tensor] = {}

    def __call__(self, videos=None, candidate_labels=None, **kwargs: Any):
        """
        Args:
            videos: what the video processor takes for one video: a path, URL or bytes, a folder or list of frames, an
                array (T, H, W, 3); or a list of paths, of lists of frames or of arrays for several videos.
            candidate_labels (`str` or `list[str]`): a list; a string is divided at commas.
            hypothesis_template (`str` or `list[str]`): several are averaged, each model in its way. By default the
                model's own `default_templates`, else `"{}"`.
            num_frames, fps, sampling_rule, ... (*optional*): of the video processor.
            top_k (`int`, *optional*): only the best labels.
            batch_size (`int`, defaults to 1).

        Returns:
            For each video a list of dictionaries, best first: **label** and **score**, a probability over the labels.

        Raises:
            ValueError: no labels, a blank or repeated one, a template without {}; a video that cannot be read.
        """
        from .video_processing import list_videos

        if videos is None:
            raise ValueError("videos: got None, expected a video or a list of them")
        if candidate_labels is None:
            raise ValueError("candidate_labels: missing, expected a list of labels, or a string with commas")
        self._encoded = {}  # weights may have changed since
        found = list_videos(videos)
        is_one = len(found) == 1 and found[0] is videos
        inputs = [{"video": video} for video in found]
        kwargs["candidate_labels"] = candidate_labels
        return super().__call__(inputs[0] if is_one else inputs, **kwargs)

    def _sanitize_parameters(self, candidate_labels=None, hypothesis_template=None, top_k=None, **video_options):
        unknown = sorted(set(video_options) - set(self.video_processor.valid_kwargs.__annotations__))
        if unknown:
            raise TypeError(f"{', '.join(unknown)}: unknown, expected an option of the video processor or batch_size")
        text = {"candidate_labels": candidate_labels, "hypothesis_template": hypothesis_template}
        text = {name: value for name, value in text.items() if value is not None}
        return {"video_options": video_options} if video_options else {}, text, text | {"top_k": top_k}

    def preprocess(self, inputs, video_options: Mapping | None = None):
        pixels = self.video_processor([inputs["video"]], return_tensors="pt", **(video_options or {}))
        return {"item": {name: pixels[name] for name in ("pixel_values_videos", "video_mask")}}

    def _forward(self, model_inputs, candidate_labels=None, hypothesis_template=None):
        items = model_inputs["item"]
        single = isinstance(items, dict)
        items = [items] if single else items
        texts = self._texts(
            _names(candidate_labels), resolve_templates(hypothesis_template or self._default_templates())
        )
        together: dict[tuple, list[int]] = {}
        for place, item in enumerate(items):
            together.setdefault(tuple(item["pixel_values_videos"].shape), []).append(place)
        found: list = [None] * len(items)
        for places in together.values():
            pixels, mask = (
                torch.cat([items[place][name] for place in places]) for name in ("pixel_values_videos", "video_mask")
            )
            logits = self.model.video_text_logits(pixels.to(self.device), texts, mask.to(self.device))
            for place, row in zip(places, logits.float().softmax(-1).cpu(), strict=True):
                found[place] = row
        return {"scores": found[0] if single else found}

    def postprocess(self, model_outputs, candidate_labels=None, hypothesis_template=None, top_k=None):
        names, scores = _names(candidate_labels), model_outputs["scores"].flatten()  # (1, C) of a batch
        order = scores.argsort(descending=True, stable=True).tolist()[:top_k]
        return [{"label": names[index], "score": float(scores[index])} for index in order]

    def _default_templates(self) -> list[str]:
        return list(getattr(self.model, "default_templates", ("{}",)))

    def _texts(self, names: list[str], templates: list[str]) -> torch.Tensor:
        """`class_features` of the labels."""
        key = tuple(names), tuple(templates)
        if key not in self._encoded:
            self._encoded[key] = class_features(self.model, self.tokenizer, names, templates, "candidate_labels")
        return self._encoded[key]


def _names(labels) -> list[str]:
    if isinstance(labels, str):
        labels = [label.strip() for label in labels.split(",") if label.strip()]
    return resolve_class_names(labels)


__all__ = ["TASK", "ZeroShotVideoClassificationPipeline"]
