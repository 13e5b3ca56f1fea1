"""Ports of parts that are yet to start: held, until then and while a part starts again, so that nobody else gets them.

A socket that is bound with SO_REUSEADDR and never listens: the kernel gives its port to nobody who asks for any, and
lets a server listen there that asks for this one (with SO_REUSEADDR too, as ours and nats-server do).
"""

import socket

from cli.problems import Problem


def hold_port(host: str, port: int) -> socket.socket:
    """`port`, for 0 any free one, until the socket is closed. Problem if the gateway could not listen on it."""
    holder = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        holder.bind((host, port))
    except PermissionError as error:
        holder.close()
        raise Problem(f"--port {port}: ports below 1024 are for root; choose a higher one") from error
    except OSError as error:
        holder.close()
        remedy = "stop what uses it, or choose another with --port (0: any free one)"
        raise Problem(f"port {port} on {host} cannot be used ({error.strerror}): {remedy}") from error
    return holder


def number_of(holder: socket.socket) -> int:
    return holder.getsockname()[1]
