import copy
import pickle
import threading

import pytest
import torch
from PIL import Image
from tiny import CLASS_NAMES, EMOJI_CLIP, tiny_clip, tiny_pixels, tiny_tokenizer
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    AutoModelForZeroShotImageClassification,
    CLIPModel,
    pipeline,
)

from hf_clip_variants import CLIPClassifier, CLIPClassifierConfig
from hf_clip_variants.modeling.clip_classifier import adapter_places
from hf_clip_variants.modeling.dual_encoders import forward_checks, prompt_encoding


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    tiny_clip().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def classifier(clip_folder):
    return CLIPClassifier.from_pretrained(
        clip_folder, class_names=CLASS_NAMES, templates=["a photo of a {}.", "{}"]
    ).eval()


@pytest.fixture
def text_calls(monkeypatch):
    """Counts how often prompts are encoded."""
    calls = []
    original = prompt_encoding.encode_prompts

    def counting(*args, **kwargs):
        calls.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(prompt_encoding, "encode_prompts", counting)
    return calls


def reference_logits(clip, class_names, templates, pixels):
    """Plain code for the zero-shot classifier of Radford et al."""
    weights = []
    for name in class_names:
        ids = tiny_tokenizer()([t.format(name) for t in templates], padding=True, return_tensors="pt").input_ids
        features = clip.get_text_features(input_ids=ids).pooler_output
        mean = (features / features.norm(dim=-1, keepdim=True)).mean(0)
        weights.append(mean / mean.norm())
    images = clip.get_image_features(pixel_values=pixels).pooler_output
    return clip.logit_scale.exp() * (images / images.norm(dim=-1, keepdim=True)) @ torch.stack(weights).t()


@torch.no_grad()
@pytest.mark.parametrize("templates", [["a photo of a {}."], ["a photo of a {}.", "{}", "my {}, at home"]])
def test_logits_equal_plain_zero_shot_clip(clip_folder, templates):
    model = CLIPClassifier.from_pretrained(clip_folder, class_names=CLASS_NAMES, templates=templates).eval()
    expected = reference_logits(CLIPModel.from_pretrained(clip_folder).eval(), CLASS_NAMES, templates, tiny_pixels())
    assert torch.allclose(model(tiny_pixels()).logits, expected, atol=1e-5)


def test_several_templates_give_unit_norm_class_features_and_one_gives_the_projections_own():
    features = 3 * torch.randn(5, 4, 24)
    ensemble = adapter_places.ensemble_prompts(features)
    expected = torch.nn.functional.normalize(features, dim=-1).mean(1)
    assert torch.allclose(ensemble, expected / expected.norm(dim=-1, keepdim=True), atol=1e-6)
    assert torch.equal(adapter_places.ensemble_prompts(features[:, :1]), features[:, 0])


@torch.no_grad()
def test_text_encoder_runs_once_for_any_number_of_images_and_never_after_reload(classifier, text_calls, tmp_path):
    for seed in range(3):
        classifier(tiny_pixels(seed=seed))
    assert len(text_calls) == 1
    classifier.save_pretrained(tmp_path)
    reloaded = CLIPClassifier.from_pretrained(tmp_path).eval()
    assert torch.equal(reloaded(tiny_pixels()).logits, classifier(tiny_pixels()).logits)
    assert len(text_calls) == 1, "saved class features are used as they are"


@torch.no_grad()
def test_every_kind_of_weight_change_is_noticed(classifier, tmp_path):
    pixels = tiny_pixels()
    before = classifier(pixels).logits
    weight = classifier.clip.text_model.encoder.layers[0].mlp.fc1.weight
    weight.mul_(1.5)
    in_place = classifier(pixels).logits
    assert not torch.allclose(before, in_place)
    weight.data = weight / 1.5  # other memory under the same parameter
    assert torch.allclose(classifier(pixels).logits, before, atol=1e-4)
    state = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    weight.mul_(2)
    assert not torch.allclose(classifier(pixels).logits, before)
    for assign in (False, True):
        classifier.load_state_dict(state, assign=assign)
        assert torch.allclose(classifier(pixels).logits, before, atol=1e-4)
        classifier.clip.text_model.encoder.layers[0].mlp.fc1.weight.mul_(2)
        assert not torch.allclose(classifier(pixels).logits, before)
    classifier.load_state_dict(state)

    # Loaded with saved features, then changed before the first forward.
    classifier.save_pretrained(tmp_path)
    reloaded = CLIPClassifier.from_pretrained(tmp_path).eval()
    reloaded.clip.text_model.encoder.layers[0].mlp.fc1.weight.mul_(1.5)
    assert not torch.allclose(reloaded(pixels).logits, before)


@torch.no_grad()
def test_changes_hidden_from_pytorch_need_forget_class_features(classifier):
    pixels = tiny_pixels()
    before = classifier(pixels).logits
    weight = classifier.clip.text_model.encoder.layers[0].mlp.fc1.weight
    weight.data.mul_(1.5)  # no version counter sees it
    assert torch.equal(classifier(pixels).logits, before)
    classifier.forget_class_features()
    assert not torch.allclose(classifier(pixels).logits, before)


@torch.no_grad()
@pytest.mark.parametrize("forward_in_between", [True, False])
def test_merged_lora_is_noticed_although_peft_merges_through_data(classifier, forward_in_between):
    from peft import LoraConfig, get_peft_model

    pixels = tiny_pixels()
    before = classifier(pixels).logits
    adapted = get_peft_model(classifier, LoraConfig(target_modules=["fc1"], init_lora_weights=False))
    with_lora = adapted(pixels).logits if forward_in_between else None
    if forward_in_between:
        with adapted.disable_adapter():
            assert torch.allclose(adapted(pixels).logits, before, atol=1e-5)
        adapted.merge_adapter()
        assert torch.allclose(adapted(pixels).logits, with_lora, atol=1e-4)
        adapted.unmerge_adapter()
    merged = adapted.merge_and_unload()
    assert merged is classifier and not torch.allclose(merged(pixels).logits, before, atol=1e-2)
    expected = copy.deepcopy(merged)
    expected.forget_class_features()
    assert torch.equal(merged(pixels).logits, expected(pixels).logits)
    if forward_in_between:
        assert torch.allclose(merged(pixels).logits, with_lora, atol=1e-4)


class NoTransfers(TorchDispatchMode):
    """Raises when an operation gives a number to Python or moves a tensor to another device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        assert not any(part in name for part in ("_local_scalar_dense", "aten.equal", "nonzero", "is_nonzero")), name
        assert "device" not in (kwargs or {}) or "_to_copy" not in name, name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("reloaded", [False, True])
def test_a_forward_with_kept_features_does_not_wait_for_the_device(classifier, monkeypatch, tmp_path, reloaded):
    """On a GPU, fetching a number waits for all queued work. Numbers on a CPU may be looked at, so this is no CPU."""
    monkeypatch.setattr(forward_checks, "can_be_read", lambda tensor: False)
    with torch.no_grad():
        expected = classifier(tiny_pixels()).logits
    if reloaded:
        classifier.save_pretrained(tmp_path)
        classifier = CLIPClassifier.from_pretrained(tmp_path).eval()

    def fetched(*args, **kwargs):
        raise AssertionError("a number was fetched from the device")

    for name in ("tolist", "item", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "__array__"):
        monkeypatch.setattr(torch.Tensor, name, fetched)
    with torch.no_grad(), NoTransfers():
        logits = [classifier(tiny_pixels()).logits for _ in range(2)]
    monkeypatch.undo()
    assert all(torch.allclose(each, expected, atol=1e-5) for each in logits)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_features_kept_under_autocast_have_the_weights_precision(classifier, tmp_path, dtype):
    """`Trainer(bf16=True)` evaluates so, before the model is used or saved."""
    labels = torch.tensor([[4036, 5, 6, 4037]])
    clean = copy.deepcopy(classifier)
    expected, by_ids = clean(tiny_pixels()).logits, clean(tiny_pixels(), input_ids=labels).logits
    with torch.autocast("cpu", dtype):
        classifier(tiny_pixels())
        classifier(tiny_pixels(), input_ids=labels)
    torch.testing.assert_close(classifier(tiny_pixels()).logits, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(classifier(tiny_pixels(), input_ids=labels).logits, by_ids, rtol=1e-5, atol=1e-5)
    classifier.save_pretrained(tmp_path)
    assert torch.equal(CLIPClassifier.from_pretrained(tmp_path).class_features, clean.class_features)


def test_a_moved_classifier_keeps_its_features_and_another_dtype_does_not(classifier, text_calls):
    with torch.no_grad():
        classifier(tiny_pixels())
        assert len(text_calls) == 1
        classifier.to("cpu")
        classifier(tiny_pixels())
        copy.deepcopy(classifier)(tiny_pixels())
        assert len(text_calls) == 1
        classifier.double()(tiny_pixels())
        assert len(text_calls) == 2


@pytest.mark.parametrize("fused", [False, True])
def test_optimizer_steps_are_noticed_in_eval_mode(classifier, fused):
    """Without a forward in training mode that shows the change; fused optimizers do not count versions."""

    def logits():
        with torch.no_grad():
            return classifier(tiny_pixels()).logits

    optimizer = torch.optim.AdamW(classifier.clip.parameters(), lr=0.01, fused=fused)
    seen = [logits()]
    for zero_first in (True, False, True):
        features = classifier.clip.get_text_features(classifier.prompt_ids[:, 0].long()).pooler_output
        features.square().sum().backward()
        assert torch.allclose(logits(), seen[-1], atol=1e-5)
        optimizer.step()
        if not zero_first:
            seen.append(logits())
        optimizer.zero_grad()
        seen.append(logits())
    assert torch.allclose(seen[2], seen[3], atol=1e-5)
    assert not any(torch.allclose(a, b) for a, b in zip(seen[:2], seen[1:3], strict=True))
    assert not torch.allclose(seen[3], seen[4])


def test_a_state_dict_saved_during_training_marks_class_features_invalid(classifier):
    with torch.no_grad():
        classifier(tiny_pixels())
    assert classifier.state_dict()["class_features_ready"]
    classifier.train()
    classifier(tiny_pixels(), labels=torch.tensor([0, 1, 2, 3])).loss.backward()
    assert not classifier.state_dict()["class_features_ready"]


def test_training_reaches_both_encoders_and_lowers_the_loss(classifier):
    classifier.train()
    pixels, labels = tiny_pixels(), torch.tensor([0, 1, 2, 3])
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=1e-3)
    losses = []
    for _ in range(8):
        loss = classifier(pixels, labels=labels).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]
    unused = {n for n, p in classifier.named_parameters() if p.grad is None}
    assert not unused
    classifier.eval()
    with torch.no_grad():
        logits = classifier(pixels).logits
        assert torch.equal(logits.argmax(-1), labels), "evaluation sees the trained text encoder, not cached features"


def test_cached_features_serve_inference_mode_first_and_training_later(classifier):
    with torch.inference_mode():
        classifier(tiny_pixels())
    classifier.clip.requires_grad_(False)
    # A text adapter keeps the cached features for its backward pass, which autograd refuses for tensors made under
    # inference_mode.
    classifier.text_feature_adapter = torch.nn.Linear(24, 24)
    classifier(image_features=torch.randn(2, 24), labels=torch.tensor([0, 1])).loss.backward()
    assert classifier.text_feature_adapter.weight.grad.abs().sum() > 0


@torch.no_grad()
def test_image_features_can_replace_pixels(classifier):
    features = classifier.get_image_features(tiny_pixels()).pooler_output
    assert torch.equal(classifier(image_features=features).logits, classifier(tiny_pixels()).logits)


@torch.no_grad()
def test_threads_with_different_labels_get_their_own_scores(classifier):
    sets = [["cat", "dog"], ["forest", "pizza", "car"], ["rain"], ["sun", "moon"]]
    ids = [torch.tensor(tiny_tokenizer()(labels, padding=True).input_ids) for labels in sets]
    pixels = tiny_pixels()
    expected = [reference_logits(classifier.clip, labels, ["{}"], pixels) for labels in sets]
    wrong = []

    def work(index):
        with torch.no_grad():
            for _ in range(20):
                logits = classifier(pixels, input_ids=ids[index]).logits
                if logits.shape != expected[index].shape or not torch.allclose(logits, expected[index], atol=1e-5):
                    wrong.append(index)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(sets))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_stock_zero_shot_pipeline_encodes_labels_once(text_calls):
    model = AutoModelForZeroShotImageClassification.from_pretrained(EMOJI_CLIP, dtype=torch.float32)
    assert type(model) is CLIPModel
    model = CLIPClassifier.from_pretrained(EMOJI_CLIP, dtype=torch.float32)
    classify = pipeline(
        "zero-shot-image-classification", model=model, tokenizer=str(EMOJI_CLIP), image_processor=str(EMOJI_CLIP)
    )
    red, green = (Image.new("RGB", (64, 64), c) for c in ("red", "green"))
    results = classify([red, green, red], candidate_labels=["red square", "green square"], hypothesis_template="{}")
    assert results[0] == results[2] and {r["label"] for r in results[1]} == {"red square", "green square"}
    assert len(text_calls) == 1


def test_auto_classes_and_image_classification_pipeline(classifier, tmp_path):
    classifier.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is CLIPClassifierConfig
    for auto_class in (AutoModelForImageClassification, AutoModelForZeroShotImageClassification):
        assert type(auto_class.from_pretrained(tmp_path)) is CLIPClassifier
    from transformers import CLIPImageProcessor

    processor = CLIPImageProcessor(size={"shortest_edge": 24}, crop_size=24)
    answers = pipeline("image-classification", model=str(tmp_path), image_processor=processor)(
        Image.new("RGB", (50, 30), "red")
    )
    assert {a["label"] for a in answers} <= set(CLASS_NAMES) and answers[0]["score"] > 0


def test_a_temperature_is_saved_belongs_to_its_classes_and_leaves_logits_alone(classifier, tmp_path):
    before = classifier(pixel_values=tiny_pixels()).logits
    classifier.config.temperature, classifier.config.rejection_threshold = 2.5, 0.25
    classifier.save_pretrained(tmp_path)
    loaded = type(classifier).from_pretrained(tmp_path).eval()
    assert (loaded.config.temperature, loaded.config.rejection_threshold) == (2.5, 0.25)
    torch.testing.assert_close(loaded(pixel_values=tiny_pixels()).logits, before)
    loaded.set_classes(list(loaded.class_names), tokenizer=tiny_tokenizer())
    assert loaded.config.temperature == 2.5, "the same classes"
    loaded.set_classes(list(reversed(loaded.class_names)))
    assert (loaded.config.temperature, loaded.config.rejection_threshold) == (None, None)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_trainer_evaluates_with_the_usual_metrics(classifier, tmp_path, smoothing):
    from transformers import Trainer, TrainingArguments

    def compute_metrics(prediction):  # of transformers' image classification example
        return {"accuracy": float((prediction.predictions.argmax(axis=1) == prediction.label_ids).mean())}

    pixels, labels = tiny_pixels(), torch.tensor([0, 1, 2, 3])
    rows = [{"pixel_values": image, "labels": label} for image, label in zip(pixels, labels, strict=True)]
    arguments = TrainingArguments(
        str(tmp_path),
        label_smoothing_factor=smoothing,
        per_device_eval_batch_size=3,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
    )
    trainer = Trainer(classifier, arguments, eval_dataset=rows, compute_metrics=compute_metrics)
    with torch.no_grad():
        logits = classifier(pixels).logits
    found = trainer.evaluate()
    assert found["eval_accuracy"] == (logits.argmax(dim=1) == labels).float().mean()
    loss = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing)
    assert found["eval_loss"] == pytest.approx(loss.item(), abs=1e-4)
    assert trainer.predict(rows).predictions.shape == (4, len(CLASS_NAMES))


def test_classes_are_data_saved_with_the_model(classifier, tmp_path):
    classifier.set_classes(["red_apple", "dog"])
    assert classifier.config.templates == ["a photo of a {}.", "{}"], "templates stay"
    classifier.save_pretrained(tmp_path)
    reloaded = CLIPClassifier.from_pretrained(tmp_path)
    assert reloaded.class_names == ["red_apple", "dog"] and reloaded.config.num_labels == 2
    assert torch.equal(reloaded.prompt_ids, classifier.prompt_ids)
    spoken = tiny_tokenizer()("a photo of a red apple.").input_ids
    assert reloaded.prompt_ids[0, 0, : len(spoken)].tolist() == spoken, "underscores are read as spaces"
    assert reloaded.tail_name_lengths.tolist() == [
        len(tiny_tokenizer()("red apple").input_ids) - 2,
        len(tiny_tokenizer()("dog").input_ids) - 2,
    ]


@torch.no_grad()
def test_many_classes_one_class_and_long_names(classifier):
    classifier.set_classes([f"thing number {i}" for i in range(3000)], "{}")
    assert classifier(tiny_pixels(1)).logits.shape == (1, 3000)
    classifier.set_classes(["only"])
    assert classifier(tiny_pixels(1)).logits.shape == (1, 1)
    with pytest.warns(UserWarning, match="word word") as warned:
        classifier.set_classes(["word " * 120, "cat"], "a photo of a {}.")
    assert len(warned) == 1
    assert classifier.prompt_ids.shape[-1] == 32 and (classifier.prompt_ids == classifier.padding_id).any(-1).all()
    assert classifier(tiny_pixels(1)).logits.isfinite().all()


def test_copies_pickles_and_moves(classifier):
    with torch.no_grad():
        expected = classifier(tiny_pixels()).logits
        for other in (copy.deepcopy(classifier), pickle.loads(pickle.dumps(classifier))):
            assert torch.allclose(other(tiny_pixels()).logits, expected)
        half = copy.deepcopy(classifier).bfloat16()
        logits = half(tiny_pixels()).logits
    assert logits.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(logits.float().flatten(), expected.flatten(), dim=0) > 0.999


@torch.no_grad()
def test_zero_features_give_finite_scores(classifier):
    assert classifier(image_features=torch.zeros(2, 24)).logits.isfinite().all()
    assert classifier.half()(image_features=torch.zeros(2, 24)).logits.isfinite().all()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "give exactly one"),
        ({"pixel_values": tiny_pixels(), "image_features": torch.zeros(4, 24)}, "give exactly one"),
        ({"pixel_values": tiny_pixels()[0]}, r"expected \[batch, 3, H, W\], got \[3, 24, 24\]"),
        ({"pixel_values": torch.zeros(1, 3, 24, 24, dtype=torch.uint8)}, "unnormalised"),
        ({"image_features": torch.zeros(2, 7)}, r"expected \[batch, 24\], got \[2, 7\]"),
        (
            {"pixel_values": tiny_pixels(), "input_ids": torch.tensor([[4036, 5, 6]])},
            r"row 0 has no EOS token \(eos_token_id 4037\)",
        ),
    ],
)
def test_bad_input_is_named(classifier, inputs, message):
    with pytest.raises(ValueError, match=message):
        classifier(**inputs)


def test_double_pixels_are_cast_to_the_models_dtype(classifier):
    with torch.no_grad():
        assert torch.equal(classifier(tiny_pixels().double()).logits, classifier(tiny_pixels()).logits)


@pytest.mark.parametrize(
    "names",
    [["Cat", "cat", "dog"], ["dog", "hot_dog", "hot dog"], ["very " * 40 + "red", "dog", "very " * 40 + "blue"]],
)
@pytest.mark.filterwarnings("ignore:.*was cut")
def test_names_with_the_same_tokens_are_refused_and_both_are_named(clip_folder, classifier, names):
    a, b = (name for name in names if name != "dog")
    said = f"class_names: .*{a[-6:]}' and .*{b[-6:]}' are the same prompts for this model"
    for templates in ("{}", ["a photo of a {}.", "{}"]):
        with pytest.raises(ValueError, match=said):
            CLIPClassifier.from_pretrained(clip_folder, class_names=names, templates=templates)
    with pytest.raises(ValueError, match=said):
        classifier.set_classes(names)
    assert classifier.class_names == list(CLASS_NAMES), "nothing was changed"


def test_names_that_differ_in_one_template_or_in_trailing_underscores_are_taken(classifier):
    long = "very " * 12
    with pytest.warns(UserWarning, match="was cut"):
        classifier.set_classes([long + "red", long + "blue"], [long + "{}", "{}"])
    classifier.set_classes(["missile", "mitten", "missile_"])  # as CLIP's names of ImageNet, two of which are alike
    assert classifier.class_names == ["missile", "mitten", "missile_"]


def test_misuse_of_classes_is_named(clip_folder, classifier):
    with pytest.raises(ValueError, match="no classes are set"):
        CLIPClassifier.from_pretrained(clip_folder)(tiny_pixels())
    with pytest.raises(ValueError, match="templates: given without class_names"):
        CLIPClassifier.from_pretrained(clip_folder, templates="general")
    with pytest.raises(ValueError, match="2 names for ids of"):
        classifier.set_prompt_ids(torch.ones(3, 1, 4), torch.ones(3, 2), torch.ones(3), ["a", "b"])
    model = CLIPClassifier(CLIPClassifierConfig.from_pretrained(clip_folder))
    model.config._name_or_path = ""
    with pytest.raises(ValueError, match="tokenizer: none given"):
        model.set_classes(["cat"])
    with pytest.raises(ValueError, match="'bert' is not supported"):
        CLIPClassifier.from_pretrained(_bert_folder(clip_folder))


def _bert_folder(clip_folder):
    folder = clip_folder.parent / "bert"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    return folder


def test_missing_weights_are_an_error_not_a_random_layer(classifier, tmp_path):
    from safetensors.torch import load_file, save_file

    classifier.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    del state["clip.visual_projection.weight"]
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 weights are missing: \['clip.visual_projection.weight'\]"):
        CLIPClassifier.from_pretrained(tmp_path)


@pytest.mark.parametrize("damage", [lambda c: c[:-100], lambda c: b"", lambda c: b"x" * 100, lambda c: c + b"abc"])
def test_a_damaged_file_is_named(classifier, tmp_path, damage):
    classifier.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(OSError, match=rf"{path}: not a valid safetensors file \(.+\). Re-download"):
        CLIPClassifier.from_pretrained(tmp_path)


def test_check_finite_names_the_broken_tensor(classifier, tmp_path):
    with torch.no_grad():
        classifier.clip.visual_projection.weight[0, 0] = torch.nan
    classifier.save_pretrained(tmp_path)
    CLIPClassifier.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="clip.visual_projection.weight has NaN"):
        CLIPClassifier.from_pretrained(tmp_path, check_finite=True)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("prompt_length", 1, "prompt_length"),
        ("prompt_length", 4000, "prompt_length"),
        ("templates", ["no slot"], "exactly one"),
        ("projection_dim", 0, "projection_dim"),
    ],
)
def test_invalid_configurations_name_the_field_before_anything_is_allocated(field, value, message):
    with pytest.raises(Exception, match=message):
        CLIPClassifierConfig(**{field: value})


def test_invalid_encoder_sizes_name_the_field():
    for vision in (
        {"patch_size": 64, "image_size": 32},
        {"num_hidden_layers": -1},
        {"hidden_size": 10**9, "num_attention_heads": 1},
    ):
        with pytest.raises(Exception, match="vision_config"):
            CLIPClassifierConfig(vision_config=vision)
