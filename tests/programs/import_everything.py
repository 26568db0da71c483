"""Imports every module of each copy of the package and uses its methods. Run by test_one_row_a_method.py.

python import_everything.py COPIES.json: name -> folder to put first on the path. transformers, PEFT and torch are
imported only once, because each copy is tried in a fork of this process. Prints one line per copy, with the error if
there is one.
"""

import importlib
import json
import os
import pkgutil
import sys
import traceback

# All that the package imports from elsewhere; only time is lost where something is missing here.
import datasets  # noqa: F401
import peft  # noqa: F401
import torch
import transformers
import typer  # noqa: F401
from transformers import ChineseCLIPModel, ChineseCLIPProcessor, CLIPModel, CLIPProcessor, Trainer, ViTModel  # noqa: F401
from transformers.models.auto import modeling_auto, processing_auto  # noqa: F401


def use(folder: str) -> None:
    sys.path.insert(0, folder)
    # The finder of an editable install would find what is missing in the copy.
    sys.meta_path = [finder for finder in sys.meta_path if "Editable" not in getattr(finder, "__name__", "")]
    import hf_clip_variants

    assert hf_clip_variants.__file__.startswith(folder), hf_clip_variants.__file__
    for module in pkgutil.walk_packages(hf_clip_variants.__path__, "hf_clip_variants."):
        importlib.import_module(module.name)
    for name in hf_clip_variants.__all__:
        getattr(hf_clip_variants, name)
    from hf_clip_variants import CLIPClassifier, embedded_model
    from hf_clip_variants.data import Features
    from hf_clip_variants.data.images.labelled_images import CachedImages
    from hf_clip_variants.few_shot.fitting import Shots, fit_adapter
    from hf_clip_variants.few_shot.method import FEW_SHOT_METHODS

    classifier = CLIPClassifier.from_pretrained(embedded_model(), class_names=["cat", "dog"], dtype=torch.float32)
    width = classifier.config.projection_dim
    features = torch.randn(1, 4, width, generator=torch.Generator().manual_seed(0))
    images = CachedImages(Features(features, torch.tensor([0, 1, 0, 1])))
    for name, method in FEW_SHOT_METHODS.items():
        assert method.recipe(1, None, "tiny", "few_shot").method == name
        if not method.trains_image_encoder:
            settings = {"epochs": 1} if method.recipe(1, None, "tiny", "few_shot").epochs else {}
            recipe = method.recipe(2, None, "tiny", "few_shot")
            fit_adapter(classifier, name, Shots(images, images), recipe_values=recipe, overrides=settings).unload()
    assert "clipv-clip_classifier" in transformers.AutoConfig.for_model("clipv-clip_classifier").model_type


failed = False
for name, folder in json.load(open(sys.argv[1])).items():
    child = os.fork()
    if not child:
        try:
            use(folder)
            print(name, "works", flush=True)
        except BaseException:
            print(name, traceback.format_exc(), flush=True)
            os._exit(1)
        os._exit(0)
    failed |= os.waitpid(child, 0)[1] != 0
sys.exit(failed)
