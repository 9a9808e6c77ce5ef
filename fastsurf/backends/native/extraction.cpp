#include "extraction.h"

#include <new>

#include "cubes.h"
#include "pool.h"

namespace {

// In place of values, which are finite.
constexpr float UNKNOWN = __builtin_inff(), QUEUED = -__builtin_inff(), NOT_IN_USE = -__builtin_inff();
constexpr float EMPTY = -1.0f;  // what points not in use count as
constexpr int64_t CHUNK = 1 << 12;

inline float magnitude(float a) { return __builtin_fabsf(a); }
inline float least(float a, float b) { return a < b ? a : b; }
inline float most(float a, float b) { return a > b ? a : b; }

const CubeTable& cube_table() {
  static const CubeTable table;
  return table;
}

template <class F>
void in_chunks(int threads, int64_t n, F body) {
  parallel(threads, (n + CHUNK - 1) / CHUNK, 0, [=](int64_t chunk, float*) {
    for (int64_t i = chunk * CHUNK; i < n && i < (chunk + 1) * CHUNK; i++) body(i);
  });
}

}  // namespace

Extraction::Extraction(int resolution, bool closed, float margin, const uint8_t* cells, int n_cells)
    : resolution_(resolution), n_cells_(n_cells), closed_(closed), margin_(margin), cells_(cells, cells + size_t(n_cells) * n_cells * n_cells) {
  for (int i = 0; i <= resolution; i++) {
    const int64_t cell = int64_t(i) * n_cells / resolution;
    cell_of_.push_back(int32_t(cell < n_cells ? cell : n_cells - 1));
  }
  coarse_stride_ = resolution < 64 ? 2 : resolution < 256 ? 4 : 8;
  n_coarse_ = (resolution + coarse_stride_ - 1) / coarse_stride_;
  n_bricks_ = resolution / SIDE + 1;
}

int64_t Extraction::plan(int threads) {
  wanted_.clear();
  while (stage_ != DONE && wanted_.empty()) {
    if (stage_ == START) {
      start();
      stage_ = COARSE;
    } else if (stage_ == COARSE) {
      find_near_coarse(threads);
      stride_ = coarse_stride_, stage_ = REFINE;
      want_cells();
    } else if (stage_ == REFINE && stride_ > 2) {
      refine(threads);
      want_cells();
    } else {
      follow(threads);
      stage_ = FOLLOW;
      if (wanted_.empty()) count_all(threads), stage_ = DONE;
    }
  }
  return int64_t(wanted_.size());
}

void Extraction::points(int threads, int64_t first, int64_t count, float* x) const {
  const double step = 2.0 / resolution_;
  in_chunks(threads, count, [=](int64_t i) {
    const uint32_t slot = wanted_[size_t(first + i)];
    int32_t p[3];
    if (stage_ == COARSE) {
      const uint32_t n = uint32_t(n_coarse_ + 1);
      p[0] = coarse_at(int(slot / n / n)), p[1] = coarse_at(int(slot / n % n)), p[2] = coarse_at(int(slot % n));
    } else {
      const int32_t* at = bricks_[slot >> 9]->at;
      p[0] = at[0] * SIDE + int32_t(slot >> 6 & 7), p[1] = at[1] * SIDE + int32_t(slot >> 3 & 7), p[2] = at[2] * SIDE + int32_t(slot & 7);
    }
    for (int d = 0; d < 3; d++) x[3 * i + d] = float(p[d] * step - 1.0);
  });
}

void Extraction::accept(int threads, int64_t first, int64_t count, const float* values) {
  in_chunks(threads, count, [=](int64_t i) {
    const uint32_t slot = wanted_[size_t(first + i)];
    (stage_ == COARSE ? coarse_[slot] : bricks_[slot >> 9]->value[slot & 511]) = values[i];
  });
}

void Extraction::start() {
  const size_t n = size_t(n_coarse_) + 1;
  if (n * n * n >= size_t(1) << 32) throw std::bad_alloc();
  coarse_.assign(n * n * n, NOT_IN_USE);
  brick_of_.assign(size_t(n_bricks_) * n_bricks_ * n_bricks_, -1);
  for (int i = 0; i <= n_coarse_; i++)
    for (int j = 0; j <= n_coarse_; j++)
      for (int k = 0; k <= n_coarse_; k++)
        if (in_use(coarse_at(i), coarse_at(j), coarse_at(k))) wanted_.push_back(uint32_t(coarse_index(i, j, k)));
}

bool Extraction::near(float low, float high, float bound, bool whole, bool at_border) const {
  if (!whole) bound *= 2.0f;  // a corner in use may lie at the other end
  return (low <= bound && high >= -bound) || (!whole && high > 0.0f) || low > high || (closed_ && at_border && high > 0.0f);
}

void Extraction::find_near_coarse(int threads) {
  const int n = n_coarse_;
  std::vector<float> steep(coarse_.size()), bend(coarse_.size());
  parallel(threads, n + 1, 0, [&](int64_t i, float*) {  // of lines through each point
    const size_t step[3] = {coarse_index(1, 0, 0), coarse_index(0, 1, 0), 1};
    for (int j = 0; j <= n; j++)
      for (int k = 0; k <= n; k++) {
        const size_t at = coarse_index(int(i), j, k);
        const int index[3] = {int(i), j, k};
        float change = 0.0f, sum = 0.0f;
        const float here = coarse_[at];
        for (int d = 0; here != NOT_IN_USE && d < 3; d++) {
          if (index[d] == n || coarse_[at + step[d]] == NOT_IN_USE) continue;
          const float ahead = coarse_[at + step[d]] - here;
          change = most(change, magnitude(ahead));
          if (index[d] > 0 && coarse_[at - step[d]] != NOT_IN_USE) sum += magnitude(ahead - (here - coarse_[at - step[d]]));
        }
        steep[at] = change, bend[at] = sum;
      }
  });
  std::vector<uint8_t> found(size_t(n) * n * n);
  parallel(threads, n, 0, [&](int64_t i, float*) {
    for (int j = 0; j < n; j++)
      for (int k = 0; k < n; k++) found[(size_t(i) * n + j) * n + k] = near_coarse(int(i), j, k, steep, bend);
  });
  for (int i = 0; i < n; i++)
    for (int j = 0; j < n; j++)
      for (int k = 0; k < n; k++)
        if (found[(size_t(i) * n + j) * n + k]) near_.push_back({{int16_t(coarse_at(i)), int16_t(coarse_at(j)), int16_t(coarse_at(k))}});
}

bool Extraction::near_coarse(int i, int j, int k, const std::vector<float>& steep, const std::vector<float>& bend) const {
  const int index[3] = {i, j, k}, n = n_coarse_;
  int first[3], last[3];  // grid cells that this one overlaps
  bool some = false, whole = true, at_border = false;
  for (int d = 0; d < 3; d++) {
    first[d] = cell_of_[coarse_at(index[d])], last[d] = cell_of_[coarse_at(index[d] + 1)];
    at_border |= index[d] == 0 || index[d] == n - 1;
  }
  for (int x = first[0]; x <= last[0]; x++)
    for (int y = first[1]; y <= last[1]; y++)
      for (int z = first[2]; z <= last[2]; z++) {
        const bool use = cells_[(size_t(x) * n_cells_ + y) * n_cells_ + z];
        some |= use, whole &= use;
      }
  if (!some) return false;
  float low = UNKNOWN, high = -UNKNOWN, change = 0.0f, sum = 0.0f;
  for (int c = 0; c < 8; c++) {
    const float value = coarse_[coarse_index(i + (c & 1), j + (c >> 1 & 1), k + (c >> 2))];
    if (value != NOT_IN_USE) low = least(low, value), high = most(high, value);
  }
  if (low <= 0.0f && high >= 0.0f) return true;
  for (int x = i > 0 ? i - 1 : 0; x <= i + 2 && x <= n; x++)
    for (int y = j > 0 ? j - 1 : 0; y <= j + 2 && y <= n; y++)
      for (int z = k > 0 ? k - 1 : 0; z <= k + 2 && z <= n; z++) {
        const size_t at = coarse_index(x, y, z);
        change = most(change, steep[at]), sum = most(sum, bend[at]);
      }
  return near(low, high, margin_ * (whole ? least(change, 0.5f * sum) : change), whole, at_border);
}

// Which of a cell's children may hold surface, bit 4 x + 2 y + z, from its 27 points of half the stride.
uint8_t Extraction::near_children(const Cell& cell) const {
  const int half = stride_ / 2;
  int at[3][3];
  for (int d = 0; d < 3; d++)
    for (int i = 0; i < 3; i++) at[d][i] = cell.at[d] + i * half < resolution_ ? cell.at[d] + i * half : resolution_;
  float value[3][3][3];
  bool use[3][3][3], whole = true;
  for (int x = 0; x < 3; x++)
    for (int y = 0; y < 3; y++)
      for (int z = 0; z < 3; z++) {
        const int32_t p[3] = {at[0][x], at[1][y], at[2][z]};
        value[x][y][z] = value_at(p);
        use[x][y][z] = value[x][y][z] != EMPTY || in_use(p[0], p[1], p[2]);
        whole &= use[x][y][z];
      }
  float change = 0.0f, along[3] = {};
  for (int d = 0; d < 3; d++)
    for (int line = 0; line < 9; line++) {
      int p[3];
      p[d] = 0, p[(d + 1) % 3] = line / 3, p[(d + 2) % 3] = line % 3;
      float v[3];
      bool u[3];
      for (int i = 0; i < 3; i++, p[d]++) v[i] = value[p[0]][p[1]][p[2]], u[i] = use[p[0]][p[1]][p[2]];
      if (u[0] && u[1]) change = most(change, magnitude(v[1] - v[0]));
      if (u[1] && u[2]) change = most(change, magnitude(v[2] - v[1]));
      if (u[0] && u[1] && u[2]) along[d] = most(along[d], magnitude((v[2] - v[1]) - (v[1] - v[0])));
    }
  const float bound = margin_ * (whole ? least(change, 0.5f * (along[0] + along[1] + along[2])) : change);
  uint8_t found = 0;
  for (int child = 0; child < 8; child++) {
    const int x = child >> 2, y = child >> 1 & 1, z = child & 1;
    if (at[0][x] == resolution_ || at[1][y] == resolution_ || at[2][z] == resolution_) continue;
    float low = UNKNOWN, high = -UNKNOWN;
    for (int c = 0; c < 8; c++) {
      const int i = x + (c & 1), j = y + (c >> 1 & 1), k = z + (c >> 2);
      if (use[i][j][k]) low = least(low, value[i][j][k]), high = most(high, value[i][j][k]);
    }
    const bool at_border = at[0][x] == 0 || at[1][y] == 0 || at[2][z] == 0 || at[0][x + 1] == resolution_ || at[1][y + 1] == resolution_ ||
                           at[2][z + 1] == resolution_;
    found |= uint8_t(near(low, high, bound, whole, at_border) << child);
  }
  return found;
}

void Extraction::refine(int threads) {
  std::vector<uint8_t> found(near_.size());
  in_chunks(threads, int64_t(near_.size()), [&](int64_t i) { found[size_t(i)] = near_children(near_[size_t(i)]); });
  std::vector<Cell> finer;
  stride_ /= 2;
  for (size_t i = 0; i < near_.size(); i++)
    for (int child = 0; child < 8; child++)
      if (found[i] >> child & 1) {
        Cell cell = near_[i];
        for (int d = 0; d < 3; d++) cell.at[d] = int16_t(cell.at[d] + (child >> (2 - d) & 1) * stride_);
        finer.push_back(cell);
      }
  near_.swap(finer);
}

void Extraction::want_cells() {
  const int half = stride_ / 2;
  for (const Cell& cell : near_) {
    int at[3][3];
    bool next[3];  // whether the far side of the cell lies in the next brick
    for (int d = 0; d < 3; d++) {
      for (int i = 0; i < 3; i++) at[d][i] = cell.at[d] + i * half < resolution_ ? cell.at[d] + i * half : resolution_;
      next[d] = at[d][2] / SIDE != at[d][0] / SIDE;
    }
    uint32_t number[8];
    for (int c = 0; c < 8; c++) {
      const int same = c & (int(next[0]) | int(next[1]) << 1 | int(next[2]) << 2);
      number[c] = same == c ? brick_number(at[0][c & 1 ? 2 : 0], at[1][c & 2 ? 2 : 0], at[2][c & 4 ? 2 : 0]) : number[same];
    }
    for (int x = 0; x < 3; x++)
      for (int y = 0; y < 3; y++)
        for (int z = 0; z < 3; z++) want_in(number[x >> 1 | (y >> 1) << 1 | (z >> 1) << 2], at[0][x], at[1][y], at[2][z]);
  }
}

void Extraction::want(int x, int y, int z) { want_in(brick_number(x, y, z), x, y, z); }

uint32_t Extraction::brick_number(int x, int y, int z) {
  int32_t& number = brick_of_[size_t(brick_slot(x / SIDE, y / SIDE, z / SIDE))];
  if (number < 0) {
    if (bricks_.size() >= size_t(1) << 23) throw std::bad_alloc();
    bricks_.push_back(std::make_unique<Brick>());
    number = int32_t(bricks_.size() - 1);
    Brick& fresh = *bricks_.back();
    fresh.at[0] = x / SIDE, fresh.at[1] = y / SIDE, fresh.at[2] = z / SIDE;
    for (float& value : fresh.value) value = UNKNOWN;
  }
  return uint32_t(number);
}

void Extraction::want_in(uint32_t number, int x, int y, int z) {
  Brick& brick = *bricks_[number];
  const uint32_t local = uint32_t((x & (SIDE - 1)) << 6 | (y & (SIDE - 1)) << 3 | (z & (SIDE - 1)));
  float& value = brick.value[local];
  if (value != UNKNOWN) return;
  brick.changed = true;
  const auto on_coarse = [this](int p) { return (p & (coarse_stride_ - 1)) == 0 || p == resolution_; };
  const auto up = [this](int p) { return (p + coarse_stride_ - 1) / coarse_stride_; };
  if (!in_use(x, y, z)) {
    value = EMPTY;
  } else if (on_coarse(x) && on_coarse(y) && on_coarse(z)) {
    value = coarse_[coarse_index(up(x), up(y), up(z))];
  } else {
    value = QUEUED;
    wanted_.push_back(number << 9 | local);
  }
}

const Extraction::Brick* Extraction::brick(int i, int j, int k) const {
  if (i < 0 || j < 0 || k < 0 || i >= n_bricks_ || j >= n_bricks_ || k >= n_bricks_) return nullptr;
  const int32_t number = brick_of_[size_t(brick_slot(i, j, k))];
  return number < 0 ? nullptr : bricks_[size_t(number)].get();
}

float Extraction::value_at(const int32_t* p) const {
  return brick(p[0] / SIDE, p[1] / SIDE, p[2] / SIDE)->value[p[0] % SIDE << 6 | p[1] % SIDE << 3 | p[2] % SIDE];
}

void Extraction::note_signs(Brick& brick) const {
  const auto border = [this](int p) { return p == 0 || p == resolution_; };
  for (int x = 0; x < SIDE; x++)
    for (int y = 0; y < SIDE; y++) {
      unsigned inside = 0, known = 0;
      const float* value = brick.value + (x << 6 | y << 3);
      for (int z = 0; z < SIDE; z++) known |= unsigned(value[z] < UNKNOWN) << z, inside |= unsigned(value[z] > 0.0f) << z;
      inside &= known;
      if (closed_) {
        if (border(brick.at[0] * SIDE + x) || border(brick.at[1] * SIDE + y)) inside = 0;
        for (int z = 0; z < SIDE; z++)
          if (border(brick.at[2] * SIDE + z)) inside &= ~(1u << z);
      }
      brick.inside[x][y] = uint8_t(inside), brick.known[x][y] = uint8_t(known);
    }
}

void Extraction::rows_of(const Brick& b, Rows& rows) const {
  for (int i = -1; i <= 1; i++)
    for (int j = -1; j <= 1; j++) {
      const Brick* line[3];
      for (int k = 0; k < 3; k++) line[k] = brick(b.at[0] + i, b.at[1] + j, b.at[2] + k - 1);
      for (int x = i < 0 ? -1 : i * SIDE; x <= (i < 0 ? -1 : i ? SIDE : SIDE - 1); x++)
        for (int y = j < 0 ? -1 : j * SIDE; y <= (j < 0 ? -1 : j ? SIDE : SIDE - 1); y++) {
          const int u = x & (SIDE - 1), v = y & (SIDE - 1);
          unsigned inside = 0, known = 0;
          if (line[0]) inside |= line[0]->inside[u][v] >> (SIDE - 1), known |= line[0]->known[u][v] >> (SIDE - 1);
          if (line[1]) inside |= unsigned(line[1]->inside[u][v]) << 1, known |= unsigned(line[1]->known[u][v]) << 1;
          if (line[2]) inside |= (line[2]->inside[u][v] & 1u) << (SIDE + 1), known |= (line[2]->known[u][v] & 1u) << (SIDE + 1);
          rows.inside[x + 1][y + 1] = uint16_t(inside), rows.known[x + 1][y + 1] = uint16_t(known);
        }
    }
}

namespace {

struct CellRow {  // cells between four rows of points, one bit a cell
  unsigned mixed, complete;
  template <class R>
  CellRow(const R& in, const R& known, int x, int y) {
    const unsigned all = known[x][y] & known[x + 1][y] & known[x][y + 1] & known[x + 1][y + 1];
    const unsigned some = in[x][y] | in[x + 1][y] | in[x][y + 1] | in[x + 1][y + 1];
    const unsigned out = (known[x][y] & ~in[x][y]) | (known[x + 1][y] & ~in[x + 1][y]) | (known[x][y + 1] & ~in[x][y + 1]) |
                         (known[x + 1][y + 1] & ~in[x + 1][y + 1]);
    complete = all & all >> 1, mixed = (some | some >> 1) & (out | out >> 1);
  }
};

inline int lowest(unsigned bits) { return __builtin_ctz(bits); }

}  // namespace

void Extraction::follow(int threads) {
  std::vector<Brick*> changed;
  for (;;) {
    changed.clear();
    for (const auto& brick : bricks_)
      if (brick->changed) changed.push_back(brick.get());
    if (changed.empty() || !wanted_.empty()) return;
    parallel(threads, int64_t(changed.size()), 0, [&](int64_t i, float*) { note_signs(*changed[size_t(i)]); });
    parallel(threads, int64_t(changed.size()), 0, [&](int64_t i, float*) {
      Brick& brick = *changed[size_t(i)];
      Rows rows;
      rows_of(brick, rows);
      unsigned incomplete = 0;
      for (int x = 0; x <= SIDE; x++)
        for (int y = 0; y <= SIDE; y++) {
          const CellRow row(rows.inside, rows.known, x, y);
          incomplete |= row.mixed & ~row.complete & ((2u << SIDE) - 1);
        }
      brick.incomplete = incomplete != 0, brick.changed = false;
    });
    for (const Brick* brick : changed)
      if (brick->incomplete) want_incomplete(*brick);
  }
}

void Extraction::want_incomplete(const Brick& brick) {
  Rows rows;
  rows_of(brick, rows);
  const int32_t first[3] = {brick.at[0] * SIDE - 1, brick.at[1] * SIDE - 1, brick.at[2] * SIDE - 1};
  for (int x = 0; x <= SIDE; x++)
    for (int y = 0; y <= SIDE; y++) {
      const CellRow row(rows.inside, rows.known, x, y);
      for (unsigned cells = row.mixed & ~row.complete & ((2u << SIDE) - 1); cells; cells &= cells - 1) {
        const int p[3] = {first[0] + x, first[1] + y, first[2] + lowest(cells)};
        bool in_box = true;
        for (int d = 0; d < 3; d++) in_box &= p[d] >= 0 && p[d] < resolution_;
        for (int c = 0; in_box && c < 8; c++) want(p[0] + (c & 1), p[1] + (c >> 1 & 1), p[2] + (c >> 2));
      }
    }
}

template <class F>
void Extraction::for_faces(const Rows& rows, F body) {
  const CubeTable& table = cube_table();
  const auto& in = rows.inside;
  for (int x = 1; x <= SIDE; x++)
    for (int y = 1; y <= SIDE; y++) {
      const CellRow row(in, rows.known, x, y);
      for (unsigned cells = row.mixed & row.complete & ((1u << SIDE) - 1) << 1; cells; cells &= cells - 1) {
        const int z = lowest(cells);
        const unsigned low = (in[x][y] >> z & 3u) | (in[x + 1][y] >> z & 3u) << 2 | (in[x][y + 1] >> z & 3u) << 4 | (in[x + 1][y + 1] >> z & 3u) << 6;
        unsigned signs = 0;  // bit c from bit c / 4 of the row of corner c & 3
        for (int c = 0; c < 8; c++) signs |= (low >> (2 * (c & 3) + (c >> 2)) & 1u) << c;
        body(x - 1, y - 1, z - 1, table[int(signs)]);
      }
    }
}

void Extraction::count(Brick& brick) const {
  Rows rows;
  rows_of(brick, rows);
  uint16_t vertices = 0;
  for (int d = 0; d < 3; d++)
    for (int x = 0; x < SIDE; x++) {
      uint64_t word = 0;
      for (int y = 0; y < SIDE; y++) {
        const int i = x + 1 + (d == 0), j = y + 1 + (d == 1), shift = d == 2;
        const unsigned known = rows.known[x + 1][y + 1] & rows.known[i][j] >> shift;
        const unsigned differ = (rows.inside[x + 1][y + 1] ^ rows.inside[i][j] >> shift) & known;
        word |= uint64_t(differ >> 1 & 255u) << 8 * y;
      }
      brick.crossing[d][x] = word, brick.before[d][x] = vertices;
      vertices = uint16_t(vertices + __builtin_popcountll(word));
    }
  brick.vertices = vertices, brick.faces = 0;
  for_faces(rows, [&](int, int, int, const Case& one) { brick.faces += one.triangles; });
}

void Extraction::count_all(int threads) {
  parallel(threads, int64_t(bricks_.size()), 0, [&](int64_t i, float*) { count(*bricks_[size_t(i)]); });
  for (const auto& brick : bricks_) {
    brick->first_vertex = n_vertices_, brick->first_face = n_faces_;
    n_vertices_ += brick->vertices, n_faces_ += brick->faces;
  }
  if (n_vertices_ >= int64_t(1) << 31) throw std::bad_alloc();
}

void Extraction::write(int threads, double* vertices, int32_t* faces) const {
  parallel(threads, int64_t(bricks_.size()), 0, [&](int64_t i, float*) { write_brick(*bricks_[size_t(i)], vertices, faces); });
}

void Extraction::write_brick(const Brick& b, double* vertices, int32_t* faces) const {
  if (!b.vertices && !b.faces) return;
  const double step = 2.0 / resolution_;
  double* to = vertices + 3 * b.first_vertex;
  for (int d = 0; d < 3; d++)
    for (int x = 0; x < SIDE; x++)
      for (uint64_t word = b.crossing[d][x]; word; word &= word - 1) {
        const int bit = __builtin_ctzll(word), y = bit >> 3, z = bit & 7;
        int32_t p[3] = {b.at[0] * SIDE + x, b.at[1] * SIDE + y, b.at[2] * SIDE + z};
        const double place[3] = {double(p[0]), double(p[1]), double(p[2])}, here = b.value[x << 6 | bit];
        p[d]++;
        const double there = value_at(p), linear = here / (here == there ? 1.0 : here - there);
        double t = linear < 1e-3 ? 1e-3 : linear > 1.0 - 1e-3 ? 1.0 - 1e-3 : linear;
        if (here > 0.0 && there > 0.0) t = b.inside[x][y] >> z & 1;  // a point of the border was declared outside: there the box cuts the solid
        for (int axis = 0; axis < 3; axis++) *to++ = -1.0 + step * (axis == d ? place[axis] + t : place[axis]);
      }

  Rows rows;
  rows_of(b, rows);
  const Brick* around[8];
  for (int c = 0; c < 8; c++) around[c] = brick(b.at[0] + (c & 1), b.at[1] + (c >> 1 & 1), b.at[2] + (c >> 2));
  int32_t* face = faces + 3 * b.first_face;
  for_faces(rows, [&](int x, int y, int z, const Case& one) {
    for (int i = 0; i < 3 * one.triangles; i++) {
      const int edge = one.edge[i], start = edge_start(edge), d = edge / 4;
      const int u = x + (start & 1), v = y + (start >> 1 & 1), w = z + (start >> 2);
      const Brick& at = *around[(u >> 3) | (v >> 3) << 1 | (w >> 3) << 2];
      const uint64_t bit = uint64_t(1) << ((v & 7) << 3 | (w & 7)), word = at.crossing[d][u & 7];
      *face++ = int32_t(at.first_vertex + at.before[d][u & 7] + __builtin_popcountll(word & (bit - 1)));
    }
  });
}
