"""Training CLIP-ViL: batches of captions, groups of one orientation, bfloat16, two processes."""

import pytest
import torch
from clip_vil_runs import WORDS, clip_vil_model, clip_vil_processor, noise, pretraining_inputs, vqa_inputs
from paths import PROGRAMS
from processes import run_on_ranks
from safetensors.torch import load_file

from hf_clip_variants.data.grouped_batches import GroupedBatches
from hf_clip_variants.modeling.clip_vil.pretraining_clip_vil import ClipViLPreTrainingCollator


MASK = WORDS.index("[MASK]")


def rows(count: int = 40):
    texts = ["the red cat", "a blue dog and a cat", "there is no dog", "green"]
    return [{"image": noise(40, 30, i % 3), "text": texts[i % 4], "answer": i % 5} for i in range(count)]


def test_batches_hide_words_and_swap_texts():
    collate = ClipViLPreTrainingCollator(clip_vil_processor(), seed=0)
    given, batch = rows(), None
    batch = collate(given)
    ids, labels, mask = batch["input_ids"], batch["labels"], batch["attention_mask"]
    original = (
        clip_vil_processor().tokenizer([row["text"] for row in given], padding=True, return_tensors="pt").input_ids
    )
    fits = batch["matching_labels"].bool()
    restored = torch.where(labels >= 0, labels, ids)
    width = min(original.shape[1], restored.shape[1])
    assert torch.equal(restored[fits][:, :width], original[fits][:, :width])
    assert 8 <= int(fits.sum()) <= 32 and all(
        (restored[i, :width] != original[i, :width]).any() for i in (~fits).nonzero()
    )
    assert torch.equal(batch["answer_labels"][fits], torch.tensor([i % 5 for i in range(40)])[fits])
    assert (batch["answer_labels"][~fits] == -100).all()
    chosen = labels >= 0
    assert chosen.any(dim=1).all() and not chosen[mask == 0].any() and not chosen[:, 0].any()
    assert 0.5 < (ids[chosen] == MASK).float().mean() < 1 and not (ids[~chosen] == MASK).any()
    outputs = clip_vil_model("pretraining").train()(**batch)
    assert set(outputs.loss_dict) == {"mlm", "matching", "answers"} and outputs.loss.isfinite()
    again = ClipViLPreTrainingCollator(clip_vil_processor(), seed=0)(given)
    assert all(torch.equal(again[name], batch[name]) for name in batch)


def test_batches_of_stored_grids_and_rows_that_do_not_fit():
    collate = ClipViLPreTrainingCollator(clip_vil_processor(), mismatch_probability=0.0, seed=1)
    stored = [{"grid_features": torch.randn(2, 3, 64), "text": row["text"]} for row in rows(3)]
    batch = collate(stored)
    assert batch["grid_features"].shape == (3, 2, 3, 64) and "answer_labels" not in batch
    assert batch["matching_labels"].tolist() == [1, 1, 1]
    assert collate(rows(1))["matching_labels"].tolist() == [1]
    for given, message in (
        ([], "rows: none"),
        ([{"image": noise(9, 9), "text": " "}], r"rows\[0\]: text is ' '"),
        ([*rows(1), {"text": "a cat"}], r"rows\[1\]: no image"),
        ([*rows(1), *stored], "some with grid_features and some with images"),
    ):
        with pytest.raises(ValueError, match=message):
            collate(given)
    with pytest.raises(ValueError, match="mlm_probability: 1.5"):
        ClipViLPreTrainingCollator(clip_vil_processor(), mlm_probability=1.5)


def test_groups_keep_orientations_apart_and_use_each_row_once():
    images = clip_vil_processor().image_processor
    sizes = [(50, 90), (90, 50), (64, 64), (30, 31), (31, 30)] * 5
    groups = [images.orientation(*size) for size in sizes]
    for shuffle in (False, True):
        sampler = GroupedBatches(groups, 4, shuffle=shuffle)
        batches = list(sampler)
        assert len(batches) == len(sampler) and sorted(sum(batches, [])) == list(range(25))
        assert all(len({groups[row] for row in batch}) == 1 and len(batch) <= 4 for batch in batches)
        shapes = {
            images([noise(*sizes[row][::-1]) for row in batch], return_tensors="pt").pixel_values.shape[2:]
            for batch in batches[:4]
        }
        assert shapes <= {(64, 96), (96, 64)}
    assert list(sampler) == batches
    sampler.set_epoch(1)
    assert list(sampler) != batches
    full = GroupedBatches(groups, 4, drop_last=True)
    assert all(len(batch) == 4 for batch in full) and len(list(full)) == len(full)
    for arguments, message in ((([], 2), "groups: none"), (([0], 0), "batch_size: 0")):
        with pytest.raises(ValueError, match=message):
            GroupedBatches(*arguments)


@pytest.mark.parametrize("head, make", [("vqa", vqa_inputs), ("pretraining", pretraining_inputs)])
def test_a_step_in_bfloat16_is_near_one_in_float32(head, make):
    inputs, gradients = make(4), []
    for mixed in (False, True):
        model = clip_vil_model(head, freeze_vision=True).train()
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            loss = model(**inputs).loss
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.99


def test_two_processes_train_and_measure_as_one(tmp_path):
    for size in (2, 1):
        run_on_ranks(PROGRAMS / "clip_vil_ranks.py", tmp_path, world_size=size, folder=tmp_path)
    alone = load_file(tmp_path / "1of1.safetensors")
    for rank in range(2):
        found = load_file(tmp_path / f"{rank + 1}of2.safetensors")
        assert found.keys() == alone.keys()
        for name, tensor in alone.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
    assert alone["logits"].shape == (6, 5)
