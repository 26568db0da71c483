"""How exact and how fast the augmentations of pictures are: ours, torchvision's and kornia's, in the same run.

    pip install kornia
    OMP_NUM_THREADS=1 python scripts/augmentation_speed.py --out scripts/results/augmentations

Exactness, with the same parameters for all: the largest and the mean difference to torchvision's pixels (in 0..1), and
of float32 to the same function in float64. Speed: processor time of forward and backward, medians of runs that take
turns: CLIPDraw's views (a perspective and a crop each) and the cuts of the popular VQGAN-CLIP code (affine,
perspective, jitter, erasing), each with parameters of its own. torchvision draws one set of parameters a call, so
there it is a loop over views, and without hue, whose code there has no gradient.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from torch.nn import functional as F
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from hf_clip_variants.files.json_files import write_json
from hf_clip_variants.modeling.synthesis.view_augmentation import (
    augmented_views,
    cropped,
    draw_crops,
    draw_perspectives,
    warped,
)
from hf_clip_variants.modeling.vqgan_clip.cuts_vqgan_clip import adjust_hue, cuts_of, sharpness


SIZE = 224
COUNT = 8  # pictures that exactness is measured on


def smooth_pictures(count: int) -> torch.Tensor:
    """Like photographs: neighbours are alike."""
    coarse = torch.rand(count, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, (SIZE, SIZE), mode="bicubic").clamp(0, 1)


def exactness(kornia) -> list[dict]:
    images, g = smooth_pictures(COUNT), torch.Generator().manual_seed(1)
    corners = draw_perspectives(COUNT, SIZE, SIZE, 0.5, g)
    boxes = draw_crops(COUNT, SIZE, SIZE, (0.7, 0.9), (3 / 4, 4 / 3), g)
    edge = SIZE - 1
    start = [[0, 0], [edge, 0], [edge, edge], [0, edge]]
    starts = torch.tensor(start).float().expand(COUNT, 4, 2)
    tops = torch.tensor([[0.0, 0], [1, 0], [1, 1], [0, 1]])
    crop_corners = boxes[:, None, [1, 0]] + tops * (boxes[:, None, [3, 2]] - 1)
    inside = torch.nn.functional.pad(torch.ones(1, 1, SIZE - 8, SIZE - 8), (4, 4, 4, 4))
    shares = torch.linspace(0, 0.3, COUNT)

    def kornia_perspective(x):
        matrix = kornia.geometry.transform.get_perspective_transform(starts.to(x), corners.to(x))
        return kornia.geometry.transform.warp_perspective(x, matrix, (SIZE, SIZE), align_corners=False)

    def each(function, *several):
        return lambda x: torch.cat([function(one[None], *parts) for one, *parts in zip(x, *several, strict=True)])

    rows = {
        "perspective": (
            lambda x: warped(x, corners, 0.0),
            each(lambda one, places: tv.perspective(one, start, places.int().tolist(), fill=[0.0] * 3), corners),
            kornia_perspective,
        ),
        "crop": (
            lambda x: cropped(x, boxes, SIZE),
            each(lambda one, box: tv.resized_crop(one, *box.tolist(), [SIZE, SIZE], antialias=True), boxes),
            lambda x: kornia.geometry.transform.crop_and_resize(
                x, crop_corners.to(x), (SIZE, SIZE), align_corners=False
            ),
        ),
        "hue": (
            lambda x: adjust_hue(x, torch.full((COUNT,), 0.07)),
            lambda x: tv.adjust_hue(x, 0.07),
            lambda x: kornia.enhance.adjust_hue(x, 0.07 * 2 * torch.pi),
        ),
        "sharpness": (
            lambda x: sharpness(x, shares),
            each(lambda one, share: tv.adjust_sharpness(one, share.item()), shares),
            lambda x: kornia.enhance.sharpness(x, shares.to(x)),
        ),
    }
    found = []
    for name, functions in rows.items():
        plain = functions[1](images)
        # Warps differ at the border of the picture by convention; inside, they should not.
        mask = functions[0](inside.expand(COUNT, 3, -1, -1)) > 0.999 if name in ("perspective", "crop") else 1.0
        for who, function in zip(("ours", "torchvision", "kornia"), functions, strict=True):
            pixels = function(images)
            apart = (pixels - plain).abs() * mask
            rounding = (pixels - function(images.double()).float()).abs().max().item()
            found.append(
                {
                    "what": name,
                    "who": who,
                    "largest": apart.max().item(),
                    "mean": apart.mean().item(),
                    "gradient": has_gradient(function, images),
                    "float64": rounding,
                }
            )
    return found


def has_gradient(function, images: torch.Tensor) -> bool:
    given = images.clone().requires_grad_()
    try:
        function(given * 1.0).square().sum().backward()
    except RuntimeError:  # pixels are changed in place
        return False
    return bool(given.grad.isfinite().all())


def speed(kornia, repeats: int) -> list[dict]:
    image = smooth_pictures(1)[0]
    crop = {"scale": (0.7, 0.9), "ratio": (3 / 4, 4 / 3)}
    tv_views = v2.Compose(
        # With a fill, also black, it changes pixels in place and has no gradient.
        [v2.RandomPerspective(0.5, p=1.0, fill=None), v2.RandomResizedCrop(SIZE, antialias=True, **crop)]
    )
    tv_cuts = v2.Compose(
        [
            v2.RandomApply(
                [
                    v2.RandomAffine(
                        15, translate=(0.1, 0.1), shear=5, fill=None, interpolation=tv.InterpolationMode.BILINEAR
                    )
                ],
                0.7,
            ),
            v2.RandomPerspective(0.7, p=0.7, fill=None),
            v2.RandomApply([v2.ColorJitter(0.1, 0.1, 0.1)], 0.7),
        ]
    )
    erase = v2.RandomErasing(0.7, scale=(0.1, 0.4), ratio=(0.3, 1 / 0.3))
    augmentation = kornia.augmentation
    k_views = torch.nn.Sequential(
        augmentation.RandomPerspective(0.5, p=1.0),
        augmentation.RandomResizedCrop((SIZE, SIZE), cropping_mode="resample", **crop),
    )
    k_cuts = torch.nn.Sequential(
        augmentation.RandomAffine(15, translate=(0.1, 0.1), shear=5, p=0.7),
        augmentation.RandomPerspective(0.7, p=0.7),
        augmentation.ColorJitter(0.1, 0.1, 0.1, 0.1, p=0.7),
        augmentation.RandomErasing((0.1, 0.4), (0.3, 1 / 0.3), same_on_batch=True, p=0.7),
    )
    g = torch.Generator().manual_seed(0)
    cases = {
        "4 views": (
            lambda x: augmented_views(x[None], 4, [g], SIZE, fill=1.0),
            lambda x: torch.stack([tv_views(x) for _ in range(4)]),
            lambda x: k_views(x.expand(4, -1, -1, -1)),
        ),
        "32 cuts": (
            lambda x: cuts_of(x, 32, SIZE, g, noise_factor=0.0),
            lambda x: erase(torch.stack([tv_cuts(x) for _ in range(32)])),
            lambda x: k_cuts(x.expand(32, -1, -1, -1)),
        ),
    }
    found = []
    for name, functions in cases.items():
        times: dict[str, list[float]] = {who: [] for who in ("ours", "torchvision", "kornia")}
        for _ in range(repeats):
            for who, function in zip(times, functions, strict=True):
                x = image.clone().requires_grad_()
                began = time.process_time()
                function(x).square().mean().backward()
                times[who].append(time.process_time() - began)
                assert x.grad.isfinite().all()
        found += [{"what": name, "who": who, "ms": 1000 * statistics.median(some)} for who, some in times.items()]
    return found


def main():
    import kornia

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    exact, fast = exactness(kornia), speed(kornia, arguments.repeats)
    lines = [
        "| same parameters | | largest difference to torchvision | mean | float32 to float64 | gradient |",
        "|---|---|---|---|---|---|",
    ]
    for one in exact:
        numbers = " | ".join(f"{one[key]:.1e}" for key in ("largest", "mean", "float64"))
        lines.append(f"| {one['what']} | {one['who']} | {numbers} | {'yes' if one['gradient'] else 'no'} |")
    lines += ["", "| forward + backward, one core | | ms | |", "|---|---|---|---|"]
    for one in fast:
        ours = next(each["ms"] for each in fast if each["what"] == one["what"] and each["who"] == "ours")
        lines.append(f"| {one['what']} | {one['who']} | {one['ms']:.0f} | {one['ms'] / ours:.1f} |")
    lines += ["", f"{SIZE} x {SIZE} pixels; torch {torch.__version__}, kornia {kornia.__version__}.", ""]
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "table.md").write_text("\n".join(lines), encoding="utf-8")
    write_json(arguments.out / "results.json", {"exactness": exact, "speed": fast})
    print("\n".join(lines))


if __name__ == "__main__":
    main()
