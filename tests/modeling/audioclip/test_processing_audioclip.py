"""AudioCLIP's processor: three modalities in one call, class names as texts, lengths."""

import numpy as np
import pytest
import torch
from model_contract import CASES
from tiny import tiny_pixels
from transformers import AutoProcessor

from hf_clip_variants import AudioCLIPProcessor


@pytest.fixture
def processor():
    return CASES["audioclip"].processor()


def test_all_modalities_together_equal_each_alone(processor):
    image = (255 * tiny_pixels(1, size=64)[0].sigmoid()).byte().permute(1, 2, 0).numpy()
    given = {"images": image, "text": ["a dog", "rain"], "audio": np.sin(np.arange(900))}
    together = processor(**given, sampling_rate=8000, return_tensors="pt")
    assert set(together) == {"pixel_values", "input_ids", "attention_mask", "input_features"}
    assert set(together) == set(processor.model_input_names)
    for name, value in given.items():
        alone = processor(**{name: value}, sampling_rate=8000, return_tensors="pt")
        assert alone and all(torch.equal(tensor, together[key]) for key, tensor in alone.items()), name
    extracted = processor.feature_extractor(given["audio"], sampling_rate=8000, return_tensors="pt")
    assert torch.equal(together["input_features"], extracted["input_features"])
    with pytest.raises(ValueError, match="images, text, audio: got none of them"):
        processor(return_tensors="pt")


def test_class_names_become_sentences(processor):
    ids = lambda text: processor(text=text, return_tensors="pt").input_ids  # noqa: E731
    assert torch.equal(ids([["dog_bark", "siren"], ["street_music"]]), ids(["dog bark, siren", "street music"]))
    assert torch.equal(ids("dog_bark"), ids("dog bark"))
    for wrong in (["dog", []], ["dog", 3], [["dog", 3]]):
        with pytest.raises(ValueError, match=rf"text\[{len(wrong) - 1}\]: .*expected a string, or the class names"):
            ids(wrong)


def test_long_texts_are_refused_or_cut(processor):
    limit = processor.tokenizer.model_max_length
    for text, index in ((["short", "dog " * limit], 1), ("dog " * limit, 0)):
        with pytest.raises(
            ValueError,
            match=rf"text\[{index}\]: \d+ tokens, expected at most {limit}: 'dog dog.* pass truncation=True",
        ):
            processor(text=text)
        with pytest.warns(UserWarning, match="was cut, keeping the end token"):
            cut = processor(text=text, truncation=True, return_tensors="pt").input_ids
        assert cut.shape[1] == limit
    with pytest.raises(ValueError, match=rf"text\[1\]: \d+ tokens, expected at most {limit}"):
        processor(text=["short", "dog " * limit], padding=False)  # rows of different lengths
    assert processor(text=["dog"], padding="max_length", return_tensors="pt").input_ids.shape[1] == limit


def test_text_options_do_not_apply_to_audio(processor):
    """`max_length=8` means 8 tokens; audio of 8 samples would be a silent error."""
    options = {"padding": "max_length", "max_length": 8, "truncation": True, "return_tensors": "pt"}
    both = processor(text=["dog"], audio=np.zeros(900), sampling_rate=8000, **options)
    assert both.input_ids.shape == (1, 8) and both.input_features.shape[-1] == processor.feature_extractor.max_length
    options["audio_kwargs"] = {"max_length": 700, "num_channels": 2, "sampling_rate": 8000}
    assert processor(text=["dog"], audio=np.zeros(900), **options).input_features.shape == (1, 2, 700)
    with pytest.raises(ValueError, match=r"audio\[0\]: no sampling_rate"):
        processor(audio=np.zeros(900))


def test_save_and_load_with_all_parts(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is AudioCLIPProcessor and loaded.to_dict() == processor.to_dict()
    assert loaded.feature_extractor.sampling_rate == 8000
    given = {
        "text": ["<|endoftext|> is text"],
        "audio": np.ones(500) / 3,
        "sampling_rate": 8000,
        "return_tensors": "pt",
    }
    for name, tensor in loaded(**given).items():
        assert torch.equal(tensor, processor(**given)[name])


def test_clip_processor_gets_a_feature_extractor(processor):
    from transformers import CLIPImageProcessor, CLIPProcessor

    ours = AudioCLIPProcessor.from_clip(CLIPProcessor(CLIPImageProcessor(), processor.tokenizer))
    assert ours.feature_extractor.sampling_rate == 44_100 and ours.image_processor.crop_size["height"] == 224
