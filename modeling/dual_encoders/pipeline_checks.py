"""What callers of pipelines give, checked."""


def check_top_k(top_k: int | None) -> None:
    """ValueError unless `top_k`, how many answers of a pipeline are wanted, is None or a whole number >= 1."""
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
        raise ValueError(f"top_k: {top_k!r}, expected a whole number of at least 1, or None for all")


__all__ = ["check_top_k"]
