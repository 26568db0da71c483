"""Installs `modeling/<method>` as `hf_clip_variants.modeling.<method>`, which `packages.find` cannot do."""

from setuptools import find_packages, setup


library = find_packages(include=["hf_clip_variants*"])
travelling = [f"hf_clip_variants.{name}" for name in find_packages(include=["modeling*"])]

setup(packages=library + travelling, package_dir={"hf_clip_variants.modeling": "modeling"})
