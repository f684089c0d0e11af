"""Runs the command in this process, by the entry function of the installed script (no 5 s import each time)."""

import contextlib
import io
import sys
from unittest import mock

from workbench import cli


def workbench(*arguments: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of `workbench ARGUMENTS`."""
    out, err = io.StringIO(), io.StringIO()
    called = mock.patch.object(sys, "argv", ["workbench", *arguments])
    with called, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as stopped:
            return int(stopped.code or 0), out.getvalue(), err.getvalue()
    raise AssertionError("main returned without an exit code")
