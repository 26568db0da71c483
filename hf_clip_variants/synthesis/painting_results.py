"""The models of a painting run, and the files that it leaves: pictures, codes, animations, and a page of all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save
from torchvision.transforms.v2.functional import to_pil_image

from ..data.images.emoji import embedded_vqgan
from ..evaluation.devices import choose_device
from .guides import guide_dtype, guide_names, guide_sources, prepare_guides
from .progress_pictures import enlarged
from .result_files import ResultFiles, facts_of, write_result_files
from .result_page import PageEntry
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
    """Writes the files of all pictures, see `write_result_files`; returns their rows."""
    files = []
    for number, (result, name) in enumerate(zip(results, names, strict=True)):
        sample = run.loop.samples[number]
        frames = []
        for frame in run.frames[number]:
            sample.tensors["latents"].data.copy_(frame["tensors"]["latents"])
            frames.append(enlarged(to_pil_image(run.loop.images([sample])[0].float().cpu()), _FRAME_SIDE))
        sample.tensors["latents"].data.copy_(result.latents)
        frames.append(enlarged(result.to_image(), _FRAME_SIDE))
        row = facts_of(result, name, result.prompt, number in best)
        row |= {"size": list(reversed(result.pixels.shape[1:])), "picture": f"{name}.png"}
        notes = [("seed", str(row["seed"])), ("similarity", f"{result.similarity:.3f}"), ("steps", str(row["steps"]))]
        entry = PageEntry(frames, result.prompt or "", notes, file=row["picture"], is_best=row["best"])
        exact = {".safetensors": save({"latents": result.latents, "codes": result.codes})}
        files.append(ResultFiles(name, enlarged(result.to_image(), SIDE), frames, exact, entry, row))
    about = {"settings": settings, "guide": settings["guide"], "vqgan": settings["vqgan"]}
    return write_result_files(run, files, out, ", ".join(settings["prompts"]), about, "pictures", mp4)


__all__ = ["EMBEDDED", "SIDE", "Painter", "load_painter", "write_paintings"]
