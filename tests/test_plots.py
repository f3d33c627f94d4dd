import numpy as np

from vadapt.plots import COLORS, Curve, Point, _ticks, draw_curves, draw_matrix, draw_points


def test_the_largest_cell_is_the_deepest():
    picture = draw_matrix(np.asarray([[0.0, 0.5], [0.5, 1.0]]), ["0", "1"], ["0", "1"], "likeness")
    cells = [picture[-40, -66], picture[-82, -112]]  # corners of the last cell and of the first
    assert cells[0].sum() < cells[1].sum() - 300


def test_a_higher_point_is_drawn_higher_and_a_deviation_as_a_bar():
    curves = {"a": Curve([1, 3], [0.2, 0.8], [0.0, 0.0]), "b": Curve([3], [0.5], [0.3])}
    picture = draw_curves(curves, "scores", "blocks", "share")
    plot = picture[:, : 5 * 14 + 640]
    ys, xs = np.nonzero((plot == COLORS[0]).all(-1))
    assert ys[xs.argmax()] < ys[xs.argmin()]
    bar, _ = np.nonzero((plot == COLORS[1]).all(-1))
    assert np.ptp(bar) > 100


def test_ticks_are_round_and_hold_what_is_drawn():
    assert _ticks(0.13, 1.0) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    for low, high in [(0.5, 0.5), (-0.3, 0.1), (3e-4, 4e-4), (0, 170)]:
        ticks = _ticks(low, high)
        assert ticks[0] <= low
        assert ticks[-1] >= high
        assert len(ticks) <= 8


def test_points_lie_by_powers_of_ten_and_are_numbered_in_their_order():
    points = {name: Point(x, 50.0, 2.0) for name, x in (("a", 10), ("b", 100), ("c", 1000))}
    picture = draw_points(points, "scores", "weights", "percent")[:, : 5 * 14 + 640]
    places = [np.nonzero((picture == color).all(-1)) for color in COLORS[:3]]
    middles = [(xs.min() + xs.max()) / 2 for _, xs in places]
    assert abs(middles[1] - (middles[0] + middles[2]) / 2) <= 1
    assert middles[0] < middles[1]
    assert len({int(ys.min()) for ys, _ in places}) == 1
