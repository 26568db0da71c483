"""The pipeline "image-question-answering": questions about images, answered from a fixed list."""

from typing import Any

import torch
from transformers import Pipeline
from transformers.image_utils import load_image

from ..dual_encoders.pipeline_checks import check_top_k


TASK = "image-question-answering"  # transformers 5 refuses the name "visual-question-answering"


class ImageQuestionAnsweringPipeline(Pipeline):
    """
    Answers questions to images with one of the model's answers, `config.id2label`.

    For models of this package whose class says `answers_questions = True`. Scores add up to 1 where
    `config.problem_type` is `"single_label_classification"`; else each is between 0 and 1.

    Example, after `import hf_clip_variants`, which makes the pipeline known:

    ```python
    from transformers import pipeline

    answer = pipeline("image-question-answering", model="folder-or-hub-id")
    answer("photo.jpg", "what colour is the car?", top_k=1)  # [{'score': 0.93, 'answer': 'red'}]
    ```
    """

    _load_processor = True
    _load_image_processor = _load_feature_extractor = _load_tokenizer = False
    _places = {"timeout": 0, "top_k": 2}

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if not getattr(self.model, "answers_questions", False):
            raise ValueError(f"model: {type(self.model).__name__} answers no questions, expected one that does")

    def __call__(self, image=None, question: str | None = None, **kwargs: Any):
        """
        Args:
            image: a path, URL or PIL image; `{"image": …, "question": …}`; or a list, generator or data set of these.
            question (`str`): for all images. For a list of images also a list, one for each.
            top_k (`int`, defaults to 5): the best answers only; None: all.
            timeout (`float`, *optional*): seconds to wait for an image from the web.

        Returns:
            For each image a list of dicts, best first: **score** and **answer**.

        Raises:
            ValueError: no image, no question, a blank one, or another number of them than of images.
        """
        if question is None:
            return super().__call__(image, **kwargs)
        if not isinstance(image, list):
            return super().__call__({"image": image, "question": question}, **kwargs)
        if not isinstance(question, str | list | tuple):
            raise ValueError(f"question: got {type(question).__name__}, expected a text or a list of them")
        questions = [question] * len(image) if isinstance(question, str) else list(question)
        if len(questions) != len(image):
            raise ValueError(f"question: {len(questions)} for {len(image)} images, expected one for each")
        rows = [{"image": one, "question": own} for one, own in zip(image, questions, strict=True)]
        return super().__call__(rows, **kwargs)

    def _sanitize_parameters(self, **kwargs):
        parameters: tuple[dict, dict, dict] = ({}, {}, {})
        for name, value in kwargs.items():
            if name not in self._places:
                raise TypeError(f"{name}: unknown, expected question, {', '.join(self._places)} or batch_size")
            parameters[self._places[name]][name] = value
        check_top_k(kwargs.get("top_k"))
        return parameters

    def preprocess(self, inputs, timeout=None):
        question = inputs.get("question") if isinstance(inputs, dict) else None
        if not isinstance(question, str) or not question.strip():
            raise ValueError(f"question: got {question!r}, expected a text")
        image = inputs.get("image")
        if image is None:
            raise ValueError(f"image: missing for the question {question[:60]!r}")
        try:
            image = load_image(image, timeout=timeout)
        except TypeError as error:
            raise ValueError(f"image: got {type(image).__name__} for {question[:60]!r}; {error}") from error
        return {"item": {"image": image.convert("RGB"), "question": question}}

    def _forward(self, model_inputs, **options):
        items = model_inputs["item"]
        single = isinstance(items, dict)
        found = [self._answer(one, **options) for one in ([items] if single else items)]  # images have their own sizes
        return {"found": found[0] if single else found}

    def _answer(self, item: dict) -> dict[str, Any]:
        return {"scores": self._scores(self._outputs(item))}

    def _outputs(self, item: dict):
        inputs = self.processor(images=[item["image"]], questions=[item["question"]], return_tensors="pt")
        inputs = inputs.to(self.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self.dtype)
        return self.model(**inputs)

    def _scores(self, outputs) -> torch.Tensor:
        logits = outputs.logits[0].float().cpu()
        is_one = self.model.config.problem_type == "single_label_classification"
        return logits.softmax(0) if is_one else logits.sigmoid()

    def postprocess(self, model_outputs, top_k: int | None = 5):
        one = model_outputs["found"]
        count = len(one["scores"])
        scores, answers = one["scores"].topk(count if top_k is None else min(top_k, count))
        return [
            {"score": float(score), "answer": self.model.config.id2label[int(answer)]}
            for score, answer in zip(scores, answers, strict=True)
        ]


__all__ = ["TASK", "ImageQuestionAnsweringPipeline"]
