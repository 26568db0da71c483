"""Trains a small VQGAN on emoji of permissive styles and public-domain clip art, for pictures without a download.

    python scripts/train_vqgan.py --data shared/data --out /tmp/vqgan                # resumes what is in --out
    python scripts/train_vqgan.py --data shared/data --out /tmp/vqgan --ship hf_clip_variants/assets/vqgan-tiny

Loss: mean absolute error, the codebook's loss, the distance of CLIP's features, and, from --discriminator-from on, a
patch discriminator's hinge loss. The model is convolutional: it trains on crops at the scale that it paints at. Files
are streamed. `data/README.md` names the licences: Noto (both), Fluent (both) and openclipart.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from datasets import Image as ImageFeature
from datasets import interleave_datasets, load_dataset
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from torch.utils.data import IterableDataset
from torchvision.transforms.v2.functional import pil_to_tensor
from transformers import CLIPModel, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from hf_clip_variants import VQGANConfig, VQGANModel
from hf_clip_variants.data.images.emoji import embedded_model
from hf_clip_variants.modeling.vqgan_clip.autoencoder_vqgan_clip import VQGANOutput


# file -> how often its pictures come; Apache-2.0, Apache-2.0, MIT, MIT, public domain
SOURCES = {"emoji-noto": 3, "emoji-notov1": 2, "emoji-fluent3d": 2, "emoji-fluentflat": 2, "clipart": 1}
HELD_OUT = 40  # every 40th row of a file is never trained on, and measured at the end
TINY = {
    "base_channels": 32, "channel_multiplier": [1, 1, 2], "num_res_blocks": 1, "latent_channels": 64, "embed_dim": 8,
    "num_embeddings": 512, "norm_groups": 8,
}  # fmt: skip
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def on_white(image: Image.Image) -> torch.Tensor:
    """(3, H, W) in -1..1."""
    image = image.convert("RGBA")
    whole = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return pil_to_tensor(whole).float() / 127.5 - 1


class Pictures(IterableDataset):
    """Endless crops of streamed pictures, some on a coloured background's side, flipped half of the time."""

    def __init__(self, folder: Path, crop: int, seed: int):
        self.folder, self.crop, self.seed = folder, crop, seed

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed)
        streams = [
            load_dataset("parquet", data_files=str(self.folder / f"{name}.parquet"), split="train", streaming=True)
            .select_columns(["image"])
            .cast_column("image", ImageFeature())
            .filter(lambda _, index: index % HELD_OUT != 0, with_indices=True)
            .shuffle(seed=self.seed, buffer_size=1000)
            .repeat(None)
            for name in SOURCES
        ]
        total = sum(SOURCES.values())
        shares = [weight / total for weight in SOURCES.values()]
        for row in interleave_datasets(streams, probabilities=shares, seed=self.seed):
            pixels = on_white(row["image"])
            # Two crops of each picture: decoding is half as often.
            for _ in range(2):
                place = [
                    int(torch.randint(0, side - self.crop + 1, (), generator=generator)) for side in pixels.shape[1:]
                ]
                part = pixels[:, place[0] : place[0] + self.crop, place[1] : place[1] + self.crop]
                if part.std() < 0.02 and torch.rand((), generator=generator) < 0.9:
                    continue  # white corners teach little
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

    def __init__(
        self,
        *args,
        perceptual: float,
        every: int,
        adversarial: float,
        adversarial_from: int,
        quantize_from: int,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.quantize_from = quantize_from
        self.perceptual, self.every = perceptual, every
        self.adversarial, self.adversarial_from = adversarial, adversarial_from
        self.clip = CLIPModel.from_pretrained(embedded_model(), dtype=torch.float32).eval().requires_grad_(False)
        self.discriminator = PatchDiscriminator()
        self.discriminator_optimizer = torch.optim.Adam(self.discriminator.parameters(), 2e-4, betas=(0.5, 0.9))
        self.used = torch.zeros(self.model.config.num_embeddings, dtype=torch.long)
        self.parts: dict[str, float] = {}

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Patch features of the middle and the end of CLIP's image encoder, of unit norm."""
        size = self.clip.config.vision_config.image_size
        pixels = F.interpolate(pixels / 2 + 0.5, (size, size), mode="bilinear")
        mean, std = (pixels.new_tensor(values)[:, None, None] for values in (_CLIP_MEAN, _CLIP_STD))
        layers = self.clip.vision_model((pixels - mean) / std, output_hidden_states=True).hidden_states
        return torch.stack([F.normalize(layers[place], dim=-1) for place in (len(layers) // 2, len(layers) - 1)])

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        pixels, step = inputs["pixel_values"], self.state.global_step
        if step < self.quantize_from:  # an autoencoder first: codes then begin where pictures are
            latents = model.encode(pixels)
            reconstruction = model.decode(latents)
            output = VQGANOutput(reconstruction=reconstruction, latents=latents)
            loss = (reconstruction - pixels).abs().mean() + 0.01 * latents.square().mean()
        else:
            if step == self.quantize_from:
                self.place_codes(model, pixels, torch.ones_like(self.used, dtype=torch.bool))
            output = model(pixel_values=pixels, return_loss=True)
            loss = output.loss
            self.used += torch.bincount(output.codes.flatten(), minlength=len(self.used))
        self.parts = {"absolute": float((output.reconstruction - pixels).detach().abs().mean())}
        if self.perceptual and step % self.every == 0:
            part = slice(0, max(1, len(pixels) // 2))
            with torch.no_grad():
                wanted = self.features(pixels[part])
            apart = (self.features(output.reconstruction[part]) - wanted).square().sum(-1).mean()
            loss = loss + self.perceptual * self.every * apart
            self.parts["perceptual"] = float(apart.detach())
        if self.adversarial and step >= self.adversarial_from:
            # First, since its step changes weights that the other loss goes through.
            self.train_discriminator(pixels, output.reconstruction.detach())
            loss = loss - self.adversarial * self.discriminator(output.reconstruction).mean()
        if step and step % 50 == 0:
            self.parts["codes"] = int((self.used > 0).sum())
            self.log(dict(self.parts))
            if self.quantize_from < step < 0.8 * self.args.max_steps:
                self.place_codes(model, pixels, self.used == 0)
            self.used.zero_()
        return (loss, output) if return_outputs else loss

    def train_discriminator(self, real: torch.Tensor, made: torch.Tensor) -> None:
        loss = F.relu(1 - self.discriminator(real)).mean() + F.relu(1 + self.discriminator(made)).mean()
        self.discriminator_optimizer.zero_grad()
        loss.backward()
        self.discriminator_optimizer.step()
        self.parts["discriminator"] = float(loss.detach())

    @torch.no_grad()
    def place_codes(self, model, pixels: torch.Tensor, which: torch.Tensor) -> None:
        """These codes become outputs of the encoder, drawn at random."""
        if not bool(which.any()):
            return
        cells = model.encode(pixels).movedim(1, -1).flatten(0, 2)
        drawn = cells[torch.randint(len(cells), (int(which.sum()),))]
        model.codebook[which] = drawn + 0.01 * cells.std() * torch.randn_like(drawn)

    def _save_checkpoint(self, model, trial):
        super()._save_checkpoint(model, trial)
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        save_file(self.discriminator.state_dict(), folder / "discriminator.safetensors")


def held_out(folder: Path) -> torch.Tensor:
    """(n, 3, 64, 64), the first twelve of the pictures of each file that were not trained on."""
    found = []
    for name in SOURCES:
        rows = load_dataset("parquet", data_files=str(folder / f"{name}.parquet"), split="train")
        rows = rows.cast_column("image", ImageFeature()).select(range(0, 12 * HELD_OUT, HELD_OUT))
        found += [on_white(row["image"]) for row in rows]
    return torch.stack(found)


@torch.no_grad()
def measure(model: VQGANModel, pixels: torch.Tensor) -> dict[str, float]:
    """Mean absolute error and PSNR of reconstructions in 0..1, beside those of a picture squashed to the grid's size
    (a number a channel and cell) and enlarged again; codes in use."""
    model.eval()
    made = torch.cat([model(part).reconstruction for part in pixels.split(8)]).clamp(-1, 1)
    codes = torch.cat([model.encode_codes(part) for part in pixels.split(8)])
    size = [side // model.config.factor for side in pixels.shape[2:]]
    small = F.interpolate(pixels, size, mode="bilinear", antialias=True)
    plain = F.interpolate(small, pixels.shape[2:], mode="bicubic").clamp(-1, 1)

    def psnr(other: torch.Tensor) -> float:
        return float((-10 * ((other - pixels) / 2).square().mean((1, 2, 3)).log10()).mean())

    return {
        "pictures": len(pixels),
        "absolute_error": round(float((made - pixels).abs().mean() / 2), 4),
        "psnr": round(psnr(made), 2),
        "psnr_squashed": round(psnr(plain), 2),
        "absolute_error_squashed": round(float((plain - pixels).abs().mean() / 2), 4),
        "codes_in_use": int(codes.unique().numel()),
    }


def show(model: VQGANModel, pixels: torch.Tensor, path: Path) -> None:
    """Pictures above, reconstructions below."""
    with torch.no_grad():
        both = torch.cat([pixels, model(pixels).reconstruction]).clamp(-1, 1)
    rows = [torch.cat(list(part), 2) for part in both.split(len(pixels))]
    values = ((torch.cat(rows, 1) + 1) * 127.5).byte().permute(1, 2, 0).numpy()
    Image.fromarray(values).save(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="folder of the Parquet files")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--steps", type=int, default=1100)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--crop", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--perceptual", type=float, default=0.1)
    parser.add_argument("--perceptual-every", type=int, default=4)
    parser.add_argument("--quantize-from", type=int, default=150, help="steps as a plain autoencoder before")
    parser.add_argument("--adversarial", type=float, default=0.02)
    parser.add_argument("--discriminator-from", type=int, default=10**9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ship", type=Path, help="folder that gets the last checkpoint in float16, and its figures")
    arguments = parser.parse_args()
    last = get_last_checkpoint(str(arguments.out)) if arguments.out.is_dir() else None
    if arguments.ship is not None:
        return ship(arguments, last)
    torch.manual_seed(arguments.seed)
    model = VQGANModel(VQGANConfig(**TINY))
    settings = TrainingArguments(
        str(arguments.out), max_steps=arguments.steps, per_device_train_batch_size=arguments.batch_size,
        learning_rate=arguments.lr, lr_scheduler_type="cosine", warmup_steps=30, adam_beta2=0.98, weight_decay=0.0,
        max_grad_norm=1.0, save_steps=100, save_total_limit=2, logging_steps=50, report_to=[], seed=arguments.seed,
        ignore_data_skip=True, dataloader_num_workers=0, use_cpu=not torch.cuda.is_available(), disable_tqdm=True,
    )  # fmt: skip
    done = 0 if last is None else int(last.rpartition("-")[2])
    trainer = VQGANTrainer(
        model, settings, train_dataset=Pictures(arguments.data, arguments.crop, arguments.seed + done),
        perceptual=arguments.perceptual, every=arguments.perceptual_every, adversarial=arguments.adversarial,
        adversarial_from=arguments.discriminator_from, quantize_from=arguments.quantize_from,
    )  # fmt: skip
    if last is not None and (Path(last) / "discriminator.safetensors").is_file():
        trainer.discriminator.load_state_dict(load_file(Path(last) / "discriminator.safetensors"))
    started = time.process_time()
    trainer.train(resume_from_checkpoint=last)
    print(f"{time.process_time() - started:.0f} s of processor time from step {done} to {arguments.steps}")


def ship(arguments, last: str | None):
    if last is None:
        raise SystemExit(f"--out: no checkpoint in {arguments.out}")
    model = VQGANModel.from_pretrained(last).eval()
    pixels = held_out(arguments.data)
    figures = {"steps": int(last.rpartition("-")[2]), **measure(model, pixels)}
    arguments.ship.mkdir(parents=True, exist_ok=True)
    show(model, pixels[::3], arguments.out / "reconstructions.png")
    model.half().save_pretrained(arguments.ship)
    (arguments.ship / "metrics.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
