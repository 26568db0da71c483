"""CLIP and the methods built on it, for the Hugging Face ecosystem."""
