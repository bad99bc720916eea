"""The one exception that speaks to the user: what happened, and what to type next."""


class UserError(Exception):
    """A mistake the user can mend. Printed as one ``error:`` and one ``hint:`` line.

    Args:
        message: what happened, and where.
        hint: what to type or change next.
        exit_code: the process's exit code (2: usage or configuration).
    """

    def __init__(self, message: str, hint: str, exit_code: int = 2):
        self.message = message.removesuffix(".")
        self.hint = hint.removesuffix(".")
        super().__init__(self.message)
        self.exit_code = exit_code
