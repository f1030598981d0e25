import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from paperworks.data import open_images
from paperworks.data.decode import decode
from paperworks.errors import InputError
from tests.data.making import encoded, picture

PNGS = [encoded(picture(number, (12, 10)), "PNG") for number in range(12)]
NAMES = {"info": {"features": {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["ant", "bee", "cow"]}}}}


def write(path: Path, *, image: str = "image", label: str | None = "label", **changes: Any) -> Path:
    rows = changes.get("images", PNGS)
    columns: dict[str, Any] = {image: [{"bytes": data, "path": None} for data in rows] if changes.get("struct", True) else rows}
    if label:
        columns[label] = changes.get("labels", [row % 3 for row in range(len(rows))])
    table = pa.table(columns)
    if changes.get("metadata", True):
        table = table.replace_schema_metadata({"huggingface": json.dumps(NAMES)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=5)
    return path


def test_file_with_class_names(tmp_path: Path) -> None:
    source = open_images(write(tmp_path / "flowers.parquet"))
    assert len(source) == 12 and source.classes == ["ant", "bee", "cow"] and source.is_stacked
    for number in range(12):
        assert torch.equal(source[number]["image"], decode(PNGS[number])) and source[number]["label"] == number % 3
    assert source[4]["key"] == "flowers.parquet#4"


@pytest.mark.parametrize(
    "image, label, struct", [("img", "fine_label", True), ("picture", "target", False), ("odd", "cls", True)]
)
def test_other_column_names_and_plain_bytes(tmp_path: Path, image: str, label: str, struct: bool) -> None:
    source = open_images(write(tmp_path / "a.parquet", image=image, label=label, struct=struct, metadata=False))
    assert len(source) == 12 and source.classes == ["0", "1", "2"] and source[7]["label"] == 1


def test_columns_can_be_named_and_misnamed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", label="species", metadata=False)
    assert open_images(path).labels is None
    assert open_images(path, label_column="species").classes == ["0", "1", "2"]
    with pytest.raises(InputError, match="no column 'spezies'; there are image, species"):
        open_images(path, label_column="spezies")
    with pytest.raises(InputError, match=r"name the column with label_column=.*image, species"):
        open_images(path, labels="required")


def test_broken_images_are_skipped(tmp_path: Path) -> None:
    source = open_images(write(tmp_path / "a.parquet", images=[*PNGS[:3], b"", PNGS[3][:50], *PNGS[4:6]]))
    assert [sample["label"] for sample in source] == [0, 1, 2, 2, 0]
    assert [what for what, _ in source.skipped] == ["a.parquet#3", "a.parquet#4"]
    with pytest.raises(InputError, match=r"a\.parquet#3: empty file"):
        open_images(tmp_path / "a.parquet", strict=True)


def test_folder_with_parts_and_shards(tmp_path: Path) -> None:
    write(tmp_path / "data/train-00000-of-00002.parquet")
    write(tmp_path / "data/train-00001-of-00002.parquet", images=PNGS[:5])
    write(tmp_path / "data/test-00000-of-00001.parquet", images=PNGS[:4])
    train, test, both = (open_images(tmp_path, split=split) for split in ("train", "test", "all"))
    assert (len(train), len(test), len(both)) == (17, 4, 21)
    assert train.classes == test.classes == ["ant", "bee", "cow"]
    assert train[16]["key"] == "train-00001-of-00002.parquet#4"


def test_an_unlabelled_test_part_gives_way_to_validation(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet")
    write(tmp_path / "validation.parquet", images=PNGS[:4])
    write(tmp_path / "test.parquet", images=PNGS[:3], labels=[-1, -1, -1])
    assert len(open_images(tmp_path, split="test")) == 4
    assert open_images(tmp_path / "test.parquet").labels is None


def test_labels_out_of_range_name_the_row(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", labels=[0, 1, 2, 7, 0, 1, 2, 0, 1, 2, 0, -1])
    with pytest.raises(InputError, match=r"2 labels lie outside 0\.\.2, the first is 7 of a.parquet#3"):
        open_images(path)
    assert len(open_images(path, labels="none")) == 12


def test_texts_as_labels_and_missing_ones(tmp_path: Path) -> None:
    source = open_images(write(tmp_path / "a.parquet", labels=["b", "a"] * 6, metadata=False))
    assert source.classes == ["a", "b"] and source[0]["label"] == 1
    with pytest.raises(InputError, match="1 of 12 images have no label"):
        open_images(write(tmp_path / "b.parquet", labels=[None, *range(11)], metadata=False))


def test_images_stored_by_path(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNGS[0])
    rows = [{"bytes": None, "path": "a.png"}, {"bytes": None, "path": "gone.png"}, {"bytes": PNGS[1], "path": "x"}]
    pq.write_table(
        pa.table({"image": pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))}), tmp_path / "a.parquet"
    )
    source = open_images(tmp_path / "a.parquet")
    assert len(source) == 2 and source.skipped == [("a.parquet#1", "its file gone.png is missing")]


def test_files_that_are_no_parquet(tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(InputError, match="not a readable parquet file"):
        open_images(tmp_path / "bad.parquet")
    write(tmp_path / "good.parquet")
    source = open_images(tmp_path)
    assert len(source) == 12 and source.skipped[0][0] == "bad.parquet"
    with pytest.raises(InputError, match=r"bad\.parquet"):
        open_images(tmp_path, strict=True)


def test_a_table_without_images(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1.0], "label": [0]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"no column of images .* among x, label"):
        open_images(tmp_path / "a.parquet")


def test_tables_beyond_the_budget_are_unpacked_once_and_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAPERWORKS_CACHE", str(tmp_path / "cache"))
    path = write(tmp_path / "a.parquet", images=[*PNGS[:6], b"", *PNGS[6:]], metadata=True)
    small, large = open_images(path), open_images(path, memory=500)
    assert not large.is_stacked and large.skipped == small.skipped and large.classes == small.classes
    for number in (0, 5, 6, 11):
        assert torch.equal(large[number]["image"], small[number]["image"]) and large[number]["label"] == small[number]["label"]
    unpacked = list((tmp_path / "cache/unpacked").glob("*"))
    assert len(unpacked) == 1
    stamp = unpacked[0].stat().st_mtime_ns
    open_images(path, memory=500)
    assert unpacked[0].stat().st_mtime_ns == stamp


def test_cifar_as_published_on_the_hub(shared: Path) -> None:
    folder = shared / "data/cifar10"
    if not folder.is_dir():
        pytest.skip("no CIFAR-10 parquet in the sample data")
    test = open_images(folder, split="test")
    assert len(test) == 10_000 and test.classes is not None and test.classes[0] == "airplane" and not test.skipped
    assert test.images.shape == (10_000, 3, 32, 32) and test.labels is not None
    assert test.labels.bincount().tolist() == [1000] * 10


def test_photos_of_several_sizes(shared: Path) -> None:
    folder = shared / "data/imagenet-samples"
    if not folder.is_dir():
        pytest.skip("no ImageNet photos in the sample data")
    source = open_images(folder)
    assert len(source) == 1000 and source.classes is not None and source.classes[1] == "n01443537_goldfish"
    assert not source.is_stacked and source.labels is not None and source.labels.unique().numel() == 1000
