"""What README shows runs as it stands there."""

import re
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

import workbench as wb

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_five_jobs_run_and_say_what_they_promise():
    block = next(code for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "# 5." in code)
    names: dict = {}
    shown = []
    for job in re.split(r"\n# \d\. .*\n", block):
        *lines, last = job.strip().splitlines()
        exec("\n".join(lines), names)
        if "=" in last.split("(")[0]:  # the first part ends with an assignment
            exec(last, names)
        else:
            shown.append(eval(last.split("  #")[0], names))
        assert len([line for line in lines if line.strip()]) < 3 or job is block or "import" in job, (
            "at most three lines a job"
        )
    z, patched, accuracy, graph, texts = shown
    assert z.shape == (2, 6, 4, 16) and isinstance(patched, go.Figure) and isinstance(graph, go.Figure)
    assert names["sweep"].data["value"].dims[0] == "layer" and len(graph.data) > 1
    plain = wb.ablate(names["model"], names["clean"], [])
    assert plain.predicted.tolist() == names["answers"] and accuracy == 0, "without its induction heads it has no idea"
    assert (
        isinstance(texts, pd.DataFrame)
        and {"arm", "coefficient", "text"} & set(texts)
        and (texts["coefficient"] == 8).any()
    )


def test_every_name_of_the_package_is_there():
    for name in wb.__all__:
        assert getattr(wb, name) is not None and name in dir(wb)
