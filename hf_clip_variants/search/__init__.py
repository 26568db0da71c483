"""Search over pictures, videos and sounds with any dual encoder: `build_index`, `open_index`, `Index.search`."""
