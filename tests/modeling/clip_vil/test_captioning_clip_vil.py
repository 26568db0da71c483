"""Captions: words depend on those before them and on the grid, generation, the pipeline, lengths."""

import pytest
import torch
from clip_vil_runs import SEP, captioning_inputs, clip_vil_model, clip_vil_processor, noise, pixels
from transformers import AutoModelForImageTextToText, pipeline

from hf_clip_variants import ClipViLForImageCaptioning


CAPTIONS = ["the red cat", "a dog and a cat on blue", "green"]


def run(model, **inputs):
    with torch.no_grad():
        return model(**inputs)


def writer(**fields):
    """Of larger weights than a new one's, so that words differ."""
    decoder = clip_vil_model("captioning").config.decoder_config.to_dict() | {"init_std": 0.5}
    return clip_vil_model("captioning", decoder_config=decoder, **fields)


def test_a_word_depends_on_the_image_and_on_the_words_before_it_alone():
    model, inputs = writer(), captioning_inputs(3)
    expected = run(model, **inputs).logits
    for place in (1, 4, 7):
        ids = inputs["input_ids"].clone()
        ids[:, place] = 5 if int(ids[0, place]) != 5 else 6
        found = run(model, **inputs | {"input_ids": ids, "labels": None}).logits
        torch.testing.assert_close(found[:, :place], expected[:, :place], rtol=1e-4, atol=1e-4)
        assert (found[0, place:] - expected[0, place:]).abs().max() > 1e-3
    other = run(model, **inputs | {"pixel_values": inputs["pixel_values"].flip(0)}).logits
    assert (other[0] - expected[0]).abs().max() > 1e-3
    grid = model.get_grid_features(inputs.pop("pixel_values"))
    torch.testing.assert_close(run(model, **inputs, grid_features=grid).logits, expected, rtol=1e-4, atol=1e-4)


def test_a_tiny_model_learns_captions_and_the_pipeline_writes_them(tmp_path):
    torch.manual_seed(0)
    processor = clip_vil_processor()
    model = clip_vil_model("captioning", freeze_vision=True).train()
    grids = torch.randn(3, 2, 3, 64)
    encoded = processor.tokenizer(CAPTIONS, padding=True, return_tensors="pt")
    ids, mask = encoded.input_ids, encoded.attention_mask
    labels = ids.masked_fill(mask == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(60):
        loss = model(input_ids=ids, attention_mask=mask, labels=labels, grid_features=grids).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    found = model.eval().generate(grid_features=grids, max_new_tokens=12)
    assert processor.post_process_image_text_to_text(found) == CAPTIONS
    begun = torch.tensor([processor.tokenizer("a dog").input_ids])
    assert (
        processor.tokenizer.decode(model.generate(grid_features=grids[1:2], input_ids=begun)[0], True) == CAPTIONS[1]
    )
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert type(AutoModelForImageTextToText.from_pretrained(tmp_path)) is ClipViLForImageCaptioning
    write = pipeline("image-text-to-text", str(tmp_path))
    image = noise(90, 60)
    inputs = processor(images=[image], text="", return_tensors="pt")
    expected = processor.post_process_image_text_to_text(model.generate(**inputs, max_new_tokens=12))[0]
    assert write(image, text="", max_new_tokens=12)[0]["generated_text"] == expected
    assert write(image, text="the red", max_new_tokens=5)[0]["generated_text"].startswith("the red")


def test_greedy_search_beams_and_sampling_are_transformers():
    model, inputs = writer(), pixels(2)
    found = model.generate(**inputs, max_new_tokens=5, output_logits=True, return_dict_in_generate=True)
    sequences = found.sequences
    for place in range(1, sequences.shape[1]):
        logits = run(model, **inputs, input_ids=sequences[:, :place]).logits[:, -1]
        going = (sequences[:, 1:place] != SEP).all(dim=1)
        assert torch.equal(sequences[going, place], logits.argmax(dim=1)[going])
        torch.testing.assert_close(found.logits[place - 1][going], logits[going], rtol=1e-3, atol=1e-3)
    for row in range(2):
        alone = model.generate(inputs["pixel_values"][row : row + 1], max_new_tokens=5)
        assert torch.equal(alone[0], sequences[row, : alone.shape[1]])

    def likelihood(ids):
        scores = run(model, pixel_values=inputs["pixel_values"], input_ids=ids).logits[:, :-1].log_softmax(-1)
        return scores.gather(2, ids[:, 1:, None]).sum(dim=(1, 2))

    fixed = {"max_new_tokens": 3, "min_new_tokens": 3}
    greedy, beams = (model.generate(**inputs, **fixed, num_beams=count) for count in (1, 20))
    assert (likelihood(beams) >= likelihood(greedy) - 1e-3).all()
    assert model.generate(**inputs, **fixed, num_beams=4, num_return_sequences=3).shape == (6, 4)
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(model.generate(**inputs, do_sample=True, max_new_tokens=8, min_new_tokens=8))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_lengths_settings_and_errors(tmp_path):
    model, inputs = writer(), pixels(2)
    model.generation_config.max_new_tokens = 3
    model.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert again.generate(**inputs, min_new_tokens=3).shape == (2, 4)
    assert model.generate(**inputs, max_length=6, min_new_tokens=5).shape == (2, 6)
    assert model.generate(**inputs, max_new_tokens=99, min_new_tokens=38).shape[1] <= 40
    for options, message in (
        ({"max_new_tokens": 0}, "max_new_tokens: 0 words behind input_ids, expected at least 1"),
        ({"max_length": 1}, "max_length: 0 words behind input_ids"),
        ({"max_new_tokens": 1.5}, "max_new_tokens: 1.5, expected a whole number"),
        ({"input_ids": torch.full((1, 1), 2)}, "input_ids: 1 captions for 2 images"),
        ({"input_ids": torch.full((2, 40), 2)}, "input_ids: 40 tokens, expected less than 40"),
        (
            {"input_ids": torch.full((2, 3), 2), "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])},
            "padding in the",
        ),
        ({"input_ids": torch.full((2, 3), 2), "attention_mask": []}, r"attention_mask: got list, expected \[2, 3\]"),
        (
            {"input_ids": torch.full((2, 3), 2), "attention_mask": torch.ones(2, 3, dtype=torch.complex64)},
            "attention_mask: got torch.complex64",
        ),
        ({"num_beams": 0}, "num_beams: 0, expected a whole number of at least 1"),
        ({"grid_features": torch.zeros(2, 2, 3, 64)}, "got both"),
        ({"pixel_values": None}, "got neither"),
        ({"pixel_values": torch.zeros(1, 3, 32 * 9, 32 * 5)}, "45 cells of the grid, the encoder takes 40"),
    ):
        with pytest.raises(ValueError, match=message):
            model.generate(**inputs | options)
    with pytest.raises(ValueError, match="labels: got"):
        model(**captioning_inputs(2) | {"labels": torch.zeros(2, 3)})
    for wrong, said in ((torch.zeros(2, 8).half(), "got torch.float16"), (torch.full((2, 8), 99), "99..99, expected")):
        with pytest.raises(ValueError, match=f"labels: {said}"):
            model(**captioning_inputs(2) | {"labels": wrong})
    with pytest.raises(ValueError, match="sep_token_id: 99, expected 0..34, a token"):
        clip_vil_model("captioning", sep_token_id=99)
