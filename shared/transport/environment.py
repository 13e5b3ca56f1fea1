"""The settings that UCX reads from the environment, without which it is slow or kills the survivor of a dead peer.

Whatever the user has set wins. Measured with UCX 1.21 between two processes of one host, 64 messages of 2 MiB.
"""

import os
from collections.abc import Mapping

_ALWAYS = {
    # The peer-failure handling that we always ask for excludes CMA (4-6 GB/s) unless UCX believes that memory can be
    # fenced. The receiver reads, so what has to be fenced is the sender's memory: it stays untouched until released.
    "UCX_CMA_MEMORY_INVALIDATE": "y",
    # UCX would listen on every interface of the host, without authentication.
    "UCX_NET_DEVICES": "lo",
    # Where only TCP is left these make it 3 GB/s instead of 1.8.
    "UCX_TCP_TX_SEG_SIZE": "1M",
    "UCX_TCP_RX_SEG_SIZE": "1M",
    "UCX_TCP_SNDBUF": "4M",
    "UCX_TCP_RCVBUF": "4M",
    # Its log goes to stdout by default, and begins with complaints about settings that ucxx itself makes.
    "UCX_LOG_FILE": "stderr",
    "UCX_WARN_UNUSED_ENV_VARS": "n",
}
_HOST = {"UCX_TLS": "tcp,cma", "UCX_RNDV_FRAG_SIZE": "host:1M"}
_CUDA = {"UCX_TLS": "tcp,cma,cuda_copy,cuda_ipc"}


def missing_settings(given: Mapping[str, str], *, cuda: bool) -> dict[str, str]:
    """What has to be added to `given`."""
    wanted = _ALWAYS | (_CUDA if cuda else _HOST)
    return {name: value for name, value in wanted.items() if name not in given}


def prepare_environment(*, cuda: bool) -> None:
    """Must come before the first import of ucxx in a process: the library reads some of these while it is loaded."""
    os.environ.update(missing_settings(os.environ, cuda=cuda))
