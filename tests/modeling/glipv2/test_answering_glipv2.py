"""Questions and their answers: what the answer is read from, the pipeline, a tiny training, bad inputs."""

import pytest
import torch
from glip_runs import NAMES, noise
from glipv2_runs import (
    ANSWERS,
    QUESTIONS,
    answering_inputs,
    answering_model,
    glipv2_labels,
    glipv2_model,
    glipv2_processor,
)
from transformers import AutoModelForVisualQuestionAnswering, pipeline

from hf_clip_variants import GLIPv2ForVisualQuestionAnswering


TASK = "grounded-question-answering"
IMAGE = noise(80, 50)


def run(model, **inputs):
    with torch.no_grad():
        return model(**inputs)


def test_a_question_has_a_mask_behind_it_whose_fused_word_is_the_answer():
    processor, model = glipv2_processor(), answering_model()
    inputs = processor([IMAGE, IMAGE], questions=QUESTIONS[:2])
    tokens = [processor.tokenizer.convert_ids_to_tokens(row) for row in inputs.input_ids.tolist()]
    assert tokens[0][:6] == ["[CLS]", "a", "small", "cat", "[MASK]", "[SEP]"] and tokens[1][-2] == "[MASK]"
    assert inputs.phrase_map.argmax(dim=2).flatten().tolist() == [4, len(tokens[1]) - 2]
    assert inputs.is_caption.all() and inputs.phrase_map.sum() == 2
    outputs = run(model, **inputs)
    assert outputs.logits.shape == (2, len(ANSWERS))
    alone = run(model, **processor(IMAGE, questions=QUESTIONS[0]))
    torch.testing.assert_close(outputs.logits[:1], alone.logits, rtol=1e-4, atol=1e-5)
    other = run(model, **processor(noise(80, 50, 5), questions=QUESTIONS[0]))
    assert (other.logits - alone.logits).abs().max() > 1e-4  # it reads the image
    # Boxes are those of the mask, as a detector finds them.
    detector = glipv2_model()
    detector.load_state_dict({n: t for n, t in model.state_dict().items() if not n.startswith("answer_head.")})
    assert torch.equal(run(detector, **inputs).logits, outputs.detection.logits)


def test_a_detectors_weights_become_a_model_that_answers_and_back(tmp_path):
    model = GLIPv2ForVisualQuestionAnswering.from_glip(glipv2_model(), num_labels=3)
    assert model.config.num_labels == 3 and model.answer_head.answers.out_features == 3
    inputs = glipv2_processor()(IMAGE, NAMES)
    model.save_pretrained(tmp_path)
    glipv2_processor().save_pretrained(tmp_path)
    assert type(AutoModelForVisualQuestionAnswering.from_pretrained(tmp_path)) is type(model)
    expected = run(glipv2_model(), **inputs).logits
    pipe = pipeline("zero-shot-object-detection", str(tmp_path))
    torch.testing.assert_close(run(pipe.model, **inputs).logits, expected, rtol=1e-5, atol=1e-5)
    assert pipe(IMAGE, candidate_labels=NAMES, threshold=0.3, masks=True)[0]["mask"].size == IMAGE.size


def test_the_pipeline_answers_and_says_where(tmp_path):
    for part in (answering_model(), glipv2_processor()):
        part.save_pretrained(tmp_path)
    pipe = pipeline(TASK, str(tmp_path))
    images = [IMAGE, noise(33, 47)]
    found = pipe(images, QUESTIONS[:2], boxes=True, batch_size=2)
    for image, question, answers in zip(images, QUESTIONS, found, strict=False):
        inputs = pipe.processor(image, questions=[question])
        outputs = run(pipe.model, **inputs)
        scores = outputs.logits[0].sigmoid()
        assert [one["answer"] for one in answers] == [ANSWERS[i] for i in scores.argsort(descending=True)]
        expected = scores.sort(descending=True).values.tolist()
        assert [one["score"] for one in answers] == pytest.approx(expected, abs=1e-5)
        (regions,) = pipe.processor.post_process_grounded_object_detection(
            outputs.detection, target_sizes=[(image.height, image.width)]
        )
        boxes = [list(one["box"].values()) for one in answers[0]["boxes"]]
        assert boxes == regions["boxes"][regions["scores"] >= 0.1].int().tolist() and boxes
    (best,) = pipe({"image": IMAGE, "question": QUESTIONS[0]}, top_k=1)
    assert best == {name: found[0][0][name] for name in ("score", "answer")}
    assert pipe(images, QUESTIONS[0])[0] == pipe(IMAGE, question=QUESTIONS[0])
    for arguments, message in (
        ((IMAGE, "  "), "question: got '  ', expected a text"),
        (({"image": IMAGE},), "question: got None, expected a text"),
        ((images, QUESTIONS), "question: 4 for 2 images, expected one for each"),
    ):
        with pytest.raises(ValueError, match=message):
            pipe(*arguments)
    with pytest.raises(TypeError, match="labels: unknown, expected question"):
        pipe(IMAGE, QUESTIONS[0], labels=3)
    with pytest.raises(ValueError, match="model: GLIPv2ForZeroShotObjectDetection answers no questions"):
        pipeline(TASK, glipv2_model(), processor=glipv2_processor())


def test_answers_and_what_they_are_about_are_trained():
    model, inputs = answering_model().train(), answering_inputs(4)
    outputs = model(**inputs)
    assert {"loss_answer", "loss_words", "loss_box", "loss_mask", "loss_inter_image"} <= outputs.loss_dict.keys()
    weights = model.loss_weights
    total = sum(weights.get(name, 1.0) * value for name, value in outputs.loss_dict.items())
    torch.testing.assert_close(outputs.loss, total, rtol=1e-5, atol=1e-5)
    scores = torch.nn.functional.one_hot(inputs["labels"], 3).float()
    torch.testing.assert_close(model(**inputs | {"labels": scores}).loss, outputs.loss)
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(20):
        optimizer.zero_grad()
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
    assert loss < 0.7 * outputs.loss
    answers = {n: v for n, v in inputs.items() if n != "object_labels"}
    assert (run(model.eval(), **answers).logits.argmax(dim=1) == inputs["labels"]).all()
    alone = run(model, **answers)
    assert alone.loss == alone.loss_dict["loss_answer"] and set(alone.loss_dict) == {"loss_answer"}


def test_questions_and_answers_that_do_not_fit_are_named():
    processor, model, inputs = glipv2_processor(), answering_model(), answering_inputs(2)
    for given, message in (
        ({"questions": ["a cat", " "]}, r"questions\[1\]: ' ' is blank"),
        ({"questions": ["cat " * 22]}, r"questions\[0\]: 22 tokens, expected at most 21"),
        ({"questions": []}, "questions is empty"),
        ({"questions": ["a cat"], "text": ["cat"]}, "questions, text: got both, expected one of them"),
        ({"questions": ["a cat"] * 3, "images": [IMAGE] * 2}, "questions: 3 for 2 images, expected one for each"),
    ):
        with pytest.raises(ValueError, match=message):
            processor(**given)
    for change, message in (
        ({"labels": torch.tensor([0, 3])}, "labels: 0..3, expected answers, 0..2"),
        (
            {"labels": torch.tensor([0])},
            r"labels: got torch.int64 \[1\], expected whole numbers \[2\], or floats \[2, 3",
        ),
        ({"labels": torch.full((2, 3), 2.0)}, "labels: numbers outside of 0..1"),
        ({"labels": ["yes", "no"]}, "labels: got list"),
        ({"phrase_map": None}, "phrase_map: missing, expected questions and the place of their mask"),
        ({"phrase_map": inputs["phrase_map"].expand(-1, 2, -1)}, r"phrase_map: got \[2, 2, 10\], expected \[batch, 1"),
        (
            {"object_labels": glipv2_labels(2)},
            r"labels\[0\]\['class_labels'\]: 0..3, expected rows of phrase_map, 0..0",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            model(**inputs | change)
