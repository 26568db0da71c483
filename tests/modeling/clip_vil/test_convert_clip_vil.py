"""The official ↔ CLIP-ViL mapping: heads, encoders, what is left out, files."""

import json

import pytest
import torch
from clip_vil_runs import (
    ANSWERS,
    clip_vil_config,
    clip_vil_model,
    clip_vil_processor,
    clip_vil_tokenizer,
    noise,
    pairs,
    pretraining_inputs,
    vit_config,
    vqa_inputs,
)
from converter_contract import ConverterContract
from safetensors.torch import save_file
from transformers import AutoImageProcessor, AutoModelForVisualQuestionAnswering, AutoProcessor

from hf_clip_variants import ClipViLConfig, ClipViLForVisualQuestionAnswering, convert_checkpoint
from hf_clip_variants.modeling.clip_vil.convert_clip_vil import (
    clip_vil_from_official,
    convert_clip_vil_state_dict,
    infer_clip_vil_config,
    to_official,
    unused_names,
)


_VISUAL = "bert.encoder.visual_model."
# CLIP's text encoder and pooling, and layers for boxes.
STRAYS = {
    f"{_VISUAL}token_embedding.weight": torch.ones(5, 4),
    f"{_VISUAL}transformer.resblocks.0.ln_1.weight": torch.ones(4),
    f"{_VISUAL}ln_final.bias": torch.ones(4),
    f"{_VISUAL}logit_scale": torch.ones(()),
    f"{_VISUAL}text_projection": torch.ones(4, 4),
    f"{_VISUAL}positional_embedding": torch.ones(7, 4),
    f"{_VISUAL}visual.attnpool.positional_embedding": torch.ones(5, 64),
    "bert.encoder.visn_fc.box_fc.weight": torch.ones(36, 4),
    "bert.encoder.visn_fc.box_layer_norm.bias": torch.ones(36),
}
SIZES = {"text_heads": 3, "max_text_length": 12, "cls_token_id": 2, "sep_token_id": 3}
_FIRST = "bert.encoder.layer.0.intermediate.dense.weight"
_TABLES = tuple(f"bert.embeddings.{name}_embeddings.weight" for name in ("word", "position", "token_type"))


class _Contract(ConverterContract):
    title = "CLIP-ViL"
    config_class = ClipViLConfig
    convert = staticmethod(convert_clip_vil_state_dict)
    infer, to_official = staticmethod(infer_clip_vil_config), staticmethod(to_official)
    options: dict = {}
    strays = STRAYS
    hole = ("bert.encoder.layer.0.", "bert.encoder.layer.7.")
    wrong_heads = (
        ({"text_heads": None}, "text_heads: the width 36 is not a multiple of 64"),
        ({"text_heads": 5}, "text_heads=5: expected a divisor of the width 36"),
    )
    other_models = (("bert.encoder.x_layers.0.lang_inter.dense.weight", "1 unexpected: bert.encoder.x_layers"),)
    nothing_found = "missing"
    optional = ("num_batches_tracked",)

    @staticmethod
    def from_official(weights, **options):
        config = clip_vil_config()
        fields = {"decoder_config": config.decoder_config.to_dict()} | SIZES
        return clip_vil_from_official(weights, **fields | options)


class TestAnswers(_Contract):
    output, one_name = "logits", "answer_head.dense.bias"
    indirect = (*_TABLES, _FIRST, "bert.encoder.visual_pos.x_position_embedding.weight")
    indirect += (f"{_VISUAL}visual.layer1.0.conv1.weight", "logit_fc.3.weight")
    wrong_shapes = (
        ("logit_fc.0.weight", (72, 30), r"logit_fc.0.weight \(72, 30\), expected \(72, 36\)"),
        ("bert.pooler.dense.bias", (30,), r"bert.pooler.dense.bias \(30,\), expected \(36,\)"),
        ("bert.encoder.visual_pos.y_position_embedding.weight", (7, 64), r"\(7, 64\), expected \(6, 64\)"),
        ("bert.encoder.visn_fc.visn_fc.weight", (36, 60), r"\(36, 60\), expected \(36, 64\)"),
    )

    def make(self):
        return clip_vil_model("vqa")

    def inputs(self):
        return vqa_inputs(2)


class TestPretraining(_Contract):
    test_non_finite_values_are_reported = None  # by the code that TestAnswers runs
    output, one_name = "prediction_logits", "cls.seq_relationship.bias"
    indirect = (*_TABLES, _FIRST, "bert.encoder.visual_pos.x_position_embedding.weight")
    indirect += (f"{_VISUAL}visual.layer1.0.conv1.weight", "answer_head.logit_fc.3.weight")
    wrong_shapes = (("cls.predictions.bias", (30,), r"cls.predictions.bias \(30,\), expected \(35,\)"),)

    def make(self):
        return clip_vil_model("pretraining")

    def inputs(self):
        return pretraining_inputs(2)


class TestVisionTransformer(_Contract):
    test_non_finite_values_are_reported = None  # as above
    output, one_name = "pooler_output", "pooler.bias"
    strays = {n: t for n, t in STRAYS.items() if "attnpool" not in n} | {
        f"{_VISUAL}visual.proj": torch.ones(40, 20),
        "bert.encoder.visual_pos.x_position_embedding.weight": torch.ones(25, 40),
    }
    indirect = (*_TABLES, _FIRST, f"{_VISUAL}visual.conv1.weight", f"{_VISUAL}visual.positional_embedding")
    indirect += (f"{_VISUAL}visual.transformer.resblocks.0.mlp.c_fc.weight", f"{_VISUAL}visual.class_embedding")
    wrong_shapes = ((f"{_VISUAL}visual.ln_post.bias", (30,), r"ln_post.bias \(30,\), expected \(40,\)"),)
    hole = (f"{_VISUAL}visual.transformer.resblocks.0.ln_2.", f"{_VISUAL}visual.transformer.resblocks.7.ln_2.")

    @staticmethod
    def from_official(weights, **options):
        return _Contract.from_official(weights, **{"vision_heads": 4} | options)

    def make(self):
        return clip_vil_model("model", config=vit_config)

    def inputs(self):
        return pairs(2)


# ---- what else is in files


def test_flat_positions_of_a_vision_transformer_stay_as_they_are_stored():
    """A table of 1 + 24 tokens is no square grid with a class token: that of padded images, read in its order."""
    model = clip_vil_model("vqa", config=vit_config, vit_positions="flat", num_flat_positions=24)
    with torch.no_grad():
        model.clip_vil.grid.flat_positions.table.normal_()
        model.clip_vil.grid.vision_model.embeddings.position_embedding.weight.zero_()
    official = to_official(model.state_dict(), model.config)
    assert official[f"{_VISUAL}visual.positional_embedding"].shape == (25, 40)
    found = _Contract.from_official(official, vision_heads=4)
    assert (found.config.vit_positions, found.config.num_flat_positions) == ("flat", 24)
    inputs = vqa_inputs(2)
    with torch.no_grad():
        torch.testing.assert_close(found(**inputs).logits, model(**inputs).logits)


def test_heads_of_the_pretraining_beside_an_answer_head_are_left_out_and_said():
    trained, answering = clip_vil_model("pretraining"), clip_vil_model("vqa")
    both = to_official(trained.state_dict(), trained.config) | to_official(answering.state_dict(), answering.config)
    found = _Contract.from_official(both)
    assert type(found) is ClipViLForVisualQuestionAnswering
    assert {"cls.predictions.bias", "answer_head.logit_fc.0.weight"} <= set(unused_names(both))
    words = "bert.embeddings.word_embeddings.weight"
    alone = to_official(trained.state_dict(), trained.config)
    tied = _Contract.from_official(alone | {"cls.predictions.decoder.weight": alone[words].clone()})
    assert torch.equal(tied.cls.predictions.decoder.weight, alone[words])
    with pytest.raises(ValueError, match="decoder.weight differs from the word embeddings, expected the same"):
        _Contract.from_official(alone | {"cls.predictions.decoder.weight": alone[words] + 1})


# ---- files


def official_file(folder, name="BEST.pth"):
    """Wide enough for heads of 64."""
    text = clip_vil_config().text_config.to_dict() | {"hidden_size": 64, "num_attention_heads": 1}
    text |= {"vocab_size": 110}
    decoder = clip_vil_config().decoder_config.to_dict() | {"vocab_size": 110}
    model = clip_vil_model("vqa", text_config=text, decoder_config=decoder, max_text_length=20)
    weights = to_official(model.state_dict(), model.config)
    wrapped = {
        ("module." if n.startswith("logit_fc") else "module.lxrt_encoder.model.") + n: t for n, t in weights.items()
    }
    extra = {"module.lxrt_encoder.model.bert.encoder.visn_fc.box_fc.weight": torch.ones(64, 4)}
    torch.save(wrapped | extra, folder / name)
    return model, folder / name


def test_a_file_becomes_a_folder_that_meets_expected_outputs_and_answers(tmp_path):
    model, file = official_file(tmp_path)
    inputs = pairs(2)
    with torch.no_grad():
        logits = model(**inputs).logits
    save_file(inputs | {"logits": logits}, tmp_path / "expected.safetensors")
    clip_vil_tokenizer().save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "answers.json").write_text(json.dumps(ANSWERS))
    options = {"expected": tmp_path / "expected.safetensors", "answers": str(tmp_path / "answers.json")}
    result = convert_checkpoint(file, tmp_path / "out", tokenizer=tmp_path / "tokenizer", compare=True, **options)
    assert result.method == "clip_vil" and result.kind == "ClipViLForVisualQuestionAnswering"
    assert result.difference < 1e-5 and result.expected_differences["logits"] < 1e-4
    assert any(name.endswith("bert.encoder.visn_fc.box_fc.weight") for name in result.dropped)
    loaded = AutoModelForVisualQuestionAnswering.from_pretrained(tmp_path / "out")
    assert loaded.config.id2label == dict(enumerate(ANSWERS))
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert processor.image_processor.size == {"shortest_edge": 384, "longest_edge": 640}
    found = processor(noise(90, 50), "what colour is the cat ?", return_tensors="pt")
    assert found.pixel_values.shape == (1, 3, 384, 640) and found.input_ids.shape[1] == 8
    for name, answers, message in (
        ("few.json", ["yes"], "answers: 1 in few.json, the file has 5"),
        ("twice.json", ["yes"] * 5, "'yes'"),
    ):
        (tmp_path / name).write_text(json.dumps(answers))
        with pytest.raises(ValueError, match=message):
            convert_checkpoint(file, tmp_path / "no", tokenizer="none", answers=str(tmp_path / name))


def test_without_answers_and_tokenizer_that_is_said(tmp_path):
    _, file = official_file(tmp_path)
    result = convert_checkpoint(file, tmp_path / "out", tokenizer="none")
    assert any("answers have no names" in note for note in result.notes)
    images = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert type(images) is type(clip_vil_processor().image_processor)
