"""The task "detection" of `hf-clip-variants predict`: boxes and masks of labels, and pictures of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from .arguments import check_out
from .output import machine_output, prepare_libraries, say, use_all_cores
from .segmentation import BATCH, file_name, list_of_labels, png_of


if TYPE_CHECKING:
    from ..annotations.coco import CocoDocument
    from ..evaluation.detection import DetectedImage, Detector

OUT = "detections"  # the folder that is written
THRESHOLD = 0.1


def detect_files(
    inputs: list[str] | Iterator[str],
    model: str,
    labels: str | None,
    templates: str | None,
    *,
    masks: str,
    threshold: float | None,
    out: str | None,
    batch_size: int | None,
    device: str | None,
    as_json: bool,
) -> tuple[int, int]:
    """Finds objects in images and videos, prints them, writes pictures and boxes: (inputs that are broken, inputs)."""
    out = OUT if out is None else out
    check_out("--out", out)
    names = None if labels is None else list_of_labels(labels)
    prepare_libraries(watched=not as_json)
    use_all_cores()
    import numpy as np

    from ..annotations.coco import CocoDocument
    from ..annotations.masks import encode_mask
    from ..evaluation.detection import detect, load_detector
    from ..evaluation.prediction import find_images

    encode_mask(np.ones((1, 1)), masks)  # a package that is missing for it is told now
    detector = load_detector(model, names, templates, device)
    document = CocoDocument(
        {number + 1: name for number, name in enumerate(detector.labels)},
        masks,
        {"description": "hf-clip-variants predict --task detection"},
    )
    report = _Report(detector, Path(out), document, THRESHOLD if threshold is None else threshold, batch_size or BATCH)
    broken = done = 0
    stream = sys.stdout
    with machine_output(stream) as emit:
        write = emit if as_json else _csv_writer(stream)
        for kind, paths in _runs_of_a_kind(find_images(inputs)):
            if kind == "images":
                rows = map(report.of_image, detect(detector, paths, report.threshold, report.batch_size))
            else:
                rows = report.of_videos(paths)
            for row in rows:
                done += "frame" not in row or row["frame"] == 0
                if "error" in row:
                    broken += 1
                    say(f"{row['path']}: {row['error']}", style="red")
                write(row)
        if not done:
            where = ", ".join(inputs) if isinstance(inputs, list) else "standard input"
            raise ValueError(f"IMAGES: no image files in {where}")
        if done > broken:
            document.save(Path(out) / "annotations.json")
            say(f"{out} holds pictures/ and annotations.json (COCO, masks as {masks})")
    return broken, done


def _runs_of_a_kind(paths: Iterator[str]) -> Iterator[tuple[str, Iterator[str]]]:
    """("images" or "videos", paths), in the order of the paths, which may be an endless stream."""
    import itertools

    from ..data.videos import is_video_name

    for is_video, group in itertools.groupby(paths, is_video_name):
        yield "videos" if is_video else "images", group


class _Report:
    """Writes the pictures of what was found, adds it to the document, and returns rows."""

    def __init__(self, detector: Detector, out: Path, document: CocoDocument, threshold: float, batch_size: int):
        self.detector, self.out, self.document = detector, out, document
        self.threshold, self.batch_size = threshold, batch_size
        self.taken: set[str] = set()

    def of_image(self, one: DetectedImage) -> dict[str, Any]:
        from ..annotations.boxes import draw_detections
        from ..files.atomic_writes import write_atomically

        if one.error is not None:
            return {"path": one.path, "error": one.error}
        name = file_name(one.path, self.taken)
        picture = draw_detections(one.image, one.found, self.detector.labels, title=Path(one.path).name)
        written = write_atomically(self.out / "pictures" / name, png_of(picture))
        return self._row(one.path, name, one.image, one.found) | {"picture": str(written)}

    def of_videos(self, paths: Iterator[str]) -> Iterator[dict[str, Any]]:
        """A row for each frame, and a video of the same frames with what was found in them."""
        from ..annotations.boxes import draw_detections
        from ..data.videos import VideoWriter
        from ..evaluation.detection import detect_in
        from ..evaluation.prediction import check_readable_path

        for path in paths:
            name = file_name(path, self.taken).removesuffix(".png")
            video, number = self.out / "pictures" / f"{name}.mp4", 0
            try:
                check_readable_path(path)
                video.parent.mkdir(parents=True, exist_ok=True)
                with VideoWriter(video) as writer:
                    for batch in self._batches_of(path):
                        found = detect_in(self.detector, [image for _, image in batch], self.threshold)
                        for (seconds, image), one in zip(batch, found, strict=True):
                            options = {"legend": False, "enlarge": False}
                            writer.add(seconds, draw_detections(image, one, self.detector.labels, **options))
                            row = self._row(path, f"{name}/{number:06d}", image, one)
                            yield row | {"frame": number, "seconds": round(seconds, 3), "picture": str(video)}
                            number += 1
                    if not number:
                        raise OSError("no frame in it")
            except OSError as error:
                yield {"path": path, "error": str(error).removeprefix(f"{path}: ")} | (
                    {"frame": number} if number else {}
                )

    def _batches_of(self, path: str) -> Iterator[list]:
        import itertools

        from ..data.videos import read_frames

        frames = read_frames(path)
        while batch := list(itertools.islice(frames, self.batch_size)):
            yield batch

    def _row(self, path: str, name: str, image, found) -> dict[str, Any]:
        shifted = type(found)(found.xyxy, found.mask, found.confidence, found.class_id + 1, found.data)
        self.document.add(name, (image.height, image.width), shifted, {"path": path})
        objects = [
            {
                "label": str(found.data["class_name"][place]),
                "score": round(float(found.confidence[place]), 6),
                "box": [round(float(side), 2) for side in found.xyxy[place]],
            }
            for place in range(len(found))
        ]
        return {"path": path, "width": image.width, "height": image.height, "objects": objects}


def _csv_writer(stream: TextIO) -> Callable[[dict], None]:
    """A line for each object."""
    from ..data.csv_cells import csv_line

    stream.write(csv_line(["path", "frame", "label", "score", "xmin", "ymin", "xmax", "ymax", "error"]))

    def write(row: dict) -> None:
        head = [row["path"], row.get("frame", "")]
        lines = [[*head, one["label"], one["score"], *one["box"], ""] for one in row.get("objects", ())]
        for line in lines or [[*head, "", "", "", "", "", "", row.get("error", "")]]:
            stream.write(csv_line(line))
        stream.flush()

    return write


__all__ = ["OUT", "THRESHOLD", "detect_files"]
