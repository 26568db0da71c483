"""CLIPasso: where strokes begin, what the loss does, best of seeds, masks, odd pictures."""

import math

import numpy as np
import pytest
import torch
from drawing_runs import sketch_model
from PIL import Image
from tiny import tiny_tokenizer
from transformers import pipeline

from hf_clip_variants import CLIPassoForImageSynthesis, CLIPResNetConfig, CLIPResNetModel
from hf_clip_variants.modeling.clipasso.losses_clipasso import perceptual_losses
from hf_clip_variants.modeling.clipasso.modeling_clipasso import prepared_pictures
from hf_clip_variants.modeling.clipasso.saliency_clipasso import drawn_starts, edge_map, start_probabilities
from hf_clip_variants.modeling.strokes.stroke_rasterizer import render_strokes
from hf_clip_variants.modeling.synthesis.stroke_samples import best_of
from hf_clip_variants.modeling.synthesis.synthesis_loop import SynthesisLoop


def disc(size: int = 48) -> torch.Tensor:
    """A red disc on white."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    inside = (x - 20) ** 2 + (y - 26) ** 2 < 144
    return torch.where(inside, torch.tensor([0.8, 0.1, 0.1])[:, None, None], 1.0)


def resnet_model(**options) -> CLIPassoForImageSynthesis:
    torch.manual_seed(0)
    text = {
        "vocab_size": 99,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "projection_dim": 20,
    }
    vision = {"hidden_size": 256, "depths": [1, 1, 1, 1], "num_attention_heads": 8, "image_size": 32}
    config = CLIPResNetConfig(text_config=text, vision_config=vision, projection_dim=20)
    return CLIPassoForImageSynthesis.from_clip(CLIPResNetModel(config).eval(), num_strokes=4, **options)


def test_equal_pictures_have_no_loss_and_layers_without_weight_no_term():
    model = sketch_model()
    image = torch.rand(1, 3, 24, 24, requires_grad=True)
    layers, features, _ = model.image_layers(model.as_guide_sees(image))
    pairs = [one[None] for one in layers], [one[None].detach() for one in layers]
    terms = perceptual_losses(*pairs, features[None], features[None].detach(), [0.0, 1.0, 0.5], 0.1)
    assert list(terms) == ["layer1", "layer2", "features"]
    total = sum(terms.values())
    total.sum().backward()
    assert total.item() == pytest.approx(0, abs=1e-6) and image.grad.abs().max() < 1e-4


@pytest.mark.parametrize("make", [sketch_model, resnet_model])
def test_sketches_come_near_to_a_drawing(make):
    """The target is a drawing of four strokes."""
    model = make(points_lr=5.0, min_delta=0.0)
    size = model.config.canvas
    points = size * torch.rand(1, 4, 4, 2, generator=torch.Generator().manual_seed(5))
    colors = torch.tensor([0.0, 0.0, 0.0, 1.0]).expand(1, 4, 4)
    target = render_strokes(points, torch.full((1, 4), 1.0), colors, height=size, width=size)[0]
    found = model.generate(target, seeds=[0, 1], num_steps=40)
    for result in found:
        values = [value for _, value in result.evaluations]
        assert result.loss == min(values) < 0.95 * values[0]
        assert len(result.drawing) == 4 and (result.drawing.colors[:, :3] == 0).all()
    assert best_of(found).loss == min(result.loss for result in found)


def test_strokes_begin_at_salient_edges():
    model, picture = sketch_model(), disc(224)
    saliency = torch.zeros(224, 224)
    saliency[:, :20] = 1
    chances = model.start_probabilities(picture, saliency)
    assert chances.sum().item() == pytest.approx(1, abs=1e-3) and (chances[:, 21:] == 0).all()
    starts = drawn_starts(chances, 8, torch.Generator().manual_seed(0))
    assert (starts[:, 0] * 224 < 21).all() and len(starts.unique(dim=0)) == 8
    own = model.saliency_map(picture)
    assert own.shape == (224, 224) and own.min() == 0 and own.max() == 1


def test_encoders_without_class_token_are_asked_by_occlusion():
    model = resnet_model()
    found = model.saliency_map(disc())
    assert found.shape == (224, 224) and found.min() == 0 and found.max() == 1


def test_black_pictures_and_few_possible_pixels_have_starts():
    black = torch.zeros(3, 30, 30)
    model = sketch_model()
    result = model.generate(black, seeds=0, num_steps=2)[0]
    assert len(result.drawing) == 4 and result.drawing.points.isfinite().all()
    assert (edge_map(torch.zeros(3, 40, 40)) == 1).all()
    chances = torch.zeros(10, 10)
    chances[2, 3] = 1.0
    starts = drawn_starts(chances, 5, torch.Generator().manual_seed(0))
    assert len(starts.unique(dim=0)) == 5 and [0.3, 0.2] in [[round(v, 2) for v in row] for row in starts.tolist()]
    nothing = start_probabilities(torch.zeros(6, 6), None, 0.3)
    assert (nothing == 1 / 36).all()
    with pytest.raises(ValueError, match="num_strokes: 101, expected at most 100"):
        drawn_starts(chances, 101, torch.Generator())


def test_masks_make_the_rest_white_and_pictures_of_any_kind_are_taken(tmp_path):
    picture = disc()
    mask = picture[1] < 0.5
    prepared = prepared_pictures(torch.cat([picture[:2], picture[2:]]), mask)[0]
    assert torch.equal(prepared, picture)
    half = torch.zeros(48, 48, dtype=torch.bool)
    half[:24] = True
    assert (prepared_pictures(picture, half)[0][:, 24:] == 1).all()
    pil_mask = Image.fromarray((half.numpy() * 255).astype("uint8"))
    assert torch.equal(prepared_pictures(picture, pil_mask)[0], prepared_pictures(picture, half)[0])
    clear = Image.new("RGBA", (40, 20), (0, 0, 0, 0))
    assert (prepared_pictures(clear)[0] == 1).all()
    assert prepared_pictures(Image.new("L", (40, 20)), pad=True)[0].shape == (3, 48, 48)
    with pytest.raises(ValueError, match="masks\\[0\\]: no pixel is inside"):
        prepared_pictures(picture, torch.zeros(48, 48))
    with pytest.raises(ValueError, match="masks: 1, expected one for each of 2"):
        prepared_pictures([picture, picture], [half])
    with pytest.raises(ValueError, match="images: none"):
        prepared_pictures([])
    with pytest.raises(ValueError, match="saliency: 1 maps, expected one for each of 2"):
        sketch_model().generate([picture, picture], saliency=torch.rand(9, 9), num_steps=1)


def test_masks_are_taken_as_pipelines_give_them():
    picture = disc()
    half = np.zeros((48, 48), dtype=bool)
    half[:24] = True
    wanted = prepared_pictures(picture, torch.from_numpy(half))[0]
    segmentation = [{"score": None, "label": "disc", "mask": Image.fromarray(half.astype("uint8") * 255)}]
    generation = {"masks": [half, ~half], "scores": torch.tensor([0.9, 0.8])}
    for mask in (segmentation[0], segmentation[0]["mask"], generation["masks"][0], torch.from_numpy(half).float()):
        assert torch.equal(prepared_pictures(picture, mask)[0], wanted)
    both = prepared_pictures([picture, picture], generation["masks"])
    assert torch.equal(both[0], wanted) and (both[1][:, :24] == 1).all()
    for wrong in (segmentation, generation, half[None], "mask.png", float("nan") * np.ones((48, 48))):
        with pytest.raises(ValueError, match="masks"):
            prepared_pictures(picture, wrong)


def test_opacity_and_colours_change_only_if_they_are_asked_for():
    for options, changed in (
        ({}, (False, False)),
        ({"optimize_opacity": True}, (False, True)),
        ({"optimize_colors": True}, (True, False)),
    ):
        # Of a white picture, strokes are best when they are not seen.
        model = sketch_model(colors_lr=0.1, min_delta=0.0, **options)
        drawing = model.generate(torch.ones(3, 24, 24), seeds=0, num_steps=10)[0].drawing
        assert bool((drawing.colors[:, :3] != 0).any()) == changed[0]
        assert bool((drawing.colors[:, 3] != 1).any()) == changed[1]
        assert drawing.colors.min() >= 0 and drawing.colors.max() <= 1


def test_strokes_are_added_in_stages():
    model = sketch_model(num_stages=3, min_delta=1e3, evaluate_every=2)
    seen = []

    def look(loop):
        seen.append((loop.samples[0].tensors["colors"][:, 3] > 0).tolist())

    found = model.generate(disc(), seeds=0, num_strokes=5, num_steps=6, callback=look)[0]
    assert [sum(row) for row in seen] == [2, 4, 4, 5, 5, 5] and all(row == sorted(row)[::-1] for row in seen)
    # Best is the best with all strokes, and no stage ends early.
    last = [value for step, value in found.evaluations if step > 4]
    assert len(found.losses) == 6 and len(found.drawing) == 5 and found.loss <= min(last)
    assert (found.drawing.colors == torch.tensor([0.0, 0.0, 0.0, 1.0])).all()
    stopped = model.generate(disc(), seeds=0, num_strokes=5, num_steps=6, callback=lambda loop: loop.step < 2)[0]
    assert len(stopped.drawing) == 4 and stopped.loss < float("inf")
    # Of strokes that are not there yet, no point moves.
    with model.frozen():
        loop = model.make_loop(disc(), seeds=0, num_strokes=5, num_steps=6)
        start = loop.samples[0].tensors["points"].detach().clone()
        loop.advance()
    moved = (loop.samples[0].tensors["points"] != start).flatten(1).any(1).tolist()
    assert moved == [True, True, False, False, False]
    with pytest.raises(ValueError, match="num_stages: 3, expected at most num_strokes, 2"):
        model.generate(disc(), num_strokes=2, num_steps=1)


def test_a_run_with_stages_goes_on_as_it_would_have():
    model = sketch_model(num_stages=2, optimize_opacity=True)
    with model.frozen():
        whole, first, second = (model.make_loop(disc(), seeds=1, num_steps=6) for _ in range(3))
        whole.run()
        first.run(lambda loop: loop.step < 3)
        second.load_state_dict(first.state_dict())
        second.run()
    for name in ("points", "colors"):
        assert torch.equal(whole.samples[0].tensors[name], second.samples[0].tensors[name])


def test_colours_begin_as_the_picture_s():
    model = sketch_model(optimize_colors=True, use_edges=False)
    found = model.generate(torch.tensor([0.2, 0.5, 0.9])[:, None, None].expand(3, 30, 40), seeds=0, num_steps=0)[0]
    assert torch.allclose(found.drawing.colors, torch.tensor([0.2, 0.5, 0.9, 1.0]), atol=1e-3)


def test_texts_pull_sketches_towards_them():
    model, tokenizer = sketch_model(text_weight=100.0, points_lr=5.0, min_delta=0.0), tiny_tokenizer()
    options = {"seeds": 0, "num_steps": 8}
    with torch.no_grad():
        wanted = model.encode_prompts(["a cat"], tokenizer)

    def nearness(found):
        with torch.no_grad():
            features = model.embed_images(found[0].drawing.render()[None])
        return float(torch.cosine_similarity(features, wanted))

    told = model.generate(disc(), texts="a cat", tokenizer=tokenizer, **options)
    untold = model.generate(disc(), **options)
    assert nearness(told) > nearness(untold) + 0.01
    with pytest.raises(ValueError, match="texts: .*expected one that is not empty for each of 1 pictures"):
        model.generate(disc(), texts=["a", "b"], tokenizer=tokenizer)
    with pytest.raises(ValueError, match="tokenizer: None"):
        model.generate(disc(), texts="a cat")


def test_any_distance_between_pictures_may_be_added():
    weights = {"layer_weights": [0.0, 0.0, 0.0], "feature_weight": 0.0, "perceptual_weight": 2.0}
    model = sketch_model(points_lr=5.0, min_delta=0.0, **weights)

    def squares(sketch, photo):
        assert sketch.shape == photo.shape == (len(sketch), 3, 24, 24) and 0 <= photo.min() <= photo.max() <= 1
        return (sketch - photo).square().flatten(1).mean(1)

    found = model.generate(disc(), seeds=0, num_steps=20, perceptual=squares)[0]
    pixels = torch.nn.functional.interpolate(disc()[None], (24, 24), mode="bicubic", antialias=True).clamp(0, 1)
    assert found.loss == pytest.approx(2 * float(squares(found.drawing.render()[None], pixels)), rel=1e-4)
    assert found.loss < found.evaluations[0][1]
    with pytest.raises(ValueError, match="perceptual: returned \\[\\], expected one number for each of 1 pairs"):
        model.generate(disc(), seeds=0, num_steps=1, perceptual=lambda a, b: (a - b).square().mean())
    with pytest.raises(ValueError, match="perceptual: str, expected a callable"):
        model.generate(disc(), perceptual="lpips")


def test_a_sketch_is_the_same_alone_and_among_others():
    model = sketch_model()
    together = model.generate([disc(), 1 - disc()], seeds=[3, 4], num_steps=3)
    alone = model.generate(1 - disc(), seeds=4, num_steps=3)[0]
    assert torch.equal(alone.drawing.points, together[3].drawing.points) and alone.losses == together[3].losses


def test_the_pipeline_sketches_files(tmp_path):
    picture = Image.fromarray((disc() * 255).byte().permute(1, 2, 0).numpy())
    picture.save(tmp_path / "disc.png")
    sketch = pipeline("image-to-drawing", model=sketch_model(), tokenizer=tiny_tokenizer())
    found = sketch(str(tmp_path / "disc.png"), seeds=[0, 1], num_steps=2)
    assert found["image"].size == (512, 512) and found["svg"].count("<path") == 4
    assert sketch(picture, seeds=[0, 1], num_steps=2)["svg"] == found["svg"]


def test_sketches_of_unequal_numbers_of_strokes_go_through_the_guide_together():
    """As on a GPU: one loop over photographs and numbers of strokes, several samples at once."""
    model = sketch_model(points_lr=2.0, min_delta=0.0)
    pictures, options = [disc(), 1 - disc()], {"seeds": 3, "num_steps": 3}
    with model.frozen():
        parts = [model.make_loop(pictures, num_strokes=count, samples_at_once=2, **options) for count in (4, 2)]
        samples = [sample for pair in zip(*(part.samples for part in parts), strict=True) for sample in pair]
        loop = SynthesisLoop(parts[0].task, samples, 3, parts[0].samples_at_once, keep_best=True)
        first = loop.images()
        loop.run()
        found = model.results(loop)
    assert [len(one.drawing) for one in found] == [4, 2, 4, 2] and first.shape == (4, 3, 24, 24)
    alone = [model.generate(picture, num_strokes=count, **options)[0] for picture in pictures for count in (4, 2)]
    for one, other, image, sample in zip(found, alone, loop.images(), samples, strict=True):
        assert torch.allclose(one.drawing.points, other.drawing.points, atol=1e-3)
        assert one.losses == pytest.approx(other.losses, rel=1e-4)
        assert torch.allclose(image, loop.images([sample])[0], atol=1e-6)


# ---- strokes that begin along edges


def begun_along_edges(picture, count: int, seeds=0, **options):
    model = sketch_model(start="edges", min_delta=0.0, **options)
    return model.generate(picture, num_strokes=count, seeds=seeds, num_steps=0)


def curves(points: torch.Tensor) -> torch.Tensor:
    """(N, 4, 2) -> (N, 20, 2) places on the cubics."""
    t = torch.linspace(0, 1, 20)[:, None]
    return sum(math.comb(3, k) * t**k * (1 - t) ** (3 - k) * points[:, k, None] for k in range(4))


def test_strokes_begin_along_the_longest_edges():
    few, many = (begun_along_edges(disc(), count)[0].drawing for count in (1, 2))
    found = curves(many.points)
    away = (found - torch.tensor([20.5, 26.5]) / 2).norm(dim=-1) - 6  # from the circle of `disc`, on a canvas of 24
    lengths = (found[:, 1:] - found[:, :-1]).norm(dim=-1).sum(1)
    assert away.abs().max() < 0.8 and lengths.min() > 10
    assert torch.equal(few.points, many.points[:1])
    joined = begun_along_edges(disc(), 1, num_segments=2)[0].drawing  # one stroke is the whole circle
    assert joined.points.shape == (1, 7, 2) and (joined.points[0, 0] - joined.points[0, -1]).norm() < 3


def test_where_edges_are_fewer_than_strokes_the_others_begin_at_salient_points():
    some = begun_along_edges(disc(), 60, [0, 1])
    plain = sketch_model(min_delta=0.0).generate(disc(), num_strokes=60, seeds=0, num_steps=0)[0]
    points = some[0].drawing.points
    same = (points == plain.drawing.points).flatten(1).all(1)
    assert same.any() and not same.all() and same[int(same.int().argmax()) :].all()
    assert torch.equal(some[1].drawing.points[~same], points[~same])  # edges are the same for every seed
    assert not torch.equal(some[1].drawing.points[same], points[same])
    for flat in (torch.zeros(3, 20, 30), torch.ones(3, 1, 1)):
        found = begun_along_edges(flat, 4)[0].drawing.points
        assert torch.equal(found, sketch_model().generate(flat, seeds=0, num_steps=0)[0].drawing.points)


def test_edges_are_those_of_each_masked_picture_and_have_its_colours():
    mask = torch.zeros(48, 48, dtype=torch.bool)
    mask[:, :12] = True
    model = sketch_model(start="edges", optimize_colors=True, min_delta=0.0)
    found = model.generate([disc(), disc()], masks=[mask, ~mask], seeds=0, num_strokes=2, num_steps=0)
    left, right = (one.drawing for one in found)
    assert curves(left.points)[..., 0].max() < 7 and curves(right.points)[..., 0].min() > 5
    assert not torch.equal(left.points, right.points)
    assert (right.colors[:, 0] > right.colors[:, 1] + 0.2).all()  # red, not the white beside the edge
    with pytest.raises(ValueError, match="start: 'corners', expected one of salient, edges"):
        sketch_model(start="corners")
