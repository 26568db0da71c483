"""The training of the embedded VQGAN: streams, goes on where it was, in two processes, in mixed precision."""

import shutil

import pytest
import torch
from paths import SCRIPTS
from processes import run_on_ranks
from safetensors.torch import load_file

from hf_clip_variants import VQGANModel
from hf_clip_variants.data.images.emoji import load_emoji


SCRIPT = SCRIPTS / "train_vqgan.py"
# All of the loss is in use: codes from step 1 on, CLIP in every step, the discriminator from step 2 on.
TINY = (
    "--steps 4 --save-steps 2 --crop 16 --quantize-from 1 --perceptual-every 1 --discriminator-from 2 --optim sgd"
    " --lr 5"
).split()
TINY += [
    "--settings",
    '{"channel_multiplier": [1, 2], "latent_channels": 8, "embed_dim": 4, "num_embeddings": 16, "norm_groups": 16}',
]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import train_vqgan

    return train_vqgan


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """The five files, of 12 emoji each."""
    folder = tmp_path_factory.mktemp("pictures")
    rows = load_emoji("notov1").dataset.select(range(12)).add_column("group", ["food-drink"] * 11 + ["flags"])
    for name in ("emoji-noto", "emoji-notov1", "emoji-fluent3d", "emoji-fluentflat", "clipart"):
        rows.to_parquet(str(folder / f"{name}.parquet"))
    return folder


def weights(folder):
    return load_file(folder / "checkpoint-4" / "model.safetensors")


def check_equal(found, expected, rtol=0.0, atol=0.0):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=rtol, atol=atol, msg=name)


def test_concepts_are_held_out_in_all_styles_and_flags_are_left_out(script, pictures):
    assert script.is_held_out({"hexcode": "1F408-200D-2B1B"}, 3) == (0x1F408 % 29 == 0)
    assert script.is_held_out({"hexcode": "1F33B"}, 1) and not script.is_held_out({"hexcode": "1F34E"}, 40)
    assert script.is_held_out({"title": "house"}, 40) and not script.is_held_out({"title": "house"}, 41)
    stream = script.Pictures(pictures, 64, seed=0)._stream("clipart")
    numbers = {row["image"]["bytes"] for row, _ in zip(stream, range(30), strict=False)}
    assert len(numbers) == 10, "of twelve, the first is held out and the last is a flag"


def test_a_stream_that_begins_later_has_the_same_pictures(script, pictures):
    whole = [row["pixel_values"] for row, _ in zip(script.Pictures(pictures, 16, 3), range(12), strict=False)]
    later = [row["pixel_values"] for row, _ in zip(script.Pictures(pictures, 16, 3, first=7), range(5), strict=False)]
    assert all(torch.equal(one, other) for one, other in zip(whole[7:], later, strict=True))
    assert len({one.sum().item() for one in whole}) > 8


@pytest.mark.slow
def test_resumed_and_in_two_processes_it_ends_where_one_run_does(script, pictures, tmp_path, capsys):
    arguments = ["--data", str(pictures), *TINY]
    script.main([*arguments, "--batch-size", "4", "--out", str(tmp_path / "one")])
    one = weights(tmp_path / "one")
    start = load_file(tmp_path / "one" / "checkpoint-2" / "model.safetensors")
    moved = max((one[name] - start[name]).abs().max().item() for name in one)
    assert moved > 1e-3

    shutil.copytree(tmp_path / "one" / "checkpoint-2", tmp_path / "resumed" / "checkpoint-2")
    (tmp_path / "resumed" / "checkpoint-3").mkdir()  # killed while it was written
    script.main([*arguments, "--batch-size", "4", "--out", str(tmp_path / "resumed")])
    assert "from step 2 to 4" in capsys.readouterr().out
    check_equal(weights(tmp_path / "resumed"), one)
    extra = [load_file(tmp_path / name / "checkpoint-4" / script.EXTRA) for name in ("resumed", "one")]
    check_equal(*extra)
    assert int(extra[1]["used"].sum()) == 3 * 4 * 64

    run_on_ranks(
        SCRIPT, *arguments, "--batch-size", "2", "--out", tmp_path / "two", world_size=2, folder=tmp_path
    )  # fmt: skip
    check_equal(weights(tmp_path / "two"), one, rtol=1e-3, atol=1e-3 * moved)


@pytest.mark.slow
def test_in_mixed_precision_it_trains_and_ships(script, pictures, tmp_path):
    arguments = ["--data", str(pictures), "--out", str(tmp_path / "run"), *TINY]
    script.main([*arguments, "--batch-size", "2", "--bf16"])
    script.main([*arguments, "--ship", str(tmp_path / "shipped")])
    model = VQGANModel.from_pretrained(tmp_path / "shipped", dtype=torch.float32)
    trained = weights(tmp_path / "run")
    assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in trained.values())
    check_equal(dict(model.state_dict()), trained, rtol=1e-3, atol=1e-6)
    figures = script.json.loads((tmp_path / "shipped" / "metrics.json").read_text())
    assert figures["steps"] == 4 and 0 < figures["absolute_error"] < 1 and figures["codes_in_use"] <= 16
    assert figures["clip_distance"] > figures["clip_distance_squashed"] > 0, "after four steps"
