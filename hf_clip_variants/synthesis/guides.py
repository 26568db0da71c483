"""The dual encoders that guide a run: tokenizers, how pictures are normalised for each, and what they are called."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.images.emoji import embedded_model


if TYPE_CHECKING:
    import torch

    from ..modeling.synthesis.guided_model import GuidedPreTrainedModel


def guide_sources(guides: str | Sequence[str] | None) -> list[str]:
    """Folders or Hub ids; none: the embedded model's folder."""
    found = [guides] if isinstance(guides, str) else list(guides or ())
    return found or [str(embedded_model())]


def guide_names(guides: str | Sequence[str] | None) -> str | list[str]:
    """What the guides are called in results: as they were given; one of them without a list."""
    names = [Path(embedded_model()).name] if not guides else guide_sources(guides)
    return names[0] if len(names) == 1 else names


def guide_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """The number type of guides and decoders: `name`, or float32 on a CPU and bfloat16 on a GPU. What is optimised
    is float32 in any case."""
    import torch

    if name is not None:
        return getattr(torch, name)
    return torch.float32 if device.type in ("cpu", "mps") else torch.bfloat16


def prepare_guides(
    model: GuidedPreTrainedModel,
    sources: Sequence[str],
    weights: Sequence[float] | None = None,
    is_whole: bool = False,
) -> Any:
    """
    Tells a model how pictures are normalised for its own guide, the first source, and adds the others.

    Args:
        model: with the weights of the first one.
        sources: folders or Hub ids.
        weights: of the guides' losses, one for each.
        is_whole: the first source holds a whole model, whose configuration says how pictures are normalised.

    Returns:
        The tokenizer; of several guides a list of them.

    Raises:
        OSError, ValueError: one cannot be loaded, is no dual encoder, or the weights do not fit.
    """
    from transformers import AutoModel, AutoTokenizer

    if len(model.guides) > 1:
        raise ValueError(
            f"--guide: {sources[0]} holds {len(model.guides)} guides, whose tokenizers are not there; want one dual "
            "encoder, and --guide again for each further one"
        )
    if weights and len(weights) != len(sources):
        raise ValueError(f"--guide-weight: {len(weights)}, want one for each of {len(sources)} guides, in order")
    tokenizers = [AutoTokenizer.from_pretrained(source) for source in sources]
    numbers = _numbers_of(sources[0], warn=not is_whole)
    if numbers is not None:
        model.config.image_mean, model.config.image_std = numbers
    for source in sources[1:]:
        clip = AutoModel.from_pretrained(source, dtype=model.dtype)
        try:
            model.add_guide(clip, 1.0, *(_numbers_of(source) or (None, None)))
        except ValueError as error:
            raise ValueError(f"--guide: {source}: {error}") from error
    if weights:
        model.config.guide_weights = [float(weight) for weight in weights]
        model.config.validate()
    return tokenizers[0] if len(sources) == 1 else tokenizers


def _numbers_of(source: str, warn: bool = True) -> tuple[list[float], list[float]] | None:
    """Mean and standard deviation; None, with a warning, where there is no image processor."""
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(source)
        return list(processor.image_mean), list(processor.image_std)
    except (OSError, ValueError, AttributeError) as error:  # CLIP's, which the configuration's None means
        if warn:
            reason = str(error)[:200]
            warnings.warn(f"{source}: no image processor ({reason}); images are normalised as for CLIP", stacklevel=3)
        return None


__all__ = ["guide_dtype", "guide_names", "guide_sources", "prepare_guides"]
