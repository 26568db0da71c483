"""The pipeline "grounded-question-answering": answers to questions about images, and where they are."""

from typing import Any

import torch

from ..questions.image_question_answering import ImageQuestionAnsweringPipeline


TASK = "grounded-question-answering"  # transformers 5 refuses the name "visual-question-answering"


class GroundedQuestionAnsweringPipeline(ImageQuestionAnsweringPipeline):
    """
    Answers questions to images with one of the model's answers, and says where in the image the answer is.

    For detectors of this package whose class says `answers_questions = True`.

    Example, after `import hf_clip_variants`, which makes the pipeline known:

    ```python
    from transformers import pipeline

    answer = pipeline("grounded-question-answering", model="folder-or-hub-id")
    answer("photo.jpg", "what is on the sofa?", boxes=True, top_k=1)
    # [{'score': 0.93, 'answer': 'cat', 'boxes': [{'score': 0.71, 'box': {'xmin': 12, 'ymin': 40, …}}]}]
    ```
    """

    _places = {"timeout": 0, "boxes": 1, "top_k": 2, "threshold": 2}

    def __call__(self, image=None, question: str | None = None, **kwargs: Any):
        """
        Args:
            image, question, top_k, timeout: as in [`ImageQuestionAnsweringPipeline`].
            boxes (`bool`, defaults to `False`): answers have **boxes**: where the image shows what was asked for, best
                first, the same for all answers.
            threshold (`float`, defaults to 0.1): the smallest score of a box.

        Returns:
            For each image a list of dicts, best first: **score**, **answer** and maybe **boxes**.

        Raises:
            ValueError: no question, a blank one, or another number of them than of images.
        """
        return super().__call__(image, question, **kwargs)

    def _answer(self, item: dict, boxes: bool = False) -> dict[str, Any]:
        outputs, image = self._outputs(item), item["image"]
        found = {"scores": self._scores(outputs)}
        if boxes:
            (regions,) = self.processor.post_process_grounded_object_detection(
                outputs.detection, text_labels=["answer"], target_sizes=[(image.height, image.width)]
            )
            found["regions"] = {name: regions[name].float().cpu() for name in ("scores", "boxes")}
        return found

    def postprocess(self, model_outputs, top_k: int | None = 5, threshold: float = 0.1):
        results, one = super().postprocess(model_outputs, top_k), model_outputs["found"]
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
