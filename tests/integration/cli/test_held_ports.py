import socket
import struct

import pytest

from cli.held_ports import hold_port, number_of
from cli.problems import Problem

IP_LOCAL_PORT_RANGE = 51  # Linux 6.3: from which ports the kernel may choose for this socket


def test_a_port_in_use_is_named_with_the_remedy():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(Problem, match=rf"port {port} on 127\.0\.0\.1 cannot be used.*--port"):
            hold_port("127.0.0.1", port)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1"])
def test_whom_it_is_held_for_can_listen_there_and_again_after_its_end(host: str):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with hold_port(host, 0) as held:
        for _ in range(2):
            with socket.create_server((host, number_of(held)), family=family):
                socket.create_connection((host, number_of(held)), timeout=5).close()


def test_a_held_port_is_given_to_nobody_else():
    with hold_port("127.0.0.1", 0) as held, socket.socket() as other:
        only = number_of(held)
        try:
            other.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, struct.pack("I", only << 16 | only))
        except OSError:
            pytest.skip("this kernel does not let a socket say from which ports to choose")
        with pytest.raises(OSError, match="Address already in use"):
            other.bind(("127.0.0.1", 0))
