"""Adapters on families of dual encoders, pairwise. Models: tests/support/tiny_families.py."""

import dataclasses
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from tiny import tiny_pixels
from tiny_families import (
    FAMILIES,
    RESNET,
    SIGLIP_FAMILIES,
    family_class_names,
    save_tiny_family,
    tiny_dual_encoder,
    tiny_family_inputs,
    tiny_family_pixels,
)
from transformers.integrations.neftune import activate_neftune, deactivate_neftune

import hf_clip_variants
from hf_clip_variants import CLIPClassifier
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
from hf_clip_variants.modeling.dual_encoders.backbones import family_of


ADAPTERS = {
    "coop": lambda: CoOpConfig(num_context_tokens=2, class_token_position="middle"),
    "coop_words": lambda: CoOpConfig(context_init="a photo"),
    "cocoop": lambda: CoCoOpConfig(num_context_tokens=2, context_init=None, meta_reduction=4),
    "maple": lambda: MaPLeConfig(prompt_depth=2, context_init="a photo of"),
    "maple_vpt_deep": lambda: MaPLeConfig(prompt_depth=2, context_init="a photo of", text_prompt_style="vpt_deep"),
    "vpt": lambda: VPTConfig(num_prompt_tokens=3),
    "vpt_shallow": lambda: VPTConfig(num_prompt_tokens=3, prompt_depth=1, normalize_first=False),
    "ivlp": lambda: IVLPConfig(context_init="a photo of"),
    "clip_adapter": lambda: CLIPAdapterConfig(modality="both"),
    "tip_adapter": lambda: TipAdapterConfig(trainable_keys=True),
    "linear_head": lambda: LinearHeadConfig(gamma=2.0, trainable=True),
}
LABELS = torch.tensor([0, 1, 2, 3])
ON_THE_IMAGE_ENCODER = ("maple", "maple_vpt_deep", "vpt", "vpt_shallow", "ivlp")

# Properties of families that the code of adapters depends on. Every adapter is paired with each property that matters
# to it, and every family with each sort of adapter.
TEXT = {
    "causal": ("clip", RESNET, "metaclip_2"),
    "padded": ("chinese_clip", "altclip"),  # bidirectional attention with a padding mask
    "full": SIGLIP_FAMILIES,  # bidirectional attention over the full length
}
IMAGE = {"class token": ("clip", "metaclip_2", "chinese_clip", "altclip"), "no class token": SIGLIP_FAMILIES}
SORTS = {
    "text": ("coop", "coop_words", "cocoop", "maple", "maple_vpt_deep", "ivlp"),
    "image": ON_THE_IMAGE_ENCODER,
    "features": ("clip_adapter", "tip_adapter", "linear_head"),
}
FAMILIES_OF = {
    "coop": ("metaclip_2", "chinese_clip", "siglip2"),
    "coop_words": (RESNET, "altclip", "siglip"),
    "cocoop": (RESNET, "altclip", "siglip"),
    "maple": ("metaclip_2", "chinese_clip", "siglip2"),
    "maple_vpt_deep": ("clip", "altclip", "siglip"),
    "vpt": ("metaclip_2", "siglip2"),
    "vpt_shallow": ("chinese_clip", "siglip"),
    "ivlp": ("clip", "chinese_clip", "siglip2"),
    "clip_adapter": ("clip", "altclip", "siglip2"),
    "tip_adapter": (RESNET, "metaclip_2", "chinese_clip", "siglip"),
    "linear_head": ("clip", "altclip", "siglip2"),
}
PAIRS = [(adapter, model_type) for adapter, families in FAMILIES_OF.items() for model_type in families]
# Pairs on transformers' own models, which support some adapters; MaPLe has its own test on all of them.
PLAIN_FAMILIES_OF = {
    "vpt": ("metaclip_2", "chinese_clip", "siglip2"),
    "vpt_shallow": ("altclip", "siglip"),
    "ivlp": ("clip", "altclip", "siglip2"),
    "clip_adapter": ("clip", "metaclip_2", "chinese_clip", "altclip"),
    "coop": (RESNET,),
    "coop_words": ("metaclip_2",),
}
PLAIN_PAIRS = [(adapter, model_type) for adapter, families in PLAIN_FAMILIES_OF.items() for model_type in families]
pairwise = pytest.mark.parametrize(("adapter", "model_type"), PAIRS)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Family -> folder of its tiny checkpoint, written when it is needed."""
    return cache(lambda model_type: save_tiny_family(model_type, tmp_path_factory.mktemp(model_type)))


@pytest.fixture
def checkpoint(model_type, checkpoints):
    return checkpoints(model_type)


def classifier_of(checkpoint, model_type, class_names=None, **kwargs) -> CLIPClassifier:
    names = class_names or family_class_names(model_type)
    return CLIPClassifier.from_pretrained(checkpoint, class_names=names, **kwargs).eval()


def adapted(adapter: str, base: CLIPClassifier, seed: int = 0) -> PeftModel:
    torch.manual_seed(seed)
    model = get_peft_model(base, ADAPTERS[adapter]())
    if adapter in ("tip_adapter", "linear_head"):
        features = torch.randn(10, base.config.projection_dim, generator=torch.Generator().manual_seed(seed))
        if adapter == "tip_adapter":
            model.build_cache(features, torch.arange(10) % 5)
        else:
            model.base_model.head.set_cache("default", F.normalize(features, dim=1), torch.arange(10) % 5)
    return model


TEXT_PAIRS = [pair for pair in PAIRS if pair[0] in SORTS["text"]]


@pytest.mark.parametrize(("adapter", "model_type"), TEXT_PAIRS)
def test_noise_on_token_embeddings_works_with_prompts(adapter, model_type, checkpoint):
    """`TrainingArguments(neftune_noise_alpha=...)`, in families with start tokens and without."""
    model = adapted(adapter, classifier_of(checkpoint, model_type))
    batch = {"image_features": torch.randn(2, model.config.projection_dim), "labels": torch.tensor([0, 1])}
    before = model.eval()(**batch).loss
    noise = activate_neftune(model, 5.0)
    assert torch.equal(model(**batch).loss, before)
    noisy = model.train()(**batch).loss
    noisy.backward()
    deactivate_neftune(model, noise)
    # A frozen text encoder with dropout stays in eval mode in training, without dropout and without noise.
    assert noisy.isfinite() and ((noisy - before).abs() > 1e-3) == model.get_input_embeddings().training
    assert torch.equal(model.eval()(**batch).loss, before)


def test_pairs_cover_every_adapter_family_and_kind():
    kinds = {config().peft_type.value for config in ADAPTERS.values()}
    rows = hf_clip_variants.methods("adapter")
    assert kinds == {row.peft_type for row in rows if row.task == "image-classification"}
    assert {adapter for adapter, _ in PAIRS} == {*ADAPTERS} and {family for _, family in PAIRS} == {*FAMILIES}
    for sort, adapters in SORTS.items():
        for adapter in adapters:
            families = {family for name, family in PAIRS if name == adapter}
            for kind in {"text": TEXT, "image": IMAGE, "features": IMAGE}[sort].values():
                assert families & set(kind), f"{adapter} is paired with none of {kind}"
        for family in FAMILIES:
            if (sort, family) != ("image", RESNET):
                assert {name for name, other in PAIRS if other == family} & set(adapters), f"{family}, {sort}"


@pairwise
def test_only_the_adapter_is_trained_and_the_loss_decreases(adapter, model_type, checkpoint):
    base = classifier_of(checkpoint, model_type)
    pixels = tiny_family_pixels(model_type)
    with torch.no_grad():
        before = base(**pixels).logits
    model = adapted(adapter, base)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert trainable and all("clipv_" in name for name in trainable)
    optimizer = torch.optim.Adam(trainable.values(), lr=0.02)
    losses = []
    for _ in range(12):
        loss = model(**pixels, labels=LABELS).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        if len(losses) == 1:
            assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in trainable.values())
            assert all(p.grad is None for name, p in model.named_parameters() if name not in trainable)
        optimizer.step()
    assert min(losses[-3:]) < losses[0]
    with model.disable_adapter(), torch.no_grad():
        assert torch.equal(model(**pixels).logits, before)
    unloaded = model.unload()
    with torch.no_grad():
        assert torch.equal(unloaded(**pixels).logits, before)


@pairwise
def test_single_images_other_classes_and_bfloat16_agree(adapter, model_type, checkpoint):
    names = family_class_names(model_type)
    model = adapted(adapter, classifier_of(checkpoint, model_type)).eval()
    pixels = tiny_family_pixels(model_type)
    with torch.no_grad():
        together = model(**pixels).logits
        alone = torch.cat([model(**{k: v[i : i + 1] for k, v in pixels.items()}).logits for i in range(4)])
        torch.testing.assert_close(alone, together, rtol=1e-4, atol=2e-4)
        reason = model.peft_config["default"].why_classes_are_fixed()
        if reason is None:
            classifier = model.base_model.model
            classifier.set_classes(names[::-1][:3])  # other names with another longest prompt
            torch.testing.assert_close(model(**pixels).logits, together[:, [4, 3, 2]], rtol=1e-4, atol=2e-4)
            classifier.set_classes(names)
        half = model.to(torch.bfloat16)(**{k: v.bfloat16() if v.is_floating_point() else v for k, v in pixels.items()})
        assert half.logits.isfinite().all()
        assert (half.logits.float() - together).abs().max() < 0.1 * together.abs().max()


@pairwise
def test_saves_and_reloads(adapter, model_type, checkpoint, tmp_path):
    model = adapted(adapter, classifier_of(checkpoint, model_type), seed=1).eval()
    model.save_pretrained(tmp_path)
    pixels = tiny_family_pixels(model_type)
    again = PeftModel.from_pretrained(classifier_of(checkpoint, model_type), tmp_path)
    strict = load_adapter(tmp_path)  # builds the base that the adapter's configuration names
    expected = get_peft_model_state_dict(model)
    with torch.no_grad():
        logits = model(**pixels).logits
        for other in (again, strict):
            found = get_peft_model_state_dict(other)
            assert list(found) == list(expected) and all(torch.equal(found[k], expected[k]) for k in expected)
            torch.testing.assert_close(other(**pixels).logits, logits, rtol=0, atol=1e-4)


@pairwise
def test_other_image_sizes_give_finite_logits(adapter, model_type, checkpoint):
    model = adapted(adapter, classifier_of(checkpoint, model_type)).eval()
    with torch.no_grad():
        larger = tiny_pixels(2, size=64 if model_type == RESNET else 32)
        logits = model(pixel_values=larger, interpolate_pos_encoding=True).logits
    assert logits.shape == (2, 5) and logits.isfinite().all()


REFUSALS = {
    "cocoop": "CLIPV_COCOOP makes prompts for each image.*use CLIPClassifier",
    "tip_adapter": "CLIPV_TIP_ADAPTER adds to logits.*use CLIPClassifier",
    "linear_head": "CLIPV_LINEAR_HEAD adds to logits.*use CLIPClassifier",
    "coop": "CLIPV_COOP finds its placeholders in prompts of CLIP.*use CLIPClassifier",
    "coop_words": "CLIPV_COOP finds its placeholders in prompts of CLIP.*use CLIPClassifier",
    "clip_adapter": "CLIPV_CLIP_ADAPTER wraps projections.*use CLIPClassifier",
    "maple_vpt_deep": "'vpt_deep' inserts tokens.*use CLIPClassifier",
}
TAKEN = {"coop": TEXT["causal"], "coop_words": TEXT["causal"], "clip_adapter": IMAGE["class token"]}


def config_of(adapter: str):
    """With token ids instead of words, because a model in memory has no tokenizer."""
    config = ADAPTERS[adapter]()
    if getattr(config, "context_init", None) is None:
        return config
    count = 2 if adapter == "coop_words" else 3
    return dataclasses.replace(config, context_init=None, context_init_ids=[5, 6, 7][:count])


@pytest.mark.parametrize(("adapter", "model_type"), PLAIN_PAIRS)
def test_supported_adapters_train_on_plain_dual_encoders(adapter, model_type):
    base = tiny_dual_encoder(model_type)
    texts = [f"a photo of {name}" for name in family_class_names(model_type)]
    inputs = tiny_family_pixels(model_type) | tiny_family_inputs(model_type, texts)
    if adapter.startswith("coop"):
        inputs["input_ids"] = torch.cat([inputs["input_ids"][:, :1]] * 2 + [inputs["input_ids"]], dim=1)
        inputs.pop("attention_mask", None)
    with torch.no_grad():
        before = base(**inputs).logits_per_image
    model = get_peft_model(base, config_of(adapter))
    logits = model(**inputs).logits_per_image
    F.cross_entropy(logits, LABELS).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    with model.disable_adapter(), torch.no_grad():
        assert torch.equal(base(**inputs).logits_per_image, before)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_unsupported_adapters_are_refused_and_leave_the_model_unchanged(model_type):
    base = tiny_dual_encoder(model_type)
    for adapter, message in REFUSALS.items():
        if model_type in TAKEN.get(adapter, ()):
            continue
        if model_type == RESNET and adapter in ON_THE_IMAGE_ENCODER:
            message = "visual prompts need a vision transformer"
        with pytest.raises(ValueError, match=message):
            get_peft_model(base, config_of(adapter))
        assert not any("clipv_" in name for name in base.state_dict()), adapter


def test_visual_prompts_on_a_resnet_are_refused_and_leave_the_model_unchanged(checkpoints):
    """With text prompts only, IVLP works."""
    classifier = classifier_of(checkpoints(RESNET), RESNET)
    for base in (classifier, tiny_dual_encoder(RESNET)):
        for adapter in ON_THE_IMAGE_ENCODER:
            with pytest.raises(
                ValueError, match="visual prompts need a vision transformer.*use an adapter that leaves"
            ):
                get_peft_model(base, ADAPTERS[adapter]())
            assert not any("clipv_" in name for name in base.state_dict()), adapter
    model = get_peft_model(classifier, IVLPConfig(vision_depth=0))
    assert model(**tiny_family_pixels(RESNET)).logits.isfinite().all()


@pytest.mark.parametrize("adapter", ["coop", "tip_adapter"])
def test_frozen_batch_norm_keeps_its_statistics_in_training(adapter, checkpoints):
    model = adapted(adapter, classifier_of(checkpoints(RESNET), RESNET))
    statistics = [b.clone() for name, b in model.named_buffers() if "running" in name]
    before = model.eval()(**tiny_family_pixels(RESNET)).logits
    after = model.train()(**tiny_family_pixels(RESNET)).logits
    torch.testing.assert_close(after, before)
    kept = [b for name, b in model.named_buffers() if "running" in name]
    assert all(torch.equal(a, b) for a, b in zip(statistics, kept, strict=True))


@pytest.mark.parametrize("model_type", [*IMAGE["class token"], *IMAGE["no class token"]])
def test_maple_on_a_plain_model_equals_maple_on_a_classifier(model_type, checkpoint):
    """Two implementations: wrapped layers on the plain model, prompts passed to the encoder in the classifier."""
    classifier = classifier_of(checkpoint, model_type, templates=["a photo of {}"])
    model = adapted("maple", classifier)
    tensors = {
        name.removeprefix("base_model.model."): tensor for name, tensor in get_peft_model_state_dict(model).items()
    }
    family, plain = family_of(model_type), tiny_dual_encoder(model_type)
    words = model.peft_config["default"].context_init_ids
    on_plain = get_peft_model(plain, MaPLeConfig(prompt_depth=2, context_init=None, context_init_ids=words))
    renamed = {
        name.removeprefix("clip.").replace("prompt_embedder.", f"{family.token_embedding}."): tensor
        for name, tensor in tensors.items()
    }
    set_peft_model_state_dict(on_plain, renamed)
    # The classifier's prompts: start, words, name, full stop, end.
    prompts = classifier.prompt_embedder(
        classifier.class_prompts, family.token_embedding_of(classifier.clip)
    ).input_ids.long()
    starts = family.num_start_tokens
    prompts[:, starts : starts + len(words)] = torch.tensor(words)
    if model_type in SIGLIP_FAMILIES:
        padding = classifier.config.text_config.max_position_embeddings - prompts.shape[1]
        prompts = F.pad(prompts, (0, padding), value=family.padding_id(classifier.config))
    inputs = {"input_ids": prompts}
    if not family.text_is_causal and model_type not in SIGLIP_FAMILIES:
        inputs["attention_mask"] = (prompts != family.padding_id(classifier.config)).long()
    pixels = tiny_family_pixels(model_type)
    with torch.no_grad():
        torch.testing.assert_close(
            on_plain(**pixels, **inputs).logits_per_image, model(**pixels).logits, rtol=1e-4, atol=2e-4
        )


@pytest.mark.parametrize("family", SIGLIP_FAMILIES)
def test_class_token_methods_are_refused_without_a_class_token(family):
    with pytest.raises(ValueError, match=f"'after_cls' needs a class token, which '{family}' does not have"):
        get_peft_model(tiny_dual_encoder(family), VPTConfig(prompt_position="after_cls"))


@pytest.mark.parametrize("config", [VPTConfig(prompt_depth=4), MaPLeConfig(prompt_depth=3), IVLPConfig(text_depth=5)])
def test_depth_beyond_the_encoder_is_refused(config):
    base = tiny_dual_encoder("clip")  # 2 text layers, 3 image layers
    if hasattr(config, "context_init"):
        config.context_init = None
    with pytest.raises(ValueError, match=r"prompt_depth: \d, but the (text|image) encoder has \d layers"):
        get_peft_model(base, config)
    assert not any("clipv_" in name for name in base.state_dict())
