"""Painting runs that are broken off, whole models as painters, and the embedded models."""

import numpy as np
import pytest
import torch
from painting_runs import paint_model, tiny_vqgan
from PIL import Image
from tiny import tiny_clip, tiny_tokenizer

from hf_clip_variants import VQGANModel
from hf_clip_variants.data.images.emoji import embedded_start, embedded_vqgan, load_emoji, mean_emoji
from hf_clip_variants.modeling.dual_encoders.backbones import unit_norm
from hf_clip_variants.modeling.synthesis.guided_model import picture_tensor
from hf_clip_variants.synthesis.painting_results import load_painter
from hf_clip_variants.synthesis.runs import SynthesisRun


def test_a_run_that_is_broken_off_ends_with_the_same_picture(tmp_path):
    model, tokenizer = paint_model(learning_rate=1.0), tiny_tokenizer()

    def run(folder, stop=None):
        def look(run):
            if run.loop.step == stop:
                raise KeyboardInterrupt

        with model.frozen():
            loop = model.make_loop("a cat ^ a dog", tokenizer, seeds=[3, 5], num_steps=6)
            run = SynthesisRun(tmp_path / folder, loop, {"steps": 6}, seconds=0)
            began = loop.step
            run.run(look)
            return began, model.results(loop)

    began, whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("broken", stop=4)
    again, rest = run("broken")
    assert (began, again) == (0, 4)
    for one, other in zip(whole, rest, strict=True):
        assert torch.equal(one.pixels, other.pixels) and one.losses == other.losses


def test_a_whole_model_paints_with_its_own_vqgan_or_another(tmp_path):
    model = paint_model()
    model.save_pretrained(tmp_path / "whole")
    tiny_tokenizer().save_pretrained(tmp_path / "whole")
    painter = load_painter(str(tmp_path / "whole"), None, "cpu", num_cuts=5)
    assert painter.model.config.num_cuts == 5
    assert torch.equal(painter.model.vqgan.codebook, model.vqgan.codebook)
    tiny_vqgan(num_embeddings=32, num_res_blocks=2).save_pretrained(tmp_path / "vqgan")
    other = load_painter(str(tmp_path / "whole"), str(tmp_path / "vqgan"), "cpu")
    assert other.model.config.vqgan_config.num_res_blocks == 2 and other.vqgan == str(tmp_path / "vqgan")


def test_a_guide_without_an_image_processor_is_told(tmp_path):
    tiny_clip().save_pretrained(tmp_path / "guide")
    tiny_tokenizer().save_pretrained(tmp_path / "guide")
    tiny_vqgan().save_pretrained(tmp_path / "vqgan")
    with pytest.warns(UserWarning, match="no image processor .*normalised as for CLIP"):
        painter = load_painter(str(tmp_path / "guide"), str(tmp_path / "vqgan"), "cpu")
    assert painter.model.config.image_mean is None


def test_the_embedded_vqgan_is_small_and_keeps_pictures():
    weights = embedded_vqgan() / "model.safetensors"
    assert weights.stat().st_size < 8e6 and {"README.md", "metrics.json"} <= {
        p.name for p in embedded_vqgan().iterdir()
    }
    model = VQGANModel.from_pretrained(embedded_vqgan(), dtype=torch.float32)
    images = load_emoji("emojione").dataset.select(range(0, 190, 24))  # a style that it was not trained on
    pixels = torch.stack([picture_tensor(row["image"]) for row in images])
    with torch.no_grad():
        made = (model.decode_codes(model.encode_codes(pixels * 2 - 1)) + 1) / 2
    plain = pixels.mean((2, 3), keepdim=True)
    assert (made - pixels).abs().mean() < 0.6 * (plain - pixels).abs().mean()


def test_the_embedded_models_paint_what_is_asked_for():
    """Every picture is nearer to its own text than the other's, for the guide; random codes are near to neither."""
    painter = load_painter(None, None, "cpu", num_cuts=4)
    texts = ["a red apple", "a blue fish"]
    with painter.model.frozen():
        loop = painter.model.make_loop(
            texts, painter.tokenizer, num_steps=12, evaluate_every=12, start=embedded_start()
        )
        before = loop.images()
        loop.run()
        goals = unit_norm(painter.model.encode_prompts(texts, painter.tokenizer))
        with torch.no_grad():
            scores = [unit_norm(painter.model.embed_images(one)) @ goals.T for one in (before, loop.images())]
    assert (scores[1].diagonal() > scores[0].diagonal() + 0.1).all()
    assert scores[1].argmax(1).tolist() == [0, 1]


def test_the_embedded_start_is_the_mean_of_emoji():
    start = Image.open(embedded_start())
    assert start.mode == "RGB" and start.size == (64, 64)
    apart = np.abs(np.asarray(start, int) - np.asarray(mean_emoji(), int))
    assert apart.max() <= 1
