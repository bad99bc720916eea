import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalify_cli.data import Text, documents
from scalify_cli.data.documents import document_pieces, file_pieces, find_files
from scalify_cli.errors import UserError


def join(pieces) -> dict[int, str]:
    texts: dict[int, str] = {}
    for number, text in pieces:
        texts[number] = texts.get(number, "") + text
    return texts


def refuses(path, *words: str) -> UserError:
    with pytest.raises(UserError) as caught:
        Text(str(path), tokenizer="bytes").prepare()
    assert caught.value.exit_code == 2 and caught.value.hint
    for word in words:
        assert word in caught.value.message
    return caught.value


WORDS = st.text(st.sampled_from("ab \né🤗<"), max_size=60)


@given(st.lists(WORDS, min_size=1, max_size=4), st.integers(1, 9))
def test_pieces_of_any_size_join_to_the_documents(texts, size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "PIECE", size)
        assert join(document_pieces(texts)) == {n: text for n, text in enumerate(texts) if text}


@given(text=WORDS.filter(bool), size=st.integers(4, 9))
def test_a_text_file_survives_blocks_that_cut_its_characters(text, size, tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "a.txt"
    file.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "PIECE", size)
        assert join(file_pieces([file])) == {0: text}


def test_long_documents_are_cut_after_lines():
    text = "a line of words\n" * 40_000
    pieces = [piece for _, piece in document_pieces([text])]
    assert len(pieces) > 1 and all(piece.endswith("\n") for piece in pieces)


def test_end_of_text_separates_documents_and_files_number_on(tmp_path):
    (tmp_path / "a.txt").write_text("one<|endoftext|>two\n")
    (tmp_path / "b.jsonl").write_text('{"text": "three"}\n\n{"text": "four"}\n')
    (tmp_path / "c.txt").write_text("five")
    (tmp_path / ".hidden.txt").write_text("no")
    (tmp_path / "d.md").write_text("no")
    found = find_files(str(tmp_path), documents.READERS)
    assert join(file_pieces(found)) == {0: "one", 1: "two\n", 2: "three", 3: "four", 4: "five"}


def test_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "there"}\n')
    found = find_files(str(tmp_path), documents.READERS)
    assert join(file_pieces(found)) == {0: "hello", 1: "there"}


def test_half_a_surrogate_pair_is_replaced(jsonl):
    file = jsonl(["x"])
    file.write_text('{"text": "a\\ud800b"}\n')
    assert join(file_pieces([file])) == {0: "a?b"}


def test_missing_path_is_named(tmp_path):
    refuses(tmp_path / "nowhere.txt", "nowhere.txt", "no such file")


def test_empty_file_and_blank_file_are_refused(tmp_path):
    (tmp_path / "a.txt").touch()
    refuses(tmp_path / "a.txt", "a.txt", "empty")
    (tmp_path / "a.txt").write_text(" \n\n ")
    refuses(tmp_path / "a.txt", "holds no text")


def test_folder_without_text_and_folder_of_empty_files_are_refused(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    refuses(folder, "holds no .txt, .jsonl files")
    (folder / "a.txt").touch()
    refuses(folder, "empty")


def test_parquet_is_sent_to_hugging_face(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    assert refuses(tmp_path / "a.parquet").hint.startswith("use data=hf data.path=")


@pytest.mark.parametrize("offset", [0, 7, documents.PIECE - 1, documents.PIECE, 300_000])
def test_wrong_encoding_names_the_file_and_the_byte(tmp_path, offset):
    file = tmp_path / "latin.txt"
    file.write_bytes(b"x" * offset + b"\xe9t\xe9 ")
    refuses(file, "latin.txt", f"byte {offset} ")


def test_a_character_cut_off_by_the_end_of_the_file_is_a_wrong_encoding(tmp_path):
    (tmp_path / "cut.txt").write_bytes(b"abc" + "é".encode()[:1])
    refuses(tmp_path / "cut.txt", "byte 3 ")


def test_wrong_encoding_in_a_jsonl_line_names_the_byte_of_the_file(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "ok"}\n{"text": "\xe9"}\n')
    refuses(tmp_path / "a.jsonl", "a.jsonl", "byte 25 ")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{oops", "line 2: not JSON"),
        ('{"body": "x"}', "line 2: no string field 'text'"),
        ('{"text": 3}', "line 2: no string field 'text'"),
        ('["x"]', "line 2: no string field 'text'"),
    ],
)
def test_wrong_jsonl_lines_are_named(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n' + line + "\n")
    refuses(tmp_path / "a.jsonl", message)
