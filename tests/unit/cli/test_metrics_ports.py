import json
from pathlib import Path

from cli.metrics_ports import with_metrics_ports, write_targets
from cli.stack import Part

PARTS = [Part(name=f"decode {n}", role="decode", command=("x",), environment={"A": "1"}) for n in (1, 2)]


def test_every_part_has_a_port_of_its_own_and_prometheus_is_told(tmp_path: Path):
    parts = with_metrics_ports(PARTS, [7001, 7002])
    assert [part.environment["DISTSERVE_METRICS_PORT"] for part in parts] == ["7001", "7002"]
    assert all(part.environment["A"] == "1" for part in parts)
    write_targets(parts, tmp_path / "metrics.json")
    assert json.loads((tmp_path / "metrics.json").read_text())[1] == {
        "targets": ["127.0.0.1:7002"],
        "labels": {"job": "decode", "part": "decode 2"},
    }
