"""Feed a parser with what a coverage-guided fuzzer thinks of, until the time is up or something breaks.

pip install atheris
python -m tests.fuzz.run TARGET [--minutes 10]        # TARGET of tests/fuzz/targets.py, for example http_body
"""

import argparse
import importlib
import os
import sys
import tempfile
from pathlib import Path


def main() -> None:
    atheris = importlib.import_module("atheris")  # works on few Python versions: not among the pinned packages

    with atheris.instrument_imports(include=["services", "shared", "cli"]):
        from tests.fuzz.targets import TARGETS, clean_up

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--minutes", type=float, default=10.0)
    options = parser.parse_args()
    target = TARGETS[options.target]
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(target.seeds):
            (Path(corpus) / f"seed{number}").write_bytes(seed)
        limits = [f"-max_total_time={int(options.minutes * 60)}", "-timeout=20", "-rss_limit_mb=4096", "-max_len=20000"]
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        atheris.Setup([sys.argv[0], *limits, "-print_final_stats=1", corpus], target)
        try:
            atheris.Fuzz()
        finally:
            clean_up()


if __name__ == "__main__":
    main()
