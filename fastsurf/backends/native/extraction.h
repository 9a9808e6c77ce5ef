// A level set on a lattice of resolution + 1 points an axis over [-1, 1]^3, looked at from coarse to fine, as triangles.
//
// Values come from the caller: plan() says how many lattice points are wanted, points() where they lie, accept() takes what the field is there;
// so on until nothing is wanted. Positive is inside; points in grid cells that are not in use count as -1, unseen.
//
// Of a coarse lattice every point in use is wanted, then those of half the stride in the cells that may hold surface, and so on. A cell is passed
// over where its corners agree in sign and none lies closer to 0 than `margin` times the steepest change between neighbouring points, or half
// the bend (second differences, summed over the axes), whichever is less. A field linear between points has no bend, and one with a fold inside
// a cell differs from what the corners show by at most half of it. At the end the surface is followed: where some corners of a finest cell are
// known and differ in sign, the others are wanted too. So a piece of surface is found whole if any of its cells is, and it has no holes.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <memory>
#include <vector>

class Extraction {
 public:
  // cells (n_cells, n_cells, n_cells): grid cells in use. closed: points on the box's border are outside, whatever the field says.
  Extraction(int resolution, bool closed, float margin, const uint8_t* cells, int n_cells);

  int64_t plan(int threads);
  bool wants(int64_t first, int64_t count) const { return first >= 0 && count >= 0 && first + count <= int64_t(wanted_.size()); }
  void points(int threads, int64_t first, int64_t count, float* x) const;  // (count, 3) of the points wanted
  void accept(int threads, int64_t first, int64_t count, const float* values);

  // After the last plan(). Vertices lie where the field, linear along a lattice edge, is 0; a thousandth of the edge away from its ends at least,
  // but on the box where that cuts the solid. Faces run counter-clockwise seen from outside.
  int64_t vertices() const { return n_vertices_; }
  int64_t faces() const { return n_faces_; }
  void write(int threads, double* vertices, int32_t* faces) const;

 private:
  static constexpr int SIDE = 8;  // lattice points of a brick an axis

  struct Brick {
    int32_t at[3];  // first lattice point / SIDE
    int64_t first_vertex, first_face;
    int32_t vertices, faces;
    uint64_t crossing[3][SIDE];      // edges with a vertex: axis, x; bit 8 y + z
    uint16_t before[3][SIDE];        // vertices of the brick before these
    uint8_t inside[SIDE][SIDE], known[SIDE][SIDE];  // [x][y], bit z
    bool changed, incomplete;
    float value[SIDE * SIDE * SIDE];
  };
  struct Cell {
    int16_t at[3];  // first lattice point
  };
  struct Rows {  // [x + 1][y + 1], bit z + 1: of a brick and what touches it
    uint16_t inside[SIDE + 2][SIDE + 2], known[SIDE + 2][SIDE + 2];
  };

  bool in_use(int x, int y, int z) const { return cells_[(size_t(cell_of_[x]) * n_cells_ + cell_of_[y]) * n_cells_ + cell_of_[z]]; }
  size_t coarse_index(int i, int j, int k) const { return (size_t(i) * (n_coarse_ + 1) + j) * (n_coarse_ + 1) + k; }
  int coarse_at(int i) const { return i * coarse_stride_ < resolution_ ? i * coarse_stride_ : resolution_; }
  int64_t brick_slot(int i, int j, int k) const { return (int64_t(i) * n_bricks_ + j) * n_bricks_ + k; }
  const Brick* brick(int i, int j, int k) const;
  float value_at(const int32_t* p) const;

  void start();
  void find_near_coarse(int threads);
  bool near_coarse(int i, int j, int k, const std::vector<float>& steep, const std::vector<float>& bend) const;
  uint8_t near_children(const Cell& cell) const;
  bool near(float low, float high, float bound, bool whole, bool at_border) const;
  void refine(int threads);
  void want_cells();
  void want(int x, int y, int z);
  void want_in(uint32_t brick, int x, int y, int z);
  uint32_t brick_number(int x, int y, int z);  // made if there is none
  void follow(int threads);
  void want_incomplete(const Brick& brick);
  void note_signs(Brick& brick) const;
  void rows_of(const Brick& brick, Rows& rows) const;
  template <class F>
  static void for_faces(const Rows& rows, F body);  // body(x, y, z, case) for the brick's cells that hold surface
  void count(Brick& brick) const;
  void count_all(int threads);
  void write_brick(const Brick& brick, double* vertices, int32_t* faces) const;

  enum Stage { START, COARSE, REFINE, FOLLOW, DONE };

  const int resolution_, n_cells_;
  const bool closed_;
  const float margin_;
  const std::vector<uint8_t> cells_;
  std::vector<int32_t> cell_of_;  // of lattice indices
  int coarse_stride_, n_coarse_, n_bricks_, stride_;
  Stage stage_ = START;
  std::vector<float> coarse_;  // (n_coarse + 1)^3 values, NOT_IN_USE
  std::vector<int32_t> brick_of_;
  std::vector<std::unique_ptr<Brick>> bricks_;
  std::vector<Cell> near_;        // of `stride_`
  std::vector<uint32_t> wanted_;  // brick and point in it; in the first round index of coarse_
  int64_t n_vertices_ = 0, n_faces_ = 0;
};
