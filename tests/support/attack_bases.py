"""Attacks on adapters and the models under them: an adapter of any kind on a base that differs from its own.

What is right: on an equal base, outputs are equal bit for bit; on any other, however small the difference, loading is
refused and leaves that base as it was, unless the caller allows another backbone.
"""

import itertools
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from adapter_contract import Case as AdapterCase
from adapter_models import tiny_classifier
from attack_cases import WRONG, Case
from tiny import CLASS_NAMES, tiny_clip, tiny_pixels, tiny_tokenizer

from hf_clip_variants.adapters import (
    CLIPAdapterConfig,
    CoCoOpConfig,
    CoOpConfig,
    IVLPConfig,
    LinearHeadConfig,
    MaPLeConfig,
    TipAdapterConfig,
    VPTConfig,
    load_adapter,
)


KIND = "bases"
CONFIGS = {
    "clip_adapter": lambda: CLIPAdapterConfig(),
    "cocoop": lambda: CoCoOpConfig(meta_reduction=4),
    "coop": lambda: CoOpConfig(num_context_tokens=3),
    "coop class_specific": lambda: CoOpConfig(num_context_tokens=3, class_specific=True),
    "ivlp": lambda: IVLPConfig(num_vision_tokens=3),
    "linear_head": lambda: LinearHeadConfig(),
    "maple": lambda: MaPLeConfig(prompt_depth=2),
    "tip_adapter": lambda: TipAdapterConfig(),
    "vpt": lambda: VPTConfig(num_prompt_tokens=3, prompt_depth=2),
}
_SIZES = (
    {"text_config": {"num_hidden_layers": 3}},
    {"text_config": {"num_hidden_layers": 1}},
    {"vision_config": {"num_hidden_layers": 2}},
    {"vision_config": {"num_hidden_layers": 4}},
    {"text_config": {"hidden_size": 48}},
    {"vision_config": {"hidden_size": 32}},
    {"vision_config": {"image_size": 32}},
    {"vision_config": {"patch_size": 12}},
    {"text_config": {"num_attention_heads": 2}},
    {"vision_config": {"num_attention_heads": 2}},
    {"text_config": {"hidden_act": "gelu"}},
    {"vision_config": {"intermediate_size": 96}},
)
_BACKBONE = ("backbone", "fingerprint", "weights", "tensor", "layers", "width", "shape", "size", "configuration")
_CLASSES = ("class", "names", "templates")


def _change(rng: random.Random, model) -> str:
    """Changes a number, or several, of one tensor of a model; returns what."""
    name, tensor = rng.choice(sorted(model.clip.state_dict().items()))
    what = rng.choice(["one number", "last bit", "zero", "all", "sign", "order", "nan"])
    with torch.no_grad():
        flat = tensor.view(-1)
        place = rng.randrange(flat.numel())
        if not tensor.is_floating_point():
            flat[place] += 1
        elif what == "last bit":
            flat[place] = torch.nextafter(flat[place], torch.tensor(torch.inf))
        elif what == "zero":
            flat[place] = 0.0 if flat[place] else 1.0
        elif what == "all":
            flat.mul_(1.001).add_(1e-3)
        elif what == "sign":
            flat[place] = -flat[place] - 1e-3
        elif what == "order" and flat.numel() > 1 and not torch.equal(flat, flat.roll(1)):
            flat.copy_(flat.roll(1))
        elif what == "nan":
            flat[place] = torch.nan
        else:
            flat[place] += 1e-3
    return f"{what} of {name}"


def _refused(folder: Path, base, named: tuple[str, ...]):
    def run():
        before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
        modules = [name for name, _ in base.named_modules()]
        try:
            load_adapter(folder, base)
        except (ValueError, OSError):
            after = base.state_dict()
            kept = before.keys() == after.keys() and all(
                torch.equal(after[n].nan_to_num(), t.nan_to_num()) for n, t in before.items()
            )
            if not kept or [name for name, _ in base.named_modules()] != modules:
                raise RuntimeError("the base was changed by an adapter that was refused") from None
            raise
        return f"{WRONG}loaded"

    return run


def _attack(rng: random.Random, folder: Path) -> tuple[str, object, tuple[str, ...]]:
    method = rng.choice(list(CONFIGS))
    adapter = AdapterCase(method.split()[0], CONFIGS[method], {})
    model = adapter.model(tiny_classifier()).eval()
    place = folder / "adapter"
    model.save_pretrained(place)
    which = rng.choice(["equal", "changed", "changed", "changed", "changed", "sizes", "seed", "allowed", "classes"])
    if which == "equal":

        def run():
            loaded = load_adapter(place, tiny_classifier())
            with torch.inference_mode():
                before, after = (each(pixel_values=tiny_pixels()).logits for each in (model, loaded))
            return after if torch.equal(before, after) else f"{WRONG}other logits"

        return f"{method}, equal base", run, ()
    if which in ("changed", "allowed"):
        base = tiny_classifier()
        what = _change(rng, base)
        if which == "changed":
            return f"{method}, {what}", _refused(place, base, _BACKBONE), _BACKBONE

        def allowed():
            loaded = load_adapter(place, base, allow_other_backbone=True)
            found = loaded.get_base_model().clip.state_dict()
            return loaded if found.keys() else f"{WRONG}empty"

        return f"{method}, allowed, {what}", allowed, _BACKBONE
    if which == "seed":
        return f"{method}, other weights", _refused(place, tiny_classifier(rng.randint(1, 3)), _BACKBONE), _BACKBONE
    if which == "sizes":
        sizes = rng.choice(_SIZES)
        return f"{method}, {sizes}", _refused(place, tiny_classifier(**sizes), _BACKBONE), _BACKBONE
    names = rng.choice([CLASS_NAMES[::-1], CLASS_NAMES[:4], [*CLASS_NAMES, "owl"], [*CLASS_NAMES[:4], "owl"]])
    fixed = model.peft_config["default"].why_classes_are_fixed() is not None
    base = tiny_classifier(class_names=names)
    if fixed:
        return f"{method}, other classes {len(names)}", _refused(place, base, _CLASSES), _CLASSES

    def generic():
        """With classes of its own the base answers as if its adapter had been loaded first."""
        loaded = load_adapter(place, base)
        first = load_adapter(place, tiny_classifier())
        first.get_base_model().set_classes(names, tokenizer=tiny_tokenizer())
        with torch.inference_mode():
            one, other = (each(pixel_values=tiny_pixels()).logits for each in (loaded, first))
        close = one.shape == other.shape and torch.allclose(one, other, atol=1e-5)
        return loaded if close else f"{WRONG}other logits"

    return f"{method}, classes of its own {len(names)}", generic, _CLASSES


def _plain_clip(rng: random.Random, folder: Path) -> tuple[str, object, tuple[str, ...]]:
    """Adapters of a `CLIPModel` and of a classifier on each other's base, and on what is no CLIP."""
    adapter = AdapterCase("coop", CONFIGS["coop"], {})
    place = folder / "adapter"
    adapter.model(tiny_classifier()).save_pretrained(place)
    base = rng.choice([torch.nn.Linear(3, 3), torch.nn.Sequential(), tiny_clip().text_model, None, "text", 5])

    def run():
        load_adapter(place, base)
        return f"{WRONG}loaded"

    name = type(base).__name__
    if base is None:  # the one that it names, which is nowhere
        return "coop, no base", run, ("base",)
    return f"coop, on a {name}", run, ("base", name, "model", "target_modules")


def cases(seed: int, folder: Path) -> Iterator[Case]:
    """For ever."""
    rng = random.Random(f"{KIND} {seed}")
    for count in itertools.count():
        place = Path(folder) / f"{count}"
        place.mkdir(parents=True)
        attack = _plain_clip if count % 10 == 9 else _attack
        name, run, named = attack(random.Random(rng.random()), place)

        def tidy(run=run, place=place):
            try:
                return run()
            finally:
                shutil.rmtree(place, ignore_errors=True)

        yield Case(KIND, f"{count} {name}", tidy, named)
