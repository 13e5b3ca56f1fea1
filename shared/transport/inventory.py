"""`python -m shared.transport.inventory`: which transports UCX could use on this machine, as a JSON list of names.

In a process of its own: UCX reads its settings once per process, and a broken installation may end the process.
"""

import json
import os
import re
import sys

_RESOURCE = re.compile(r"resource \d+ *:.* (\w+)/\S+ *$", re.MULTILINE)


def transports_in(context_info: str) -> list[str]:
    """The transports named in what ucp_context_print_info prints, each once."""
    return sorted(set(_RESOURCE.findall(context_info)))


def main() -> None:
    os.environ["UCX_TLS"] = "all"
    os.environ["UCX_WARN_UNUSED_ENV_VARS"] = "n"
    os.environ["UCX_LOG_FILE"] = "stderr"
    import ucxx

    ucxx.init(progress_mode="thread")
    sys.stdout.write(json.dumps(transports_in(ucxx.get_ucp_context_info())) + "\n")
    ucxx.reset()


if __name__ == "__main__":
    main()
