"""Which placements are looked at (paper section 4, algorithms 1 and 2), and why some cannot be."""

from dataclasses import dataclass

from services.scheduler.simulator.profile import BadProfile, ModelProfile, Profile


@dataclass(frozen=True, slots=True, order=True)
class Shape:
    """One instance: tensor and pipeline parallelism."""

    tp: int
    pp: int

    @property
    def gpus(self) -> int:
        return self.tp * self.pp

    def __str__(self) -> str:
        return f"tp{self.tp},pp{self.pp}"


SERVED = Shape(1, 1)  # by the engine, so far


@dataclass(frozen=True, slots=True)
class Cluster:
    gpus_per_node: int
    nodes: int

    def __post_init__(self) -> None:
        if self.gpus_per_node < 1 or self.nodes < 1:
            raise ValueError("a cluster has at least one node with one GPU")

    @property
    def gpus(self) -> int:
        return self.gpus_per_node * self.nodes


def shapes(
    profile: Profile, model: ModelProfile, cluster: Cluster, *, servable: bool = False
) -> tuple[list[Shape], dict[str, str]]:
    """(what an instance can look like, {what it cannot: why}).

    Tensor parallelism stays inside a node; a pipeline may cross nodes and shares the layers evenly. `servable`: an
    instance is one GPU, as the engine serves it.
    """
    possible: list[Shape] = []
    impossible: dict[str, str] = {}
    for tp in range(1, cluster.gpus_per_node + 1):
        for pp in range(1, cluster.gpus // tp + 1):
            shape = Shape(tp, pp)
            if servable and shape != SERVED:
                impossible["tp or pp above 1"] = "the engine does not serve it yet"
                continue
            if tp not in model.times:
                if pp == 1:
                    impossible[f"tp{tp}"] = f"the profile has no figures for tensor parallelism {tp}"
                continue
            if model.layers % pp:
                impossible[f"pp{pp}"] = f"{model.layers} layers cannot be shared evenly by {pp} stages"
                continue
            try:
                model.check(tp, pp, profile.memory_bytes)
            except BadProfile as error:
                impossible[str(shape)] = str(error)
            else:
                possible.append(shape)
    return possible, impossible


def fits_segments(prefill: Shape, decode: Shape, cluster: Cluster, copies: tuple[int, int] = (1, 1)) -> bool:
    """Algorithm 2: whether every node can hold the same stages of prefill and decoding, so that KV stays inside it.

    Over `inter` nodes each instance is cut into `inter` equal segments.
    """
    n, m = copies
    for inter in range(1, cluster.nodes + 1):
        if prefill.pp % inter == 0 and decode.pp % inter == 0:
            in_a_node = n * prefill.gpus // inter + m * decode.gpus // inter
            if in_a_node <= cluster.gpus_per_node:
                return True
    return False


def fits_nodes(prefill: Shape, decode: Shape, cluster: Cluster, copies: tuple[int, int]) -> bool:
    """Algorithm 1: whether the cluster has enough GPUs for all of them."""
    return copies[0] * prefill.gpus + copies[1] * decode.gpus <= cluster.gpus
