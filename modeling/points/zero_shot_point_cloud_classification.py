"""transformers' missing pipeline: a cloud of points or a mesh, and free-text labels, to one score for each label."""

from collections.abc import Mapping
from typing import Any

from ..video.zero_shot_media_classification import ZeroShotMediaClassificationPipeline, check_labels_given


TASK = "zero-shot-point-cloud-classification"
_TEMPLATE = "point cloud depth map of a {}."


class ZeroShotPointCloudClassificationPipeline(ZeroShotMediaClassificationPipeline):
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

    reader, compares, media = "feature_extractor", "point_text_logits", "clouds of points"
    tensors = ("points", "points_mask")

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

        check_labels_given(candidate_labels)
        found = list_clouds(points)
        shapes = [shape for index, one in enumerate(found) for shape in read_shapes(one, f"points[{index}]")]
        if not shapes:
            raise ValueError("points: no objects, expected at least one")
        is_one = not isinstance(points, list | tuple) and len(shapes) == 1
        return self.classify([{"shape": shape} for shape in shapes], is_one, candidate_labels, **kwargs)

    def known_options(self):
        return self.feature_extractor.settings

    def default_templates(self):
        return _TEMPLATE

    def preprocess(self, inputs, reading: Mapping | None = None):
        found = self.feature_extractor([inputs["shape"]], return_tensors="pt", **(reading or {}))
        return {"item": {name: found[name] for name in self.tensors}}


__all__ = ["TASK", "ZeroShotPointCloudClassificationPipeline"]
