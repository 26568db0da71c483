"""`evaluate --task video-…` and its functions: figures on tables of videos with texts."""

import json
import math

import numpy as np
import pytest
import torch
from clip4clip_runs import clip4clip_model
from model_contract import clip_video_processor
from tiny import EMOJI_CLIP
from videoclip_runs import TOY_CLASSES, tiny_processor, toy_videos, videoclip_model
from videos import grey_frames, write_video

from hf_clip_variants.cli import main
from hf_clip_variants.data.video_tables import read_video_rows
from hf_clip_variants.evaluation import video_moments as tasks
from hf_clip_variants.evaluation import video_quality as quality
from hf_clip_variants.metrics.retrieval import retrieval
from hf_clip_variants.search import retrieval as retrieval_quality


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two models, features of four videos of 40 s, and two files of videos."""
    folder = tmp_path_factory.mktemp("quality")
    videoclip_model().save_pretrained(folder / "videoclip")
    tiny_processor().save_pretrained(folder / "videoclip")
    for head in ("meanP", "tightTransf"):
        clip4clip_model(similarity_head=head).save_pretrained(folder / head)
        clip_video_processor().save_pretrained(folder / head)
    for number, video in enumerate(toy_videos(4, seconds=40)):
        np.save(folder / f"{number}.npy", video["features"].numpy())
    write_video(folder / "grey.mp4", grey_frames(50), fps=25)
    write_video(folder / "red.mkv", [np.full((32, 48, 3), (200, 9 * k, 0), np.uint8) for k in range(25)], fps=25)
    return folder


@pytest.fixture(scope="module")
def loaded(folder):
    return tasks.load_seconds_model(folder / "videoclip", "cpu")


def features_of(folder, loaded, number: int) -> torch.Tensor:
    return tasks.read_features(loaded, folder / f"{number}.npy")


def table(folder, name: str, columns: str, *lines: str):
    file = folder / name
    file.write_text("\n".join([columns, *lines]) + "\n")
    return file


def run(capsys, *arguments) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as exit:
        main(["evaluate", *map(str, arguments)])
    printed = capsys.readouterr()
    return exit.value.code or 0, printed.out, printed.err


NAMES = [f"a {name} moves" for name in TOY_CLASSES[:3]]


def test_steps_segments_moments_and_answers_that_the_model_finds_are_right(folder, loaded, capsys):
    lines = {"video-steps": [], "video-segmentation": [], "video-moments": [], "video-question-answering": []}
    texts = tasks.encode(loaded, NAMES)
    for number in range(4):
        features = features_of(folder, loaded, number)
        for one in tasks.locate_steps(loaded, features, texts):
            lines["video-steps"].append(f"{number}.npy,{NAMES[one.label]},{one.start},{one.end}")
        for one in tasks.segment_video(loaded, features, texts, threshold=-1e9):
            lines["video-segmentation"].append(f"{number}.npy,{NAMES[one.label]},{one.start},{one.end}")
        for some in tasks.find_moments(loaded, features, texts):
            lines["video-moments"].append(f"{number}.npy,{NAMES[some[0].label]},{some[0].start},{some[0].end}")
        best = tasks.answer(tasks.score_videos(loaded, [features], texts)[0])[0]
        lines["video-question-answering"].append(f"{number}.npy,{NAMES[best.label]},{'|'.join(NAMES)}")
    figures = {
        "video-steps": ("step_recall", "average_recall"),
        "video-segmentation": ("frame_accuracy",),
        "video-moments": ("rank_at_1", "rank_at_5", "mean_iou"),
        "video-question-answering": ("accuracy",),
    }
    for task, rows in lines.items():
        spans = "candidates" if task == "video-question-answering" else "start,end"
        # Steps and segments are read in the order of the names: the first row of each name.
        rows = sorted(rows, key=lambda row: (row.split(",")[0], NAMES.index(row.split(",")[1])))
        data = table(folder, f"{task}.csv", f"video,label,{spans}", *rows)
        options = ["--task", task, "--data", data, "--model", folder / "videoclip", "--device", "cpu"]
        options += ["--background", "-1e9"] if task == "video-segmentation" else []
        code, printed, said = run(capsys, *options, "--json")
        assert code == 0, said
        found = json.loads(printed)
        assert {name: found[name] for name in figures[task]} == dict.fromkeys(figures[task], 1.0), task
        assert found["videos"] == 4 and all(0 <= value < 1 for value in found["baseline"].values())
        code, printed, _ = run(capsys, *options)
        assert code == 0 and "100.0 %" in printed and "baseline" in printed


def test_figures_of_what_is_wrong(folder, loaded):
    rows = read_video_rows(
        table(
            folder, "wrong.csv", "video;label;start;end", f"0.npy;{NAMES[0]};0:39.6;1:00", f"0.npy;{NAMES[1]};0;0.4"
        ),
        ["start", "end"],
    )
    assert [(row.start, row.end) for row in rows] == [(39.6, 60.0), (0.0, 0.4)]  # no second's middle is in either
    steps = quality.measure_steps(loaded, rows)
    assert (steps["step_recall"], steps["videos"], steps["texts"]) == (0.0, 1, 2)
    segments = quality.measure_segments(loaded, rows, threshold=math.inf)
    assert segments["frame_accuracy"] == segments["baseline"]["frame_accuracy"] == 1.0  # background everywhere
    assert math.isnan(segments["foreground_accuracy"])
    everywhere = quality.measure_segments(loaded, rows, threshold=-1e9)
    assert everywhere["frame_accuracy"] == 0.0
    moments = quality.measure_moments(loaded, rows)
    assert moments["rank_at_5"] == 0.0 and moments["mean_iou"] < 0.1


def test_tasks_have_steps_of_their_own_and_short_videos_are_left_out(folder, loaded):
    np.save(folder / "short.npy", np.ones((2, 10), np.float32))
    steps = [("x", 0, NAMES[0]), ("x", 1, NAMES[1]), ("y", 2, NAMES[2]), ("x", "short", NAMES[0]), ("x", 0, "a cat")]
    lines = [f"{task};{number}.npy;{name};0;40" for task, number, name in steps]
    rows = read_video_rows(table(folder, "tasks.csv", "task;video;step;start;end", *lines), ["start", "end"])
    found = quality.measure_steps(loaded, rows)
    assert (found["tasks"], found["texts"], found["videos"], found["step_recall"]) == (2, 4, 3, 1.0)
    assert found["unreadable"] == [(str(folder / "short.npy"), "2 s, fewer than the task's 3 steps")]


def test_videos_without_anything_are_background(folder, loaded):
    lines = [f"0.npy,{NAMES[0]},0,40", "1.npy,,,", f"2.npy,{NAMES[1]},0,40"]
    rows = read_video_rows(table(folder, "blank.csv", "video,label,start,end", *lines), ["start", "end"], True)
    assert [row.text for row in rows] == [NAMES[0], None, NAMES[1]]
    found = quality.measure_segments(loaded, rows, threshold=math.inf)
    assert found["frame_accuracy"] == pytest.approx(1 / 3) and found["videos"] == 3


def test_retrieval_with_several_captions_of_a_video_is_that_of_all_similarities(folder, loaded, monkeypatch, capsys):
    asked = []

    def encode(*given, are_labels=True):  # a semicolon in a caption does not part two texts
        asked.append(are_labels)
        return tasks.encode(*given, are_labels=are_labels)

    monkeypatch.setattr(retrieval_quality, "encode", encode)
    monkeypatch.setattr(retrieval_quality, "TEXTS_AT_ONCE", 2)
    captions = [*NAMES, "a dog; a cat", "the owl turns", "a crab"]
    lines = [f'{number % 4}.npy,"{caption}"' for number, caption in enumerate(captions)]
    data = table(folder, "captions.csv", "video,caption", *lines)
    code, printed, said = run(
        capsys, "--task", "video-retrieval", "--data", data, "--model", folder / "videoclip", "--json"
    )
    found = json.loads(printed)
    assert code == 0, said
    assert asked == [False] * 3
    videos = [features_of(folder, loaded, number) for number in range(4)]
    similarity = tasks.score_videos(loaded, videos, tasks.encode(loaded, captions, are_labels=False)).T
    correct = torch.tensor([[number % 4 == video for video in range(4)] for number in range(6)])
    expected = retrieval(similarity, correct=correct)
    assert {name: found[f"text_to_video_{name}"] for name in expected} == pytest.approx(expected)
    assert (found["videos"], found["texts"], found["baseline"]["text_to_video_recall_at_1"]) == (4, 6, 0.25)
    baseline = found["baseline"]
    assert (baseline["video_to_text_recall_at_5"], baseline["text_to_video_mean_rank"]) == (1.0, 2.5)


@pytest.mark.parametrize("name", ["meanP", "tightTransf", "embedded"])
def test_retrieval_by_models_of_videos_and_of_images(folder, name):
    model = folder / name if name != "embedded" else EMOJI_CLIP
    lines = ["grey.mp4,a grey thing", "red.mkv,a red thing", "red.mkv,red", "gone.mp4,a cat"]
    rows = read_video_rows(table(folder, f"{name}.csv", "video,caption", *lines))
    found = retrieval_quality.measure_retrieval(model, rows, device="cpu")
    assert (found["videos"], found["texts"]) == (2, 3)
    assert [path for path, _ in found["unreadable"]] == [str(folder / "gone.mp4")]
    if name == "embedded":
        assert found["text_to_video_recall_at_1"] == 1.0
    else:
        from hf_clip_variants.evaluation.video_classification import load_video_classifier, logits_of_videos

        videos = load_video_classifier(model, [row.text for row in rows[:3]], "{}", "cpu")
        logits = torch.stack([one for _, one in logits_of_videos(videos, [rows[0].path, rows[1].path])])
        expected = retrieval(logits.T, correct=torch.tensor([[True, False], [False, True], [False, True]]))
        assert {name: found[f"text_to_video_{name}"] for name in expected} == expected


@pytest.mark.parametrize(
    "task, columns, line, message",
    [
        ("video-steps", "video,label", "0.npy,cat", "columns 'video', 'label'; want one called start, start_time"),
        ("video-steps", "video,label,start,end", "0.npy,cat,5,3", "line 2: 5 to 3 s, expected 0 <= start < end"),
        ("video-steps", "video,label,start,end", "0.npy,cat,x,3", "line 2: start is 'x', expected seconds"),
        ("video-steps", "video,label,start,end", "0.npy,,1,3", "line 2: label is empty"),
        ("video-segmentation", "video,label,start,end", "0.npy,,1,3", "line 2: label is empty"),
        ("video-segmentation", "video,label,start,end", "0.npy,cat,1,3", "threshold: none given"),
        ("video-segmentation", "video,label,start,end", "0.npy,,,", "no row of its task has a label"),
        ("video-moments", "video,label,start,end", ",cat,1,3", "line 2: the name of the video is empty"),
        ("video-question-answering", "video,answer,candidates", "0.npy,cat,dog|owl", "answer 'cat', candidates 'dog'"),
        ("video-question-answering", "video,answer,candidates", "0.npy,cat,cat|cat", "want different candidates"),
        ("video-retrieval", "thing,caption", "0.npy,cat", "want one called video, video_path"),
        ("video-retrieval", "video,caption", "gone.npy,cat", "none of 1 videos can be read"),
    ],
)  # fmt: skip
def test_wrong_tables_are_said(task, columns, line, message, folder, capsys):
    data = table(folder, "bad.csv", columns, line)
    code, printed, said = run(capsys, "--task", task, "--data", data, "--model", folder / "videoclip")
    assert code == 1 and message in " ".join(said.split()) and not printed


@pytest.mark.parametrize(
    "options, message",
    [
        ([], "--model: missing; want one for --task video-steps"),
        (["--data", "DATA", "--model", "MODEL"], "--data: got 2 tables; want one for --task video-steps"),
        (["--model", "MODEL", "--flip"], "--flip: is not for --task video-steps"),
        (["--model", "MODEL", "--background", "1"], "--background: got 1.0 for video-steps; it is a number for"),
        (["--model", "MODEL", "--split", "a"], "--split: got a; it is not for --task video-steps"),
        (["--model", "meanP"], "does not compare seconds of videos with texts; want VideoCLIP"),
    ],
)  # fmt: skip
def test_wrong_options_are_said(options, message, folder, capsys):
    data = table(folder, "good.csv", "video,label,start,end", "0.npy,cat,1,3")
    places = {"MODEL": folder / "videoclip", "meanP": folder / "meanP", "DATA": data}
    given = ["--task", "video-steps", "--data", "DATA", *options]
    code, printed, said = run(capsys, *(places.get(one, one) for one in given))
    assert code == 1 and message in " ".join(said.split()) and not printed
