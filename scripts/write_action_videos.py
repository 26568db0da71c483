"""A folder of videos for `hf-clip-variants adapt`, from clips in a Parquet file.

    python scripts/write_action_videos.py --clips moving.parquet --out /tmp/actions
    hf-clip-variants adapt --model MODEL --data /tmp/actions --out /tmp/run --templates actionclip

--clips has the columns clip (bytes of an animation), action and split (train, test); rows without an action are left
out, and actions that are not in both splits. OUT/<split>/<action>/<number>.mp4 is written, on white.
"""

import argparse
import io
from pathlib import Path

import datasets
from PIL import Image, ImageSequence

from hf_clip_variants.data.videos import VideoWriter


FRAMES_A_SECOND = 12


def chosen_rows(rows: datasets.Dataset) -> datasets.Dataset:
    """Rows of actions that both splits have."""
    seen: dict[str, set[str]] = {}
    for action, split in zip(rows["action"], rows["split"], strict=True):
        seen.setdefault(action, set()).add(split)
    kept = {action for action, splits in seen.items() if action and {"train", "test"} <= splits}
    return rows.select([number for number, action in enumerate(rows["action"]) if action in kept])


def write_clip(content: bytes, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, FRAMES_A_SECOND) as writer:
        for number, frame in enumerate(ImageSequence.Iterator(Image.open(io.BytesIO(content)))):
            image = Image.new("RGBA", frame.size, "white")
            image.alpha_composite(frame.convert("RGBA"))
            writer.add(number / FRAMES_A_SECOND, image)


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args(argv)
    rows = chosen_rows(datasets.Dataset.from_parquet(str(options.clips)))
    if not len(rows):
        raise SystemExit(f"--clips: {options.clips} has no action in both splits; want columns clip, action, split")
    for number, row in enumerate(rows):
        write_clip(row["clip"], options.out / row["split"] / row["action"].replace("/", " ") / f"{number:04d}.mp4")
    print(f"{len(rows)} videos of {len(set(rows['action']))} actions in {options.out}")


if __name__ == "__main__":
    main()
