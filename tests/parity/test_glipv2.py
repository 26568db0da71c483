"""GLIPv2's inter-image loss, mask head and word predictions against the official code."""

import pytest
import torch
from parity_fixtures import assert_close, load_fixture

from hf_clip_variants.modeling.glipv2.configuration_glipv2 import GLIPv2Config
from hf_clip_variants.modeling.glipv2.convert_glipv2 import addition_names
from hf_clip_variants.modeling.glipv2.heads_glipv2 import GLIPv2Contrast, GLIPv2MaskHead, GLIPv2WordPredictions
from hf_clip_variants.modeling.glipv2.losses_glipv2 import (
    ContrastTexts,
    inter_image_sums,
    mask_loss,
    masked_word_loss,
)


pytestmark = pytest.mark.parity


def make_config(text: int, width: int, **fields) -> GLIPv2Config:
    """Of the heads alone; the rest is as small as it gets."""
    sizes = {"vocab_size": 110, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 4}
    return GLIPv2Config(
        backbone_config={"embed_dim": 4, "depths": [1] * 4, "num_heads": [1] * 4, "window_size": 2},
        text_config=sizes | {"hidden_size": text} | fields.pop("text_config", {}),
        hidden_size=width,
        num_groups=1,
        **fields,
    )


def load(module, part: str, official: dict, config: GLIPv2Config):
    """The module with the weights of this part of the model; every official one is used, or a second name."""
    names = {theirs: ours for theirs, ours in addition_names(config).items() if ours.startswith(part)}
    module.load_state_dict({ours.removeprefix(part): official[theirs] for theirs, ours in names.items()})
    return module.eval(), set(names)


# ---- regions and words of all images


def of_contrast():
    fixture = load_fixture("glipv2_inter_image_contrastive")
    hyper, given = fixture.meta["hyper"], fixture.inputs
    config = make_config(
        hyper["lang_dim"], hyper["channels"], contrastive_dim=hyper["hidden_dim"], use_mlm=False, use_mask_head=False
    )
    contrast, used = load(GLIPv2Contrast(config), "contrast.", fixture.state_dict, config)
    assert used == fixture.state_dict.keys()
    levels = sorted(name for name in given if name.startswith("visual_flat_"))
    maps = torch.cat([given[name] for name in levels], dim=1)
    index, mask = given["positive_anchor_index"], given["text_mask"] > 0
    present, text = index >= 0, given["text"].clone().requires_grad_()
    images, _ = torch.where(present)
    own_words = torch.zeros(len(images), *mask.shape)
    own_words[torch.arange(len(images)), images] = given["region_to_own_token"][present]
    texts = ContrastTexts(
        given["region_od_label"][present].long(),
        given["token_od_label"][mask].long(),
        images,
        torch.where(mask)[0],
        own_words[:, mask],
    )
    return fixture, contrast, maps[images, index[present]], text, mask, present, texts


def test_inter_image_loss_and_its_gradients_are_the_official_ones():
    fixture, contrast, regions, text, mask, _, texts = of_contrast()
    expected = fixture.outputs
    region_sum, word_sum = inter_image_sums(*contrast(regions, text[mask]), contrast.log_scale, texts, "none")
    assert_close(region_sum[None], expected["box_to_token_sum"], "regions", 2e-6)
    assert_close(word_sum[None], expected["token_to_box_sum"], "words", 2e-6)
    loss = (region_sum + word_sum) / 2 / expected["num_pos"]
    assert_close(loss, expected["loss_shallow_contrastive"], "loss", 2e-6)
    loss.sum().backward()
    gradients = {
        "grad_proj_image_weight": contrast.image_projection.weight.grad,
        "grad_proj_text_weight": contrast.text_projection.weight.grad,
        "grad_log_scale": contrast.log_scale.grad,
        "grad_text": text.grad,
    }
    assert gradients.keys() == {name for name in expected if name.startswith("grad_")}
    for name, gradient in gradients.items():
        assert_close(gradient, expected[name], name)


def test_similarities_and_what_belongs_together_are_the_official_ones():
    """Rows and columns of padding, which only the official code has, are masked there and belong to nothing."""
    fixture, contrast, regions, text, mask, present, texts = of_contrast()
    expected, rows, columns = fixture.outputs, present.flatten(), mask.flatten()
    with torch.no_grad():
        regions, words = contrast(regions, text[mask])
        found = regions @ words.T / contrast.log_scale.exp()
    for name, similarities in (("image", found), ("text", found.T)):
        first, second = (rows, columns) if name == "image" else (columns, rows)
        theirs, together = expected[f"{name}_logits"], expected[f"{name}_positive_map"]
        assert_close(similarities, theirs[first][:, second], f"{name} similarities")
        outside = ~(first[:, None] & second)
        least = fixture.meta["hyper"]["mask_value"]
        assert (theirs[outside] <= least / 2).all() and (together[outside] == 0).all()
    same, own = texts.targets()
    ours = torch.where(same, own, texts.region_labels[:, None] == texts.word_labels).float()
    for name, one in (("image", ours), ("text", ours.T)):
        first, second = (rows, columns) if name == "image" else (columns, rows)
        shares = one / one.sum(dim=1, keepdim=True).clamp_min(1)
        assert_close(shares, expected[f"{name}_positive_map"][first][:, second], f"{name} pairs")


# ---- masks and words


def of_masks():
    fixture = load_fixture("glipv2_mask_mlm")
    hyper = fixture.meta["hyper"]
    config = make_config(
        hyper["lang_dim"],
        hyper["dim_reduced"],
        text_config={"vocab_size": hyper["vocab"], "max_position_embeddings": 256},
        mask_num_convs=0,  # the fixture starts behind them
        mask_token_id=0,
        end_token_id=0,
        use_inter_image_loss=False,
    )
    return fixture, config


def test_masks_and_their_loss_are_the_official_ones():
    fixture, config = of_masks()
    given, expected, hyper = fixture.inputs, fixture.outputs, fixture.meta["hyper"]
    head, _ = load(GLIPv2MaskHead(config), "mask_head.", fixture.state_dict, config)
    words, regions = given["hidden"][0], given["roi_features"]
    # Each token alone.
    vectors, biases = head.read(words, torch.eye(len(words)))
    count = len(regions)
    logits = head.compare(regions, vectors.expand(count, -1, -1), biases.expand(count, -1))
    assert_close(logits, expected["mask_logits"], "logits of tokens")
    # Labels, of which some may have no token.
    labels = expected["mask_prob_od"].shape[1]
    members = torch.zeros(labels, len(words))
    for label, tokens in hyper["positive_map"].items():
        members[int(label), tokens] = 1
    vectors, biases = head.read(words, members)
    masks = head.compare(regions, vectors.expand(count, -1, -1), biases.expand(count, -1)).sigmoid()
    assert_close(masks, expected["mask_prob_od"], "masks of labels")
    selected = head(regions, vectors[given["labels"]], biases[given["labels"]]).sigmoid()
    assert_close(selected[:, None], expected["mask_prob_selected"], "masks")
    vectors, biases = head.read(words, given["positive_rows"])
    loss = mask_loss(head(regions, vectors, biases), given["mask_targets"]) / count
    loss.backward()
    assert_close(loss[None], expected["loss_mask"], "loss", 2e-6)
    assert_close(head.text_projection.weight.grad, expected["grad_text_proj"], "gradient of the projection")
    assert_close(head.text_bias.grad, expected["grad_bias_lang"], "gradient of the words' bias")


def test_predicted_words_and_their_loss_are_the_official_ones():
    fixture, config = of_masks()
    head, used = load(GLIPv2WordPredictions(config), "word_predictions.", fixture.state_dict, config)
    masks = {name for name, ours in addition_names(config).items() if ours.startswith("mask_head.")}
    assert fixture.state_dict.keys() - used - masks == {"rpn.head.mlm_head.bias"}  # a second name
    logits = head(fixture.inputs["hidden"])
    assert_close(logits, fixture.outputs["mlm_logits"], "logits")
    loss, count = masked_word_loss(logits, fixture.inputs["mlm_labels"])
    assert_close((loss / count)[None], fixture.outputs["mlm_loss"], "loss", 2e-6)
