"""Panels: ipywidgets made of three parts - state (traitlets), compute (injected) and view (pure).

Nothing is computed when a panel is made; every panel also has a plain function behind it that works in a script.
"""
