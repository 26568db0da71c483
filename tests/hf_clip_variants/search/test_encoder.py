"""Every dual encoder: its features are the model's own, its kinds are those that it has encoders for."""

import pytest
import torch
from clip4clip_runs import clip4clip_model
from few_shot_runs import save_tiny_clip
from media_folders import NAMES, save_media, save_pictures
from model_contract import CASES
from slip_runs import slip_config
from tiny import tiny_tokenizer
from tiny_families import (
    FAMILIES,
    family_class_names,
    save_tiny_family,
    tiny_family_inputs,
)
from transformers import AutoModel, BertConfig, BertModel

from hf_clip_variants import (
    CLIPClassifierImageProcessor,
    CLIPClassifierProcessor,
    SLIPModel,
    VideoTextProcessor,
    build_index,
)
from hf_clip_variants.modeling.dual_encoders.backbones import find_family, unit_norm
from hf_clip_variants.search.encoder import load_encoder


SIZE = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}


def classifier_processor():
    return CLIPClassifierProcessor(CLIPClassifierImageProcessor(**SIZE), tiny_tokenizer())


def save(model, processor, folder):
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_and_texts_of_each_family_are_the_models_own(family, tmp_path):
    source = save_tiny_family(family, tmp_path / "model")
    index = build_index(save_pictures(tmp_path / "files"), source, tmp_path / "index", device="cpu")
    model = AutoModel.from_pretrained(source, dtype=torch.float32)
    processor = CLIPClassifierProcessor.from_clip(source)
    pixels = processor.image_processor([str(tmp_path / "files" / name) for name in NAMES], return_tensors="pt")
    with torch.no_grad():
        images = unit_norm(find_family(model.config.model_type).image_features(model, **pixels).pooler_output)
        texts = unit_norm(model.get_text_features(**tiny_family_inputs(family)).pooler_output)
    vectors = torch.tensor(index.dataset["features"][:])
    torch.testing.assert_close(vectors, images, rtol=0, atol=1e-3)
    for name, text in zip(family_class_names(family), texts, strict=True):
        torch.testing.assert_close(index.query(name)[0], text, rtol=0, atol=1e-4)
        hits = index.search(name, top=3)
        assert [hit.path for hit in hits] == [NAMES[row] for row in (vectors @ text).argsort(descending=True)[:3]]


def test_slip_has_pictures_and_frames(tmp_path):
    torch.manual_seed(0)
    source = save(SLIPModel(slip_config()), classifier_processor(), tmp_path / "model")
    index = build_index(save_media(tmp_path / "files"), source, tmp_path / "index", device="cpu")
    assert index.encoder.kinds == ("image", "video") and not index.encoder.has_clips
    assert index.counts() == {"image": len(NAMES), "video": 3} and index.unreadable == []
    assert {row["end"] for row in index.dataset if row["path"] == "long.mp4"} == {0.5, 1.5, 2.5}
    assert {row["kind"] for row in index.dataset if row["path"] == "moving.webp"} == {"video"}


def test_audioclip_has_pictures_frames_and_sounds(tmp_path):
    case = CASES["audioclip"]
    source = save(case.make(), case.processor(), tmp_path / "model")
    folder = save_media(tmp_path / "files")
    index = build_index(folder, source, tmp_path / "index", device="cpu")
    assert index.encoder.kinds == ("image", "video", "audio") and index.unreadable == []
    assert index.counts() == {"image": len(NAMES), "video": 3, "audio": 2}
    hits = index.search(sound=folder / "sounds" / "short.wav", top=1, kinds="audio")
    assert hits[0].path == "sounds/short.wav" and hits[0].score > 0.999 and hits[0].start == 0
    both = index.query("a cat", sound=folder / "sounds" / "short.wav")
    mean = unit_norm(index.query("a cat") + index.query(sound=folder / "sounds" / "short.wav"))
    torch.testing.assert_close(both, mean, rtol=0, atol=1e-6)
    hits = index.search(image=folder / NAMES[2], kinds="image")
    assert next(hit.score for hit in hits if hit.path == NAMES[2]) > 0.999


@pytest.mark.parametrize("head", ["meanP", "seqTransf"])
def test_a_model_of_videos_looks_at_clips_as_a_whole_and_at_frames_when_told(head, tmp_path):
    processor = VideoTextProcessor.from_clip(classifier_processor(), num_frames=4, fps=2)
    source = save(clip4clip_model(similarity_head=head), processor, tmp_path / "model")
    folder = save_media(tmp_path / "files")
    index = build_index(folder, source, tmp_path / "clips", device="cpu", clip_seconds=1.5)
    rows = [row for row in index.dataset if row["path"] == "long.mp4"]
    assert [(row["start"], row["end"]) for row in rows] == [(0, 1.5), (1.5, 3)]
    model = AutoModel.from_pretrained(source)
    for row in rows:
        bounds = {"start": row["start"] or None, "end": None if row["end"] == 3 else 1.499}
        inputs = processor(videos=str(folder / "long.mp4"), return_tensors="pt", **bounds)
        with torch.no_grad():
            expected = unit_norm(model.get_video_features(**inputs).pooler_output)[0]
        torch.testing.assert_close(torch.tensor(row["features"]), expected, rtol=0, atol=1e-3)
    assert index.counts() == {"image": len(NAMES), "video": 3}
    frames = build_index(folder, source, tmp_path / "frames", videos="frames", device="cpu")
    plain = build_index(folder, save_tiny_clip(tmp_path / "clip"), tmp_path / "plain", device="cpu")
    assert frames.dataset["start"][:] == plain.dataset["start"][:]


def test_clips_of_a_model_of_images_are_means_of_unit_vectors(tmp_path):
    folder, clip = save_media(tmp_path / "files"), save_tiny_clip(tmp_path / "clip")
    frames = build_index(folder, clip, tmp_path / "frames", device="cpu").dataset.to_pandas()
    clips = build_index(folder, clip, tmp_path / "clips", videos="clips", device="cpu").dataset.to_pandas()
    of_frames = torch.tensor(frames[frames["path"] == "long.mp4"]["features"].tolist())
    of_clip = torch.tensor(clips[clips["path"] == "long.mp4"]["features"].tolist())
    torch.testing.assert_close(of_clip, unit_norm(of_frames.mean(0, keepdim=True)), rtol=0, atol=1e-3)


def test_a_head_that_compares_pairs_is_refused_for_clips(tmp_path):
    processor = VideoTextProcessor.from_clip(classifier_processor(), num_frames=4)
    source = save(clip4clip_model(similarity_head="tightTransf"), processor, tmp_path / "model")
    with pytest.raises(ValueError, match="tightTransf compares each video with each text"):
        build_index(save_media(tmp_path / "files"), source, tmp_path / "index", device="cpu")


def test_templates_are_averaged_as_for_class_names(tmp_path):
    encoder = load_encoder(save_tiny_clip(tmp_path), "cpu")
    one, two = encoder.encode_texts(["a cat"], "a photo of {}"), encoder.encode_texts(["a cat"], "art of {}")
    both = encoder.encode_texts(["a cat"], ["a photo of {}", "art of {}"])
    torch.testing.assert_close(both, unit_norm(one + two), rtol=0, atol=1e-6)
    torch.testing.assert_close(one, encoder.encode_texts(["a photo of a cat"]), rtol=0, atol=1e-6)


def test_what_is_no_dual_encoder_is_refused_by_name(tmp_path):
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    save(BertModel(config), tiny_tokenizer(), tmp_path / "bert")
    with pytest.raises(OSError, match="bert: its processor cannot be loaded"):
        load_encoder(tmp_path / "bert", "cpu")
    with pytest.raises(OSError, match="no config.json there"):
        load_encoder(tmp_path, "cpu")
    with pytest.raises(OSError, match="model: IVF99,Flat cannot be loaded"):
        load_encoder("IVF99,Flat", "cpu")
