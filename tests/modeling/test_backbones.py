import pytest
import torch
from tiny import tiny_clip

from hf_clip_variants.modeling.backbones import family_of, fingerprint, same_backbone


def test_fingerprint_knows_the_weights_in_any_dtype_and_no_others():
    model = tiny_clip()
    print_ = fingerprint(model)
    assert same_backbone(print_, fingerprint(tiny_clip()))
    assert same_backbone(print_, fingerprint(tiny_clip().bfloat16()))
    assert same_backbone(print_, fingerprint(tiny_clip().half()))
    assert not same_backbone(print_, fingerprint(tiny_clip(seed=1))), "other weights of equal shapes"
    assert not same_backbone(print_, fingerprint(tiny_clip(text_config={"num_hidden_layers": 1}))), "fewer layers"
    with torch.device("meta"):
        meta = tiny_clip()
    assert same_backbone(print_, fingerprint(meta)), "on the meta device the shapes are all there is"


def test_unknown_family_is_an_error_that_lists_the_known():
    with pytest.raises(ValueError, match="'bert' is not supported, expected one of clip"):
        family_of("bert")
