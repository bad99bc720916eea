import json
import sys
from itertools import chain

import pytest

from scalify_cli.data import HuggingFace
from scalify_cli.data.split import SPLITS
from scalify_cli.errors import UserError

ESSAYS = [f"Essay {n}: " + f"thought {n * n} " * (20 + n % 7) for n in range(300)]


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory):
    """``datasets`` reads these once, when it is first imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hugging-face")))
        yield


def texts(dataset) -> list[str]:
    whole = [dataset.split(split) for split in SPLITS]
    return [dataset.decode(tokens) for tokens in whole]


def write_parquet(file, **columns) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(columns), file)


def refuses(corpus: HuggingFace) -> UserError:
    with pytest.raises(UserError) as caught:
        corpus.prepare()
    assert caught.value.hint
    return caught.value


def test_parquet_jsonl_and_a_folder_give_the_same_tokens(tmp_path, jsonl):
    write_parquet(tmp_path / "all.parquet", text=ESSAYS, other=list(range(300)))
    (tmp_path / "parts").mkdir()
    write_parquet(tmp_path / "parts" / "a.parquet", text=ESSAYS[:100])
    write_parquet(tmp_path / "parts" / "b.parquet", text=ESSAYS[100:])
    paths = [tmp_path / "all.parquet", tmp_path / "parts", jsonl(ESSAYS)]
    prepared = [HuggingFace(str(path), tokenizer="bytes").prepare() for path in paths]
    assert len({dataset.fingerprint for dataset in prepared}) == 1
    assert prepared[0].meta["documents"] == 300
    assert all(text in "".join(texts(prepared[0])) for text in ESSAYS)


def test_a_dataset_saved_to_disk_is_read_without_its_side_files(tmp_path, jsonl):
    import datasets

    datasets.Dataset.from_dict({"text": ESSAYS}).save_to_disk(tmp_path / "saved")
    saved = HuggingFace(str(tmp_path / "saved"), tokenizer="bytes").prepare()
    lines = HuggingFace(str(jsonl(ESSAYS)), tokenizer="bytes").prepare()
    assert saved.fingerprint == lines.fingerprint


def test_another_column_and_missing_rows(tmp_path):
    write_parquet(tmp_path / "a.parquet", body=["first", None, "", "last"])
    dataset = HuggingFace(
        str(tmp_path / "a.parquet"), text_field="body", tokenizer="bytes"
    ).prepare()
    assert dataset.meta["documents"] == 2
    dataset = HuggingFace(str(tmp_path / "a.parquet"), text_field="body").prepare()
    assert sum(map(len, texts(dataset))) == len("firstlast")


def test_lines_of_wikitext_are_joined_into_articles(tmp_path):
    articles = [
        [f" = {n} = \n", "", f" Text {n} . \n", " = = Part = = \n", " More = x . \n"]
        for n in range(200)
    ]
    write_parquet(tmp_path / "a.parquet", text=["", *chain(*articles)])
    dataset = HuggingFace(str(tmp_path / "a.parquet"), tokenizer="bytes").prepare()
    assert dataset.meta["documents"] == 200
    for text in texts(dataset):
        assert text.count(" Text") == text.count("= = Part = =") == text.count("More = x")


def test_an_unknown_column_lists_the_columns(tmp_path):
    write_parquet(tmp_path / "a.parquet", body=["x"], number=[1])
    error = refuses(HuggingFace(str(tmp_path / "a.parquet")))
    assert "no text column 'text'" in error.message and "body, number" in error.hint
    refuses(HuggingFace(str(tmp_path / "a.parquet"), text_field="number"))


def test_broken_empty_and_mixed_files_are_refused(tmp_path):
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    assert "broken.parquet" in refuses(HuggingFace(str(tmp_path / "broken.parquet"))).message
    (tmp_path / "none.csv").write_text("text\n")
    assert "no rows" in refuses(HuggingFace(str(tmp_path / "none.csv"))).message
    (tmp_path / "none.csv").unlink()
    (tmp_path / "lines.jsonl").write_text(json.dumps({"text": "x"}))
    assert "mixes .jsonl and .parquet" in refuses(HuggingFace(str(tmp_path))).message


def test_a_hub_name_without_a_network_points_to_local_files():
    error = refuses(HuggingFace("nobody/nothing"))
    assert "nobody/nothing" in error.message and "give its folder" in error.hint


def test_without_the_package_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert refuses(HuggingFace("x")).hint == "pip install 'scalify-cli[hf]'"
