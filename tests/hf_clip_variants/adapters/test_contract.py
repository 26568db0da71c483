"""Runs the contract of `tests/support/adapter_contract.py` on every adapter, on every base that it supports."""

import json
import os
import subprocess
import sys

import pytest
import torch
from adapter_contract import AdapterContract, Case
from fake_hub import FakeHub
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import CLASS_NAMES, tiny_tokenizer

import hf_clip_variants
from hf_clip_variants.adapters import (
    CLIPAdapterConfig,
    CoCoOpConfig,
    CoOpConfig,
    IVLPConfig,
    LinearHeadConfig,
    MaPLeConfig,
    TipAdapterConfig,
    VPTConfig,
)


def _clip_adapter_shapes(*targets, learnable=False):
    shapes = {"down.weight": [6, 24], "up.weight": [24, 6]} | ({"ratio_logit": []} if learnable else {})
    return {f"{target}.clipv_clip_adapter_{name}": shape for target in targets for name, shape in shapes.items()}


_IMAGE = _clip_adapter_shapes("image_feature_adapter")
_TEXT = _clip_adapter_shapes("text_feature_adapter")
_BOTH = _clip_adapter_shapes("image_feature_adapter", "text_feature_adapter", learnable=True)
_PROJECTIONS = _clip_adapter_shapes("visual_projection", "text_projection")
_CACHE = {"logit_head.clipv_tip_adapter_keys": [10, 24], "logit_head.clipv_tip_adapter_labels": [10]}
_HEAD = {"logit_head.clipv_linear_head_weight": [5, 24], "logit_head.clipv_linear_head_bias": [5]}
_HEAD_CACHE = {"logit_head.clipv_linear_head_keys": [10, 24], "logit_head.clipv_linear_head_labels": [10]}
_CONTEXT = "prompt_embedder.clipv_coop_context"


def _shapes(prefix, **shapes):
    """{"<prefix><name>": shape}; `__` in a name stands for "."."""
    return {f"{prefix}{name.replace('__', '.')}": shape for name, shape in shapes.items()}


_COCOOP = _shapes(
    "prompt_embedder.clipv_cocoop_",
    context=[4, 32],
    linear1__weight=[6, 24],
    linear1__bias=[6],
    linear2__weight=[32, 6],
    linear2__bias=[32],
)
_VISION, _TOKENS = "vision_model.embeddings.clipv_", "text_model.embeddings.token_embedding.clipv_"


def _maple_shapes(count=2, depth=2, projections=2, plain_clip=False):
    text, vision = (_TOKENS, _VISION) if plain_clip else ("prompt_embedder.clipv_", f"clip.{_VISION}")
    return _shapes(f"{text}maple_", context=[count, 32], text_prompts=[depth - 1, count, 32]) | _shapes(
        f"{vision}maple_projection_", weight=[projections, 40, 32], bias=[projections, 40]
    )


def _ivlp_shapes(text=2, text_depth=2, vision=3, vision_depth=3, plain_clip=False):
    texts, images = (_TOKENS, _VISION) if plain_clip else ("prompt_embedder.clipv_", f"clip.{_VISION}")
    shapes = _shapes(f"{texts}ivlp_", context=[text, 32], text_prompts=[text_depth - 1, text, 32])
    return shapes | (_shapes(f"{images}ivlp_", vision_prompts=[vision_depth, vision, 40]) if vision_depth else {})


_VPT = f"clip.{_VISION}vpt_"


def _trained(method, config, shapes, plain_clip=False, merges=False):
    return Case(method, config, shapes, tuple(shapes), plain_clip, merges)


CASES = {
    "cocoop": _trained("cocoop", lambda: CoCoOpConfig(meta_reduction=4), _COCOOP),
    "cocoop_recomputed": _trained(
        "cocoop", lambda: CoCoOpConfig(meta_reduction=4, text_chunk_size=8, context_init=None), _COCOOP
    ),
    "maple": _trained("maple", lambda: MaPLeConfig(prompt_depth=2), _maple_shapes()),
    "maple_vpt_deep": _trained(
        "maple",
        lambda: MaPLeConfig(
            num_prompt_tokens=3, prompt_depth="all", share_projection=True, text_prompt_style="vpt_deep"
        ),
        _maple_shapes(count=3, projections=1),
    ),
    "maple_on_clip": _trained(
        "maple",
        lambda: MaPLeConfig(prompt_depth=2, context_init=None),
        _maple_shapes(plain_clip=True),
        plain_clip=True,
    ),
    "vpt": _trained("vpt", lambda: VPTConfig(num_prompt_tokens=3), _shapes(_VPT, prompts=[3, 3, 40])),
    "vpt_shallow": _trained(
        "vpt",
        lambda: VPTConfig(prompt_depth=1, prompt_position="after_cls", normalize_first=False),
        _shapes(_VPT, prompts=[1, 8, 40]),
    ),
    "vpt_projected": _trained(
        "vpt",
        lambda: VPTConfig(num_prompt_tokens=3, prompt_depth=2, projection_dim=7, init="uniform_patch"),
        _shapes(_VPT, prompts=[2, 3, 7], projection__weight=[40, 7], projection__bias=[40]),
    ),
    "vpt_on_clip": _trained(
        "vpt", lambda: VPTConfig(num_prompt_tokens=3), _shapes(f"{_VISION}vpt_", prompts=[3, 3, 40]), plain_clip=True
    ),
    "ivlp": _trained("ivlp", lambda: IVLPConfig(num_vision_tokens=3), _ivlp_shapes()),
    "ivlp_text_alone": _trained(
        "ivlp",
        lambda: IVLPConfig(num_text_tokens=4, vision_depth=0),
        _ivlp_shapes(text=4, vision_depth=0),
        merges=True,
    ),
    "ivlp_on_clip": _trained(
        "ivlp",
        lambda: IVLPConfig(num_vision_tokens=3, context_init=None),
        _ivlp_shapes(plain_clip=True),
        plain_clip=True,
    ),
    "coop": _trained("coop", lambda: CoOpConfig(num_context_tokens=4), {_CONTEXT: [4, 32]}, merges=True),
    "coop_class_specific": Case(
        "coop",
        lambda: CoOpConfig(num_context_tokens=3, class_token_position="middle", class_specific=True),
        {_CONTEXT: [5, 3, 32]},
        (_CONTEXT,),
        merges=True,
    ),
    "coop_on_clip": Case(
        "coop",
        lambda: CoOpConfig(num_context_tokens=4),
        {"text_model.embeddings.clipv_coop_context": [4, 32]},
        ("text_model.embeddings.clipv_coop_context",),
        plain_clip=True,
    ),
    "clip_adapter": Case("clip_adapter", CLIPAdapterConfig, _IMAGE, tuple(_IMAGE)),
    "clip_adapter_both": Case(
        "clip_adapter", lambda: CLIPAdapterConfig(modality="both", learnable_ratio=True), _BOTH, tuple(_BOTH)
    ),
    "clip_adapter_text": _trained("clip_adapter", lambda: CLIPAdapterConfig(modality="text"), _TEXT, merges=True),
    "clip_adapter_on_clip": Case(
        "clip_adapter", lambda: CLIPAdapterConfig(modality="both"), _PROJECTIONS, tuple(_PROJECTIONS), plain_clip=True
    ),
    "tip_adapter": Case("tip_adapter", TipAdapterConfig, _CACHE),
    "tip_adapter_f": Case(
        "tip_adapter", lambda: TipAdapterConfig(trainable_keys=True), _CACHE, ("logit_head.clipv_tip_adapter_keys",)
    ),
    "linear_head": Case("linear_head", lambda: LinearHeadConfig(alpha=0.5), _HEAD),
    "linear_head_with_cache": Case(
        "linear_head", lambda: LinearHeadConfig(gamma=2.0, trainable=True), _HEAD | _HEAD_CACHE, tuple(_HEAD)
    ),
}


@pytest.fixture(params=CASES)
def case(request) -> Case:
    return CASES[request.param]


@pytest.fixture(params=[name for name, case in CASES.items() if case.trained])
def trained_case(request) -> Case:
    return CASES[request.param]


@pytest.fixture(params=[name for name, case in CASES.items() if case.merges])
def merging_case(request) -> Case:
    return CASES[request.param]


def first_of_each(*properties: str) -> list[str]:
    """Names of the first trained cases that differ in these properties."""
    found = {
        tuple(getattr(case, name) for name in properties): name
        for name, case in reversed(CASES.items())
        if case.trained
    }
    return list(found.values())[::-1]


@pytest.fixture(params=first_of_each("method", "plain_clip"))
def trainer_case(request) -> Case:
    """One variant of each method on each base, because tests with `Trainer` take longest."""
    return CASES[request.param]


@pytest.fixture(params=[name for name in first_of_each("method", "plain_clip") if not CASES[name].plain_clip])
def classifier_case(request) -> Case:
    """One variant of each method on a `CLIPClassifier`."""
    return CASES[request.param]


@pytest.fixture(params=first_of_each("plain_clip"))
def base_case(request) -> Case:
    """For properties of the base that do not depend on the adapter."""
    return CASES[request.param]


class TestContract(AdapterContract):
    pass


def test_every_adapter_of_the_registry_has_a_case():
    """Those on detectors have tests of their own: no base of theirs has class features, or logits of images."""
    rows = hf_clip_variants.methods("adapter")
    assert {case.method for case in CASES.values()} == {r.name for r in rows if r.task == "image-classification"}


_FRESH_PROCESS = """
import json, sys
import hf_clip_variants
import torch
from safetensors.torch import load_file
from transformers import AutoModel
from peft import AutoPeftModel, PeftModel
from hf_clip_variants.adapters import load_adapter

root = sys.argv[1]
for name, plain_clip in json.load(open(f"{root}/cases.json")).items():
    expected = load_file(f"{root}/{name}/expected.safetensors")
    logits = expected.pop("logits")
    base = f"{root}/{'clip' if plain_clip else 'classifier'}"
    models = [
        PeftModel.from_pretrained(AutoModel.from_pretrained(base).eval(), f"{root}/{name}/adapter"),
        load_adapter(f"{root}/{name}/adapter"),
        AutoModel.from_pretrained(f"{root}/{name}/adapter").eval(),
        AutoPeftModel.from_pretrained(
            f"{root}/{name}/adapter", import_allowlist=["transformers", "hf_clip_variants"]
        ).eval(),
    ]
    for model in models:
        with torch.no_grad():
            found = model(**expected).logits_per_image
        assert (found - logits).abs().max() < 1e-4, name
    if name == "tip_adapter_f":  # a file with a buffer and a parameter, through the Hub
        models[0].push_to_hub("alice/adapter")
        again = load_adapter("alice/adapter", AutoModel.from_pretrained(base).eval())
        assert (again(**expected).logits - logits).abs().max() < 1e-4
    print(name)
"""


@pytest.mark.hub
def test_loads_in_a_fresh_process(tmp_path):
    """A variant of each method on each base."""
    from safetensors.torch import save_file

    more = ["tip_adapter", "tip_adapter_f", "linear_head"]
    cases = {name: CASES[name] for name in [*first_of_each("method", "plain_clip"), *more]}
    for kind, folder in ((CASES["coop"], "classifier"), (CASES["coop_on_clip"], "clip")):
        kind.base().save_pretrained(tmp_path / folder)
        tiny_tokenizer().save_pretrained(tmp_path / folder)
    for name, case in cases.items():
        base = type(case.base()).from_pretrained(tmp_path / ("clip" if case.plain_clip else "classifier"))
        model = case.model(base)
        assert isinstance(model, PeftModel)
        model.save_pretrained(tmp_path / name / "adapter")
        with torch.no_grad():
            expected = case.batch() | {"logits": case.logits(model)}
            save_file({k: v.contiguous() for k, v in expected.items()}, tmp_path / name / "expected.safetensors")
    (tmp_path / "cases.json").write_text(json.dumps({name: case.plain_clip for name, case in cases.items()}))
    with FakeHub() as hub:
        run = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _FRESH_PROCESS, str(tmp_path)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=os.environ | hub.environment(tmp_path / "home"),
        )
    assert run.returncode == 0, run.stderr[-3000:]
    assert [line for line in run.stdout.splitlines() if line in CASES] == list(cases)


def test_shapes_of_the_cases_fit_the_tiny_models():
    assert len(CLASS_NAMES) == 5  # the sizes in the shapes above


def test_a_merged_classifier_takes_adapters_that_need_no_prompts_and_refuses_those_that_do(tmp_path):
    merged = CASES["coop"].model(seed=1).merge_and_unload()
    for name in ("coop", "cocoop", "maple", "ivlp_text_alone"):
        with pytest.raises(ValueError, match="learns prompts, but an adapter was merged into this classifier"):
            CASES[name].model(merged)
    tuned = CASES["vpt"].model(merged)
    with tuned.disable_adapter():
        assert torch.equal(CASES["vpt"].logits(tuned), CASES["coop"].logits(CASES["coop"].model(seed=1)))
    with pytest.warns(UserWarning, match="adapters on the text encoder change nothing: class features are fixed"):
        get_peft_model(tuned.unload(), LoraConfig(target_modules=["q_proj"]))


def test_a_merged_classifier_without_its_features_is_refused(tmp_path):
    merged = CASES["coop"].model(seed=1).merge_and_unload()
    merged.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("class_features")}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="says that class features are fixed, the weights lack them"):
        type(merged).from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"features: expected \[5, 24\], got \[5, 7\]"):
        merged.fix_class_features(torch.zeros(5, 7))
