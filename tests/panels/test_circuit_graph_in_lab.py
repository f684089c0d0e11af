"""The circuit graph in a real JupyterLab: Run, the threshold, clicks, a drag, keys, groups, faithfulness, the file,
both themes.
"""

import json

import pytest
from lab import notebook

pytestmark = [pytest.mark.browser, pytest.mark.slow]

SETUP = """
import workbench as wb
from workbench import panels
wb.start()
model = wb.load("organism:induction")
words = model.to_strings(range(3, 43))
clean = "\\n".join(" ".join(w[:8] + [w[3]]) for w in (words[:20], words[20:]))
corrupted = "\\n".join(" ".join(w[:3] + [w[9]] + w[4:8] + [w[3]]) for w in (words[:20], words[20:]))
answer, other = words[4] + "\\n" + words[24], words[6] + "\\n" + words[26]
"""
SHOW = """
panel = panels.CircuitGraph(model, clean, corrupted, answer, other)
panel
"""
ASK = "print(len(panel.table()), sorted(panel.state.pins), dict(panel.state.groups), dict(panel.state.names))"
SAVED = "print(panel.save('graph.html').stat().st_size)"


def test_circuit_graph(lab):
    lab.write("graph", [SETUP, SHOW, ASK, SAVED])
    with notebook(lab, "graph", size=(1300, 1900)) as nb:
        nb.run(0)
        nb.run(1)
        panel, tab = nb.output(1), nb.tab
        press = lambda label: panel.get_by_role("button", name=label, exact=True).click()  # noqa: E731

        def nodes():
            return {
                text.split(" ")[0].split("\n")[0]
                for text in panel.locator("g[role=button]").evaluate_all(
                    "all => all.map(g => g.getAttribute('aria-label'))"
                )
            }

        node = lambda name: panel.locator(f"g[role=button][aria-label^='{name}']")  # noqa: E731

        press("Run")
        node("logits").wait_for(timeout=60_000)
        panel.locator("text=/\\d+ of 110 edges/").wait_for(timeout=20_000)
        before = nodes()
        assert {"embed", "logits"} < before
        nb.picture("graph-first", 1)

        # A control changes the picture: the slider, by keyboard, to the right end leaves fewer edges.
        slider = panel.get_by_role("slider").first
        slider.focus()
        count = panel.locator("svg path[stroke-linecap=round]").count()
        for _ in range(60):
            slider.press("ArrowRight")
        slider.press("Tab")
        tab.wait_for_function(
            "([e, n]) => e.querySelectorAll('svg path[stroke-linecap=round]').length < n",
            arg=[panel.element_handle(), count],
            timeout=20_000,
        )

        # Click for scores; drag to pin; keys do the same.
        node("a1.h").first.click()
        panel.locator("text=/all edges out of it sum to/").wait_for(timeout=20_000)
        box = node("logits").bounding_box()
        tab.mouse.move(box["x"] + 10, box["y"] + 10)
        tab.mouse.down()
        tab.mouse.move(box["x"] + 150, box["y"] + 30, steps=5)
        tab.mouse.up()
        panel.locator("g[role=button][aria-label^='logits, pinned']").wait_for(timeout=20_000)
        graph = panel.locator(".workbench-graph")
        graph.focus()
        for key in ("Escape", "ArrowUp", "ArrowUp", "p"):
            graph.press(key)
        tab.wait_for_function(
            "e => [...e.querySelectorAll('g[role=button]')].filter(g =>"
            " g.getAttribute('aria-label').includes('pinned')).length === 2",
            arg=panel.element_handle(),
            timeout=20_000,
        )
        graph.press("e")
        panel.locator("text=/ -> .*: [+-]\\d/").first.wait_for(timeout=20_000)

        # Name one, group two.
        panel.get_by_label("Name", exact=True).fill("induction head")
        node("a1.h").first.click()
        press("Name it")
        node("induction head").wait_for(timeout=20_000)
        early = [n for n in sorted(nodes()) if n.startswith("a0.h")][:2]
        node(early[0]).click()
        node(early[1]).click(modifiers=["Shift"])
        panel.get_by_label("Name", exact=True).fill("early heads")
        press("Group")
        node("early heads").wait_for(timeout=20_000)

        press("Faithfulness")
        panel.locator("text=/These \\d+ edges alone keep/").wait_for(timeout=60_000)
        press("Save layout")
        panel.locator("text=saved in circuit.json").wait_for(timeout=20_000)
        kept = json.loads((lab.root / "circuit.json").read_text("utf-8"))
        assert (
            set(kept["groups"]["early heads"]) == set(early)
            and "induction head" in kept["names"].values()
            and "logits" in kept["pins"]
        )
        nb.picture("graph-light", 1)
        assert "early heads" in nb.printed(2)
        nb.run(3)
        page = (lab.root / "graph.html").read_text("utf-8")
        assert "early heads" in page and "induction head" in page

        # Group undone by loading is done again: the file has it.
        node("early heads").click()
        press("Ungroup")
        node("early heads").wait_for(state="detached", timeout=20_000)
        press("Load layout")
        node("early heads").wait_for(timeout=20_000)

        nb.theme(dark=True)
        tab.wait_for_timeout(2500)
        nb.picture("graph-dark", 1)
        nb.quiet()
        nb.save()
