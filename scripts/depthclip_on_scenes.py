"""
DepthCLIP where depth is known: drawn scenes, rendered shapes, and a stereo pair.

    python scripts/depthclip_on_scenes.py scripts/results/depthclip --shapes shapes.parquet --aloe depth_aloe

Depth is read zero-shot, or calibrated with a few labelled images: bins alone, or bins, words and temperature. Beside
each figure stand a constant, the mean depth map of the labelled images, and the same model with an image encoder that
was never trained. Settings were chosen on seed 0; seeds 1 to 3 draw other scenes, labelled images and weights.

The embedded CLIP (a Vision Transformer) knows no distance. So a small CLIP-ResNet is trained, too, on crops of scenes
with captions that name their distance ("This object is far"): DepthCLIP then reads depth where nobody gave any.

`--shapes` is a Parquet file with `points` (N, 3), `rgb` (N, 3) and `split`; `--aloe` a folder with `aloeL.jpg` and the
disparity `aloeGT.png`.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from transformers import AutoModel, AutoTokenizer, CLIPTextConfig

from hf_clip_variants import (
    CLIPResNetConfig,
    CLIPResNetModel,
    DepthCLIPForDepthEstimation,
    DepthCLIPImageProcessor,
    embedded_model,
)
from hf_clip_variants.annotations.depth_pictures import draw_depth
from hf_clip_variants.data.scenes.depth_scenes import DepthSceneMaker
from hf_clip_variants.data.scenes.scenes import SceneMaker
from hf_clip_variants.metrics.depth import kitti_depth_metrics, order_accuracy
from hf_clip_variants.modeling.depthclip.configuration_depthclip import DEPTH_WORDS


STYLES = {"captions": ["notov1", "emojione"], "labelled": "fluentflat", "test": "fluent3d"}
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]  # CLIP's
TEST_SCENES, TEST_SHAPES, SHOTS, CROP = 24, 40, (1, 4, 16), 64
SCENE_BINS = np.geomspace(1.0, 7.0, 7).round(2).tolist()
SHAPE_BINS = np.geomspace(1.3, 3.1, 7).round(2).tolist()
METRICS = ("abs_rel", "a1", "rmse", "order")
PARTS = {"bins": ["bins"], "bins, words, temperature": ["bins", "words", "temperature"]}
STEPS, RATE = 150, 0.03  # of a calibration
PRETRAINING = {"steps": 300, "batch": 64, "rate": 1e-3, "scenes": 200}


# ---- scores


def scores(predicted: np.ndarray, depth: np.ndarray) -> dict[str, float]:
    """(B, H, W) twice: `METRICS`, means over images; 0 in `depth` is not known."""
    found = kitti_depth_metrics(predicted, depth, crop=False)
    pairs = zip(predicted, depth, strict=True)
    return {name: found[name] for name in METRICS[:3]} | {
        "order": float(np.mean([order_accuracy(one, other) for one, other in pairs]))
    }


def of_constant(labelled: np.ndarray, depth: np.ndarray) -> dict[str, float]:
    return scores(np.full_like(depth, np.median(labelled[labelled > 0])), depth)


def of_mean_map(labelled: np.ndarray, depth: np.ndarray) -> dict[str, float]:
    """The mean of the labelled depth maps; where none is known, their median."""
    counts = (labelled > 0).sum(0)
    mean = np.where(counts > 0, labelled.sum(0) / np.maximum(counts, 1), np.median(labelled[labelled > 0]))
    return scores(np.broadcast_to(mean, depth.shape), depth)


# ---- models


def random_like(clip, seed: int):
    """The same architecture with new weights."""
    torch.manual_seed(seed)
    return type(clip)(clip.config).eval()


_KEPT: dict[tuple, torch.Tensor] = {}


def remember_features(model, clip) -> None:
    """The image encoder is frozen: features of the same images are computed once, for all models of this CLIP."""
    compute = model.get_patch_features

    def kept(images, **options):
        key = id(clip), model.config.feature_projection, hash(images.numpy().tobytes())
        if key not in _KEPT:
            with torch.no_grad():
                _KEPT[key] = torch.cat([compute(one)[0] for one in images.split(8)])
        return _KEPT[key], {}

    model.get_patch_features = kept


@torch.no_grad()
def predict(model, processor, images: list[Image.Image]) -> np.ndarray:
    """(B, H, W) of images of one size."""
    outputs = model.eval()(**processor(images, return_tensors="pt"))
    found = processor.post_process_depth_estimation(outputs, [image.size[::-1] for image in images])
    return torch.stack([one["predicted_depth"] for one in found]).numpy()


def calibrated(clip, tokenizer, processor, images, depth, bins, parts: list[str], **options):
    """A DepthCLIP whose parts learned from these images: `images` of one size, `depth` (K, H, W)."""
    model = DepthCLIPForDepthEstimation.from_clip(
        clip, tokenizer, bin_centers=bins, learnable_parts=parts, align_corners=False, temperature=1.0, **options
    )
    batch = processor(images, list(depth), return_tensors="pt")
    remember_features(model, clip)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=RATE)
    model.train()
    for _ in range(STEPS):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def processor_for(size: int | None) -> DepthCLIPImageProcessor:
    sizes = {"do_resize": False} if size is None else {"size": {"shortest_edge": size, "longest_edge": 4 * size}}
    return DepthCLIPImageProcessor(**sizes, image_mean=MEAN, image_std=STD)


# ---- a CLIP that knows distance from captions


def captioned_crops(maker: DepthSceneMaker, count: int, seed: int):
    """Endless batches: (B, 3, 64, 64) crops, and which of the words their mean depth is nearest to."""
    scenes = [maker.scene(index) for index in range(count)]
    pixels = torch.stack([processor_for(None)(one.image, return_tensors="pt").pixel_values[0] for one in scenes])
    logs = torch.stack([torch.from_numpy(one.depth).log() for one in scenes])
    random = np.random.default_rng(seed)
    bins = torch.tensor(SCENE_BINS).log()
    height, width = logs.shape[1:]
    while True:
        rows = random.integers(count, size=PRETRAINING["batch"])
        tops, lefts = (random.integers(side - CROP + 1, size=len(rows)) for side in (height, width))
        places = [(row, slice(t, t + CROP), slice(x, x + CROP)) for row, t, x in zip(rows, tops, lefts, strict=True)]
        crops = torch.stack([pixels[row, :, ys, xs] for row, ys, xs in places])
        mean = torch.stack([logs[place].mean() for place in places])
        yield crops, (mean[:, None] - bins).abs().argmin(1)


def train_on_captions(tokenizer, seed: int) -> CLIPResNetModel:
    """A CLIP-ResNet that tells which of seven sentences fits a crop: CLIP's loss over the distinct sentences."""
    torch.manual_seed(seed)
    vision = {"hidden_size": 512, "depths": [1, 1, 1, 1], "num_attention_heads": 4, "image_size": CROP}
    text = CLIPTextConfig(
        **{"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 2},
        **{"vocab_size": len(tokenizer), "max_position_embeddings": 32, "projection_dim": 256},
        **{"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id},
    )
    clip = CLIPResNetModel(CLIPResNetConfig(text_config=text, vision_config=vision, projection_dim=256)).train()
    sentences = [f"This object is {word}" for word in DEPTH_WORDS]
    ids = tokenizer(sentences, padding=True, return_tensors="pt")
    maker = DepthSceneMaker(scenes=SceneMaker(styles=STYLES["captions"]), seed=100 + seed)
    batches = captioned_crops(maker, PRETRAINING["scenes"], seed)
    optimizer = torch.optim.AdamW(clip.parameters(), lr=PRETRAINING["rate"], weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PRETRAINING["rate"], PRETRAINING["steps"], pct_start=0.1)
    for _ in range(PRETRAINING["steps"]):
        crops, words = next(batches)
        logits = clip(pixel_values=crops, **ids).logits_per_image
        loss = torch.nn.functional.cross_entropy(logits, words)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            clip.logit_scale.clamp_(0, np.log(100))
    return clip.eval()


def read_zero_shot(clip, tokenizer, images, depth, processor, seed: int) -> dict[str, dict[str, float]]:
    """DepthCLIP with both projections, with the words' depths drawn anew, and with an untrained image encoder."""
    own = float(clip.logit_scale.exp())  # the published constants make 1000 of it
    found = {}
    shuffled = np.random.default_rng(seed).permutation(SCENE_BINS).tolist()
    for name, model, bins, projection, scale in (
        ("attnpool_value", clip, SCENE_BINS, "attnpool_value", own),
        ("attnpool_value, scale 1000", clip, SCENE_BINS, "attnpool_value", 1000.0),
        ("official", clip, SCENE_BINS, "official", own),
        ("official, scale 1000", clip, SCENE_BINS, "official", 1000.0),
        ("attnpool_value, depths of words shuffled", clip, shuffled, "attnpool_value", own),
        ("attnpool_value, untrained", random_like(clip, seed), SCENE_BINS, "attnpool_value", own),
    ):
        options = {"feature_projection": projection, "logit_scale": scale, "temperature": 1.0, "align_corners": False}
        reader = DepthCLIPForDepthEstimation.from_clip(model, tokenizer, bin_centers=bins, **options)
        remember_features(reader, model)
        found[name] = scores(predict(reader, processor, images), depth)
    return found


# ---- rendered shapes


def render(points: np.ndarray, rgb: np.ndarray, angle: float, side: int = 64, distance: float = 2.2):
    """A cloud in the unit sphere as coloured discs with a depth buffer: (RGB image, (S, S) depth, 0 around it)."""
    c, s = np.cos(angle), np.sin(angle)
    x, y, z = c * points[:, 0] + s * points[:, 2], points[:, 1], c * points[:, 2] - s * points[:, 0]
    depth = distance - z
    column, row = ((0.5 + 0.9 * one / depth) * side for one in (x, -y))
    picture, buffer = np.full((side, side, 3), 255, dtype=np.uint8), np.zeros((side, side), dtype=np.float32)
    order = np.argsort(-depth, kind="stable")  # the nearest are drawn last
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            at = (
                (row[order].astype(int) + down).clip(0, side - 1),
                (column[order].astype(int) + right).clip(0, side - 1),
            )
            nearer = (buffer[at] == 0) | (depth[order] < buffer[at])
            at = tuple(one[nearer] for one in at)
            picture[at], buffer[at] = rgb[order][nearer], depth[order][nearer]
    return Image.fromarray(picture), buffer


def rendered(table: pd.DataFrame, count: int, seed: int):
    random = np.random.default_rng(seed)
    pairs = []
    for row in table.sample(count, random_state=seed).itertuples():
        pairs.append(render(np.stack(row.points), np.stack(row.rgb).astype(np.uint8), random.uniform(0, 2 * np.pi)))
    return [image for image, _ in pairs], np.stack([depth for _, depth in pairs])


# ---- parts of the table


def few_shot(clip, tokenizer, processor, labelled, test, bins, seed: int) -> dict[str, dict[str, float]]:
    """Calibration with 1, 4 and 16 of the labelled (images, depths), on the test ones; zero-shot; baselines."""
    (images, depths), (test_images, test_depths) = labelled, test
    found = {}
    spread = float(np.sqrt(bins[0] * bins[-1]))
    found["constant, the middle of the bins"] = scores(np.full_like(test_depths, spread), test_depths)
    plain = DepthCLIPForDepthEstimation.from_clip(clip, tokenizer, bin_centers=bins, align_corners=False)
    remember_features(plain, clip)
    found["zero-shot"] = scores(predict(plain, processor, test_images), test_depths)
    other = random_like(clip, seed)
    for shots in SHOTS:
        found[f"constant, {shots}"] = of_constant(depths[:shots], test_depths)
        found[f"mean map, {shots}"] = of_mean_map(depths[:shots], test_depths)
        some = (images[:shots], depths[:shots], bins)
        for name, parts in PARTS.items():
            model = calibrated(clip, tokenizer, processor, *some, parts)
            found[f"{name}, {shots}"] = scores(predict(model, processor, test_images), test_depths)
        model = calibrated(other, tokenizer, processor, *some, PARTS["bins, words, temperature"])
        found[f"untrained, {shots}"] = scores(predict(model, processor, test_images), test_depths)
    return found


def scenes(kind: str, count: int, seed: int):
    maker = DepthSceneMaker(scenes=SceneMaker(styles=STYLES[kind]), seed={"labelled": 200, "test": 300}[kind] + seed)
    found = [maker.scene(index) for index in range(count)]
    return [one.image for one in found], np.stack([one.depth for one in found])


def stereo(folder: Path, clip, tokenizer, seed: int) -> dict[str, dict[str, float]]:
    """Order of depth in the right half of a photograph, calibrated on its left half or on scenes; disparity is known
    there, whose reciprocal is depth but for scale and offset."""
    image = Image.open(folder / "aloeL.jpg").convert("RGB")
    disparity = np.asarray(Image.open(folder / "aloeGT.png").convert("L"), dtype=np.float32)
    size = (image.width // 4, image.height // 4)
    small = image.resize(size, Image.Resampling.BICUBIC)
    disparity = disparity[: 4 * size[1] : 4, : 4 * size[0] : 4]
    depth = np.where(disparity > 0, 200 / np.maximum(disparity, 1), 0).astype(np.float32)
    half = size[0] // 2
    left, right = small.crop((0, 0, half, size[1])), small.crop((half, 0, *size))
    known, target = depth[:, :half], depth[:, half : half + right.width]
    processor, rows = processor_for(None), np.arange(size[1])[:, None]
    bins = np.geomspace(*np.percentile(known[known > 0], [2, 98]), 7).tolist()
    all_parts = PARTS["bins, words, temperature"]
    found = {"the lower, the nearer": np.broadcast_to(-rows, target.shape).astype(np.float32)}
    models = {
        "zero-shot": DepthCLIPForDepthEstimation.from_clip(clip, tokenizer, align_corners=False),
        "calibrated on 16 scenes": calibrated(
            clip, tokenizer, processor_for(96), *scenes("labelled", 16, seed), SCENE_BINS, all_parts
        ),
        "calibrated on its left half": calibrated(clip, tokenizer, processor, [left], known[None], bins, all_parts),
        "calibrated on its left half, untrained": calibrated(
            random_like(clip, seed), tokenizer, processor, [left], known[None], bins, all_parts
        ),
    }
    for name, model in models.items():
        found[name] = predict(model, processor, [right])[0]
    return {name: {"order": order_accuracy(one, target, target > 0)} for name, one in found.items()}


# ---- the table


def mean_and_spread(runs: list[dict[str, dict[str, float]]]) -> list[str]:
    lines = []
    for name in runs[0]:
        cells = []
        for metric in METRICS:
            values = [run[name][metric] for run in runs if metric in run[name]]
            cells.append(f"{np.mean(values):.3f} ± {np.std(values):.3f}" if values else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def write_table(runs: dict[str, list], path: Path, seeds: list[int]) -> None:
    head = "| | abs_rel ↓ | a1 ↑ | rmse ↓ | order ↑ |\n|---|---|---|---|---|"
    text = f"Means and standard deviations over the seeds {', '.join(map(str, seeds))}; chance in order is 0.5.\n"
    for title, found in runs.items():
        text += "\n".join([f"\n**{title}**\n", head, *mean_and_spread(found)]) + "\n"
    path.write_text(text, encoding="utf-8")


def pictures(reader, processor, images, depth, out: Path, name: str) -> None:
    """Of each image what was read, above what is true; the shares of the words are those of what was read."""
    predicted = predict(reader, processor, images)
    with torch.no_grad():
        logits = reader(**processor(images, return_tensors="pt")).word_logits
    shares = logits.softmax(1).mean((2, 3)).tolist()
    for number, (image, one, true) in enumerate(zip(images, predicted, depth, strict=True)):
        words = list(zip(DEPTH_WORDS, reader.bins().tolist(), shares[number], strict=True))
        rows = [draw_depth(image, shown, words) for shown in (one, true)]
        sheet = Image.new("RGB", (rows[0].width, rows[0].height + rows[1].height), "white")
        for place, row in enumerate(rows):
            sheet.paste(row, (0, place * rows[0].height))
        sheet.save(out / f"{name}_{number}.png")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shapes", type=Path)
    parser.add_argument("--aloe", type=Path)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--parts", default="captions,scenes,shapes,aloe")
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    seeds = [int(seed) for seed in given.seeds.split(",")]
    tokenizer = AutoTokenizer.from_pretrained(embedded_model())
    clip = AutoModel.from_pretrained(embedded_model(), dtype=torch.float32).eval()
    runs: dict[str, list] = {}
    table = pd.read_parquet(given.shapes, columns=["points", "rgb", "split"]) if given.shapes else None

    def add(title: str, found: dict) -> None:
        runs.setdefault(title, []).append(found)
        (given.out / "results.json").write_text(json.dumps({"seeds": seeds, "runs": runs}, indent=1), encoding="utf-8")
        write_table(runs, given.out / "table.md", seeds)
        print(title, *[f"\n  {name}: {values}" for name, values in found.items()], flush=True)

    for seed in seeds:
        _KEPT.clear()
        test = scenes("test", TEST_SCENES, seed)
        if "captions" in given.parts:
            trained = train_on_captions(tokenizer, seed)
            title = "Scenes, zero-shot: a CLIP-ResNet that saw captions with distances"
            found = {"constant, the middle of the bins": scores(np.full_like(test[1], np.sqrt(7.0)), test[1])}
            add(title, found | read_zero_shot(trained, tokenizer, *test, processor_for(None), seed))
            if seed == seeds[0]:
                own = {"logit_scale": float(trained.logit_scale.exp()), "temperature": 1.0, "align_corners": False}
                reader = DepthCLIPForDepthEstimation.from_clip(
                    trained, tokenizer, bin_centers=SCENE_BINS, feature_projection="attnpool_value", **own
                )
                pictures(reader, processor_for(None), test[0][:2], test[1][:2], given.out, "captions")
        if "scenes" in given.parts:
            labelled = scenes("labelled", max(SHOTS), seed)
            add(
                "Scenes, the embedded CLIP, calibrated with 1, 4, 16 images",
                few_shot(clip, tokenizer, processor_for(96), labelled, test, SCENE_BINS, seed),
            )
        if "shapes" in given.parts and table is not None:
            labelled = rendered(table[table["split"] == "train"], max(SHOTS), seed)
            shown = rendered(table[table["split"] == "test"], TEST_SHAPES, seed)
            add(
                "Rendered shapes, the embedded CLIP, calibrated with 1, 4, 16 images",
                few_shot(clip, tokenizer, processor_for(None), labelled, shown, SHAPE_BINS, seed),
            )
        if "aloe" in given.parts and given.aloe:
            add(
                "A photograph (aloe), order of depth in its right half",
                stereo(given.aloe, clip, tokenizer, seed),
            )


if __name__ == "__main__":
    main()
