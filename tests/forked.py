"""Runs a command in a forked child, with limits of memory and processor time."""

import os
import resource
import sys
import traceback
from pathlib import Path

from command_line import Result

from hf_gpt.cli import main

CRASHED = 99  # exit status of a command that raises what `main` does not catch


def run_forked(arguments, folder: Path, memory: int = 400_000_000, seconds: int = 20) -> Result:
    """Runs `hf-gpt` with `folder` as its working folder; files may be written into it.

    Args:
        memory: bytes of address space beyond those of this process.
        seconds: of processor time.

    Returns:
        The result. Its status is `CRASHED` after a traceback, and negative if a signal ended the command.
    """
    logs = [folder / "stdout", folder / "stderr"]
    if (child := os.fork()) == 0:
        status = CRASHED
        try:
            os.chdir(folder)
            streams = [open(log, "w", buffering=1) for log in logs]  # noqa: SIM115 closed by exit
            for number, stream in enumerate(streams, start=1):
                os.dup2(stream.fileno(), number)
            sys.stdout, sys.stderr = streams
            sys.argv = ["hf-gpt", *map(str, arguments)]
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit = pages * resource.getpagesize() + memory
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
            main()
            status = 0
        except SystemExit as stop:
            status = stop.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            for stream in streams:
                stream.flush()
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    output, errors = (log.read_text(errors="replace") for log in logs)
    for log in logs:
        log.unlink()
    return Result(status, output, errors)
