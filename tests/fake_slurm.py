"""Commands named ``squeue``, ``sbatch``, ... that print what they are told to."""

import sys
from pathlib import Path

_SCRIPT = """\
#!{python}
import pathlib, sys
folder, name = pathlib.Path({folder!r}), pathlib.Path(sys.argv[0]).name
with (folder / "calls").open("a") as calls:
    print(name, *sys.argv[1:], file=calls)
answers = sorted(folder.glob(name + ".answer*"))
if len(answers) > 1:
    text = answers[0].read_text()
    answers[0].unlink()
else:
    text = answers[0].read_text() if answers else ""
if text.startswith("error:"):
    sys.exit(text)
print(text, end="")
"""


class FakeSlurm:
    """A folder of commands for ``PATH``."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in ("squeue", "sacct", "scancel", "sbatch", "scontrol"):
            script = folder / name
            script.write_text(_SCRIPT.format(python=sys.executable, folder=str(folder)))
            script.chmod(0o755)

    def answers(self, name: str, *texts: str) -> None:
        """What a command prints, the last text again and again; ``error: ...`` lets it fail."""
        for index, text in enumerate(texts):
            (self.folder / f"{name}.answer{index:02}").write_text(text)

    @property
    def calls(self) -> list[str]:
        """The command lines so far."""
        calls = self.folder / "calls"
        return calls.read_text().splitlines() if calls.exists() else []
