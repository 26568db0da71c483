"""Sketches judged by another CLIP: edges become strokes, ranks and differences are computed as told."""

import sys

import pytest
import torch
from paths import SCRIPTS

from hf_clip_variants.modeling.clipasso.edges_clipasso import thin_edges


@pytest.fixture(scope="module")
def scripts():
    sys.path.insert(0, str(SCRIPTS))
    import sketch_pictures
    import sketch_recognition

    yield sketch_pictures, sketch_recognition
    sys.path.remove(str(SCRIPTS))
    for name in ("sketch_pictures", "sketch_recognition"):
        sys.modules.pop(name, None)


def test_the_longest_edges_lie_on_the_picture_s_outline(scripts):
    pictures, _ = scripts
    y, x = torch.meshgrid(torch.arange(112), torch.arange(112), indexing="ij")
    away = ((x - 50.0) ** 2 + (y - 60.0) ** 2).sqrt()
    disc = torch.where(away < 30, 0.2, 1.0).expand(3, -1, -1)
    edges = thin_edges(disc)
    # One pixel wide: about as many as the circle is long, and all of them on it.
    assert 0.8 * 188 < edges.sum() < 1.2 * 188 and (away[torch.from_numpy(edges)] - 29.5).abs().max() < 2
    few, many = (pictures.edge_strokes(disc, count, 56, 0.5) for count in (2, 8))
    assert len(few) == 2 and len(few.render().flatten(1).min(0).values) == 56 * 56
    ink = 1 - many.render()[0]
    ys, xs = torch.meshgrid(torch.arange(56) + 0.5, torch.arange(56) + 0.5, indexing="ij")
    distance = ((xs - 25.25) ** 2 + (ys - 30.25) ** 2).sqrt()
    assert float((ink * (distance - 15).abs()).sum() / ink.sum()) < 1 and ink.sum() > 50


def test_ranks_and_differences(scripts):
    _, recognition = scripts
    first, beaten = recognition.scores([[0, 0], [2, 0], [4, 4]], 5)
    assert first == [100.0, 50.0, 0.0] and beaten == [100.0, 75.0, 0.0]
    of_seeds = recognition.of_seeds([{"name": [0, 1]}, {"name": [2, 3]}])
    assert of_seeds == {"name": [[0, 2], [1, 3]]}
    assert recognition.with_error([0.0, 100.0]) == "50 ± 50"
    ranks = {"the picture itself": {"name": [[0], [0]], "picture": [[0], [0]]}}
    for kind in recognition.KINDS:
        for count in (4, 8):
            rank = 0 if kind.startswith("sketch") and count == 8 else 2
            ranks[kind.replace("{}", str(count))] = {"name": [[rank], [rank]], "picture": [[0], [rank]]}
    lines = recognition.table(ranks, [4, 8], 3)
    assert "| sketch, 8 strokes − 8 longest edges | 100 ± 0 | 100 ± 0 | 50 ± 50 | 50 ± 50 |" in lines
    assert "| sketch, 4 strokes − 4 longest edges | 0 ± 0 | 0 ± 0 | 0 ± 0 | 0 ± 0 |" in lines
    assert "| sketch − longest edges, mean over 4, 8 | 50 ± 0 | 50 ± 0 | 25 ± 25 | 25 ± 25 |" in lines
    beside = recognition.table(ranks, [4, 8], 3, ranks | {"sketch, 8 strokes": ranks["8 longest edges"]})
    row = "| sketch, 8 strokes − sketch, 8 strokes, of the other run"
    assert f"{row} | 100 ± 0 | 100 ± 0 | 50 ± 50 | 50 ± 50 |" in beside
    assert "| sketch, 8 strokes − sketch, 4 strokes | 100 ± 0 | 100 ± 0 | 50 ± 50 | 50 ± 50 |" in lines


def test_a_judge_ranks_a_picture_nearest_to_itself(scripts, tmp_path):
    from tiny import tiny_clip, tiny_tokenizer

    _, recognition = scripts
    tiny_clip().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    generator = torch.Generator().manual_seed(0)
    pictures = {name: torch.rand(3, 24, 24, generator=generator) for name in ("cat", "a {dog}", "pig")}
    judge = recognition.Judge(str(tmp_path), pictures)
    ranks = judge.ranks(list(pictures.values()))
    assert ranks["picture"] == [0, 0, 0] and all(0 <= rank <= 2 for rank in ranks["name"])
    swapped = judge.ranks(list(pictures.values())[::-1])
    assert swapped["picture"][1] == 0 and swapped["picture"][0] > 0 and swapped["picture"][2] > 0
