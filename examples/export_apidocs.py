"""Write the quickstart's test collection to a folder, for use with other tools.

Example::

    python examples/export_apidocs.py apidocs-collection
"""

import argparse
from pathlib import Path

from shared import apidocs


def main() -> None:
    """Write the collection to the folder that the command line names."""
    parser = argparse.ArgumentParser(description="Write the quickstart's test collection to a folder.")
    parser.add_argument("folder", type=Path, help="folder to write docs.jsonl, topics.tsv and qrels.txt to")
    apidocs.build_collection().write(parser.parse_args().folder)


if __name__ == "__main__":
    main()
