"""Rows of `benchmark_speed.py` for detectors that read prompts: `DETECTION_ROWS`, merged into `speed_rows.ROWS`."""

from collections.abc import Callable

import torch


_START, _END, _MARK = 101, 102, 1012  # BERT's [CLS], [SEP] and "."


def grounding(small: bool):
    """Boxes for the names of a prompt: GLIP-T against Grounding DINO tiny, with random weights and the same input.

    They are different models (Swin-T and BERT in both), so outputs are not compared.
    """
    from speed_rows import OURS, Row
    from transformers import GroundingDinoConfig, GroundingDinoForObjectDetection

    from hf_clip_variants import GLIPConfig, GLIPForZeroShotObjectDetection

    height, width, count, names = (64, 96, 2, 3) if small else (480, 640, 2, 20)
    torch.manual_seed(0)
    ids = [_START]
    for name in torch.randint(2000, 20000, (names,)).tolist():
        ids += [name, _MARK]
    prompt = torch.tensor([[*ids[:-1], _END]]).expand(count, -1)
    pixels = torch.randn(count, 3, height, width)
    mask = torch.ones(count, height, width, dtype=torch.long)
    inputs = {"pixel_values": pixels, "pixel_mask": mask, "input_ids": prompt}
    inputs["attention_mask"] = torch.ones_like(prompt)
    theirs = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "num_queries": 20} if small else {}
    theirs |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 32} if small else {}
    ours = GLIPConfig.tiny() if small else GLIPConfig.of_variant("glip_tiny")
    cases = {}

    def run(name: str) -> torch.Tensor:
        # Made when it is asked for: a process that measures one case's memory has no other model.
        if name not in cases:
            peer = GroundingDinoForObjectDetection(GroundingDinoConfig(**theirs)) if name != OURS else None
            cases[name] = (peer or GLIPForZeroShotObjectDetection(ours)).eval().requires_grad_(False)
        with torch.inference_mode():
            return cases[name](**inputs).pred_boxes

    return Row(
        f"{names} names in {count} images of {width} x {height}, GLIP-T and Grounding DINO tiny, in one batch",
        {OURS: lambda: run(OURS), "transformers": lambda: run("transformers")},
        {"transformers": 1 / 1.5},
        peak=True,
    )


DETECTION_ROWS: dict[str, Callable] = {"grounding": grounding}
