"""The models of a painting run, and the files that it leaves: pictures, codes, animations, and a page of all."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from safetensors.torch import save
from torchvision.transforms.v2.functional import to_pil_image

from ..data.images.emoji import embedded_vqgan
from ..evaluation.devices import choose_device
from ..files.atomic_writes import write_atomically
from ..files.json_files import write_json
from .guides import guide_dtype, guide_names, guide_sources, prepare_guides
from .progress_pictures import animation, enlarged, film, sheet, strip
from .result_page import PageEntry, result_page
from .runs import SynthesisRun


if TYPE_CHECKING:
    from ..modeling.vqgan_clip.modeling_vqgan_clip import SynthesizedImage, VQGANCLIPForImageSynthesis

SIDE = 512  # pixels of the longer side of the pictures that are written, if they are smaller
_FRAME_SIDE = 256
# With the embedded VQGAN, which was trained on pictures of this size.
EMBEDDED = {"canvas_size": 64, "learning_rate": 0.15, "cut_method": "updated", "tv_weight": 0.3}


@dataclass
class Painter:
    """A model that paints, the guide's tokenizer (of several, a list), and what guides and VQGAN are called."""

    model: VQGANCLIPForImageSynthesis
    tokenizer: Any
    guide: str | list[str]
    vqgan: str


def load_painter(
    guide: str | Sequence[str] | None,
    vqgan: str | None,
    device: str | None,
    guide_weights: Sequence[float] | None = None,
    dtype: str | None = None,
    **settings,
) -> Painter:
    """From a dual encoder and a VQGAN, folders or Hub ids; None: the embedded ones. In `guide_dtype(dtype)`. A
    whole model may be the guide, too; then `vqgan` is not needed. Several guides paint together, with
    `guide_weights`. Settings are fields of the configuration; for the embedded VQGAN, those of `EMBEDDED` are the
    defaults.

    Raises:
        OSError, ValueError: one of them cannot be loaded, or settings do not fit.
    """
    from transformers import AutoConfig, AutoModel

    from ..modeling.vqgan_clip.autoencoder_vqgan_clip import VQGANModel
    from ..modeling.vqgan_clip.modeling_vqgan_clip import VQGANCLIPForImageSynthesis

    sources = guide_sources(guide)
    source = sources[0]
    settings = {name: value for name, value in settings.items() if value is not None}
    chosen = choose_device(device)
    dtype = guide_dtype(dtype, chosen)
    is_whole = AutoConfig.from_pretrained(source).model_type == VQGANCLIPForImageSynthesis.config_class.model_type
    if is_whole:
        model = VQGANCLIPForImageSynthesis.from_pretrained(source, dtype=dtype, **settings)
        painted_by = "of the guide's folder" if vqgan is None else vqgan
        if vqgan is not None:
            other = VQGANModel.from_pretrained(vqgan, dtype=dtype)
            model = VQGANCLIPForImageSynthesis.from_parts(model.clip, other, **settings)
    else:
        clip = AutoModel.from_pretrained(source, dtype=dtype)
        decoder = VQGANModel.from_pretrained(str(embedded_vqgan()) if vqgan is None else vqgan, dtype=dtype)
        model = VQGANCLIPForImageSynthesis.from_parts(clip, decoder, **(EMBEDDED if vqgan is None else {}) | settings)
        painted_by = embedded_vqgan().name if vqgan is None else vqgan
    tokenizer = prepare_guides(model, sources, guide_weights, is_whole)
    return Painter(model.to(chosen).eval(), tokenizer, guide_names(guide), painted_by)


def write_paintings(
    run: SynthesisRun,
    results: Sequence[SynthesizedImage],
    names: Sequence[str],
    best: set[int],
    out: Path,
    settings: dict[str, Any],
    mp4: bool = False,
) -> list[dict[str, Any]]:
    """Picture, latents, animation (with `mp4` also a film) and strip of each; a sheet, the page, and results.json,
    whose rows return."""
    found, entries, finals = [], [], []
    for number, (result, name) in enumerate(zip(results, names, strict=True)):
        sample = run.loop.samples[number]
        frames = []
        for frame in run.frames[number]:
            sample.tensors["latents"].data.copy_(frame["tensors"]["latents"])
            frames.append(enlarged(to_pil_image(run.loop.images([sample])[0].float().cpu()), _FRAME_SIDE))
        sample.tensors["latents"].data.copy_(result.latents)
        picture = enlarged(result.to_image(), SIDE)
        last = enlarged(result.to_image(), _FRAME_SIDE)
        write_atomically(out / f"{name}.png", _png(picture))
        write_atomically(out / f"{name}.safetensors", save({"latents": result.latents, "codes": result.codes}))
        write_atomically(out / f"{name}.gif", animation([*frames, last]))
        write_atomically(out / f"{name}_strip.png", _png(strip([*frames, last])))
        if mp4:
            film(out / f"{name}.mp4", [*frames, last])
        finals.append(last)
        row = {
            "name": name,
            "caption": result.prompt,
            "seed": result.seed,
            "similarity": round(result.similarity, 4),
            "loss": round(result.loss, 6),
            "steps": len(result.losses),
            "size": list(reversed(result.pixels.shape[1:])),
            "best": number in best,
            "picture": f"{name}.png",
        }
        if len(result.similarities) > 1:
            row["similarities"] = [round(value, 4) for value in result.similarities]
        found.append(row)
        notes = [("seed", str(row["seed"])), ("similarity", f"{row['similarity']:.3f}"), ("steps", str(row["steps"]))]
        frames, caption = [*frames, last], row["caption"] or ""
        entries.append(PageEntry(frames, caption, notes, file=row["picture"], is_best=row["best"]))
    columns = min(len(finals), 6)
    rows = [finals[place : place + columns] for place in range(0, len(finals), columns)]
    write_atomically(out / "sheet.png", _png(sheet(rows)))
    write_atomically(out / "index.html", result_page(", ".join(settings["prompts"]), entries))
    about = {"settings": settings, "guide": settings["guide"], "vqgan": settings["vqgan"]}
    write_json(out / "results.json", about | {"seconds": round(run.spent, 1), "pictures": found})
    (out / "preview.png").unlink(missing_ok=True)
    return found


def _png(picture: Image.Image) -> bytes:
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


__all__ = ["EMBEDDED", "SIDE", "Painter", "load_painter", "write_paintings"]
