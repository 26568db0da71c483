"""CLIPDraw equals its formulas: coverage, compositing, gradients, ink, losses."""

import pytest
import torch
from parity_fixtures import assert_close, fixtures_like, load_fixture

from hf_clip_variants.modeling.clipdraw.modeling_clipdraw import clipdraw_loss
from hf_clip_variants.modeling.strokes.stroke_rasterizer import render_strokes, stroke_coverage
from hf_clip_variants.modeling.strokes.stroke_rasterizer_reference import curve_distances


pytestmark = pytest.mark.parity

RENDERS = fixtures_like("clipdraw_render*")
CLOSE = {"search_segments": 32, "newton_steps": 8}


@pytest.fixture(params=RENDERS)
def fixture(request):
    return load_fixture(request.param)


def canvas(fixture) -> dict[str, int]:
    return {"height": fixture.meta["hyper"]["canvas_height"], "width": fixture.meta["hyper"]["canvas_width"]}


def strokes(fixture):
    inputs = fixture.inputs
    return [inputs[name][None] for name in ("points", "radius", "rgba", "num_segments")]


def test_images_equal_the_formula(fixture):
    for softness in fixture.meta["hyper"]["h"]:
        name = f"h{round(100 * softness):03d}"
        image = render_strokes(*strokes(fixture), **canvas(fixture), softness=softness, **CLOSE)[0]
        assert_close(image, fixture.outputs[f"image_{name}"], name)
    layered = render_strokes(*strokes(fixture), **canvas(fixture), background=None, **CLOSE)[0]
    assert_close(layered[:3], fixture.outputs["premultiplied_rgb_h065"], "premultiplied")
    assert_close(layered[3], fixture.outputs["alpha_h065"], "alpha")


def test_each_strokes_coverage_equals_the_formula(fixture):
    points, radii, _, numbers = strokes(fixture)
    for stroke in range(points.shape[1]):
        one = (points[:, stroke : stroke + 1], radii[:, stroke : stroke + 1])
        color = torch.tensor([[[0.0, 0.0, 0.0, 1.0]]])
        for softness in fixture.meta["hyper"]["h"]:
            drawn = render_strokes(
                *one, color, numbers[:, stroke : stroke + 1], **canvas(fixture), softness=softness, background=None,
                **CLOSE,
            )  # fmt: skip
            expected = fixture.outputs[f"coverage_h{round(100 * softness):03d}"][stroke]
            assert_close(drawn[0, 3], expected, f"stroke {stroke}")
            by_distance = stroke_coverage(fixture.outputs["distance"][stroke], radii[0, stroke], softness)
            assert_close(by_distance, expected, f"coverage of stroke {stroke}")


def test_gradients_equal_finite_differences(fixture):
    given = [t.clone().requires_grad_(t.is_floating_point()) for t in strokes(fixture)]
    image = render_strokes(*given, **canvas(fixture), **CLOSE)[0]
    loss = (image * fixture.inputs["image_grad"]).sum()
    assert_close(loss.detach()[None], fixture.outputs["loss"].view(1), "loss")
    loss.backward()
    for tensor, name in zip(given[:3], ("points", "radius", "rgba"), strict=True):
        assert_close(tensor.grad[0], fixture.outputs[f"grad_{name}"], name, tolerance=1e-3)


def test_ink_is_length_times_width(fixture):
    shapes, radius = fixture.inputs["analytic_points"], fixture.inputs["analytic_radius"]
    height, width = fixture.outputs["analytic_distance"].shape[1:]
    black = torch.tensor([[[0.0, 0.0, 0.0, 1.0]]])
    for number, shape in enumerate(shapes):
        image = render_strokes(shape[None, None], radius.view(1, 1), black, height=height, width=width, **CLOSE)
        assert_close(1 - image[0, 0], fixture.outputs["analytic_coverage"][number], f"shape {number}")
        exact = fixture.outputs["analytic_ink_exact"][number].item()
        assert (1 - image[0, 0]).sum().item() == pytest.approx(exact, rel=0.01)
        distance, _ = curve_distances(shape, 1, height, width)
        assert_close(distance, fixture.outputs["analytic_distance"][number], f"distance to shape {number}")
    for radius, exact in zip(fixture.inputs["thin_radius"], fixture.outputs["thin_ink_exact"], strict=True):
        image = render_strokes(shapes[1][None, None], radius.view(1, 1), black, height=height, width=width, **CLOSE)
        assert (1 - image[0, 0]).sum().item() == pytest.approx(exact.item(), rel=0.05)


def test_losses_equal_the_formula(fixture):
    inputs = fixture.inputs
    loss = clipdraw_loss(inputs["image_features"], inputs["text_features"])
    assert_close(loss.view(1), fixture.outputs["clip_loss"].view(1), "loss")
    with_negatives = clipdraw_loss(
        inputs["image_features"], inputs["text_features"], inputs["negative1"], inputs["negative2"]
    )
    assert_close(with_negatives.view(1), fixture.outputs["clip_loss_negative"].view(1), "loss with negatives")
