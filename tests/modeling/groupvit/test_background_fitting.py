"""A GroupViT's background from labelled images: calibrated, trained, saved."""

import pytest
import torch
from tiny import tiny_tokenizer

from hf_clip_variants import GroupViTConfig, GroupViTForSemanticSegmentation, GroupViTModel
from hf_clip_variants.modeling.dense.group_counts import group_ids
from hf_clip_variants.modeling.groupvit.background_fitting import calibrate_background_thresholds, learn_background


LABELS = ["cat", "dog", "taco"]


class Scripted(GroupViTForSemanticSegmentation):
    """Its four groups are the quarters of an image; their scores follow from the image's first pixel."""

    def group_maps_of(self, vision, size):
        quarters = torch.eye(4).reshape(4, 2, 2).repeat_interleave(8, 1).repeat_interleave(8, 2)
        return (0.96 * quarters + 0.01).expand(len(vision.pooler_output), -1, -1, -1)

    def forward(self, pixel_values=None, **kwargs):
        self.seeds = [int(value.item() * 1000) % 2**30 for value in pixel_values[:, 0, 0, 0]]
        return super().forward(pixel_values=pixel_values, **kwargs)

    def _label_scores(self, groups, image, texts):
        scores = []
        for seed in self.seeds:
            generator = torch.Generator().manual_seed(seed)
            best, label = torch.rand(4, 1, generator=generator), torch.randint(0, 3, (4, 1), generator=generator)
            scores.append(torch.full((4, texts.embeddings.shape[-2]), 0.001).scatter(1, label, best.clamp_min(0.01)))
        return torch.stack(scores)


def tiny_model(kind=GroupViTForSemanticSegmentation, **options) -> GroupViTForSemanticSegmentation:
    torch.manual_seed(0)
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    text |= {"vocab_size": len(tiny_tokenizer())}
    vision = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 32, "patch_size": 8}
    vision |= {"depths": [1, 1], "num_group_tokens": [6, 0], "num_output_groups": [4]}
    options = {"projection_dim": 16, "projection_intermediate_dim": 32} | options
    return kind(GroupViTConfig(text_config=text, vision_config=vision, **options)).eval()


def with_labels(background=0.4, **options) -> GroupViTForSemanticSegmentation:
    model = tiny_model(Scripted, **options)
    model.set_labels(LABELS, tiny_tokenizer(), background=background)
    model.class_embeddings.copy_(torch.eye(3, 16))  # those of random weights are nearly the same
    return model


def labelled_images(count=20, size=(32, 32)):
    """Groups have the model's label, but those of "dog" only from a score of 0.7 on and others from 0.2 on."""
    generator, model, images = torch.Generator().manual_seed(1), with_labels(), []
    for _ in range(count):
        pixels = 2 * torch.rand(3, *size, generator=generator)
        with torch.no_grad():
            outputs = model(pixel_values=pixels[None])
        best, label = outputs.group_scores[0].max(-1)
        truth = torch.where(best < torch.tensor([0.2, 0.7, 0.2])[label], 0, label + 1)
        images.append((pixels, truth[group_ids(outputs.group_maps, size)[0]]))
    return images


def right_pixels(model, images) -> float:
    with torch.no_grad():
        found = [(model(pixel_values=p[None]).logits.argmax(1)[0] == truth).float().mean() for p, truth in images]
    return torch.stack(found).mean().item()


@pytest.fixture(scope="module")
def images():
    return labelled_images()


def test_calibration_finds_what_one_threshold_cannot(images, tmp_path):
    model = with_labels(background=0.3)
    before = right_pixels(model, images)
    best_of_one = max(right_pixels(with_labels(background=t / 5), images) for t in range(5))
    found = calibrate_background_thresholds(model, images, shrinkage=0)
    after = right_pixels(model, images)
    assert list(found) == LABELS and found == model.config.background
    assert after > max(before, best_of_one) and after > 0.95, (before, best_of_one, after, found)
    model.save_pretrained(tmp_path)
    again = Scripted.from_pretrained(tmp_path).eval()
    assert again.config.background == found and right_pixels(again, images) == after
    GroupViTModel.from_pretrained(tmp_path)


def test_shrinkage_keeps_the_threshold(images):
    found = calibrate_background_thresholds(with_labels(), images[:2], shrinkage=1e9)
    assert all(abs(value - 0.4) < 1e-6 for value in found.values())


def test_windows_are_calibrated_one_by_one(images):
    whole = calibrate_background_thresholds(with_labels(), images[:4], window=64)  # holds the image
    assert whole == calibrate_background_thresholds(with_labels(), images[:4])
    assert whole != calibrate_background_thresholds(with_labels(), images[:4], window=16)


@pytest.mark.parametrize("kind", ["per_label", "open_vocabulary"])
def test_what_is_learned_starts_at_the_threshold_and_improves(kind, images, tmp_path):
    start = with_labels(background=0.3)
    wanted = torch.stack([start(pixel_values=p[None]).logits[0] for p, _ in images])
    model = with_labels(background=0.3)
    learn_background(model, images, kind, steps=0)
    assert torch.equal(torch.stack([model(pixel_values=p[None]).logits[0] for p, _ in images]), wanted)
    before = {name: value.clone() for name, value in model.state_dict().items() if "background" not in name}
    model.config.background = 0.3
    learn_background(model, images, kind, steps=80, pull=0.0)
    assert right_pixels(model, images) > max(right_pixels(start, images), 0.95)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    model.save_pretrained(tmp_path)
    again = Scripted.from_pretrained(tmp_path).eval()
    assert right_pixels(again, images) == right_pixels(model, images)
    assert (again.config.background == "learned") == (kind == "open_vocabulary")


def test_an_open_vocabulary_has_thresholds_for_other_labels(images):
    model = with_labels(background=0.3)
    learn_background(model, images, "open_vocabulary", steps=20)
    model.set_labels(["whale", "taco", "pizza", "fox"], tiny_tokenizer(), background="learned")
    outputs = model(pixel_values=images[0][0][None])
    assert outputs.logits.shape[1] == 5 and model.config.id2label[0] == "background"
    two = model.class_embeddings[:3].expand(1, -1, -1)
    assert torch.equal(
        model(pixel_values=images[0][0][None], class_embeddings=two).logits,
        model(pixel_values=images[0][0][None], class_embeddings=two[0]).logits,
    )


def test_tags_are_enough(images):
    model, tags = with_labels(background=0.3), []
    for pixels, truth in images:
        present = torch.zeros(3, dtype=torch.bool)
        present[truth[truth > 0].unique() - 1] = True
        tags.append((pixels, present))
    learn_background(model, tags, steps=80, pull=0.0)
    assert model.config.background["dog"] > max(model.config.background[n] for n in ("cat", "taco"))


def test_background_vectors_decide_by_the_nearest(tmp_path):
    model = tiny_model(num_background_vectors=2, background_rule="vectors")
    model.set_labels(LABELS, tiny_tokenizer(), background="learned")
    pixels = torch.randn(1, 3, 32, 32)
    groups = model(pixel_values=pixels).group_embeds[0]
    with torch.no_grad():
        model.background_constraint.vectors.copy_(groups[:2])
    outputs = model(pixel_values=pixels)
    ids = group_ids(outputs.group_maps, (32, 32))[0]
    found = outputs.background_scores[0] == 1
    nearest = torch.cat([model.class_embeddings, groups[:2]]) @ groups.T
    assert torch.equal(found, (nearest.argmax(0) >= 3)[ids])
    model.save_pretrained(tmp_path)
    again = GroupViTForSemanticSegmentation.from_pretrained(tmp_path).eval()
    assert torch.equal(again(pixel_values=pixels).logits, outputs.logits)


def test_wrong_calls_are_named(images):
    plain = tiny_model()
    with pytest.raises(ValueError, match=r"call set_labels"):
        calibrate_background_thresholds(plain, images)
    with pytest.raises(ValueError, match="at least one image"):
        calibrate_background_thresholds(with_labels(), [])
    with pytest.raises(ValueError, match=r"images\[0\]: the label map has 9"):
        calibrate_background_thresholds(with_labels(), [(torch.randn(3, 32, 32), torch.full((32, 32), 9))])
    with pytest.raises(ValueError, match=r"images\[0\]: a map of \(8, 8\)"):
        calibrate_background_thresholds(with_labels(), [(torch.randn(3, 32, 32), torch.zeros(8, 8).long())], window=16)
    with pytest.raises(ValueError, match="kind: 'both'"):
        learn_background(with_labels(), images, "both")
    with pytest.raises(ValueError, match="one threshold to start from"):
        learn_background(with_labels({"cat": 0.1, "dog": 0.2, "taco": 0.3}), images)
    model = with_labels()
    model.config.background = "learned"
    with pytest.raises(ValueError, match="nothing was learned"):
        model(pixel_values=images[0][0][None])
