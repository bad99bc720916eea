"""Whatever went wrong becomes one ``error:`` line and one ``hint:`` line."""

import errno
import os
import sys
import traceback
from collections.abc import Iterator, Sequence

import typer

from scalify_cli.errors import UserError

_UsageProblem = typer.BadParameter.__mro__[2]  # Click's own base, wherever Typer keeps Click
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


def explain(error: BaseException, arguments: Sequence[str] = ()) -> UserError:
    """What to tell the user about an exception, and the exit code."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        return UserError("interrupted", "run the same command again to go on", 130)
    if isinstance(error, _UsageProblem):
        return _usage(error, arguments)
    if is_disk_full(error) or isinstance(error, OSError):
        return UserError(_os_message(error), _os_hint(error))
    return UserError(f"{type(error).__name__}: {error}", "-v prints the traceback", 1)


def print_error(problem: UserError, cause: BaseException | None = None) -> None:
    """Two lines on stderr; before them the traceback of ``cause``, if one is given."""
    if cause is not None:
        traceback.print_exception(cause, file=sys.stderr)
    print(f"error: {_one_line(problem.message)}", file=sys.stderr)
    print(f"hint: {_one_line(problem.hint)}", file=sys.stderr)


def is_verbose(arguments: Sequence[str]) -> bool:
    """Whether tracebacks are wanted."""
    asked = "-v" in arguments or "--verbose" in arguments
    return asked or os.environ.get("SCALIFY_DEBUG", "") not in ("", "0")


def is_disk_full(error: BaseException) -> bool:
    """Whether a full disk is at the bottom of it; libraries wrap that in errors of their own."""
    return any(
        getattr(link, "errno", None) in _DISK_FULL or "No space left on device" in str(link)
        for link in _chain(error)
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _usage(error: BaseException, arguments: Sequence[str]) -> UserError:
    message = error.format_message()  # pyright: ignore[reportAttributeAccessIssue]
    message = message.replace("Value error, ", "")
    dashed = [word for word in arguments if word.startswith("--") and "=" in word]
    if "No such option" in message and any(word.split("=")[0] in message for word in dashed):
        return UserError(message, "configuration is written key=value, without dashes")
    command = arguments[0] if arguments and arguments[0].isalpha() else ""
    known = getattr(error, "ctx", None) is not None and command and "command" not in message
    return UserError(message, f"see `scalify {f'{command} ' if known else ''}--help`")


def _os_message(error: BaseException) -> str:
    if is_disk_full(error):
        where = getattr(error, "filename", None)
        return f"the disk is full{f': {where}' if where else ''}"
    assert isinstance(error, OSError)
    reason = error.strerror or str(error)
    return f"{reason}: {error.filename}" if error.filename else reason


def _os_hint(error: BaseException) -> str:
    if is_disk_full(error):
        return "free some space, or choose another disk with --runs-dir"
    if getattr(error, "errno", None) in _NOT_ALLOWED:
        return "check the path and who may write there"
    return "-v prints the traceback"


def _one_line(text: str) -> str:
    return " ".join(text.split())
