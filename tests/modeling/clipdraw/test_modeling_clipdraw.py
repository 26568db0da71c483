"""CLIPDraw: what is optimised and what is not, ranges, prompts of all kinds, odd inputs."""

import pytest
import torch
from drawing_runs import draw_batch, draw_model
from tiny import tiny_tokenizer
from transformers import pipeline

from hf_clip_variants.modeling.strokes.stroke_drawing import StrokeDrawing
from hf_clip_variants.modeling.synthesis.stroke_samples import best_of


def test_drawings_come_near_to_an_embedding():
    model = draw_model(num_strokes=8)
    goal = model.embed_images(torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(1))).detach()
    found = model.generate(prompt_embeds=goal, seeds=[0, 1], num_steps=30)
    for result in found:
        values = [value for _, value in result.evaluations]
        assert values[-1] < values[0] and result.loss == values[-1] == pytest.approx(-result.similarity, abs=1e-5)
    assert best_of(found).loss == min(result.loss for result in found)


def test_only_strokes_are_optimised_and_stay_in_their_ranges():
    model = draw_model(max_radius=2.0, radii_lr=5.0, colors_lr=0.5).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = model.generate("a cat", tiny_tokenizer(), num_steps=8)[0]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training and all(p.grad is None and p.requires_grad for p in model.parameters())
    drawing, unit = result.drawing, model.config.unit
    assert drawing.radii.min() >= 1.0 * unit - 1e-6 and drawing.radii.max() <= 2.0 * unit + 1e-6
    assert drawing.colors.min() >= 0 and drawing.colors.max() <= 1
    assert len(drawing) == 5 and drawing.num_segments.min() >= 1 and drawing.num_segments.max() <= 3


def test_rates_fall_as_published_and_strokes_begin_as_published():
    model = draw_model(num_strokes=300, canvas_size=224)
    with model.frozen():
        loop = model.make_loop("a cat", tiny_tokenizer(), num_steps=100)
    sample = loop.samples[0]
    assert (sample.tensors["radii"] == 1).all() and sample.fixed["num_segments"].unique().tolist() == [1, 2, 3]
    steps = sample.tensors["points"].diff(dim=1).detach()
    assert steps.abs().max() <= 0.05 * 224 + 1e-3 and steps.abs().max() > 0.04 * 224
    rates = {}
    for step in range(100):
        with torch.no_grad():
            loop.task.after_step(sample, step, 100)
        rates[step + 1] = sample.optimizer.param_groups[0]["lr"]
    assert [rates[step] for step in (1, 49, 50, 74, 75, 99)] == pytest.approx([1, 1, 0.4, 0.4, 0.1, 0.1])
    assert [group["lr"] for group in sample.optimizer.param_groups[1:]] == [0.1, 0.01]


def test_a_drawing_is_the_same_alone_and_among_others():
    model, tokenizer = draw_model(), tiny_tokenizer()
    together = model.generate(["a dog", "a cat"], tokenizer, seeds=[4, 7], num_steps=4)
    assert [(one.prompt, one.seed) for one in together] == [("a dog", 4), ("a dog", 7), ("a cat", 4), ("a cat", 7)]
    alone = model.generate("a cat", tokenizer, seeds=7, num_steps=4)[0]
    assert torch.equal(alone.drawing.points, together[3].drawing.points) and alone.losses == together[3].losses


def test_prompts_of_all_kinds_change_the_loss():
    model, tokenizer = draw_model(), tiny_tokenizer()
    picture = torch.rand(3, 30, 20)
    plain = model.generate("a cat", tokenizer, num_steps=0)[0]
    for options in ({"negative_prompts": "a dog"}, {"image_prompts": [picture]}):
        other = model.generate("a cat", tokenizer, num_steps=0, **options)[0]
        assert other.loss != plain.loss and other.similarity == pytest.approx(plain.similarity, abs=1e-5)
    double = model.generate("a cat:2", tokenizer, num_steps=0)[0]
    assert double.loss == pytest.approx(2 * plain.loss, abs=1e-6)
    both = model.generate("a cat | a dog:-0.5", tokenizer, num_steps=0)[0]
    assert both.loss != plain.loss


def test_a_drawing_can_be_gone_on_from(tmp_path):
    model, tokenizer = draw_model(), tiny_tokenizer()
    first = model.generate("a cat", tokenizer, num_steps=3)[0].drawing
    first.save(tmp_path / "a.svg")
    start = StrokeDrawing.load(tmp_path / "a.svg")
    again = model.generate("a dog", tokenizer, num_steps=2, start=start)[0].drawing
    assert len(again) == len(first) and not torch.equal(again.points, first.points)
    with pytest.raises(ValueError, match="start: got str, expected a StrokeDrawing"):
        model.generate("a dog", tokenizer, start="a.svg", num_steps=1)
    start.filled = torch.ones(len(start), dtype=torch.bool)
    with pytest.raises(ValueError, match="start: it has filled areas"):
        model.generate("a dog", tokenizer, start=start, num_steps=1)


def test_long_texts_are_cut_and_bad_ones_refused(caplog):
    model, tokenizer = draw_model(), tiny_tokenizer()
    result = model.generate("cat " * 500, tokenizer, num_steps=1)[0]
    assert len(result.losses) == 1
    for prompts, said in (("", "prompts: ''"), (["a cat", " "], "prompts\\[1\\]"), ([], "prompts: none")):
        with pytest.raises(ValueError, match=said):
            model.generate(prompts, tokenizer, num_steps=1)
    for options, said in (
        ({"num_strokes": 0}, "num_strokes: 0"),
        ({"num_strokes": 10**7}, "num_strokes: 10000000"),
        ({"num_steps": -1}, "num_steps: -1"),
        ({"seeds": [1, 1]}, "seeds: \\[1, 1\\]"),
        ({"prompt_embeds": torch.zeros(1, 24)}, "prompts, prompt_embeds: give exactly one"),
    ):
        with pytest.raises(ValueError, match=said):
            model.generate("a cat", tokenizer, **options)
    with pytest.raises(ValueError, match="tokenizer: None"):
        model.generate("a cat")
    with pytest.raises(ValueError, match="prompt_embeds: got \\[1, 5\\]"):
        model.generate(prompt_embeds=torch.zeros(1, 5))


def test_many_views_in_parts_are_those_in_one_piece():
    whole, parts = (draw_model(views_at_once=count, num_augmentations=5) for count in (64, 2))
    found = [model.generate("a cat", tiny_tokenizer(), num_steps=3)[0] for model in (whole, parts)]
    assert found[0].losses == pytest.approx(found[1].losses, rel=1e-4)


def test_forward_wants_a_text_for_each_drawing_for_the_loss():
    model, batch = draw_model(), draw_batch(3)
    with pytest.raises(ValueError, match="input_ids: 2 texts, expected one for each of 3"):
        model(**batch | {"input_ids": batch["input_ids"][:2]}, return_loss=True)
    with pytest.raises(ValueError, match="input_ids: None"):
        model(points=batch["points"])
    assert model(points=batch["points"], input_ids=batch["input_ids"]).logits_per_image.shape == (3, 3)


def test_the_pipeline_draws_the_best_of_seeds():
    draw = pipeline("text-to-drawing", model=draw_model(), tokenizer=tiny_tokenizer())
    found = draw("a cat", seeds=[0, 1], num_steps=2)
    assert found["image"].size == (512, 512) and "<svg" in found["svg"] and found["seed"] in (0, 1)
    several = draw(["a cat", "a dog"], num_steps=1)
    assert len(several) == 2 and several[0]["svg"] != several[1]["svg"]
