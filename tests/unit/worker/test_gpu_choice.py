"""Which GPUs are taken, from what nvidia-smi prints."""

import pytest

from shared.worker.gpu_choice import Gpus, choose, read_gpus

LISTING = "0, GPU-a\n1, GPU-b\n2, GPU-c\n3, GPU-d\n"
# Two pairs with NVLinks, (0, 2) and (1, 3); colored as older versions print it.
TOPOLOGY = (
    "\t\x1b[4mGPU0\tGPU1\tGPU2\tGPU3\tNIC0\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m\n"
    "GPU0\t X \tSYS\tNV4\tPHB\tPIX\t0-31\t0\t\tN/A\n"
    "GPU1\tSYS\t X \tSYS\tNV12\tSYS\t32-63\t1\t\tN/A\n"
    "GPU2\tNV4\tSYS\t X \tSYS\tPIX\t0-31\t0\t\tN/A\n"
    "GPU3\tPHB\tNV12\tSYS\t X \tSYS\t32-63\t1\t\tN/A\n"
    "NIC0\tPIX\tSYS\tPIX\tSYS\t X \t\t\t\n"
    "\nLegend:\n\n  X    = Self\n  SYS  = Connection traversing PCIe and between NUMA nodes\n"
)
FOUR = read_gpus(LISTING, TOPOLOGY)
A, B, C, D = FOUR.uuids


def test_the_table_of_nvidia_smi_is_read_without_its_network_cards():
    assert FOUR.uuids == ("GPU-a", "GPU-b", "GPU-c", "GPU-d")
    assert len(FOUR.distances) == 6
    ways = [FOUR.between(*pair) for pair in ((B, D), (A, C), (A, D), (A, B))]
    assert ways == sorted(ways), (
        "more NVLinks, NVLinks, a host bridge, between NUMA nodes: each farther than the one before"
    )
    assert len(set(ways)) == 4


def test_the_first_instance_takes_the_first_gpu_and_the_next_one_its_nearest_neighbour():
    assert choose(FOUR, {A, B, C, D}, 1) == (A,)
    assert choose(FOUR, {B, C, D}, 1) == (C,)


def test_several_gpus_are_chosen_for_the_way_between_them():
    assert choose(FOUR, {A, B, C, D}, 2) == (B, D)
    assert choose(FOUR, {A, C, D}, 2) == (A, C)
    assert choose(FOUR, {A, B, C, D}, 4) == (A, B, C, D)


@pytest.mark.parametrize(("free", "count"), [(set(), 1), ({B}, 2), ({A, B, C, D}, 5)])
def test_too_few_free_ones_are_no_choice(free: set[str], count: int):
    assert choose(FOUR, free, count) is None


def test_without_a_table_the_first_free_ones_are_taken():
    gpus = read_gpus(LISTING, "")
    assert choose(gpus, {B, C, D}, 2) == (B, C)


def test_one_of_sixteen_gpus_without_any_distance_is_found():
    many = Gpus(tuple(f"GPU-{number}" for number in range(16)))
    assert choose(many, set(many.uuids), 8) == many.uuids[:8]


def test_the_table_of_a_machine_with_one_gpu_has_no_distances():
    listing = "0, GPU-6324bbff-b75f-dc07-f357-653297ff0dd5\n"
    topology = "\t\x1b[4mGPU0\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m\nGPU0\t X \t0-15\t0\t\tN/A\n\nLegend:\n"
    gpus = read_gpus(listing, topology)  # both as printed for an H100
    assert gpus == Gpus(("GPU-6324bbff-b75f-dc07-f357-653297ff0dd5",), {})
    assert choose(gpus, set(gpus.uuids), 1) == gpus.uuids
