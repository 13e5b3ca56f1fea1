import pytest

from shared.transport.ucp import bulk_transport


@pytest.mark.parametrize(
    ("open_names", "bulk"),
    [
        (["tcp"], "tcp"),
        (["tcp", "cma"], "cma"),
        (["posix", "cma", "tcp"], "cma"),
        (["posix", "tcp"], "posix"),
        (["tcp", "rc_mlx5"], "rc_mlx5"),
        (["tcp", "cuda_copy", "cuda_ipc", "cma"], "cma"),
        ([], ""),
    ],
)
def test_host_memory_goes_over_the_fastest_that_is_open(open_names: list[str], bulk: str):
    assert bulk_transport(open_names, cuda=False) == bulk


@pytest.mark.parametrize(
    ("open_names", "bulk"),
    [
        (["tcp", "cuda_copy", "cuda_ipc", "cma"], "cuda_ipc"),
        (["tcp", "cma", "cuda_copy"], "tcp"),
        (["tcp", "rc_mlx5"], "rc_mlx5"),
    ],
)
def test_gpu_memory_never_goes_over_what_moves_host_memory_only(open_names: list[str], bulk: str):
    assert bulk_transport(open_names, cuda=True) == bulk
