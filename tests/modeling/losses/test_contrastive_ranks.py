"""Real processes on gloo: losses of W ranks, steps by DDP, `fully_shard` and `Trainer` are those of one process."""

import re

import pytest
import torch
from contrastive_runs import (
    loss_and_gradients,
    pairs,
    plain_steps,
    run_ranks,
    train_by_trainer,
)

from hf_clip_variants.modeling.losses.contrastive_loss_reference import contrastive_loss_reference


INPUTS = dict(zip(("image", "text", "logit_scale"), (x.detach() for x in pairs(8, dtype=torch.float64)), strict=True))
INPUTS["text"][[0, 5]] *= -1  # two pairs that do not match
INPUTS["logit_bias"] = torch.tensor([-1.5], dtype=torch.float64)
COUNTS = {2: [[4, 4], [3, 5], [8, 0]], 4: [[2, 2, 2, 2], [0, 3, 1, 4]]}
# Ways to train, with the pairs of each rank: each way with even and uneven ones, on two ranks and on more.
STEPS = {
    2: [("ddp", [8, 8]), ("fsdp", [7, 9]), ("ddp+cache", [7, 9]), ("fsdp+cache", [8, 8])],
    4: [("ddp", [3, 5, 4, 4]), ("fsdp", [4, 4, 4, 4]), ("fsdp+cache", [3, 5, 4, 4])],
}


def start(factory, world_size, **task):
    task |= {"counts": COUNTS[world_size], "steps": STEPS[world_size]}
    return run_ranks(factory.mktemp("ranks") / "out", world_size, INPUTS, **task)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return start(tmp_path_factory, 2, failures=True, trainer=True)


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    return start(tmp_path_factory, 4)


def ranks_of(request, counts):
    return request.getfixturevalue({2: "two", 4: "four"}[len(counts)])


def of_case(ranks, prefix):
    """What each rank found, by name."""
    return [{k[len(prefix) + 1 :]: v for k, v in found.items() if k.startswith(prefix + ".")} for found, _ in ranks]


def close(actual, expected, tolerance=1e-12):
    assert actual.shape == expected.shape
    assert (actual - expected).norm() <= tolerance * max(expected.norm(), 1), (actual - expected).norm()


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
@pytest.mark.parametrize("counts", [*COUNTS[2], *COUNTS[4]], ids=str)
def test_value_and_averaged_gradients_are_those_of_one_process(counts, form, request):
    ranks = of_case(ranks_of(request, counts), f"{'-'.join(map(str, counts))}.{form}.exact")
    names = ("image", "text", "logit_scale") + (("logit_bias",) if form == "sigmoid" else ())
    loss, *grads = loss_and_gradients(contrastive_loss_reference, [INPUTS[name] for name in names])
    for found, count in zip(ranks, counts, strict=True):
        close(found["loss"], loss)
        assert found["d_image"].shape == (count, 12)
        assert {k for k in found if k.startswith("d_")} == {f"d_{name}" for name in names}
    for name, expected in zip(names, grads, strict=True):
        if name in ("image", "text"):  # each row lies on one rank: the average over ranks is its gradient over W
            close(torch.cat([found[f"d_{name}"] for found in ranks]) / len(ranks), expected)
        else:  # whole on each rank: averaged or not
            for found in ranks:
                close(found[f"d_{name}"], expected)


@pytest.mark.parametrize("world", ["two", "four"])
def test_column_normalisers_of_the_ranks_add_up_without_overflow(world, request):
    """At scale e^8 the exponential of a logit is infinite in float64."""
    inputs = [INPUTS["image"], INPUTS["text"], torch.tensor(8.0, dtype=torch.float64)]
    loss, _, text_grad, _ = loss_and_gradients(contrastive_loss_reference, inputs)
    ranks = of_case(request.getfixturevalue(world), "large")
    assert loss > 700
    close(ranks[0]["loss"], loss)
    close(torch.cat([found["d_text"] for found in ranks]) / len(ranks), text_grad)


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_one_side_travels_once_in_each_direction(two, form):
    """open_clip's exact mode gathers both sides and reduces both gradients: twice as much."""
    for found in of_case(two, f"4-4.{form}.exact"):
        facts = 4 * 2
        assert found["traffic"] == 2 * INPUTS["text"].numel() + facts


@pytest.mark.parametrize("counts", [COUNTS[2][0], COUNTS[4][0]], ids=str)
def test_the_other_modes_are_what_their_names_say(counts, request):
    ranks = ranks_of(request, counts)
    prefix = "-".join(map(str, counts))
    inputs = [INPUTS[name] for name in ("image", "text", "logit_scale")]
    loss, image_grad, *_ = loss_and_gradients(contrastive_loss_reference, inputs)

    open_clip = of_case(ranks, f"{prefix}.softmax.open_clip")
    close(torch.cat([found["d_image"] for found in open_clip]), image_grad)
    close(open_clip[0]["loss"], loss)

    slip = of_case(ranks, f"{prefix}.softmax.slip")
    close(torch.stack([found["loss"] for found in slip]).mean(), loss)
    assert (
        torch.cat([found["d_image"] for found in slip]) / len(counts) - image_grad
    ).norm() > 0.05 * image_grad.norm()

    for rank, found in enumerate(of_case(ranks, f"{prefix}.softmax.none")):
        own = slice(rank * counts[0], (rank + 1) * counts[0])
        alone, own_grad, *_ = loss_and_gradients(
            contrastive_loss_reference, [inputs[0][own], inputs[1][own], inputs[2]]
        )
        close(found["loss"], alone)
        close(found["d_image"], own_grad)


@pytest.mark.parametrize("counts", [[4, 4], [3, 5], [0, 3, 1, 4]], ids=str)
def test_accuracy_counts_each_images_own_text_among_all(counts, request):
    ranks = of_case(ranks_of(request, counts), f"{'-'.join(map(str, counts))}.softmax.exact")
    image, text = (INPUTS[name] / INPUTS[name].norm(dim=1, keepdim=True) for name in ("image", "text"))
    correct = (image @ text.T).argmax(1) == torch.arange(8)
    assert 0 < correct.sum() < 8
    for found, expected in zip(ranks, correct.split(counts), strict=True):
        torch.testing.assert_close(found["accuracy"], expected.float().mean(), equal_nan=True)


@pytest.mark.parametrize(
    "case, first, last",
    [
        (
            "shape",
            r"RuntimeError: .*ranks \[1\] of 2 refused their input.*rank 0 stops too",
            r"ValueError: .*same shape .*got \(4, 4\) and \(3, 4\)",
        ),
        (
            "scale",
            r"RuntimeError: .*ranks \[1\] of 2 refused",
            r"FloatingPointError: logit_scale: exp\(logit_scale\) is nan",
        ),
        ("width", r"ValueError: .*width differs over the ranks: \[4, 3\]", r"ValueError: .*width differs"),
        (
            "dtype",
            r"ValueError: .*bytes of one number differs over the ranks: \[4, 8\]",
            r"ValueError: .*bytes of one number",
        ),
        ("empty", "ValueError: image_embeds, text_embeds: the batch is empty", "ValueError: .*the batch is empty"),
        (
            "slip",
            r"ValueError: gather: 'slip' needs as many pairs on every rank, got \[4, 3\]",
            "ValueError: gather: 'slip'",
        ),
        ("afterwards", "no error", "no error"),
        (
            "absent",
            r"RuntimeError: contrastive_loss: rank 0 of 2 waited for the others in vain.*same number of steps",
            "left",
        ),
    ],
)
def test_what_is_wrong_on_one_rank_stops_all_with_a_message(two, case, first, last):
    for (_, messages), expected in zip(two, (first, last), strict=True):
        assert re.match(expected, messages[case]), messages[case]


@pytest.mark.parametrize("how, counts", [*STEPS[2], *STEPS[4]], ids=str)
def test_a_step_on_many_ranks_is_the_step_of_one_with_all_pairs(how, counts, request):
    """Under DDP, under `fully_shard` with `logit_scale` left out, and both from chunks."""
    expected = plain_steps(16)
    for found in of_case(ranks_of(request, counts), f"{'-'.join(map(str, counts))}.{how}"):
        assert set(found) == set(expected)
        for name, tensor in expected.items():
            torch.testing.assert_close(
                found[name], tensor, rtol=1e-4, atol=1e-5, msg=lambda t, n=f"{how} {name}": f"{n}: {t}"
            )


def test_trainer_with_the_callback_trains_plain_clip_as_one_process_does(two, tmp_path):
    expected = dict(train_by_trainer(tmp_path / "one", batch_size=8, exact=False).named_parameters())
    alone = dict(train_by_trainer(tmp_path / "half", batch_size=4, exact=False).named_parameters())
    for found in of_case(two, "trainer"):
        assert set(found) == set(expected)
        for name, parameter in expected.items():
            torch.testing.assert_close(found[name], parameter.detach(), rtol=1e-4, atol=1e-5)
    name = "logit_scale"
    assert (alone[name] - expected[name]).abs() > 1e-3, "the batch size makes no difference here"
