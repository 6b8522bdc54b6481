// Rows that are their own keys: the similarities are symmetric. Half of them give every sum of powers; then
// power (1 / sum of its row + 1 / sum of its column) weighs the rows for both gradients in one product.
// No include guard: included once per instruction set (cpu/each_isa.h).

// The powers of a block and a panel, added to block.sums; and, with `columns`, the sums over the block's rows.
template <class Factor>
static void raise_and_add(const Block<Factor>& block, float factor, float* columns) {
  for (int64_t key = 0; key < panel; key += lanes) {
    f32v of_column = {};
    for (int64_t i = 0; i < block.rows; ++i) {
      const f32v power = power_of(block.scores + i * panel + key, block.largest[i], factor);
      store(block.sums + i * lanes, load(block.sums + i * lanes) + power);
      of_column += power;
    }
    if (columns) store(columns + key, of_column);
  }
}

// The sums of the rows of a block over its own panel and those behind it, which are also columns of these.
template <class T, class Factor>
static void sum_block(const Problem<T, Factor>& in, int64_t number, Scratch& scratch) {
  const Block<Factor> block(in, number * in.block_rows, scratch);
  const int64_t own_panel = block.first / panel;
  for (int64_t at = own_panel; at < in.panels(); ++at) {
    score(in, block, at);
    float* columns = at > own_panel ? in.column_sums + (number * in.panels() + at) * panel : nullptr;
    raise_and_add(block, log2_e / in.temperature, columns);
  }
  for (int64_t i = 0; i < block.count; ++i) {
    const int64_t row = block.first + i, partner = in.partner(row);
    in.row_sums[row] = sum_of(block.sums + i * lanes);
    if (partner / panel >= own_panel) in.positive[row] = block.positive[i];
    if (partner / panel > own_panel) in.positive[partner] = block.positive[i];
  }
}

// Loss, slope and one over the sum of the rows of a panel.
template <class T, class Factor>
static void finish_sums(const Problem<T, Factor>& in, int64_t number) {
  double others[panel] = {};
  const int64_t first = number * panel, count = std::min(panel, in.queries - first);
  for (int64_t block = 0; block < first / in.block_rows; ++block) {
    const float* columns = in.column_sums + (block * in.panels() + number) * panel;
    for (int64_t i = 0; i < panel; ++i) others[i] += static_cast<double>(columns[i]);
  }
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = first + i;
    in.inverse_sum[row] = finish_row(in, row, in.row_sums[row] + others[i], in.positive[row], 1.0);
  }
  std::fill_n(in.inverse_sum + first + count, panel - count, 0.0f);
}

// powers * (1 / sum of the row + 1 / sum of the column)
template <class Factor>
static void weigh(const Block<Factor>& block, float factor, const float* inverse_of_columns) {
  for (int64_t i = 0; i < block.rows; ++i) {
    for (int64_t key = 0; key < panel; key += lanes) {
      const f32v power = power_of(block.scores + i * panel + key, block.largest[i], factor);
      store(block.powers + i * panel + key, power * (load(inverse_of_columns + key) + block.inverse_sum[i]));
    }
  }
}

template <class T, class Factor>
static void own_gradient(const Problem<T, Factor>& in, int64_t number, Scratch& scratch) {
  const Block<Factor> block(in, number * in.block_rows, scratch);
  for (int64_t i = 0; i < block.rows; ++i) block.inverse_sum[i] = i < block.count ? in.inverse_sum[block.first + i] : 0;
  for (int64_t at = 0; at < in.panels(); ++at) {
    score(in, block, at);
    weigh(block, log2_e / in.temperature, in.inverse_sum + at * panel);
    add_weighted_keys(in, block, block.powers, at);
  }
  for (int64_t i = 0; i < block.count; ++i) {
    const int64_t row = block.first + i, partner = in.partner(row);  // the positive, whose positive is this row
    const float slopes = (in.slope[row] + in.slope[partner]) * in.key_inverse[partner];
    float* toward = block.weighted_keys + i * in.padded();
    combine(toward, 1.0f, in.key[partner], slopes, in.share(), in.width);
    through_normalise(in.query[row], in.query_inverse[row], toward, in.width, in.d_query + row * in.width);
  }
}
