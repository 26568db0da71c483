"""Which method an official checkpoint belongs to: told from the names of its tensors by one explicit table."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from .checkpoint_reader import printable


MODELS = ("clip", "clip_resnet", "slip", "chinese_clip", "audioclip")
ADAPTERS = ("coop", "cocoop", "maple", "vpt", "ivlp", "clip_adapter", "tip_adapter")

_SHOWN = 5


@dataclass(frozen=True)
class Signature:
    """Regular expressions that must match the beginning of some name (`every`), and of no name (`none`)."""

    every: tuple[str, ...]
    none: tuple[str, ...] = ()

    def fits(self, names: list[str]) -> bool:
        found = lambda pattern: any(re.match(pattern, name) for name in names)  # noqa: E731
        return all(map(found, self.every)) and not any(map(found, self.none))


_CONTEXT, _META_NET = r"(prompt_learner\.)?ctx$", r"(prompt_learner\.)?meta_net\."
_COUPLING = r"(prompt_learner\.)?(proj\.weight$|compound_prompt)"
_VISUAL_PROMPTS = r"(image_encoder|visual|clip\.visual)\.VPT$"
_ANY_PROMPTS = r".*\.VPT(_shallow)?$"

SIGNATURES = {
    "clip": Signature(
        (r"visual\.", r"(text\.)?(text_projection|token_embedding|transformer)"),
        (r"visual\.layer1\.", r"bert\.", r"image_projection$", _CONTEXT, _ANY_PROMPTS),
    ),
    "clip_resnet": Signature((r"visual\.layer1\.",), (r"bert\.", r"audio\.", _CONTEXT)),
    "slip": Signature((r"visual\.blocks\.\d+\.attn\.qkv\.", r"image_(projection$|mlp\.)"), (_CONTEXT,)),
    "chinese_clip": Signature((r"visual\.", r"bert\.")),
    "audioclip": Signature((r"visual\.layer1\.", r"audio\.fbsp\.")),
    "coop": Signature((_CONTEXT,), (_META_NET, _COUPLING, _ANY_PROMPTS)),
    "cocoop": Signature((_CONTEXT, _META_NET)),
    "maple": Signature((_CONTEXT, _COUPLING)),
    "vpt": Signature((_VISUAL_PROMPTS,), (_CONTEXT,)),
    # A whole model with a context and no other prompts is one with text_depth 1, or CoOp's: the user knows.
    "ivlp": Signature((r"prompt_learner\.ctx$", r"(image|text)_encoder\."), (_META_NET, _COUPLING)),
    "clip_adapter": Signature((r"(.*\.)?fc\.0\.weight$", r"(.*\.)?fc\.2\.weight$"), (r"visual\.",)),
    "tip_adapter": Signature((r"$",)),  # a single tensor, which has no name
}

_ELSEWHERE = {
    r"vision_model\.": "These are transformers' own names: nothing is to be converted, from_pretrained loads the folder with its config.json.",
    r"fbsp\.m$": "This is AudioCLIP's sound tower alone: audio_encoder_from_official in hf_clip_variants.modeling.audioclip.convert_audioclip takes it.",
    r"enc\.transformer\.|shallow_prompt$": "This is VPT on a ViT (KMnP/vpt): convert_vpt_vit in hf_clip_variants.adapters.vpt.convert takes it.",
}


def check_method(method: str) -> None:
    """ValueError for a method that has no converter."""
    if method not in SIGNATURES:
        raise ValueError(f"method: {method!r} has no converter, expected one of {', '.join(SIGNATURES)}")


def detect_method(names: Iterable[str], origin: str, method: str | None = None) -> str:
    """The method whose checkpoints have such names.

    Args:
        names: of the tensors; `""` for a file that is a single tensor.
        origin: the file, for messages.
        method: what the user says it is. It settles what the names leave open, and must not contradict them.

    Raises:
        ValueError: unknown, ambiguous or contradicted; the text shows the first five names and how many there are.
    """
    names = list(names)
    fitting = [known for known, signature in SIGNATURES.items() if signature.fits(names)]
    if method is not None:
        check_method(method)
        if method in fitting or not fitting:  # the converters are strict, and say what is missing
            return method
        raise ValueError(
            f"method: {method!r} was asked for, but {origin} has the names of {' or '.join(fitting)}: {shown(names)}"
        )
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise ValueError(f"method: {origin} could be {' or '.join(fitting)}, say which; it has {shown(names)}")
    hint = next((text for pattern, text in _ELSEWHERE.items() if any(re.match(pattern, n) for n in names)), "")
    hint = hint or f"Expected the official names of one of {', '.join(SIGNATURES)}."
    raise ValueError(f"method: {origin} has names of no method known here: {shown(names)}. {hint}")


def shown(names: list[str]) -> str:
    """The first five names and how many there are; names come from files, and are made printable."""
    first = ", ".join(printable(name) or "a tensor without a name" for name in names[:_SHOWN])
    return f"{first}{', …' if len(names) > _SHOWN else ''} ({len(names)} in all)"


__all__ = ["ADAPTERS", "MODELS", "SIGNATURES", "Signature", "check_method", "detect_method", "shown"]
