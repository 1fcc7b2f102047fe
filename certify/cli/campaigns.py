"""What commands that run campaigns share: cores for their workers, and a word when interrupted."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from certify.cli.streams import say
from certify.core.errors import CertifyError, one_line

if TYPE_CHECKING:
    from certify.campaign.runner import Effort


def threads_per_worker(workers: int) -> int:
    """``OMP_NUM_THREADS`` where it is set, else an equal share of this process's cores."""
    share = max(1, len(os.sched_getaffinity(0)) // workers)
    return int(os.environ.get("OMP_NUM_THREADS", share))


def effort_of(options: argparse.Namespace) -> Effort:
    """Workers, shard and the environment of the workers, from ``--workers`` and ``--shard``."""
    from certify.campaign.runner import Effort
    from certify.campaign.shard import Shard

    threads = str(threads_per_worker(options.workers))
    return Effort(options.workers, options.shard or Shard(), {"OMP_NUM_THREADS": threads})


@contextmanager
def kept(out: Path | str | None, what: str = "what was finished") -> Iterator[None]:
    """Say where finished work lies when something other than a user's mistake ends the run."""
    try:
        yield
    except CertifyError:
        raise
    except BaseException:
        if out is not None:
            say(f"{what} is in {one_line(out, 120)}; the same command goes on from there")
        raise
