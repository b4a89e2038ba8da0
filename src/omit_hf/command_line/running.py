"""What every command and script ends in: errors of one line, any console, pipes that are closed early."""

import contextlib
import errno
import os
import sys
import threading
from collections.abc import Callable, Iterator

from huggingface_hub.errors import StrictDataclassError

from omit_hf.command_line.printing import one_line
from omit_hf.parsing import told

INTERRUPTED = 130  # the status of a program that SIGINT ended
CLOSED_PIPE = 141  # the status of a program that SIGPIPE ended
DISK_ERRORS = {getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EROFS", "EFBIG") if hasattr(errno, name)}


def run_script(main: Callable[[], int | None], *others: type[Exception]) -> None:
    """What every script ends in: runs `main`, and exits with its status where that is not 0.

    What the console cannot show is printed as its escape, such as `\\u2192` for an arrow. Where stdout is closed early,
    as by `| head`, the script ends without a word, as other programs do. A script writes its files before it prints, so
    that no console decides over them.

    Args:
        main: of the script, with its options.
        others: as of `errors_in_one_line`.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # which a stream of a notebook has not
            stream.reconfigure(errors="backslashreplace")
    threading.excepthook = _thread_failed
    try:
        with errors_in_one_line(*others):
            try:
                status = main()
            except BrokenPipeError as error:
                if _flush_stdout("\n") is None:  # it was another pipe
                    raise OSError(error.errno, error.strerror) from error
                status = CLOSED_PIPE
    except BaseException:
        _flush_stdout()
        raise
    error = _flush_stdout()
    if error is not None and not isinstance(error, BrokenPipeError):
        sys.exit(f"error: What was printed could not be written: {error}")
    if status:
        sys.exit(status)


def _flush_stdout(text: str = "") -> OSError | None:
    """Print a text and what is buffered; the error where it does not arrive, and then nothing is printed any more."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error
    return None


def _thread_failed(failure, shown_by=threading.excepthook) -> None:
    """Of a thread that found the disk full, such as TensorBoard's, a line: whoever waits for it gets the error too."""
    if isinstance(failure.exc_value, OSError) and failure.exc_value.errno in DISK_ERRORS:
        print(f"error: {failure.exc_value}", file=sys.stderr)
    else:
        shown_by(failure)


@contextlib.contextmanager
def errors_in_one_line(*others: type[Exception]) -> Iterator[None]:
    """Ends the script with status 1 and a line on stderr for what its user can mend, instead of a traceback.

    Args:
        others: kinds of errors beside wrong values, files that cannot be read or written and packages that are missing.
    """
    try:
        yield
    except StrictDataclassError as error:  # of a configuration; its cause says what is wrong
        sys.exit(f"error: {told(error.__cause__ or error)}")
    except (ValueError, OSError, ImportError, *others) as error:
        sys.exit(f"error: {_printable(str(error))}")


def _printable(text: str) -> str:
    """Lines that do nothing to a console but stand there: a name within may hold what moves or clears it."""
    return "\n".join(map(one_line, text.split("\n")))
