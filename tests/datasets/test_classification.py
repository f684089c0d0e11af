"""Labelled sets: files, `datasets`, images and the embedded sets; what cannot be used is named."""

import json

import numpy as np
import pytest

from workbench.core.errors import BadData
from workbench.datasets import classification as c


@pytest.fixture
def csv(tmp_path):
    path = tmp_path / "some.csv"
    path.write_text("text,label\n" + "".join(f'"row {i}, with a comma",{["cat", "dog"][i % 2]}\n' for i in range(20)))
    return path


def test_a_csv_is_split_by_class(csv):
    found = c.read(str(csv), test_share=0.2)
    assert found.classes == ("cat", "dog") and (len(found.train), len(found.test)) == (16, 4)
    assert sorted(found.test.labels) == [0, 0, 1, 1] and found.train.texts[0].endswith("with a comma")
    assert not set(found.train.texts) & set(found.test.texts)
    assert found.about["name"] == "some.csv" and len(found.about["sha256"]["some.csv"]) == 64


def test_a_test_file_is_taken_whole_and_shares_the_classes(csv, tmp_path):
    other = tmp_path / "test.jsonl"
    other.write_text("\n".join(json.dumps({"text": f"t {i}", "label": "dog"}) for i in range(3)))
    found = c.read(str(csv), test=str(other))
    assert (len(found.train), len(found.test)) == (20, 3) and set(found.test.labels) == {1}


def test_number_labels_are_ordered_as_numbers_and_columns_may_be_named(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(json.dumps({"said": f"t {i}", "grade": i % 12}) for i in range(48)))
    assert c.read(str(path), text_column="said", label_column="grade").classes == tuple(str(i) for i in range(12))


def test_at_most_so_many_by_seed(csv):
    a, b, d = (c.read(str(csv), n_train=6, n_test=2, seed=s) for s in (0, 0, 1))
    assert (len(a.train), len(a.test)) == (6, 2) and a.train.texts == b.train.texts != d.train.texts


BAD = {
    "no file": (None, "no file"),
    "no column": ("body,label\nx,1\ny,0\n", "no column 'text'; it has 'body', 'label'"),
    "an empty text": ("text,label\na,1\n,0\nb,1\n", "row 3: 'text' is empty"),
    "an empty label": ("text,label\na,1\nb,\n", "row 3: 'label' is empty"),
    "one class": ("text,label\n" + "a,1\n" * 9, "one class only"),
    "no rows": ("text,label\n", "holds no rows"),
    "nothing to hold out": ("text,label\na,1\nb,0\n", "no class has two samples"),
}


@pytest.mark.parametrize(("content", "said"), BAD.values(), ids=BAD)
def test_bad_files_say_what_is_wrong(tmp_path, content, said):
    path = tmp_path / "x.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(BadData, match=said):
        c.read(str(path))


def test_bad_json_is_named(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "a", "label": 1}\n{"text": \n')
    with pytest.raises(BadData, match=r"x\.jsonl could not be read as JSONL"):
        c.read(str(path))
    path.write_text('{"text": "a", "label": 1}\n{"text": "b", "label": null}\n')
    with pytest.raises(BadData, match="row 2: 'label' is empty or no text"):
        c.read(str(path))


def test_a_datasets_directory_with_splits_and_names(tmp_path):
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    split = {
        n: datasets.Dataset.from_dict(
            {"text": [f"{n} {i}" for i in range(k)], "label": [i % 2 for i in range(k)]}, features=features
        )
        for n, k in (("train", 8), ("validation", 4))
    }
    datasets.DatasetDict(split).save_to_disk(tmp_path / "set")
    found = c.read(str(tmp_path / "set"))
    assert (
        found.classes == ("no", "yes")
        and (len(found.train), len(found.test)) == (8, 4)
        and found.test.texts[0] == "validation 0"
    )
    with pytest.raises(BadData, match="no column 'body'; it has text, label"):
        c.read(str(tmp_path / "set"), text_column="body")
    with pytest.raises(BadData, match="could not be read"):
        c.read(str(tmp_path / "nothing-here"))


def test_images_are_brought_to_the_models_shape(tmp_path):
    import datasets

    images = [np.full((10, 6), 25 * i, np.uint8) for i in range(10)]
    features = datasets.Features({"image": datasets.Array2D((10, 6), "uint8"), "label": datasets.Value("int64")})
    datasets.Dataset.from_dict({"image": images, "label": [i % 2 for i in range(10)]}, features=features).save_to_disk(
        tmp_path / "set"
    )
    found = c.read(str(tmp_path / "set"), text_column="image", image_shape=(3, 8, 8))
    assert found.train.pixels.shape == (8, 3, 8, 8) and found.train.pixels.dtype == np.float32
    levels = np.sort(np.concatenate([found.train.pixels, found.test.pixels])[:, 0, 0, 0])
    np.testing.assert_allclose(levels, np.arange(10) * 25 / 127.5 - 1, atol=1e-6)


def test_colours_become_grey_by_luma():
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 0] = 200
    np.testing.assert_allclose(c._pixels(red, (1, 2, 2)), 200 * 0.299 / 127.5 - 1, atol=1e-6)
    assert c._pixels(red, (3, 2, 2))[:, 0, 0] == pytest.approx([200 / 127.5 - 1, -1, -1])


def test_the_embedded_sets():
    found = c.embedded("digits")
    assert (len(found.train), len(found.test), len(found.classes)) == (718, 360, 10) and found.train.pixels is None
    assert len(found.train.texts[0].split()) == 16
    large = c.embedded("digits", image_shape=(3, 16, 16))
    small = c.embedded("digits", image_shape=(1, 8, 8))
    np.testing.assert_array_equal(large.train.pixels[:, 2, ::2, ::2], small.train.pixels[:, 0])
    felt = c.embedded("feelings", n_train=30, n_test=10)
    assert (len(felt.train), len(felt.test), felt.classes[5]) == (30, 10, "surprise")
