"""Several dual encoders guide together, and stories are told chapter by chapter, by all models with prompts."""

from pathlib import Path

import pytest
import torch
from drawing_runs import draw_model, sketch_model
from painting_runs import paint_model
from tiny import tiny_clip, tiny_tokenizer
from tiny_families import FAMILIES, tiny_dual_encoder, tiny_family_inputs, tiny_family_tokenizer
from torch.nn import functional as F
from transformers import BertConfig, BertModel

from hf_clip_variants.modeling.synthesis.guide import GuideConfig
from hf_clip_variants.modeling.synthesis.guiding_prompts import Goal, Prompt
from hf_clip_variants.modeling.synthesis.stories import Story, parse_story


MODELS = {"drawing": draw_model, "painting": paint_model}
CHINESE = tiny_family_tokenizer("chinese_clip")


@pytest.fixture(params=MODELS)
def make(request):
    return MODELS[request.param]


def latest(result) -> torch.Tensor:
    return result.drawing.points if hasattr(result, "drawing") else result.latents


# ---- guides


def test_the_loss_is_the_weighted_mean_of_the_guides(make):
    """Each guide alone, with the same picture: the second has another size, family, tokenizer and normalisation."""
    numbers = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    other, resnet = tiny_dual_encoder("chinese_clip"), tiny_dual_encoder("clipv-clip_resnet")
    both = make().add_guide(other, 3.0, **numbers).add_guide(resnet, 0.5)
    tokenizers = [tiny_tokenizer(), CHINESE, tiny_tokenizer()]
    result = both.generate("红苹果 | a cat:-0.5", tokenizers, num_steps=0)[0]
    with both.frozen(), torch.no_grad():
        loop = both.make_loop("红苹果 | a cat:-0.5", tokenizers)
        images = loop.images()
        for guide, similarity, goal in zip(
            both.guides, result.similarities, loop.samples[0].goal.chapters[0], strict=True
        ):
            embeds = guide.embed_images(images)
            assert similarity == pytest.approx(float(torch.cosine_similarity(embeds, goal.embeds[:1])), abs=1e-5)
        alone = []
        for guide in both.guides:
            one = make()
            one.add_guide(guide.clip, 1.0, guide.config.image_mean, guide.config.image_std)
            one.config.guide_weights = [1e-9, 1.0]
            own = tokenizers[both.guides.index(guide)]
            alone.append(one.generate("红苹果 | a cat:-0.5", [tiny_tokenizer(), own], num_steps=0)[0].loss)
    assert both.guides[2].config.guide_size == 32 and both.guides[0].config.guide_size == 24
    assert result.loss == pytest.approx((alone[0] + 3 * alone[1] + 0.5 * alone[2]) / 4.5, abs=1e-5)
    assert result.similarity == result.similarities[0]


def test_several_guides_are_saved_and_make_the_same_picture(make, tmp_path):
    model = make().add_guide(tiny_dual_encoder("chinese_clip"), 2.0, image_mean=[0.4] * 3).add_guide(tiny_clip(seed=3))
    tokenizers = [tiny_tokenizer(), CHINESE, tiny_tokenizer()]
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.config.guide_weights == [1.0, 2.0, 1.0] and len(again.guides) == 3
    assert again.guides[1].config.backbone_model_type == "chinese_clip"
    assert again.guides[1].config.image_mean == [0.4] * 3
    state = again.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    found = [one.generate("一只猫 | a cat", tokenizers, num_steps=2)[0] for one in (model, again)]
    assert torch.equal(latest(found[0]), latest(found[1])) and found[0].losses == found[1].losses


def test_a_guide_changes_what_is_made_and_only_the_picture(make):
    alone = make().generate("a cat", tiny_tokenizer(), num_steps=2)[0]
    model = make().add_guide(tiny_clip(seed=3))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tokenizers = [tiny_tokenizer()] * 2
    together = model.generate(["a dog", "a cat"], tokenizers, num_steps=2)
    assert not torch.equal(latest(together[1]), latest(alone))
    assert torch.equal(latest(model.generate("a cat", tokenizers, num_steps=2)[0]), latest(together[1]))
    batched = model.generate(["a dog", "a cat"], tokenizers, num_steps=2, samples_at_once=2)
    assert batched[1].losses == pytest.approx(together[1].losses, rel=1e-3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_encodes_prompts_as_its_own_model_does(family):
    clip = tiny_dual_encoder(family)
    texts = ["猫", "一张金毛犬的照片"] if family == "chinese_clip" else ["a cat", "a photo of the golden retriever"]
    with torch.no_grad():
        expected = clip.get_text_features(**tiny_family_inputs(family, texts)).pooler_output
    guide = draw_model().add_guide(clip).guides[1]
    torch.testing.assert_close(
        guide.encode_prompts(texts, tiny_family_tokenizer(family)), expected, rtol=1e-4, atol=1e-4
    )


def test_chinese_prompts_alone():
    """A Chinese-CLIP as the only guide: drawings come nearer to what was asked for."""
    model = type(draw_model()).from_clip(tiny_dual_encoder("chinese_clip"), num_strokes=8, num_augmentations=2)
    found = model.generate("一个红苹果 | 黑色:-0.5", CHINESE, num_steps=12)[0]
    assert found.prompt == "一个红苹果 | 黑色:-0.5"
    values = [value for step, value in found.evaluations]
    assert values[-1] < values[0]


def test_bad_guides_are_named(make):
    model = make()
    for clip, options, said in (
        (torch.nn.Linear(2, 2), {}, "clip: got Linear, expected a dual encoder"),
        (model, {}, "clip: got .*ForImageSynthesis, expected a dual encoder"),
        (
            BertModel(BertConfig(num_hidden_layers=1, hidden_size=12, vocab_size=9)),
            {},
            "model_type 'bert' is not supported",
        ),
        (tiny_clip(), {"weight": 0.0}, "guide_weights: \\[1.0, 0.0\\]"),
        (tiny_clip(), {"weight": float("nan")}, "guide_weights"),
        (tiny_clip(), {"image_std": [0.0] * 3}, "image_std"),
    ):
        with pytest.raises(ValueError, match=said):
            model.add_guide(clip, **options)
    assert len(model.guides) == 1 and model.config.guide_weights is None and model.config.more_guides is None
    model.add_guide(tiny_clip(seed=3))
    for tokenizer, said in (
        (tiny_tokenizer(), "tokenizer: 1 for 2 guides, expected a list of one for each"),
        ([tiny_tokenizer()] * 3, "tokenizer: 3 for 2 guides"),
        (None, "tokenizer: None"),
        ([tiny_tokenizer(), 5], "tokenizer: got int"),
    ):
        with pytest.raises(ValueError, match=said):
            model.generate("a cat", tokenizer)
    embeds = torch.randn(2, 24)
    for given, said in (
        (embeds, "prompt_embeds: 1 tensors for 2 guides"),
        ([embeds, embeds[:1]], "prompt_embeds: \\[2, 1\\] prompts"),
        ([embeds, embeds[:, :3]], "prompt_embeds: got \\[2, 3\\]"),
        ([embeds, embeds * float("nan")], "prompt_embeds: got torch.float32, expected floats that are finite"),
    ):
        with pytest.raises(ValueError, match=said):
            model.generate(prompt_embeds=given)
    assert len(model.generate(prompt_embeds=[embeds, embeds], num_steps=1)) == 2


def test_sketches_are_compared_by_all_guides():
    """Layers, embedding and text by the first, embedding and text by the others, which see other sizes."""
    photo = torch.rand(3, 30, 40, generator=torch.Generator().manual_seed(0))
    numbers = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    both = sketch_model(num_augmentations=2)
    both.add_guide(tiny_dual_encoder("chinese_clip"), 3.0, **numbers).add_guide(
        tiny_dual_encoder("clipv-clip_resnet"), 0.5
    )
    options = {"texts": "一只猫", "seeds": 0, "num_steps": 0}
    tokenizers = [tiny_tokenizer(), CHINESE, tiny_tokenizer()]
    found = both.generate(photo, tokenizer=tokenizers, **options)[0]
    alone = sketch_model(num_augmentations=2).generate(photo, tokenizer=tiny_tokenizer(), **options)[0]
    losses, similarities = [alone.loss], [alone.similarity]
    with both.frozen(), torch.no_grad():
        loop = both.make_loop(photo, tokenizer=tokenizers, **options)
        images = loop.images(), loop.samples[0].goal.pixels[None]
        for guide, own in zip(both.guides[1:], tokenizers[1:], strict=True):
            text = guide.encode_prompts(["一只猫"], own)
            # In the loss they are resized to the largest guide's size first.
            views = [F.interpolate(one, (32, 32), mode="bilinear", antialias=True) for one in images]
            shown, wanted = (guide.embed_images(one) for one in views)
            cosines = [F.cosine_similarity(shown, one) for one in (wanted, text)]
            losses.append(float(0.1 * (1 - cosines[0]) + 0.1 * (1 - cosines[1])))
            similarities.append(float(F.cosine_similarity(*(guide.embed_images(one) for one in images))))
    assert found.loss == pytest.approx((losses[0] + 3 * losses[1] + 0.5 * losses[2]) / 4.5, abs=1e-5)
    assert found.similarities == pytest.approx(similarities, abs=1e-3) and found.similarity == found.similarities[0]
    points = found.drawing.points[None]
    pixels = both.as_guide_sees(F.interpolate(photo[None], (24, 24)))
    with torch.no_grad():
        output, first = both(points, pixels), sketch_model()(points, pixels)
    assert output.terms.shape[1] == first.terms.shape[1] + 2 and float(output.loss) == pytest.approx(
        float(output.terms.sum())
    )
    torch.testing.assert_close(output.terms[:, :-2], first.terms / 4.5, rtol=1e-4, atol=1e-6)


def test_guides_of_sketches_are_saved_and_make_the_same_sketch(tmp_path):
    photo = torch.rand(3, 30, 40, generator=torch.Generator().manual_seed(0))
    model = sketch_model().add_guide(tiny_dual_encoder("chinese_clip"), 2.0, image_mean=[0.4] * 3)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.config.guide_weights == [1.0, 2.0] and again.guides[1].config.image_mean == [0.4] * 3
    found = [one.generate(photo, seeds=0, num_steps=3)[0] for one in (model, again)]
    torch.testing.assert_close(latest(found[0]), latest(found[1]), rtol=1e-4, atol=1e-4)
    assert found[0].losses == pytest.approx(found[1].losses, rel=1e-4)
    assert not torch.allclose(
        latest(sketch_model().generate(photo, seeds=0, num_steps=3)[0]), latest(found[0]), atol=1e-2
    )
    with pytest.raises(ValueError, match="tokenizer: 1 for 2 guides, expected a list of one for each"):
        model.generate(photo, texts="a cat", tokenizer=tiny_tokenizer())


@pytest.mark.parametrize("make", [*MODELS.values(), sketch_model], ids=[*MODELS, "sketch"])
def test_bad_configurations_of_guides_are_named(make):
    model = make().add_guide(tiny_clip(seed=3))
    values, (good,) = model.config.to_dict(), model.config.more_guides
    for guides, weights, said in (
        ([{**good, "vision_config": {"hidden_size": 10**9}}], None, "more_guides\\[0\\]: .*hidden_size: 1000000000"),
        ([good, {"model_type": "bert"}], None, "more_guides\\[1\\]: .*'bert' is not supported"),
        ([{**good, "text_config": {"model_type": "bert"}}], None, "more_guides\\[0\\]: text_config.model_type"),
        ([{**good, "image_mean": [0.5]}], None, "more_guides\\[0\\]: image_mean"),
        ([good] * 9, None, "more_guides: 9, expected at most 7"),
        ([5], None, "more_guides"),
        ("x", None, "more_guides"),
        ([good], [1.0], "guide_weights: \\[1.0\\], expected 2"),
        ([good], [1.0, -1.0], "guide_weights"),
        ([good], ["a", 1.0], "guide_weights"),
        (None, [1.0, 1.0], "guide_weights: \\[1.0, 1.0\\], expected 1"),
    ):
        with pytest.raises(ValueError, match=said):
            type(model.config)(**values | {"more_guides": guides, "guide_weights": weights})
    plain = tiny_clip().config.to_dict()
    assert GuideConfig.of(plain, "x").vision_config.hidden_size == 40


# ---- numbers and memory


@pytest.mark.parametrize("name", ["drawing", "painting", "sketch"])
def test_every_precision_works_on_a_cpu(name):
    """Also under autocast. What is optimised is float32, and the losses are nearly those of float32."""
    make = MODELS.get(name, sketch_model)
    given = (
        (torch.rand(3, 30, 40, generator=torch.Generator().manual_seed(0)),)
        if name == "sketch"
        else ("a cat", tiny_tokenizer())
    )
    expected = make().generate(*given, seeds=0, num_steps=2)[0]
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        found = make().to(dtype).generate(*given, seeds=0, num_steps=2)[0]
        assert found.losses == pytest.approx(expected.losses, rel=0.03) and latest(found).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        found = make().generate(*given, seeds=0, num_steps=2)[0]
    assert found.losses == pytest.approx(expected.losses, rel=0.03) and latest(found).dtype == torch.float32


def test_the_same_seed_makes_the_same_picture_again(make):
    """Two runs, and one of four pictures, two in a pass: equal, and equal up to rounding."""
    runs = [make().generate("a cat", tiny_tokenizer(), seeds=[1, 2], num_steps=2) for _ in range(2)]
    assert all(torch.equal(latest(one), latest(other)) for one, other in zip(*runs, strict=True))
    pairs = make().generate(["a dog", "a cat"], tiny_tokenizer(), seeds=[1, 2], num_steps=2, samples_at_once=2)
    assert [one.losses for one in pairs[2:]] == [pytest.approx(one.losses, rel=1e-3) for one in runs[0]]


def peak_bytes(run) -> int:
    """Of the resident memory while it runs, above what there was before."""

    def of(name):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])

    before = of("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    run()
    return of("VmHWM") - before


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from /proc")
def test_memory_does_not_grow_with_the_steps(make):
    model, tokenizer = make(), tiny_tokenizer()
    model.generate("a cat", tokenizer, num_steps=2)  # what libraries set up once
    few, many = (peak_bytes(lambda n=n: model.generate("a cat", tokenizer, num_steps=n)) for n in (4, 40))
    assert many < few + 8e6


def kept_bytes(run) -> int:
    """That autograd keeps for the backward pass of what `run` computes."""
    found = 0

    def pack(tensor):
        nonlocal found
        found += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return found


def test_views_in_parts_keep_less_for_the_backward_pass(make):
    """What a step keeps grows with the views if they are seen all at once, and does not in parts of four."""

    def kept(count: int, at_once: int) -> int:
        model = make(views_at_once=at_once, **{"num_augmentations" if make is draw_model else "num_cuts": count})
        with model.frozen():
            loop = model.make_loop("a cat", tiny_tokenizer())
            return kept_bytes(lambda: loop.task.losses(loop.samples, 0))

    grown = {at_once: kept(40, at_once) - kept(8, at_once) for at_once in (64, 4)}
    assert grown[64] > 2e6 and grown[4] < 0.02 * grown[64]


# ---- stories


def test_chapters_of_a_story_come_one_after_the_other(make):
    assert [[p.text for p in part] for part in parse_story("a|b^c")] == [["a", "b"], ["c"]]
    model, tokenizer = make(), tiny_tokenizer()
    goals = []
    with model.frozen():
        loop = model.make_loop("a cat ^ a dog:-0.5", tokenizer, num_steps=4)
        loop.run(lambda loop: goals.append(loop.samples[0].goal.goals(loop.step - 1, 4)[0].weights.item()))
    assert goals == [1.0, 1.0, -0.5, -0.5]
    story, first = (model.generate(text, tokenizer, num_steps=4)[0] for text in ("a cat ^ a dog", "a cat"))
    assert story.losses[0] == first.losses[0] and story.losses[2:] != first.losses[2:]
    for text in ("a^", "^".join("a" * 100), "^"):
        with pytest.raises(ValueError, match="prompts"):
            model.generate(text, tokenizer)


def test_extra_goals_are_in_every_chapter():
    def goal(number, weight):
        return Goal.of(torch.full((1, 3), float(number)), [Prompt("x", weight)])

    story = Story("a^b", [[goal(1, 1.0), goal(2, 1.0)], [goal(3, 1.0), goal(4, 1.0)]])
    more = story.joined([[goal(5, -0.3)], [goal(6, 0.5), goal(7, 2.0)]])
    assert [[one.embeds[:, 0].tolist() for one in goals] for goals in more.chapters] == [
        [[1, 5], [2, 6, 7]], [[3, 5], [4, 6, 7]],
    ]  # fmt: skip
    assert more.chapters[1][1].weights.tolist() == [1.0, 0.5, 2.0]
    assert [story.chapter_at(done, 5) for done in range(6)] == [0, 0, 0, 1, 1, 1]
    assert [round(story.share(done, 5), 2) for done in range(6)] == [0, 0.4, 0.8, 0.2, 0.6, 1]


def test_the_points_rate_falls_within_each_chapter():
    model, rates = draw_model(), []
    with model.frozen():
        loop = model.make_loop("a cat ^ a dog", tiny_tokenizer(), num_steps=8)
        loop.run(lambda loop: rates.append(loop.samples[0].optimizer.param_groups[0]["lr"] / model.config.unit))
    # After each step, that of the next one.
    assert rates == pytest.approx([1, 0.4, 0.1, 1, 1, 0.4, 0.1, 0.1])
