"""Captions: words depend on those before them and on the image, generation, the pipeline, a tiny training."""

import pytest
import torch
from glip_runs import NAMES, noise
from glipv2_runs import glipv2_config, glipv2_model, glipv2_processor
from tiny import copy_of, tiny_pixels
from transformers import AutoModelForImageTextToText, pipeline

from hf_clip_variants import GLIPv2ForImageTextToText


CAPTIONS = ["a small cat on the pizza", "the red car", "a man holding a bird"]
IMAGE = noise(80, 50)


def writer() -> GLIPv2ForImageTextToText:
    def build():
        model = GLIPv2ForImageTextToText(glipv2_config()).eval()
        model.load_state_dict(glipv2_model().state_dict())
        return model

    return copy_of("glipv2 captioning", build)


def run(model, **inputs):
    with torch.no_grad():
        return model(**inputs)


def captions(count: int = 3) -> dict[str, torch.Tensor]:
    encoded = glipv2_processor().tokenizer(CAPTIONS[:count], padding=True, return_tensors="pt")
    ids, mask = encoded.input_ids, encoded.attention_mask
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def test_a_word_depends_on_the_image_and_on_the_words_before_it_alone():
    model, pixels, inputs = writer(), tiny_pixels(3, size=64), captions()
    expected = run(model, pixel_values=pixels, **inputs).logits
    for place in range(1, inputs["input_ids"].shape[1]):
        ids = inputs["input_ids"].clone()
        ids[:, place] = 7
        found = run(model, pixel_values=pixels, input_ids=ids, attention_mask=inputs["attention_mask"]).logits
        torch.testing.assert_close(found[:, :place], expected[:, :place], rtol=1e-5, atol=1e-5)
        changed = ids[0, place] != inputs["input_ids"][0, place]
        assert changed and (found[0, place:] - expected[0, place:]).abs().max() > 1e-3
    other = run(model, pixel_values=pixels.flip(0), **inputs).logits
    assert (other[0] - expected[0]).abs().max() > 1e-3
    short = run(model, pixel_values=pixels[1:2], input_ids=inputs["input_ids"][1:2, :5]).logits
    torch.testing.assert_close(short[0], expected[1, :5], rtol=1e-4, atol=1e-5)
    states = model.encode_images(pixels, inputs["input_ids"][:, :1])
    torch.testing.assert_close(run(model, image_states=states, **inputs).logits, expected, rtol=1e-5, atol=1e-5)


def test_a_tiny_model_learns_captions_and_the_pipeline_writes_them(tmp_path):
    torch.manual_seed(0)
    model, processor = writer().train(), glipv2_processor()
    images = [noise(64, 64, seed) for seed in range(3)]
    pixels, inputs = processor(images, NAMES).pixel_values, captions()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(60):
        loss = model(pixel_values=pixels, **inputs).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert type(AutoModelForImageTextToText.from_pretrained(tmp_path)) is GLIPv2ForImageTextToText
    write = pipeline("image-text-to-text", str(tmp_path))
    for image, caption in zip(images, CAPTIONS, strict=True):
        assert write(image, text="", max_new_tokens=12)[0]["generated_text"] == caption
    assert write(images[1], text="the red", max_new_tokens=12)[0]["generated_text"] == "the red car"
    beams = model.generate(**processor(images[2], ""), num_beams=2, num_return_sequences=2, max_new_tokens=12)
    assert processor.post_process_image_text_to_text(beams)[0] == CAPTIONS[2] and len(beams) == 2
    # The same folder finds the phrases of what it wrote.
    detector = pipeline("zero-shot-object-detection", str(tmp_path))
    found = processor(images[1], captions=[CAPTIONS[1]])
    assert run(detector.model, **found).logits.shape[0] == 1


def test_generation_ends_where_the_prompt_is_full():
    model, processor = writer(), glipv2_processor()
    with torch.no_grad():
        model.word_predictions.decoder.bias[model.config.end_token_id] = -1e4
    assert model.generate(**processor([IMAGE, IMAGE], "a cat")).shape == (2, 24)
    assert model.generate(**processor(IMAGE, "a cat"), max_new_tokens=2).shape == (1, 5)


# ---- generation, as transformers' mixin of tests looks at it (it is not in their source distribution)


def begun(images=2, text="a"):
    return dict(glipv2_processor()([noise(64, 64, seed) for seed in range(images)], text))


def test_greedy_search_takes_the_most_likely_word_again_and_again():
    model, inputs = writer(), begun()
    found = model.generate(**inputs, max_new_tokens=5, output_logits=True, return_dict_in_generate=True)
    ids, given = inputs["input_ids"], found.sequences
    for place in range(ids.shape[1], given.shape[1]):
        logits = run(model, pixel_values=inputs["pixel_values"], input_ids=given[:, :place]).logits[:, -1]
        torch.testing.assert_close(found.logits[place - ids.shape[1]], logits, rtol=1e-4, atol=1e-4)
        going = (given[:, ids.shape[1] : place] != model.config.end_token_id).all(dim=1)
        assert torch.equal(given[going, place], logits.argmax(dim=1)[going])
    # Each image has the caption that it has alone, and that of stored states of the image.
    for row in range(2):
        alone = model.generate(**{n: v[row : row + 1] for n, v in inputs.items()}, max_new_tokens=5)
        assert torch.equal(alone[0], given[row, : alone.shape[1]])
    states = model.encode_images(inputs["pixel_values"], ids[:, :1])
    assert torch.equal(model.generate(input_ids=ids, image_states=states, max_new_tokens=5), given)
    assert torch.equal(model.generate(ids, pixel_values=inputs["pixel_values"], max_new_tokens=5), given)


def test_beams_are_at_least_as_likely_as_greedy_search():
    model, inputs = writer(), begun()

    def likelihood(sequences):
        scores = run(model, pixel_values=inputs["pixel_values"], input_ids=sequences).logits[:, :-1].log_softmax(-1)
        chosen = scores.gather(2, sequences[:, 1:, None])[..., 0][:, inputs["input_ids"].shape[1] - 1 :]
        return chosen.sum(dim=1)

    fixed = {"max_new_tokens": 3, "min_new_tokens": 3}
    greedy, beams = (model.generate(**inputs, **fixed, num_beams=count) for count in (1, 29))
    assert (likelihood(beams) >= likelihood(greedy) - 1e-4).all()
    several = model.generate(**inputs, **fixed, num_beams=4, num_return_sequences=3)
    assert several.shape == (6, inputs["input_ids"].shape[1] + 3)
    assert torch.equal(likelihood_order(model, inputs, several), torch.arange(6))


def likelihood_order(model, inputs, several):
    """Places of sequences, best first, within each image."""
    pixels = inputs["pixel_values"].repeat_interleave(3, dim=0)
    scores = run(model, pixel_values=pixels, input_ids=several).logits[:, :-1].log_softmax(-1)
    start = inputs["input_ids"].shape[1] - 1
    total = scores.gather(2, several[:, 1:, None])[:, start:, 0].sum(dim=1).view(2, 3)
    return (total.argsort(dim=1, descending=True) + torch.tensor([[0], [3]])).flatten()


def test_sampling_follows_the_seed_and_settings_come_from_a_saved_folder(tmp_path):
    model, inputs = writer(), begun()
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(model.generate(**inputs, do_sample=True, max_new_tokens=8, min_new_tokens=8))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    model.generation_config.max_new_tokens = 3
    model.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert again.generate(**inputs, min_new_tokens=3).shape[1] == inputs["input_ids"].shape[1] + 3
    assert model.generate(**inputs, max_length=4, min_new_tokens=1).shape[1] <= 4


def test_lengths_that_cannot_be_are_named():
    model, inputs = writer(), begun()
    for options, message in (
        ({"max_new_tokens": 0}, "max_new_tokens: 0 words behind input_ids, expected at least 1"),
        ({"max_length": 2}, "max_length: 0 words behind input_ids, expected at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            model.generate(**inputs, **options)


def test_inputs_that_do_not_fit_are_named():
    model, inputs, pixels = writer(), captions(2), tiny_pixels(2, size=64)
    for change, message in (
        ({}, "pixel_values, image_states: got neither"),
        ({"pixel_values": pixels[:1]}, "input_ids: 2 captions for 1 images, expected one each"),
        (
            {"pixel_values": pixels, "labels": inputs["labels"][:, 1:]},
            r"labels: got .*, expected whole .* \[2, 8\]",
        ),
        ({"pixel_values": pixels, "input_ids": inputs["input_ids"] + 99}, "input_ids: token"),
    ):
        with pytest.raises(ValueError, match=message):
            model(**inputs | change)
    with pytest.raises(ValueError, match="text: 23 tokens, expected at most 22"):
        glipv2_processor()(IMAGE, "cat " * 23)
    for switch in ("use_mlm", "use_fusion"):
        with pytest.raises(ValueError, match=f"{switch}: False, expected True: captions are written by"):
            GLIPv2ForImageTextToText(glipv2_config(**{switch: False}))
