"""A profile as it is written down: raw points, coefficients, and how far each point is from the fit."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.profiling.facts import appendix_a, model_facts
from services.scheduler.simulator.fitting import fit
from services.scheduler.simulator.profile import FORMAT, Coefficients

if TYPE_CHECKING:
    from cli.profiling.engine_times import Point
    from cli.profiling.wire import Wire
    from shared.engine.step import Engine


def document(
    name: str, folder: Path, engine: "Engine", device: str, prefill: "list[Point]", decode: "list[Point]"
) -> dict[str, Any]:
    """Of the engine; `with_wire` adds what lies between two of them."""
    from shared.engine.inventory import device_facts

    first, first_errors = fit([(p.batch * p.length, p.batch * p.length**2) for p in prefill], _milliseconds(prefill))
    step, step_errors = fit([(p.batch * (p.length + 1), p.batch) for p in decode], _milliseconds(decode))
    times = Coefficients(_three(first), _three(step), _three(step), 1 << 20)
    model = model_facts(folder, engine) | {
        "L_m": times.batch_tokens,
        "parallel": {
            "1": {
                "prefill_ms": first,
                "decode_small_ms": step,
                "decode_large_ms": step,
                "large_batch": times.large_batch,
            }
        },
        "appendix_a": appendix_a(engine.spec, first, step),
        "kv_tokens": {"1,1": engine.blocks * engine.block_tokens},
        "fit": {"prefill": _points(prefill, first_errors), "decode": _points(decode, step_errors)},
    }
    return {
        "format": FORMAT,
        "name": f"{name}-{device}",
        "source": f"measured with this project's engine, {engine.kv_format}",
        "licence": "none claimed",
        "device": device_facts(device),
        "models": {name: model},
    }


def with_wire(data: dict[str, Any], wire: "Wire") -> dict[str, Any]:
    """Adds the time of a transfer, setup + bytes / speed, and of a hop: half of a round trip, the median."""
    (setup, per_byte), errors = fit([(moved.bytes,) for moved in wire.moved], [m.milliseconds for m in wire.moved])
    speed = 1e-6 / per_byte if per_byte else 1e6
    points = [
        {"bytes": moved.bytes, "milliseconds": moved.milliseconds, "error": error}
        for moved, error in zip(wire.moved, errors, strict=True)
    ]
    trips = wire.round_trips_ms
    return with_given(data, speed, trips[len(trips) // 2] / 2) | {
        "transfer_setup_ms": setup,
        "transfer": {"transport": wire.transport, "fit": points},
        "hop": {"round_trip_ms": {f"p{share}": trips[len(trips) * share // 100] for share in (1, 10, 50, 90, 99)}},
    }


def with_given(data: dict[str, Any], link_gigabytes_per_second: float, hop_ms: float) -> dict[str, Any]:
    device = data["device"] | {"link_gigabytes_per_second": link_gigabytes_per_second}
    return data | {"device": device, "hop_ms": hop_ms}


def _milliseconds(points: "list[Point]") -> list[float]:
    return [point.milliseconds for point in points]


def _three(values: list[float]) -> tuple[float, float, float]:
    a, b, c = values
    return a, b, c


def _points(points: "list[Point]", errors: list[float]) -> list[dict[str, float]]:
    return [
        {"batch": p.batch, "length": p.length, "milliseconds": p.milliseconds, "error": error}
        for p, error in zip(points, errors, strict=True)
    ]
