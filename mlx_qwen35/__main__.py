"""`python -m mlx_qwen35` is the command `mlx-qwen35`."""

import sys

from mlx_qwen35.cli import main

sys.exit(main())
