"""start(): the one call that opens a notebook - seeds, determinism, quiet libraries, the plotly renderer, a versions
line.
"""

import os
import random
import warnings


def quiet() -> None:
    """Silence progress bars and notices of the libraries underneath; errors and our own warnings still show."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    import logging

    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("transformer_lens").setLevel(logging.ERROR)


def start(seed: int = 0) -> str:
    """Prepare a notebook kernel.

    Seeds Python, numpy and torch, asks torch for deterministic kernels (a warning where one has none), quiets the
    libraries, and sets plotly's renderer unless PLOTLY_RENDERER names one.

    Returns:
        A line with the versions that matter, to show under the cell.
    """
    import numpy as np
    import plotly.io
    import torch

    from workbench.core.provenance import versions

    quiet()
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    if "PLOTLY_RENDERER" not in os.environ:
        plotly.io.renderers.default = "plotly_mimetype"
    found = versions()
    shown = ("circuit-workbench", "torch", "transformer-lens", "transformers", "plotly")
    return (
        ", ".join(f"{name} {found[name]}" for name in shown)
        + f"; seed {seed}; {'CUDA' if torch.cuda.is_available() else 'CPU'}"
    )
