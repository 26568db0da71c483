"""A pipeline: a video of any length to the score of each frame, and segments of what is abnormal."""

import os
import tempfile
from array import array
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from transformers import Pipeline

from .anomaly_segments import anomaly_segments, check_threshold


TASK = "video-anomaly-detection"
_FRAMES_PER_PASS = 32


class VideoAnomalyDetectionPipeline(Pipeline):
    """
    Finds what is abnormal in videos, for a trained model that scores frames: [`VideoAnomalyClipModel`].

    A video is read once, some frames at a time, whatever its length: frames' features go to a temporary file. It takes
    features of somebody's own extractor, too, if it is this model's image encoder.

    Example, after `import hf_clip_variants`, which makes the pipeline known:

    ```python
    from transformers import pipeline

    detect = pipeline("video-anomaly-detection", model="folder-or-hub-id")
    detect("clip.mp4")["segments"]
    # [{'start': 3.2, 'end': 5.0, 'label': 'fighting', 'score': 0.97}]
    ```
    """

    _load_processor = None
    _load_image_processor = False
    _load_video_processor = None
    _load_feature_extractor = False
    _load_tokenizer = None

    def __init__(self, **kwargs):
        if kwargs.get("video_processor") is None:
            kwargs["video_processor"] = getattr(kwargs.get("processor"), "video_processor", None)
        if kwargs["video_processor"] is None:
            raise ValueError("video_processor: none; pass one, or a processor, to pipeline(...)")
        super().__init__(**kwargs)
        if not hasattr(self.model, "score_frames"):
            raise ValueError(
                f"model: {type(self.model).__name__} does not score frames; want a model of hf_clip_variants for this "
                "task"
            )

    def __call__(self, videos=None, batch_size: int | None = None, **kwargs: Any):
        """
        Args:
            videos: a path, URL or bytes, a folder or list of frames, an array (T, H, W, 3); features (T, D) as an
                array or a `.npy` file, not normalised, of any float type; or a list of several.
            threshold (`float`, *optional*): of segments; the model's by default.
            frame_stride (`int`, *optional*): every so many frames are looked at; the model's by default.
            sample_fps (`float`, *optional*): so many frames a second are looked at instead.
            fps (`float`, *optional*): frames a second of what has no times: frames in lists, features.
            class_scores (`bool`, defaults to `False`): also the probabilities of all classes.
            batch_size (`int`, defaults to 32): frames that are encoded at once.

        Returns:
            For each video a dictionary: **segments**, with **start**, **end**, **label** and **score**; **times** and
            **scores** of frames; **unit** of times, "seconds" or, where nothing tells seconds, "frames"; with
            `class_scores`, **class_scores**, label -> list.

        Raises:
            ValueError: a video that cannot be read, features that do not fit, options out of range.
        """
        from .video_processing import list_videos

        if videos is None:
            raise ValueError("videos: got None, expected a video or a list of them")
        several = isinstance(videos, list | tuple) and bool(videos) and all(map(self._holds_features, videos))
        found = list(videos) if several else [videos] if self._holds_features(videos) else list_videos(videos)
        is_one = len(found) == 1 and found[0] is videos
        results = []
        for index, video in enumerate(found):
            try:
                results.append(super().__call__({"video": video}, batch_size=1, frames_per_pass=batch_size, **kwargs))
            except (ValueError, OSError) as error:
                if is_one:
                    raise
                raise ValueError(f"videos[{index}]: {error}") from error
        return results[0] if is_one else results

    def _sanitize_parameters(self, threshold=None, class_scores=None, frames_per_pass=None, **reading):
        unknown = sorted(set(reading) - {"frame_stride", "sample_fps", "fps"})
        if unknown:
            raise TypeError(
                f"{', '.join(unknown)}: unknown, expected threshold, frame_stride, sample_fps, fps, class_scores or "
                "batch_size"
            )
        for name, value in reading.items():
            is_number = not isinstance(value, bool) and isinstance(value, int | float)
            whole = name != "frame_stride" or isinstance(value, int)
            if value is not None and not (is_number and whole and 0 < value < float("inf")):
                raise ValueError(
                    f"{name}: {value!r}, expected a {'whole ' if name == 'frame_stride' else ''}number > 0"
                )
        if frames_per_pass is not None and (not isinstance(frames_per_pass, int) or frames_per_pass < 1):
            raise ValueError(f"batch_size: {frames_per_pass!r}, expected a whole number > 0")
        if threshold is not None:
            check_threshold(threshold)
        given = {name: value for name, value in reading.items() if value is not None}
        if {"frame_stride", "sample_fps"} <= given.keys():
            raise ValueError("frame_stride, sample_fps: got both, expected one of them")
        if frames_per_pass is not None:
            given["frames_per_pass"] = frames_per_pass
        after = {"threshold": threshold, "class_scores": class_scores}
        return {}, given, {name: value for name, value in after.items() if value is not None}

    def preprocess(self, inputs):
        return inputs

    def _forward(self, model_inputs, fps=None, frame_stride=None, sample_fps=None, frames_per_pass=_FRAMES_PER_PASS):
        video = model_inputs["video"]
        width = self.model.config.projection_dim
        if self._holds_features(video):
            if frame_stride is not None or sample_fps is not None:
                raise ValueError("frame_stride, sample_fps: got one for features; all of them are looked at")
            features = _opened_features(video)
            scores, class_probs = self.model.score_frames(features)
            times, end = np.arange(len(scores)) / (fps or 1.0), len(scores) / (fps or 1.0)
            seconds = fps is not None
        else:
            self.model.check_ready()  # before a long video is read
            with tempfile.TemporaryFile() as file:
                times, end, seconds = self._encoded(
                    video, file, fps, frame_stride or self.model.config.frame_stride, sample_fps, frames_per_pass
                )
                file.flush()
                features = np.memmap(file, np.float32, mode="r", shape=(len(times), width))
                scores, class_probs = self.model.score_frames(features)
                del features  # before its file is closed
        return {"scores": scores, "class_probs": class_probs, "times": times, "end": end, "seconds": seconds}

    def postprocess(self, model_outputs, threshold=None, class_scores=False):
        config = self.model.config
        scores, class_probs = model_outputs["scores"].numpy(), model_outputs["class_probs"].numpy()
        threshold = config.decision_threshold if threshold is None else threshold
        times = np.asarray(model_outputs["times"])
        segments = anomaly_segments(
            scores, class_probs, config.id2label, config.normal_id, threshold, times, model_outputs["end"]
        )
        unit = "seconds" if model_outputs["seconds"] else "frames"
        result = {"segments": segments, "times": times.tolist(), "scores": scores.tolist(), "unit": unit}
        if class_scores:
            result["class_scores"] = {name: class_probs[:, label].tolist() for label, name in config.id2label.items()}
        return result

    # ---- reading

    def _holds_features(self, video) -> bool:
        if isinstance(video, str | os.PathLike):
            return os.fspath(video).lower().endswith(".npy")
        # A list of grey frames is a list of arrays, and no features: an array (T, D) is none of videos.
        return isinstance(video, np.ndarray | torch.Tensor) and video.ndim == 2

    def _encoded(self, video, file, fps, stride, sample_fps, frames_per_pass) -> tuple[array, float, bool]:
        """Writes features (T, D) of a video's frames to a file: when frames begin, when the last one ends, and whether
        that is in seconds."""
        from .video_decoding import open_video

        times = array("d")
        with open_video(video, fps) as opened:
            waiting: list = []
            for begin, frame in _chosen_frames(opened, stride, sample_fps):
                times.append(begin)
                waiting.append(frame)
                if len(waiting) == frames_per_pass:
                    file.write(self._features(waiting))
                    waiting = []
            if waiting:
                file.write(self._features(waiting))
            if not times:
                raise ValueError("video has no frames that can be decoded")
            seconds = opened.fps is not None
            gap = 1 / sample_fps if sample_fps else stride / (opened.fps or 1.0)
            end = opened.duration if seconds and opened.duration > times[-1] else times[-1] + gap
        return times, end, seconds

    def _features(self, frames: list) -> bytes:
        pixels = self.video_processor([frames], do_sample_frames=False, return_tensors="pt")["pixel_values_videos"][0]
        features = self.model.get_image_features(pixels.to(self.model.device)).pooler_output
        return features.float().cpu().numpy().tobytes()


def _chosen_frames(video, stride: int, sample_fps: float | None) -> Iterator[tuple[float, Any]]:
    """(when it begins, frame) of every `stride`-th frame, or of `sample_fps` frames a second."""
    if sample_fps is None:
        for number, timed in enumerate(video.all_frames()):
            if number % stride == 0:
                yield timed
        return
    if video.fps is None:
        raise ValueError("sample_fps: frames without times, expected fps beside it: how many there are a second")
    times = np.arange(max(1, int(np.ceil(video.duration * sample_fps - 1e-6)))) / sample_fps
    for begin, frame in zip(times.tolist(), video.frames(times), strict=True):
        if frame is not None:
            yield begin, frame


def _opened_features(video) -> np.ndarray | torch.Tensor:
    if not isinstance(video, str | os.PathLike):
        return video
    try:
        features = np.load(video, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{os.fspath(video)}: no features that can be read ({error})") from error
    return features


__all__ = ["TASK", "VideoAnomalyDetectionPipeline"]
