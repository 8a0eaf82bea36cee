import pytest
import torch

from worker.slots.memory_budget import MemoryBudget, free_bytes, used_bytes

CPU = torch.device("cpu")


def test_what_is_used_grows_by_what_is_allocated_and_what_is_free_is_positive():
    before = used_bytes(CPU)
    held = torch.ones(50_000_000)  # 200 MB
    assert used_bytes(CPU) - before > 150e6
    assert 0 < free_bytes(CPU) < 1e14
    del held


@pytest.mark.parametrize(("free", "fits"), [(150e6, True), (149e6, False)])
def test_one_more_job_fits_where_half_as_much_again_as_each_took_is_free(free, fits):
    used = iter([1000e6, 1400e6])
    budget = MemoryBudget(CPU, used=lambda device: next(used), free=lambda device: free)
    assert budget.fits(running=4) is fits


def test_a_container_with_a_limit_has_less_left_than_the_machine_but_what_files_fill_is_not_in_use(tmp_path):
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("2900000\n")
    (tmp_path / "memory.stat").write_text("anon 900000\ninactive_file 1900000\nactive_file 100000\n")
    assert free_bytes(CPU, tmp_path) == 2_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes(CPU, tmp_path) > 2_000_000
