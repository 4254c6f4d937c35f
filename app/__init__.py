"""The chat page (Gradio, extra `[app]`): `serve(model)` loads a checkpoint and answers on this computer's loopback."""

from mlx_qwen35.app.server import serve

__all__ = ["serve"]
