"""Cache panel: the models and captures that are alive, the stores on disk; how large each is and where; free it; look
into it.

Plain functions behind it: `primitives.read.held.held_now`, `open_site`, `let_go` and `drop_site`; drawing: views/cache.
Nothing is looked at before Look is pressed, and looking keeps nothing alive.
"""

import html
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import psutil
import torch
import traitlets
import xarray as xr
from IPython import get_ipython

from workbench.core.errors import WorkbenchError
from workbench.core.provenance import Provenance
from workbench.primitives.read import held
from workbench.primitives.read.held import Holding, site_name
from workbench.views import cache as views

from .drawn import HeatMap
from .panel import Panel, PanelState, labelled, link, row


class CacheState(PanelState):
    """folder: where else to look for stores. holding, site: keys of what is chosen, "" for none. example: its row.

    axis, index: the axis that is cut where a site has three, and the place of the cut. from_disk: stores may be
    deleted.
    memory: what the machine says of its memory.
    """

    folder = traitlets.Unicode()
    holding = traitlets.Unicode()
    site = traitlets.Unicode()
    example = traitlets.Int(0)
    axis = traitlets.Unicode()
    index = traitlets.Int(0)
    from_disk = traitlets.Bool(False)
    memory = traitlets.Unicode()


class Cache(Panel):
    """`panels.Cache()` in a cell; Look lists what is held, Free gives it back, a site opens as a heat map and a table.

    Args:
        names: {name: model or capture}, to call them by; a notebook's own variables if not given.
        folder: a store, or a folder of stores, besides those in the user's cache.
    """

    title = "Cache and stores"

    def __init__(
        self,
        names: Mapping[str, Any] | None = None,
        folder: Path | str = "",
        *,
        state: CacheState | None = None,
        look: Callable[..., list[Holding]] = held.held_now,
    ):
        self.state: CacheState
        super().__init__(state or CacheState(folder=str(folder)))
        self._called = (
            None if names is None else {name: weakref.ref(value) for name, value in names.items()}
        )  # the panel keeps nothing alive
        self._look, self._held = look, list[Holding]()
        self._values: xr.DataArray | None = None
        self._controls()
        self.says_memory, self.listing, self.grid, self.about = (
            widgets.HTML(),
            widgets.HTML(),
            HeatMap(),
            widgets.HTML(),
        )
        self.grid.observe(lambda _: self.attempt(self._choose), names="clicks")
        self.state.observe(lambda _: self.attempt(self._pick_holding), names=["holding"])
        self.state.observe(lambda _: self.attempt(self._open), names=["site", "example"])
        self.state.observe(lambda _: self.attempt(self._draw), names=["axis", "index"])
        self.state.observe(lambda _: self._enable(), names=["running", "holding", "site"])
        self._opened = widgets.VBox(
            [row(self.site, self.example, self.axis, self.index, self.drop), self.grid, self.about],
            layout=widgets.Layout(display="none"),
        )
        self.frame(
            row(self.start, self.folder),
            self.says_memory,
            self.listing,
            row(self.holding, self.free, self.from_disk),
            self._opened,
        )
        self._enable()

    def _controls(self) -> None:
        self.start = widgets.Button(description="Look", button_style="primary", tooltip="List what is held now")
        self.start.on_click(lambda _: self.look())
        self.folder = labelled(
            widgets.Text,
            "Stores in",
            "A store, or a folder of stores, besides those in the user's cache",
            "420px",
            continuous_update=False,
        )
        self.holding = labelled(
            widgets.Dropdown,
            "Chosen",
            "What Free frees, and whose sites can be opened",
            "520px",
            options=[("nothing yet: press Look", "")],
        )
        self.free = widgets.Button(
            description="Free",
            tooltip="Unload the model, drop the capture, or delete the store's files",
            button_style="warning",
        )
        self.free.on_click(lambda _: self.free_chosen())
        self.from_disk = labelled(
            widgets.Checkbox,
            "stores may be deleted from disk",
            "Without this, Free refuses to delete a store",
            "270px",
            indent=False,
        )
        self.site = labelled(
            widgets.Dropdown, "Site", "Open this captured or stored site", "260px", options=[("choose a site", "")]
        )
        self.example = labelled(widgets.IntSlider, "Example", "Which row", "300px", min=0, max=0)
        self.axis = labelled(
            widgets.Dropdown,
            "Cut along",
            "The axis that is cut where a site has three",
            "210px",
            options=[("nothing", "")],
        )
        self.index = labelled(widgets.IntSlider, "At", "The place of the cut", "260px", min=0, max=0)
        self.drop = widgets.Button(
            description="Free this site",
            tooltip="Drop this site of a capture and keep the others",
            button_style="warning",
        )
        self.drop.on_click(lambda _: self.free_site())
        link(
            self.state,
            **{
                name: getattr(self, name)
                for name in ("folder", "holding", "site", "example", "axis", "index", "from_disk")
            },
        )

    # ---- looking ----

    def look(self) -> "Cache":
        """List what is held, in the worker thread."""
        self.work(lambda _: self._found(), self._take)
        return self

    def _found(self) -> list[Holding]:
        folder = self.state.folder.strip()
        return self._look(self._names(), [folder] if folder else [])

    def _names(self) -> dict[str, Any]:
        """What things are called; objects are looked up when they are needed and let go of at once."""
        if self._called is None:
            shell = get_ipython()
            return {} if shell is None else dict(shell.user_ns)
        return {name: ref() for name, ref in self._called.items()}

    def _take(self, found: list[Holding]) -> None:
        self._held = found
        self.state.memory = _memory()
        self.says_memory.value = f"<p>{html.escape(self.state.memory)}</p>"
        chosen = self.state.holding
        self.holding.options = [
            (f"{h.kind}: {h.name} ({held.size_text(h.n_bytes)}, {h.where})", h.key) for h in found
        ] or [("nothing is held", "")]
        self.state.holding = chosen if chosen in {h.key for h in found} else self.holding.options[0][1]
        self._pick_holding()

    def _chosen(self) -> Holding:
        for holding in self._held:
            if holding.key == self.state.holding:
                return holding
        raise WorkbenchError("nothing is chosen: press Look, then choose what is meant")

    def _pick_holding(self) -> None:
        self.state.site = ""
        sites = [site for h in self._held if h.key == self.state.holding for site in h.sites]
        self.site.options = [
            ("choose a site" if sites else "no site to open", ""),
            *((site_name(s.key), site_name(s.key)) for s in sites),
        ]
        self._opened.layout.display = "flex" if sites else "none"
        self._close()
        lines = self._listed()
        self.listing.value = "<p>Nothing is held.</p>" if lines.empty and self._held == [] else _html(lines)
        self._enable()

    # ---- giving back ----

    def free_chosen(self) -> "Cache":
        """Let go of what is chosen, in the worker thread; a store only if `state.from_disk` says so."""
        return self._then_look(lambda: held.let_go(self._chosen(), from_disk=self.state.from_disk))

    def free_site(self) -> "Cache":
        """Drop the open site of a capture."""
        return self._then_look(lambda: held.drop_site(self._chosen(), self._key()))

    def _then_look(self, act: Callable[[], str]) -> "Cache":
        def compute(_: object) -> tuple[str, list[Holding]]:
            said = act()
            self._values = None
            return said, self._found()

        def done(found: tuple[str, list[Holding]]) -> None:
            self.state.from_disk = False  # said anew for every store
            self._take(found[1])
            self.state.notice = found[0]

        self.work(compute, done)
        return self

    # ---- looking into a site ----

    def _key(self) -> held.Key:
        for site in self._chosen().sites:
            if site_name(site.key) == self.state.site:
                return site.key
        raise WorkbenchError("no site is open")

    def _open(self) -> None:
        state = self.state
        if not state.site:
            self._close()
            return
        holding = self._chosen()
        self.example.max = max(0, holding.n_examples - 1)
        self._values = held.open_site(holding, self._key(), state.example)
        cut = views.slice_axis([str(d) for d in self._values.dims])
        axes = [str(d) for d in self._values.dims] if cut else []
        with state.hold_trait_notifications():
            if list(self.axis.options) != (axes or [("nothing", "")]):
                self.axis.options = axes or [("nothing", "")]
                state.axis = cut
        self._draw()

    def _close(self) -> None:
        self._values = None
        self.grid.layout.display, self.about.value = "none", ""

    def plane(self) -> xr.DataArray | None:
        """The two axes on show, with all their cells."""
        return None if self._values is None else views.plane(self._values, self.state.axis, self.state.index)

    def _draw(self) -> None:
        values = self._values
        if values is None:
            return
        state, shown = self.state, self.plane()
        self.index.max = max(0, values.sizes[state.axis] - 1) if state.axis in values.dims else 0
        down, across = (str(d) for d in shown.dims)
        self.grid.layout.display = "flex"
        self.axis.layout.display = self.index.layout.display = "flex" if state.axis in values.dims else "none"
        signed = bool(np.nanmin(shown.values) < 0)
        state.notice = self.grid.show(
            shown.values,
            views.labels(shown, down),
            views.labels(shown, across),
            x_title=across,
            y_title=down,
            unit=shown.attrs["unit"],
            signed=signed,
            alt=self._says(),
        )
        self.about.value = f"<p>{html.escape(self._says())}</p>{_html(self.table())}"

    def _says(self) -> str:
        values, state = self._values, self.state
        cut = f", {state.axis} {state.index}" if state.axis in values.dims else ""
        whole = "" if "example" in values.dims else f", example {state.example}"
        return f"{values.attrs['long_name']}{whole}{cut}"

    def _choose(self) -> None:
        """A click on a cell: its value in words."""
        shown = self.plane()
        if self.grid.chosen is None or shown is None:
            return
        (r, c), (down, across) = self.grid.chosen, (str(d) for d in shown.dims)
        at = f"{down} {views.labels(shown, down)[r]}, {across} {views.labels(shown, across)[c]}"
        self.about.value = (
            f"<p>{html.escape(self._says())}: <b>{html.escape(at)}</b> is {shown.values[r, c]:.6g}"
            f" {html.escape(shown.attrs['unit'])}</p>" + _html(self.table())
        )

    # ---- as data ----

    def table(self) -> pd.DataFrame:
        """What is held, a line per site; or, with a site open, a line per row of its heat map."""
        shown = self.plane()
        return self._listed() if shown is None else views.row_table(shown)

    def _listed(self) -> pd.DataFrame:
        lines = []
        for h in self._held:
            about = h.problem or h.about
            if not h.sites:
                lines.append((h.kind, h.name, "", about, h.dtype, h.where, h.n_bytes / 1e6))
            lines += [
                (
                    h.kind,
                    h.name,
                    site_name(s.key),
                    f"{' x '.join(s.dims)}: {' x '.join(map(str, s.shape))}",
                    s.dtype,
                    s.device,
                    s.n_bytes / 1e6,
                )
                for s in h.sites
            ]
        return pd.DataFrame(lines, columns=["kind", "name", "site", "shape", "dtype", "where", "MB"])

    def figures(self) -> dict[str, go.Figure]:
        """The open site as it is drawn, and the bytes of everything held."""
        made: dict[str, go.Figure] = {}
        about = Provenance.start("cache", {"site": self.state.site, "example": self.state.example}, 0)
        if self._values is not None:
            grid, shown = self.grid, self.plane()
            drawn = np.frombuffer(grid.values, np.float32).reshape(grid.shape)
            cells = pd.DataFrame(
                drawn, pd.Index(grid.row_labels, name=grid.y_title), pd.Index(grid.col_labels, name=grid.x_title)
            )
            made["site"] = views.site_map(cells, self._says(), shown.attrs["unit"], about)
        if self._held:
            lines = pd.DataFrame(
                [(h.name, h.kind, h.where, h.n_bytes / 1e6) for h in self._held],
                columns=["name", "kind", "where", "MB"],
            )
            made["held"] = views.held_bars(lines, about)
        return made

    def _enable(self) -> None:
        busy = self.state.running
        kind = next((h.kind for h in self._held if h.key == self.state.holding), "")
        self.start.disabled, self.free.disabled, self.drop.disabled = (
            busy,
            busy or not kind,
            busy or kind != "capture" or not self.state.site,
        )


def _html(table: pd.DataFrame) -> str:
    rows = table.to_html(index=False, border=0, justify="left", float_format=lambda x: f"{x:.4g}")
    return f"<div style='line-height:1.35;max-height:320px;overflow:auto'>{rows}</div>"


def _memory() -> str:
    """What this process and the devices say of their memory."""
    used, free = psutil.Process().memory_info().rss, psutil.virtual_memory().available
    parts = [f"this process holds {used / 1e9:.2f} GB of main memory, {free / 1e9:.1f} GB are free"]
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(i)
        parts.append(
            f"cuda:{i}: {torch.cuda.memory_allocated(i) / 1e9:.2f} GB in tensors,"
            f" {torch.cuda.memory_reserved(i) / 1e9:.2f} GB reserved, {free / 1e9:.1f} of {total / 1e9:.0f} GB free"
        )
    return "; ".join(parts)
