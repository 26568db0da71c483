"""Several labels an image: scores that tell present from absent, saved and loaded, and nothing new for one label."""

import pytest
import torch
from adapter_models import tiny_classifier
from peft import PeftModel, get_peft_model
from tiny import CLASS_NAMES, EMOJI_CLIP, tiny_pixels, tiny_tokenizer
from tiny_families import family_class_names, save_tiny_family, tiny_family_pixels
from transformers import pipeline

from hf_clip_variants import (
    CLIPAdapterConfig,
    CLIPClassifier,
    CLIPClassifierProcessor,
    CoCoOpConfig,
    CoOpConfig,
    IVLPConfig,
    MaPLeConfig,
    VPTConfig,
    load_adapter,
    load_images,
)
from hf_clip_variants.modeling.clip_classifier.label_calibration import (
    MULTI_LABEL,
    LabelCalibration,
    initial_calibration,
    label_logits,
)


NAMES = ["cat", "octopus", "hot dog", "cherries", "taco"]
CALIBRATION = {"scale", "level_scale", "bias", "thresholds"}


@pytest.fixture(scope="module")
def emoji_classifier():
    options = {"class_names": NAMES, "templates": "icons", "dtype": torch.float32}
    return CLIPClassifier.from_pretrained(EMOJI_CLIP, problem_type=MULTI_LABEL, **options).eval()


@pytest.fixture(scope="module")
def emoji_pixels():
    """(pixels, labels): one image of each of NAMES."""
    images, processor = load_images("emoji:notov1"), CLIPClassifierProcessor.from_clip(EMOJI_CLIP)
    shown = [images.image(images.class_names.index(name)) for name in NAMES]
    return processor(images=shown, return_tensors="pt").pixel_values, torch.eye(len(NAMES))


@pytest.fixture
def saved(tmp_path):
    """A tiny classifier for several labels with numbers of its own, saved."""
    model = multi_label_classifier(tmp_path / "start")
    with torch.no_grad():
        model.label_calibration.bias.copy_(torch.arange(len(CLASS_NAMES)))
        model.label_calibration.thresholds.fill_(0.25)
    model.save_pretrained(tmp_path / "saved")
    tiny_tokenizer().save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def multi_label_classifier(folder, names=CLASS_NAMES):
    tiny_classifier(class_names=names).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return CLIPClassifier.from_pretrained(folder, problem_type=MULTI_LABEL).eval()


def test_zero_shot_probabilities_tell_present_from_absent(emoji_classifier, emoji_pixels):
    pixels, labels = emoji_pixels
    with torch.no_grad():
        output = emoji_classifier(pixels, labels=labels)
    probabilities = output.logits.sigmoid()
    assert probabilities[labels == 1].min() > 0.5 > 0.3 > probabilities[labels == 0].max()
    assert output.loss < 0.2, "2 where all probabilities are 0.9, 10 without calibration"


def test_a_problem_type_set_after_loading_has_the_same_scores(emoji_classifier, emoji_pixels):
    later = CLIPClassifier.from_pretrained(EMOJI_CLIP, class_names=NAMES, templates="icons", dtype=torch.float32)
    with torch.no_grad():
        one_label = later.eval()(emoji_pixels[0]).logits
        later.config.problem_type = MULTI_LABEL
        output = later(emoji_pixels[0])
        torch.testing.assert_close(output.logits, emoji_classifier(emoji_pixels[0]).logits)
    assert torch.equal(output.logits_per_image, one_label), "the uncalibrated scores stay within reach"


def test_a_second_object_keeps_a_high_probability_and_one_class_its_order():
    scores = torch.tensor([[30.0, 26.0, 15.0, 14.0]])
    probabilities = label_logits(scores, *initial_calibration(4, has_logit_bias=False)).sigmoid()
    assert probabilities[0, :2].min() > 0.5 and probabilities[0, 2:].max() < 0.02
    one = label_logits(torch.tensor([[3.0], [5.0]]), *initial_calibration(1, has_logit_bias=False))
    assert one[1] > one[0], "a share of 1 for every image would tell nothing"


def test_a_classifier_for_one_label_has_nothing_new(tmp_path):
    model = tiny_classifier()
    assert not [name for name in model.state_dict() if "calibration" in name]
    output = model(tiny_pixels())
    assert output.logits is output.logits_per_image
    for problem_type in (None, "single_label_classification"):
        model.config.problem_type = problem_type
        assert torch.equal(model(tiny_pixels()).logits, output.logits)


def test_siglip_keeps_its_own_scores(tmp_path):
    folder, names = save_tiny_family("siglip", tmp_path), family_class_names("siglip")
    one = CLIPClassifier.from_pretrained(folder, class_names=names).eval()
    several = CLIPClassifier.from_pretrained(folder, class_names=names, problem_type=MULTI_LABEL).eval()
    with torch.no_grad():
        pixels = tiny_family_pixels("siglip")
        torch.testing.assert_close(several(**pixels).logits, one(**pixels).logits)
    assert several.label_calibration.bias.shape == (len(names),), "and yet it can be calibrated"


def test_calibration_is_saved_and_loaded(saved):
    loaded, info = CLIPClassifier.from_pretrained(saved, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert loaded.config.problem_type == MULTI_LABEL
    assert loaded.label_calibration.bias.tolist() == [0, 1, 2, 3, 4]
    assert loaded.label_calibration.thresholds.tolist() == [0.25] * 5
    again = CLIPClassifier.from_pretrained(saved, class_names=CLASS_NAMES)
    assert again.label_calibration.bias.tolist() == [0, 1, 2, 3, 4], "the same classes"


def test_loading_fills_all_numbers_of_a_new_calibration(tmp_path):
    model = multi_label_classifier(tmp_path)
    assert {name for name, _ in model.label_calibration.named_parameters()} <= CALIBRATION
    fresh = LabelCalibration(len(CLASS_NAMES)).state_dict()
    assert set(fresh) == CALIBRATION
    for name, value in model.label_calibration.state_dict().items():
        assert torch.equal(value, fresh[name]), name


def test_other_classes_start_with_a_new_calibration(saved):
    model = CLIPClassifier.from_pretrained(saved)
    model.set_classes(["cat", "dog"])
    assert torch.equal(model.label_calibration.bias, LabelCalibration(2).bias)
    assert model(tiny_pixels()).logits.shape == (4, 2)


def test_labels_given_as_prompts_are_not_calibrated(saved):
    model = CLIPClassifier.from_pretrained(saved).eval()
    output = model(tiny_pixels(), input_ids=model.prompt_ids[:2, 0])
    assert torch.equal(output.logits, output.logits_per_image) and output.logits.shape == (4, 2)


def test_the_pipeline_of_transformers_gives_sigmoids(emoji_classifier, emoji_pixels):
    processor = CLIPClassifierProcessor.from_clip(EMOJI_CLIP)
    classify = pipeline("image-classification", model=emoji_classifier, image_processor=processor.image_processor)
    images = load_images("emoji:notov1")
    image = images.image(images.class_names.index("taco")).convert("RGB")
    scores = {found["label"]: found["score"] for found in classify(image, top_k=5)}
    with torch.no_grad():
        logits = emoji_classifier(processor(images=image, return_tensors="pt").pixel_values).logits[0]
    assert scores == pytest.approx(dict(zip(NAMES, logits.sigmoid().tolist(), strict=True)), abs=1e-5)


# ---- with adapters


@pytest.mark.parametrize(
    "config",
    [
        CLIPAdapterConfig(),
        CoOpConfig(num_context_tokens=2),
        CoCoOpConfig(),
        MaPLeConfig(prompt_depth=2),
        VPTConfig(num_prompt_tokens=2),
        IVLPConfig(),
    ],
    ids=lambda config: config.peft_type.value,
)
def test_an_adapter_trains_and_saves_a_calibration_of_its_own(config, tmp_path):
    base = multi_label_classifier(tmp_path / "base")
    labels = torch.tensor([[1.0, 0, 0, 0, 1]]).repeat(4, 1)
    with torch.no_grad():
        before = base(tiny_pixels()).logits
    model = get_peft_model(base, config).train()
    trained = {name.split(".")[-1] for name, p in model.named_parameters() if p.requires_grad}
    assert {"scale", "level_scale", "bias"} <= trained
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(8):
        loss = model(tiny_pixels(), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] < 3 and losses[-1] < losses[0]
    bias = model.eval().get_base_model().label_calibration.bias
    assert bias.max() > bias.min(), "trained"
    with torch.no_grad():
        expected = model(tiny_pixels()).logits
        with model.disable_adapter():
            torch.testing.assert_close(model(tiny_pixels()).logits, before)
    model.save_pretrained(tmp_path / "adapter")

    loaded = load_adapter(tmp_path / "adapter", multi_label_classifier(tmp_path / "base"))
    with torch.no_grad():
        torch.testing.assert_close(loaded(tiny_pixels()).logits, expected)
        alone = load_adapter(tmp_path / "adapter")  # finds its base model, and makes it one for several labels
        torch.testing.assert_close(alone(tiny_pixels()).logits, expected)
        by_peft = PeftModel.from_pretrained(multi_label_classifier(tmp_path / "base"), tmp_path / "adapter").eval()
        torch.testing.assert_close(by_peft(tiny_pixels()).logits, expected)

    one_label = tiny_classifier()
    with pytest.raises(ValueError, match="problem_type: the adapter was trained for several labels an image"):
        load_adapter(tmp_path / "adapter", one_label)
    assert torch.equal(one_label(tiny_pixels()).logits, tiny_classifier()(tiny_pixels()).logits)
    others = multi_label_classifier(tmp_path / "others", ["cat", "dog"])
    with pytest.raises(ValueError, match="class_names: the adapter .*, but the classes differ"):
        load_adapter(tmp_path / "adapter", others)


def test_an_adapter_for_one_label_stays_one_on_any_classifier(tmp_path):
    get_peft_model(tiny_classifier(), CLIPAdapterConfig()).save_pretrained(tmp_path / "adapter")
    loaded = load_adapter(tmp_path / "adapter", multi_label_classifier(tmp_path / "base"))
    assert loaded.peft_config["default"].modules_to_save is None
