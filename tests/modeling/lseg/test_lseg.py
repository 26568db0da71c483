"""What holds for LSeg whatever its weights: labels, sizes, blocks, readouts, frozen parts, losses, files."""

import pytest
import torch
from lseg_runs import lseg_config, lseg_ids, lseg_inputs, lseg_model
from safetensors.torch import load_file, save_file
from tiny import EMOJI_CLIP, tiny_clip, tiny_tokenizer
from torch.nn import functional as F
from transformers import (
    AutoModel,
    AutoModelForSemanticSegmentation,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTModel,
)

from hf_clip_variants import LSegConfig, LSegForSemanticSegmentation, LSegModel
from hf_clip_variants.modeling.lseg.losses_lseg import presence_loss
from hf_clip_variants.modeling.lseg.spatial_blocks_lseg import (
    LSegSpatialBlock,
    pixel_text_scores,
    pixel_text_scores_reference,
)


BLOCKS = ("none", "bottleneck", "depthwise")
ENCODERS = ("dpt", "clip_vision_model", "resnet")


def pixels(batch: int = 2, height: int = 64, width: int = 32) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(3))


def logits_of(model, images, ids) -> torch.Tensor:
    with torch.no_grad():
        return model(images, input_ids=ids).logits


# ---- labels


@pytest.mark.parametrize("block", BLOCKS)
def test_permuted_labels_give_permuted_scores(block):
    model, ids, order = lseg_model(head_block=block), lseg_ids(labels=5), [3, 0, 4, 1, 2]
    torch.testing.assert_close(logits_of(model, pixels(), ids[order]), logits_of(model, pixels(), ids)[:, order])


@pytest.mark.parametrize("block", BLOCKS)
def test_a_further_label_changes_other_scores_in_the_bottleneck_block_only(block):
    model, ids = lseg_model(head_block=block), lseg_ids(labels=5)
    few, many = logits_of(model, pixels(), ids[:3]), logits_of(model, pixels(), ids)[:, :3]
    assert torch.allclose(few, many, atol=1e-5) == (block != "bottleneck")


def test_labels_of_each_image_give_the_scores_of_the_image_alone():
    """The few-shot mode: two texts of each image."""
    model, ids = lseg_model(head_block="depthwise"), lseg_ids(labels=2, images=3)
    together = logits_of(model, pixels(3), ids[:, :, None])
    for image in range(3):
        alone = logits_of(model, pixels(3)[image : image + 1], ids[image])
        torch.testing.assert_close(together[image : image + 1], alone)
    embeddings = model.get_class_embeddings(ids.flatten(0, 1)).view(3, 2, -1)
    with torch.no_grad():
        torch.testing.assert_close(model(pixels(3), class_embeddings=embeddings).logits, together)


def test_templates_are_averaged_with_unit_norm():
    model, ids = lseg_model(), lseg_ids(labels=4, images=2)  # (N, T, L)
    found = model.get_class_embeddings(ids)
    each = torch.stack([model.get_class_embeddings(ids[:, template]) for template in range(4)])
    torch.testing.assert_close(found, F.normalize(each.mean(0), dim=-1))


def test_stored_labels_give_the_scores_of_their_texts_and_the_text_encoder_runs_once():
    model, calls = lseg_model(), []
    model.lseg.text_model.register_forward_hook(lambda *_: calls.append(1))
    model.set_labels(["cat", "dog", "sky"], tiny_tokenizer())
    assert len(calls) == 1
    ids = tiny_tokenizer()(["cat", "dog", "sky"], padding=True, return_tensors="pt")
    with torch.no_grad():
        stored = [model(pixels()).logits for _ in range(3)]
        assert len(calls) == 1
        fresh = model(pixels(), **ids).logits
    assert torch.equal(stored[0], stored[2])
    torch.testing.assert_close(stored[0], fresh, rtol=0, atol=0)


def test_labels_are_saved_and_the_text_encoder_can_be_left_out(tmp_path):
    model = lseg_model()
    with pytest.raises(ValueError, match="input_ids: missing, and the model has no labels"):
        model(pixels())
    model.set_labels(["cat", "dog"], tiny_tokenizer())
    expected = model(pixels()).logits
    model.save_pretrained(tmp_path / "whole")
    model.drop_text_encoder()
    model.save_pretrained(tmp_path / "small")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "small")]
    text = sum(p.numel() for p in lseg_model().lseg.text_model.parameters())
    assert sizes[0] - sizes[1] > 4 * text
    for name in ("whole", "small"):
        loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / name)
        assert type(loaded) is LSegForSemanticSegmentation and loaded.config.id2label == {0: "cat", 1: "dog"}
        torch.testing.assert_close(loaded(pixels()).logits, expected)
    with pytest.raises(ValueError, match="input_ids: the text encoder was dropped"):
        loaded(pixels(), input_ids=lseg_ids())
    with pytest.raises(ValueError, match="input_ids: the text encoder was dropped"):
        loaded.lseg.get_text_features(lseg_ids())


# ---- sizes


@pytest.mark.parametrize("encoder", ENCODERS)
def test_any_size_gives_scores_of_this_size(encoder):
    model, ids = lseg_model(encoder), lseg_ids()
    for height, width in ((33, 47), (64, 64), (1, 1), (50, 33), (96, 31)):
        assert logits_of(model, pixels(1, height, width), ids).shape == (1, 3, height, width)


def test_padding_repeats_the_border():
    model, image = lseg_model(), pixels(1, 40, 50)
    padded = F.pad(image, (0, 14, 0, 24), mode="replicate")
    torch.testing.assert_close(
        logits_of(model, image, lseg_ids()), logits_of(model, padded, lseg_ids())[..., :40, :50]
    )


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_batch_gives_the_scores_of_its_images(encoder):
    model, ids, images = lseg_model(encoder, head_block="bottleneck"), lseg_ids(), pixels(3, 50, 64)
    alone = torch.cat([logits_of(model, image[None], ids) for image in images])
    torch.testing.assert_close(logits_of(model, images, ids), alone, rtol=1e-4, atol=1e-4)


# ---- scores and blocks


def test_scores_and_their_gradients_equal_the_plain_way():
    generator = torch.Generator().manual_seed(0)
    for texts in (torch.randn(5, 8, generator=generator), torch.randn(2, 5, 8, generator=generator)):
        maps, gradients = torch.randn(2, 8, 3, 4, generator=generator), []
        maps[0, :, 0, 0] = 0  # a pixel without direction
        for score in (pixel_text_scores, pixel_text_scores_reference):
            leaf = maps.clone().requires_grad_()
            scores = score(leaf, texts, 0.07)
            scores.square().sum().backward()
            gradients.append((scores.detach(), leaf.grad))
        for fast, plain in zip(*gradients, strict=True):
            torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-4)
        assert (gradients[0][1][0, :, 0, 0] == 0).all() and (gradients[0][0][0, :, 0, 0] == 0).all()


def test_wrong_shapes_of_embeddings_are_named():
    with pytest.raises(ValueError, match=r"class_embeddings: shape \[3, 9\], expected \[labels, 8\]"):
        pixel_text_scores(torch.zeros(2, 8, 3, 3), torch.zeros(3, 9), 1.0)
    with pytest.raises(ValueError, match="class_embeddings: those of 3 images, expected 2"):
        pixel_text_scores(torch.zeros(2, 8, 3, 3), torch.zeros(3, 4, 8), 1.0)


@pytest.mark.parametrize("kind", BLOCKS[1:])
def test_a_block_has_ten_parameters_and_depth_zero_is_depth_one(kind):
    scores, found = torch.randn(2, 4, 5, 6), []
    torch.manual_seed(0)
    weights = LSegSpatialBlock(kind, 1, "relu").state_dict()
    for depth in (0, 1, 2, 3):
        block = LSegSpatialBlock(kind, depth, "relu")
        block.load_state_dict(weights)
        assert sum(p.numel() for p in block.parameters()) == 10
        found.append(block(scores))
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[1], found[2]) and not torch.allclose(found[2], found[3])


def test_the_class_token_is_added_or_left_out():
    """What enters the feature maps, written out for one level."""
    image, grid = pixels(1, 64, 96), (64 // 16, 96 // 16)
    for readout in ("ignore", "add"):
        model = lseg_model(readout_type=readout)
        stage = model.lseg.neck.reassemble_stage
        with torch.no_grad():
            tokens, _ = model.lseg.encode_image(image)
            patches = tokens[2][:, 1:] + (tokens[2][:, :1] if readout == "add" else 0)
            maps = patches.transpose(1, 2).unflatten(2, grid)
            expected = F.conv2d(maps, stage.layers[2].projection.weight, stage.layers[2].projection.bias)
            torch.testing.assert_close(stage(tokens, *grid)[2], expected)


# ---- loss


def test_ignored_pixels_have_no_gradient_and_a_batch_of_them_has_loss_zero():
    model, inputs = lseg_model(), lseg_inputs(2)
    outputs = model(**inputs)
    outputs.logits.retain_grad()
    outputs.loss.backward()
    ignored = (inputs["labels"] == 255)[:, None].expand_as(outputs.logits)
    assert (outputs.logits.grad[ignored] == 0).all() and (outputs.logits.grad[~ignored] != 0).any()
    expected = F.cross_entropy(outputs.logits, inputs["labels"], ignore_index=255)
    torch.testing.assert_close(outputs.loss, expected)
    inputs["labels"][:] = 255
    for fields in ({}, {"use_auxiliary_head": True, "presence_loss_weight": 0.2}):
        model = lseg_model(**fields)
        loss = model(**inputs).loss
        loss.backward()
        assert torch.isfinite(loss) and (fields or loss == 0)
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_auxiliary_and_presence_losses_are_added_with_their_weights():
    inputs, fields = lseg_inputs(2), {"use_auxiliary_head": True, "auxiliary_loss_weight": 0.0}
    model = lseg_model(**fields)
    losses = {}
    for auxiliary, presence in ((0.0, 0.0), (0.2, 0.0), (0.4, 0.0), (0.0, 0.5)):
        model.config.auxiliary_loss_weight, model.config.presence_loss_weight = auxiliary, presence
        losses[auxiliary, presence] = model(**inputs).loss.item()
    plain = losses[0.0, 0.0]
    assert losses[0.2, 0.0] > plain + 0.01 and losses[0.0, 0.5] > plain + 0.01
    assert losses[0.4, 0.0] - plain == pytest.approx(2 * (losses[0.2, 0.0] - plain), rel=1e-4)
    model.config.auxiliary_loss_weight = 1.0
    model.zero_grad()
    model(**inputs).loss.backward()
    assert model.auxiliary_projection.weight.grad.abs().sum() > 0


def test_presence_is_learned_from_the_labels_of_an_image():
    labels = torch.tensor([[[0, 2], [2, 255]], [[255, 255], [255, 1]]])
    logits = torch.tensor([[20.0, -20.0, 20.0], [-20.0, 20.0, -20.0]])
    assert presence_loss(logits, labels) < 1e-6 and presence_loss(-logits, labels) > 10
    assert presence_loss(logits, labels.to(torch.uint8)) == presence_loss(logits, labels)
    with pytest.raises(ValueError, match=r"labels: expected shape \[2, H, W\]"):
        presence_loss(logits, labels[:1])
    with pytest.raises(ValueError, match=r"labels\[1, 0, 1\] is 3, expected 0..2 or 255"):
        presence_loss(logits, torch.tensor([[[0, 0]], [[0, 3]]]))


# ---- frozen parts


def test_the_frozen_text_encoder_has_no_gradient_and_stays_in_eval_mode():
    model, inputs = lseg_model().train(), lseg_inputs(2)
    before = {name: tensor.clone() for name, tensor in model.lseg.text_model.state_dict().items()}
    assert model.lseg.vision_model.training
    assert not any(module.training for module in model.lseg.text_model.modules())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    model(**inputs).loss.backward()
    optimizer.step()
    assert all(p.grad is None for p in model.lseg.text_model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.lseg.text_model.state_dict().items())
    model = lseg_model(freeze_text_encoder=False).train()
    assert model.lseg.text_model.training
    model(**inputs).loss.backward()
    assert model.lseg.text_projection.weight.grad.abs().sum() > 0


def test_every_other_parameter_that_is_trained_gets_a_gradient():
    """Others would stop DistributedDataParallel, which waits for their gradients."""
    for encoder in ENCODERS:
        model = lseg_model(encoder, use_auxiliary_head=True, head_block="depthwise").train()
        model(**lseg_inputs(2, (64, 64))).loss.backward()
        without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not without, encoder
        assert any(p.requires_grad for p in model.lseg.vision_model.parameters())


def test_frozen_batch_normalisation_takes_a_single_small_image(tmp_path):
    inputs = lseg_inputs(1, (32, 32))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        lseg_model().train()(**inputs)
    model = lseg_model(freeze_batch_norm=True)
    model.save_pretrained(tmp_path)
    loaded = LSegForSemanticSegmentation.from_pretrained(tmp_path).train()
    before = [b.clone() for b in loaded.buffers()]
    loaded(**inputs).loss.backward()
    assert all(torch.equal(*pair) for pair in zip(loaded.buffers(), before, strict=True))
    assert not loaded.lseg.text_projection.weight.requires_grad  # also after loading


# ---- files


def test_a_clip_gives_its_encoders_and_the_decoder_is_new(tmp_path):
    clip = tiny_clip()
    clip.save_pretrained(tmp_path / "clip")
    fields = {"fusion_hidden_size": 8, "neck_hidden_sizes": [4, 4, 4, 4], "head_block": "depthwise"}
    model = LSegForSemanticSegmentation.from_pretrained(tmp_path / "clip", **fields)
    weights = clip.state_dict()
    for name, tensor in model.lseg.state_dict().items():
        if not name.startswith(("neck.", "pixel_projection.")):
            assert torch.equal(tensor, weights[name]), name
    assert not any(p.requires_grad for p in model.lseg.text_model.parameters())
    assert model.config.backbone_out_indices == [0, 0, 1, 2] and model.config.reassemble_factors == [2, 1, 0.5, 0.25]
    model.save_pretrained(tmp_path / "lseg")
    again = LSegForSemanticSegmentation.from_pretrained(tmp_path / "lseg")
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert type(AutoModel.from_pretrained(tmp_path / "lseg")) is LSegModel


def test_trained_encoders_are_copied_and_compute_the_same():
    text = {
        "vocab_size": 99,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "projection_dim": 12,
    }
    texts = CLIPTextModelWithProjection(CLIPTextConfig(**text, intermediate_size=40, eos_token_id=98)).eval()
    sizes = {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 40}
    vit = ViTModel(ViTConfig(**sizes, image_size=32, layer_norm_eps=1e-6)).eval()
    resnet = ResNetModel(ResNetConfig(embedding_size=6, hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1])).eval()
    torch.nn.init.normal_(vit.embeddings.position_embeddings)
    ids, image = torch.tensor([[1, 5, 98], [1, 7, 98]]), pixels(1, 32, 32)
    for encoder in (vit, resnet, tiny_clip()):
        model = LSegForSemanticSegmentation.from_encoders(encoder, texts, fusion_hidden_size=8).eval()
        assert model.config.projection_dim == 12 and not model.lseg.text_projection.weight.requires_grad
        images = getattr(encoder, "vision_model", encoder)
        options = {"interpolate_pos_encoding": True} if encoder is not resnet and encoder is not vit else {}
        with torch.no_grad():
            wanted = images(image, output_hidden_states=True, **options).hidden_states[-1]
            torch.testing.assert_close(model.lseg.encode_image(image)[0][-1], wanted)
            embeds = F.normalize(texts(ids).text_embeds, dim=-1)
            torch.testing.assert_close(model.get_class_embeddings(ids), embeds)
    with pytest.raises(ValueError, match="image_encoder: a clip_text_model model, expected a ViTModel"):
        LSegForSemanticSegmentation.from_encoders(texts, texts)
    with pytest.raises(ValueError, match="text_encoder: ViTModel, expected a CLIPTextModelWithProjection"):
        LSegForSemanticSegmentation.from_encoders(vit, vit)


def test_a_checkpoint_that_lacks_a_part_of_the_decoder_is_damaged(tmp_path):
    model = lseg_model()
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["lseg.pixel_projection.bias"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="1 weights are missing.*lseg.pixel_projection.bias"):
        LSegForSemanticSegmentation.from_pretrained(tmp_path)


def test_the_embedded_clip_becomes_an_lseg():
    fields = {"fusion_hidden_size": 8, "neck_hidden_sizes": [4, 4, 4, 4]}
    model = LSegForSemanticSegmentation.from_pretrained(EMOJI_CLIP, dtype=torch.float32, **fields).eval()
    model.set_labels(["cat", "taco", "background"], tiny_tokenizer(), templates=["an emoji of {}.", "{}"])
    assert logits_of(model, pixels(1, 80, 64), None).shape == (1, 3, 80, 64)
    similar = model.class_embeddings @ model.class_embeddings.t()
    assert similar[0, 1] < 0.95


@pytest.mark.parametrize("name", ["vitl16", "vitl16_rn50x16", "vitb32", "resnet101"])
def test_published_variants(name):
    config = LSegConfig.of_variant(name)
    with torch.device("meta"):
        model = LSegForSemanticSegmentation(config)
    vision = config.vision_config
    assert model.lseg.pixel_projection.out_channels == (768 if name.endswith("16") and "rn" in name else 512)
    if name == "resnet101":
        assert config.neck_hidden_sizes == [256, 512, 1024, 2048]
        # torchvision's ResNet-101 without its classifier of 2049 x 1000.
        assert sum(p.numel() for p in model.lseg.vision_model.parameters()) == 44_549_160 - 2_049_000
    else:
        layers, patch, width = (12, 32, 768) if name == "vitb32" else (24, 16, 1024)
        assert (vision.num_hidden_layers, vision.patch_size, vision.hidden_size) == (layers, patch, width)
        assert config.backbone_out_indices == ([2, 5, 8, 11] if layers == 12 else [5, 11, 17, 23])
        assert vision.layer_norm_eps == 1e-6 and vision.image_size == 384
    assert LSegConfig(**config.to_dict()).to_dict() == config.to_dict()
    with pytest.raises(ValueError, match="name: 'vits', expected one of vitl16"):
        LSegConfig.of_variant("vits")


def test_a_configuration_keeps_the_sizes_that_equal_dpts_defaults(tmp_path):
    """They are not written to the file, and must not become this configuration's defaults when it is read."""
    config = lseg_config(vision_config={"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12})
    config.save_pretrained(tmp_path)
    assert LSegConfig.from_pretrained(tmp_path).vision_config.hidden_size == 768
    LSegConfig.of_variant("vitb32").save_pretrained(tmp_path)
    assert LSegConfig.from_pretrained(tmp_path).to_dict() == LSegConfig.of_variant("vitb32").to_dict()
