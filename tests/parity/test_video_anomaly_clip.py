"""AnomalyCLIP for videos from converted official weights: texts, scores, selection, eight losses, gradients."""

import pytest
import torch
from parity_fixtures import assert_close, fixtures_like, load_fixture
from video_anomaly_clip_runs import whole_checkpoint

from hf_clip_variants.modeling.video_anomaly_clip.convert_video_anomaly_clip import (
    to_official,
    video_anomaly_clip_from_official,
)


pytestmark = pytest.mark.parity

NAMES = fixtures_like("anomalyclip*")
LOSSES = {
    "dir_abn": "dir_abnormal",
    "dir_nor": "dir_normal",
    "topk_abn": "topk_abnormal",
    "bottomk_abn": "bottomk_abnormal",
    "topk_nor": "topk_normal",
    "smooth": "smooth",
    "sparse": "sparse",
}


def convert(fixture):
    said = fixture.meta["hyper"]
    return video_anomaly_clip_from_official(
        whole_checkpoint(fixture),
        normal_centroid=fixture.inputs["ncentroid"],
        class_names=said["labels_file"],
        normal=said["normal_id"],
        vision_heads=1,
        text_heads=said["text"]["heads"],
        temporal_heads=said["heads"],
        num_topk=said["num_topk"],
        num_bottomk=said["num_bottomk"],
        selection_dropout_topk=said["select_idx_dropout_topk"],
        selection_dropout_bottomk=said["select_idx_dropout_bottomk"],
        **{f"weight_{name}": said["lambdas"][theirs] for theirs, name in LOSSES.items()},
    )


@pytest.fixture(params=NAMES)
def fixture(request):
    return load_fixture(request.param)


def training_step(fixture):
    model, given = convert(fixture).train(), fixture.inputs
    masks = {name: given[name] for name in ("topk_mask", "bottomk_mask")}
    features = given["features"][:, 0]
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))
    # The official code trusts that abnormal videos come first; here a batch may have any order. Halves keep theirs,
    # since the smoothness of scores goes across videos.
    normal = fixture.meta["hyper"]["normal_id"]
    is_normal = given["labels"][order] == normal
    order = order.clone()
    for kind in (is_normal, ~is_normal):
        order[kind] = order[kind].sort().values
    batch = {"video_features": features, "labels": given["labels"], **masks}
    output = model(**{name: value[order] for name, value in batch.items()})
    return model, output, order


def test_conversion_uses_every_weight_and_is_bit_identical(fixture):
    model, weights, said = convert(fixture), whole_checkpoint(fixture), fixture.meta["hyper"]
    back = {
        name.removeprefix("net."): tensor for name, tensor in to_official(model.state_dict(), model.config).items()
    }
    assert back.keys() == weights.keys()
    # Behind their end, prompts are filled up with something that nothing sees.
    ends = fixture.inputs["tokenized_prompts_eot"] - said["n_ctx"]
    for name, tensor in back.items():
        expected = weights[name]
        if name == "prompt_learner.token_suffix":
            assert all(torch.equal(a[:end], b[:end]) for a, b, end in zip(tensor, expected, ends, strict=True))
        else:
            assert torch.equal(tensor, expected), name
    assert model.config.normal_id == said["normal_id"] and model.config.concat_features == said["concat_features"]
    assert model.config.temporal_num_layers == said["depth"]
    assert model.config.frames_per_window == said["num_segments"] * said["seg_length"]


def test_texts_and_scores_of_all_frames_equal_official(fixture):
    model, given, expected = convert(fixture), fixture.inputs, fixture.outputs
    with torch.no_grad():
        output = model(video_features=given["test_features"][:, 0])
    assert_close(output.text_features, expected["text_features"], "text_features", 1e-5)
    assert_close(output.logits[0], expected["test.similarity"], "similarity", 1e-5)
    assert_close(output.scores[0], expected["test.scores"], "scores", 1e-5)
    assert_close(output.class_probs[0], expected["test.class_probs_with_normal"], "class_probs", 1e-5)
    scores, probabilities = model.score_frames(given["test_features"][0, 0].numpy())
    assert_close(scores, expected["test.scores"], "scores of a stream", 1e-5)
    assert_close(probabilities, expected["test.class_probs_with_normal"], "class_probs of a stream", 1e-5)


def test_logits_and_chosen_segments_in_training_equal_official(fixture):
    _, output, order = training_step(fixture)
    expected, back, said = fixture.outputs, order.argsort(), fixture.meta["hyper"]
    assert_close(output.logits[back].flatten(0, 1), expected["train.logits"], "logits", 1e-5)
    assert_close(output.scores[back].flatten(), expected["train.scores"], "scores", 1e-5)
    for name, ours in (
        ("topk_abn", output.topk_abnormal),
        ("bottomk_abn", output.bottomk_abnormal),
        ("topk_nor", output.topk_normal),
    ):
        # Where fewer segments are left than chosen, the rest are ties.
        assert [sorted(row) for row in ours.tolist()] == [
            sorted(row) for row in expected[f"train.idx_{name}"].tolist()
        ], name
    grid = output.logits[back].unflatten(1, (said["num_segments"], said["seg_length"]))
    chosen = torch.cat([output.topk_abnormal, output.topk_normal])
    top = torch.cat([grid[row, segments].flatten(0, 1) for row, segments in enumerate(chosen)])
    assert top.shape == expected["train.logits_topk"].shape
    assert_close(top.sort(0).values, expected["train.logits_topk"].sort(0).values, "logits_topk", 1e-5)


def test_losses_gradients_and_statistics_equal_official(fixture):
    model, output, _ = training_step(fixture)
    expected, lambdas = fixture.outputs, fixture.meta["hyper"]["lambdas"]
    for theirs, ours in LOSSES.items():
        term = output.loss_dict[ours] * (lambdas[theirs] if theirs in ("smooth", "sparse") else 1)
        assert_close(term, expected[f"loss.{theirs}"], theirs, 1e-5)
    assert_close(output.loss, expected["loss.total"], "total", 1e-5)
    output.loss.backward()
    gradients = {key: p.grad if p.grad is not None else torch.zeros_like(p) for key, p in model.named_parameters()}
    official = to_official(model.state_dict() | gradients, model.config)
    compared = [key for key in expected if key.startswith("grad.")]
    for key in compared:
        assert_close(official["net." + key.removeprefix("grad.")], expected[key], key, 1e-4)
    assert len(compared) >= 5
    assert_close(model.selector_norm.running_mean, expected["bn_running_mean_after"], "running mean", 1e-5)
    assert_close(model.selector_norm.running_var, expected["bn_running_var_after"], "running variance", 1e-5)
    still = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert {name for name in still if name.startswith("clip.")} == still
    assert "clip.text_projection.weight" not in still
