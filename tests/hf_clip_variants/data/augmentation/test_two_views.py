"""The three views of SLIP: what they are, reproducibility, data sets, loaders and pickles."""

import copy
import math
import pickle

import pytest
import torch
from datasets import Dataset
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from hf_clip_variants.data import TwoViews, TwoViewsCollator, load_emoji
from hf_clip_variants.data.augmentation import two_views
from hf_clip_variants.data.augmentation.two_views import IMAGENET_MEAN, IMAGENET_STD, VIEWS


@pytest.fixture(scope="module")
def images():
    return load_emoji("notov1").dataset[:6]["image"]


@pytest.fixture(scope="module")
def rows(images):
    return Dataset.from_dict({"image": images, "text": [f"number {i}" for i in range(6)]})


def equal(one, two):
    return all(torch.equal(one[name], two[name]) for name in VIEWS)


def denormalised(pixels):
    return pixels * torch.tensor(IMAGENET_STD)[:, None, None] + torch.tensor(IMAGENET_MEAN)[:, None, None]


def noise(size=(60, 80), seed=0):
    pixels = torch.randint(256, (*size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.numpy())


class TestViews:
    def test_shapes_dtype_and_normalisation(self):
        views = TwoViews(20, seed=0).views(Image.new("RGB", (50, 40), (255, 0, 128)))
        assert set(views) == set(VIEWS)
        assert all(view.shape == (3, 20, 20) and view.dtype == torch.float32 for view in views.values())
        expected = torch.tensor([1, 0, 128 / 255])[:, None, None].expand(3, 20, 20)
        torch.testing.assert_close(denormalised(views["pixel_values"]), expected, rtol=0, atol=1e-6)
        own = TwoViews(20, [0.5, 0.5, 0.5], [0.25, 0.25, 0.25]).views(Image.new("RGB", (50, 40), "white"))
        torch.testing.assert_close(own["pixel_values"], torch.full((3, 20, 20), 2.0))

    def test_the_clip_view_is_torchvisions_crop_of_half_or_more(self):
        """The same draws, so the same pixels as torchvision's transform on a PIL image."""
        image = noise()
        for seed in range(5):
            torch.manual_seed(seed)
            expected = v2.RandomResizedCrop(24, scale=(0.5, 1.0))(image)
            torch.manual_seed(seed)
            view = TwoViews(24).views(image)["pixel_values"]
            expected = v2.functional.pil_to_tensor(expected).float() / 255
            torch.testing.assert_close(denormalised(view), expected, rtol=0, atol=1e-5)

    def test_the_clip_view_is_never_mirrored_nor_coloured(self):
        ramp = Image.fromarray(
            torch.arange(64).mul(4).to(torch.uint8).expand(64, 64).unsqueeze(-1).expand(-1, -1, 3).numpy()
        )
        views = TwoViews(16)
        torch.manual_seed(0)
        made = [views.views(ramp) for _ in range(60)]
        slopes = {n: torch.stack([v[n][0, :, -1].mean() - v[n][0, :, 0].mean() for v in made]) for n in VIEWS}
        assert (slopes["pixel_values"] > 0).all()
        for name in VIEWS[1:]:
            assert 0.3 < (slopes[name] < 0).float().mean() < 0.7, "mirrored half of the time"

    def test_grey_and_jitter_come_as_often_as_they_should(self):
        """On an image of one colour, each leaves its mark."""
        image = Image.new("RGB", (64, 64), (200, 80, 40))
        torch.manual_seed(0)
        views = TwoViews(16)
        made = torch.stack([denormalised(views.views(image)[name]) for _ in range(250) for name in VIEWS[1:]])
        centre = made[:, :, 8, 8]
        grey = (centre.amax(1) - centre.amin(1)) < 0.02
        same = (centre - torch.tensor([200, 80, 40]) / 255).abs().amax(1) < 0.01
        error = 3 * 0.5 / math.sqrt(500)
        assert abs(grey.float().mean() - 0.2) < error
        assert abs(same.float().mean() - 0.2 * 0.8) < error, "neither jitter nor grey"

    def test_half_of_the_views_are_blurred(self, monkeypatch):
        """Against the same draws without, and with certain, blur."""
        image, made = noise((64, 64)), {}
        for probability in (0.0, 0.5, 1.0):
            monkeypatch.setattr(two_views, "_BLUR_P", probability)
            views = TwoViews(16, seed=0)
            made[probability] = []
            for epoch in range(100):
                views.set_epoch(epoch)
                made[probability] += [views.views(image)[name] for name in VIEWS[1:]]
        roughness = {p: torch.stack([v.diff(dim=-1).abs().mean() for v in found]) for p, found in made.items()}
        assert (roughness[1.0] <= roughness[0.0] + 1e-4).all() and (
            roughness[1.0] < 0.7 * roughness[0.0]
        ).float().mean() > 0.5
        kept = torch.tensor([torch.equal(a, b) for a, b in zip(made[0.5], made[0.0], strict=True)])
        blurred = torch.tensor([torch.equal(a, b) for a, b in zip(made[0.5], made[1.0], strict=True)])
        assert (kept | blurred).all() and abs(kept.float().mean() - 0.5) < 0.12

    def test_the_two_views_are_drawn_independently(self):
        image = noise()
        for views in (TwoViews(16), TwoViews(16, seed=1)):
            made = views.views(image)
            assert not torch.equal(made["pixel_values_aug1"], made["pixel_values_aug2"])

    @pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
    def test_images_of_all_modes(self, mode):
        assert TwoViews(16).views(noise().convert(mode))["pixel_values"].shape == (3, 16, 16)

    def test_extreme_shapes(self):
        for size in ((1, 1), (1, 200), (200, 1)):
            assert all(torch.isfinite(view).all() for view in TwoViews(16).views(noise(size)).values())


class TestAgain:
    def test_a_seed_decides_views_whatever_the_order_and_batch(self, rows, images):
        views = TwoViews(24, seed=5)
        one_by_one = [rows.with_transform(views)[i] for i in (3, 1)]
        together = rows.with_transform(TwoViews(24, seed=5))[[1, 2, 3]]
        assert torch.equal(together["pixel_values_aug1"][2], one_by_one[0]["pixel_values_aug1"])
        assert torch.equal(together["pixel_values"][0], one_by_one[1]["pixel_values"])
        assert not equal(views.views(images[0]), TwoViews(24, seed=6).views(images[0]))
        before = views.views(images[0])
        views.set_epoch(1)
        assert not equal(views.views(images[0]), before)
        views.set_epoch(0)
        assert equal(views.views(images[0]), before)

    def test_without_a_seed_torchs_generator_decides(self, images):
        views, made = TwoViews(24), []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            made.append(views.views(images[0]))
        assert equal(made[0], made[1]) and not equal(made[0], made[2])

    def test_a_generator_of_the_callers_own_comes_first(self, images):
        generators = [torch.Generator().manual_seed(3) for _ in range(2)]
        made = [
            views.views(images[0], generator)
            for views, generator in zip((TwoViews(24), TwoViews(24, seed=1)), generators, strict=True)
        ]
        assert equal(*made)

    def test_it_is_pickled_and_copied(self, images):
        views = TwoViews(24, seed=5, view_scale=(0.2, 0.9))
        views.set_epoch(2)
        for other in (pickle.loads(pickle.dumps(views)), copy.deepcopy(views)):
            assert equal(other.views(images[0]), views.views(images[0]))


class TestData:
    def test_loader_workers_give_what_one_process_gives(self, rows):
        data = rows.with_transform(TwoViews(16, seed=0))
        collate = lambda batch: torch.stack([row["pixel_values_aug2"] for row in batch])  # noqa: E731
        alone, shared = (list(DataLoader(data, 3, num_workers=workers, collate_fn=collate)) for workers in (0, 2))
        assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))

    def test_workers_draw_apart_and_anew_each_epoch(self, rows):
        same = Dataset.from_dict({"image": [rows[0]["image"]] * 4, "text": ["one"] * 4}).with_transform(TwoViews(16))
        collate = lambda batch: batch[0]["pixel_values"]  # noqa: E731
        loader = DataLoader(same, 1, num_workers=2, collate_fn=collate)
        views = [*loader, *loader]
        assert len({view.sum().item() for view in views}) == len(views)

    def test_streams(self, rows):
        stream = rows.to_iterable_dataset().map(TwoViews(16, seed=0), remove_columns=["image"])
        expected = rows.with_transform(TwoViews(16, seed=0))
        for row, wanted in zip(stream, expected, strict=True):
            assert row["text"] == wanted["text"] and "image" not in row
            assert all(torch.equal(torch.as_tensor(row[name]), wanted[name]) for name in VIEWS)

    def test_other_columns_stay(self, rows):
        row = rows.with_transform(TwoViews(16))[2]
        assert row["text"] == "number 2" and set(row) == {"text", *VIEWS}
        renamed = rows.rename_column("image", "photo").with_transform(TwoViews(16, image_column="photo"))
        assert set(renamed[0]) == {"text", *VIEWS}

    def test_the_collator_makes_what_the_model_takes(self, rows):
        from tiny import tiny_tokenizer

        batch = TwoViewsCollator(tiny_tokenizer())([rows.with_transform(TwoViews(16))[i] for i in range(3)])
        assert set(batch) == {"input_ids", "attention_mask", "return_loss", *VIEWS} and batch["return_loss"] is True
        assert all(batch[name].shape == (3, 3, 16, 16) for name in VIEWS) and len(batch["input_ids"]) == 3
        with pytest.raises(
            ValueError, match="TwoViewsCollator: rows have .* want 'pixel_values'.*remove_unused_columns"
        ):
            TwoViewsCollator(tiny_tokenizer())([rows[0]])
        with pytest.raises(ValueError, match="got an empty batch"):
            TwoViewsCollator(tiny_tokenizer())([])


class TestRefused:
    def test_bad_arguments_are_named(self):
        for arguments, said in (
            ({"size": 0}, "size: got 0"),
            ({"mean": [0.5]}, "mean, std: got"),
            ({"std": [1, 0, 1]}, "std > 0"),
            ({"view_scale": (0.5, 0.2)}, "scale: got"),
            ({"clip_scale": (0.0, 0.2)}, "scale: got"),
        ):
            with pytest.raises(ValueError, match=said):
                TwoViews(**arguments)

    def test_a_missing_column_names_trainers_habit(self, rows):
        with pytest.raises(
            ValueError, match=r"image_column: rows have \['text'\]; want 'image'.*remove_unused_columns=False"
        ):
            rows.remove_columns("image").with_transform(TwoViews(16))[0]

    def test_an_image_that_cannot_be_read_is_named(self):
        with pytest.raises(ValueError, match=r"image\[1\]: .*"):
            TwoViews(16)({"image": [noise(), b"no image"]})
