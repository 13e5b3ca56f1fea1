from shared.transport.environment import missing_settings


def test_what_the_user_has_set_is_left_alone():
    given = {"UCX_TLS": "tcp", "UCX_NET_DEVICES": "eth0"}
    assert missing_settings(given, cuda=False).keys().isdisjoint(given)


def test_a_host_that_serves_from_cpus_uses_cma_beside_tcp():
    settings = missing_settings({}, cuda=False)
    assert settings["UCX_TLS"] == "tcp,cma"
    assert settings["UCX_CMA_MEMORY_INVALIDATE"] == "y"


def test_a_host_with_gpus_uses_cuda_ipc_too():
    assert missing_settings({}, cuda=True)["UCX_TLS"] == "tcp,cma,cuda_copy,cuda_ipc"


def test_ucx_listens_on_no_other_interface_than_loopback_unless_told_so():
    assert missing_settings({}, cuda=False)["UCX_NET_DEVICES"] == "lo"


def test_ucx_never_logs_to_stdout():
    assert missing_settings({}, cuda=False)["UCX_LOG_FILE"] == "stderr"
