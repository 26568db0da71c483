"""The constraint on background in training."""

import math

import pytest
import torch
from torch.nn import functional as F

from hf_clip_variants.modeling.groupvit.background_constraint import PARTS, BackgroundConstraint, background_losses


def random_batch(seed: int = 0, images=3, groups=4, nouns=2, width=6, vectors=2):
    generator = torch.Generator().manual_seed(seed)

    def unit(*shape):
        return F.normalize(torch.randn(*shape, generator=generator).double(), dim=-1).float()

    areas = torch.rand(images, groups, generator=generator)
    ids = torch.arange(images * nouns).reshape(images, nouns)
    return (
        unit(images, groups, width),
        areas / areas.sum(1, keepdim=True),
        unit(images, nouns, width),
        ids,
        unit(vectors, width),
    )


def by_loops(groups, areas, nouns, ids, background, scale, low, high, margin, over_groups):
    positive, negative, area, near = [], [], [], []
    for i in range(len(ids)):
        own = {}
        for m, word in enumerate(ids[i].tolist()):
            if word >= 0:
                own.setdefault(word, nouns[i, m])
        others = [nouns[j, m] for j in range(len(ids)) for m in range(ids.shape[1])]
        other_ids = [ids[j, m].item() for j in range(len(ids)) for m in range(ids.shape[1])]
        others = [v for v, word in zip(others, other_ids, strict=True) if word >= 0 and word not in own]
        rows = torch.stack([*own.values(), *others, *background])
        p = (scale * groups[i] @ rows.T).softmax(-1)
        for n in range(len(own)):
            positive.append(-(p[:, n].max() if over_groups == "max" else p[:, n].mean()).log())
        negative += (-(1 - p[:, len(own) : len(own) + len(others)].sum(1)).log()).tolist()
        a = (areas[i] * p[:, len(own) + len(others) :].sum(1)).sum()
        area.append(max(0, low - a) + max(0, a - high))
    for row, words in zip(nouns, ids, strict=True):
        near += [max(0.0, (row[m] @ background.T).max() - margin) for m in range(len(words)) if words[m] >= 0]
    return [torch.as_tensor(part).double().mean().item() for part in (torch.stack(positive), negative, area, near)]


@pytest.mark.parametrize("over_groups", ["max", "mean"])
def test_parts_are_those_of_loops(over_groups):
    batch = random_batch()
    batch[3][:] = torch.tensor([[7, 3], [3, 9], [4, -1]])  # a word of two images, and a padding
    options = (4.0, 0.3, 0.4, 0.1, over_groups)
    parts = background_losses(*batch, *options)
    for name, wanted in zip(PARTS, by_loops(*batch, *options), strict=True):
        assert getattr(parts, name).item() == pytest.approx(wanted, rel=1e-5, abs=1e-6), name


def test_the_same_word_in_another_image_is_no_negative():
    groups, areas, nouns, ids, background = random_batch(images=2, nouns=1)
    nouns[1] = nouns[0]
    apart = background_losses(groups, areas, nouns, ids, background, 10.0)
    same = background_losses(groups, areas, nouns, torch.zeros_like(ids), background, 10.0)
    assert same.negative.abs().item() < 1e-6 < apart.negative.item()
    assert same.positive < apart.positive


def test_repeated_nouns_count_once():
    groups, areas, nouns, ids, background = random_batch()
    twice = background_losses(groups, areas, nouns.repeat(1, 2, 1), ids.repeat(1, 2), background, 5.0)
    once = background_losses(groups, areas, nouns, ids, background, 5.0)
    # In another image a repeated word is a candidate twice, so only an image alone is the same.
    one = [
        background_losses(groups[:1], areas[:1], n, i, background, 5.0).positive
        for n, i in ((nouns[:1], ids[:1]), (nouns[:1].repeat(1, 2, 1), ids[:1].repeat(1, 2)))
    ]
    assert torch.allclose(*one) and twice.positive > once.positive


def test_the_area_part_keeps_the_background_inside_its_bounds():
    """Alone, it moves the background area of every image into the bounds from both sides."""
    for start in (-3.0, 3.0):  # background vectors that are far from, or near to, all groups
        groups, areas, nouns, ids, _ = random_batch(seed=1)
        groups = F.normalize(groups + torch.eye(6)[0] * 2, dim=-1)
        module = BackgroundConstraint(1, 6, min_area=0.3, max_area=0.6)
        module.start_from(torch.eye(6)[:1] * start)
        offset = torch.zeros(3, 4, 6, requires_grad=True)
        optimizer = torch.optim.Adam([offset, *module.parameters()], lr=0.05)
        for step in range(50):
            parts = module(F.normalize(groups + offset, dim=-1), areas, nouns, ids, 5.0)
            if step == 0:
                outside = parts.background_area.clone()
            optimizer.zero_grad()
            parts.area.backward()
            optimizer.step()
        assert ((outside < 0.3) | (outside > 0.6)).any()
        assert ((parts.background_area > 0.29) & (parts.background_area < 0.61)).all()


def test_gradients_are_finite_and_reach_groups_nouns_and_vectors():
    groups, areas, nouns, ids, background = random_batch()
    ids[0, 1] = -1
    tensors = [t.clone().requires_grad_() for t in (groups, nouns, background)]
    area = areas.clone().requires_grad_()
    parts = background_losses(tensors[0], area, tensors[1], ids, tensors[2], 30.0, 0.4, 0.5, -1.0)
    parts.total().backward()
    assert all(t.grad.isfinite().all() and t.grad.abs().sum() > 0 for t in tensors) and area.grad is None


def test_a_batch_without_nouns_has_an_area_only():
    groups, areas, nouns, ids, background = random_batch()
    parts = background_losses(groups, areas, nouns, torch.full_like(ids, -1), background, 5.0)
    assert parts.positive == 0 and parts.separation == 0 and parts.negative.abs() < 1e-6
    assert torch.allclose(parts.background_area, torch.ones(3)) and math.isclose(parts.area.item(), 0.05, rel_tol=1e-4)


def test_weights_of_zero_leave_nothing():
    parts = background_losses(*random_batch(), 5.0)
    assert parts.total((0, 0, 0, 0)) == 0
    assert parts.total((1, 0, 0, 0)) == parts.positive


def tiny_groupvit(**options):
    from hf_clip_variants import GroupViTConfig, GroupViTModel

    torch.manual_seed(0)
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    vision = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 16, "patch_size": 4}
    vision |= {"depths": [1, 1], "num_group_tokens": [6, 0], "num_output_groups": [4], "drop_path_rate": 0.0}
    text |= {"vocab_size": 50, "eos_token_id": 49}
    sizes = {"projection_dim": 16, "projection_intermediate_dim": 32}
    made = [GroupViTModel(GroupViTConfig(text_config=text, vision_config=vision, **sizes, **o)) for o in ({}, options)]
    made[1].load_state_dict(made[0].state_dict(), strict=False)  # the same weights with every option
    return made[1].train()


def tiny_batch():
    generator = torch.Generator().manual_seed(3)
    prompts = torch.randint(1, 48, (4, 2, 5), generator=generator)
    prompts[..., -1] = 49
    captions, pixels = prompts[:, 0].flip(0), torch.randn(4, 3, 16, 16, generator=generator)
    words = torch.arange(8).reshape(4, 2)
    return {"input_ids": captions, "pixel_values": pixels, "prompt_input_ids": prompts, "prompt_word_ids": words}


def loss_and_gradients(model):
    torch.manual_seed(1)  # the Gumbel noise
    outputs = model(**tiny_batch(), return_loss=True)
    outputs.loss.backward()
    return outputs, {name: p.grad for name, p in model.named_parameters()}


def test_training_without_weights_is_plain_training_and_the_parts_are_reported():
    _, plain = loss_and_gradients(tiny_groupvit())
    weightless, gradients = loss_and_gradients(tiny_groupvit(num_background_vectors=3))
    assert all(torch.equal(gradients[name], plain[name]) for name in plain)
    assert gradients["background_constraint.vectors"].abs().max() == 0
    assert len(weightless.background_losses) == 4 and weightless.background_areas.shape == (4,)
    total = weightless.contrastive_loss + weightless.multi_label_loss
    assert torch.equal(weightless.loss, total)
    weighted, gradients = loss_and_gradients(tiny_groupvit(num_background_vectors=3, background_weights=[1, 2, 3, 4]))
    parts = sum(w * part for w, part in zip((1, 2, 3, 4), weighted.background_losses, strict=True))
    assert torch.allclose(weighted.loss, total + parts) and gradients["background_constraint.vectors"].abs().max() > 0
    assert not torch.equal(gradients["vision_model.layernorm.weight"], plain["vision_model.layernorm.weight"])


def test_the_projection_keeps_its_statistics_of_whole_images():
    plain, constrained = tiny_groupvit(), tiny_groupvit(num_background_vectors=3, background_weights=[1, 1, 1, 1])
    for model in (plain, constrained):
        loss_and_gradients(model)
    assert torch.equal(plain.visual_projection[1].running_mean, constrained.visual_projection[1].running_mean)
    assert constrained.visual_projection[1].training


def test_training_keeps_the_area_inside_its_bounds_and_without_the_part_it_does_not():
    """From background vectors that take everything; only images and vectors differ between steps."""
    areas = {}
    for weight in (0.0, 20.0):
        model = tiny_groupvit(
            num_background_vectors=1, background_weights=[0, 0, weight, 0], background_area=[0.3, 0.6]
        )
        with torch.no_grad():
            outputs = model(**tiny_batch(), return_loss=True)
            groups = model.group_embeds_of(outputs.vision_model_output)
            model.background_constraint.start_from(groups.mean((0, 1))[None])
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
        for _ in range(40):
            optimizer.zero_grad()
            outputs = model(**tiny_batch(), return_loss=True)
            outputs.loss.backward()
            optimizer.step()
        areas[weight] = outputs.background_areas
    assert (areas[20.0] <= 0.65).all() and (areas[20.0] >= 0.25).all(), areas
    assert areas[0.0].max() > 0.65, areas


def test_the_constraint_wants_the_numbers_of_words():
    model, batch = tiny_groupvit(num_background_vectors=3, background_weights=[1, 1, 1, 1]), tiny_batch()
    del batch["prompt_word_ids"]
    with pytest.raises(ValueError, match="prompt_word_ids: missing"):
        model(**batch, return_loss=True)
    model.eval()
    assert model(**batch, return_loss=True).background_losses is None


@pytest.mark.parametrize(
    "options, message",
    [
        ({"background_weights": [1, 0, 0, 0]}, "num_background_vectors is 0"),
        ({"background_weights": [1, 0]}, "four numbers"),
        ({"background_area": [0.9, 0.1]}, "background_area"),
        ({"background": "learned", "background_rule": "vectors"}, "num_background_vectors is 0"),
        ({"background_rule": "other"}, "background_rule"),
    ],
)
def test_wrong_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        tiny_groupvit(**options)


def test_wrong_shapes_are_named():
    groups, areas, nouns, ids, background = random_batch()
    with pytest.raises(ValueError, match="areas: shape"):
        background_losses(groups, areas[:, :2], nouns, ids, background, 5.0)
    with pytest.raises(ValueError, match="noun_embeddings: shape"):
        background_losses(groups, areas, nouns[:2], ids, background, 5.0)
    with pytest.raises(ValueError, match="at least one vector"):
        background_losses(groups, areas, nouns, ids, background[:0], 5.0)
    with pytest.raises(ValueError, match="min_area"):
        background_losses(groups, areas, nouns, ids, background, 5.0, 0.9, 0.1)
