"""What `adapt` prints at the end."""

import pytest

from hf_clip_variants.commands.adapt_results import print_results


def results(recommended="tip_adapter", names=("far",), spread=0.012):
    def row(method, title, shots, accuracy, interval):
        test = {"accuracy": accuracy, "spread": spread if shots else None}
        if shots:
            test |= {"gain": accuracy - 0.574, "interval": interval}
        return {"method": method, "title": title, "shots": shots, "seeds": 3 if shots and spread else 1} | {
            "seconds": 1234.5 * shots,
            "tests": dict.fromkeys(names, test),
        }

    candidate = {"method": "tip_adapter", "title": "Tip-Adapter-F", "shots": 16, "seed": 2, "folder": "adapters/x"}
    candidate |= {"estimated_gain": 0.041, "standard_error": 0.0284}
    if recommended == "zero_shot":
        candidate |= {"method": "zero_shot", "title": "zero-shot CLIP", "shots": 0, "folder": None}
    return {
        "table": [
            row("zero_shot", "zero-shot CLIP", 0, 0.574, None),
            row("tip_adapter", "Tip-Adapter-F", 16, 0.616, (-0.016, 0.1)),
            row("tip_adapter", "Tip-Adapter-F", 1, 0.474, (-0.199, -0.101)),
        ],
        "recommended": candidate,
        "data": {
            "class_names": ["a", "b"],
            "train_images": 40,
            "encoded_views": 40,
            "test_sets": {name: {"images": 190, "rows_are_saved": True} for name in names},
        },
        "runs": [{"shots": 16, "passes_at_every_step": 1_234_567}],
        "seconds": 61.2,
    }


@pytest.fixture
def printed(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")

    def show(*arguments, **options):
        print_results(results(*arguments, **options), "run [bold]x[/bold] :cat:")
        return capsys.readouterr().out

    return show


def lines_with(text, start):
    return [line for line in text.splitlines() if line.lstrip("│ ").startswith(start)]


def test_zero_shot_comes_first_and_gains_have_their_interval(printed):
    out = printed()
    rows = [line for line in out.splitlines() if line.startswith("│")]
    assert [line.split("│")[2].strip() for line in rows] == ["0", "1", "16"]
    assert "zero-shot CLIP" in rows[0] and "57.4" in rows[0]
    assert "47.4 ± 1.2" in rows[1] and "−10.0 (−19.9 to −10.1)" in rows[1] and "~" not in rows[1]
    assert "61.6 ± 1.2" in rows[2] and "+4.2 (−1.6 to +10.0) ~" in rows[2]
    assert "~: the interval includes 0" in out and "over 3 seeds" in out and "far, 190 test images" in out


def test_the_recommendation_is_one_sentence_with_the_next_command(printed):
    out = " ".join(printed().split())
    assert "Recommended: Tip-Adapter-F with 16 images a class, which promises +4.1 ± 2.8 points over zero-shot" in out
    assert "hf-clip-variants predict 'run [bold]x[/bold] :cat:' photos/" in out
    out = " ".join(printed("zero_shot").split())
    assert "Recommended: keep zero-shot CLIP; no adapter promises to be better." in out


def test_it_fits_80_columns_with_several_test_sets(printed):
    out = printed(names=("far", "near"))
    tables = [line for line in out.splitlines() if line and line[0] in "│┃┏┡├└"]
    assert len(tables) == 18 and max(map(len, tables)) <= 80 and "…" not in out
    assert out.count("zero-shot CLIP ") >= 2


def test_markup_and_emoji_names_are_printed_as_they_are(printed):
    out = printed(names=("set [red]of[/red] :dog:",))
    assert "set [red]of[/red] :dog:, 190 test images" in out
    assert "Report:   run [bold]x[/bold] :cat:/report.html" in out


def test_one_seed_has_no_spread(printed):
    out = printed(spread=None)
    assert " ± " not in out.split("Recommended")[0]
