"""The cache panel in a real JupyterLab: Look, open a site, a slider redraws, a click says a value, Free frees; both
themes.
"""

import pytest
from lab import notebook

pytestmark = [pytest.mark.browser, pytest.mark.slow]

SETUP = """
import workbench as wb
from workbench import panels
from workbench.primitives.read.capture import capture
from workbench.primitives.read.store import write_store
wb.start()
model = wb.load("organism:induction")
rows = model.to_rows([" ".join(model.to_strings(range(3, 15))), " ".join(model.to_strings(range(20, 32)))])
acts = capture(model, rows, ["resid_post", "z", "pattern"])
store = write_store(model, rows, ["resid_post"], folder="stores/induction")
"""
SHOW = """
panel = panels.Cache(folder="stores")
panel
"""
ASK = "print(len(acts.tensors), store.folder.exists(), model.bridge is not None)"


def test_cache(lab):
    lab.write("cache", [SETUP, SHOW, ASK])
    with notebook(lab, "cache", size=(1300, 1700)) as nb:
        nb.run(0)
        nb.run(1)
        panel, tab = nb.output(1), nb.tab
        panel.get_by_role("button", name="Look").click()
        chosen = panel.get_by_label("Chosen")
        panel.locator("td:has-text('acts')").first.wait_for(timeout=60_000)

        def options():
            return [text.replace("\xa0", " ") for text in chosen.locator("option").all_text_contents()]

        def choose(start):
            chosen.select_option(index=next(i for i, label in enumerate(options()) if label.startswith(start)))

        labels = options()
        assert any(label.startswith("model: model = organism:induction") for label in labels), labels
        assert any(label.startswith("store: induction") for label in labels)

        # A captured site opens; a slider, another cut, and a click change what is shown.
        choose("capture: acts")
        panel.get_by_label("Site").select_option(label="pattern 1")
        canvas = panel.locator("canvas")
        panel.locator("text=/pattern 1 of acts, example 0, head 0/").wait_for(timeout=20_000)
        picture = lambda: canvas.evaluate("c => c.toDataURL()")  # noqa: E731
        changed = "([c, before]) => c.toDataURL() !== before"
        before = picture()
        slider = panel.get_by_role("slider").last
        slider.focus()
        slider.press("ArrowRight")
        slider.press("Tab")
        tab.wait_for_function(changed, arg=[canvas.element_handle(), before], timeout=20_000)
        panel.locator("text=/example 0, head 1/").wait_for(timeout=20_000)
        box = canvas.bounding_box()
        tab.mouse.click(box["x"] + 120, box["y"] + 40)
        panel.locator("text=/query_pos \\d+, key_pos \\d+ is /").wait_for(timeout=20_000)
        tab.mouse.move(0, 0)
        nb.picture("cache-light", 1)

        # A stored site has its words.
        choose("store: induction")
        tab.wait_for_function(
            "e => e.options.length === 3", arg=panel.get_by_label("Site").element_handle(), timeout=20_000
        )
        panel.get_by_label("Site").select_option(label="resid_post 1")
        panel.locator("text=/resid_post 1 of induction, example 0/").first.wait_for(timeout=20_000)
        nb.picture("cache-store", 1)

        # Free: a store only on a word, a capture at once.
        panel.get_by_role("button", name="Free", exact=True).click()
        panel.locator("text=/say that it may be deleted/").wait_for(timeout=20_000)
        assert nb.printed(2) == "6 True True"
        panel.get_by_label("stores may be deleted").check()
        panel.get_by_role("button", name="Free", exact=True).click()
        panel.locator("text=/deleted induction/").wait_for(timeout=20_000)
        choose("capture: acts")
        panel.get_by_role("button", name="Free", exact=True).click()
        panel.locator("text=/dropped acts: /").wait_for(timeout=20_000)
        assert nb.printed(2) == "0 False True"

        nb.theme(dark=True)
        tab.wait_for_timeout(2500)
        nb.picture("cache-dark", 1)
        nb.quiet()
        nb.save()
