"""Runs that optimise pictures: their state in a file, resuming, pictures of the progress, the page that plays it."""
