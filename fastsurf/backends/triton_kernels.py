# mypy: ignore-errors
# ruff: noqa: RUF005 (Triton's tuples are not unpacked)
"""The GPU kernels of `triton.py`, in Triton's language. Letters are those of `native/native.h`: h encoding, z = W1 h, v = W2[0],
m = (z > 0), u = W1^T (m v), q = the loss's gradient with respect to out[0]'s gradient, s = J q.

Tiles of the hash grid are [point, level]: Triton gathers with neighbouring threads along the first axis, and neighbouring points of a
level share corners. The two features of a level are two tiles; W1's even and odd columns belong to them. Tiles of `field` and its
backward pass are [feature, point], in which ptxas keeps most of them in registers. Sizes in capitals are known when a kernel is
compiled; LP, OP, ... are widths padded to a power of two. PRECISION is of matrix products: "ieee" (float32), "half" (half inputs,
float32 sums), or any other that `tl.dot` knows.
"""

import triton
import triton.language as tl

FARTHEST_CELL = tl.constexpr(1e9)  # as reference.FARTHEST_CELL
ON_SURFACE = tl.constexpr(1e-6)  # as native/search.h: a level that small is rounding
CLOSEST_TO_OPAQUE = tl.constexpr(1e-6)  # as compositing.CLOSEST_TO_OPAQUE


# ---- the hash grid


@triton.jit
def _levels(levels, LP: tl.constexpr):
    """scale, resolution (or prime), resolution^2 (or prime), offset, size, 2^32 / size, hashed: each (1, LP)."""
    level = tl.arange(0, LP)[None, :]
    scale = tl.load(levels + level).to(tl.float32, bitcast=True)
    along_y = tl.load(levels + LP + level).to(tl.uint32, bitcast=True)
    along_z = tl.load(levels + 2 * LP + level).to(tl.uint32, bitcast=True)
    offset = tl.load(levels + 3 * LP + level).to(tl.uint32, bitcast=True)
    size = tl.load(levels + 4 * LP + level).to(tl.uint32, bitcast=True)
    inverse = tl.load(levels + 5 * LP + level).to(tl.uint32, bitcast=True)
    hashed = tl.load(levels + 6 * LP + level) != 0
    return scale, along_y, along_z, offset, size, inverse, hashed


@triton.jit
def _axis(x, scale):
    """Cell and place in it along one axis: x (n,) -> (n, LP) each. Far positions and NaN are clamped; the place keeps their NaN."""
    p = tl.fma(x[:, None] + tl.zeros_like(scale), scale, 0.5)
    q = tl.where(p > -FARTHEST_CELL, p, -FARTHEST_CELL)
    floor = tl.floor(tl.where(q < FARTHEST_CELL, q, FARTHEST_CELL))
    return floor.to(tl.int32).to(tl.uint32, bitcast=True), p - floor


@triton.jit
def _cell(x, y, z, level):
    """The cell's first corner as three parts of an index, and the place in the cell."""
    a, wx = _axis(x, level[0])
    b, wy = _axis(y, level[0])
    c, wz = _axis(z, level[0])
    return a, b * level[1], c * level[2], wx, wy, wz


@triton.jit
def _entry(cell, level, CORNER: tl.constexpr):
    """Entry of a corner (n, LP). The remainder by the size is exact for every 32-bit index: its quotient is at most 1 too small."""
    a, b, c = cell[0], cell[1], cell[2]
    if CORNER & 1:
        a = a + 1
    if CORNER & 2:
        b = b + level[1]
    if CORNER & 4:
        c = c + level[2]
    index = tl.where(level[6], a ^ b ^ c, a + b + c)
    index = index - tl.umulhi(index, level[5] + tl.zeros_like(index)) * level[4]
    index = tl.minimum(index, index - level[4])
    return (index + level[3]).to(tl.int32, bitcast=True)


@triton.jit
def _pair(table, entry, mask):
    """Both features of entries, in one load of 8 bytes."""
    bits = tl.load(table.to(tl.pointer_type(tl.int64)) + entry, mask=mask, other=0)
    return bits.to(tl.int32).to(tl.float32, bitcast=True), (bits >> 32).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def _side(w, BIT: tl.constexpr):
    return w if BIT else 1.0 - w


@triton.jit
def _signed(w, BIT: tl.constexpr):
    return w if BIT else -w


@triton.jit
def _weight(cell, CORNER: tl.constexpr):
    return _side(cell[3], CORNER & 1) * _side(cell[4], CORNER & 2) * _side(cell[5], CORNER & 4)


@triton.jit
def _slope(cell, qx, qy, qz, CORNER: tl.constexpr):
    """q . grad weight; q (n,) each, in cells."""
    wx, wy, wz = _side(cell[3], CORNER & 1), _side(cell[4], CORNER & 2), _side(cell[5], CORNER & 4)
    qx, qy, qz = qx[:, None], qy[:, None], qz[:, None]
    return _signed(wy * wz, CORNER & 1) * qx + _signed(wx * wz, CORNER & 2) * qy + _signed(wx * wy, CORNER & 4) * qz


@triton.jit
def _gather(table, cell, level, mask):
    """The encoding: two tiles (n, LP)."""
    h0, h1 = tl.zeros_like(cell[3]), tl.zeros_like(cell[3])
    for corner in tl.static_range(8):
        t0, t1 = _pair(table, _entry(cell, level, corner), mask)
        weight = _weight(cell, corner)
        h0 += weight * t0
        h1 += weight * t1
    return h0, h1


@triton.jit
def _gather_along(table, cell, level, qx, qy, qz, mask):
    """The encoding and s = J q: four tiles (n, LP)."""
    h0, h1, s0, s1 = tl.zeros_like(cell[3]), tl.zeros_like(cell[3]), tl.zeros_like(cell[3]), tl.zeros_like(cell[3])
    for corner in tl.static_range(8):
        t0, t1 = _pair(table, _entry(cell, level, corner), mask)
        weight, slope = _weight(cell, corner), _slope(cell, qx, qy, qz, corner)
        h0 += weight * t0
        h1 += weight * t1
        s0 += slope * t0
        s1 += slope * t1
    return h0, h1, s0 * level[0], s1 * level[0]


@triton.jit
def _gather_jacobian(table, cell, level, mask):
    """The encoding and its Jacobian: eight tiles (n, LP)."""
    h0, h1 = tl.zeros_like(cell[3]), tl.zeros_like(cell[3])
    x0, y0, z0 = tl.zeros_like(cell[3]), tl.zeros_like(cell[3]), tl.zeros_like(cell[3])
    x1, y1, z1 = tl.zeros_like(cell[3]), tl.zeros_like(cell[3]), tl.zeros_like(cell[3])
    for corner in tl.static_range(8):
        t0, t1 = _pair(table, _entry(cell, level, corner), mask)
        wx, wy, wz = _side(cell[3], corner & 1), _side(cell[4], corner & 2), _side(cell[5], corner & 4)
        weight = wx * wy * wz
        h0 += weight * t0
        h1 += weight * t1
        dx, dy, dz = _signed(wy * wz, corner & 1), _signed(wx * wz, corner & 2), _signed(wx * wy, corner & 4)
        x0 += dx * t0
        y0 += dy * t0
        z0 += dz * t0
        x1 += dx * t1
        y1 += dy * t1
        z1 += dz * t1
    scale = level[0]
    return h0, h1, x0 * scale, y0 * scale, z0 * scale, x1 * scale, y1 * scale, z1 * scale


@triton.jit
def _scatter(d_table, cell, level, g0, g1, u0, u1, qx, qy, qz, mask, FIRST: tl.constexpr, SECOND: tl.constexpr):
    """Adds weight g + scale (q . grad weight) u to every corner; g and u are pairs of tiles (n, LP)."""
    two = tl.arange(0, 2)[None, None, :]
    for corner in tl.static_range(8):
        d0, d1 = tl.zeros_like(cell[3]), tl.zeros_like(cell[3])
        if FIRST:
            weight = _weight(cell, corner)
            d0 += weight * g0
            d1 += weight * g1
        if SECOND:
            slope = _slope(cell, qx, qy, qz, corner) * level[0]
            d0 += slope * u0
            d1 += slope * u1
        place = d_table + 2 * _entry(cell, level, corner)[:, :, None] + two
        tl.atomic_add(place, tl.join(d0, d1), mask=mask[:, :, None], sem="relaxed")


@triton.jit
def _rows(n, BLOCK: tl.constexpr, tile):
    row = (tile * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    return row, row < n


@triton.jit
def _point(x, row, inside):
    """Three columns of x (n, 3)."""
    x = x + 3 * row
    return tl.load(x, mask=inside, other=0.0), tl.load(x + 1, mask=inside, other=0.0), tl.load(x + 2, mask=inside, other=0.0)


@triton.jit
def _store_point(x, row, inside, a, b, c):
    x = x + 3 * row
    tl.store(x, a, mask=inside)
    tl.store(x + 1, b, mask=inside)
    tl.store(x + 2, c, mask=inside)


@triton.jit
def _load_pair(h, row, inside, LEVELS: tl.constexpr, LP: tl.constexpr):
    """Rows of h (n, 2 LEVELS) as two tiles (n, LP)."""
    level = tl.arange(0, LP)[None, :]
    h = h + row[:, None] * (2 * LEVELS) + 2 * level
    mask = (level < LEVELS) & inside[:, None]
    return tl.load(h, mask=mask, other=0.0), tl.load(h + 1, mask=mask, other=0.0)


@triton.jit
def _store_pair(h, row, inside, h0, h1, LEVELS: tl.constexpr, LP: tl.constexpr):
    level = tl.arange(0, LP)[None, :]
    h = h + row[:, None] * (2 * LEVELS) + 2 * level
    mask = (level < LEVELS) & inside[:, None]
    tl.store(h, h0, mask=mask)
    tl.store(h + 1, h1, mask=mask)


@triton.jit
def _load_rows(x, row, inside, WIDTH: tl.constexpr, WP: tl.constexpr):
    column = tl.arange(0, WP)[None, :]
    return tl.load(x + row[:, None] * WIDTH + column, mask=inside[:, None] & (column < WIDTH), other=0.0)


@triton.jit
def _zeros(ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    return tl.zeros([ROWS, COLUMNS], tl.float32)


@triton.jit
def _store_rows(x, row, inside, values, WIDTH: tl.constexpr, WP: tl.constexpr):
    column = tl.arange(0, WP)[None, :]
    tl.store(x + row[:, None] * WIDTH + column, values, mask=inside[:, None] & (column < WIDTH))


@triton.jit(do_not_specialize=["n"])
def encode(x, table, levels, h, n, LEVELS: tl.constexpr, LP: tl.constexpr, BLOCK: tl.constexpr):
    """h (n, 2 LEVELS)."""
    row, inside = _rows(n, BLOCK, tl.program_id(0))
    level = _levels(levels, LP)
    px, py, pz = _point(x, row, inside)
    h0, h1 = _gather(table, _cell(px, py, pz, level), level, (tl.arange(0, LP) < LEVELS)[None, :] & inside[:, None])
    _store_pair(h, row, inside, h0, h1, LEVELS, LP)


@triton.jit(do_not_specialize=["n"])
def encode_slope(x, table, levels, u, dx, n, LEVELS: tl.constexpr, LP: tl.constexpr, BLOCK: tl.constexpr):
    """dx = J^T u (n, 3), of u (n, 2 LEVELS)."""
    row, inside = _rows(n, BLOCK, tl.program_id(0))
    level = _levels(levels, LP)
    px, py, pz = _point(x, row, inside)
    u0, u1 = _load_pair(u, row, inside, LEVELS, LP)
    mask = (tl.arange(0, LP) < LEVELS)[None, :] & inside[:, None]
    _, _, x0, y0, z0, x1, y1, z1 = _gather_jacobian(table, _cell(px, py, pz, level), level, mask)
    _store_point(dx, row, inside, tl.sum(x0 * u0 + x1 * u1, 1), tl.sum(y0 * u0 + y1 * u1, 1), tl.sum(z0 * u0 + z1 * u1, 1))


@triton.jit(do_not_specialize=["n"])
def encode_bend(x, table, levels, u, q, du, dx, n, LEVELS: tl.constexpr, LP: tl.constexpr, BLOCK: tl.constexpr):
    """du = J q (n, 2 LEVELS), and dx = (sum_f u_f d2 h_f / dx2) q (n, 3), whose diagonal is zero."""
    row, inside = _rows(n, BLOCK, tl.program_id(0))
    level = _levels(levels, LP)
    px, py, pz = _point(x, row, inside)
    qx, qy, qz = _point(q, row, inside)
    u0, u1 = _load_pair(u, row, inside, LEVELS, LP)
    mask = (tl.arange(0, LP) < LEVELS)[None, :] & inside[:, None]
    cell = _cell(px, py, pz, level)
    s0, s1 = tl.zeros_like(u0), tl.zeros_like(u0)
    bx, by, bz = tl.zeros_like(u0), tl.zeros_like(u0), tl.zeros_like(u0)
    for corner in tl.static_range(8):
        t0, t1 = _pair(table, _entry(cell, level, corner), mask)
        slope = _slope(cell, qx, qy, qz, corner)
        s0 += slope * t0
        s1 += slope * t1
        wx, wy, wz = _side(cell[3], corner & 1), _side(cell[4], corner & 2), _side(cell[5], corner & 4)
        t = t0 * u0 + t1 * u1
        xy = _signed(_signed(wz * t, corner & 1), corner & 2)
        xz = _signed(_signed(wy * t, corner & 1), corner & 4)
        yz = _signed(_signed(wx * t, corner & 2), corner & 4)
        bx += xy * qy[:, None] + xz * qz[:, None]
        by += xy * qx[:, None] + yz * qz[:, None]
        bz += xz * qx[:, None] + yz * qy[:, None]
    scale = level[0]
    _store_pair(du, row, inside, s0 * scale, s1 * scale, LEVELS, LP)
    scale = scale * scale
    _store_point(dx, row, inside, tl.sum(bx * scale, 1), tl.sum(by * scale, 1), tl.sum(bz * scale, 1))


@triton.jit(do_not_specialize=["n"])
def scatter(x, d_table, levels, g, q, n, SECOND: tl.constexpr, LEVELS: tl.constexpr, LP: tl.constexpr, BLOCK: tl.constexpr):
    """Adds weight g, or with SECOND (q . grad weight) g, to the table's gradient; g (n, 2 LEVELS)."""
    row, inside = _rows(n, BLOCK, tl.program_id(0))
    level = _levels(levels, LP)
    px, py, pz = _point(x, row, inside)
    qx, qy, qz = _point(q, row, inside)
    g0, g1 = _load_pair(g, row, inside, LEVELS, LP)
    mask = (tl.arange(0, LP) < LEVELS)[None, :] & inside[:, None]
    _scatter(d_table, _cell(px, py, pz, level), level, g0, g1, g0, g1, qx, qy, qz, mask, not SECOND, SECOND)


# ---- the field


@triton.jit
def _dot(a, b, PRECISION: tl.constexpr):
    if PRECISION == "half":
        return tl.dot(a.to(tl.float16), b.to(tl.float16))
    else:
        return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def _add_dot(total, a, b, scale, PRECISION: tl.constexpr):
    """total + scale a b; the scale is 1 unless PRECISION is half."""
    if PRECISION == "half":
        return total + scale * tl.dot(a.to(tl.float16), b.to(tl.float16))
    else:
        return tl.dot(a, b, total, input_precision=PRECISION)


@triton.jit
def _relu(z):
    return tl.where(z < 0.0, 0.0, z)  # keeps NaN


@triton.jit
def _load_matrix(
    w, first_row, ROWS: tl.constexpr, RP: tl.constexpr, first, stride, COLUMNS: tl.constexpr, CP: tl.constexpr, ROW: tl.constexpr
):
    """w[first_row + i, first + stride j] as a tile (RP, CP), zero beyond ROWS and COLUMNS; ROW is the length of w's rows."""
    i, j = first_row + tl.arange(0, RP)[:, None], tl.arange(0, CP)[None, :]
    return tl.load(w + i * ROW + first + stride * j, mask=(i < ROWS) & (j < COLUMNS), other=0.0)


@triton.jit
def _field_value(
    x, y, z, inside, table, level, w1, w2, LEVELS: tl.constexpr, LP: tl.constexpr, HIDDEN: tl.constexpr, CHUNK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out[0] (n,) at positions in [0, 1]; CHUNK hidden units at a time."""
    h0, h1 = _gather(table, _cell(x, y, z, level), level, (tl.arange(0, LP) < LEVELS)[None, :] & inside[:, None])
    value = tl.zeros_like(x)
    for start in tl.static_range(0, HIDDEN, CHUNK):
        even = _load_matrix(w1, start, HIDDEN, CHUNK, 0, 2, LEVELS, LP, 2 * LEVELS)
        odd = _load_matrix(w1, start, HIDDEN, CHUNK, 1, 2, LEVELS, LP, 2 * LEVELS)
        unit = start + tl.arange(0, CHUNK)
        v = tl.load(w2 + unit, mask=unit < HIDDEN, other=0.0)
        value += tl.sum(_relu(_dot(h0, tl.trans(even), PRECISION) + _dot(h1, tl.trans(odd), PRECISION)) * v[None, :], 1)
    return value


@triton.jit(do_not_specialize=["n"])
def field_value(
    x, table, levels, w1, w2, value, n, LEVELS: tl.constexpr, LP: tl.constexpr, HIDDEN: tl.constexpr, CHUNK: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK: tl.constexpr,
):
    """out[0] (n,)."""
    row, inside = _rows(n, BLOCK, tl.program_id(0))
    px, py, pz = _point(x, row, inside)
    found = _field_value(px, py, pz, inside, table, _levels(levels, LP), w1, w2, LEVELS, LP, HIDDEN, CHUNK, PRECISION)
    tl.store(value + row, found, mask=inside)


@triton.jit(do_not_specialize=["n"])
def field(
    x, table, levels, w1, w2, out, gradient, n, LEVELS: tl.constexpr, LP: tl.constexpr, HIDDEN: tl.constexpr, CHUNK: tl.constexpr,
    OUT: tl.constexpr, OP: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr,
):
    """out (n, OUT) and the gradient (n, 3) of out[0]."""
    row, inside = _rows(n, BLOCK, tl.program_id(0))
    level = _levels(levels, LP)
    px, py, pz = _point(x, row, inside)
    mask = (tl.arange(0, LP) < LEVELS)[None, :] & inside[:, None]
    h0, h1, x0, y0, z0, x1, y1, z1 = _gather_jacobian(table, _cell(px, py, pz, level), level, mask)
    h0, h1 = tl.trans(h0), tl.trans(h1)
    u0, u1 = tl.zeros_like(h0), tl.zeros_like(h0)
    y = tl.zeros([OP, BLOCK], tl.float32)
    for start in tl.static_range(0, HIDDEN, CHUNK):
        even = _load_matrix(w1, start, HIDDEN, CHUNK, 0, 2, LEVELS, LP, 2 * LEVELS)
        odd = _load_matrix(w1, start, HIDDEN, CHUNK, 1, 2, LEVELS, LP, 2 * LEVELS)
        second = _load_matrix(w2, 0, OUT, OP, start, 1, HIDDEN - start, CHUNK, HIDDEN)
        unit = start + tl.arange(0, CHUNK)
        v = tl.load(w2 + unit, mask=unit < HIDDEN, other=0.0)
        z = _dot(even, h0, PRECISION) + _dot(odd, h1, PRECISION)
        y += _dot(second, _relu(z), PRECISION)
        mv = tl.where(z > 0.0, v[:, None], 0.0)
        u0 += _dot(tl.trans(even), mv, PRECISION)
        u1 += _dot(tl.trans(odd), mv, PRECISION)
    _store_rows(out, row, inside, tl.trans(y), OUT, OP)
    u0, u1 = tl.trans(u0), tl.trans(u1)
    _store_point(gradient, row, inside, tl.sum(x0 * u0 + x1 * u1, 1), tl.sum(y0 * u0 + y1 * u1, 1), tl.sum(z0 * u0 + z1 * u1, 1))


@triton.jit(do_not_specialize=["n", "tiles"])
def field_backward(
    x, table, levels, w1, w2, d_out, d_gradient, d_table, partial, n, tiles, FIRST: tl.constexpr, SECOND: tl.constexpr,
    TO_TABLE: tl.constexpr, TO_WEIGHTS: tl.constexpr, LEVELS: tl.constexpr, LP: tl.constexpr, HIDDEN: tl.constexpr, CHUNK: tl.constexpr,
    OUT: tl.constexpr, OP: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr,
):
    """Adds to the table's gradient; each program's share of W1's and W2's goes to a row of partial (programs, HIDDEN (2 LEVELS + OUT)).

    FIRST: there is a d_out (n, OUT). SECOND: there is a d_gradient (n, 3), q. The forward pass is done again: only x was kept. What q adds
    to W1 is v_j A_jf and to v_j sum_f W1_jf A_jf, both from A = sum over points of m s^T, which is all that is summed up for it.
    """
    program, programs = tl.program_id(0), tl.num_programs(0)
    level = _levels(levels, LP)
    column = tl.arange(0, OP)[:, None]
    known = (tl.arange(0, LP) < LEVELS)[None, :]
    CHUNKS: tl.constexpr = (HIDDEN + CHUNK - 1) // CHUNK
    d_even, d_odd, d_second, a_even, a_odd = (), (), (), (), ()
    for _ in tl.static_range(CHUNKS):
        d_even = d_even + (tl.zeros([CHUNK, LP], tl.float32),)
        d_odd = d_odd + (tl.zeros([CHUNK, LP], tl.float32),)
        d_second = d_second + (tl.zeros([OP, CHUNK], tl.float32),)
        a_even = a_even + (tl.zeros([CHUNK, LP], tl.float32),)
        a_odd = a_odd + (tl.zeros([CHUNK, LP], tl.float32),)
    for tile in range(program, tiles, programs):
        row, inside = _rows(n, BLOCK, tile)
        px, py, pz = _point(x, row, inside)
        cell = _cell(px, py, pz, level)
        scale, size = 1.0, tl.zeros_like(px)
        if SECOND:
            qx, qy, qz = _point(d_gradient, row, inside)
            size += tl.abs(qx) + tl.abs(qy) + tl.abs(qz)
        else:
            qx, qy, qz = px, py, pz
        if FIRST:
            d_y = _load_rows(d_out, row, inside, OUT, OP)
            size += tl.sum(tl.abs(d_y), 1)
        mask = known & (inside & (size != 0.0))[:, None]  # points without a share in the loss are left alone
        if PRECISION == "half":  # gradients of a mean over a batch are too small for half: bring the tile's largest near 1
            scale = tl.max(size, 0)
            scale = tl.where(scale > 0.0, scale, 1.0)
            if FIRST:
                d_y = d_y / scale
            if SECOND:
                qx, qy, qz = qx / scale, qy / scale, qz / scale
        if SECOND:
            h0, h1, s0, s1 = _gather_along(table, cell, level, qx, qy, qz, mask)
        else:
            h0, h1 = _gather(table, cell, level, mask)
            s0, s1 = h0, h1
        h0, h1, s0, s1 = tl.trans(h0), tl.trans(h1), tl.trans(s0), tl.trans(s1)
        if FIRST:
            d_y = tl.trans(d_y)
        g0, g1, u0, u1 = tl.zeros_like(h0), tl.zeros_like(h0), tl.zeros_like(h0), tl.zeros_like(h0)
        for chunk in tl.static_range(CHUNKS):
            even = _load_matrix(w1, chunk * CHUNK, HIDDEN, CHUNK, 0, 2, LEVELS, LP, 2 * LEVELS)
            odd = _load_matrix(w1, chunk * CHUNK, HIDDEN, CHUNK, 1, 2, LEVELS, LP, 2 * LEVELS)
            z = _dot(even, h0, PRECISION) + _dot(odd, h1, PRECISION)
            new_even, new_odd, new_second, even_a, odd_a = d_even[chunk], d_odd[chunk], d_second[chunk], a_even[chunk], a_odd[chunk]
            if SECOND:
                unit = chunk * CHUNK + tl.arange(0, CHUNK)
                v = tl.load(w2 + unit, mask=unit < HIDDEN, other=0.0)
                mv = tl.where(z > 0.0, v[:, None], 0.0)
                if TO_TABLE:
                    u0 += _dot(tl.trans(even), mv, PRECISION)
                    u1 += _dot(tl.trans(odd), mv, PRECISION)
                if TO_WEIGHTS:
                    slope = tl.where(z > 0.0, 1.0, 0.0)
                    even_a = _add_dot(even_a, slope, tl.trans(s0), scale, PRECISION)
                    odd_a = _add_dot(odd_a, slope, tl.trans(s1), scale, PRECISION)
            if FIRST:
                second = _load_matrix(w2, 0, OUT, OP, chunk * CHUNK, 1, HIDDEN - chunk * CHUNK, CHUNK, HIDDEN)
                if TO_WEIGHTS:
                    new_second = _add_dot(new_second, d_y, tl.trans(_relu(z)), scale, PRECISION)
                d_z = tl.where(z > 0.0, _dot(tl.trans(second), d_y, PRECISION), 0.0)
                if TO_WEIGHTS:
                    new_even = _add_dot(new_even, d_z, tl.trans(h0), scale, PRECISION)
                    new_odd = _add_dot(new_odd, d_z, tl.trans(h1), scale, PRECISION)
                if TO_TABLE:
                    g0 += _dot(tl.trans(even), d_z, PRECISION)
                    g1 += _dot(tl.trans(odd), d_z, PRECISION)
            d_even = d_even[:chunk] + (new_even,) + d_even[chunk + 1 :]
            d_odd = d_odd[:chunk] + (new_odd,) + d_odd[chunk + 1 :]
            d_second = d_second[:chunk] + (new_second,) + d_second[chunk + 1 :]
            a_even = a_even[:chunk] + (even_a,) + a_even[chunk + 1 :]
            a_odd = a_odd[:chunk] + (odd_a,) + a_odd[chunk + 1 :]
        if TO_TABLE:
            g0, g1, u0, u1 = tl.trans(g0), tl.trans(g1), tl.trans(u0), tl.trans(u1)
            _scatter(
                d_table, cell, level, g0 * scale, g1 * scale, u0, u1, qx * scale, qy * scale, qz * scale, mask,
                FIRST, SECOND,
            )  # fmt: skip
    if TO_WEIGHTS:
        partial += program.to(tl.int64) * (HIDDEN * (2 * LEVELS + OUT))
        for chunk in tl.static_range(CHUNKS):
            unit, feature = chunk * CHUNK + tl.arange(0, CHUNK), tl.arange(0, LP)[None, :]
            place = partial + unit[:, None] * (2 * LEVELS) + 2 * feature
            mask = (unit < HIDDEN)[:, None] & (feature < LEVELS)
            v = tl.load(w2 + unit, mask=unit < HIDDEN, other=0.0)
            tl.store(place, d_even[chunk] + v[:, None] * a_even[chunk], mask=mask)
            tl.store(place + 1, d_odd[chunk] + v[:, None] * a_odd[chunk], mask=mask)
            even = _load_matrix(w1, chunk * CHUNK, HIDDEN, CHUNK, 0, 2, LEVELS, LP, 2 * LEVELS)
            odd = _load_matrix(w1, chunk * CHUNK, HIDDEN, CHUNK, 1, 2, LEVELS, LP, 2 * LEVELS)
            d_v = tl.sum(even * a_even[chunk] + odd * a_odd[chunk], 1)
            d_w2 = d_second[chunk] + tl.where(column == 0, d_v[None, :], 0.0)
            place = partial + HIDDEN * 2 * LEVELS + column * HIDDEN + unit[None, :]
            tl.store(place, d_w2, mask=(column < OUT) & (unit < HIDDEN)[None, :])


# ---- MLP


@triton.jit(do_not_specialize=["n"])
def mlp(x, weights, y, n, WIDTHS: tl.constexpr, PADDED: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr):
    """y (n, WIDTHS[-1]) of x (n, WIDTHS[0]); weights is a tuple of matrices."""
    LAST: tl.constexpr = len(WIDTHS) - 1
    row, inside = _rows(n, BLOCK, tl.program_id(0))
    h = _load_rows(x, row, inside, WIDTHS[0], PADDED[0])
    for i in tl.static_range(LAST):
        w = _load_matrix(weights[i], 0, WIDTHS[i + 1], PADDED[i + 1], 0, 1, WIDTHS[i], PADDED[i], WIDTHS[i])
        h = _dot(h, tl.trans(w), PRECISION)
        if i < LAST - 1:
            h = _relu(h)
    _store_rows(y, row, inside, h, WIDTHS[LAST], PADDED[LAST])


@triton.jit(do_not_specialize=["n", "tiles"])
def mlp_backward(
    x, weights, dy, dx, partial, n, tiles, SIZE: tl.constexpr, TO_X: tl.constexpr, TO_WEIGHTS: tl.constexpr, WIDTHS: tl.constexpr,
    PADDED: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr,
):
    """dx, and each program's share of the weights' gradients in a row of partial (programs, SIZE), matrix after matrix."""
    LAST: tl.constexpr = len(WIDTHS) - 1
    program, programs = tl.program_id(0), tl.num_programs(0)
    sums = ()
    for i in tl.static_range(LAST):
        sums = sums + (_zeros(PADDED[i + 1], PADDED[i]),)
    for tile in range(program, tiles, programs):
        row, inside = _rows(n, BLOCK, tile)
        h = _load_rows(x, row, inside, WIDTHS[0], PADDED[0])
        kept = (h,)
        for i in tl.static_range(LAST - 1):
            w = _load_matrix(weights[i], 0, WIDTHS[i + 1], PADDED[i + 1], 0, 1, WIDTHS[i], PADDED[i], WIDTHS[i])
            h = _relu(_dot(h, tl.trans(w), PRECISION))
            kept = kept + (h,)
        d = _load_rows(dy, row, inside, WIDTHS[LAST], PADDED[LAST])
        scale = 1.0
        if PRECISION == "half":  # as in field_backward
            largest = tl.max(tl.max(tl.abs(d), 1), 0)
            scale = tl.where(largest > 0.0, largest, 1.0)
            d = d / scale
        for i in tl.static_range(LAST - 1, -1, -1):
            if TO_WEIGHTS:
                more = _add_dot(sums[i], tl.trans(d), kept[i], scale, PRECISION)
                sums = sums[:i] + (more,) + sums[i + 1 :]
            if i > 0 or TO_X:
                w = _load_matrix(weights[i], 0, WIDTHS[i + 1], PADDED[i + 1], 0, 1, WIDTHS[i], PADDED[i], WIDTHS[i])
                d = _dot(d, w, PRECISION)
                if i > 0:
                    d = tl.where(kept[i] > 0.0, d, 0.0)
        if TO_X:
            _store_rows(dx, row, inside, d * scale, WIDTHS[0], PADDED[0])
    if TO_WEIGHTS:
        partial += program.to(tl.int64) * SIZE
        for i in tl.static_range(LAST):
            unit = tl.arange(0, PADDED[i + 1])
            _store_rows(partial, unit, unit < WIDTHS[i + 1], sums[i], WIDTHS[i], PADDED[i])
            partial += WIDTHS[i + 1] * WIDTHS[i]


# ---- rays


@triton.jit(do_not_specialize=["cells", "most"])
def occupied_steps(o, d, t_near, t_far, occupied, t_out, count, cells, step, most, CHUNK: tl.constexpr):
    """One program a ray. To be compiled without fused multiply-adds: each point is rounded as PyTorch rounds it."""
    ray = tl.program_id(0).to(tl.int64)
    near, far = tl.load(t_near + ray), tl.load(t_far + ray)
    ox, oy, oz = _point(o, ray, True)
    dx, dy, dz = _point(d, ray, True)
    half_cells, last = cells.to(tl.float32) / 2.0, (cells - 1).to(tl.float32)
    span = far - near
    t_out += ray * most
    lane = tl.arange(0, CHUNK)
    found, k, before_far = 0, 0, (span > 0.0) & (span < float("inf"))
    while before_far & (found < most):
        t = near + (k + lane).to(tl.float32) * step
        x, y, z = _cell_of(ox + t * dx, half_cells, last), _cell_of(oy + t * dy, half_cells, last), _cell_of(oz + t * dz, half_cells, last)
        before = t < far
        keep = before & (tl.load(occupied + (x * cells + y) * cells + z, mask=before, other=0) != 0)
        place = found + tl.cumsum(keep.to(tl.int32), 0) - 1
        tl.store(t_out + place, t, mask=keep & (place < most))
        found += tl.sum(keep.to(tl.int32), 0)
        k += CHUNK
        before_far = tl.min(before.to(tl.int32), 0) > 0
    found = tl.minimum(found, most)
    tl.store(count + ray, found.to(tl.int64))
    for start in range(found, most, CHUNK):
        tl.store(t_out + start + lane, far + tl.zeros([CHUNK], tl.float32), mask=start + lane < most)


@triton.jit
def _cell_of(p, half_cells, last):
    """p in cells, clamped to the grid; NaN becomes 0."""
    c = (p + 1.0) * half_cells
    c = tl.where(c > 0.0, c, 0.0)
    return tl.where(c < last, c, last).to(tl.int32)


@triton.jit
def _unit(p):
    """From [-1, 1] to [0, 1], clamped; keeps NaN."""
    x = p * 0.5 + 0.5
    return tl.where(x < 0.0, 0.0, tl.where(x > 1.0, 1.0, x))


@triton.jit
def _level_at(
    x, y, z, inside, prior_radius, table, level, w1, w2, ROWS: tl.constexpr, COLUMNS: tl.constexpr, LEVELS: tl.constexpr,
    LP: tl.constexpr, HIDDEN: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):
    """The level (ROWS, COLUMNS) at points in scene units."""
    n: tl.constexpr = ROWS * COLUMNS
    ux, uy, uz = tl.reshape(_unit(x), [n]), tl.reshape(_unit(y), [n]), tl.reshape(_unit(z), [n])
    value = _field_value(ux, uy, uz, tl.reshape(inside, [n]), table, level, w1, w2, LEVELS, LP, HIDDEN, CHUNK, PRECISION)
    return tl.reshape(value, [ROWS, COLUMNS]) + (prior_radius - tl.sqrt(x * x + y * y + z * z))


@triton.jit
def _pick(values, at):
    """From each row of values (m, n) the one where `at` holds, else 0: (m,)."""
    return tl.sum(tl.where(at, values, 0.0), 1)


@triton.jit(do_not_specialize=["n", "most"])
def bracket(
    o, d, t_near, lattice, count, table, levels, w1, w2, ends, n, most, prior_radius, LEVELS: tl.constexpr, LP: tl.constexpr,
    HIDDEN: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr, RAYS: tl.constexpr, AHEAD: tl.constexpr,
):
    """March RAYS rays, AHEAD lattice points of each at a time, until a point lies inside.

    ends (n, 4): t and level of the last point outside, t and level of the first inside; the last one is 0 where there is none.
    """
    ray, real_ray = _rows(n, RAYS, tl.program_id(0))
    level = _levels(levels, LP)
    ox, oy, oz = _point(o, ray, real_ray)
    dx, dy, dz = _point(d, ray, real_ray)
    points = tl.minimum(tl.load(count + ray, mask=real_ray, other=0), most).to(tl.int32)
    t_out = tl.load(t_near + ray, mask=real_ray, other=0.0)
    f_out = tl.full([RAYS], float("-inf"), tl.float32)
    t_in, f_in = tl.zeros([RAYS], tl.float32), tl.zeros([RAYS], tl.float32)
    place = tl.arange(0, AHEAD)[None, :]
    active = (points > 0).to(tl.int32)
    start = 0
    while tl.max(active, 0) > 0:
        real = (start + place < points[:, None]) & (active[:, None] > 0)
        t = tl.load(lattice + ray[:, None] * most + start + place, mask=real, other=0.0)
        x, y, z = ox[:, None] + t * dx[:, None], oy[:, None] + t * dy[:, None], oz[:, None] + t * dz[:, None]
        f = _level_at(x, y, z, real, prior_radius, table, level, w1, w2, RAYS, AHEAD, LEVELS, LP, HIDDEN, CHUNK, PRECISION)
        first = tl.min(tl.where(real & (f > 0.0), place, AHEAD), 1)
        found = first < AHEAD
        before = tl.where(found, first, tl.sum(real.to(tl.int32), 1)) - 1
        t_out = tl.where(before >= 0, _pick(t, place == before[:, None]), t_out)
        f_out = tl.where(before >= 0, _pick(f, place == before[:, None]), f_out)
        t_in = tl.where(found, _pick(t, place == first[:, None]), t_in)
        f_in = tl.where(found, _pick(f, place == first[:, None]), f_in)
        start += AHEAD
        active = ((active > 0) & (f_in <= 0.0) & (start < points)).to(tl.int32)
    ends += 4 * ray
    tl.store(ends, t_out, mask=real_ray)
    tl.store(ends + 1, f_out, mask=real_ray)
    tl.store(ends + 2, t_in, mask=real_ray)
    tl.store(ends + 3, f_in, mask=real_ray)


@triton.jit(do_not_specialize=["n", "secant_steps"])
def refine(
    o, d, t_near, t_far, ends, table, levels, w1, w2, t_surface, hit, n, step, secant_steps, prior_radius, LEVELS: tl.constexpr,
    LP: tl.constexpr, HIDDEN: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr, RAYS: tl.constexpr,
):
    """`surface.secant` from the ends that `bracket` left. A ray is done when its level is but rounding.

    Rays are tiles (RAYS / 8, 8): from a vector, Triton would move every gather through shared memory.
    """
    ray = (tl.program_id(0) * RAYS + tl.arange(0, RAYS // 8)[:, None] * 8 + tl.arange(0, 8)[None, :]).to(tl.int64)
    real_ray = ray < n
    level = _levels(levels, LP)
    ox, oy, oz = _point(o, ray, real_ray)
    dx, dy, dz = _point(d, ray, real_ray)
    near, far = tl.load(t_near + ray, mask=real_ray, other=0.0), tl.load(t_far + ray, mask=real_ray, other=0.0)
    end = ends + 4 * ray
    low, f_low = tl.load(end, mask=real_ray, other=0.0), tl.load(end + 1, mask=real_ray, other=0.0)
    high, f_high = tl.load(end + 2, mask=real_ray, other=0.0), tl.load(end + 3, mask=real_ray, other=0.0)
    crosses = f_high > 0.0
    # the point before may lie in a culled cell, a step or more away: then start from one step before the crossing
    culled = low < high - 1.01 * step
    low = tl.where(culled, tl.maximum(high - step, near), low)
    unknown = crosses & (culled | (tl.abs(f_low) == float("inf")) | (f_low != f_low))  # the level at `low`, which comes first
    done, was_inside, taken = crosses & False, crosses & False, tl.zeros([RAYS // 8, 8], tl.int32)
    active = crosses & (unknown | (secant_steps > 0))
    t = far
    while tl.max(tl.max(active.to(tl.int32), 1), 0) > 0:
        t = tl.where(active, tl.where(unknown, low, _zero(low, high, f_low, f_high)), t)
        x, y, z = ox + t * dx, oy + t * dy, oz + t * dz
        f = _level_at(x, y, z, active, prior_radius, table, level, w1, w2, RAYS // 8, 8, LEVELS, LP, HIDDEN, CHUNK, PRECISION)
        inside, stepping = f > 0.0, active & (unknown == 0)
        # inside already: the box cuts the solid there
        done = done | (active & tl.where(unknown, inside, tl.abs(f) < ON_SURFACE))
        # the end that stays for a second time weighs half, so that both ends close in
        half = tl.where((inside == was_inside) & (taken > 0), 0.5, 1.0)
        new_low, new_high = (stepping & (inside == 0)) | unknown, stepping & inside
        f_low = tl.where(new_low, f, tl.where(new_high, half * f_low, f_low))
        f_high = tl.where(new_high, f, tl.where(stepping & (inside == 0), half * f_high, f_high))
        low, high = tl.where(new_low, t, low), tl.where(new_high, t, high)
        was_inside, taken = tl.where(stepping, inside, was_inside), taken + stepping.to(tl.int32)
        active = active & (done == 0) & (taken < secant_steps)
        unknown = unknown & False
    t = tl.where(crosses & (done == 0), _zero(low, high, f_low, f_high), t)
    tl.store(t_surface + ray, t, mask=real_ray)
    tl.store(hit + ray, crosses.to(tl.int8), mask=real_ray)


@triton.jit
def _zero(low, high, f_low, f_high):
    """Where the line between both ends crosses 0."""
    rise = f_high - f_low
    share = -f_low / tl.where(rise < 1e-12, 1e-12, rise)
    return low + (high - low) * tl.where(share < 0.0, 0.0, tl.where(share > 1.0, 1.0, share))


# ---- compositing, Adam


@triton.jit
def _through(alphas, row, inside, sample, samples):
    """1 - alpha of samples, nearly; 1 outside of the row."""
    mask = inside[:, None] & (sample >= 0) & (sample < samples)
    return 1.0 - tl.load(alphas + row[:, None] * samples + sample, mask=mask, other=0.0) * (1.0 - CLOSEST_TO_OPAQUE)


@triton.jit
def _multiply(a, b):
    return a * b


@triton.jit(do_not_specialize=["n", "samples"])
def weights_of(alphas, weights, n, samples, RAYS: tl.constexpr, SP: tl.constexpr):
    """alpha times the light that reaches the sample: weights (n, samples)."""
    row, inside = _rows(n, RAYS, tl.program_id(0))
    sample = tl.arange(0, SP)[None, :]
    light = tl.associative_scan(_through(alphas, row, inside, sample - 1, samples), 1, _multiply)
    place, mask = row[:, None] * samples + sample, inside[:, None] & (sample < samples)
    tl.store(weights + place, tl.load(alphas + place, mask=mask, other=0.0) * light, mask=mask)


@triton.jit(do_not_specialize=["n", "samples"])
def weights_of_backward(alphas, d_weights, d_alphas, n, samples, RAYS: tl.constexpr, SP: tl.constexpr):
    """d alpha_i = d weight_i light_i - (1 - 1e-6) / (1 - alpha_i) sum_{k > i} d weight_k alpha_k light_k."""
    row, inside = _rows(n, RAYS, tl.program_id(0))
    sample = tl.arange(0, SP)[None, :]
    through = _through(alphas, row, inside, sample, samples)
    light = tl.associative_scan(_through(alphas, row, inside, sample - 1, samples), 1, _multiply)
    light_behind = tl.associative_scan(through, 1, _multiply)
    place, mask = row[:, None] * samples + sample, inside[:, None] & (sample < samples)
    next_mask = inside[:, None] & (sample + 1 < samples)
    next_alpha = tl.load(alphas + place + 1, mask=next_mask, other=0.0)
    behind = tl.cumsum(tl.load(d_weights + place + 1, mask=next_mask, other=0.0) * next_alpha * light_behind, 1, reverse=True)
    d = tl.load(d_weights + place, mask=mask, other=0.0) * light - (1.0 - CLOSEST_TO_OPAQUE) * behind / through
    tl.store(d_alphas + place, d, mask=mask)


@triton.jit(do_not_specialize=["n"])
def adam(p, grad, m, v, n, rate, beta1, beta2, eps, root, BLOCK: tl.constexpr):
    """rate and root hold the bias correction: p -= rate m / (sqrt(v) root + eps)."""
    i, inside = _rows(n, BLOCK, tl.program_id(0))
    g = tl.load(grad + i, mask=inside, other=0.0)
    first, second = tl.load(m + i, mask=inside, other=0.0), tl.load(v + i, mask=inside, other=0.0)
    first = first * beta1 + g * (1.0 - beta1)
    second = second * beta2 + g * g * (1.0 - beta2)
    tl.store(m + i, first, mask=inside)
    tl.store(v + i, second, mask=inside)
    tl.store(p + i, tl.load(p + i, mask=inside, other=0.0) - rate * first / (tl.sqrt(second) * root + eps), mask=inside)
