"""Checkpoints as files: names, downloads, checked headers, the memory plan. Imports no mlx."""
