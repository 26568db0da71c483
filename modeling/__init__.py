"""Models that travel to the Hub. Installed as `hf_clip_variants.modeling`; never import it as `modeling`."""

if __name__ != "hf_clip_variants.modeling":
    raise ImportError(
        f"imported as {__name__!r}: use `hf_clip_variants.modeling` "
        "(a second copy of the classes would not be registered)"
    )
