"""The video processor: frames as images are, ragged batches, saving and loading."""

import sys

import numpy as np
import PIL.Image
import pytest
import torch
from tiny import tiny_tokenizer
from videos import grey_frames, write_video

from hf_clip_variants import CLIPClassifierImageProcessor, CLIPClassifierProcessor
from hf_clip_variants.modeling.video.processing_video import VideoTextProcessor
from hf_clip_variants.modeling.video.video_processing import CLIPVideoProcessor, list_videos


SIZES = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}


@pytest.fixture(scope="module")
def frames():
    random = np.random.default_rng(0)
    return [PIL.Image.fromarray(random.integers(0, 256, (40, 50, 3), np.uint8)) for _ in range(7)]


@pytest.mark.parametrize("backend", ["torchvision", "pil"])
def test_frames_are_what_images_are(frames, backend):
    images = CLIPClassifierImageProcessor(**SIZES, resample_backend=backend)
    videos = CLIPVideoProcessor.from_image_processor(images, num_frames=3)
    inputs = videos([frames, frames[:2]], return_tensors="pt")
    expected = images([frames[0], frames[3], frames[6]], return_tensors="pt")["pixel_values"]
    assert torch.equal(inputs["pixel_values_videos"][0], expected)
    assert torch.equal(inputs["pixel_values_videos"][1, 2], torch.zeros(3, 24, 24))
    assert inputs["video_mask"].tolist() == [[1, 1, 1], [1, 1, 0]] and inputs["video_mask"].dtype == torch.int64


def test_frames_equal_the_official_transform(frames):
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

    videos = CLIPVideoProcessor(resample_backend="pil")
    transform = Compose(
        [
            Resize(224, interpolation=InterpolationMode.BICUBIC),
            CenterCrop(224),
            ToTensor(),
            Normalize((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
        ]
    )
    assert torch.equal(
        videos(frames, return_tensors="pt")["pixel_values_videos"][0], torch.stack([transform(f) for f in frames])
    )


def test_batches_equal_single_videos_whatever_they_are(tmp_path, frames):
    path = write_video(tmp_path / "a.mp4", grey_frames(60), fps=20)
    arrays = np.stack([np.asarray(frame) for frame in frames])
    videos = [str(path), frames, arrays, path.read_bytes(), arrays.transpose(0, 3, 1, 2)]
    processor = CLIPVideoProcessor(**SIZES)
    whole = processor(videos, return_tensors="pt", return_metadata=True)
    assert whole["video_mask"].sum(1).tolist() == [3, 7, 7, 3, 7]
    for row, video in enumerate(videos):
        alone = processor(video if row else [video], return_tensors="pt")["pixel_values_videos"][0]
        assert torch.equal(whole["pixel_values_videos"][row, : len(alone)], alone)
    assert torch.equal(whole["pixel_values_videos"][1], whole["pixel_values_videos"][4])
    assert whole["video_metadata"][0].frames_indices == [0, 20, 40]


def test_rules_are_options_of_a_call(frames):
    processor = CLIPVideoProcessor(**SIZES)
    same = {"return_tensors": "pt", "return_metadata": True}
    chosen = [
        processor(frames, **same, **options)["video_metadata"][0].frames_indices
        for options in (
            {"num_frames": 2, "keep_frames": "last"},
            {"sampling_rule": "segments", "num_frames": 3},
            {"video_metadata": {"fps": 2.0}},
            {"video_metadata": [{"fps": 2.0}], "start": 1.0, "end": 2.0},
            {"do_sample_frames": False},
        )
    ]
    assert chosen == [[5, 6], [0, 3, 5], [0, 2, 4, 6], [2, 4], list(range(7))]
    second = processor(
        frames, sampling_rule="whole_seconds", fps=2, num_frames=None, video_metadata={"fps": 2}, **same
    )
    assert second["video_mask"].tolist() == [[1] * 8]  # four whole seconds, the last one filled up
    assert not second["pixel_values_videos"][0, 7].any()


def test_lists_of_videos_are_told_from_lists_of_frames(frames):
    array = np.zeros((3, 8, 8, 3))
    for videos, count in (
        ("a.mp4", 1),
        (["a.mp4", "b.mp4"], 2),
        ([["1.png", "2.png"]], 1),
        (frames, 1),
        ([frames, frames], 2),
        (array, 1),
        (np.zeros((2, 3, 8, 8, 3)), 2),
        ([array, [array, "a.mp4"], frames], 4),
        ([array[0], array[1]], 1),
        ({"bytes": b"", "path": None}, 1),
    ):
        assert len(list_videos(videos)) == count


@pytest.mark.parametrize(
    "videos, options, message",
    [
        ([], {}, "videos: no videos"),
        ([[]], {}, "videos\\[0\\]: video has no frames"),
        ([np.zeros((2, 8, 8, 3), np.uint8), "missing.mp4"], {}, "videos\\[1\\]: no such file"),
        ([np.zeros((2, 8, 8, 3), np.uint8), b"broken" * 99], {}, "videos\\[1\\]: not a video that can be read"),
        (np.zeros((0, 8, 8, 3), np.uint8), {}, "videos\\[0\\]: video has no frames"),
        (np.full((2, 8, 8, 3), np.nan, np.float32), {}, "videos\\[0\\]: frame 0: NaN or infinite pixel values"),
        (np.zeros((2, 8, 8, 3), np.uint8), {"num_frames": 0}, "num_frames: 0, expected a whole number > 0"),
        (np.full((2, 8, 8, 3), 0.5, np.float32), {}, "videos\\[0\\]: frame 0: float image"),
        ([np.zeros((n, 8, 8, 3), np.uint8) for n in (1, 2)], {"do_pad": False}, "\\[1, 2\\] frames make no tensor"),
        (np.zeros((2, 8, 8, 3), np.uint8), {"video_metadata": [{}, {}]}, "video_metadata: 2 entries for 1 videos"),
        (np.zeros((2, 8, 8, 3), np.uint8), {"video_metadata": [3]}, "video_metadata\\[0\\]: got int, expected a dict"),
        (np.zeros((2, 8, 8, 3), np.uint8), {"video_metadata": [{"fps": "x"}]}, "video_metadata\\[0\\], fps: 'x', exp"),
        (np.zeros((2, 8, 8, 3), np.uint8), {"frame_numbers": "no"}, "frame_numbers: 'no', expected True or False"),
        (np.zeros((2, 8, 8, 3), np.uint8), {"num_frame": 3}, "num_frame: no such option"),
        (np.zeros((2, 8, 8, 3), np.uint8), {"sampling_rule": "all"}, "rule: 'all'"),
    ],
)
def test_what_is_wrong_is_said(videos, options, message):
    with pytest.raises(ValueError, match=message):
        CLIPVideoProcessor(**SIZES)(videos, return_tensors="pt", **options)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"size": []}, "size: \\[\\], expected whole numbers of pixels"),
        ({"crop_size": [1, 2, 3]}, "crop_size: \\[1, 2, 3\\], expected whole numbers of pixels"),
        ({"image_mean": [0.5, 0.5]}, "image_mean: .* expected three numbers"),
        ({"resample": 77}, "resample: 77, expected the number of one of Pillow's filters"),
        ({"do_resize": "yes"}, "do_resize: 'yes', expected true or false"),
    ],
)
def test_settings_that_no_processor_has_are_refused_when_it_is_made(options, message):
    with pytest.raises(ValueError, match=message):
        CLIPVideoProcessor(**SIZES | options)


def test_saved_and_loaded_processors_do_the_same(tmp_path, frames):
    clip = CLIPClassifierProcessor(CLIPClassifierImageProcessor(**SIZES), tiny_tokenizer())
    processor = VideoTextProcessor.from_clip(clip, num_frames=4, sampling_rule="segments")
    processor.save_pretrained(tmp_path)
    again = VideoTextProcessor.from_pretrained(tmp_path)
    inputs = [one(["a cat", "two dogs"], frames, return_tensors="pt") for one in (processor, again)]
    assert inputs[0].keys() == {"input_ids", "attention_mask", "pixel_values_videos", "video_mask"}
    for name, value in inputs[0].items():
        assert torch.equal(value, inputs[1][name])
    assert inputs[0]["pixel_values_videos"].shape == (1, 4, 3, 24, 24)
    alone = CLIPVideoProcessor.from_pretrained(tmp_path)
    assert torch.equal(alone(frames, return_tensors="pt")["pixel_values_videos"], inputs[0]["pixel_values_videos"])
    with pytest.raises(ValueError, match="text, videos: got neither"):
        processor()


def test_without_pyav_files_say_what_to_install_and_frames_are_read(monkeypatch, frames):
    monkeypatch.setitem(sys.modules, "av", None)  # importing it raises
    mp4 = b"\0\0\0\x18ftypmp42" + bytes(200)
    with pytest.raises(ImportError, match=r'pip install "hf-clip-variants\[video\]"'):
        CLIPVideoProcessor(**SIZES)(mp4, return_tensors="pt")
    assert CLIPVideoProcessor(**SIZES)(frames, return_tensors="pt")["video_mask"].all()


def test_captions_that_are_too_long_are_cut_and_blank_ones_are_said():
    clip = CLIPClassifierProcessor(CLIPClassifierImageProcessor(**SIZES), tiny_tokenizer())
    processor = VideoTextProcessor.from_clip(clip)
    with pytest.warns(UserWarning, match="is longer than 32 tokens and was cut"):
        ids = processor("a cat " * 500, return_tensors="pt")["input_ids"]
    assert ids.shape == (1, 32) and ids[0, -1] == processor.tokenizer.eos_token_id
    with pytest.raises(ValueError, match="text\\[1\\]: ' ' is blank"):
        processor(["a cat", " "], return_tensors="pt")
