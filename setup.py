"""`modeling/<method>` is installed as `hf_clip_variants.modeling.<method>`: packages.find cannot rename, hence this file."""

from setuptools import find_packages, setup


library = find_packages(include=["hf_clip_variants*"])
travelling = [f"hf_clip_variants.{name}" for name in find_packages(include=["modeling*"])]

setup(packages=library + travelling, package_dir={"hf_clip_variants.modeling": "modeling"})
