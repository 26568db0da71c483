"""The pipeline "grounded-question-answering": answers to questions about images, and where they are."""

from typing import Any

import torch
from transformers import Pipeline
from transformers.image_utils import load_image


TASK = "grounded-question-answering"  # transformers 5 refuses the name "visual-question-answering"


class GroundedQuestionAnsweringPipeline(Pipeline):
    """
    Answers questions to images with one of the model's answers, and says where in the image the answer is.

    For models of this package whose class says `answers_questions = True`.

    Example, after `import hf_clip_variants`, which makes the pipeline known:

    ```python
    from transformers import pipeline

    answer = pipeline("grounded-question-answering", model="folder-or-hub-id")
    answer("photo.jpg", "what is on the sofa?", boxes=True, top_k=1)
    # [{'score': 0.93, 'answer': 'cat', 'boxes': [{'score': 0.71, 'box': {'xmin': 12, 'ymin': 40, …}}]}]
    ```
    """

    _load_processor = True
    _load_image_processor = _load_feature_extractor = _load_tokenizer = False

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if not getattr(self.model, "answers_questions", False):
            raise ValueError(f"model: {type(self.model).__name__} answers no questions, expected one that does")

    def __call__(self, image=None, question: str | None = None, **kwargs: Any):
        """
        Args:
            image: a path, URL or PIL image; `{"image": …, "question": …}`; or a list, generator or data set of these.
            question (`str`): for all images. For a list of images also a list, one for each.
            top_k (`int`, defaults to 5): the best answers only.
            boxes (`bool`, defaults to `False`): answers have **boxes**: where the image shows what was asked for, best
                first, the same for all answers.
            threshold (`float`, defaults to 0.1): the smallest score of a box.
            timeout (`float`, *optional*): seconds to wait for an image from the web.

        Returns:
            For each image a list of dicts, best first: **score**, **answer** and maybe **boxes**.

        Raises:
            ValueError: no question, a blank one, or another number of them than of images.
        """
        if question is None:
            return super().__call__(image, **kwargs)
        if not isinstance(image, list):
            return super().__call__({"image": image, "question": question}, **kwargs)
        questions = [question] * len(image) if isinstance(question, str) else list(question)
        if len(questions) != len(image):
            raise ValueError(f"question: {len(questions)} for {len(image)} images, expected one for each")
        rows = [{"image": one, "question": own} for one, own in zip(image, questions, strict=True)]
        return super().__call__(rows, **kwargs)

    def _sanitize_parameters(self, **kwargs):
        places = {"timeout": 0, "boxes": 1, "top_k": 2, "threshold": 2}
        parameters: tuple[dict, dict, dict] = ({}, {}, {})
        for name, value in kwargs.items():
            if name not in places:
                raise TypeError(f"{name}: unknown, expected question, {', '.join(places)} or batch_size")
            parameters[places[name]][name] = value
        return parameters

    def preprocess(self, inputs, timeout=None):
        question = inputs.get("question") if isinstance(inputs, dict) else None
        if not isinstance(question, str) or not question.strip():
            raise ValueError(f"question: got {question!r}, expected a text")
        return {"item": {"image": load_image(inputs["image"], timeout=timeout).convert("RGB"), "question": question}}

    def _forward(self, model_inputs, boxes=False):
        items = model_inputs["item"]
        single = isinstance(items, dict)
        found = [self._answer(item, boxes) for item in ([items] if single else items)]  # images have their own sizes
        return {"found": found[0] if single else found}

    def _answer(self, item: dict, boxes: bool) -> dict[str, Any]:
        image = item["image"]
        inputs = self.processor(images=[image], questions=[item["question"]], return_tensors="pt").to(self.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self.dtype)
        outputs = self.model(**inputs)
        found = {"scores": outputs.logits[0].float().sigmoid().cpu()}
        if boxes:
            (regions,) = self.processor.post_process_grounded_object_detection(
                outputs.detection, text_labels=["answer"], target_sizes=[(image.height, image.width)]
            )
            found["regions"] = {name: regions[name].float().cpu() for name in ("scores", "boxes")}
        return found

    def postprocess(self, model_outputs, top_k: int = 5, threshold: float = 0.1):
        one = model_outputs["found"]
        scores, answers = one["scores"].topk(min(top_k, len(one["scores"])))
        results = [
            {"score": float(score), "answer": self.model.config.id2label[int(answer)]}
            for score, answer in zip(scores, answers, strict=True)
        ]
        if "regions" in one:
            regions = one["regions"]
            boxes = [
                {"score": float(score), "box": _named(box)}
                for score, box in zip(regions["scores"], regions["boxes"], strict=True)
                if score >= threshold
            ]
            results = [result | {"boxes": boxes} for result in results]
        return results


def _named(box: torch.Tensor) -> dict[str, int]:
    return dict(zip(("xmin", "ymin", "xmax", "ymax"), box.int().tolist(), strict=True))


__all__ = ["TASK", "GroundedQuestionAnsweringPipeline"]
