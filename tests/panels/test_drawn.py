"""Drawn widgets hold the numbers they were given: pooled only above the cap and told so, clicks in the caller's
numbers, signed maps centred.
"""

import numpy as np
import pytest

from workbench.panels.drawn import MAX_CELLS, HeatMap, TokenStrip, script

WORDS = {"x_title": "position", "y_title": "layer", "unit": "logits", "alt": "a map"}


def shown(values, **options) -> tuple[HeatMap, str]:
    values, grid = np.asarray(values, float), HeatMap()
    said = grid.show(values, range(values.shape[0]), range(values.shape[1]), **WORDS, **options)
    return grid, said


def numbers(grid: HeatMap) -> np.ndarray:
    return np.frombuffer(grid.values, np.float32).reshape(grid.shape)


# ---- heat map ----


def test_cells_labels_and_words_arrive_as_given():
    grid, said = shown([[1, -2, 3], [0, 5, -6]], texts=list("abcdef"), marked=[(1, 2)])
    assert said == "" and numbers(grid).tolist() == [[1, -2, 3], [0, 5, -6]]
    assert (
        grid.row_labels == ["0", "1"]
        and grid.col_labels == ["0", "1", "2"]
        and grid.texts == list("abcdef")
        and grid.marked == [[1, 2]]
    )
    assert (grid.x_title, grid.y_title, grid.unit, grid.alt) == ("position", "layer", "logits", "a map")


def test_every_show_is_seen_by_the_browser():
    grid, _ = shown([[1.0]])
    before = grid.version
    grid.show(np.array([[1.0]]), [0], [0], **WORDS)
    assert grid.version == before + 1


@pytest.mark.parametrize(
    ("values", "signed", "limits"),
    [
        ([[1, -4]], True, (-4, 4)),
        ([[1, 2]], True, (-2, 2)),
        ([[0, 0]], True, (-1, 1)),
        ([[1, 4]], False, (0, 4)),
        ([[-1, 4]], False, (-1, 4)),
        ([[np.nan, 3]], True, (-3, 3)),
        ([[np.nan, 3]], False, (0, 3)),
        ([[np.nan, np.nan]], True, (-1, 1)),
        ([[np.nan, np.nan]], False, (0, 1)),
    ],
    ids=[
        "signed",
        "signed, all above 0",
        "all zero",
        "unsigned",
        "unsigned below 0",
        "signed with nan",
        "unsigned with nan",
        "signed, nothing",
        "unsigned, nothing",
    ],
)
@pytest.mark.filterwarnings("error")
def test_limits(values, signed, limits):
    grid, _ = shown(values, signed=signed)
    assert (grid.low, grid.high) == pytest.approx(limits) and grid.signed is signed


def test_limits_can_be_given():
    grid, _ = shown([[1, 9]], limits=(-2.0, 2.0))
    assert (grid.low, grid.high) == (-2, 2)


def test_nan_stays_nan():
    grid, _ = shown([[np.nan, 1.0]])
    assert np.isnan(numbers(grid)[0, 0]) and numbers(grid)[0, 1] == 1


def test_a_click_is_in_rows_and_columns():
    grid, _ = shown(np.zeros((3, 4)))
    assert grid.chosen is None
    grid.click(2, 1)
    assert grid.chosen == (2, 1) and grid.clicks == 1
    grid.click(2, 1)
    assert grid.clicks == 2, "a second click on the same cell is seen"


def test_new_numbers_forget_the_click():
    grid, _ = shown(np.zeros((3, 4)))
    grid.click(2, 1)
    grid.show(np.zeros((3, 4)), range(3), range(4), **WORDS)
    assert grid.chosen is None


# ---- pooling ----


def test_at_the_cap_nothing_is_pooled():
    grid, said = shown(np.zeros((200, MAX_CELLS // 200)))
    assert said == "" and grid.shape == [200, MAX_CELLS // 200]


def test_above_the_cap_cells_are_pooled_and_it_says_so():
    values = np.arange(300 * 301, dtype=float).reshape(300, 301) - 40_000
    grid, said = shown(values, texts=["x"] * values.size)
    rows, cols = grid.shape
    assert rows * cols <= MAX_CELLS and "300 x 301 cells" in said and "the table has all" in said
    assert len(grid.row_labels) == rows and len(grid.col_labels) == cols and grid.texts == []


def test_a_pooled_cell_shows_the_largest_size_of_its_block_with_its_sign():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(301, 450)).astype(np.float32)
    values[rng.random(values.shape) < 0.2] = np.nan
    values[7, 9] = -50
    grid, _ = shown(values)
    (down, across), small = grid._steps, numbers(grid)
    for r in range(small.shape[0]):
        for c in range(0, small.shape[1], 17):
            block = values[r * down : (r + 1) * down, c * across : (c + 1) * across].ravel()
            block = block[np.isfinite(block)]
            assert np.isnan(small[r, c]) if not block.size else small[r, c] == block[np.abs(block).argmax()]
    assert small[7 // down, 9 // across] == -50


def test_clicks_and_marks_map_back_through_pooling():
    grid, _ = shown(np.zeros((1000, 100)), marked=[(999, 99)])
    down, across = grid._steps
    assert (down, across) != (1, 1) and grid.marked == [[999 // down, 99 // across]]
    grid.click(999, 99)
    row, col = grid.chosen
    assert row <= 999 < row + down and col <= 99 < col + across, (
        "the first of the cells that the clicked one stands for"
    )
    assert grid.row_labels[grid.selected[0]] == str(row), "the label of a cell is that of what a click on it gives"


def test_a_small_map_after_a_large_one_is_not_pooled():
    grid, _ = shown(np.zeros((1000, 100)))
    grid.show(np.eye(3), range(3), range(3), **WORDS)
    grid.click(2, 2)
    assert grid.chosen == (2, 2) and grid.shape == [3, 3]


# ---- tokens ----


def test_tokens_ids_and_values_arrive_as_given():
    strip = TokenStrip()
    strip.show(
        ["<b>", " a"], np.array([1, 7]), alt="two", values=np.array([np.nan, 0.5]), unit="nats", limits=(0.0, 2.0)
    )
    assert (
        strip.tokens == ["<b>", " a"]
        and strip.ids == [1, 7]
        and strip.unit == "nats"
        and (strip.low, strip.high) == (0, 2)
    )
    values = np.frombuffer(strip.values, np.float32)
    assert np.isnan(values[0]) and values[1] == 0.5 and strip.matrix == b""


def test_tokens_without_values_have_no_colour_and_a_matrix_arrives_by_rows():
    strip = TokenStrip()
    strip.show(["a", "b"], [1, 2], alt="two", matrix=np.array([[1, 0], [0.25, 0.75]]))
    assert np.isnan(np.frombuffer(strip.values, np.float32)).all()
    assert np.frombuffer(strip.matrix, np.float32).tolist() == [1, 0, 0.25, 0.75]


def test_a_choice_beyond_a_shorter_prompt_is_dropped_and_one_within_kept():
    strip = TokenStrip()
    strip.show(list("abcd"), range(4), alt="four")
    strip.selected = 1
    strip.show(list("abc"), range(3), alt="three")
    assert strip.selected == 1
    strip.show(["a"], [0], alt="one")
    assert strip.selected == -1


# ---- scripts ----


@pytest.mark.parametrize("name", ["heatmap", "tokens"])
def test_the_script_is_one_module_that_asks_for_nothing(name):
    text = script(name)
    assert text.count("export default") == 1 and text.count("export ") == 1
    assert not any(word in text for word in ("http", "import ", "fetch(", "innerHTML", "eval("))


def test_a_map_wider_than_a_page_is_pooled_across_and_says_so():
    grid = HeatMap()
    notice = grid.show(
        np.arange(8000.0).reshape(8, 1000), range(8), range(1000), x_title="x", y_title="y", unit="", alt=""
    )
    assert grid.shape[0] == 8 and grid.shape[1] <= 240 and "8 x 1000 cells are too many to draw" in notice
    grid.click(0, 999)
    assert grid.chosen[1] >= 995


def test_outline_marks_a_cell_without_a_click():
    grid = HeatMap()
    grid.click(0, 0)  # before anything is shown
    clicks = grid.clicks
    grid.outline(1, 2)
    assert grid.chosen == (1, 2) and grid.clicks == clicks
