"""Rows of `benchmark_speed.py` for clouds of points: `POINT_ROWS`, to be merged into `speed_rows.ROWS`."""

from collections.abc import Callable

import torch


PLAIN = "plain loop"  # a cloud and a view at a time, `projection_reference_pointclip.py`


def _clouds(small: bool) -> torch.Tensor:
    count, points = (2, 100) if small else (32, 1024)
    clouds = torch.randn(count, points, 3, generator=torch.Generator().manual_seed(0))
    return clouds / clouds.norm(dim=-1).amax(1)[:, None, None]


def realistic_depth_maps(small: bool):
    """Clouds to surfaces from ten views: a grid, a maximum and a Gaussian over its cells."""
    from speed_rows import OURS, Row

    from hf_clip_variants.modeling.pointclip import projection_pointclip, projection_reference_pointclip
    from hf_clip_variants.modeling.pointclip.views_pointclip import VIEW_SETS

    clouds, views = _clouds(small), VIEW_SETS["realistic_10"].matrices()
    settings = projection_pointclip.GridSettings()
    reference = projection_reference_pointclip.realistic_depth_maps_reference
    return Row(
        f"{len(clouds)} clouds of {clouds.shape[1]} points x 10 views, PointCLIP V2's projection",
        {
            OURS: lambda: projection_pointclip.realistic_depth_maps(clouds, None, views, settings),
            PLAIN: lambda: reference(clouds, views, settings),
        },
        {PLAIN: 10.0},
        error=lambda ours, peer: ((ours - peer).abs() > 1e-5).double().mean().item(),
        tolerance=1e-3,
    )


def sparse_depth_maps(small: bool):
    """Clouds to single points in perspective from ten views: one buffer for all maps, and only pixels with points."""
    from speed_rows import OURS, Row

    from hf_clip_variants.modeling.pointclip import projection_pointclip, projection_reference_pointclip
    from hf_clip_variants.modeling.pointclip.views_pointclip import VIEW_SETS

    clouds, views = _clouds(small), VIEW_SETS["sparse_10"].matrices()
    reference = projection_reference_pointclip.sparse_depth_maps_reference
    return Row(
        f"{len(clouds)} clouds of {clouds.shape[1]} points x 10 views, PointCLIP's projection",
        {
            OURS: lambda: projection_pointclip.sparse_depth_maps(clouds, None, views, 224, 1.4),
            PLAIN: lambda: reference(clouds, views, 224, 1.4),
        },
        {PLAIN: 10.0},
        error=lambda ours, peer: (ours - peer).abs().max().item(),
        tolerance=1e-5,
    )


POINT_ROWS: dict[str, Callable] = {
    "realistic_depth_maps": realistic_depth_maps,
    "sparse_depth_maps": sparse_depth_maps,
}
