"""The chat page (Gradio, extra `[app]`): `serve(model)` loads a checkpoint and shows the page on this computer."""

from mlx_qwen35.app.server import serve

__all__ = ["serve"]
