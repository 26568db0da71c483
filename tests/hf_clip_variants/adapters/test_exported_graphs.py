"""torch.export and torch.jit.trace of classifiers, with each adapter and without one."""

import pytest
import torch
from adapted_classifiers import KINDS, adapted, base_classifier
from tiny import tiny_pixels
from tiny_families import RESNET, family_image_size


class Logits(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        return self.model(pixel_values=pixel_values).logits


def exported(model, pixels, dynamic: bool, **options):
    shapes = ({0: torch.export.Dim("batch", min=1, max=64)},) if dynamic else None
    return torch.export.export(Logits(model), (pixels,), dynamic_shapes=shapes, **options).module()


@torch.no_grad()
def assert_same_logits(graph, model, pixels):
    torch.testing.assert_close(graph(pixels), model(pixel_values=pixels).logits, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_with_a_dynamic_batch_has_the_models_logits(kind):
    """With gradients on and weights that want them: as the guides of the Hub write it."""
    model = adapted(kind)
    if kind is None:
        model.requires_grad_(True)
    graph = exported(model, tiny_pixels(3), dynamic=True)
    for batch in (1, 5):
        assert_same_logits(graph, model, tiny_pixels(batch, seed=batch))


@pytest.mark.parametrize(("kind", "frozen"), [("coop", True), ("cocoop", False)])
def test_a_static_graph_without_gradients_has_the_models_logits(kind, frozen):
    model = adapted(kind).requires_grad_(not frozen)
    with torch.no_grad():
        graph = exported(model, tiny_pixels(2), dynamic=False)
    assert_same_logits(graph, model, tiny_pixels(2, seed=5))


@pytest.mark.parametrize(("model_type", "kind"), [("siglip", "ivlp"), (RESNET, "cocoop")])
def test_a_graph_of_another_family_has_the_models_logits(model_type, kind):
    model, size = adapted(kind, base_classifier(model_type)), family_image_size(model_type)
    graph = exported(model, tiny_pixels(3, size=size), dynamic=True)
    assert_same_logits(graph, model, tiny_pixels(5, seed=5, size=size))


@pytest.mark.parametrize("kind", [None, "cocoop"])
def test_a_trace_has_the_models_logits(kind, recwarn):
    model = adapted(kind)
    graph = torch.jit.trace(Logits(model), (tiny_pixels(2),), check_trace=False)
    assert_same_logits(graph, model, tiny_pixels(2, seed=5))


def test_the_model_itself_can_be_exported_and_its_output_keeps_its_names():
    model = base_classifier()
    graph = torch.export.export(model, (), {"pixel_values": tiny_pixels(2)}).module()
    torch.testing.assert_close(graph(pixel_values=tiny_pixels(2, 5)).logits, model(tiny_pixels(2, 5)).logits)


def test_a_graph_follows_weights_that_changed_after_class_features_were_kept():
    model = base_classifier().requires_grad_(False)
    model(pixel_values=tiny_pixels(1))
    assert model._kept.stored_is_untouched()
    with torch.no_grad():
        for parameter in model.clip.text_model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    assert_same_logits(exported(model, tiny_pixels(2), dynamic=False), model, tiny_pixels(2))


def test_a_graph_of_untouched_weights_holds_class_features_and_no_text_encoder():
    model = base_classifier().requires_grad_(False)
    model(pixel_values=tiny_pixels(1))
    program = torch.export.export(Logits(model), (tiny_pixels(2),))
    used = {node.target for node in program.graph.nodes if node.op == "placeholder" and node.users}
    assert not any("text_model" in name for name in used) and any("class_features" in name for name in used)


def test_exporting_leaves_the_model_as_it_was():
    model = adapted("coop")
    with torch.no_grad():
        before = model(pixel_values=tiny_pixels(2)).logits
        exported(model, tiny_pixels(2), dynamic=False)
        assert torch.equal(model(pixel_values=tiny_pixels(2)).logits, before)
