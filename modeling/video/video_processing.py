"""Video processor for CLIP: videos in any form to frames of one size, and a mask of the frames that are there."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch
from transformers.image_processing_base import BatchFeature
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, PILImageResampling, SizeDict
from transformers.processing_utils import VideosKwargs
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import VideoMetadata

from ..clip_classifier.image_processing_clip_classifier import CLIPClassifierImageProcessor
from ..decoding.image_decoding import MAX_PIXELS
from ..loading_and_saving.configuration_checks import check_image_settings
from .frame_sampling import FrameSampling, check_rate
from .read_ahead import read_ahead
from .video_decoding import open_video
from .video_views import checked_crops, clips_of, crops_along, views_together


# Settings that the image processor has, too: it makes the frames.
_OF_IMAGES = (
    "do_convert_rgb",
    "do_resize",
    "size",
    "resample",
    "do_center_crop",
    "crop_size",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
    "resample_backend",
    "background",
    "max_pixels",
)


# What a frame sampling calls a setting, where the processor has another name.
_SETTING_OF = {"rule": "sampling_rule", "rate": "fps", "keep": "keep_frames", "seed": "sampling_seed"}


class CLIPVideoProcessorKwargs(VideosKwargs, total=False):
    """Options beside those of every transformers video processor; see `CLIPVideoProcessor`."""

    sampling_rule: str | None
    keep_frames: str | None
    frame_numbers: bool | None
    sampling_seed: int | None
    num_clips: int | None
    num_crops: int | None
    start: float | None
    end: float | None
    resample_backend: str | None
    background: tuple[int, ...] | list[int] | None
    max_pixels: int | None
    workers: int | None


class CLIPVideoProcessor(BaseVideoProcessor):
    r"""
    Videos of any kind to `pixel_values_videos`: some frames are chosen, and each becomes what
    [`CLIPClassifierImageProcessor`] makes of an image (short side, bicubic, centre crop, CLIP's mean and standard
    deviation).

    Accepted: paths, URLs, bytes and open files of MP4, WebM, Matroska, AVI, GIF, animated WebP ...; paths of folders
    of frames; lists of PIL images or arrays; arrays (T, H, W, 3) or (T, 3, H, W); cells of `datasets.Video` columns;
    lists of all these, mixed as you like. As in transformers a list of strings is several videos, and a list of images
    one.
    Only the frames that are needed are decoded, several videos at once.

    Args:
        do_sample_frames (`bool`, defaults to `True`): choose frames; else all are taken.
        sampling_rule (`str`, defaults to `"per_second"`):
            `"per_second"` (CLIP4Clip), `"segments"` (ActionCLIP) or `"whole_seconds"` (VideoCLIP); see
            [`FrameSampling`].
        num_frames (`int`, defaults to 12): at most, or with segments exactly so many frames.
        fps (`float`, defaults to 1): frames a second to look at, not the video's own.
        keep_frames, frame_numbers, sampling_seed, start, end: `keep`, `frame_numbers`, `seed`, `start` and `end` of
            [`FrameSampling`].
        do_resize, size, resample, do_center_crop, crop_size, do_rescale, rescale_factor, do_normalize, image_mean,
            image_std, do_convert_rgb, resample_backend, background, max_pixels: as in
            [`CLIPClassifierImageProcessor`]; `resample_backend="pil"` equals the official transform.
        do_pad (`bool`, defaults to `True`):
            fill videos of fewer frames up with zeros, as the official loaders do; else videos of different lengths are
            refused where a tensor is asked for.
        num_clips, num_crops (`int`, defaults to 1):
            Views of each video: so many clips, whose frames lie between each other's (with `"segments"`), times so
            many crops along the longer side, of frames that `size` makes larger than `crop_size`.
        workers (`int`, *optional*): threads that read videos; None: 4, or the processors there are.

    `processor(videos, video_metadata=None, return_tensors="pt")` gives `pixel_values_videos` (B, T, 3, H, W), float32,
    and `video_mask` (B, T), int64, 1 for frames that are there; of R > 1 views (B, R, T, 3, H, W) and (B, R, T), all
    crops of a clip together. `video_metadata` (dictionaries with `fps`) says how
    fast frames in lists and arrays follow each other; without it they have no times, and at most `num_frames` of them
    are kept.

    Raises:
        ValueError: `videos: no videos`; `videos[3]: ...` for a video that cannot be read.
        ImportError: a container file without PyAV (`pip install "hf-clip-variants[video]"`).

    Example:

    ```python
    >>> import numpy as np
    >>> from hf_clip_variants.modeling.video.video_processing import CLIPVideoProcessor

    >>> videos = [np.zeros((frames, 48, 64, 3), np.uint8) for frames in (50, 3)]
    >>> inputs = CLIPVideoProcessor(num_frames=4)(videos, return_tensors="pt")
    >>> inputs["pixel_values_videos"].shape, inputs["video_mask"].tolist()
    (torch.Size([2, 4, 3, 224, 224]), [[1, 1, 1, 1], [1, 1, 1, 0]])

    ```
    """

    valid_kwargs = CLIPVideoProcessorKwargs
    model_input_names = ["pixel_values_videos", "video_mask"]

    resample = PILImageResampling.BICUBIC
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    size = {"shortest_edge": 224}
    default_to_square = False
    crop_size = {"height": 224, "width": 224}
    do_resize = True
    do_center_crop = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    do_pad = True

    do_sample_frames = True
    sampling_rule = "per_second"
    num_frames = 12
    fps = 1.0
    keep_frames = "uniform"
    frame_numbers = False
    sampling_seed = None
    num_clips = 1
    num_crops = 1
    start = None
    end = None

    resample_backend = "torchvision"
    background = (255, 255, 255)
    max_pixels = MAX_PIXELS
    workers = None

    def __init__(self, **kwargs):
        check_image_settings(kwargs)
        super().__init__(**kwargs)
        if isinstance(self.background, list):  # JSON has no tuples
            self.background = tuple(self.background)
        self._sampling(**{name: getattr(self, name) for name in self._valid_kwargs_names})

    @classmethod
    def from_image_processor(cls, image_processor, **kwargs):
        """With the settings of a dual encoder's image processor, so that frames look as its images do."""
        images = image_processor.to_dict()
        known = [name for name in _OF_IMAGES if name in cls.valid_kwargs.__annotations__]
        settings = {name: images[name] for name in known if images.get(name) is not None}
        settings.setdefault("do_center_crop", False)  # SigLIP's knows no crop
        return cls(**settings | kwargs)

    @staticmethod
    def _sampling(do_sample_frames=True, **options) -> FrameSampling:
        if not isinstance(do_sample_frames, bool):
            raise ValueError(f"do_sample_frames: got {do_sample_frames!r}, expected True or False")
        if not do_sample_frames:
            return FrameSampling(num_frames=None, rate=None)
        try:
            return FrameSampling(
                rule=options["sampling_rule"],
                num_frames=options["num_frames"],
                rate=options["fps"],
                keep=options["keep_frames"],
                start=options["start"],
                end=options["end"],
                frame_numbers=options["frame_numbers"],
                seed=options["sampling_seed"],
            )
        except ValueError as error:
            field, colon, rest = str(error).partition(":")
            raise ValueError(f"{_SETTING_OF.get(field, field)}{colon}{rest}") from error

    def frame_processor(self) -> CLIPClassifierImageProcessor:
        """What makes pixels of a frame, with the settings of this processor."""
        return CLIPClassifierImageProcessor(**{name: _plain(getattr(self, name)) for name in _OF_IMAGES})

    def sample_frames(self, metadata: VideoMetadata, **options) -> np.ndarray:
        """Numbers of the frames that the rule chooses of a video that is decoded elsewhere."""
        settings = {name: getattr(self, name) for name in self._valid_kwargs_names}
        return self._sampling(**settings | options)(metadata)

    def preprocess(self, videos, **kwargs: Any) -> BatchFeature:
        unknown = sorted(set(kwargs) - set(self._valid_kwargs_names) - {"return_tensors"})
        if unknown:
            raise ValueError(f"{', '.join(unknown)}: no such option; known: {', '.join(self._valid_kwargs_names)}")
        settings = {name: getattr(self, name, None) for name in self._valid_kwargs_names} | kwargs
        videos = list_videos(videos)
        rates = _rates(settings.pop("video_metadata", None), len(videos))
        sampling, return_tensors = self._sampling(**settings), settings.pop("return_tensors", None)
        clips, crops = clips_of(sampling, settings["num_clips"]), checked_crops(settings)
        given = {name: settings[name] for name in ("device", "input_data_format")}
        of_images = {name: _plain(settings[name]) for name in _OF_IMAGES}
        if crops > 1:
            of_images["do_center_crop"] = False
        images = CLIPClassifierImageProcessor(**of_images)

        def frame_pixels(frame) -> torch.Tensor:
            pixels = images.preprocess([frame], return_tensors="pt", **given)["pixel_values"][0]
            return pixels if crops == 1 else crops_along(pixels, settings["crop_size"], crops)

        def one(numbered):
            index, video = numbered
            try:
                with open_video(video, rates[index]) as opened:
                    read = [opened.read(clip, frame_pixels) for clip in clips]
                found = []
                for frames, _ in read:
                    missing = sampling.missing_frames(frames)
                    found.append(torch.stack(frames + [torch.zeros_like(frames[0])] * missing))
                return found if crops == 1 else [view for clip in found for view in clip.unbind(1)], read[0][1]
            except (ValueError, OSError) as error:
                raise ValueError(f"videos[{index}]: {str(error).replace('images[0]: ', '')}") from error

        workers = settings["workers"] if len(videos) > 1 else 0
        read = list(read_ahead(enumerate(videos), one, workers))
        views = [view for found, _ in read for view in found]
        pixels, masks = _padded(views, bool(settings["do_pad"]), return_tensors)
        if len(clips) * crops > 1:
            pixels, masks = (views_together(values, len(clips) * crops) for values in (pixels, masks))
        result = BatchFeature({"pixel_values_videos": pixels, "video_mask": masks}, tensor_type=return_tensors)
        if settings["return_metadata"]:
            result["video_metadata"] = [metadata for _, metadata in read]
        return result


def _plain(value):
    """A size as the dictionary that processors are made with."""
    if not isinstance(value, SizeDict):
        return value
    return {name: number for name, number in dict(value).items() if number is not None}


def _padded(videos: list[torch.Tensor], do_pad: bool, return_tensors) -> tuple[list, list]:
    """Videos (T_i, 3, H, W) -> the same number of frames (T, 3, H, W) with masks (T,)."""
    sizes = {tuple(video.shape[-2:]) for video in videos}
    if len(sizes) > 1 and return_tensors is not None:
        raise ValueError(f"videos: frames of sizes {sorted(sizes)} make no tensor; want do_center_crop=True")
    lengths = [len(video) for video in videos]
    if len(set(lengths)) > 1 and not do_pad and return_tensors is not None:
        raise ValueError(f"videos: {lengths} frames make no tensor; want do_pad=True")
    longest = max(lengths) if do_pad else 0
    masks = [torch.tensor([1] * n + [0] * max(longest - n, 0)) for n in lengths]
    pixels = [
        video if len(video) >= longest else torch.cat([video, video.new_zeros(longest - len(video), *video.shape[1:])])
        for video in videos
    ]
    if return_tensors is not None:
        return torch.stack(pixels), torch.stack(masks)
    return pixels, masks


def list_videos(videos) -> list:
    """A video or nested lists of videos -> one flat list of what `open_video` takes.

    A list of images or of arrays with two or three axes is one video; ValueError if there is none.
    """
    if isinstance(videos, np.ndarray | torch.Tensor):
        found = list(videos) if videos.ndim == 5 else [videos]
    elif not isinstance(videos, list | tuple):
        found = [videos]
    elif videos and all(_is_frame(one) for one in videos):
        found = [videos]
    else:
        found = []
        for one in videos:
            if isinstance(one, list | tuple) and one and all(isinstance(x, str | os.PathLike | bytes) for x in one):
                found.append(one)  # a list of files within a list: frames of one video, as in transformers
            elif isinstance(one, list | tuple) and not one:
                raise ValueError(f"videos[{len(found)}]: video has no frames")
            else:
                found += list_videos(one)
    if not found:
        raise ValueError("videos: no videos")
    return found


def _is_frame(one) -> bool:
    return isinstance(one, PIL.Image.Image) or (isinstance(one, np.ndarray | torch.Tensor) and one.ndim in (2, 3))


def _rates(metadata, count: int) -> list[float | None]:
    """Frames a second of each video, as far as `video_metadata` says it."""
    if metadata is None:
        return [None] * count
    given: Sequence = metadata if isinstance(metadata, list | tuple) else [metadata]
    given = [one for some in given for one in (some if isinstance(some, list | tuple) else [some])]
    if len(given) != count:
        raise ValueError(f"video_metadata: {len(given)} entries for {count} videos, expected one for each")
    return [_rate(one, f"video_metadata[{place}]") for place, one in enumerate(given)]


def _rate(metadata, name: str) -> float | None:
    if metadata is not None and not isinstance(metadata, VideoMetadata | Mapping):
        raise ValueError(f"{name}: got {type(metadata).__name__}, expected a dictionary with fps, or None")
    fps = None if metadata is None else metadata["fps"] if isinstance(metadata, VideoMetadata) else metadata.get("fps")
    return check_rate(fps, f"{name}, fps")


__all__ = ["CLIPVideoProcessor", "CLIPVideoProcessorKwargs", "list_videos"]
