"""The `ncpl` command."""

import os
import sys
import warnings

import typer

from ncpl.commands import forecasts, hub, labs, page, planning, runs, scores, training  # noqa: F401 (commands)
from ncpl.commands.shared import app, fail, forget_notes, note, show_traceback

# As a user meets them: forecasts, plans, scores, a lab's own runs, the app, models.
ORDER = (
    *("predict", "compare", "curve", "watch", "sweep", "optimize", "plan", "cost", "report", "benchmarks"),
    *("import", "adapt", "suggest", "fields", "app", "train", "evaluate", "convert", "card", "push", "merge"),
)
app.registered_commands.sort(key=lambda command: ORDER.index(command.name or getattr(command.callback, "__name__", "")))


def main() -> None:
    """Runs the command; a user's error becomes one line and exit status 2, with the traceback under `--debug`."""
    # Libraries' own warnings (deprecations, unclosed files) are not for users.
    warnings.showwarning = lambda message, category, *_: note(str(message)) if category is UserWarning else None
    forget_notes()
    try:
        sys.exit(app(prog_name="ncpl", standalone_mode=False))
    except typer.exceptions.TyperException as error:
        fail(error.format_message())
    except ValueError as error:
        show_traceback()
        fail(str(error))
    except BrokenPipeError:
        # Whoever read the output has had enough; the interpreter must not write to it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        # Full and read-only disks, and networks that are not there.
        if error.errno is None:
            raise
        show_traceback()
        fail(f"{error.filename or 'output'}: {error.strerror}")
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
