"""How names in a prompt change each other: none without fusion where names are read alone, and measured with it."""

import pytest
import torch
from glip_runs import NAMES, glip_model, glip_processor, glip_tokenizer, noise, save_glip_data
from paths import SCRIPTS
from transformers import BertTokenizerFast

from hf_clip_variants import GLIPImageProcessor, GLIPProcessor
from hf_clip_variants.data.detection_sets import DetectionSet, load_detection_set
from hf_clip_variants.evaluation.prompt_drift import measure_prompt_drift


SPLITS = (None, 1, 2, 3)
PLAIN = DetectionSet([noise(64, 48, i) for i in range(2)], [[], []], NAMES)


def drift(splits=SPLITS, **fields):
    return measure_prompt_drift(glip_model(**fields), glip_processor(), PLAIN, splits, score_threshold=0.0)


def test_there_is_no_drift_without_fusion_where_names_are_read_alone():
    found = drift(use_fusion=False, separate_names=True)
    assert [one.prompts for one in found] == [1, 5, 3, 2]
    assert max(one.max_change for one in found) < 1e-5 and all(one.same_best == 1 for one in found)


def test_drift_with_fusion_is_measured():
    officially = drift()
    assert officially[0].max_change == 0 and officially[0].same_best == 1 and not officially[0].metrics
    for one in officially[1:]:
        assert 1e-3 < one.mean_change < one.max_change < 1
    # What the measure says is what one sees.
    model, processor, image = glip_model(), glip_processor(), PLAIN.images[0]
    best = []
    for names in (NAMES, NAMES[:1]):
        with torch.no_grad():
            outputs = model(**processor(image, names))
        (one,) = processor.post_process_grounded_object_detection(outputs, score_threshold=0.0)
        best.append(one["scores"][one["labels"] == 0].max().item())
    assert abs(best[0] - best[1]) <= officially[1].max_change + 1e-6


def test_average_precision_is_told_where_there_are_objects(tmp_path):
    save_glip_data(tmp_path)
    data = load_detection_set(tmp_path / "train.json")
    found = measure_prompt_drift(glip_model(), glip_processor(), data, (None, 1))
    assert all(0 <= one.metrics["AP"] <= 1 for one in found)
    for splits, message in (((), r"splits: \[\]"), ((None, 0), r"splits: \[None, 0\]")):
        with pytest.raises(ValueError, match=message):
            measure_prompt_drift(glip_model(), glip_processor(), data, splits)
    with pytest.raises(ValueError, match="data: no image"):
        measure_prompt_drift(glip_model(), glip_processor(), DetectionSet([], [], NAMES))


def test_1203_names_are_found_in_one_call():
    """As many as LVIS has; each is its own word, and the last one is told apart from all others."""
    words = [*glip_tokenizer().get_vocab(), *(f"thing{i}" for i in range(1203))]
    tokenizer = BertTokenizerFast(vocab={word: i for i, word in enumerate(words)})
    images = GLIPImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    processor = GLIPProcessor(images, tokenizer)
    model = glip_model(
        text_config={
            **glip_model().config.text_config.to_dict(),
            "vocab_size": len(words),
            "max_position_embeddings": 256,
        },
        max_text_length=256,
    )
    names = [f"thing{i}" for i in range(1203)]
    inputs = processor(noise(64, 48), names)
    assert inputs.input_ids.shape[1] == -(-1203 // 127) and (inputs.phrase_map.sum(dim=3) > 0).sum() == 1203
    with torch.no_grad():
        outputs = model(**inputs)
    options = {"score_threshold": 0.0, "pre_nms": 10**6, "max_detections": 10**6}
    (found,) = processor.post_process_grounded_object_detection(outputs, **options)
    assert set(found["text_labels"]) == set(names) and set(found["labels"].tolist()) == set(range(1203))
    assert all(names[label] == text for label, text in zip(found["labels"], found["text_labels"], strict=True))
    # The last prompt alone gives the last names the same scores.
    last = int((inputs.phrase_map[0, -1].sum(dim=1) > 0).sum())
    with torch.no_grad():
        alone = model(**processor(noise(64, 48), names[-last:]))
    (few,) = processor.post_process_grounded_object_detection(alone, **options)
    for name in names[-last::20]:
        scores = [
            max(score for score, text in zip(one["scores"].tolist(), one["text_labels"], strict=True) if text == name)
            for one in (found, few)
        ]
        assert scores[0] == pytest.approx(scores[1], abs=1e-5)


def test_the_table_of_a_saved_model(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import prompt_drift

    for part in (glip_model(), glip_processor()):
        part.save_pretrained(tmp_path / "model")
    save_glip_data(tmp_path)
    arguments = ["--model", tmp_path / "model", "--data", tmp_path / "train.json", "--most-images", "2"]
    arguments = [str(one) for one in arguments]
    assert prompt_drift.main([*arguments, "--names-per-prompt", "all,1"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[0].startswith("| names in a prompt |") and rows[2].startswith("| all | 1 | 0.0000 | 0.000 | 100 % |")
    assert rows[3].startswith("| 1 | 3 |") and len(rows) == 4
    assert prompt_drift.main([*arguments, "--names-per-prompt", "few"]) == 2
    assert "--names-per-prompt: 'few', expected such as all,10,1" in capsys.readouterr().err
