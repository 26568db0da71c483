"""GroupViT by scripts/pretrain.py: sizes by architecture, micro-batches, a start from transformers' weights."""

import json
import sys

import pytest
import torch
from groupvit_runs import upstream_model
from paths import SCRIPTS
from tiny import EMOJI_CLIP, tiny_tokenizer
from transformers import AutoModel, AutoModelForSemanticSegmentation, AutoProcessor, CLIPImageProcessor, CLIPProcessor

from hf_clip_variants import DenseProcessor, GroupViTModel
from hf_clip_variants.data.images.emoji import FOLDER
from hf_clip_variants.modeling.groupvit.pretraining_groupvit import GROUPVIT
from hf_clip_variants.training.architectures import new_model


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    threads = torch.get_num_threads()
    import pretrain

    yield pretrain
    torch.set_num_threads(threads)
    sys.modules.pop("pretrain", None)


@pytest.mark.parametrize(
    ("architecture", "depths", "tokens"),
    [("ViT-mini", [2, 1, 1], [16, 8, 0]), ("ViT-tiny", [4, 2, 2], [32, 8, 0]), ("ViT-S/16", [6, 3, 3], [64, 8, 0])],
)
def test_architectures_become_stages(architecture, depths, tokens):
    with torch.device("meta"):
        model, processor = new_model("groupvit", architecture, tokenizer=str(EMOJI_CLIP))
    vision = model.config.vision_config
    assert (vision.depths, vision.num_group_tokens) == (depths, tokens) and vision.num_groups == 8
    assert not hasattr(model, "multi_label_logit_scale"), "pairs have no noun prompts"
    assert type(processor) is DenseProcessor
    with torch.device("meta"):
        other, _ = new_model(
            "groupvit",
            architecture,
            tokenizer=str(EMOJI_CLIP),
            config={"num_noun_prompts": 3, "projection_intermediate_dim": 40},
        )
    assert other.visual_projection[0].out_features == 40 and hasattr(other, "multi_label_logit_scale")


def test_a_run_in_micro_batches_gives_a_model_that_segments(script, tmp_path, capsys):
    data = ["--data", str(FOLDER / "notov1.parquet"), "--text-columns", "name", "--augment", "icons"]
    options = ["--method", "groupvit", "--arch", "ViT-mini", "--image-size", "32", "--steps", "2", "--lr", "1e-3"]
    options += ["--batch-size", "8", "--micro-batch-size", "3", "--workers", "0", "--out", str(tmp_path / "run")]
    assert script.main([*data, *options, "--eval", "emoji:fluent3d"]) == 0, capsys.readouterr().err
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["settings"]["weight_decay"] == 0.05 and run["settings"]["clip_norm"] == 5.0
    assert 0 < run["loss"] < 20 and "eval_fluent3d_top1" in run["metrics"]
    assert type(AutoModel.from_pretrained(tmp_path / "run" / "model")) is GroupViTModel
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "run" / "model").eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "run" / "model")
    inputs = processor(torch.zeros(3, 40, 50, dtype=torch.uint8), ["cat", "taco"], return_tensors="pt")
    with torch.no_grad():
        assert model(**inputs).logits.shape == (1, 2, 32, 40)

    # A small domain: the same command trains the group tokens alone.
    options = ["--method", "groupvit", "--init", str(tmp_path / "run" / "model"), "--set", "trained_part=group_tokens"]
    options += ["--steps", "1", "--lr", "1e-2", "--batch-size", "8", "--workers", "0", "--out", str(tmp_path / "own")]
    assert script.main([*data, *options]) == 0, capsys.readouterr().err
    before = GroupViTModel.from_pretrained(tmp_path / "run" / "model").state_dict()
    after = GroupViTModel.from_pretrained(tmp_path / "own" / "model").state_dict()
    changed = {name.rpartition(".")[2] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"group_token"}


def test_it_goes_on_from_transformers_weights_with_its_own_preprocessing(tmp_path):
    upstream_model().save_pretrained(tmp_path)
    CLIPProcessor(CLIPImageProcessor(), tiny_tokenizer()).save_pretrained(tmp_path)
    model, processor = GROUPVIT.load(str(tmp_path), {"trained_part": "group_tokens"})
    assert type(model) is GroupViTModel and model.config.trained_part == "group_tokens"
    assert type(processor) is DenseProcessor
    assert list(processor.image_processor.image_mean) == [0.485, 0.456, 0.406], "not CLIP's"
