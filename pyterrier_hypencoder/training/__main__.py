"""The command line: ``python -m pyterrier_hypencoder.training config.yaml key=value``."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from .config import FOLDER, list_configs

# Errors that users can correct. All others are reported with a traceback.
_USER_ERRORS = (
    ValueError,
    ImportError,
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    PermissionError,
    FloatingPointError,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Arguments of the command. None takes them from ``sys.argv``.

    Returns:
        The exit status: 0, or 2 if a user error was written to stderr as one line.
    """
    parser = _make_parser()
    given = parser.parse_args(arguments)
    if given.config is None:
        parser.print_help()
        return 0
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("pyterrier_hypencoder").setLevel(logging.DEBUG if given.debug else logging.INFO)
    try:
        folder = _train(given.config, given.overrides)
    except _USER_ERRORS as err:
        if given.debug:
            raise
        sys.stderr.write(f"error: {' '.join(str(err).split())}\n")
        return 2
    if os.environ.get("RANK", "0") == "0":  # once, if a launcher started several processes
        sys.stdout.write(f"{folder}\n")
    return 0


def _train(name: str, overrides: Sequence[str]) -> Path:
    from .config_files import load_config

    config = load_config(name, overrides)
    from .command import train  # takes seconds, so a mistake in the configuration is reported before

    return train(config)


def _make_parser() -> argparse.ArgumentParser:
    names = "\n".join(f"  {name:<20} {title}" for name, title in list_configs().items())
    parser = argparse.ArgumentParser(
        prog="python -m pyterrier_hypencoder.training",
        description="Train a Hypencoder or a bi-encoder from a configuration, and print the directory of the model.",
        epilog=f"configurations that come with this package, in {FOLDER}:\n{names}\n\n"
        "on several GPUs: torchrun --nproc-per-node 2 -m pyterrier_hypencoder.training ...",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", nargs="?", help="a YAML file, or one of the names below")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as trainer.learning_rate=1e-5 resume=true")
    parser.add_argument("--debug", action="store_true", help="log more, and show tracebacks of errors")
    return parser


if __name__ == "__main__":
    sys.exit(main())
