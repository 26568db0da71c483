"""Trains a small VQGAN on emoji of permissive styles and public-domain clip art, for pictures without a download.

    python scripts/train_vqgan.py --data shared/data --out /tmp/vqgan                # resumes what is in --out
    python scripts/train_vqgan.py --data shared/data --out /tmp/vqgan --ship hf_clip_variants/assets/vqgan-tiny
    python scripts/train_vqgan.py --data shared/data --out /tmp/vqgan --measure OTHER_VQGAN

Loss: mean absolute error, the codebook's loss, the colours of areas, the distance of CLIP's features, and, from
--discriminator-from on, a patch discriminator's hinge loss, weighted so that its gradient in the picture is
--adversarial times the absolute error's. It trains on whole pictures, as it paints: attention at the grid's level sees
all of one. Files are streamed, and what a picture becomes depends on its number only: a run that is resumed, or in two
processes, sees the same pictures as an uninterrupted one. `data/README.md` names the licences: Noto (both), Fluent
(both) and openclipart. Flags are left out.
"""

import argparse
import io
import json
import time
from pathlib import Path

import torch
from datasets import Image as ImageFeature
from datasets import interleave_datasets, load_dataset
from PIL import Image
from safetensors.torch import load_file, save
from torch import nn
from torch.nn import functional as F
from torch.utils.data import IterableDataset
from torchvision.transforms.v2.functional import pil_to_tensor
from transformers import CLIPModel, Trainer, TrainingArguments

from hf_clip_variants import VQGANConfig, VQGANModel
from hf_clip_variants.data.images.emoji import embedded_model
from hf_clip_variants.files.atomic_writes import write_atomically


# file -> how often its pictures come; Apache-2.0, Apache-2.0, MIT, MIT, public domain
SOURCES = {"emoji-noto": 3, "emoji-notov1": 2, "emoji-fluent3d": 2, "emoji-fluentflat": 2, "clipart": 2}
# What is never trained on, and measured: concepts (first code points that are multiples of 29) in all styles, and
# every 40th row of files without them.
HELD_OUT_CONCEPTS, HELD_OUT_ROWS = 29, 40
SETTINGS = {
    "base_channels": 32, "channel_multiplier": [1, 1, 2, 4], "num_res_blocks": 1, "latent_channels": 64,
    "embed_dim": 8, "num_embeddings": 512, "norm_groups": 8,
}  # fmt: skip
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
EXTRA = "extra.safetensors"  # of a checkpoint: what `Trainer` does not know of
_NOTED_EVERY = 50  # steps between figures, and between looks at unused codes


def on_white(image: Image.Image) -> torch.Tensor:
    """(3, H, W) in -1..1."""
    image = image.convert("RGBA")
    whole = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return pil_to_tensor(whole).float() / 127.5 - 1


def is_held_out(row: dict, index: int) -> bool:
    if row.get("hexcode"):
        return int(row["hexcode"].split("-")[0], 16) % HELD_OUT_CONCEPTS == 0
    return index % HELD_OUT_ROWS == 0


class Pictures(IterableDataset):
    """Endless pictures from streamed files, or crops of them; flipped half of the time. Number `i` is the same in
    every run with the same seed; `first` is the number of the first one that is given."""

    def __init__(self, folder: Path, crop: int, seed: int, first: int = 0):
        self.folder, self.crop, self.seed, self.first = folder, crop, seed, first

    def _stream(self, name: str):
        rows = load_dataset("parquet", data_files=str(self.folder / f"{name}.parquet"), split="train", streaming=True)
        rows = rows.cast_column("image", ImageFeature(decode=False))  # what is skipped is not decoded
        rows = rows.filter(
            lambda row, index: not is_held_out(row, index) and row.get("group") != "flags", with_indices=True
        )
        return rows.select_columns(["image"]).shuffle(seed=self.seed, buffer_size=1000).repeat(None)

    def __iter__(self):
        total = sum(SOURCES.values())
        rows = interleave_datasets(
            [self._stream(name) for name in SOURCES],
            probabilities=[weight / total for weight in SOURCES.values()],
            seed=self.seed,
        )
        for number, row in enumerate(rows.skip(self.first), self.first):
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
            pixels = on_white(Image.open(io.BytesIO(row["image"]["bytes"])))
            top, left = (
                int(torch.randint(0, max(1, side - self.crop + 1), (), generator=generator))
                for side in pixels.shape[1:]
            )
            part = pixels[:, top : top + self.crop, left : left + self.crop]
            yield {"pixel_values": part.flip(-1) if torch.rand((), generator=generator) < 0.5 else part}


class PatchDiscriminator(nn.Sequential):
    """(B, 3, H, W) -> (B, 1, H / 4, W / 4): whether each field looks real."""

    def __init__(self, width: int = 32):
        super().__init__(
            nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, 2, 1), nn.GroupNorm(8, 2 * width), nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 1, 3, 1, 1),
        )  # fmt: skip


class VQGANTrainer(Trainer):
    """`Trainer` with the loss of the head of this file. Codes that nobody uses are put where pictures are."""

    def __init__(self, *args, options: argparse.Namespace, **kwargs):
        super().__init__(*args, **kwargs)
        self.options, device = options, self.args.device
        self.clip = CLIPModel.from_pretrained(embedded_model(), dtype=torch.float32).eval().requires_grad_(False)
        self.clip = self.clip.to(device)
        self.discriminator = PatchDiscriminator().to(device)
        self.discriminator_optimizer = torch.optim.Adam(self.discriminator.parameters(), 2e-4, betas=(0.5, 0.9))
        self.used = torch.zeros(self.model.config.num_embeddings, dtype=torch.long, device=device)
        self.parts: dict[str, float] = {}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        pixels, step, options = inputs["pixel_values"], self.state.global_step, self.options
        quantize = step >= options.quantize_from  # an autoencoder first: codes then begin where pictures are
        if step == options.quantize_from:
            self.place_codes(pixels, torch.ones_like(self.used, dtype=torch.bool))
        output = model(pixel_values=pixels, return_loss=True, quantize=quantize)
        made, loss = output.reconstruction.float(), output.loss
        if quantize:
            self.used += torch.bincount(output.codes.flatten(), minlength=len(self.used))
        else:
            loss = loss + 0.01 * output.latents.float().square().mean()
        apart = (made - pixels).abs().mean()
        self.parts = {"absolute": float(apart.detach())}
        extra = options.colour * colour_distance(made, pixels)
        if options.perceptual and step % options.perceptual_every == 0:
            with torch.no_grad():
                wanted = patch_features(self.clip, pixels[::2])
            distance = (patch_features(self.clip, made[::2]) - wanted).square().sum(-1).mean()
            extra = extra + options.perceptual * options.perceptual_every * distance
            self.parts["perceptual"] = float(distance.detach())
        loss = loss + extra
        if options.adversarial and step >= options.discriminator_from:
            # First, since its step changes weights that the other loss goes through.
            self.train_discriminator(pixels, made.detach())
            loss = loss + self.adversarial_loss(made, apart)
        if step and step % _NOTED_EVERY == 0:
            self.look_at_codes(pixels, quantize)
        return (loss, output) if return_outputs else loss

    def adversarial_loss(self, made: torch.Tensor, apart: torch.Tensor) -> torch.Tensor:
        """As of the paper, but with gradients in the picture instead of the last layer's weights."""
        loss = -self.discriminator(made).mean()
        norms = [torch.autograd.grad(one, made, retain_graph=True)[0].square().sum() for one in (apart, loss)]
        ours, theirs = self.accelerator.reduce(torch.stack(norms), "sum").sqrt()
        weight = (self.options.adversarial * ours / (theirs + 1e-8)).clamp(max=100.0)
        self.parts["adversarial_weight"] = float(weight)
        return weight * loss

    def train_discriminator(self, real: torch.Tensor, made: torch.Tensor) -> None:
        loss = F.relu(1 - self.discriminator(real)).mean() + F.relu(1 + self.discriminator(made)).mean()
        self.discriminator_optimizer.zero_grad()
        loss.backward()
        for parameter in self.discriminator.parameters():
            parameter.grad = self.accelerator.reduce(parameter.grad, "mean")
        self.discriminator_optimizer.step()
        self.parts["discriminator"] = float(loss.detach())

    def look_at_codes(self, pixels: torch.Tensor, quantize: bool) -> None:
        """Unused ones are placed anew until four fifths of the steps are done."""
        used = self.accelerator.reduce(self.used, "sum")
        self.parts["codes"] = int((used > 0).sum())
        self.log(dict(self.parts))
        if quantize and self.options.quantize_from < self.state.global_step < 0.8 * self.args.max_steps:
            self.place_codes(pixels, used == 0)
        self.used.zero_()

    @torch.no_grad()
    def place_codes(self, pixels: torch.Tensor, which: torch.Tensor) -> None:
        """These codes become outputs of the encoder, drawn at random: the same in all processes."""
        cells = self.accelerator.gather(self.model.encode(pixels).float().movedim(1, -1).flatten(0, 2))
        if not bool(which.any()):
            return
        generator = torch.Generator().manual_seed(self.args.seed * 1_000_003 + self.state.global_step)
        drawn = cells[torch.randint(len(cells), (int(which.sum()),), generator=generator).to(cells.device)]
        noise = torch.randn(drawn.shape, generator=generator).to(cells.device)
        self.model.codebook[which] = drawn + 0.01 * cells.std() * noise

    def _save_checkpoint(self, model, trial):
        super()._save_checkpoint(model, trial)
        tensors = {f"discriminator.{name}": value for name, value in self.discriminator.state_dict().items()}
        for number, state in self.discriminator_optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": value for name, value in state.items()}
        tensors["used"] = self.accelerator.reduce(self.used, "sum")
        if self.is_world_process_zero():  # last, and at once: a checkpoint with this file is complete
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            write_atomically(folder / EXTRA, save(tensors))

    def load_extra(self, checkpoint: str) -> None:
        """The discriminator, its optimiser, and how often codes were used."""
        tensors = load_file(Path(checkpoint) / EXTRA)
        if self.is_world_process_zero():  # the sum over all of them
            self.used += tensors.pop("used").to(self.used.device)
        weights = {name.partition(".")[2]: one for name, one in tensors.items() if name.startswith("discriminator.")}
        self.discriminator.load_state_dict(weights)
        whole = self.discriminator_optimizer.state_dict()
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, number, kind = name.split(".")
                whole["state"].setdefault(int(number), {})[kind] = value
        self.discriminator_optimizer.load_state_dict(whole)


def colour_distance(made: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """() of (B, 3, H, W): mean square of how much redder, greener or bluer areas of 4 x 4 pixels are. Without it, few
    steps give shapes in orange and blue: the medians that the absolute error asks for."""
    apart = F.avg_pool2d(made - pixels, 4)
    return (apart - apart.mean(1, keepdim=True)).square().mean()


def patch_features(clip: CLIPModel, pixels: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) in -1..1 -> (2, B, patches, width): of the middle and the end of CLIP's encoder, of unit norm."""
    size = clip.config.vision_config.image_size
    if pixels.shape[2:] != (size, size):
        pixels = F.interpolate(pixels, (size, size), mode="bilinear")
    mean, std = (pixels.new_tensor(values)[:, None, None] for values in (_CLIP_MEAN, _CLIP_STD))
    layers = clip.vision_model((pixels / 2 + 0.5 - mean) / std, output_hidden_states=True).hidden_states
    return torch.stack([F.normalize(layers[place].float(), dim=-1) for place in (len(layers) // 2, len(layers) - 1)])


def held_out(folder: Path, most: int = 24) -> torch.Tensor:
    """(n, 3, 64, 64), the first pictures of each file that are not trained on."""
    found = []
    for name in SOURCES:
        rows = load_dataset("parquet", data_files=str(folder / f"{name}.parquet"), split="train", streaming=True)
        rows = rows.cast_column("image", ImageFeature())
        rows = rows.filter(
            lambda row, index: is_held_out(row, index) and row.get("group") != "flags", with_indices=True
        )
        found += [on_white(row["image"]) for row in rows.take(most)]
    return torch.stack(found)


@torch.no_grad()
def measure(model: VQGANModel, pixels: torch.Tensor, side: int | None = None) -> dict[str, float]:
    """Figures of reconstructions in 0..1: mean absolute error, PSNR with its standard error over pictures, distance of
    the embedded CLIP's features (as in the loss); the same of a picture squashed to the grid's size (a number a
    channel and cell) and enlarged again; codes in use. `side`: the model sees pictures of this size, and what it
    makes of them is enlarged."""
    model.eval()
    clip = CLIPModel.from_pretrained(embedded_model(), dtype=torch.float32).eval()
    whole = pixels.shape[2:]
    seen = pixels if side is None else F.interpolate(pixels, (side, side), mode="bilinear", antialias=True)
    outputs = [model(part) for part in seen.split(8)]
    codes = torch.cat([output.codes for output in outputs])
    made = torch.cat([output.reconstruction for output in outputs])
    made = (made if side is None else F.interpolate(made, whole, mode="bicubic")).clamp(-1, 1)
    size = [length // model.config.factor for length in seen.shape[2:]]
    small = F.interpolate(pixels, size, mode="bilinear", antialias=True)
    plain = F.interpolate(small, whole, mode="bicubic").clamp(-1, 1)
    figures = {"pictures": len(pixels), "codes_a_picture": codes[0].numel()}
    for other, ending in ((made, ""), (plain, "_squashed")):
        psnr = -10 * ((other - pixels) / 2).square().mean((1, 2, 3)).log10()
        apart = (patch_features(clip, other) - patch_features(clip, pixels)).square().sum(-1).mean()
        figures |= {
            f"absolute_error{ending}": round(float((other - pixels).abs().mean() / 2), 4),
            f"psnr{ending}": round(float(psnr.mean()), 2),
            f"psnr_standard_error{ending}": round(float(psnr.std() / len(psnr) ** 0.5), 2),
            f"clip_distance{ending}": round(float(apart), 4),
        }
    return figures | {"codes": model.config.num_embeddings, "codes_in_use": int(codes.unique().numel())}


def show(model: VQGANModel, pixels: torch.Tensor, path: Path) -> None:
    """Pictures above, reconstructions below."""
    with torch.no_grad():
        both = torch.cat([pixels, model(pixels).reconstruction]).clamp(-1, 1)
    rows = [torch.cat(list(part), 2) for part in both.split(len(pixels))]
    values = ((torch.cat(rows, 1) + 1) * 127.5).byte().permute(1, 2, 0).numpy()
    Image.fromarray(values).save(path)


def last_checkpoint(out: Path) -> str | None:
    """The last complete one."""
    found = {int(file.parent.name.rpartition("-")[2]): file.parent for file in out.glob(f"checkpoint-*/{EXTRA}")}
    return str(found[max(found)]) if found else None


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="folder of the Parquet files")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--steps", type=int, default=7200)
    parser.add_argument("--batch-size", type=int, default=8, help="of each process")
    parser.add_argument("--crop", type=int, default=64, help="64 is all of a picture")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--optim", default="adamw_torch_fused", help="Trainer's name of the optimiser")
    parser.add_argument("--perceptual", type=float, default=0.1)
    parser.add_argument("--perceptual-every", type=int, default=2)
    parser.add_argument("--colour", type=float, default=2.0, help="weight of the colours of areas")
    parser.add_argument("--quantize-from", type=int, default=300, help="steps as a plain autoencoder before")
    parser.add_argument("--adversarial", type=float, default=0.3)
    parser.add_argument("--discriminator-from", type=int, default=4800)
    parser.add_argument("--bf16", action="store_true", help="mixed precision")
    parser.add_argument("--save-steps", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--settings", type=json.loads, default={}, help="fields of VQGANConfig, JSON")
    parser.add_argument("--ship", type=Path, help="folder that gets the last checkpoint in float16, and its figures")
    parser.add_argument("--measure", help="a VQGAN whose figures are printed, on pictures that are not trained on")
    parser.add_argument("--side", type=int, help="with --measure: pixels of a side that it sees; default: 64")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None):
    arguments = parse(argv)
    last = last_checkpoint(arguments.out)
    if arguments.measure is not None:
        model = VQGANModel.from_pretrained(arguments.measure, dtype=torch.float32)
        return print(json.dumps(measure(model, held_out(arguments.data), arguments.side)))
    if arguments.ship is not None:
        return ship(arguments, last)
    torch.manual_seed(arguments.seed)
    model = VQGANModel(VQGANConfig(**SETTINGS | arguments.settings))
    settings = TrainingArguments(
        str(arguments.out), max_steps=arguments.steps, per_device_train_batch_size=arguments.batch_size,
        learning_rate=arguments.lr, lr_scheduler_type="cosine", warmup_steps=100, adam_beta2=0.98, weight_decay=0.0,
        optim=arguments.optim, max_grad_norm=1.0, save_steps=arguments.save_steps, save_total_limit=2, report_to=[],
        logging_steps=_NOTED_EVERY, seed=arguments.seed, ignore_data_skip=True, dataloader_num_workers=0,
        use_cpu=not torch.cuda.is_available(), bf16=arguments.bf16, disable_tqdm=True,
    )  # fmt: skip
    done = 0 if last is None else int(last.rpartition("-")[2])
    first = done * arguments.batch_size * settings.world_size
    data = Pictures(arguments.data, arguments.crop, arguments.seed, first)
    trainer = VQGANTrainer(model, settings, train_dataset=data, options=arguments)
    if last is not None:
        trainer.load_extra(last)
    started = time.process_time()
    trainer.train(resume_from_checkpoint=last)
    print(f"{time.process_time() - started:.0f} s of processor time from step {done} to {arguments.steps}")


def ship(arguments, last: str | None):
    if last is None:
        raise SystemExit(f"--out: no checkpoint in {arguments.out}")
    model = VQGANModel.from_pretrained(last, dtype=torch.float16).float().eval()  # as it is loaded
    pixels = held_out(arguments.data)
    figures = {"steps": int(last.rpartition("-")[2]), **measure(model, pixels)}
    arguments.ship.mkdir(parents=True, exist_ok=True)
    show(model, pixels[::5], arguments.out / "reconstructions.png")
    model.half().save_pretrained(arguments.ship)
    (arguments.ship / "metrics.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
