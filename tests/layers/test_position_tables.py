"""Tables of positions, and the spline that resamples them (vatt, section 4 and checks 5)."""

import pytest
import torch

from triptych.layers.position_tables import PositionTables, resample, spline_matrix


def test_as_many_positions_give_the_table_itself() -> None:
    table = torch.randn(7, 3)
    assert resample(table, 7) is table
    torch.testing.assert_close(spline_matrix(7, 7), torch.eye(7, dtype=torch.float64))


@pytest.mark.parametrize("rows", [2, 3, 8, 1200])
def test_doubling_keeps_the_even_entries(rows: int) -> None:
    table = torch.randn(rows, 2)
    torch.testing.assert_close(resample(table, 2 * rows)[::2], table, atol=1e-5, rtol=0)


def test_it_is_the_solution_of_the_polyharmonic_system() -> None:
    """``f(x) = sum w_i |x - c_i|^3 + v x + b`` with ``sum w = sum w c = 0``, solved as it stands."""
    rows, count = 9, 14
    table = torch.randn(rows, 4, dtype=torch.float64)
    centres, queries = torch.arange(rows).double() / rows, torch.arange(count).double() / count

    def cubes(x: torch.Tensor) -> torch.Tensor:
        return (x[:, None] - centres).abs() ** 3

    line = torch.stack([centres, torch.ones_like(centres)], dim=1)
    system = torch.cat([torch.cat([cubes(centres), line], dim=1), torch.cat([line.T, torch.zeros(2, 2)], dim=1)])
    weights = torch.linalg.solve(system, torch.cat([table, torch.zeros(2, 4)]))
    wanted = torch.cat([cubes(queries), queries[:, None], torch.ones(count, 1)], dim=1) @ weights
    torch.testing.assert_close(resample(table, count), wanted, atol=1e-8, rtol=0)


def test_past_the_last_row_it_goes_on_straight() -> None:
    found = resample(torch.randn(4, 1, dtype=torch.float64), 40)[:, 0]
    assert torch.allclose(found[31:].diff().diff(), torch.zeros(7, dtype=torch.float64), atol=1e-12)
    assert not torch.allclose(found[20:29].diff().diff(), torch.zeros(7, dtype=torch.float64), atol=1e-6)


def test_one_row_stays_what_it_is_and_two_make_a_line() -> None:
    assert resample(torch.tensor([[3.0]]), 4).flatten().tolist() == [3, 3, 3, 3]
    assert resample(torch.tensor([[0.0], [1.0]]), 4).flatten().tolist() == [0, 0.5, 1, 1.5]


def test_the_sum_of_the_tables_is_normed() -> None:
    """In the order of the tokens, the last axis fastest, whatever the axes are called."""
    tables = PositionTables({"time": 2, "height": 3, "width": 4}, width=8)
    found = tables((2, 3, 4)).unflatten(0, (2, 3, 4))
    torch.testing.assert_close(found.mean(dim=-1), torch.zeros(2, 3, 4), atol=1e-6, rtol=0)
    one = tables.tables["time"][1] + tables.tables["height"][2] + tables.tables["width"][3]
    torch.testing.assert_close(found[1, 2, 3], tables.norm(one))
    assert tables((5, 3, 4)).shape == (60, 8)


def test_gradient_reaches_a_resampled_table() -> None:
    tables = PositionTables({"time": 4}, width=6)
    (tables((7,)) * torch.randn(7, 6)).sum().backward()
    assert tables.tables["time"].grad is not None and tables.tables["time"].grad.abs().min() > 0
