"""Clouds by names in another language, with a dual encoder whose texts are in it."""

import torch
from pointclip_runs import clouds
from tiny_families import family_class_names, tiny_dual_encoder, tiny_family_tokenizer
from transformers import AutoModel, pipeline

from hf_clip_variants import PointCLIPModel, PointCloudProcessor, PointTextProcessor


def test_chinese_names_find_clouds_as_the_text_encoder_reads_them(tmp_path):
    """There are no weights here that could show how well; what is compared is that no step is English."""
    names = family_class_names("chinese_clip")
    assert all(ord(letter) > 0x3000 for name in names for letter in name)
    clip, tokenizer = tiny_dual_encoder("chinese_clip").eval(), tiny_family_tokenizer("chinese_clip")
    model = PointCLIPModel.from_clip(clip)
    processor = PointTextProcessor(PointCloudProcessor(num_points=50), tokenizer)
    classify = pipeline("zero-shot-point-cloud-classification", model=model, processor=processor)
    cloud, template = clouds(1)[0], "{}的点云深度图"
    answers = classify(cloud.numpy(), candidate_labels=names, hypothesis_template=template)
    with torch.no_grad():
        tokens = tokenizer([template.replace("{}", name) for name in names], padding=True, return_tensors="pt")
        texts = clip.get_text_features(**tokens).pooler_output
        points = processor(points=[cloud.numpy()], return_tensors="pt").points
        scores = model.point_text_logits(points, texts)[0].softmax(-1)
    expected = dict(zip(names, scores.tolist(), strict=True))
    for answer in answers:
        assert abs(answer["score"] - expected[answer["label"]]) < 1e-4, answer
    assert torch.pdist(texts).min() > 1e-3, "names are told apart"
    model.set_classes(names, tokenizer, [template]).save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert [loaded.config.id2label[i] for i in range(len(names))] == names
    with torch.no_grad():
        torch.testing.assert_close(loaded(points).logits[0].softmax(-1), scores, rtol=1e-4, atol=1e-5)
