"""The command line: it reads options, calls the library, and shows what came back."""

from __future__ import annotations

import sys
from typing import NoReturn

EXIT_FAILED = 1


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run ``fishertope``; ends the process with 0 (done), 1 (failed) or 2 (misuse).

    Errors that fishertope or the system raises on purpose are one message on stderr. Anything
    else is a defect of ours, and shows its traceback.
    """
    from ..core.errors import FishertopeError
    from ._app import command_for

    try:
        command_for(arguments)(args=arguments, prog_name="fishertope")
    except (FishertopeError, OSError) as error:
        from ._console import stderr

        stderr().print(
            f"Error: {error}", style="red", markup=False, highlight=False, soft_wrap=True
        )
        sys.exit(EXIT_FAILED)
    sys.exit(0)
