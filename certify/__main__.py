"""``python -m certify``."""

from __future__ import annotations

from certify.cli.main import entry

if __name__ == "__main__":
    entry()
