"""Where work runs: in this process, in worker processes (one per GPU), or on a Dask cluster. One seam: submit(fn,
*args).
"""

from .executors import Executor, Inline, Processes, dask, open_executor, run_all

__all__ = ["Executor", "Inline", "Processes", "dask", "open_executor", "run_all"]
