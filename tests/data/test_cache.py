import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scalify_cli.data import Text
from scalify_cli.data.cache import cache_root, open_or_build
from scalify_cli.errors import UserError

PROSE = "".join(f"Sentence {n} says little.\n" for n in range(4_000))


@pytest.fixture
def text(tmp_path) -> Text:
    (tmp_path / "prose.txt").write_text(PROSE)
    return Text(str(tmp_path / "prose.txt"), tokenizer="bytes")


def prepared(text: Text):
    """The dataset and what was said while preparing it."""
    said: list[str] = []
    return text.prepare(said.append), said


def test_a_second_prepare_reads_the_cache(text):
    first, said = prepared(text)
    again, silence = prepared(text)
    assert said and not silence
    assert again.fingerprint == first.fingerprint and again.meta == first.meta


def test_other_text_and_other_tokenizers_have_other_entries(text, tmp_path):
    first, _ = prepared(text)
    other, _ = prepared(Text(text.path, tokenizer="bpe_4k"))
    (tmp_path / "prose.txt").write_text(PROSE + "More.")
    longer, said = prepared(text)
    assert len({first.folder, other.folder, longer.folder}) == 3 and said
    assert len({first.fingerprint, other.fingerprint, longer.fingerprint}) == 3


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def recount(file: Path) -> None:
    meta = json.loads(file.read_text())
    meta["splits"]["train"]["tokens"] -= 1
    file.write_text(json.dumps(meta))


DAMAGE = {
    "a flipped bit": lambda entry: flip(entry / "train.bin"),
    "a truncated file": lambda entry: (entry / "validation.bin").write_bytes(b"ab"),
    "a file that grew": lambda entry: (entry / "test.bin").open("ab").write(b"ab"),
    "a missing file": lambda entry: (entry / "test.bin").unlink(),
    "no meta": lambda entry: (entry / "meta.json").unlink(),
    "an empty meta": lambda entry: (entry / "meta.json").write_text(""),
    "half a meta": lambda entry: (entry / "meta.json").write_text('{"version": 1'),
    "a meta of another kind": lambda entry: (entry / "meta.json").write_text("[1]"),
    "an edited meta": lambda entry: recount(entry / "meta.json"),
    "an empty folder": lambda entry: (shutil.rmtree(entry), entry.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_noticed_and_mended(text, cache, damage):
    first, _ = prepared(text)
    damage(first.folder)
    mended, said = prepared(text)
    assert "is damaged; building it again" in said[0]
    assert mended.fingerprint == first.fingerprint
    assert prepared(text)[1] == []
    assert {path.name for path in cache.iterdir()} == {
        first.folder.name,
        first.folder.name + ".lock",
    }


def test_a_process_killed_while_building_leaves_nothing_behind(cache):
    program = (
        "import os, sys; from pathlib import Path\n"
        "from scalify_cli.data.cache import open_or_build\n"
        "def build(folder):\n"
        "    (folder / 'half').write_text('ha'); os._exit(9)\n"
        "open_or_build(Path(sys.argv[1]), build, print)\n"
    )
    entry = cache / "entry"
    assert subprocess.run([sys.executable, "-c", program, str(entry)]).returncode == 9
    assert not entry.exists() and list(cache.glob("entry.building-*"))
    assert open_or_build(entry, lambda folder: {"whole": True}, print)["whole"]
    assert not list(cache.glob("entry.building-*"))


def test_a_failed_build_leaves_nothing_behind(cache):
    with pytest.raises(ZeroDivisionError):
        open_or_build(cache / "entry", lambda folder: {"x": 1 / 0}, print)
    assert [path.name for path in cache.iterdir()] == ["entry.lock"]


def test_two_processes_prepare_once_and_agree(text, cache):
    program = (
        "import sys; from scalify_cli.data import Text\n"
        "dataset = Text(sys.argv[1], tokenizer='bpe_4k').prepare(print)\n"
        "print('fingerprint', dataset.fingerprint)\n"
    )
    command = [sys.executable, "-c", program, text.path]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=60)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert sum("reading text" in lines for lines in said) == 1
    assert len({lines.splitlines()[-1] for lines in said}) == 1
    assert len(list(cache.iterdir())) == 2  # the entry and its lock


def test_a_cache_that_cannot_be_written_is_named(text, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SCALIFY_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError) as caught:
        text.prepare()
    assert str(tmp_path / "file" / "cache") in caught.value.message
    assert "SCALIFY_CACHE" in caught.value.hint


def test_a_full_disk_is_an_error_and_a_hint(cache):
    def build(folder: Path) -> dict:
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space left on device"):
        open_or_build(cache / "entry", build, print)
    assert not list(cache.glob("entry.building-*"))


def test_the_folder_is_the_options_then_the_environments(tmp_path, monkeypatch):
    monkeypatch.setenv("SCALIFY_CACHE", str(tmp_path / "ours"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_root(str(tmp_path / "given")) == tmp_path / "given"
    assert cache_root(None) == tmp_path / "ours"
    monkeypatch.delenv("SCALIFY_CACHE")
    assert cache_root(None) == tmp_path / "xdg" / "scalify"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root(None) == tmp_path / "home" / ".cache" / "scalify"
