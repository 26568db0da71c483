"""transformers' missing pipeline: a video and free-text labels to one score for each label."""

from collections.abc import Mapping
from typing import Any

from .zero_shot_media_classification import ZeroShotMediaClassificationPipeline, check_labels_given


TASK = "zero-shot-video-classification"


class ZeroShotVideoClassificationPipeline(ZeroShotMediaClassificationPipeline):
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

    reader, compares, media = "video_processor", "video_text_logits", "videos"
    tensors = ("pixel_values_videos", "video_mask")

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
        check_labels_given(candidate_labels)
        found = list_videos(videos)
        is_one = len(found) == 1 and found[0] is videos
        return self.classify([{"video": video} for video in found], is_one, candidate_labels, **kwargs)

    def known_options(self):
        return self.video_processor.valid_kwargs.__annotations__

    def preprocess(self, inputs, reading: Mapping | None = None):
        pixels = self.video_processor([inputs["video"]], return_tensors="pt", **(reading or {}))
        return {"item": {name: pixels[name] for name in self.tensors}}


__all__ = ["TASK", "ZeroShotVideoClassificationPipeline"]
