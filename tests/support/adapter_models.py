"""Base models for tests of adapters: tiny random ones, and those of the parity fixtures."""

import copy

import torch
from tiny import CLASS_NAMES, copy_of, tiny_clip, tiny_tokenizer

from hf_clip_variants import CLIPClassifier, CLIPClassifierConfig
from hf_clip_variants.modeling.clip.convert_clip import clip_from_official


def classifier_from_clip(clip) -> CLIPClassifier:
    """A classifier without classes that holds a copy of `clip`."""
    values = clip.config.to_dict()
    model = CLIPClassifier(
        CLIPClassifierConfig(**{k: values[k] for k in ("text_config", "vision_config", "projection_dim")})
    )
    model.clip.load_state_dict(copy.deepcopy(clip.state_dict()))
    return model.to(clip.dtype).eval()


def tiny_classifier(seed: int = 0, class_names=CLASS_NAMES, templates=None, **overrides) -> CLIPClassifier:
    def build():
        model = classifier_from_clip(tiny_clip(seed, **overrides))
        return model.set_classes(class_names, templates, tokenizer=tiny_tokenizer()) if class_names else model

    return copy_of(f"classifier {seed} {class_names} {templates} {overrides}", build)


def fixture_clip(fixture):
    """The `CLIPModel` of an adapter's fixture, from our converter."""
    heads = {
        f"{ours}_heads": fixture.hparam(f"{theirs}_heads")
        for ours, theirs in (("vision", "vision"), ("text", "transformer"))
    }
    return clip_from_official(fixture.backbone_state_dict(), **heads)


def fixture_classifier(fixture, template_ids: torch.Tensor, tail_ids=None, tail_name_lengths=None) -> CLIPClassifier:
    """The `CLIPClassifier` of an adapter's fixture. `template_ids`: (C, T, L) or (C, L)."""
    if template_ids.dim() == 2:
        template_ids = template_ids[:, None]
    if tail_ids is None:
        tail_ids = torch.full((len(template_ids), 1), fixture.text_eos_token_id())
        tail_name_lengths = torch.zeros(len(template_ids), dtype=torch.int64)
    model = classifier_from_clip(fixture_clip(fixture))
    return model.set_prompt_ids(template_ids, tail_ids, tail_name_lengths, fixture.meta["class_names"])


class Compared:
    """Compares outputs with those of a fixture, and asserts at the end that all were compared."""

    def __init__(self, fixture):
        self.expected, self.seen = fixture.outputs, set()

    def __call__(self, key: str, actual, tolerance: float | None = None):
        from parity_fixtures import assert_close

        actual = torch.as_tensor(actual, dtype=self.expected[key].dtype)
        assert_close(actual, self.expected[key], key, **({} if tolerance is None else {"tolerance": tolerance}))
        self.seen.add(key)

    def assert_complete(self, but: tuple[str, ...] = ()):
        assert self.seen == set(self.expected) - set(but)
