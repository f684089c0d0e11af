"""The command `workbench`: one file a group of commands."""

from .papers import app, main

__all__ = ["app", "main"]
