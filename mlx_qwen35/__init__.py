"""mlx_qwen35: the Qwen3.5 family on Apple Silicon, natively on MLX."""

__version__ = "0.1.0"
