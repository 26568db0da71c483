"""Tables of posts: columns, labels, missing and several images, broken rows; splits by hash; batches for FND-CLIP."""

import json

import pytest
import torch
from fnd_clip_runs import fnd_clip_model, news_processor
from PIL import Image
from transformers import Trainer, TrainingArguments

from hf_clip_variants.data.posts import (
    Post,
    PostCollator,
    PostDataset,
    encode_posts,
    fingerprint,
    read_posts,
    split_posts,
)


@pytest.fixture
def folder(tmp_path):
    for name, colour in (("rumor_images/a.jpg", "red"), ("nonrumor_images/b.png", "blue"), ("c.png", "green")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (30, 24), colour).save(tmp_path / name)
    return tmp_path


def write(folder, text: str, name: str = "posts.csv"):
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_a_table_as_the_weibo_set_comes(folder):
    """Addresses of images, of which the last part is the file's name; labels are numbers; a translation."""
    rows = "index,content,images,label,translation\n"
    images = "http://pics.example/x/a.jpg|http://pics.example/x/b.png|null"
    rows += f'7,"城里着火了, 很大",{images},0,"a fire in town, big"\n'
    rows += "8,大家都好。,c.png,1.0,\n"
    fire, well = read_posts(write(folder, rows))
    assert (fire.id, fire.text, fire.label, fire.clip_text) == ("7", "城里着火了, 很大", 0, "a fire in town, big")
    assert [image.rpartition("/")[2] for image in fire.images] == ["a.jpg", "b.png"]
    assert (well.label, well.clip_text, well.images) == (1, None, (str(folder / "c.png"),))
    lines = [{"text": "x", "image": ["c.png", "no.png"], "label": "fake"}, {"text": "y", "image": "c.png", "label": 1}]
    one, two = read_posts(write(folder, "\n".join(map(json.dumps, lines)), "posts.jsonl"))
    assert (one.label, two.label, len(one.images)) == (0, 1, 1)
    chosen = {"columns": {"text": "was", "image": "bild", "label": "art"}, "labels": {"wahr": 1, "falsch": 0}}
    (found,) = read_posts(write(folder, "was\tbild\tart\nein Text\tc.png\tFalsch\n", "eigen.tsv"), **chosen)
    assert found.label == 0


def test_posts_without_images_are_an_error_left_out_or_kept(folder):
    file, said = write(folder, "text,image,label\none,c.png,1\ntwo,gone.png,0\nthree,,0\n"), []
    with pytest.raises(ValueError, match=r"posts.csv, line 3: none of \['gone.png'\] is a file; want an image"):
        read_posts(file)
    assert [post.text for post in read_posts(file, without_image="skip", report=said.append)] == ["one"]
    assert said == ["2 of 3 posts left out: none of their images is there", "1 of 2 images are not there"]
    kept = read_posts(file, without_image="keep")
    assert [len(post.images) for post in kept] == [1, 0, 0]
    batch = PostCollator(news_processor())([post.as_row() for post in kept])
    assert batch["image_mask"].tolist() == [1, 0, 0] and batch["labels"].tolist() == [1, 0, 0]
    assert (batch["pixel_values"][1:] == 0).all() and batch["pixel_values"].shape == (3, 3, 24, 24)
    none = PostCollator(news_processor())([post.as_row() for post in kept[1:]])
    assert none["image_mask"].tolist() == [0, 0] and none["pixel_values"].shape == (2, 3, 24, 24)
    with torch.no_grad():
        assert fnd_clip_model()(**batch).loss.isfinite() and fnd_clip_model()(**none).loss.isfinite()


@pytest.mark.parametrize(
    "text, message",
    [
        ("text,image,label\none,c.png,maybe\n", "line 2: label 'maybe' is unknown; want one of 0, 1, rumor"),
        ("text,image,label\none,c.png,1\n  ,c.png,1\n", "line 3: text: got ''; want a text"),
        ("text,image,label\none,c.png\n", "line 2: got 2 values"),
        ('text,image,label\n"one,c.png,1\n', "line 2"),
        ("text,image,label\n", "only a line of column names"),
        ("a,image,label\none,c.png,1\n", "no column of texts among 'a', 'image', 'label'"),
        ("", "the file is empty"),
    ],
)
def test_broken_tables_are_said_with_file_and_line(folder, text, message):
    with pytest.raises(ValueError, match=message):
        read_posts(write(folder, text))


def test_other_errors(folder):
    file = write(folder, "text,image,label\none,c.png,1\n")
    with pytest.raises(FileNotFoundError, match="nothing.csv: no such file"):
        read_posts(folder / "nothing.csv")
    with pytest.raises(ValueError, match="without_image: 'no'; want 'error', 'skip' or 'keep'"):
        read_posts(file, without_image="no")
    with pytest.raises(ValueError, match="no column 'body' for text"):
        read_posts(file, columns={"text": "body"})
    with pytest.raises(ValueError, match="columns: 'picture' is unknown"):
        read_posts(file, columns={"picture": "image"})
    gone = write(folder, "text,image,label\none,gone.png,1\n", "gone.csv")
    with pytest.raises(ValueError, match="no post is left of 1"):
        read_posts(gone, without_image="skip")


def test_splits_stay_the_same_and_keep_copies_and_events_together():
    posts = [Post(str(number), f"text number {number}", ("x.png",), number % 2) for number in range(400)]
    shares = {"train": 0.7, "validation": 0.1, "test": 0.2}
    split = split_posts(posts, shares)
    assert sum(map(len, split.values())) == 400 and 60 < len(split["test"]) < 100
    again = split_posts([*reversed(posts), Post("new", "something new")], shares)
    for name, some in split.items():
        assert {post.id for post in some} <= {post.id for post in again[name]}
        assert fingerprint(reversed(some)) == fingerprint(some)
    assert fingerprint(split["train"]) != fingerprint(split["test"])
    assert [post.id for post in split_posts(posts, shares, seed=1)["test"]] != [post.id for post in split["test"]]
    copies = [Post("a", "A FIRE, in town!"), Post("b", "a fire in town")]
    assert sorted(len(some) for some in split_posts(copies, {"x": 0.5, "y": 0.5}).values()) == [0, 2]
    event = [Post(str(number), f"words {number}", group="flood") for number in range(30)]
    assert sorted(len(some) for some in split_posts(event, {"x": 0.5, "y": 0.5}).values()) == [0, 30]
    for shares in ({"train": 0.5}, {}, {"train": "all"}, {"train": None, "test": 1.0}, {"train": float("nan")}):
        with pytest.raises(ValueError, match="shares: .* add up to 1"):
            split_posts(posts, shares)


def test_a_random_image_in_training_and_the_first_one_elsewhere():
    data = [Post("1", "x", ("a", "b", "c")), Post("2", "y")]
    assert {PostDataset(data)[0]["image"] for _ in range(10)} == {"a"}
    assert {PostDataset(data, any_image=True)[0]["image"] for _ in range(50)} == {"a", "b", "c"}
    assert PostDataset(data, any_image=True)[1]["image"] is None


def test_trainer_learns_from_a_table_and_features_are_computed_once(folder, tmp_path):
    rows = "".join(f"a {word} in the town,{image},{number % 2}\n" for number, (word, image) in enumerate(PAIRS * 2))
    posts = read_posts(write(folder, "text,image,label\n" + rows))
    model, processor = fnd_clip_model(), news_processor()
    options = {"remove_unused_columns": False, "dataloader_drop_last": True, "report_to": "none", "use_cpu": True}
    options |= {"max_steps": 3, "per_device_train_batch_size": 3, "per_device_eval_batch_size": 4, "bf16": True}
    arguments = TrainingArguments(str(tmp_path / "run"), learning_rate=1e-3, disable_tqdm=True, **options)
    data = PostDataset(posts, any_image=True)
    trainer = Trainer(model, arguments, train_dataset=data, data_collator=PostCollator(processor), eval_dataset=data)
    before = model.fusion.layer_weights.clone()
    trainer.train()
    assert not torch.equal(model.fusion.layer_weights, before) and trainer.evaluate()["eval_loss"] > 0
    assert trainer.predict(data).predictions.shape == (8, 2)
    found = encode_posts(model.float().train(), processor, PostDataset(posts), batch_size=3)
    assert model.training and found["labels"].tolist() == [0, 1] * 4 and found["text_states"].shape == (8, 4, 24)
    for rows, size, message in ((PostDataset(posts), 0, "batch_size: 0"), ([], 3, "rows: no posts")):
        with pytest.raises(ValueError, match=message):
            encode_posts(model, processor, rows, batch_size=size)
    with torch.no_grad():
        fresh = fnd_clip_model()  # the trained one computes in bfloat16
        found = encode_posts(fresh, processor, PostDataset(posts), batch_size=3)
        expected = fresh(**PostCollator(processor)([post.as_row() for post in posts]))
        torch.testing.assert_close(fresh(**found).logits, expected.logits, rtol=1e-4, atol=1e-4)


PAIRS = [("fire", "rumor_images/a.jpg"), ("cat", "c.png"), ("flood", "nonrumor_images/b.png"), ("dog", "c.png")]
