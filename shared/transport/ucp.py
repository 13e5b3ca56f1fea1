"""What ucxx does not offer and UCX does: which transports are open to a peer, and messages put out of the way."""

import ctypes
from collections.abc import Iterable
from functools import cache
from pathlib import Path

_TRANSPORTS_FIELD = 1 << 3  # UCP_EP_ATTR_FIELD_TRANSPORTS
_MOST_LANES = 16
_FIRST_ERROR = (1 << 64) - 100  # of a ucs_status_ptr_t: UCS_ERR_LAST is -100

# From the most to the least likely to be given the bulk. Names that are not here (RDMA) come before all of them.
_HOST_ORDER = ("xpmem", "knem", "cma", "posix", "sysv", "tcp")
_WITHIN_A_PROCESS = ("cuda_copy", "gdr_copy")
_CUDA_ONLY = (*_WITHIN_A_PROCESS, "cuda_ipc")
_HOST_ONLY = (*_WITHIN_A_PROCESS, "xpmem", "knem", "cma", "posix", "sysv")


class _Transport(ctypes.Structure):  # ucp_transport_entry_t
    _fields_ = (("transport_name", ctypes.c_char_p), ("device_name", ctypes.c_char_p))


class _Attributes(ctypes.Structure):  # ucp_ep_attr_t, with its ucp_transports_t spread out
    _fields_ = (
        ("field_mask", ctypes.c_uint64),
        ("name", ctypes.c_char * 32),
        ("local_sockaddr", ctypes.c_char * 128),
        ("remote_sockaddr", ctypes.c_char * 128),
        ("entries", ctypes.POINTER(_Transport)),
        ("num_entries", ctypes.c_uint),
        ("entry_size", ctypes.c_size_t),
        ("user_data", ctypes.c_void_p),
    )


class _MessageInfo(ctypes.Structure):  # ucp_tag_recv_info_t
    _fields_ = (("sender_tag", ctypes.c_uint64), ("length", ctypes.c_size_t))


class _Parameters(ctypes.Structure):  # ucp_request_param_t, its mask of fields being all that is read
    _fields_ = (("op_attr_mask", ctypes.c_uint32), ("unread", ctypes.c_char * 124))


def drop_unexpected(worker: int) -> None:
    """Get rid of the messages that have come to a worker, by its handle, and that no receive was posted for.

    For a worker whose progress has been stopped for good. ucxx receives them whole before it destroys a worker, and
    waits for as long as their senders take: one that hangs would hang this process. Receiving no byte of them waits for
    nobody; UCX then tells a sender that it has not lost that its message is complete.
    """
    library, info, nowhere, plain = _libucp(), _MessageInfo(), ctypes.create_string_buffer(1), _Parameters()
    while message := library.ucp_tag_probe_nb(worker, 0, 0, 1, ctypes.byref(info)):
        request = library.ucp_tag_msg_recv_nbx(worker, nowhere, 0, message, ctypes.byref(plain))
        if 0 < request < _FIRST_ERROR:
            library.ucp_request_free(request)  # at its end, should it have none yet


def open_transports(endpoint: int) -> list[str]:
    """Names of the transports behind a live endpoint handle, such as ["tcp", "cma"]. Empty if UCX cannot tell."""
    entries = (_Transport * _MOST_LANES)()
    attributes = _Attributes(
        field_mask=_TRANSPORTS_FIELD,
        entries=entries,
        num_entries=_MOST_LANES,
        entry_size=ctypes.sizeof(_Transport),
    )
    if _libucp().ucp_ep_query(endpoint, ctypes.byref(attributes)) != 0:
        return []
    return [entries[i].transport_name.decode() for i in range(attributes.num_entries)]


def bulk_transport(names: Iterable[str], *, cuda: bool) -> str:
    """The one among the open transports that carries large messages; "" if none is open.

    In CUDA memory that is cuda_ipc when it is open, unless the memory cannot be shared: then only the speed tells.
    """
    if cuda and "cuda_ipc" in names:
        return "cuda_ipc"
    useless = _HOST_ONLY if cuda else _CUDA_ONLY
    fit = [name for name in names if name not in useless]
    return min(fit, key=lambda name: _HOST_ORDER.index(name) if name in _HOST_ORDER else -1, default="")


@cache
def _libucp() -> ctypes.CDLL:
    """The very library that ucxx has loaded, be it the wheel's or the system's."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.partition("/")[2]
        if path.rpartition("/")[2].startswith("libucp.so"):
            library = ctypes.CDLL(f"/{path}")
            library.ucp_ep_query.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
            library.ucp_ep_query.restype = ctypes.c_int8
            pointer, number = ctypes.c_void_p, ctypes.c_uint64
            library.ucp_tag_probe_nb.argtypes = [pointer, number, number, ctypes.c_int, pointer]
            library.ucp_tag_probe_nb.restype = pointer
            library.ucp_tag_msg_recv_nbx.argtypes = [pointer, pointer, ctypes.c_size_t, pointer, pointer]
            library.ucp_tag_msg_recv_nbx.restype = ctypes.c_size_t
            library.ucp_request_free.argtypes = [pointer]
            library.ucp_request_free.restype = None
            return library
    raise RuntimeError("libucp is not loaded: there is no endpoint to ask about")
